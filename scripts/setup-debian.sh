#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Sees to the Debian packages that a build needs: asks for what is missing, and
# installs it if it may (as root with apt-get); otherwise prints the exact line
# and stops. With "check" as argument it also wants what `make test` runs: with
# CI=true no test is skipped for want of a program. Every package is named as both
# Debian 12 and 13 have it, without a version; what must be of one version comes from
# PyPI, pinned in pyproject.toml.
#
# Invariant: on a machine that has everything it changes nothing and needs no
# network. PYTHON names the interpreter that the venv is made from.
set -euo pipefail

python=${PYTHON:-python3}
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # which an ordinary user's lacks
missing=()

want_program() { # program, package
    command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}

want_module() { # pkg-config module, least version, package
    if ! command -v pkg-config >/dev/null 2>&1 || ! pkg-config --atleast-version="$2" "$1"; then
        missing+=("$3")
    fi
}

want_header() { # header, package
    printf '#include <%s>\n' "$1" | gcc -E -x c - >/dev/null 2>&1 || missing+=("$2")
}

want_python() {
    if ! command -v "$python" >/dev/null 2>&1; then
        missing+=(python3 python3-dev python3-venv)
        return
    fi
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "setup: $python is $("$python" -V 2>&1), and ingestd needs 3.11 or newer:" \
            "name another by make PYTHON=..." >&2
        exit 1
    fi
    "$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || missing+=(python3-dev)
}

want_program gcc gcc
want_program pkg-config pkg-config
want_module liburing 2.3 liburing-dev
want_module libisal 2.30 libisal-dev
want_header stdlib.h libc6-dev
want_python
if [ "${1:-}" = check ]; then
    want_header sys/sdt.h systemtap-sdt-dev
    want_program ethtool ethtool
    want_program faketime faketime
    want_program ip iproute2
    want_program losetup mount
    want_program mkfs.ext4 e2fsprogs
    want_program promtool prometheus
    want_program socat socat
    want_program systemd-analyze systemd
    want_program valgrind valgrind
    # The traditional netcat has no -N.
    { nc -h 2>&1 || true; } | grep -qE '(^|[[:space:]])-N' || missing+=(netcat-openbsd)
fi

if [ ${#missing[@]} -eq 0 ]; then
    exit 0
fi

line="apt-get install --no-install-recommends ${missing[*]}"
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    printf 'setup: packages are missing; as root, run:\n\n    %s\n\n' "$line" >&2
    printf 'or, where there is no apt-get, install what they hold.\n' >&2
    exit 1
fi

echo "setup: $line"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends "${missing[@]}"
