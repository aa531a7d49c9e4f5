# SPDX-License-Identifier: Apache-2.0
"""The store: its format, making and opening one, reading back and verifying what it holds."""
