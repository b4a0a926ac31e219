# What a kernel recipe needs for Coracle. linux-yocto inherits this with DISTRO_FEATURES "coracle"; any
# other kernel by `inherit coracle_kernel` in a bbappend of its own.
#
# A kernel that inherits kernel-yocto merges the fragment. Another one is only checked: its own
# configuration must hold what the check names.

# nooelint: oelint.vars.fileextrapaths - the class is for bbappends
FILESEXTRAPATHS:prepend := "${CORACLE_LAYERDIR}/recipes-kernel/linux:"

CORACLE_KMETA = "file://coracle-kmeta;type=kmeta;name=coracle-kmeta;destsuffix=coracle-kmeta"
SRC_URI:append = " ${@d.getVar('CORACLE_KMETA') if bb.data.inherits_class('kernel-yocto', d) else ''}"
KERNEL_FEATURES:append = " ${@'features/coracle/coracle.scc' if bb.data.inherits_class('kernel-yocto', d) else ''}"

# Fails before an hour is spent on a kernel that cannot run a container.
CORACLE_CHECK_KERNEL = "${CORACLE_LAYERDIR}/files/coracle-check-kernel"
do_coracle_kernel_check() {
    sh ${CORACLE_CHECK_KERNEL} ${B}/.config || bbfatal "this kernel lacks what Coracle needs"
}
do_coracle_kernel_check[doc] = "Checks the kernel's configuration for what Coracle needs"
do_coracle_kernel_check[file-checksums] += "${CORACLE_CHECK_KERNEL}:True"
do_coracle_kernel_check[vardepsexclude] += "CORACLE_CHECK_KERNEL"
addtask coracle_kernel_check after do_configure before do_compile
