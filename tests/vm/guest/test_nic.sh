#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Smoke test of the machine and of the virtual NIC as an operator sees it: what ethtool shows and
# sets, steering by rules, by RSS and by context, counters by queue, unloading. Runs after
# setup_nic.sh; leaves the pair as it found it, but for the last case, which unloads the module
# and loads it again.

passed=0
failed=0

# check NAME COMMAND...: one case, passed if the command succeeds.
check() {
    name=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
        echo "ok   $name"
    else
        failed=$((failed + 1))
        echo "FAIL $name: $*"
    fi
}

not() {
    ! "$@" 2> /dev/null
}

# shows PATTERN COMMAND...: the command's output has a line that matches.
shows() {
    pattern=$1
    shift
    "$@" | grep -qE "$pattern"
}

answers() {
    busybox ping "$@" > /dev/null
}

counter() {
    ethtool -S zc0 | sed -n "s/ *$1: //p"
}

# packets QUEUES: how many packets these queues of zc0 have received, e.g. "2 3".
packets() {
    sum=0
    for queue in $1; do
        sum=$((sum + $(counter "rx${queue}_packets")))
    done
    echo $sum
}

# lands QUEUES PORT [ADDRESS]: what the peer sends to a port is counted on one of these queues. The
# connection is refused, which is enough: the rule sees its first packet.
lands() {
    before=$(packets "$1")
    ip netns exec peer busybox nc -w 1 "${3:-10.9.0.1}" "$2" < /dev/null > /dev/null 2>&1
    [ "$(packets "$1")" -gt "$before" ]
}

rule_count() {
    ethtool -n zc0 | sed -n 's/^Total \([0-9]*\) rules/\1/p'
}

rules_are() {
    [ "$(rule_count)" = "$1" ]
}

split_is() {
    shows "TCP data split:.*$1" ethtool -g zc0
}

kernel_is_the_lab_s() {
    [ "$(uname -r)" = "$VM_KERNEL" ]
}

# The host looks afterwards whether the file has come to it: it must not.
write_beside_this() {
    touch ./written-in-the-machine
}

check "the kernel is the one from the backports" kernel_is_the_lab_s
check "the host's directories can be written to, for the guest alone" write_beside_this
check "hugepages are there" shows 'HugePages_Total: +[1-9]' cat /proc/meminfo
check "the pair has a link" shows 'Link detected: yes' ethtool zc0
check "IPv4 goes through" answers -c 1 -W 5 10.9.0.2
check "IPv6 goes through" answers -6 -c 1 -W 5 fd09::2
check "4 queues" shows 'Combined:.*4' ethtool -l zc0

check "header split is on" split_is on
check "header split off" ethtool -G zc0 tcp-data-split off
check "... and shown so" split_is off
check "header split on" ethtool -G zc0 tcp-data-split on
check "... and shown so" split_is on
check "ring sizes are refused" not ethtool -G zc0 rx 128

set_pack_align() {
    echo "$1" > /sys/module/zcsim/parameters/pack_align
}
check "packing by 4096" set_pack_align 4096
check "packing by 48 is refused" not set_pack_align 48
check "packing by 64" set_pack_align 64

check "the rules of the set-up" rules_are 2
check "port 7001 lands on queue 2" lands 2 7001
check "another port lands on queue 0" lands 0 7005
check "a rule for port 7005" ethtool -N zc0 flow-type tcp4 dst-port 7005 action 1 loc 5
check "... is counted" rules_are 3
check "... is shown" shows 'Direct to queue 1' ethtool -n zc0 rule 5
check "... steers" lands 1 7005
check "a rule for IPv6" ethtool -N zc0 flow-type tcp6 dst-port 7005 action 3 loc 6
check "... steers" lands 3 7005 fd09::1
check "deleting the rules" eval 'ethtool -N zc0 delete 5 && ethtool -N zc0 delete 6'
check "... leaves two" rules_are 2
check "... and steers no more" not lands 1 7005
check "a rule to a queue that is not there" not ethtool -N zc0 flow-type tcp4 dst-port 1 action 4
check "a rule for UDP" not ethtool -N zc0 flow-type udp4 dst-port 1 action 1
check "deleting a rule that is not there" not ethtool -N zc0 delete 9

check "RSS over one queue" shows ' 0: +0 +0 +0 +0' ethtool -x zc0
check "an RSS context over queues 2 and 3" shows 'context is 1' \
    ethtool -X zc0 context new start 2 equal 2
check "... is shown" shows ' 0: +2 +3 +2 +3' ethtool -x zc0 context 1
check "a rule to the context" ethtool -N zc0 flow-type tcp4 dst-port 7006 context 1 loc 7
check "... steers to queue 2 or 3" lands "2 3" 7006
check "the context stays while a rule uses it" not ethtool -X zc0 context 1 delete
check "... and goes without" eval 'ethtool -N zc0 delete 7 && ethtool -X zc0 context 1 delete'

check "turning n-tuple rules off" ethtool -K zc0 ntuple off
check "... takes the rules" rules_are 0
check "... and refuses new ones" not ethtool -N zc0 flow-type tcp4 dst-port 7001 action 2
check "turning them on" ethtool -K zc0 ntuple on

reload() {
    ip netns del peer && rmmod zcsim && . ./setup_nic.sh
}
check "the module unloads and loads again" reload
check "... and steers again" lands 2 7001

echo "nic: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
