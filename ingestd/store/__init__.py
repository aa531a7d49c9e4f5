# SPDX-License-Identifier: Apache-2.0
"""The store: its format, making and opening one, reading back and verifying what it holds.

Rooms, each of which may import those before it: format, device, metadata, read, reclaim, serve;
create imports format, device and metadata only.
"""
