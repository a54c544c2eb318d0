"""Held-out sets: rows of a data file, seen as tasks of solve-only families.

A registered name stands for a loader that turns a `Source` into one or more `Suite`: one list of problems with one
metric. Data comes from a local folder and is trusted, the answers to it are not. A row whose own reference fails here
stays in the suite as a problem without a verdict: it is shown, never silently dropped or counted as wrong.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from selfplay_gym.errors import InvalidConfig, InvalidData
from selfplay_gym.protocols import Executor, TaskFamily
from selfplay_gym.registry import Registry
from selfplay_gym.types import Limits, Task

DATA_VARIABLE = "SELFPLAY_GYM_DATA"

SUITES = Registry(
    "suite",
    "selfplay_gym.suites",
    {
        "nano": "selfplay_gym.tasks.nano:load",
        "nano-easy": "selfplay_gym.tasks.nano:load_easy",
        "nano-harder": "selfplay_gym.tasks.nano:load_harder",
        "cruxeval": "selfplay_gym.tasks.cruxeval:load",
        "cruxeval-i": "selfplay_gym.tasks.cruxeval:load_input_prediction",
        "cruxeval-o": "selfplay_gym.tasks.cruxeval:load_output_prediction",
        "list_functions": "selfplay_gym.tasks.list_functions:load",
        "dreamcoder_list": "selfplay_gym.tasks.dreamcoder_list:load",
        "humaneval_io": "selfplay_gym.tasks.io_pairs:load_humaneval",
        "humaneval_io-induction": "selfplay_gym.tasks.io_pairs:load_humaneval_induction",
        "humaneval_io-deduction": "selfplay_gym.tasks.io_pairs:load_humaneval_deduction",
        "humaneval_io-abduction": "selfplay_gym.tasks.io_pairs:load_humaneval_abduction",
        "mbpp_io": "selfplay_gym.tasks.io_pairs:load_mbpp",
        "mbpp_io-induction": "selfplay_gym.tasks.io_pairs:load_mbpp_induction",
        "mbpp_io-deduction": "selfplay_gym.tasks.io_pairs:load_mbpp_deduction",
        "mbpp_io-abduction": "selfplay_gym.tasks.io_pairs:load_mbpp_abduction",
        "test_output_prediction": "selfplay_gym.tasks.output_prediction:load",
        "arc_1d": "selfplay_gym.tasks.arc:load_1d",
        "arc_1d-direct": "selfplay_gym.tasks.arc:load_1d_direct",
        "arc_mini": "selfplay_gym.tasks.arc:load_mini",
        "arc_mini-direct": "selfplay_gym.tasks.arc:load_mini_direct",
        "arc_agi1_training": "selfplay_gym.tasks.arc:load_agi1_training",
        "arc_agi1_training-direct": "selfplay_gym.tasks.arc:load_agi1_training_direct",
        "arc_agi1_evaluation": "selfplay_gym.tasks.arc:load_agi1_evaluation",
        "arc_agi1_evaluation-direct": "selfplay_gym.tasks.arc:load_agi1_evaluation_direct",
        "arc_agi2_evaluation": "selfplay_gym.tasks.arc:load_agi2_evaluation",
        "arc_agi2_evaluation-direct": "selfplay_gym.tasks.arc:load_agi2_evaluation_direct",
        "sygus_pbe_strings": "selfplay_gym.tasks.sygus_strings:load",
        "sygus_pbe_strings-held": "selfplay_gym.tasks.sygus_strings:load_held",
        "gsm8k": "selfplay_gym.tasks.maths:gsm8k",
        "math500": "selfplay_gym.tasks.maths:math500",
        "aime24": "selfplay_gym.tasks.maths:aime24",
        "aime25": "selfplay_gym.tasks.maths:aime25",
        "amc23": "selfplay_gym.tasks.maths:amc23",
        "hmmt": "selfplay_gym.tasks.maths:hmmt",
        "hmmt24": "selfplay_gym.tasks.maths:hmmt24",
        "hmmt25": "selfplay_gym.tasks.maths:hmmt25",
        "minerva": "selfplay_gym.tasks.maths:minerva",
        "olympiadbench": "selfplay_gym.tasks.maths:olympiadbench",
        "svamp": "selfplay_gym.tasks.maths:svamp",
        "asdiv": "selfplay_gym.tasks.maths:asdiv",
        "multiarith": "selfplay_gym.tasks.maths:multiarith",
    },
)


@dataclass(frozen=True, slots=True)
class Source:
    """What a loader is handed.

    Attributes:
        executor: Runs references whose value a suite needs.
        data_dir: Folder of the data files; without one, the environment variable ``SELFPLAY_GYM_DATA`` says.
        style: Prompt style of the families, as `selfplay_gym.tasks.prompting` names them.
    """

    executor: Executor
    data_dir: Path | None = None
    style: str = "azr"


@dataclass(frozen=True, slots=True)
class Problem:
    """One row of a suite.

    Attributes:
        id: The row's id, unique within the suite.
        task: What is asked, or None when the row's reference gave no value here.
        answer: A right answer known from the data, for checking the judge; empty where none is known.
        failure: Why there is no task.
        group: Problems of one group are variants of each other: the score is first averaged over a group, then over
            the groups. Empty where every problem counts by itself.
    """

    id: str
    task: Task | None
    answer: str = ""
    failure: str = ""
    group: str = ""


@dataclass(frozen=True)
class Suite:
    """A named list of problems with one metric.

    Attributes:
        name: Under which results are reported.
        families: The task families of the problems, by the name in `Task.family`.
        problems: In the order of the data file.
        data_sha256: Of the data file as it lies on disk, in hexadecimal.
        limits: Of one run of an answer. References of the built-in suites need a millisecond.
        metric: What the score of one problem means.
        note: What a reader of the score must know, such as that the file holds one half of the set.
    """

    name: str
    families: Mapping[str, TaskFamily]
    problems: tuple[Problem, ...]
    data_sha256: str
    limits: Limits = field(default_factory=Limits)
    metric: str = "accuracy"
    note: str = ""

    def first(self, limit: int | None) -> Suite:
        """Return the suite with its first ``limit`` problems only; all of them for None."""
        if limit is not None and limit < 1:
            raise InvalidConfig(f"limit must be at least 1, got {limit}")
        return replace(self, problems=self.problems[:limit])

    def prompts(self) -> dict[str, str]:
        """Return the solver's prompt by problem id, for every problem that has a task."""
        return {p.id: self.families[p.task.family].solve_prompt(p.task) for p in self.problems if p.task is not None}


