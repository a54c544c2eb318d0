"""The children that run programs: forked for one job, or kept and put back after each.

A *fresh* child is forked for a job and killed after it. A *kept* one serves job after job; between two it is stopped
and put back as it was before the first (`executors.snapshot`), which costs a fraction of a fork. Both stand behind the
same walls; the filter of a kept one also refuses what could outlive its memory. A job that ends otherwise than asked
for ends its child with it.

Runs in the server alone. Standard library only.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` wraps every call in enums
import contextlib
import gc
import marshal
import os
import resource
import select
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from selfplay_gym.executors import seccomp, walls
from selfplay_gym.executors.compiler import CODE_FD, SOURCE_FD, Compiler
from selfplay_gym.executors.snapshot import Snapshot, SnapshotLost, fork_twin, open_own
from selfplay_gym.executors.watch import Watch, processor_clock

if TYPE_CHECKING:
    from selfplay_gym.executors.runner import Job

MEMORY_SLACK = 16 * 2**20  # half of it for the stack, whose growth counts
COMPILE_MEMORY = 128 * 2**20
COMPILE_BUDGET = 0.1  # seconds; with less, the time to compile decides and belongs in the child
LARGEST_KEPT = 32 * 2**10  # bytes of a message that a kept child takes: a pipe holds twice that
MOST_FRESH = 64  # jobs in fresh children after kept ones were lost again and again
START_MILLISECONDS = 5000  # for a kept child to get ready

_DESCRIPTORS = struct.Struct("<cxxx5i")
_READY, _GO, _REFUSED = b"R", b"G", b"F"
_SIGNALS = {
    value: name
    for name, value in vars(_signal).items()
    if name.startswith("SIG") and not name.startswith("SIG_") and isinstance(value, int)
}
_exit = os._exit  # bound here: a program may replace the attribute


class Filters(NamedTuple):
    """What each kind of process may ask of the kernel; None where the tier has no filter."""

    child: seccomp.Filter | None
    compiler: seccomp.Filter | None
    kept: seccomp.Filter | None


class _Kept(NamedTuple):
    """A child that is put back after each job: its process and twin, our ends of its two pipes, and how it was."""

    process: int
    twin: int
    jobs: int
    frames: int
    snapshot: Snapshot

    def end(self) -> None:
        """Kill the process, if that was not done before: its number may be another's by now."""
        if not self.snapshot.has_ended:
            _end(self.process)
            self.snapshot.has_ended = True

    def close(self) -> None:
        """End what is left, and give back what was held."""
        self.end()
        _end(self.twin)
        self.snapshot.close()
        _close(self.jobs, self.frames)


class _Ending(NamedTuple):
    """The frames of each job of a child and, if it ended before all were there, the fault of the running one."""

    frames: list[list[bytes]]
    fault: bytes | None


