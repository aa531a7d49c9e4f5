# SPDX-License-Identifier: Apache-2.0
"""The clock that terms go by: no step of the machine's clock makes a flow older at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ingestd.daemon.maintenance.steady_clock import (
    STEADY_NS,
    STEPS_KEPT_MAX,
    Reading,
    SteadyClock,
    read_clocks,
)

S = 10**9
YEAR = 365 * 86400 * S
RIGHT = 60 * YEAR  # since 1970


class Machine:
    """Its clock can be set."""

    def __init__(self, wall_ns: int = RIGHT) -> None:
        self.boot_ns = 1000 * S
        self.offset_ns = wall_ns - self.boot_ns

    def read(self) -> Reading:
        return Reading(self.boot_ns + self.offset_ns, self.boot_ns)

    @property
    def wall_ns(self) -> int:
        return self.boot_ns + self.offset_ns

    def run(self, clock: SteadyClock, seconds: int) -> None:
        """Time passes, and the maintenance thread looks now and then."""
        for _ in range(10):
            self.boot_ns += seconds * S // 10
            clock.look()


def test_it_is_the_machines_clock_as_long_as_that_runs_steadily() -> None:
    machine = Machine()
    clock = SteadyClock(machine.read)
    assert clock.now_ns(machine.wall_ns - 5 * S) == machine.wall_ns
    machine.run(clock, 500)
    assert clock.look() == 0
    assert clock.now_ns(None) == machine.wall_ns
    assert clock.is_trusted
    assert SteadyClock(machine.read).now_ns(None) == machine.wall_ns, "an empty store knows nothing"
    assert SteadyClock(read_clocks).look() == 0


def test_a_clock_set_ahead_counts_after_a_while() -> None:
    machine = Machine()
    clock = SteadyClock(machine.read)
    clock.now_ns(machine.wall_ns)
    machine.offset_ns += 10 * YEAR
    assert clock.look() == 10 * YEAR
    assert clock.look() == 0, "it is told once"
    assert clock.now_ns(None) == machine.wall_ns - 10 * YEAR
    machine.run(clock, STEADY_NS // S - 10)
    assert clock.now_ns(None) == machine.wall_ns - 10 * YEAR
    assert not clock.is_trusted
    machine.run(clock, 20)
    assert clock.now_ns(None) == machine.wall_ns


def test_a_clock_set_back_counts_at_once() -> None:
    """It makes flows younger."""
    machine = Machine()
    clock = SteadyClock(machine.read)
    clock.now_ns(machine.wall_ns)
    machine.offset_ns -= YEAR
    assert clock.look() == -YEAR
    assert clock.now_ns(None) == machine.wall_ns


def test_a_clock_that_is_ahead_at_the_start_deletes_nothing_at_once() -> None:
    machine = Machine(RIGHT + 10 * YEAR)
    clock = SteadyClock(machine.read)
    machine.run(clock, 10)
    assert clock.now_ns(RIGHT) == RIGHT + 10 * S
    # ... and a store that was really off for so long waits for an hour.
    machine.run(clock, STEADY_NS // S)
    assert clock.now_ns(RIGHT) == machine.wall_ns


def test_a_store_that_tells_of_the_future_does_not_move_it() -> None:
    machine = Machine()
    clock = SteadyClock(machine.read)
    assert clock.now_ns(machine.wall_ns + 10 * YEAR) == machine.wall_ns


def test_what_was_dated_before_a_step_is_as_old_as_it_is() -> None:
    """A flow is received in 1970; then the machine hears of the time."""
    machine = Machine(60 * S)
    clock = SteadyClock(machine.read)
    machine.run(clock, 30)
    dated_ns = machine.wall_ns
    machine.run(clock, 30)
    machine.offset_ns += RIGHT
    machine.run(clock, 100)
    assert clock.age_ns(dated_ns) == 130 * S
    assert clock.age_ns(machine.wall_ns - 40 * S) == 40 * S
    # Nobody here dated that: it is as old as the last step at least.
    assert clock.age_ns(RIGHT - YEAR) == machine.boot_ns - clock._stretches[-1].begin_ns


@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(-(10**9), 10**9), st.booleans()), max_size=20
    )
)
def test_nothing_is_ever_taken_for_older_than_it_is(
    steps: list[tuple[int, int, bool]],
) -> None:
    machine = Machine(RIGHT)
    clock = SteadyClock(machine.read)
    clock.now_ns(RIGHT)
    dated: list[tuple[int, int]] = []
    for seconds, step_s, is_set in steps:
        machine.boot_ns += seconds * S
        clock.look()
        dated.append((machine.wall_ns, machine.boot_ns))
        if is_set:
            machine.offset_ns += step_s * S
            clock.look()
        for wall_ns, boot_ns in dated:
            assert clock.age_ns(wall_ns) <= machine.boot_ns - boot_ns + 2 * S
        assert clock.now_ns(None) <= machine.wall_ns


def test_many_steps_take_no_memory() -> None:
    machine = Machine()
    clock = SteadyClock(machine.read)
    first_ns = machine.wall_ns
    for _ in range(2 * STEPS_KEPT_MAX):
        machine.boot_ns += 10 * S
        machine.offset_ns += 100 * S
        clock.look()
    assert len(clock._stretches) == STEPS_KEPT_MAX
    assert clock.age_ns(first_ns) <= machine.boot_ns - 1000 * S
