# SPDX-License-Identifier: Apache-2.0
"""`python -m ingestd` does what `ingestd` does."""

from __future__ import annotations

import sys

from ingestd.cli import main

if __name__ == "__main__":
    sys.exit(main())
