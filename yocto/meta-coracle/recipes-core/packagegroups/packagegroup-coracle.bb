SUMMARY = "Coracle on a gateway"
DESCRIPTION = "packagegroup-coracle is the agent with what it needs to run workloads, and the hardware watchdog armed; packagegroup-coracle-tools is what helps a person at the gateway."
HOMEPAGE = "https://github.com/coracle-project/coracle"
BUGTRACKER = "https://github.com/coracle-project/coracle/issues"
SECTION = "base"
LICENSE = "Apache-2.0"

inherit packagegroup features_check

REQUIRED_DISTRO_FEATURES = "systemd usrmerge"

PACKAGES = "\
    ${PN} \
    ${PN}-tools \
"

RDEPENDS:${PN} = "\
    ca-certificates \
    coracle \
    coracle-watchdog \
"
RDEPENDS:${PN}-tools = "\
    coracle-completions \
    coracle-diagnostics \
"

# Modules of kernels that do not have them built in.
RRECOMMENDS:${PN} = "\
    kernel-module-br-netfilter \
    kernel-module-bridge \
    kernel-module-nf-conntrack \
    kernel-module-nf-nat \
    kernel-module-nf-tables \
    kernel-module-nft-chain-nat \
    kernel-module-nft-compat \
    kernel-module-nft-ct \
    kernel-module-nft-masq \
    kernel-module-nft-nat \
    kernel-module-nft-numgen \
    kernel-module-overlay \
    kernel-module-veth \
    kernel-module-xt-addrtype \
    kernel-module-xt-comment \
    kernel-module-xt-conntrack \
    kernel-module-xt-mark \
    kernel-module-xt-masquerade \
    kernel-module-xt-multiport \
    kernel-module-xt-nat \
"
