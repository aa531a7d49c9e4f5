# SPDX-License-Identifier: Apache-2.0
"""A virtual machine with a new kernel, for tests that the running kernel cannot carry.

What it is: `prepare()` fetches a kernel from Debian's backports into a cache, `Machine` boots it
with the host's root file system visible and runs one command in it.

Invariants: nothing is installed into /boot or /lib/modules of the host; the guest cannot change
the host's files except below directories that are shared on purpose.

    from vmlab import Disk, Machine, prepare

    lab = prepare()
    result = Machine(lab, disks=[Disk("data", "nvme", logical_block_bytes=4096)]).run(
        ["sh", "-c", "cat /sys/block/$(basename $VM_DISK_DATA)/queue/logical_block_size"]
    )
    assert result.exit_code == 0 and result.output == b"4096\\n"
"""

from vmlab.disk import Disk
from vmlab.errors import VmError, VmUnavailableError
from vmlab.lab import Lab, prepare
from vmlab.machine import Machine, Result

__all__ = ["Disk", "Lab", "Machine", "Result", "VmError", "VmUnavailableError", "prepare"]
