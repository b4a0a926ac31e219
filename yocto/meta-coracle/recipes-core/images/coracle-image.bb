SUMMARY = "Reference image: read-only root, one data partition, Coracle"
DESCRIPTION = "A gateway as Coracle means it: nothing on it is writable but the data partition, its identity comes from the factory partition on the first boot, and the hardware watchdog is armed."
HOMEPAGE = "https://github.com/coracle-project/coracle"
BUGTRACKER = "https://github.com/coracle-project/coracle/issues"
SECTION = "base"
LICENSE = "Apache-2.0"

inherit core-image features_check coracle_partitions

# The feature coracle brings the kernel's configuration and its check.
REQUIRED_DISTRO_FEATURES = "coracle systemd usrmerge"

IMAGE_FEATURES += "read-only-rootfs"
IMAGE_INSTALL = "\
    ${CORE_IMAGE_EXTRA_INSTALL} \
    coracle-reference \
    packagegroup-core-boot \
    packagegroup-coracle \
    packagegroup-coracle-tools \
"

WKS_FILE ?= "${CORACLE_LAYERDIR}/files/wic/${@bb.utils.contains('MACHINE_FEATURES', 'efi', 'coracle-efi', 'coracle-plain', d)}.wks.in"
