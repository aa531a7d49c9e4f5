# SPDX-License-Identifier: Apache-2.0
"""Asking a running daemon, over its control socket; docs/control.md has the protocol.

::

    with ControlClient("/run/ingestd/control") as daemon:
        for event in daemon.events():
            if event["event"] == "flow_sealed":
                start_pipeline(event["flow"], event["store"])
"""

from ingestd.control.client import ControlClient

__all__ = ["ControlClient"]
