# SPDX-License-Identifier: Apache-2.0
"""Interfaces by the program ethtool: what netlink cannot do on every kernel.

Invariants: one call, one run of the program, with a time limit; its text is
read where it has no JSON. What a driver does not support is None, not an
error; a change that fails raises EngineError with the command and the reason.
Any thread may call.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from ingestd.errors import EngineError
from ingestd.nic.state import Family, Feature, Rule

TIMEOUT_S: Final = 30.0
SBIN: Final = "/usr/local/sbin:/usr/sbin:/sbin"  # not on every user's PATH

_RULE_ID: Final = re.compile(r"^Filter: (\d+)$", re.MULTILINE)
_ADDED: Final = re.compile(r"Added rule with ID (\d+)")
_NEW_CONTEXT: Final = re.compile(r"New RSS context is (\d+)")
_PRIVATE_FLAG: Final = re.compile(r"^(\S+)\s*: (on|off)$", re.MULTILINE)
_FIELD: Final = re.compile(r"^\t([^:\n]+): (.*)$", re.MULTILINE)
_PORT: Final = re.compile(r"(\d+) mask: 0x([0-9a-f]+)")
_TO_QUEUE: Final = re.compile(r"Direct to queue (\d+)")
_TO_CONTEXT: Final = re.compile(r"Direct to RSS context(?: id)? (\d+)", re.IGNORECASE)
_FAMILIES: Final[dict[str, Family]] = {"TCP over IPv4": "tcp4", "TCP over IPv6": "tcp6"}
# In rules a mask of ones stands for "any".
_ANY_FIELDS: Final = {
    "Src IP addr": re.compile(r".* mask: (255\.255\.255\.255|(ffff:){7}ffff)"),
    "Dest IP addr": re.compile(r".* mask: (255\.255\.255\.255|(ffff:){7}ffff)"),
    "TOS": re.compile(r".* mask: 0xff"),
    "Traffic Class": re.compile(r".* mask: 0xff"),
    "Src port": re.compile(r".* mask: 0xffff"),
}
_KNOWN_FIELDS: Final = {*_ANY_FIELDS, "Rule Type", "Dest port", "RSS Context ID", "Action"}


class EthtoolResult(NamedTuple):
    """The result of a run of the program."""

    code: int
    out: str
    error: str


Runner = Callable[[Sequence[str]], EthtoolResult]


def run_ethtool(arguments: Sequence[str]) -> EthtoolResult:
    """Run ethtool. Raises EngineError if it is missing or hangs."""
    path = shutil.which("ethtool") or shutil.which("ethtool", path=SBIN)
    if path is None:
        raise EngineError("the program ethtool is missing: `apt-get install ethtool`")
    command = [path, *arguments]
    try:
        done = subprocess.run(  # noqa: S603 (arguments are ours or checked names)
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise EngineError(
            f"`ethtool {' '.join(arguments)}` took longer than {TIMEOUT_S:g} s:"
            " look for a hanging driver or firmware (dmesg)"
        ) from None
    except OSError as error:
        raise EngineError(f"{path} cannot be run: {error.strerror}") from None
    return EthtoolResult(done.returncode, done.stdout, done.stderr)


class Ethtool:
    """ethtool for one interface."""

    def __init__(self, interface: str, run: Runner = run_ethtool) -> None:
        self._interface = interface
        self._run = run

    # --- Asking -------------------------------------------------------------------

    def driver(self) -> str | None:
        """Return the name of the driver."""
        outcome = self._run(["-i", self._interface])
        match = re.search(r"^driver: (.+)$", outcome.out, re.MULTILINE)
        return match[1] if outcome.code == 0 and match else None

    def features(self) -> dict[str, Feature]:
        """Return the offload features by name."""
        outcome = self._run(["--json", "-k", self._interface])
        if outcome.code != 0:
            return {}
        try:
            ((found),) = json.loads(outcome.out)
        except ValueError:
            return {}
        return {
            name: Feature(bool(value.get("active")), bool(value.get("fixed")))
            for name, value in found.items()
            if isinstance(value, dict)
        }

    def rules(self) -> tuple[Rule, ...] | None:
        """Return the steering rules; None where the driver has none to have."""
        outcome = self._run(["-n", self._interface])
        return parse_rules(outcome.out) if outcome.code == 0 else None

    def private_flags(self) -> dict[str, bool] | None:
        """Return the driver's private flags; None where it has none to have."""
        outcome = self._run(["--show-priv-flags", self._interface])
        if outcome.code != 0:
            return None
        return {name: value == "on" for name, value in _PRIVATE_FLAG.findall(outcome.out)}

    # --- Changing -----------------------------------------------------------------

    def set_feature(self, name: str, is_on: bool) -> None:
        """Turn an offload feature on or off."""
        self._change(["-K", self._interface, name, "on" if is_on else "off"])

    def set_spread(self, arguments: Sequence[str]) -> None:
        """Spread what no rule steers: `equal N`, `weight ...` or `default`."""
        self._change(["-X", self._interface, *arguments])

    def add_context(self, arguments: Sequence[str]) -> int:
        """Make an RSS context; return its number."""
        return self._made(["-X", self._interface, "context", "new", *arguments], _NEW_CONTEXT)

    def delete_context(self, context: int) -> None:
        """Take an RSS context away, which no rule may use any more."""
        self._change(["-X", self._interface, "context", str(context), "delete"])

    def add_rule(self, arguments: Sequence[str]) -> int:
        """Add a steering rule; return its number, which driver or ethtool choose."""
        return self._made(["-N", self._interface, *arguments], _ADDED)

    def delete_rule(self, rule_id: int) -> None:
        """Take a steering rule away."""
        self._change(["-N", self._interface, "delete", str(rule_id)])

    def _made(self, arguments: Sequence[str], pattern: re.Pattern[str]) -> int:
        out = self._change(arguments)
        match = pattern.search(out)
        if match is None:
            raise EngineError(
                f"`ethtool {' '.join(arguments)}` did not say what it made, but {out.strip()!r}:"
                " use a newer ethtool"
            )
        return int(match[1])

    def _change(self, arguments: Sequence[str]) -> str:
        outcome = self._run(arguments)
        if outcome.code != 0:
            said = [line for line in (outcome.error + outcome.out).splitlines() if line.strip()]
            reason = said[0].strip() if said else f"exit code {outcome.code}"
            raise EngineError(
                f"interface {self._interface}: `ethtool {' '.join(arguments)}` failed: {reason}"
            )
        return outcome.out


