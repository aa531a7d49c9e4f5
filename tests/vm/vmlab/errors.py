# SPDX-License-Identifier: Apache-2.0
"""Errors of the virtual machine lab.

VmError
└── VmUnavailableError
"""


class VmError(Exception):
    """The machine, or something it needs, failed; the text is one sentence with the remedy."""


class VmUnavailableError(VmError):
    """This host cannot have the machine at all (no archive, no QEMU): a reason to skip."""
