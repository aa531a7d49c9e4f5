# SPDX-License-Identifier: Apache-2.0
"""How long a test waits for what must come.

Invariant: a test that passes never waits as long; on a machine that does ten other things it must
not fail either. What must *not* come, or not before its time, is no matter of these limits: there
a test waits for a sign that shows it, or for a time that it has set itself.
"""

from __future__ import annotations

from typing import Final

WAIT_S: Final = 120.0
"""For an event, an answer, a thread or a process to end; below the `timeout` of pyproject.toml."""
