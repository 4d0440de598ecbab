"""Calls to an exclusive actor from any process of the run: they wait out its restarts and end its freezes."""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

from autocomp.cluster.actor import feel_pulse
from autocomp.cluster.connection import ray
from autocomp.core.executor import ATTEMPTS
from autocomp.core.told import Told
from autocomp.errors import UnsupportedError

SILENCE_S = 60.0
"""A process that gives no pulse for so long is stopped or gone, and is killed."""
RESTART_S = 300.0
"""So long a process that died is waited for: the one that Ray starts in its place loads its libraries first."""


class Remote:
    """Some actors of one kind, called in turn. Can be pickled: other processes call the same actors.

    Args:
        actors: handles.
        what: for messages ("the timing process of rtx-4090").
        silence_s: see :data:`SILENCE_S`.
    """

    def __init__(self, actors: tuple[Any, ...], what: str, silence_s: float = SILENCE_S) -> None:
        self._actors, self._what, self._silence_s = actors, what, silence_s
        self._turn = itertools.count(os.getpid())

    def __reduce__(self) -> tuple[Any, ...]:
        return Remote, (self._actors, self._what, self._silence_s)

    def call(self, method: str, *arguments: Any) -> Any:
        """``object.method(*arguments)`` in one of the actors.

        Raises:
            AutocompError: what the method raised.
            UnsupportedError: the actor died whenever it was called (``failure`` "died").
        """
        actor = self._actors[next(self._turn) % len(self._actors)]
        for _ in range(ATTEMPTS):
            try:
                found = self._answer(actor, actor.call.remote(method, arguments))
            except ray().exceptions.RayActorError:
                self._await_restart(actor)
                continue
            if isinstance(found, Told):
                raise found.error(f"{self._what} cannot {method}")
            return found
        raise UnsupportedError(f"{self._what} died {ATTEMPTS} times in a row in {method}", failure="died")

    @staticmethod
    def _await_restart(actor: Any) -> None:
        """Until the actor that Ray starts again answers, or for :data:`RESTART_S`."""
        until = time.monotonic() + RESTART_S
        while time.monotonic() < until:
            try:
                if ray().wait([pulse := feel_pulse(actor)], timeout=until - time.monotonic())[0]:
                    ray().get(pulse)
                    return
            except ray().exceptions.RayActorError:
                time.sleep(0.2)

    def _answer(self, actor: Any, result: Any) -> Any:
        """What ``result`` resolves to; an actor that froze is killed, which Ray then reports like any death."""
        while not ray().wait([result], timeout=self._silence_s)[0]:
            pulse = feel_pulse(actor)
            if not ray().wait([result, pulse], timeout=self._silence_s)[0]:
                ray().kill(actor, no_restart=False)
        return ray().get(result)
