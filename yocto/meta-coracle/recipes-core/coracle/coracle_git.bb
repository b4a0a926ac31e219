SUMMARY = "Keeps a gateway running the software it was ordered to run"
SUMMARY:${PN}-completions = "Completion of coracle's command line in bash, zsh and fish"
SUMMARY:${PN}-diagnostics = "What tells why workloads do not run"
SUMMARY:${PN}-mark-good = "Marks an updated system good once the workloads are as ordered"
SUMMARY:${PN}-reference = "Mounts of a read-only image with a data and a factory partition"
SUMMARY:${PN}-watchdog = "Has systemd arm and feed the hardware watchdog"
DESCRIPTION = "Takes signed orders over MQTT or from a file, keeps them, and supervises containers through containerd, with or without the cloud."
HOMEPAGE = "https://github.com/coracle-project/coracle"
BUGTRACKER = "https://github.com/coracle-project/coracle/issues"
SECTION = "base"
# Its own, and those of the crates and the C code that are linked in.
LICENSE = "Apache-2.0 & BSD-3-Clause & ISC & MIT & MIT-0 & OLDAP-2.8 & Unicode-3.0 & Zlib"
LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

CVE_PRODUCT = "coracle"

DEPENDS = "protobuf-native"

PV = "0.1.0+git"

inherit cargo coracle_source features_check ptest systemd useradd

SRC_URI += "file://run-ptest"

REQUIRED_DISTRO_FEATURES = "systemd usrmerge"

# Parts that can be left out:
#   cni          RDEPENDS on the CNI plugins, the iptables that they call, and nftables, by which
#                ports are shared out over replicas
#   containerd   RDEPENDS on containerd and runc; without it they must come from elsewhere
#   mark-good    the package coracle-mark-good: the health gate of updates
#   reference    the package coracle-reference: mounts of an image with a data and a factory partition
# A cargo feature of the agent gets an option of its name: PACKAGECONFIG[NAME] = "--features NAME,".
# The feature "schema" is the generator's of the API's document, and gets none.
PACKAGECONFIG ??= "cni containerd mark-good reference"
PACKAGECONFIG[cni] = ",,,cni iptables nftables"
PACKAGECONFIG[containerd] = ",,,virtual-containerd virtual-runc"
PACKAGECONFIG[mark-good] = ""
PACKAGECONFIG[reference] = ""

# What is flashed: the smallest. The debug symbols go into their package.
CORACLE_PROFILE ?= "dist"
BUILD_MODE = "--profile ${CORACLE_PROFILE}"
BUILD_DIR = "${CORACLE_PROFILE}"
export CARGO_PROFILE_DIST_STRIP = "none"
export CARGO_PROFILE_DIST_DEBUG = "line-tables-only"

# C code of crates is compiled where cargo keeps them, which the distribution does not map.
DEBUG_PREFIX_MAP:append = " -ffile-prefix-map=${CARGO_HOME}=${TARGET_DBGSRC_DIR}/cargo_home"

do_compile() {
    oe_cargo_build --package coracle --bin coracle --no-default-features ${PACKAGECONFIG_CONFARGS}
    oe_cargo_build --package coracle-config-check --bin coracle-config-check
    oe_cargo_build --package coracle-log --bin coracle-log
}

# The unit tests of the decisions and of the wire documents: they need nothing but themselves.
PTEST_CRATES = "coracle-core coracle-protocol"
do_compile_ptest() {
    oe_cargo_fix_env
    export RUSTFLAGS="${RUSTFLAGS}"
    for crate in ${PTEST_CRATES}; do
        "${CARGO}" test --no-run --frozen --release --lib --package $crate \
            --target ${RUST_HOST_SYS} --target-dir ${B}/ptest --manifest-path=${CARGO_MANIFEST_PATH}
    done
}
do_compile_ptest[cleandirs] = "${B}/ptest"

