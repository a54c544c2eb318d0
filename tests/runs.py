"""Real runs of the command line in processes of their own, and how to kill, resume and compare them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from selfplay_gym.archive import Archive
from selfplay_gym.training.folder import RunFolder
from tests.players import train_tiny_policy

STEPS = 8
PATIENCE = 120.0
CLI = (sys.executable, "-m", "selfplay_gym.cli")


def tiny_policy(base: Path) -> Path:
    """Return the folder of the tiny policy, made once a test session."""
    folder = base / "tiny_policy"
    return folder if (folder / "pretrain.json").exists() else train_tiny_policy(folder)


def write_recipe(path: Path, model: Path, **settings: Any) -> Path:
    """Write a recipe of short steps of deduction; return its path."""
    recipe = {
        "model": str(model),
        "families": {"deduction": {"references": 1}},
        "steps": STEPS,
        "play": {"proposals": 6, "tasks": 8, "attempts": 4, "max_new_tokens": {"propose": 48, "solve": 24}},
        "reward": {"novelty": 0.5},
        "update": {"learning_rate": 1e-3, "micro_batch": 16, "skip_padding": True},
        "holdout": None,
        "processes": 1,
        "save_steps": 2,
        **settings,
    }
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


@contextmanager
def started(*arguments: str | Path, command: Sequence[str] = CLI) -> Iterator[subprocess.Popen[str]]:
    """Start the command line; it does not outlive the block."""
    environment = {key: value for key, value in os.environ.items() if key not in ("WORLD_SIZE", "RANK")}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "400", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.kill()


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int
    out: str
    err: str


def finished(process: subprocess.Popen[str]) -> Ended:
    out, err = process.communicate(timeout=PATIENCE)
    return Ended(process.returncode, out, err)


def train(*arguments: str | Path, command: Sequence[str] = CLI) -> Ended:
    with started("train", *arguments, command=command) as process:
        return finished(process)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None, pause: float = 0.01) -> None:
    """Return when the condition holds.

    Raises:
        AssertionError: The process ended first, or it took too long.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(pause)


def steps_done(folder: Path) -> int:
    """Return how many whole lines the metrics have."""
    path = RunFolder(folder).metrics
    return path.read_text().count("\n") if path.exists() else 0


def kill_after(steps: int, folder: Path, *arguments: str | Path, delay: float = 0.0) -> set[int]:
    """Train until the metrics have that many steps, then kill the first process; return what it had started."""
    with started("train", *arguments, "--output", folder) as process:
        wait_for(lambda: steps_done(folder) >= steps, process)
        time.sleep(delay)
        others = descendants(process.pid)
        assert process.poll() is None, "the run was over before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    return others


def told(path: Path) -> list[tuple[float, int, str]]:
    """Return what `told_run` has written: clock, step and phase."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [(float(clock), int(step), phase) for clock, step, phase in map(str.split, lines)]


def kill_in(step: int, phase: str, delay: float, notes: Path, *arguments: str | Path) -> tuple[set[int], str]:
    """Train until a phase of a step has begun, kill some time later; return the other processes and the last phase."""
    notes.unlink(missing_ok=True)
    command = (sys.executable, str(Path(__file__).with_name("told_run.py")), str(notes))
    with started("train", *arguments, command=command) as process:
        wait_for(lambda: any(seen[1:] == (step, phase) for seen in told(notes)), process, pause=0.001)
        time.sleep(delay)
        others = descendants(process.pid)
        assert process.poll() is None, "the run was over before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    _, where, last = told(notes)[-1]
    print(f"killed {1000 * delay:.0f} ms after {phase} of step {step} began: in {last} of step {where}")
    return others, last


def descendants(pid: int) -> set[int]:
    """Return the processes below one, from /proc."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            state, parent = re.split(r"\s", stat.rpartition(")")[2].strip())[:2]
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    found, new = set(), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def alive(pids: set[int]) -> set[int]:
    """Return those processes that still run."""
    left = set()
    for pid in pids:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            continue
        if stat.rpartition(")")[2].split()[0] not in "ZX":
            left.add(pid)
    return left


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


# -- comparing ---------------------------------------------------------------------------------------------------------


def metrics(folder: Path) -> list[dict[str, float]]:
    """Return the metrics without clock times."""
    lines = RunFolder(folder).metrics.read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("seconds/")} for line in lines]


def weights(folder: Path) -> dict[str, Any]:
    """Return the weights that a finished run leaves, or its adapters."""
    model = RunFolder(folder).model
    adapters = model / "adapter_model.safetensors"
    found: dict[str, Any] = load_file(adapters if adapters.exists() else model / "model.safetensors")
    return found


def fingerprint(folder: Path) -> str:
    with Archive.read(RunFolder(folder).archive) as archive:
        return archive.fingerprint()


def assert_same_run(folder: Path, expected: Path) -> None:
    """Compare two finished runs bit for bit."""
    assert metrics(folder) == metrics(expected)
    assert fingerprint(folder) == fingerprint(expected)
    ours, theirs = weights(folder), weights(expected)
    assert ours.keys() == theirs.keys()
    assert all(tensor.equal(theirs[name]) for name, tensor in ours.items())
