# SPDX-License-Identifier: Apache-2.0
"""The daemon: brings stores, workers and listeners up, looks after them, takes them down.

`run.py` is the place to start reading; `worker.py` is where the core begins.
"""