class Children:
    """Runs jobs, alone in a child that has seen no other program, or several in one.

    Attributes:
        keeps: Whether children are kept and put back; set to False where that does not work.
        kept_served: How often the kept child was put back.
        refusal: Why no child could be kept the last time it was tried.

    Args:
        child_side: The runner module.
        tier: As `Tier` spells it.
        filters: For the processes made here.
        base_bytes: Address space of this process, which a child begins with.
        proc: Descriptor of a ``/proc`` that shows this process and its children; None: keep no child.
    """

    def __init__(self, child_side: Any, tier: str, filters: Filters, base_bytes: int, proc: int | None) -> None:
        self._runner: Any = child_side
        self._tier = tier
        self._filters = filters
        self._proc = proc
        self._base_bytes = base_bytes
        self._compiler = Compiler(self._spawn_compiler)
        self._kept: _Kept | None = None
        self._known_answer = (0, b"")
        self.keeps = proc is not None and filters.kept is not None
        self.kept_served = 0
        self.refusal = "" if self.keeps else "not asked for, or no /proc to be had"
        self._lost_in_a_row = self._fresh_before_next = 0

    def run(self, jobs: list[Job], message: bytes) -> list[list[bytes]]:
        """Return the frames of each job: one a run; fewer where it stops at its first failure.

        Several jobs share a child. What cannot share one, and what was there when anything went wrong, is answered by
        one frame that says `ALONE`.

        Args:
            jobs: What to run.
            message: The same as `runner.serve` reads it.
        """
        return [self._run_alone(jobs[0], message)] if len(jobs) == 1 else self._run_together(jobs, message)

    def _run_alone(self, job: Job, message: bytes) -> list[bytes]:
        if job.separate:
            return self._run_apart(job)
        done: list[bytes] = []
        while len(done) < len(job.runs):
            ending = None if done else self._try_kept([job], message)
            if ending is None:
                ending = self._run_in_fresh([job], len(done), len(message))
            done += ending.frames[0]
            if ending.fault is not None:
                done.append(ending.fault)
            if job.stop and done[-1][4] != self._runner.OK:
                break
        return done

    def _run_apart(self, job: Job) -> list[bytes]:
        """Run every run as a job of its own."""
        done: list[bytes] = []
        for run in job.runs:
            single = job._replace(runs=(run,), separate=False)
            done += self._run_alone(single, marshal.dumps([tuple(single)]))
            if job.stop and done[-1][4] != self._runner.OK:
                break
        return done

    def _run_together(self, jobs: list[Job], message: bytes) -> list[list[bytes]]:
        ending = self._try_kept(jobs, message)
        if ending is None:
            ending = self._run_in_fresh(jobs, 0, len(message))
        alone = [self._fault("alone", "")]
        if ending.fault is not None or self._said(ending.frames[-1][0]) != self._known_answer:
            return [alone] * len(jobs)
        return ending.frames[:-1]

    def learn_known_answer(self) -> None:
        """Run here, before the first program, what closes the work of several jobs in one child."""
        self._known_answer = self._said(next(self._runner.frames(self._runner.KNOWN, 0)))

    def _said(self, frame: bytes) -> tuple[int, bytes]:
        """Return the status and the payload of a frame."""
        return frame[4], frame[self._runner.FRAME.size :]

    def _with_known(self, jobs: list[Job]) -> list[Job]:
        """Return what a child answers that is asked for these jobs."""
        return jobs if len(jobs) == 1 else [*jobs, self._runner.KNOWN]

    def _try_kept(self, jobs: list[Job], message: bytes) -> _Ending | None:
        if not self.keeps or len(message) > LARGEST_KEPT:
            return None
        if self._fresh_before_next:  # another kept child costs ten forks, and programs of a kind come together
            self._fresh_before_next -= 1
            return None
        try:
            ending = self._run_in_kept(jobs, message)
        except (OSError, SnapshotLost) as error:
            self.refusal = str(error)
            return None
        # Where exactly memory ends differs by what a child holds, so only one kind may say so.
        short = len(jobs) == 1 and any(frame[4] == self._runner.MEMORY for frame in ending.frames[0])
        return None if short else ending

    def cpu_seconds(self) -> float:
        """Return the processor time of this process and its children so far."""
        times = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        own = sum(usage.ru_utime + usage.ru_stime for usage in times)
        kept = _processor_seconds(self._kept.process) if self._kept else 0.0
        return own + kept + self._compiler.cpu_seconds()

    def probe(self, act: Callable[[], None]) -> int:
        """Return the wait status of a fresh child that does ``act`` behind the walls."""
        read_end, write_end = os.pipe()

        def confined() -> None:
            os.closerange(seccomp.RESULT_FD + 1, walls.OPEN_FILES)
            self._confine(self._filters.child)
            act()

        child = self._fork(confined, write_end, 64 * 2**20)
        walls.limit_memory(None)
        os.close(write_end)
        os.close(read_end)
        return os.waitpid(child, 0)[1]

    # --- fresh -------------------------------------------------------------------------------------------------------

    def _run_in_fresh(self, jobs: list[Job], start: int, size: int) -> _Ending:
        """Run one job from the run at ``start`` on, or several."""
        job = jobs[0]
        if len(jobs) == 1 and job.is_text and job.cpu_seconds >= COMPILE_BUDGET:
            jobs = [job._replace(code=self._compiler.compile(job.program))]
        read_end, write_end = os.pipe()
        watch = Watch(self._runner, self._with_known(jobs), start, read_end, size)
        child = self._fork(lambda: self._be_fresh(jobs, start), write_end, job.memory_bytes + 2 * size)
        over_budget = False
        try:
            watch.wait()  # at once: until the child ends, every page touched here is copied
            os.close(write_end)
            walls.limit_memory(None)
            fault = watch.follow(child)
            over_budget = not watch.complete and watch.cpu_left() <= 0
        finally:
            os.kill(child, _signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            extra = watch.has_more()
            os.close(read_end)
        if watch.complete and not extra:
            return _Ending(watch.frames, None)
        return self._blame(watch, fault, status, over_budget)

    def _be_fresh(self, jobs: list[Job], start: int) -> None:
        os.closerange(seccomp.RESULT_FD + 1, walls.OPEN_FILES)
        self._confine(self._filters.child)
        self._runner.write_frames(jobs, start, seccomp.RESULT_FD)

    # --- kept --------------------------------------------------------------------------------------------------------

    def _run_in_kept(self, jobs: list[Job], message: bytes) -> _Ending:
        """As `_run_in_fresh`, from the first run on.

        Raises:
            OSError, SnapshotLost: No child could be made ready; or it ended in a way that only a fresh one may judge.
        """
        kept = self._kept or self._start_kept()
        process, size = kept.process, len(message)
        watch = Watch(self._runner, self._with_known(jobs), 0, kept.frames, size, _processor_seconds(process))
        memory = self._base_bytes + MEMORY_SLACK + jobs[0].memory_bytes + 2 * size
        try:
            _limit_memory_of(process, memory)
            os.write(kept.jobs, message)
            kept.snapshot.resume()
        except OSError:  # somebody ended it
            self.end_kept()
            raise
        fault = watch.follow(process)
        put_back = watch.complete and self._put_back(kept.snapshot)
        if not put_back:
            kept.end()
        extra = watch.has_more()  # it is dead or stopped
        if put_back and not extra:
            self.kept_served += 1
            self._lost_in_a_row = 0
        else:
            self.end_kept()
            self._lost_in_a_row += 1
            self._fresh_before_next = min(2**self._lost_in_a_row, MOST_FRESH) - 1
        if watch.complete and not extra:
            return _Ending(watch.frames, None)
        if fault.startswith("timeout"):
            return _Ending(watch.frames, self._timeout(fault, watch))
        raise SnapshotLost("what ended it may be the stricter filter, or an earlier job")

    def _start_kept(self) -> _Kept:
        """Fork a child, let it get ready, and remember it as it is then, stopped.

        Raises:
            SnapshotLost: Something here cannot be had.
        """
        assert self._proc is not None
        with contextlib.ExitStack() as failed, contextlib.ExitStack() as done:
            done.callback(walls.limit_memory, None)
            job_end, jobs = os.pipe()
            done.callback(os.close, job_end)
            failed.callback(os.close, jobs)
            frames, frame_end = os.pipe()
            done.callback(os.close, frame_end)
            failed.callback(os.close, frames)
            try:
                process = self._fork(lambda: self._be_kept(job_end), frame_end, COMPILE_MEMORY)
                failed.callback(_end, process)
                walls.limit_memory(None)
                if walls.pipe_size(jobs) < 2 * LARGEST_KEPT:  # a user of very many pipes gets small ones
                    raise SnapshotLost("its pipe is too small")
                _, twin, *descriptors = _DESCRIPTORS.unpack(_read_soon(frames))
                failed.callback(_end, twin)
                snapshot = Snapshot(process, twin, self._proc, tuple(descriptors))
                failed.callback(snapshot.close)
                os.write(jobs, _GO)
                if _read_soon(frames) != _READY:
                    raise SnapshotLost("a child got ready wrongly")
                snapshot.take()
            except (OSError, struct.error) as error:
                raise SnapshotLost(str(error)) from error
            failed.pop_all()
        self._kept = _Kept(process, twin, jobs, frames, snapshot)
        return self._kept

    def _be_kept(self, job_end: int) -> None:
        assert self._proc is not None
        os.dup2(job_end, seccomp.JOB_FD)
        walls.forget_signal_stack(_signal.SIGPROF)
        self._runner.get_ready()
        try:
            descriptors = open_own(self._proc)
            twin = fork_twin()
        except OSError as error:
            os.write(seccomp.RESULT_FD, _REFUSED + str(error).encode("utf-8", "replace"))
            raise
        if not twin:
            _stay()
        os.write(seccomp.RESULT_FD, _DESCRIPTORS.pack(_READY, twin, *descriptors))
        os.read(seccomp.JOB_FD, len(_GO))  # until the server has its own copies
        os.closerange(seccomp.JOB_FD + 1, walls.OPEN_FILES)
        self._confine(self._filters.kept)
        os.write(seccomp.RESULT_FD, _READY)
        self._runner.serve(seccomp.JOB_FD, seccomp.RESULT_FD)

    def _put_back(self, snapshot: Snapshot) -> bool:
        try:
            snapshot.stop()
            snapshot.restore()
        except SnapshotLost as lost:
            self.refusal = str(lost)
            return False
        return True

    def end_kept(self) -> None:
        """End the kept child, if there is one; the next job starts another."""
        if self._kept is not None:
            kept, self._kept = self._kept, None
            self.kept_served = 0
            kept.close()

    # --- how a child ended -------------------------------------------------------------------------------------------

    def _blame(self, watch: Watch, fault: str, status: int, over_budget: bool) -> _Ending:
        """Return what stands of the frames of a child that ended otherwise than asked for, and its fault."""
        if watch.complete:  # more than was asked for: nothing this child said can stand
            spoilt = self._fault("crashed", "protocol")
            return _Ending([[spoilt] * len(frames) for frames in watch.frames], None)
        if fault.startswith("timeout"):
            return _Ending(watch.frames, self._timeout(fault, watch))
        if fault:
            status_name, _, reason = fault.partition(":")
            return _Ending(watch.frames, self._fault(status_name, reason))
        return _Ending(watch.frames, self._fault_of_exit(status, over_budget))

    def _timeout(self, fault: str, watch: Watch) -> bytes:
        name, kind = fault.split(":", 1)
        return self._fault(name, kind, cpu_seconds=watch.used if kind == "wall" else 0.0)

    def _fault_of_exit(self, status: int, over_budget: bool) -> bytes:
        if os.WIFEXITED(status):
            return self._fault("crashed", "exit", f"the process ended with status {os.WEXITSTATUS(status)}")
        number = os.WTERMSIG(status)
        name = _SIGNALS.get(number, f"signal {number}")
        if name == "SIGSYS":
            return self._fault("forbidden", "syscall", "a system call that only an attack makes")
        if name in ("SIGXCPU", "SIGPROF", "SIGVTALRM") or over_budget:
            return self._fault("timeout", "cpu")
        # No wall lets a program send itself this signal: the host ran out of memory, or somebody stopped us.
        if name == "SIGKILL" and self._filters.child is not None:
            return self._fault("no_verdict", "killed", "the process was killed from outside")
        return self._fault("crashed", name)

    def _fault(self, status: str, name: str, message: str = "", cpu_seconds: float = 0.0) -> bytes:
        code: int = getattr(self._runner, status.upper())
        payload = f"{name}\0{message}".encode()
        return bytes(self._runner.FRAME.pack(len(payload), code, 0, int(cpu_seconds * 1e6))) + payload

    # --- forks -------------------------------------------------------------------------------------------------------

    def _fork(self, act: Callable[[], None], write_end: int, memory_bytes: int) -> int:
        """Fork; the child has the pipe on `seccomp.RESULT_FD` and ends after ``act``.

        The caller closes its end of the pipe and lifts the memory limit, once it has nothing better to do.
        """
        walls.limit_memory(self._base_bytes + MEMORY_SLACK + memory_bytes)
        child = os.fork()
        if child:
            return child
        status = 70
        try:
            os.dup2(write_end, seccomp.RESULT_FD)
            act()
            status = 0
        finally:
            _exit(status)
        raise AssertionError  # not reached

    def _spawn_compiler(self, act: Callable[[], None], source_end: int, code_end: int) -> int:
        """Fork the process that compiles, with its two pipes and behind a filter."""
        walls.limit_memory(self._base_bytes + COMPILE_MEMORY)
        child = os.fork()
        if child:
            walls.limit_memory(None)
            return child
        status = 70
        try:
            os.dup2(source_end, SOURCE_FD)  # opened first, so `code_end` is above both numbers
            os.dup2(code_end, CODE_FD)
            os.closerange(SOURCE_FD + 1, walls.OPEN_FILES)
            self._confine(self._filters.compiler)
            act()
            status = 0
        finally:
            _exit(status)
        raise AssertionError  # not reached

    def _confine(self, filter_: seccomp.Filter | None) -> None:
        if self._tier != "full":
            walls.die_with_parent()
        if filter_ is None:
            walls.limit_unfiltered_child()
        gc.freeze()  # nothing of the server is ever collected here: that would copy all its pages
        gc.enable()
        if filter_ is not None:
            filter_.install()


def _limit_memory_of(process: int, bytes_: int) -> None:
    soft, hard = resource.prlimit(process, resource.RLIMIT_AS)
    bytes_ = bytes_ if hard == resource.RLIM_INFINITY else min(bytes_, hard)
    if soft != bytes_:
        resource.prlimit(process, resource.RLIMIT_AS, (bytes_, hard))


def _read_soon(pipe: int) -> bytes:
    """Return what a child that gets ready says next.

    Raises:
        SnapshotLost: It says nothing, or what stops it.
    """
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    if not poll.poll(START_MILLISECONDS):
        raise SnapshotLost("a child did not get ready in time")
    said = os.read(pipe, 4096)
    if not said or said[:1] == _REFUSED:
        raise SnapshotLost(said[1:].decode("utf-8", "replace") or "a child ended while it got ready")
    return said


def _end(process: int) -> None:
    os.kill(process, _signal.SIGKILL)  # also where it has ended: nobody else waits for it
    os.waitpid(process, 0)


def _stay() -> NoReturn:
    """Hold on to the memory and to nothing else, until killed."""
    walls.die_with_parent()
    os.closerange(0, walls.OPEN_FILES)
    while True:
        _signal.pause()


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _processor_seconds(process: int) -> float:
    try:
        return time.clock_gettime(processor_clock(process))
    except OSError:  # it has ended
        return 0.0
