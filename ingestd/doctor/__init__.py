# SPDX-License-Identifier: Apache-2.0
"""The doctor: looks at machine, interface and stores, and says whether zcrx would run.

storage   what a store's device is like
room      how much of it is free
examine   everything put together, with a prediction
"""
