"""Remembers what jobs answered, by their content, within a bound of bytes."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from functools import _lru_cache_wrapper
from typing import Final, TypeVar

from selfplay_gym.types import Execution, Job, Status

_ENTRY_BYTES = 400  # about what an execution takes beside its texts

_LONGEST_REMEMBERED: Final = 4096  # characters; thousands of longer ones would be too much to keep
Answer = TypeVar("Answer")


def remembered_if_short(function: _lru_cache_wrapper[Answer], text: str) -> Answer:
    """Call a function that remembers what it said of texts, but have it remember nothing of a long one."""
    return function(text) if len(text) <= _LONGEST_REMEMBERED else function.__wrapped__(text)


class ResultCache:
    """Answers by job, the least lately used dropped first.

    Our own failures are never kept, nor a run that met the clock on the wall: both may end otherwise the next time.

    Args:
        capacity: Bytes, about; 0 keeps nothing.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._answers: OrderedDict[bytes, tuple[Execution, ...]] = OrderedDict()
        self._bytes = 0
        self.hits = 0

    def key(self, job: Job) -> bytes:
        """Return what stands for a job; nothing if this keeps nothing."""
        if not self._capacity:
            return b""
        limits = job.limits
        numbers = (limits.cpu_seconds, limits.wall_seconds, limits.memory_bytes, limits.output_bytes)
        flags = (job.policy, job.literal_inputs, job.check_determinism)
        content = repr((job.program, job.inputs, job.entry, numbers, flags))  # a dataclass takes thrice as long
        return hashlib.blake2b(content.encode("utf-8", "backslashreplace"), digest_size=16).digest()

    def get(self, key: bytes) -> tuple[Execution, ...] | None:
        """Return what a job answered, or None."""
        answer = self._answers.get(key)
        if answer is not None:
            self._answers.move_to_end(key)
            self.hits += 1
        return answer

    def drop(self, key: bytes) -> None:
        """Forget what a job answered."""
        if key in self._answers:
            self._bytes -= _size(self._answers.pop(key))

    def put(self, key: bytes, answer: tuple[Execution, ...]) -> None:
        """Remember what a job answered, if that is its own doing."""
        if not self._capacity:
            return
        for execution in answer:
            if execution.status is not Status.OK and _may_end_otherwise(execution):
                return
        self.drop(key)
        self._bytes += _size(answer)
        self._answers[key] = answer
        while self._bytes > self._capacity:
            self._bytes -= _size(self._answers.popitem(last=False)[1])


def _may_end_otherwise(execution: Execution) -> bool:
    if execution.status is Status.TIMEOUT:
        return execution.error_type != "cpu"
    return execution.status in (Status.NO_VERDICT, Status.MEMORY, Status.CRASHED)


def _size(answer: tuple[Execution, ...]) -> int:
    size = _ENTRY_BYTES * len(answer)
    for execution in answer:
        size += len(execution.value or "") + len(execution.message)
    return size
