# SPDX-License-Identifier: Apache-2.0
"""Segments on their way to workers: granted the moment they ask, reclaimed ahead of time."""

__all__ = ["granting"]