Loader = Callable[[Source], list[Suite]]


def load(names: Sequence[str], source: Source) -> list[Suite]:
    """Return the suites behind the names, in order and each once.

    Raises:
        UnknownId: No suite of that name; the message gives the nearest ones.
        InvalidData: A file or folder is missing or broken.
    """
    if not names:
        raise InvalidConfig(f"no suite named; there are {', '.join(SUITES.names())}")
    loaders = [cast(Loader, SUITES.load(name)) for name in names]
    suites: dict[str, Suite] = {}
    for loader in loaders:
        for suite in loader(source):
            suites.setdefault(suite.name, suite)
    return list(suites.values())


# -- data files --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a data file, with typed access to its fields.

    Attributes:
        fields: The JSON object.
        where: File and line, for messages.
    """

    fields: Mapping[str, object]
    where: str

    def text(self, name: str) -> str:
        """Return a text field.

        Raises:
            InvalidData: It is missing or not text.
        """
        value = self.value(name)
        if not isinstance(value, str):
            raise InvalidData(f"{self.where}: field {name!r} must be text, got {type(value).__name__}")
        return value

    def list(self, name: str) -> list[object]:
        """Return a list field.

        Raises:
            InvalidData: It is missing or not a list.
        """
        value = self.value(name)
        if not isinstance(value, list):
            raise InvalidData(f"{self.where}: field {name!r} must be a list, got {type(value).__name__}")
        return value

    def value(self, name: str) -> object:
        """Return a field, whatever it is.

        Raises:
            InvalidData: It is missing.
        """
        if name not in self.fields:
            there = ", ".join(map(repr, self.fields)) or "none"
            raise InvalidData(f"{self.where}: field {name!r} is missing; there are {there}")
        return self.fields[name]


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a data file and the sha256 of its bytes."""

    rows: tuple[Row, ...]
    sha256: str


