#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Runs inside the machine: sets up NIC and devices, runs every test program, says how many have
# failed. Each prints a line "name: N passed, N failed" that the host adds up.
#
# Wants VM_PROGRAMS (the directory of the test programs), VM_NIC_MODULE, VM_KERNEL and the disks
# VM_DISK_NVME512, VM_DISK_NVME4K, VM_DISK_VIRTIO.

cd "$(dirname "$0")" || exit 1
. ./setup_nic.sh || { echo "setting up the NIC failed" && exit 1; }
. ./setup_disks.sh || { echo "setting up the devices failed" && exit 1; }

failed=0
sh ./test_nic.sh || failed=1
for program in test_register test_requests test_areas test_shapes test_flows test_write; do
    "$VM_PROGRAMS/$program" || failed=1
done
"$VM_PROGRAMS/test_direct_io" "$VM_DISK_NVME512=4,0" "$VM_DISK_NVME4K=4,0" \
    "$VM_DISK_VIRTIO=512,0" "$VM_NULL512=2,0" "$VM_NULL4K=2,0" "$VM_NULLVB=2,4096" \
    "$VM_LOOP=512,0" "$VM_RAM=512,0,lies" || failed=1
exit $failed
