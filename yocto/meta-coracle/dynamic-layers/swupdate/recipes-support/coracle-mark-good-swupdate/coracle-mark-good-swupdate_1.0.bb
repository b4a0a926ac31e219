SUMMARY = "Marks the system good in SWUpdate once the workloads are as ordered"
DESCRIPTION = "The marker of Coracle's health gate for SWUpdate: coracle-mark-good calls it when the agent has reported the workloads as ordered for long enough."
HOMEPAGE = "https://github.com/coracle-project/coracle"
BUGTRACKER = "https://github.com/coracle-project/coracle/issues"
SECTION = "base"
LICENSE = "Apache-2.0"
# nooelint: oelint.var.licenseremotefile - the recipe has no source but its own file
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

SRC_URI = "file://swupdate"
S = "${UNPACKDIR}"

inherit allarch

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -D -m 0755 ${UNPACKDIR}/swupdate ${D}${nonarch_libdir}/coracle/mark-good.d/swupdate
}

FILES:${PN} += "${nonarch_libdir}/coracle/mark-good.d/swupdate"
RDEPENDS:${PN} = "coracle-mark-good swupdate"
