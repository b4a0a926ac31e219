# The real one is of OpenEmbedded-Core.
addtask fetch
do_fetch() {
    :
}
addtask configure after do_fetch
do_configure() {
    :
}
addtask compile after do_configure
do_compile() {
    :
}
addtask install after do_compile
do_install() {
    :
}
