"""What every executor with processes of its own has in common: who may call it, and that it ends."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from selfplay_gym.errors import ExecutorError
from selfplay_gym.types import Execution, Job


class OwnedExecutor(ABC):
    """Takes one call at a time, from any thread of the process that made it, until it is closed.

    A subclass sets `_finalizer`, which ends what it started.
    """

    _finalizer: weakref.finalize[Any, Any]

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._closed = False

    def run(self, jobs: Sequence[Job]) -> list[tuple[Execution, ...]]:
        """Run every job; answer in the same order, with one `Execution` an input.

        Raises:
            ExecutorError: The executor is closed, belongs to another process, or has nothing left to run them on; or
                these are no jobs.
        """
        _require_jobs(jobs)
        with self._lock:
            self._check_usable()
            return self._run(jobs)

    async def arun(self, jobs: Sequence[Job]) -> list[tuple[Execution, ...]]:
        """As `run`, beside whatever else the event loop does. Who cancels it does not stop what is under way."""
        return await asyncio.to_thread(self.run, jobs)

    def close(self) -> None:
        """End every process of this executor. Safe to call twice."""
        with self._lock:
            self._closed = True
            self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def _run(self, jobs: Sequence[Job]) -> list[tuple[Execution, ...]]: ...

    def _check_usable(self) -> None:
        if self._closed:
            raise ExecutorError("this executor is closed")
        if os.getpid() != self._owner:
            raise ExecutorError("this executor belongs to another process; make one after the fork")


def _require_jobs(jobs: object) -> None:
    if isinstance(jobs, Job):
        raise ExecutorError("run takes a sequence of jobs, got a single Job; pass [job]")
    if not isinstance(jobs, Sequence) or isinstance(jobs, (str, bytes)):
        raise ExecutorError(f"run takes a sequence of jobs, got {type(jobs).__name__}")
    for place, job in enumerate(jobs):
        if type(job) is not Job:
            raise ExecutorError(f"run takes a sequence of jobs, got {type(job).__name__} at index {place}")
