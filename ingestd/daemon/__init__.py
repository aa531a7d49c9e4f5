# SPDX-License-Identifier: Apache-2.0
"""The daemon: brings stores, workers and listeners up, looks after them, takes them down.

`run.py` is the place to start reading; `workers/worker.py` is where the core begins. Rooms, each
of which may import those before it: base, machine, workers, segments, telemetry, admission,
maintenance; what lies here itself starts and ends them all.
"""
