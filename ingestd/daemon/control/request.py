# SPDX-License-Identifier: Apache-2.0
"""A request of the control socket: its arguments, each checked when it is fetched.

Invariants: what is fetched has its type and is within its limits; what nobody fetches is refused
by end(), so that a word that was misspelt does not widen what is asked for. Pure.
"""

from __future__ import annotations

from typing import Any, Final

from ingestd.control.messages import PROTOCOL_VERSION, Message

TEXT_CHARS_MAX: Final = 4096
LABELS_COUNT_MAX: Final = 64
_MISSING: Final = object()


class RefusedError(Exception):
    """Raised where a request is refused; `code` is for programs, the text for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Request:
    """One request. Raises RefusedError, `bad_request` or `version`, from whatever it is asked."""

    def __init__(self, message: Message) -> None:
        self._left = dict(message)
        version = self._left.pop("version", _MISSING)
        if version != PROTOCOL_VERSION or isinstance(version, bool):
            raise RefusedError("version", f"this daemon speaks version {PROTOCOL_VERSION}")
        self.command = self.text("command")

    def text(self, key: str) -> str:
        """Return a text that must be there."""
        value = self.optional_text(key)
        if value is None:
            raise RefusedError("bad_request", f'"{key}" is missing')
        return value

    def optional_text(self, key: str) -> str | None:
        """Return a text, or None."""
        value = self._take(key, str)
        if value is not None and len(value) > TEXT_CHARS_MAX:
            raise RefusedError("bad_request", f'"{key}" is longer than {TEXT_CHARS_MAX}')
        return None if value is None else str(value)

    def number(self, key: str, minimum: int, maximum: int) -> int | None:
        """Return a whole number within bounds, or None."""
        value = self._take(key, int)
        if value is None:
            return None
        if isinstance(value, bool) or not minimum <= value <= maximum:
            raise RefusedError("bad_request", f'"{key}" is no number from {minimum} to {maximum}')
        return int(value)

    def texts(self, key: str) -> list[str] | None:
        """Return a list of texts, or None."""
        value = self._take(key, list)
        if value is None:
            return None
        if not all(isinstance(item, str) and len(item) <= TEXT_CHARS_MAX for item in value):
            raise RefusedError("bad_request", f'"{key}" is no list of texts')
        return list(value)

    def labels(self, key: str) -> dict[str, str]:
        """Return an object of texts; empty if it is not there."""
        value = self._take(key, dict) or {}
        if len(value) > LABELS_COUNT_MAX or not all(isinstance(v, str) for v in value.values()):
            raise RefusedError("bad_request", f'"{key}" is no object of texts')
        return dict(value)

    def end(self) -> None:
        """Know that nothing more is fetched."""
        if self._left:
            names = ", ".join(sorted(ascii(key)[1:-1][:64] for key in self._left)[:8])
            raise RefusedError("bad_request", f"{self.command} has no argument {names}")

    def _take(self, key: str, kind: type) -> Any:
        value = self._left.pop(key, None)
        if value is not None and not isinstance(value, kind):
            raise RefusedError("bad_request", f'"{key}" has another type')
        return value
