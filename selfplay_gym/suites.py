"""Held-out sets: rows of a data file, seen as tasks of solve-only families.

A registered name stands for a loader that turns a `Source` into one or more `Suite`: one list of problems with one
metric. Data comes from a local folder and is trusted, the answers to it are not. A row whose own reference fails here
stays in the suite as a problem without a verdict: it is shown, never silently dropped or counted as wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from selfplay_gym.errors import InvalidConfig, MissingData, UnknownId
from selfplay_gym.protocols import Executor, TaskFamily
from selfplay_gym.registry import Registry, unknown
from selfplay_gym.tables import DATA_VARIABLE as DATA_VARIABLE
from selfplay_gym.tables import NO_FOLDER
from selfplay_gym.tables import Row as Row
from selfplay_gym.tables import Table as Table
from selfplay_gym.tables import open_table as open_table
from selfplay_gym.tables import read as read
from selfplay_gym.tables import row_of as row_of
from selfplay_gym.tables import rows_of as rows_of
from selfplay_gym.tables import table as table
from selfplay_gym.types import Limits, Task

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
        "p3": "selfplay_gym.tasks.p3:load",
        "p3-docstring": "selfplay_gym.tasks.p3:load_with_docstring",
        "livecodebench": "selfplay_gym.tasks.livecodebench:load",
        "ifeval": "selfplay_gym.tasks.ifeval:load",
        "humaneval": "selfplay_gym.tasks.humaneval:load",
        "humaneval+": "selfplay_gym.tasks.humaneval:load_plus",
        "mbpp": "selfplay_gym.tasks.mbpp:load",
        "mbpp+": "selfplay_gym.tasks.mbpp:load_plus",
        "mbpp_sanitized": "selfplay_gym.tasks.mbpp:load_sanitized",
        "leetcode": "selfplay_gym.tasks.leetcode:load",
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
        most: Problems of a suite that will be asked at most, its first ones: a loader may leave the others out.
    """

    executor: Executor
    data_dir: Path | None = None
    style: str = "azr"
    most: int | None = None


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
        limits: Of one run of an answer, where this row needs others than the suite's.
    """

    id: str
    task: Task | None
    answer: str = ""
    failure: str = ""
    group: str = ""
    limits: Limits | None = None


Wording = Callable[[TaskFamily, Task], str]
"""Writes the prompt of a task."""


def in_own_words(family: TaskFamily, task: Task) -> str:
    """Return the prompt that the family itself writes."""
    return family.solve_prompt(task)


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
        wording: How the problems are put, where an evaluation's protocol says it.
    """

    name: str
    families: Mapping[str, TaskFamily]
    problems: tuple[Problem, ...]
    data_sha256: str
    limits: Limits = field(default_factory=Limits)
    metric: str = "accuracy"
    note: str = ""
    wording: Wording = in_own_words

    def first(self, limit: int | None) -> Suite:
        """Return the suite with its first ``limit`` problems only; all of them for None."""
        if limit is not None and limit < 1:
            raise InvalidConfig(f"limit must be at least 1, got {limit}")
        return replace(self, problems=self.problems[:limit])

    def prompts(self) -> dict[str, str]:
        """Return the solver's prompt by problem id, for every problem that has a task."""
        asked = [(problem.id, problem.task) for problem in self.problems if problem.task is not None]
        return {key: self.wording(self.families[task.family], task) for key, task in asked}


Loader = Callable[[Source], list[Suite]]


# -- groups and loading ------------------------------------------------------------------------------------------------

PARTS = frozenset(
    {"nano-easy", "nano-harder", "cruxeval-i", "cruxeval-o", "hmmt24", "hmmt25", "p3-docstring"}
    | {f"{name}_io-{use}" for name in ("humaneval", "mbpp") for use in ("induction", "deduction", "abduction")}
)
"""Suites that come with another name too, or ask its problems again, and so are none of their own in `all`."""

GROUPS = {
    # The sets of Absolute Zero's results (arXiv:2505.03335, table 1).
    "azr-paper": (
        "humaneval+", "mbpp+", "livecodebench", "aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench",
    ),
    # Some of each kind, for a first look: intervals are wide.
    "quick": (
        "nano-easy:30", "nano-harder:30", "cruxeval:20", "humaneval+:20", "mbpp+:20", "p3:20", "list_functions:20",
        "gsm8k:20", "math500:20",
    ),
}  # fmt: skip


def group_names() -> list[str]:
    """Return the names of the groups."""
    return [*GROUPS, "all"]


