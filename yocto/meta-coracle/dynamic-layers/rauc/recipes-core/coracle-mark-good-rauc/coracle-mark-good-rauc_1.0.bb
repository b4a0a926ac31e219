SUMMARY = "Marks the system good in RAUC once the workloads are as ordered"
DESCRIPTION = "The marker of Coracle's health gate for RAUC: coracle-mark-good calls it when the agent has reported the workloads as ordered for long enough."
HOMEPAGE = "https://github.com/coracle-project/coracle"
BUGTRACKER = "https://github.com/coracle-project/coracle/issues"
SECTION = "base"
LICENSE = "Apache-2.0"
# nooelint: oelint.var.licenseremotefile - the recipe has no source but its own file
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

SRC_URI = "file://rauc"
S = "${UNPACKDIR}"

inherit allarch

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -D -m 0755 ${UNPACKDIR}/rauc ${D}${nonarch_libdir}/coracle/mark-good.d/rauc
}

FILES:${PN} += "${nonarch_libdir}/coracle/mark-good.d/rauc"
RDEPENDS:${PN} = "coracle-mark-good rauc"
# Two that mark would mark too early.
RCONFLICTS:${PN} = "rauc-mark-good"
