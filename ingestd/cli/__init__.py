# SPDX-License-Identifier: Apache-2.0
"""The command line: `ingestd COMMAND ...`.

Invariants: standard output carries results only; errors are one sentence on
standard error and an exit code of errors.py. What a command needs is imported
when it runs, so that each starts fast and serve stays small.
"""

from __future__ import annotations

from ingestd.cli.main import main

__all__ = ["main"]
