# SPDX-License-Identifier: Apache-2.0
"""ingestd: TCP flows into raw block devices, with durable receipts.

The version below is the only place that has it: the build reads it from here.
"""

from __future__ import annotations

from typing import Final

__version__: Final = "0.2.0"
