# With the distribution feature "coracle", the slot is marked good by Coracle's health gate, and not
# by the mere fact that the system booted. Without the feature nothing changes.
RRECOMMENDS:${PN}:append = " ${@bb.utils.contains('DISTRO_FEATURES', 'coracle', 'coracle-mark-good-rauc', '', d)}"
RRECOMMENDS:${PN}:remove = "${@bb.utils.contains('DISTRO_FEATURES', 'coracle', '${PN}-mark-good', '', d)}"
