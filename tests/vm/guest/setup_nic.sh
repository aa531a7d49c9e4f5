# SPDX-License-Identifier: Apache-2.0
#
# Sourced inside the machine: loads the virtual NIC and makes the pair zc0 <-> zc1, with zc1 in
# the network namespace "peer". Wants VM_NIC_MODULE, the path of zcsim.ko.
#
# Afterwards: 10.9.0.1 and fd09::1 on zc0, 10.9.0.2 and fd09::2 in the peer; unsteered traffic
# goes to queue 0 of zc0 and nowhere else, as an operator has to set it up for zcrx; TCP to port
# 7001 is steered to queue 2.

insmod "$VM_NIC_MODULE" "$@" &&
    ip netns add peer &&
    ip link set zc1 netns peer &&
    echo 1 > /proc/sys/net/ipv6/conf/zc0/keep_addr_on_down &&
    ip addr add 10.9.0.1/24 dev zc0 &&
    ip addr add fd09::1/64 dev zc0 nodad &&
    ip -n peer addr add 10.9.0.2/24 dev zc1 &&
    ip -n peer addr add fd09::2/64 dev zc1 nodad &&
    ip link set zc0 up &&
    ip -n peer link set zc1 up &&
    ip -n peer link set lo up &&
    ethtool -X zc0 equal 1 &&
    ethtool -N zc0 flow-type tcp4 dst-port 7001 action 2 > /dev/null &&
    ethtool -N zc0 flow-type tcp6 dst-port 7001 action 2 > /dev/null