do_install() {
    install -D -m 0755 ${B}/target/${CARGO_TARGET_SUBDIR}/coracle ${D}${bindir}/coracle
    for program in coracle-config-check coracle-log; do
        install -D -m 0755 ${B}/target/${CARGO_TARGET_SUBDIR}/$program ${D}${libexecdir}/coracle/$program
    done

    UNITDIR=${systemd_system_unitdir} SYSTEMDDIR=${systemd_unitdir} SYSCONFDIR=${sysconfdir} \
        TMPFILESDIR=${nonarch_libdir}/tmpfiles.d SYSUSERSDIR=${nonarch_libdir}/sysusers.d LIBEXECDIR=${libexecdir} \
        sh ${S}/systemd/install ${D} ${@bb.utils.contains('PACKAGECONFIG', 'reference', '--reference', '', d)}
    # Enabled by the package, so that it can be disabled.
    rm -f ${D}${systemd_system_unitdir}/multi-user.target.wants/coracle.service

    install -d ${D}${mandir}/man1
    install -m 0644 ${S}/agent/man/*.1 ${D}${mandir}/man1/
    install -D -m 0644 ${S}/agent/completions/coracle.bash ${D}${datadir}/bash-completion/completions/coracle
    install -D -m 0644 ${S}/agent/completions/_coracle ${D}${datadir}/zsh/site-functions/_coracle
    install -D -m 0644 ${S}/agent/completions/coracle.fish ${D}${datadir}/fish/vendor_completions.d/coracle.fish

    install -D -m 0755 ${S}/yocto/meta-coracle/files/coracle-check-kernel ${D}${bindir}/coracle-check-kernel
    if ${@bb.utils.contains('PACKAGECONFIG', 'mark-good', 'true', 'false', d)}; then
        install -D -m 0755 ${S}/yocto/meta-coracle/files/coracle-mark-good ${D}${bindir}/coracle-mark-good
        install -D -m 0644 ${S}/yocto/meta-coracle/files/coracle-mark-good.service \
            ${D}${systemd_system_unitdir}/coracle-mark-good.service
    fi
}

do_install_ptest() {
    install -m 0644 ${S}/agent/tests/trust/order.json ${S}/agent/tests/trust/orders.pub \
        ${S}/agent/tests/trust/other.pub ${D}${PTEST_PATH}/
    install -d ${D}${PTEST_PATH}/examples ${D}${PTEST_PATH}/rust
    install -m 0644 ${S}/docs/examples/*.yaml ${D}${PTEST_PATH}/examples/
    for crate in ${PTEST_CRATES}; do
        name=$(echo $crate | tr - _)
        tests=$(find ${B}/ptest/${RUST_HOST_SYS}/release/deps -type f -executable -name "$name-*")
        # Without quotes: install refuses to put several into one, or none.
        install -m 0755 $tests ${D}${PTEST_PATH}/rust/$name
    done
}

PACKAGES =+ "\
    ${PN}-completions \
    ${PN}-diagnostics \
    ${PN}-mark-good \
    ${PN}-reference \
    ${PN}-watchdog \
"

SYSTEMD_PACKAGES = "${PN} ${@bb.utils.contains('PACKAGECONFIG', 'mark-good', '${PN}-mark-good', '', d)}"
SYSTEMD_SERVICE:${PN} = "coracle.service"
SYSTEMD_SERVICE:${PN}-mark-good = "coracle-mark-good.service"

# The same as in systemd/sysusers.d/coracle.conf: members may read the agent's API.
USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system coracle"

FILES:${PN}-completions += "\
    ${datadir}/bash-completion \
    ${datadir}/fish \
    ${datadir}/zsh \
"
FILES:${PN}-diagnostics += "${bindir}/coracle-check-kernel"
FILES:${PN}-mark-good += "${bindir}/coracle-mark-good"
FILES:${PN}-reference += "\
    /data \
    /factory \
    ${localstatedir}/lib/containerd \
    ${localstatedir}/lib/coracle \
    ${systemd_system_unitdir}/*.mount \
    ${systemd_system_unitdir}/containerd.service.d/60-coracle-data.conf \
    ${systemd_system_unitdir}/coracle-data-check.service \
    ${systemd_system_unitdir}/coracle-partition@.service \
    ${systemd_system_unitdir}/dev-disk-*.device.d \
    ${systemd_system_unitdir}/local-fs.target.wants \
"
FILES:${PN}-watchdog += "${systemd_unitdir}/system.conf.d/50-coracle-watchdog.conf"
FILES:${PN} += "\
    ${nonarch_libdir}/sysusers.d \
    ${nonarch_libdir}/tmpfiles.d \
    ${systemd_system_unitdir} \
"
CONFFILES:${PN} = "${sysconfdir}/coracle/coracle.toml"

# The mounts check the data partition first.
RDEPENDS:${PN}-reference = "\
    ${PN} \
    e2fsprogs-e2fsck \
"
RDEPENDS:${PN}-diagnostics = "${PN}"
RDEPENDS:${PN}-mark-good = "${PN}"
RDEPENDS:${PN}-ptest += "${PN}-diagnostics ${@bb.utils.contains('PACKAGECONFIG', 'mark-good', '${PN}-mark-good', '', d)}"

RRECOMMENDS:${PN}-diagnostics = "\
    ethtool \
    iproute2-ss \
    strace \
    util-linux-findmnt \
    util-linux-nsenter \
"
