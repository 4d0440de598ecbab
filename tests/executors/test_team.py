"""What executors with workers share."""

from __future__ import annotations

import pytest

from autocomp.core.executor import ATTEMPTS, Task
from autocomp.core.outcome import Failed
from autocomp.errors import ConfigError
from autocomp.executors._team import Member, Team, check_limits


class Two(Team[Member]):
    """Two workers that never answer."""

    def __init__(self, timeout_s: float | None = None) -> None:
        super().__init__(timeout_s)
        self._workers.extend(map(self._start, range(2)))

    def _start(self, seat: int) -> Member:
        del seat
        return Member()

    def _assign(self) -> None:
        for worker in self._workers:
            if worker.job is None and self._queue:
                self._begin(worker, self._queue.popleft())

    @property
    def workers(self) -> list[Member]:
        return list(self._workers)


def test_a_new_worker_takes_the_place_of_the_one_that_is_gone_and_of_no_other_that_is_at_the_same() -> None:
    team = Two()
    first, second = team.workers
    team._exchange(second)
    assert team.workers[0] is first
    assert team.workers[1] is not second
    assert second not in team.workers


def test_a_task_whose_workers_die_is_started_again_and_fails_in_the_end() -> None:
    team = Two()
    team.submit(Task(number=5, attempt=1))
    for attempt in range(1, ATTEMPTS + 1):
        worker = next(w for w in team.workers if w.job is not None)
        assert worker.job == Task(number=5, attempt=attempt)
        assert not team._events
        team._give_back(worker, "was killed")
        team._assign()
    (event,) = team._events
    assert event.job == Task(number=5, attempt=ATTEMPTS)
    assert isinstance(event.outcome, Failed)
    assert event.outcome.kind == "died"
    assert "was killed, 3 times in a row" in event.outcome.message
    assert team._idle()


def test_more_than_the_slots_is_refused() -> None:
    team = Two()
    team.submit(Task(number=0, attempt=1))
    team.submit(Task(number=1, attempt=1))
    assert team.slots() == 0
    with pytest.raises(RuntimeError, match="slots"):
        team.submit(Task(number=2, attempt=1))


def test_limits() -> None:
    check_limits(1, None)
    with pytest.raises(ConfigError, match="jobs = 0"):
        check_limits(0, None)
    with pytest.raises(ConfigError, match="timeout"):
        check_limits(1, 0.0)
