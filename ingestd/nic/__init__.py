# SPDX-License-Identifier: Apache-2.0
"""Preparing a network interface for zero-copy receive, and undoing it.

state     what an interface is like at one moment, as plain data
netlink   asking and setting by netlink; ethtool: the same by the program
reading   puts both together
findings  what of a state stands in zero-copy receive's way, and the remedy
changes   one change each, as data that knows its undo
plan      state and wish -> changes (pure)
journal   what has been changed, on file before it happens
work      does changes and undoes them
shape     what MTU and headers make of payload; placement: interrupts and CPUs
"""
