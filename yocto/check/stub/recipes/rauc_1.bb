# As in meta-rauc, as far as meta-coracle appends to it.
SRC_URI = ""
RRECOMMENDS:${PN} += "virtual-rauc-conf"
RRECOMMENDS:${PN}:append = " ${PN}-mark-good"
