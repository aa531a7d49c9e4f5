# SPDX-License-Identifier: Apache-2.0
"""Tests of the store: layout, device, formatting, recovery, reading, verification."""
