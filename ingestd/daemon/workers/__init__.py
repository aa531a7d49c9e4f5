# SPDX-License-Identifier: Apache-2.0
"""Workers: the border to the core, their engines and areas, connections that are handed over."""

__all__ = ["area", "engine", "handover", "locked_memory", "worker", "zcrx"]
