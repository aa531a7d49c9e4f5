# SPDX-License-Identifier: Apache-2.0
"""Limits of the C core that Python relies on as well, under the names that its headers have.

Invariant: a value here is that of the header that defines the name, which a test compares by
compiling it. Layouts and enums of the on-disk format are in store/format/layout.py, events and
commands of workers at the border of the core.
"""

from __future__ import annotations

from typing import Final

MIB: Final = 1024 * 1024

LISTENERS_MAX: Final = 16  # of one worker, thus of one store
NETWORKS_MAX: Final = 64  # that one listener may allow
AREA_HUGEPAGE_BYTES: Final = 2 * MIB
AREA_HUGE_BYTES_MIN: Final = 16 * MIB  # smaller areas lie on ordinary pages
PLAN_GATHER_BYTES_MIN: Final = 256  # shorter pieces are copied rather than gathered
SEGMENTS_LIVE_MAX: Final = 4  # of one worker: written, or waiting for their last commit
SEGMENTS_READY_MAX: Final = 4  # of one worker: granted ahead
SESSION_BLOCK_BYTES: Final = 4096  # hello and trailer
SESSION_CHALLENGE_BYTES: Final = 32
SESSION_NAME_BYTES_MAX: Final = 255
SESSION_LABELS_BYTES_MAX: Final = 1024
