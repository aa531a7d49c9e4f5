#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# `ingestd nic` and `ingestd doctor` against the virtual NIC: what they say and what they change,
# compared with what ethtool shows; undone after a crash at the worst moment. Runs after
# setup_nic.sh; leaves the NIC as it found it. Wants VM_INGESTD, the command that runs ingestd.

state=$(mktemp -d)
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

# shows PATTERN COMMAND...: the command's output has a line that matches.
shows() {
    pattern=$1
    shift
    "$@" > "$state/shown" 2>&1
    grep -qE "$pattern" "$state/shown" || ! cat "$state/shown"
}

nic() {
    verb=$1
    shift
    $VM_INGESTD nic "$verb" zc0 --state-dir "$state" "$@"
}

# ends_with CODE COMMAND...: the command has that exit code.
ends_with() {
    wanted=$1
    shift
    "$@" > "$state/shown" 2>&1
    code=$?
    [ "$code" -eq "$wanted" ] || ! { echo "exit code $code"; cat "$state/shown"; }
}

everything() {
    ethtool -g zc0
    ethtool -k zc0
    ethtool -x zc0
    ethtool -n zc0
}

is_as_before() {
    everything > "$state/after"
    cmp "$state/before" "$state/after" || ! diff "$state/before" "$state/after"
}

# The NIC as it comes: no split, everything spread over everything, no rules.
ethtool -K zc0 ntuple off
ethtool -G zc0 tcp-data-split off
ethtool -X zc0 default
everything > "$state/before"

check "check says that it is not ready" ends_with 11 nic check --queues 2 --port 7070
check "... what is in the way" grep -q "FAIL  header split" "$state/shown"
check "... and what apply would do" grep -q "apply would: ethtool -X zc0 equal 2" "$state/shown"
check "check changes nothing" is_as_before
check "doctor says that it is not ready" ends_with 11 $VM_INGESTD doctor --interface zc0
check "... and how to change that" grep -q "ingestd nic apply zc0" "$state/shown"

check "apply" ends_with 0 nic apply --queues 2 --port 7070
check "... has turned header split on" shows 'TCP data split:.*on' ethtool -g zc0
check "... keeps other traffic off the queues" shows ' 0: +0 +1 +0 +1' ethtool -x zc0
check "... has made a context" shows ' 0: +2 +3 +2 +3' ethtool -x zc0 context 1
check "... steers both families to it" shows 'Total 2 rules' ethtool -n zc0
check "apply once more changes nothing" ends_with 0 nic apply --queues 2 --port 7070
check "... and adds no rules" shows 'Total 2 rules' ethtool -n zc0
check "check says that it is ready" ends_with 0 nic check --queues 2 --port 7070
check "doctor says that it is ready" shows '^zcrx: ready$' $VM_INGESTD doctor --interface zc0
check "undo" ends_with 0 nic undo
check "... gives back what was" is_as_before
check "undo once more does nothing" shows 'nothing to undo' nic undo

check "apply for one queue" ends_with 0 nic apply --port 7071
check "... steers to it" shows 'Direct to queue 3' ethtool -n zc0
ethtool -N zc0 delete 0
check "undo after somebody took a rule away" ends_with 0 nic undo
check "... gives back the rest" is_as_before

# The process is killed when the first rule is made and not yet written down.
cat > "$state/ethtool" << END
#!/bin/sh
$(command -v ethtool) "\$@"
code=\$?
[ "\$1" = -N ] && kill -9 \$PPID
exit \$code
END
chmod +x "$state/ethtool"
PATH="$state:$PATH" nic apply --port 7072 > /dev/null 2>&1
check "a crash leaves a rule" shows 'Dest port: 7072' ethtool -n zc0
check "undo after a crash" ends_with 0 nic undo
check "... gives back what was" is_as_before

ethtool -K zc0 ntuple on
ethtool -G zc0 tcp-data-split on
ethtool -X zc0 equal 1
rm -r "$state"
echo "prepare: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
