# With the distribution feature "coracle", the update is confirmed by Coracle's health gate. Without
# the feature nothing changes.
RRECOMMENDS:${PN}:append = " ${@bb.utils.contains('DISTRO_FEATURES', 'coracle', 'coracle-mark-good-swupdate', '', d)}"
