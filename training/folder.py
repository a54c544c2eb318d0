"""A run's folder: one run at a time, resumable from the last complete checkpoint, whatever cut it off.

config.yaml  metrics.jsonl  archive.sqlite  checkpoints/  completions/  eval/  holdout_before.json
clock.json  result.json  log.txt
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import yaml

from selfplay_gym.archive import Archive
from selfplay_gym.errors import RunFolderError
from selfplay_gym.output import write_whole
from selfplay_gym.training.config import RunConfig, dump, parse

COMPLETE = "complete.json"
"""Written last into a checkpoint: one without it was cut off while being written."""

LOCK = ".lock"
"""Name of the file that a running process holds locked."""

FREE = frozenset({"steps", "save_steps", "keep_checkpoints", "report_to"})
"""Settings that may change when a run is resumed: they decide how long it goes on, not what it does."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of a run, and what of them survives a kill."""

    path: Path

    @property
    def archive(self) -> Path:
        """The task archive."""
        return self.path / "archive.sqlite"

    @property
    def checkpoints(self) -> Path:
        """Folder of ``checkpoint-N`` folders."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The policy at the end of the run, as an ordinary checkpoint."""
        return self.path / "model"

    @property
    def metrics(self) -> Path:
        """One JSON object a step."""
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """What the libraries had to say."""
        return self.path / "log.txt"

    @property
    def resume_command(self) -> str:
        """What to type to go on with the run."""
        return f"selfplay-gym train --resume --output {shlex.quote(str(self.path))}"

    def prepare(self, config: RunConfig) -> None:
        """Make a new run's folder.

        Raises:
            RunFolderError: Something is there already.
        """
        self.refuse_if_taken()
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / "config.yaml", dump(config))
        self.checkpoints.mkdir()

    def refuse_if_taken(self) -> None:
        """Check that a new run may be made here.

        Raises:
            RunFolderError: Something is there already.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(f"{self.path} is a file: choose a new or empty folder as --output")
        if self.path.exists() and any(child.name not in (LOCK, "log.txt") for child in self.path.iterdir()):
            raise RunFolderError(
                f"{self.path} already holds a run or other files: continue that run with --resume, or choose another "
                "--output"
            )

    def discard(self) -> None:
        """Remove a new run that never got as far as its first step."""
        if not self.metrics.exists():
            shutil.rmtree(self.path, ignore_errors=True)

    def stored_config(self) -> RunConfig:
        """Return the settings the run was started with.

        Raises:
            RunFolderError: There is no run here.
        """
        path = self.path / "config.yaml"
        try:
            settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, ValueError, RecursionError):
            raise RunFolderError(f"{self.path} holds no run to resume: {path} cannot be read") from None
        return parse(settings, str(path))

    def resume(self, config: RunConfig) -> int:
        """Go back to the last complete checkpoint and return its step, 0 if there is none.

        A refused resume changes nothing.

        Raises:
            RunFolderError: The folder holds a run with other settings, or one that is already longer, or its archive is
                not the one that the checkpoint was written with.
            InvalidData: The archive is damaged.
        """
        stored, asked = self.stored_config().model_dump(mode="json"), config.model_dump(mode="json")
        # A rate that falls to 0 at the last step is another rate when the last step is another one.
        free = FREE if config.update.schedule == "constant" else FREE - {"steps"}
        if stored["processes"] is None:  # a run of an earlier version, which left the number to the machine
            free |= {"processes"}
        if changed := _changed(stored, asked, free):
            key = changed[0]
            if changed == ["steps"]:
                raise RunFolderError(
                    f"{self.path} cannot be resumed with steps={config.steps}: its learning rate falls to 0 at step "
                    f"{stored['steps']}, where it ends (update.schedule); train on from what it made in another run, "
                    f"with --set model={self.model}"
                )
            raise RunFolderError(
                f"{self.path} holds another run: its {key} is {stored[key]!r}, not {asked[key]!r}; resume it without "
                "these settings, or choose another --output"
            )
        step = self._last_complete()
        if config.steps < step:
            raise RunFolderError(f"{self.path} is at step {step} already: resume it with steps={step} or more")
        if step:
            self._check_archive(step)
        write_whole(self.path / "config.yaml", dump(config))
        for folder, number in self._checkpoints():
            if number > step:
                shutil.rmtree(folder)
        self._truncate_metrics(step)
        self._remove_later_files(step)
        return step

    def refuse_other(self, config: RunConfig, recipe: str) -> None:
        """Refuse a recipe that is named for resuming and is not the run's.

        Raises:
            RunFolderError: It has other settings, those aside that may change.
        """
        stored, asked = self.stored_config().model_dump(mode="json"), config.model_dump(mode="json")
        if changed := _changed(stored, asked, FREE | {"processes"}):  # whose number `resume` looks at
            key = changed[0]
            raise RunFolderError(
                f"{self.path} holds a run of another recipe than {recipe}: its {key} is {stored[key]!r}, not "
                f"{asked[key]!r}; leave the recipe out, since --resume keeps the run's settings"
            )

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint at a step."""
        return self.checkpoints / f"checkpoint-{step}"

    def mark(self, step: int) -> dict[str, Any]:
        """Return what was written when the checkpoint at a step was complete."""
        mark = self.read_json(f"{self.checkpoints.name}/{self.checkpoint(step).name}/{COMPLETE}")
        return mark if isinstance(mark, dict) else {}

    def _checkpoints(self) -> list[tuple[Path, int]]:
        folders = self.checkpoints.glob("checkpoint-*")
        return [(f, int(f.name.removeprefix("checkpoint-"))) for f in folders if f.name[11:].isdecimal() and f.is_dir()]

    def _last_complete(self) -> int:
        return max((number for folder, number in self._checkpoints() if (folder / COMPLETE).exists()), default=0)

    def _check_archive(self, step: int) -> None:
        """Refuse an archive that, taken back to the checkpoint's step, is not as it was when that was written."""
        again = "restore it from a copy, or start another run"
        if not self.archive.exists():
            raise RunFolderError(f"{self.archive} is missing: {again}")
        if not self.archive.stat().st_size:
            raise RunFolderError(f"{self.archive} is empty, but the run is at step {step}: {again}")
        expected = self.mark(step).get("archive")
        with Archive(self.archive) as archive, _undone(archive):
            archive.rewind(step)
            found = contents(archive)
        if expected is not None and found != expected:  # a run of an earlier version did not write it down
            raise RunFolderError(
                f"{self.archive} does not belong to the checkpoint of step {step}: it holds {_said(found)}, not "
                f"{_said(expected)}; {again}"
            )

    def _truncate_metrics(self, step: int) -> None:
        if self.metrics.exists():
            kept = [line for line in self.metrics.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            write_whole(self.metrics, "".join(line + "\n" for line in kept))

    def _remove_later_files(self, step: int) -> None:
        for file in (*self.path.glob("completions/step-*.jsonl"), *self.path.glob("eval/step-*.json*")):
            written = file.name.partition(".")[0].removeprefix("step-")
            if written.isdecimal() and int(written) > step:
                file.unlink()

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one step's line."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def seconds_played(self) -> float:
        """Return how long the steps took, over all sessions."""
        return sum(float(record.get("seconds/step", 0.0)) for record in self.records())

    def records(self) -> Iterator[dict[str, float]]:
        """Yield the metrics of each step that is written."""
        lines = self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.exists() else []
        yield from map(json.loads, lines)

    def write_completions(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep the completions of a step for people to read."""
        folder = self.path / "completions"
        folder.mkdir(exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_whole(folder / f"step-{step:06d}.jsonl", text)

    def evaluation(self, step: int) -> str:
        """Return the name of the file of an evaluation's scores; its answers stand beside it, in one more ``l``."""
        return f"eval/step-{step:06d}.json"

    def read_json(self, name: str) -> Any:
        """Return the content of a JSON file of the run, None where there is none."""
        path = self.path / name
        try:
            return json.loads(path.read_bytes()) if path.exists() else None
        except ValueError as error:
            raise RunFolderError(f"{path} is damaged ({error}): restore it from a copy, or start another run") from None

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file of the run."""
        (self.path / name).parent.mkdir(exist_ok=True)
        write_whole(self.path / name, json.dumps(content, indent=2) + "\n")


class RunLock:
    """Holds a run folder for this process; the system lets go of it when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True, exist_ok=True)
        self._file = (self.path / LOCK).open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise RunFolderError(f"{self.path} is in use by another run (process {holder})") from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


class _Undo(Exception):
    """Leaves a transaction so that nothing of it is kept."""


@contextmanager
def _undone(archive: Archive) -> Iterator[None]:
    try:
        with archive.transaction():
            yield
            raise _Undo
    except _Undo:
        pass


def contents(archive: Archive) -> dict[str, Any]:
    """Return a few facts by which an archive is known again, for a checkpoint to keep."""
    numbers = archive.statistics()
    last = next(archive.tasks(newest=1, evicted=True), None)
    return {
        "tasks": numbers.tasks,
        "attempts": numbers.attempts,
        "rejections": sum(numbers.rejections.values()),
        "last_task": last.task.key if last else None,
    }


def _changed(stored: Mapping[str, Any], asked: Mapping[str, Any], free: Set[str]) -> list[str]:
    """Return the settings that differ and may not."""
    return [key for key in asked if key not in free and stored[key] != asked[key]]


def _said(facts: Mapping[str, Any]) -> str:
    last = str(facts.get("last_task"))[:12]
    return f"{facts.get('tasks')} tasks and {facts.get('attempts')} attempts (last task {last})"


def next_output(parent: Path, name: str) -> Path:
    """Return ``parent/name``, or the first of ``name-2``, ``name-3``... that does not exist."""
    candidates = (parent / (name if number == 1 else f"{name}-{number}") for number in range(1, 10_000))
    return next(path for path in candidates if not path.exists())


def latest_output(parent: Path) -> Path:
    """Return the run folder that was written to last.

    Raises:
        RunFolderError: There is none.
    """
    runs = [config.parent for config in parent.glob("*/config.yaml")]
    if not runs:
        raise RunFolderError(f"there is no run under {parent}/ to resume; name its folder with --output")
    return max(runs, key=lambda run: run.stat().st_mtime)


def _step_of(line: str) -> float:
    """Return the step of a metrics line; a line cut off in the middle is after everything."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