def open_table(data_dir: Path | None, *names: str) -> tuple[Table, str]:
    """Return the first of the named files that exists (plain or ``.gz``), with the name it was found under.

    Raises:
        InvalidData: No folder, none of the files, or a broken file.
    """
    path = _find(data_dir, names)
    return table(_read(path), str(path)), path.name


def table(data: bytes, name: str) -> Table:
    """Return the rows of a data file given as bytes, each with its own ``id``.

    Raises:
        InvalidData: A line is no JSON object, lacks its id or repeats one; no line at all.
    """
    rows: list[Row] = []
    seen: dict[str, str] = {}
    for row in rows_of(data, name):
        key = row.text("id")
        if key in seen:
            raise InvalidData(f"{row.where}: id {key!r} stands already at {seen[key]}")
        seen[key] = row.where
        rows.append(row)
    if not rows:
        raise InvalidData(f"{name}: holds no row")
    return Table(tuple(rows), hashlib.sha256(data).hexdigest())


def rows_of(data: bytes, name: str) -> Iterator[Row]:
    """Yield the rows of JSON lines, gzipped where ``name`` ends in ``.gz``; blank lines are passed over.

    Raises:
        InvalidData: With file and line, where something is no JSON object in UTF-8.
    """
    for number, line in enumerate(_unpacked(data, name).split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            value = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise InvalidData(f"{where}: not JSON: {error}") from None
        yield row_of(value, where)


def row_of(value: object, where: str) -> Row:
    """Return a JSON value as a row.

    Raises:
        InvalidData: It is no object.
    """
    if not isinstance(value, dict):
        raise InvalidData(f"{where}: expected a JSON object, got {type(value).__name__}")
    return Row(value, where)


def read(path: Path) -> Iterator[Row]:
    """Yield the rows of a file of JSON lines, as `rows_of` does."""
    return rows_of(_read(path), str(path))


def _find(data_dir: Path | None, names: Sequence[str]) -> Path:
    stated = os.environ.get(DATA_VARIABLE)
    if data_dir is None and not stated:
        raise InvalidData(f"no data folder: pass --data-dir or set {DATA_VARIABLE} (looking for {names[0]})")
    folder = data_dir or Path(stated or "")
    if not folder.is_dir():
        raise InvalidData(f"data folder {folder} does not exist")
    candidates = [folder / f"{name}{ending}" for name in names for ending in ("", ".gz")]
    for path in candidates:
        if path.is_file():
            return path
    near = difflib.get_close_matches(names[0], sorted(path.name for path in folder.iterdir()), n=1, cutoff=0.8)
    hint = f"; there is {near[0]}" if near else ""
    raise InvalidData(f"{folder} holds none of {', '.join(path.name for path in candidates)}{hint}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidData(f"cannot read {path}: {error.strerror}") from None


def _unpacked(data: bytes, name: str) -> bytes:
    if not name.endswith(".gz"):
        return data
    if not data.startswith(b"\x1f\x8b"):  # RFC 1952, section 2.3.1
        raise InvalidData(f"{name}: not a gzip file, though its name ends in .gz: unpack it, or give it another name")
    try:
        return gzip.decompress(data)
    except EOFError:
        raise InvalidData(f"{name}: a gzip file that was cut off: fetch it again") from None
    except (OSError, zlib.error) as error:
        raise InvalidData(f"{name}: a damaged gzip file ({error}): fetch it again") from None
