#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Runs inside the machine: the core's engine zcrx between the virtual NIC and every kind of disk.
# Each program prints a line "name: N passed, N failed" that the host adds up.
#
# Wants VM_PROGRAMS, VM_NIC_MODULE, VM_MANIFEST (a file to note flows in, for the host) and the
# disks VM_DISK_NVME512, VM_DISK_NVME4K, VM_DISK_VIRTIO, VM_DISK_FAULTS, VM_DISK_CROWDS and
# VM_DISK_SPARE. What lies on devices in the machine's memory is copied to VM_DISK_KEEP_<NAME> at the
# end, for the host to look at.

cd "$(dirname "$0")" || exit 1
. ./setup_nic.sh || { echo "setting up the NIC failed" && exit 1; }
. ./setup_disks.sh || { echo "setting up the devices failed" && exit 1; }
modprobe dm_delay || { echo "there is no dm-delay" && exit 1; }

# Port 7003 is spread over queues 1 to 3, port 7004 goes to queue 3, port 7005 to queue 2 by rule 20.
ethtool -X zc0 context new start 1 equal 3 > /dev/null &&
    ethtool -N zc0 flow-type tcp4 dst-port 7003 context 1 > /dev/null &&
    ethtool -N zc0 flow-type tcp4 dst-port 7004 action 3 > /dev/null &&
    ethtool -N zc0 flow-type tcp4 dst-port 7005 action 2 loc 20 > /dev/null ||
    { echo "steering failed" && exit 1; }

failed=0
for program in ${VM_TRIALS:-test_engine_shapes test_engine_faults test_engine_crowds
    test_engine_settings}; do
    "$VM_PROGRAMS/$program" || failed=1
done

# keep DEVICE COPY: what has been written there lies on the host afterwards.
keep() {
    dd if="$1" of="$2" bs=1M conv=fsync 2> /dev/null || failed=1
}
keep "$VM_NULL512" "$VM_DISK_KEEP_NULL512"
keep "$VM_NULL4K" "$VM_DISK_KEEP_NULL4K"
keep "$VM_NULLVB" "$VM_DISK_KEEP_NULLVB"
keep "$VM_LOOP" "$VM_DISK_KEEP_LOOP"
keep "$VM_RAM" "$VM_DISK_KEEP_RAM"
exit $failed
