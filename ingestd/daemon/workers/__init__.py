# SPDX-License-Identifier: Apache-2.0
"""Workers: the border to the core, their engines and areas."""

__all__ = ["area", "engine", "locked_memory", "worker", "zcrx"]
