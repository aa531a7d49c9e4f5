#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Runs inside the machine: senders get receipts while the device is logged or breaks. The journal
# of what they were told goes to the same place as the output, in lines that begin with '@'.
#
# Wants VM_PROGRAMS, VM_NIC_MODULE and the disks VM_DISK_LOGGED, VM_DISK_LOG and VM_DISK_FLAKY.

cd "$(dirname "$0")" || exit 1
. ./setup_nic.sh || { echo "setting up the NIC failed" && exit 1; }
modprobe -a dm_log_writes dm_flakey || { echo "the device mapper lacks targets" && exit 1; }
exec 3>&1
VM_MANIFEST=/tmp/manifest "$VM_PROGRAMS/test_crash"
