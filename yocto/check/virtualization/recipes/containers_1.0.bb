SUMMARY = "Stands in for containerd, runc and the CNI plugins of meta-virtualization, and nftables"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

PACKAGES = "${PN}"
ALLOW_EMPTY:${PN} = "1"
RPROVIDES:${PN} = "virtual-containerd virtual-runc cni nftables"