def parse_rules(text: str) -> tuple[Rule, ...]:
    """Return the rules that `ethtool -n` shows.

    The text is that of ethtool's rxclass.c; actions have had several wordings.
    """
    parts = _RULE_ID.split(text)[1:]
    return tuple(
        _parse_rule(int(number), dict(_FIELD.findall(body)))
        for number, body in zip(parts[::2], parts[1::2], strict=True)
    )


def _parse_rule(rule_id: int, fields: dict[str, str]) -> Rule:
    family = _FAMILIES.get(fields.get("Rule Type", "").strip())
    port = _PORT.search(fields.get("Dest port", ""))
    action = fields.get("Action", "")
    to_queue, to_context = _TO_QUEUE.search(action), _TO_CONTEXT.search(action)
    context = int(to_context[1]) if to_context else None
    if context is None and fields.get("RSS Context ID", "").strip().isdigit():
        context = int(fields["RSS Context ID"])  # ethtool before 6.13 puts it on a line of its own
    is_plain = (
        fields.keys() <= _KNOWN_FIELDS
        and port is not None
        and int(port[2], 16) == 0
        and all(_ANY_FIELDS[n].fullmatch(v.strip()) for n, v in fields.items() if n in _ANY_FIELDS)
    )
    return Rule(
        id=rule_id,
        family=family,
        port=int(port[1]) if port else None,
        queue=int(to_queue[1]) if to_queue and context is None else None,
        context=context,
        is_plain=is_plain,
    )
