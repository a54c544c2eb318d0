"""The processes of a run: started together, ended together.

Rank 0 is the process the user started; it judges, remembers and reports. The others are started from here, follow it,
and die with it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from selfplay_gym import interrupts
from selfplay_gym.errors import InvalidConfig, SelfPlayError, UnknownId
from selfplay_gym.training.config import RunConfig, load, override
from selfplay_gym.training.folder import LOCK, RunFolder, RunLock, latest_output, next_output

GRACE_SECONDS = 10.0
"""How long rank 0 has to notice by itself that another process has ended."""

OWN_MODULES = ("-P", "-m")
"""How Python runs a module of ours: without importing what lies about where the user happens to be."""

RUNS = Path("runs")
"""Where runs go that are not told otherwise."""


def train(
    recipe: str | None, overrides: list[str] | None, output: Path | None, *, resume: bool, console: Console
) -> int:
    """Start a run of a recipe, by default nano, or resume one; return the exit code.

    A resumed run keeps the settings it was started with. A recipe that is named all the same must have them, too.

    Raises:
        SelfPlayError: Whatever went wrong, as one line.
    """
    if _follows():
        from selfplay_gym.training.distributed import wait_to_begin

        wait_to_begin()  # what is wrong with the run, rank 0 says
    if output is None and "WORLD_SIZE" in os.environ:
        raise SelfPlayError(
            "started by torchrun or accelerate, every process must be told the same folder: --output DIR"
        )
    if not resume:
        recipe = recipe or "nano"
        config = load(recipe, overrides or [])
        return launch(config, RunFolder(output or next_output(RUNS, Path(recipe).stem)), resume=False, console=console)
    folder = RunFolder(output or latest_output(RUNS))
    config = override(folder.stored_config(), overrides or [])
    if recipe is not None:
        folder.refuse_other(load(recipe, overrides or []), recipe)
    return launch(config, folder, resume=True, console=console)


def launch(config: RunConfig, folder: RunFolder, *, resume: bool, console: Console) -> int:
    """Run or resume in as many processes as the settings say; return the exit code.

    Started by torchrun or accelerate, this process is one of theirs and starts no others.

    Raises:
        SelfPlayError: Whatever went wrong, as one line.
    """
    # Late: torch reads the thread counts from the environment when it is imported.
    from selfplay_gym.training import vllm
    from selfplay_gym.training.run import check, check_start, run_rank

    interrupts.check()
    if _follows():
        folder.path.mkdir(parents=True, exist_ok=True)  # on a machine of its own it may be missing
        _leave(_follow(config, folder, resume=resume))
    check(config)
    vllm.check(config)
    config = config.model_copy(update={"processes": _processes(config, folder, resume=resume)})
    if not resume and not (folder.path / LOCK).exists():
        folder.refuse_if_taken()  # before a lock is left in somebody's folder
    check_start(config)
    with RunLock(folder.path):
        # Before there are followers, which read the settings from the folder.
        if resume:
            folder.resume(config)
        else:
            folder.prepare(config)
        try:
            with _followers(config, folder) as environment:
                os.environ.update(environment)
                return run_rank(config, folder, resume=resume, console=console)
        except (InvalidConfig, UnknownId):
            if not resume:
                folder.discard()
            raise
        except KeyboardInterrupt:
            console.print(f"Stopped at once. Go on with: {folder.resume_command}", highlight=False, soft_wrap=True)
            raise


def _follows() -> bool:
    """Return whether torchrun or accelerate started this process as one of the further ranks."""
    return os.environ.get("RANK", "0") != "0"


def _follow(config: RunConfig, folder: RunFolder, *, resume: bool) -> int:
    """Play a further rank's part and return the exit code; a failure of rank 0 is told there alone."""
    from selfplay_gym.training.distributed import LeaderFailed
    from selfplay_gym.training.run import run_rank

    try:
        return run_rank(config, folder, resume=resume, console=Console(quiet=True))
    except LeaderFailed:
        return 0
    except SelfPlayError as error:
        print(f"rank {os.environ['RANK']}: {error}", file=sys.stderr)
        return 1


