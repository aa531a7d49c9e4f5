#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Runs inside the machine until somebody cuts its power: one server, senders without end, and every
# receipt told to the host the moment it comes (see -J of send.c), by way of the output.
#
# Wants VM_PROGRAMS, VM_NIC_MODULE, VM_SERVE (options of the server), VM_SEND (options of all
# senders) and the disk VM_DISK_CUT. The options are lists of words.

cd "$(dirname "$0")" || exit 1

# crowd NAME OPTION...: sends to the server, or says what went wrong.
crowd() {
    name=$1
    shift
    "$VM_PROGRAMS/send" -a 10.9.0.1 -p 7001 -J 3 -N cut -l $VM_SEND "$@" > "/tmp/send.$name" ||
        { cat "/tmp/send.$name" && return 1; }
}

# lane SEED OPTION...: crowds one after the other, each with content of its own.
lane() {
    seed=$1
    shift
    while crowd "$seed" -S "$seed" "$@"; do
        seed=$((seed + 64))
    done
}

if [ "$1" = senders ]; then # in the peer's namespace
    crowd endless -e -n 2 -S 5000 &
    lane 1000000 -n 24 -b 1 -s 1511 &
    lane 2000000 -n 6 -b 50001 -s 50021 &
    lane 3000000 -n 2 -b 700001 &
    wait
    exit 1 # nothing but a power cut is to end them
fi

. ./setup_nic.sh || { echo "setting up the NIC failed" && exit 1; }
ip link set zc0 mtu 9000 && ip -n peer link set zc1 mtu 9000 || exit 1
exec 3>&1
"$VM_PROGRAMS/serve" -f "$VM_DISK_CUT" -F 2097152 > /dev/null || exit 1
"$VM_PROGRAMS/serve" -f "$VM_DISK_CUT" $VM_SERVE > /tmp/serve &
until grep -q '^ready' /tmp/serve; do
    sleep 0.05
    kill -0 $! || { cat /tmp/serve && exit 1; }
done
ip netns exec peer sh ./run_cut.sh senders
