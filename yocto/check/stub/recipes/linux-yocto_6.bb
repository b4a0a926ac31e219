# As in OpenEmbedded-Core, as far as meta-coracle appends to it.
inherit kernel-yocto
SRC_URI = ""
COMPATIBLE_MACHINE = "^(qemuarm64)$"