def members(group: str) -> list[str]:
    """Return what a group stands for, of the suites that there are."""
    there = SUITES.names()
    if group == "all":
        return [name for name in there if name not in PARTS]
    return [member for member in GROUPS[group] if parted(member)[0] in there]


def expanded(names: Iterable[str]) -> list[str]:
    """Return the suites behind names of suites and groups, in order and each once."""
    whole = [member for name in names for member in (members(name) if name in group_names() else [name])]
    return list(dict.fromkeys(whole))


def parted(name: str) -> tuple[str, int | None]:
    """Return a suite's name and how many of its problems are meant, all for None.

    >>> parted("gsm8k:20"), parted("gsm8k")
    (('gsm8k', 20), ('gsm8k', None))

    Raises:
        InvalidConfig: What follows the colon is no such number.
    """
    suite, colon, stated = name.partition(":")
    if colon and not (stated.isdecimal() and int(stated)):
        raise InvalidConfig(f"expected a suite as NAME or NAME:PROBLEMS, got {name!r}")
    return suite, int(stated) if colon else None


@dataclass(frozen=True)
class Loaded:
    """What loading several names gave.

    Attributes:
        suites: By the name that they were asked for under.
        missing: Why there is no data for the others, by name.
    """

    suites: Mapping[str, list[Suite]]
    missing: Mapping[str, str]

    def present(self, skip_missing: bool = False) -> Loaded:
        """Return this, unless something is missing that is not to be skipped, or everything is.

        Raises:
            MissingData: With a part for each name that there is no data for.
        """
        if not self.missing or (skip_missing and self.suites):
            return self
        if len(self.missing) == 1 and not self.suites:
            raise MissingData(*self.missing.values())
        # What all have in common is said once.
        parts = [f"{name}: {why.removeprefix(NO_FOLDER).lstrip('; ')}" for name, why in self.missing.items()]
        if any(why.startswith(NO_FOLDER) for why in self.missing.values()):
            parts.insert(0, NO_FOLDER)
        told = "; ".join(parts)
        total = len(self.missing) + len(self.suites)
        hint = " (--skip-missing goes on without them)" if self.suites else ""
        raise MissingData(f"no data for {len(self.missing)} of {total} suites{hint}: {told}")

    def notes(self) -> list[str]:
        """Say of each name without data that it is left out."""
        return [f"{name} is left out: {why}" for name, why in self.missing.items()]


def loaders_of(names: Sequence[str]) -> dict[str, Loader]:
    """Return what loads the suites behind names of suites and groups, by name; nothing is loaded.

    Raises:
        UnknownId: No suite of that name; the message gives the nearest ones.
        InvalidConfig: There is no name.
    """
    if not names:
        raise InvalidConfig(f"no suite named; there are {', '.join(SUITES.names())}")
    return {name: _loader(parted(name)[0]) for name in expanded(names)}


def load_named(names: Sequence[str], source: Source, style_of: Callable[[str], str] | None = None) -> Loaded:
    """Load suites and groups, by the name of each suite, and note which have no data.

    Args:
        names: Of suites, ``NAME:PROBLEMS`` for the first so many, and of groups.
        source: What loaders are handed.
        style_of: Prompt style by the name that a suite is asked for under; by default the source's.

    Raises:
        UnknownId: No suite of that name; the message gives the nearest ones.
        InvalidData: A file is broken.
    """
    loaders = loaders_of(names)
    found: dict[str, list[Suite]] = {}
    missing: dict[str, str] = {}
    seen: set[str] = set()
    for name, loader in loaders.items():
        styled = source if style_of is None else replace(source, style=style_of(name))
        own = parted(name)[1]
        most = min((number for number in (own, source.most) if number is not None), default=None)
        try:
            loaded = [suite.first(own) for suite in loader(replace(styled, most=most))]
        except MissingData as error:
            missing[name] = str(error)
            continue
        found[name] = [suite for suite in loaded if suite.name not in seen]
        seen.update(suite.name for suite in loaded)
    return Loaded(found, missing)


def _loader(name: str) -> Loader:
    if name in group_names():
        raise InvalidConfig(f"{name} is a group and takes no number of problems: --limit is for each of its suites")
    if name not in SUITES.paths():
        raise UnknownId(unknown("suite", name, [*SUITES.names(), *group_names()]))
    return cast(Loader, SUITES.load(name))


def load(names: Sequence[str], source: Source) -> list[Suite]:
    """Return the suites behind the names of suites and groups, in order and each once.

    Raises:
        UnknownId: No suite of that name; the message gives the nearest ones.
        MissingData: For some there is no data.
        InvalidData: A file is broken.
    """
    return [suite for suites in load_named(names, source).present().suites.values() for suite in suites]
