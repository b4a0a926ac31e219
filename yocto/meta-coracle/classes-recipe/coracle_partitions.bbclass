# The partitions of a gateway, as lines for a board's own .wks.in:
#
#   ${CORACLE_WKS_FACTORY}   identity and first orders, read-only at run time, label "factory"
#   ${CORACLE_WKS_DATA}      the one writable partition, label "data"
#
# Neither gets a line in /etc/fstab: the mount units of coracle-reference mount them by label.

CORACLE_DATA_SIZE ?= "1G"
CORACLE_DATA_SIZE[doc] = "Size of the data partition; grown to the end of its partition at boot"
CORACLE_FACTORY_SIZE ?= "16M"
CORACLE_FACTORY_SIZE[doc] = "Size of the factory partition"
CORACLE_FACTORY_DIR ?= ""
CORACLE_FACTORY_DIR[doc] = "A directory whose files go into the factory partition; never a key that several gateways share"

CORACLE_FACTORY_SOURCE = "${@'--source rootfs --rootfs-dir=%s' % d.getVar('CORACLE_FACTORY_DIR') if d.getVar('CORACLE_FACTORY_DIR') else ''}"
CORACLE_WKS_FACTORY = "part ${CORACLE_FACTORY_SOURCE} --fstype=ext4 --label factory --part-name factory --align 1024 --fixed-size ${CORACLE_FACTORY_SIZE}"
CORACLE_WKS_DATA = "part --fstype=ext4 --label data --part-name data --align 1024 --fixed-size ${CORACLE_DATA_SIZE}"

# wic renamed its plugins: bootimg-efi of scarthgap is bootimg_efi now.
CORACLE_WIC_DASH = "${@'-' if 'scarthgap' in (d.getVar('LAYERSERIES_CORENAMES') or '').split() else '_'}"
