# As in meta-swupdate, as far as meta-coracle appends to it.
SRC_URI = ""
RRECOMMENDS:${PN} += "${PN}-ipc"
