# Nothing changes for whoever only has the layer: it takes the distribution feature or our machine.
inherit_defer ${@bb.utils.contains('DISTRO_FEATURES', 'coracle', 'coracle_kernel', '', d)}

COMPATIBLE_MACHINE:coracle-x86-64 = "^coracle-x86-64$"
KMACHINE:coracle-x86-64 = "qemux86-64"
KERNEL_FEATURES:append:coracle-x86-64 = " cfg/virtio.scc cfg/paravirt_kvm.scc"
KERNEL_FEATURES:append:coracle-x86-64 = " ${@bb.utils.contains('DISTRO_FEATURES', 'coracle', 'features/coracle/coracle-hypervisors.scc', '', d)}"
