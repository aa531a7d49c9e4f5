#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Compiles the core, warnings as errors, with every gcc and clang that this machine
# has. LIBURING_INCLUDE names a directory with the headers of another liburing.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
flags=(-std=c11 -D_GNU_SOURCE -O2 -Wall -Wextra -Werror -fno-strict-aliasing -pthread -I ingestd/core -c -o /dev/null)
if [ -n "${LIBURING_INCLUDE:-}" ]; then
    flags+=(-I "$LIBURING_INCLUDE")
fi

tried=0
for compiler in gcc gcc-{16..10} clang clang-{25..11}; do
    if ! command -v "$compiler" >/dev/null 2>&1; then
        continue
    fi
    for source in $(find ingestd/core -name '*.c' | sort); do
        if ! "$compiler" "${flags[@]}" "$source"; then
            echo "compilers: $source does not compile with $compiler" >&2
            exit 1
        fi
    done
    echo "compilers: $("$compiler" --version | head -n 1)"
    tried=$((tried + 1))
done
if [ "$tried" -eq 0 ]; then
    echo "compilers: neither gcc nor clang was found: apt-get install gcc clang" >&2
    exit 1
fi
