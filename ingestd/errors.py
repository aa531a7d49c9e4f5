# SPDX-License-Identifier: Apache-2.0
"""Every error that ingestd raises on purpose, and the exit code of each.

Exception tree (exit code)::

    IngestdError (1)
    ├── UsageError (2)            a command line that contradicts itself
    ├── ConfigError (3)           a configuration that is not valid
    ├── StoreError (4)            a store that cannot be used as requested
    │   ├── NotAStoreError (5)    no store, or one of an unknown version
    │   ├── StoreDamagedError (6) the store is damaged
    │   ├── StoreBusyError (7)    another process holds the store
    │   ├── UnsafeDeviceError (8) formatting would destroy something
    │   └── StoreFailedError (9)  the device failed under a running daemon
    ├── FlowNotFoundError (10)    no flow, or several, of that id
    ├── EngineError (11)          the demanded engine is not available
    ├── ListenError (12)          an address cannot be bound
    ├── ResourceError (13)        memory, locked memory or descriptors are insufficient
    ├── SenderError (14)          the daemon did not acknowledge what was sent
    ├── SystemCallError (15)      any other system call that failed
    ├── FlowInUseError (16)       a flow cannot be removed while it is received
    └── ControlError (17)         a daemon cannot be asked over its control socket, or refuses

A message is one sentence that names the object and, behind a colon or in a
second clause, the remedy. Bugs are not in this tree: they are assertions.
"""

from __future__ import annotations


class IngestdError(Exception):
    """Base of all errors that a user, an operator or a machine can cause."""

    exit_code = 1


class UsageError(IngestdError):
    """The command line contradicts itself or names something that does not exist."""

    exit_code = 2


class ConfigError(IngestdError):
    """The configuration is not valid; the message names file, key and nearest known key."""

    exit_code = 3


class StoreError(IngestdError):
    """A store cannot be used as requested."""

    exit_code = 4


class NotAStoreError(StoreError):
    """The path holds no store, or one of an unknown format version."""

    exit_code = 5


class StoreDamagedError(StoreError):
    """The store is damaged; the message says where."""

    exit_code = 6


class StoreBusyError(StoreError):
    """Another process serves, mounts or holds the store."""

    exit_code = 7

    def __init__(self, message: str, *, is_lasting: bool = False) -> None:
        """`is_lasting`: of a mount, say, for the end of which it makes no sense to wait."""
        super().__init__(message)
        self.is_lasting = is_lasting


class UnsafeDeviceError(StoreError):
    """Formatting would destroy a mounted, partitioned or otherwise used device."""

    exit_code = 8


class StoreFailedError(StoreError):
    """The device under a running daemon failed; nothing more is acknowledged."""

    exit_code = 9


class FlowNotFoundError(IngestdError):
    """No flow has that id, or several share the prefix."""

    exit_code = 10


class EngineError(IngestdError):
    """The engine that the configuration demands is not available."""

    exit_code = 11


class ListenError(IngestdError):
    """A listener or the metrics endpoint cannot bind its address."""

    exit_code = 12


class ResourceError(IngestdError):
    """Memory, locked memory, hugepages or file descriptors are insufficient."""

    exit_code = 13


class SenderError(IngestdError):
    """The receiving side did not acknowledge everything that was sent."""

    exit_code = 14

    def __init__(self, text: str, *, code: str | None = None, checksum: str | None = None) -> None:
        super().__init__(text)
        self.code = code  # of the listener's error line, if there was one
        self.checksum = checksum  # that of the flow that the listener has, with code `sealed`


class SystemCallError(IngestdError):
    """A system call failed in a way that no other class describes."""

    exit_code = 15


class FlowInUseError(IngestdError):
    """The flow is being received, and cannot be removed until it has ended."""

    exit_code = 16


class ControlError(IngestdError):
    """A daemon cannot be asked over its control socket, or refuses what it is asked."""

    exit_code = 17

    def __init__(self, text: str, *, code: str | None = None) -> None:
        super().__init__(text)
        self.code = code  # of the daemon's error line (docs/control.md); None: there was none
