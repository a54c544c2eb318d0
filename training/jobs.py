"""Calls of the command line in processes of their own: many, one a core, or a single one with all cores."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from selfplay_gym.errors import SelfPlayError
from selfplay_gym.output import inert
from selfplay_gym.training.launch import OWN_MODULES, die_with

GRACE_SECONDS = 60.0
"""How long a run has to finish its step and to save it after Ctrl-C."""


@dataclass(frozen=True)
class Job:
    """One call of the command line.

    Attributes:
        name: For people.
        arguments: After ``selfplay-gym``.
        result: The file that is there when it is finished.
        log: Where its words go.
    """

    name: str
    arguments: tuple[str, ...]
    result: Path
    log: Path


class Jobs:
    """Runs jobs, one a core, and says what becomes of them."""

    def __init__(self, console: Console | None, bar: Progress | None, total: int) -> None:
        self._console, self._bar = console, bar
        self._task = bar.add_task("", total=total) if bar else None

    def run(self, jobs: Iterable[Job]) -> None:
        """Return when all are finished; what is finished already is not run again.

        Raises:
            SelfPlayError: One failed; the others were stopped where they can go on.
            KeyboardInterrupt: All were stopped.
        """
        waiting: deque[Job] = deque()
        for job in jobs:
            if job.result.exists():
                self._advance()
            else:
                waiting.append(job)
        free = sorted(os.sched_getaffinity(0))
        running: dict[subprocess.Popen[bytes], tuple[Job, int, float]] = {}
        try:
            while waiting or running:
                while waiting and free:
                    job, core = waiting.popleft(), free.pop(0)
                    running[_start(job, core)] = job, core, time.monotonic()
                    if self._bar is None:
                        self._say(f"{job.name}: started")
                self._show(job.name for job, _, _ in running.values())
                time.sleep(0.2)
                for process in [process for process in running if process.poll() is not None]:
                    job, core, began = running.pop(process)
                    free.append(core)
                    _check(process, job)
                    self._finished(job, time.monotonic() - began)
        except KeyboardInterrupt:
            self._say("Stopping; runs finish their step and save it.")
            raise
        finally:
            _end(list(running))

    def _finished(self, job: Job, seconds: float) -> None:
        self._advance()
        self._say(f"{job.name}: {seconds / 60:.1f} minutes")

    def _say(self, words: str) -> None:
        if self._console:
            self._console.print(words, highlight=False, soft_wrap=True, markup=False)

    def _advance(self) -> None:
        if self._bar and self._task is not None:
            self._bar.advance(self._task)

    def _show(self, names: Iterable[str]) -> None:
        if self._bar and self._task is not None:
            self._bar.update(self._task, description=" | ".join(names))
            self._bar.refresh()


@contextmanager
def running_jobs(console: Console | None, total: int) -> Iterator[Jobs]:
    """Hand out what runs jobs, and show how many are done.

    Args:
        console: Where to say so, if anywhere; a bar is shown if it is a terminal.
        total: Jobs that will be run in all.
    """
    if console is None or not console.is_terminal:
        yield Jobs(console, None, total)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    # No thread of its own: the children are to die with the thread that started them, which is then the only one.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bar:
        yield Jobs(console, bar, total)


def run_apart(arguments: Sequence[str]) -> None:
    """Run one call, all that comes after ``selfplay-gym``, on all cores, and return when it is done.

    Raises:
        SelfPlayError: It failed; what it said last.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "RANK")}
    command = _command(sorted(os.sched_getaffinity(0)), arguments)
    ended = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)
    if ended.returncode:
        reason = inert((ended.stderr.strip().splitlines() or ["no reason given"])[-1].removeprefix("error: "))
        raise SelfPlayError(f"a run to be measured ended with exit code {ended.returncode}: {reason}")


def _command(cores: Iterable[int], arguments: Sequence[str]) -> list[str]:
    """Return the command that runs a call on these cores and ends with this process."""
    listed = ",".join(map(str, cores))
    return [sys.executable, *OWN_MODULES, "selfplay_gym.training.jobs", listed, str(os.getpid()), *arguments]


def _start(job: Job, core: int) -> subprocess.Popen[bytes]:
    """Start a job on a core; Ctrl-C reaches it from here alone, and it does not outlive this process."""
    with job.log.open("ab") as log:
        log.write(f"$ selfplay-gym {shlex.join(job.arguments)}\n".encode(errors="replace"))
        log.flush()
        return subprocess.Popen(
            _command([core], job.arguments), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def _check(process: subprocess.Popen[bytes], job: Job) -> None:
    """Raise what became of a job that did not do its work."""
    code = process.returncode
    if code == 0 and job.result.exists():
        return
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    lines = job.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = inert(lines[-1].removeprefix("error: ")) if lines else ""
    raise SelfPlayError(f"{job.name} {how}: {last} (see {job.log}); the same command goes on with it")


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Let runs save what they have, then end what is left."""
    deadline = time.monotonic() + GRACE_SECONDS
    try:
        for process in processes:
            process.send_signal(signal.SIGINT)
        for process in processes:
            process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        pass
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main(arguments: Sequence[str]) -> None:
    """Be the command line on some cores, for the process named."""
    cores, parent, *rest = arguments
    os.sched_setaffinity(0, set(map(int, cores.split(","))))  # so that its sandbox, too, keeps to as many workers
    die_with(int(parent))
    sys.argv = ["selfplay-gym", *rest]
    from selfplay_gym import cli

    cli.main()


if __name__ == "__main__":
    main(sys.argv[1:])
