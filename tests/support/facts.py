# SPDX-License-Identifier: Apache-2.0
"""What a machine that has everything says of itself, and one that has nothing."""

from __future__ import annotations

from typing import Final

ALL_FEATURES: Final = dict.fromkeys(
    (
        "io_uring",
        "defer_taskrun",
        "writev_fixed",
        "recv_zc",
        "zcrx_nodev",
        "zcrx_rx_buf_len",
        "zcrx_events",
    ),
    True,
)
CAP_ALL: Final = "CapEff:\t000001ffffffffff\n"
CAP_NONE: Final = "CapEff:\t0000000000000000\n"