@contextmanager
def _followers(config: RunConfig, folder: RunFolder) -> Iterator[dict[str, str]]:
    """Start the ranks after the first and yield the first one's environment; none of them outlives this process.

    Raises:
        SelfPlayError: One of them ended, and the first can no longer talk to it.
    """
    world = config.processes or 1
    if world == 1:
        yield {}
        return
    if "WORLD_SIZE" in os.environ:
        from selfplay_gym.training.distributed import let_followers_begin

        let_followers_begin()
        yield {}
        return
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    command = [sys.executable, *OWN_MODULES, "selfplay_gym.training.launch", str(folder.path), str(os.getpid())]
    processes: list[subprocess.Popen[bytes]] = []
    with folder.log.open("ab") as log, ExitStack() as stack:
        for rank in range(1, world):
            environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
            stack.callback(_end, process)
            processes.append(process)
        over = threading.Event()
        threading.Thread(target=_end_if_deserted, args=(processes, folder, over), daemon=True).start()
        try:
            yield {**shared, "RANK": "0", "LOCAL_RANK": "0"}
        except BaseException as error:
            over.set()
            known = isinstance(error, (SelfPlayError, KeyboardInterrupt))
            lost = None if known else _first_to_fail(processes, folder, wait_seconds=2.0)
            for process in processes:  # what there is to keep, rank 0 has
                process.kill()
            if lost is None:
                raise
            raise SelfPlayError(lost) from error
        finally:
            over.set()


def _first_to_fail(
    processes: Sequence[subprocess.Popen[bytes]], folder: RunFolder, wait_seconds: float = 0.0
) -> str | None:
    """Say which follower ended by itself, if one did; its end may be noticed a moment after its silence."""
    deadline = time.monotonic() + wait_seconds
    while True:
        for rank, process in enumerate(processes, start=1):
            if code := process.poll():
                how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                return f"process {rank} of the run {how}, see {folder.log}; go on with: {folder.resume_command}"
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.05)


def _end_if_deserted(processes: Sequence[subprocess.Popen[bytes]], folder: RunFolder, over: threading.Event) -> None:
    """End this process when a follower has ended and rank 0 does not notice.

    While the processes find each other, rank 0 waits up to half an hour for one that will never come, inside a library
    that no exception reaches. Ending it there loses nothing: a run can be killed at any moment.
    """
    while not over.wait(0.5):
        lost = _first_to_fail(processes, folder)
        if lost is not None and not over.wait(GRACE_SECONDS):
            print(f"error: {lost}", file=sys.stderr, flush=True)
            os._exit(1)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Give a follower a moment to leave by itself, then end it."""
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _processes(config: RunConfig, folder: RunFolder, *, resume: bool) -> int:
    """Return in how many processes to run: a run keeps its number wherever it goes on, or it would not be the same."""
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    stored = folder.stored_config().processes if resume else None
    if config.processes and not resume:
        _refuse_too_many(config.processes)
    return config.processes or stored or _default_processes()


def _refuse_too_many(processes: int) -> None:
    """Refuse processes that would only wait for each other.

    Raises:
        InvalidConfig: There are more than GPUs, or than cores where there is no GPU.
    """
    import torch

    gpus, cores = torch.cuda.device_count(), len(os.sched_getaffinity(0))
    most, what = (gpus, "GPUs") if gpus else (cores, "cores")
    most = most if gpus else max(most, 2)  # two on one core are slow, but show what several do
    if processes > most:
        raise InvalidConfig(f"processes must be at most {most}, the {what} that this run may use, got {processes}")


def _default_processes() -> int:
    """One process a core on CPU, where two threads of one process are far slower than two processes; one on GPU."""
    import torch

    return 1 if torch.cuda.is_available() else min(len(os.sched_getaffinity(0)), 8)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def main(arguments: Sequence[str]) -> int:
    """Follow as one of the further ranks of the run in the folder named, started by the process named."""
    die_with(int(arguments[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides when to stop
    folder = RunFolder(Path(arguments[0]))
    return _follow(folder.stored_config(), folder, resume=True)


def _leave(code: int) -> NoReturn:
    """End a follower at once, without ending its interpreter first.

    A thread of gloo lets go of the last tensors exchanged a moment after their exchange. Where the interpreter is
    being ended by then, that thread aborts the process; and `destroy_process_group` waits for it for ever, since it
    keeps the lock that the thread needs. A follower has nothing to write.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def die_with(parent: int) -> None:
    """Let the system end this process when the one that started it ends, however that comes about."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    _leave(main(sys.argv[1:]))
