# SPDX-License-Identifier: Apache-2.0
#
# Python of the layer meta-coracle, known to BitBake through addpylib in conf/layer.conf.

BBIMPORTS = ["source"]
