"""Follows one child through its jobs: counts its frames, checks their shape, holds the clocks.

A child is never believed: what it writes counts only as many frames of the right shape, in time. Runs in the server
alone. Standard library only.
"""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfplay_gym.executors.runner import Job

HARD_FACTOR = 1.45  # a program that swallows the in-child time-out gets this much of its budget
PREPARE_SECONDS, PREPARE_SECONDS_PER_BYTE = 0.015, 4e-6  # reading the inputs comes before the first run's budget
FIRST_PATIENCE_MILLISECONDS = 5
PAYLOAD_SLACK = (
    2048  # beyond the longest value: an error's name and message; in UTF-8 a lone surrogate, escaped, takes six bytes
)


class Watch:
    """What the server knows of one child's work on its jobs.

    Sparing on purpose: after a fork every page this process writes to is copied, at some microseconds each.

    Attributes:
        frames: Those of each job that was begun, so far.
        complete: Whether every job has all its frames.
        used: Processor time of the run that met the clock on the wall.
    """

    def __init__(
        self, child_side: Any, jobs: list[Job], start: int, pipe: int, size: int, used_before: float = 0.0
    ) -> None:
        self._runner = child_side
        self._values, self._last = (child_side.OK, child_side.STEADY), child_side.UNSERIALISABLE
        self._jobs = jobs
        self._pipe = pipe
        self._poll = select.poll()
        self._poll.register(pipe, select.POLLIN)
        self._hold = child_side.HOLD_SECONDS if len(jobs) > 1 else 0.0
        # Reading the inputs; and the programs of several jobs are compiled before the first frame.
        self._grace = PREPARE_SECONDS + PREPARE_SECONDS_PER_BYTE * size + self._hold
        self._clock = 0
        self._cpu_mark = used_before
        self._wall_mark = time.monotonic()
        self._buffer = b""
        self.frames: list[list[bytes]] = []
        self.complete = False
        self.used = 0.0
        self._begin(jobs[0], start)

    def wait(self) -> None:
        """Wait a little for the first frame; `follow` does what there is to do then, also if the child has ended."""
        self._poll.poll(FIRST_PATIENCE_MILLISECONDS)

    def follow(self, child: int) -> str:
        """Return when the child is done or ended (empty text), or with the fault for which it must be killed."""
        self._clock = processor_clock(child)
        patience = min(HARD_FACTOR * self._job.cpu_seconds, self._job.wall_seconds) + self._grace
        while not self.complete:
            if self._poll.poll(max(1.0, 1000 * patience)):
                chunk = os.read(self._pipe, 65536)
                if not chunk:
                    return ""
                self._buffer += chunk
                if not self._take_frames():
                    return "crashed:protocol"
            if not self.complete:  # looked at even while bytes arrive: they may be meant to keep us here
                cpu_left, wall_left = self.cpu_left(), self._wall_left()
                if cpu_left <= 0 or wall_left <= 0:
                    self.used = max(0.0, self._cpu() - self._cpu_mark)
                    return "timeout:cpu" if cpu_left <= 0 else "timeout:wall"
                patience = min(cpu_left, wall_left)
        return ""

    def has_more(self) -> bool:
        """Return whether the child, now dead or stopped, said more than it was asked for."""
        return bool(self._buffer) or (bool(self._poll.poll(0)) and bool(os.read(self._pipe, 1)))

    def _take_frames(self) -> bool:
        """Move whole frames out of the buffer; return whether all is well formed."""
        buffer, at, size, unpack = self._buffer, 0, self._runner.FRAME.size, self._runner.FRAME.unpack_from
        while len(buffer) - at >= size and not self.complete:
            length, status, _, _ = unpack(buffer, at)
            is_value = status in self._values
            if length > self._longest + (0 if is_value else PAYLOAD_SLACK) or not self._may_say(status):
                return False
            end = at + size + length
            if len(buffer) < end:
                break
            self._frames.append(buffer[at:end])
            at = end
            if len(self._frames) == self._expected or not (is_value or self._goes_on(status)):
                self._begin_next()
        if at:
            self._buffer = buffer[at:]
            if not self.complete:
                self._cpu_mark, self._wall_mark, self._grace = self._cpu(), time.monotonic(), 0.0
        return True

    def _may_say(self, status: int) -> bool:
        if status <= self._last:
            return True
        if len(self._jobs) == 1:
            return False
        return status in self._values or (status == self._runner.ALONE and not self._frames)

    def _goes_on(self, status: int) -> bool:
        """Return whether a job has more runs after one that gave no value."""
        return status != self._runner.ALONE and not self._job.stop

    def _begin_next(self) -> None:
        at = len(self.frames)
        self.complete = at == len(self._jobs)
        if not self.complete:
            self._begin(self._jobs[at], 0)

    def _begin(self, job: Job, start: int) -> None:
        self._job, self._longest, self._expected = job, job.output_bytes, len(job.runs) - start
        self._frames: list[bytes] = []
        self.frames.append(self._frames)

    def _cpu(self) -> float:
        try:
            return time.clock_gettime(self._clock)
        except OSError:  # it has ended
            return self._cpu_mark

    def cpu_left(self) -> float:
        """Return the processor time before the running one is killed."""
        return HARD_FACTOR * self._job.cpu_seconds + self._grace + self._hold - (self._cpu() - self._cpu_mark)

    def _wall_left(self) -> float:
        return self._job.wall_seconds + self._grace + self._hold - (time.monotonic() - self._wall_mark)


def processor_clock(process: int) -> int:
    """Return the clock of a process's processor time, as pthread_getcpuclockid makes it."""
    return (~process << 3) | 2
