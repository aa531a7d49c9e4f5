#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# `ingestd nic`, `ingestd doctor` and a daemon with manage_nic against the virtual NIC: what they
# say and what they change, compared with what ethtool shows; undone after a crash at the worst
# moment. Wants VM_NIC_MODULE, VM_INGESTD (the command that runs ingestd), and VM_DISK_STORE.

READY_S=600

cd "$(dirname "$0")" || exit 1
. ./setup_nic.sh || { echo "setting up the NIC failed" && exit 1; }
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
check "check says that it is ready" ends_with 0 nic check --queues 2 --port 7070
check "doctor says that it is ready" shows '^zcrx: ready$' $VM_INGESTD doctor --interface zc0
check "undo" ends_with 0 nic undo
check "... gives back what was" is_as_before

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
check "a crash leaves a rule" shows 'Direct to queue 3' ethtool -n zc0
check "undo after a crash" ends_with 0 nic undo
check "... gives back what was" is_as_before

cat > "$state/config.toml" << END
[store.a]
path = "$VM_DISK_STORE"
workers = 2
area = "16MiB"
write_bytes_max = "1MiB"
[listener.l]
address = "10.9.0.1:7070"
[listener.i]
address = "10.9.0.1:7071"
protocol = "ingest"
hello_timeout_s = 20.0
key_file = "$state/keys.toml"
[metrics]
address = "10.9.0.1:9464"
[engine]
kind = "zcrx"
interface = "zc0"
queues = [2, 3]
manage_nic = true
nic_state_dir = "$state"
END
secret=000102030405060708090a0b0c0d0e0f
printf '[key]\nlab = "%s"\n' "$secret" > "$state/keys.toml"
chmod 600 "$state/keys.toml"
head -c 3000001 /dev/urandom > "$state/payload"
mkdir "$state/flows"
cp "$state/payload" "$state/flows/large"
for bytes in 1 2 3 4 5 6 7 8 4095 4096 4097 8191 8192 8193 10000 20001; do
    head -c "$bytes" "$state/payload" > "$state/flows/$bytes"
done

# serve: a daemon in the background, ready; its pid is $daemon, its log $state/log.
serve() {
    # Descriptor 3 is a sender's pipe, which ends when nobody can write to it any more.
    $VM_INGESTD serve -c "$state/config.toml" > "$state/log" 2>&1 3>&- &
    daemon=$!
    for _ in $(seq "$READY_S"); do
        grep -q '"ready"' "$state/log" && return 0
        sleep 1
    done
    cat "$state/log"
    return 1
}

# Four connections from ports that RSS spreads over both queues: some need the hand-over.
sends() {
    for _ in 1 2 3 4; do
        ip netns exec peer socat -t "$READY_S" - TCP:10.9.0.1:7070 < "$state/payload" |
            grep -q '"bytes": *3000001, "durable": *true, "state": *"sealed"' || return 1
    done
}

# 17 flows of protocol ingest: by chance alone none of them would need the hand-over, which comes
# before a flow's hello, once in 2^17 runs.
sends_ingest() {
    metric flows_handed_away_total > "$state/handed"
    peer_sends --parallel 4 "$state/flows" > "$state/receipts" || return 1
    [ "$(grep -c 'sealed and durable' "$state/receipts")" -eq 17 ] &&
        metric flows_handed_away_total > "$state/handed_after" &&
        ! cmp -s "$state/handed" "$state/handed_after"
}

peer_sends() {
    ip netns exec peer $VM_INGESTD send --to 10.9.0.1:7071 --key lab \
        --key-file "$state/keys.toml" "$@"
}

# A sender with more to send than it has yet, who knows nothing of the daemon's crash.
begins_sending() {
    mkfifo "$state/pipe"
    peer_sends --retry 900 --name crossed --json - < "$state/pipe" > "$state/crossed" 2>&1 &
    sender=$!
    exec 3> "$state/pipe"
    head -c 1000001 "$state/payload" >&3
    for _ in $(seq "$READY_S"); do
        metric durable_bytes_total | grep -q '^[1-9]' && return 0
        sleep 1
    done
    return 1
}

ends_sending() {
    tail -c +1000002 "$state/payload" >&3
    exec 3>&-
    wait "$sender" &&
        grep -q '"bytes": *3000001, "durable": *true, "state": *"sealed"' "$state/crossed" ||
        ! cat "$state/crossed"
}

# holds FLOW FILE: the store has the flow as it was sent.
holds() {
    $VM_INGESTD cat "$VM_DISK_STORE" "$1" | cmp - "$2"
}

metric() {
    ip netns exec peer busybox wget -qO- http://10.9.0.1:9464/metrics |
        sed -n "s/^ingestd_$1{.*} //p"
}

is_nearly_all_zero_copy() {
    metric zero_copy_ratio | grep -v NaN > "$state/ratios"
    [ -s "$state/ratios" ] && ! grep -vE '^(1\.0|0\.999)' "$state/ratios"
}

is_never_by_copy() {
    metric flows_by_copy_total > "$state/by_copy"
    [ -s "$state/by_copy" ] && ! grep -v '^0' "$state/by_copy"
}

reads_back() {
    flow=$($VM_INGESTD ls "$VM_DISK_STORE" --json | sed -n '1s/.*"flow": "\([^"]*\)".*/\1/p')
    $VM_INGESTD cat "$VM_DISK_STORE" "$flow" | cmp - "$state/payload"
}

ends() {
    kill "$daemon"
    wait "$daemon"
}

check "format" ends_with 0 $VM_INGESTD format "$VM_DISK_STORE"
check "doctor counts what the daemon will prepare" \
    shows '^zcrx: ready$' $VM_INGESTD doctor -c "$state/config.toml"
check "a daemon that manages the NIC" serve
check "... steers its port" shows 'Dest port: 7070' ethtool -n zc0
check "... receives" sends
check "... by protocol ingest, on both queues" sends_ingest
check "... with next to nothing copied" is_nearly_all_zero_copy
check "... and no flow on an ordinary queue" is_never_by_copy
ip netns exec peer python3 -IS ./ingest_senders.py 10.9.0.1 7071 lab "$secret" "$state" ||
    failed=$((failed + 1))
check "undo is refused meanwhile" ends_with 11 nic undo
check "the daemon ends well" ends
check "... and gives back the NIC" is_as_before
check "what it received can be read" reads_back
check "... also with a trailer held back" holds "$(cat "$state/held.id")" "$state/held"
check "... and by several connections" holds "$(cat "$state/taken_over.id")" "$state/taken_over"
check "a daemon that will crash" serve
check "... while it receives" begins_sending
kill -9 "$daemon"
check "a crash leaves its rule" shows 'Dest port: 7070' ethtool -n zc0
check "the next start" serve
check "... receives" sends
check "... and what goes on over the crash" ends_sending
check "... ends well" ends
check "... and gives back the NIC" is_as_before
crossed=$(sed -n 's/.*"flow": *"\([^"]*\)".*/\1/p' "$state/crossed")
check "what crossed the crash can be read" holds "$crossed" "$state/payload"

rm -r "$state"
echo "prepare: $passed passed, $failed failed"
[ "$failed" -eq 0 ]
