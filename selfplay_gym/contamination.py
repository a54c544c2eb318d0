"""What a run's archive and held-out sets have in common: programs, what programs do, and runs of words.

Three signs, from the surest to the weakest:

- ``program``: a stored program is a problem's (`programs.identity`, which ignores names, comments and layout).
- ``behaviour``: a stored program, however it is written, does what a problem's program does: on the gate's probes, by
  the hash that the gate stored, and on the problem's own inputs, where it is run for that.
- ``ngram``: a stored program or message shares a run of `NGRAM` words with a problem, as GPT-3's authors looked for
  overlap (arXiv:2005.14165, appendix C: lower case, punctuation left out, 13 words); of shorter ones it is not told.

The gate refuses programs of the hold-outs that a run is measured on, by the first sign alone, while it plays. This
looks afterwards, at any suite and for all three. The suites are held in memory; the archive is read row by row.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from selfplay_gym import page, programs, suites
from selfplay_gym.archive import Archive
from selfplay_gym.errors import InvalidConfig
from selfplay_gym.evaluating import progress
from selfplay_gym.gate import behaviours
from selfplay_gym.grading import CHUNK, Progress, run_in_chunks
from selfplay_gym.output import inert
from selfplay_gym.protocols import Executor
from selfplay_gym.results import versions_of
from selfplay_gym.suites import Problem, Source, Suite
from selfplay_gym.types import Job, Task

NGRAM = 13
"""Words."""

SIGNS = ("program", "behaviour", "ngram")
TASKS_NAMED = 5
"""Tasks that are named for each sign of a problem: the first of them."""
TASKS_TRIED = 32
"""Tasks of the behaviour of a problem that are run on its own inputs: the first of them."""
IDS_SHOWN = 3
PROGRESS_EVERY = 512

_WORD = re.compile(r"\w+")
_ALIAS = re.compile(r"\n+f = \w+\s*$")


@dataclass
class Touched:
    """A problem of which the archive knows something.

    Attributes:
        id: The problem's.
        tasks: By sign, the first tasks of the archive that touch it.
        ngrams: Share of its n-grams that stand in the archive.
        example: One of them.
    """

    id: str
    tasks: dict[str, list[int]] = field(default_factory=dict)
    ngrams: float = 0.0
    example: str = ""

    def add(self, sign: str, tasks: Iterable[int]) -> None:
        """Name tasks that show a sign."""
        named = self.tasks.setdefault(sign, [])
        named += [task for task in tasks if task not in named][: TASKS_NAMED - len(named)]


@dataclass(frozen=True)
class Overlap:
    """What an archive has in common with a suite.

    Attributes:
        suite: Its name.
        data_sha256: Of its data file.
        problems: How many it has.
        told: By sign, of how many problems it can be told at all.
        touched: The problems that show any sign, in their order.
    """

    suite: str
    data_sha256: str
    problems: int
    told: Mapping[str, int]
    touched: tuple[Touched, ...]

    def count(self, sign: str) -> int:
        """Return how many problems show a sign."""
        return sum(sign in problem.tasks for problem in self.touched)


@dataclass(frozen=True)
class Contamination:
    """What an archive has in common with suites.

    Attributes:
        archive: Its path.
        programs: Distinct programs in it.
        n: Words of an n-gram.
        suites: One each.
        notes: What else a reader should know, such as suites that were left out.
    """

    archive: str
    programs: int
    n: int
    suites: tuple[Overlap, ...]
    notes: tuple[str, ...] = ()

    def table(self) -> Group:
        """Return the counts as a table for people, with the first ids below."""
        shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for number, name in enumerate(self.headings):
            shown.add_column(name, justify="right" if number else "left", overflow="fold")
        for row in self.rows():
            shown.add_row(*row)
        return Group(shown, *(Text(inert(line)) for line in self.lines()))

    @property
    def headings(self) -> tuple[str, ...]:
        """Names of the columns."""
        return ("suite", "problems", "touched", "program", "behaviour", f"{self.n}-gram")

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yield the cells of each suite."""
        for overlap in self.suites:
            signs = (f"{overlap.count(sign)}/{overlap.told[sign]}" for sign in SIGNS)
            share = len(overlap.touched) / overlap.problems if overlap.problems else 0.0
            yield overlap.suite, str(overlap.problems), f"{len(overlap.touched)} ({share:.1%})", *signs

    def lines(self) -> list[str]:
        """Return a line on the first touched problems of each suite, and the tasks that touch them."""
        told = [f"{self.programs} programs of {self.archive}; x/y: x problems show the sign, of y that can."]
        for overlap in self.suites:
            named = ", ".join(f"{problem.id} ({_named(problem)})" for problem in overlap.touched[:IDS_SHOWN])
            more = ", ..." if len(overlap.touched) > IDS_SHOWN else ""
            told += [f"{overlap.suite}: {named}{more}"] if named else []
        return told

    def as_dict(self) -> dict[str, object]:
        """Return what ``--json`` writes."""
        return {
            "command": shlex.join(sys.argv),
            "versions": versions_of("selfplay-gym"),
            **asdict(self),
            "suites": [
                {**asdict(overlap), "counts": {sign: overlap.count(sign) for sign in SIGNS}} for overlap in self.suites
            ],
        }

    def parts(self) -> list[str]:
        """Return the section of a report."""
        lines = [f"<p>{page.escape(line)}</p>" for line in (*self.lines(), *self.notes)]
        return ["<h2>Held-out problems in the archive</h2>", page.table(self.headings, self.rows()), *lines]


def _named(problem: Touched) -> str:
    tasks = sorted({task for named in problem.tasks.values() for task in named})[:TASKS_NAMED]
    return f"{', '.join(problem.tasks)}: task{'s' * (len(tasks) > 1)} {', '.join(map(str, tasks))}"


def contamination(
    run: Path,
    names: Sequence[str],
    executor: Executor,
    *,
    data_dir: Path | None = None,
    skip_missing: bool = False,
    n: int = NGRAM,
    console: Console | None = None,
) -> Contamination:
    """Look for the named suites in a run's archive, also while the run writes it.

    Args:
        run: A run folder, or an archive itself.
        names: Registered suites.
        executor: Runs the suites' programs on the gate's probes.
        data_dir: Folder of the data files.
        skip_missing: Leave suites out that there is no data for, and say so.
        n: Words of an n-gram.
        console: Where to show progress, if anywhere.

    Raises:
        InvalidConfig: ``n`` is below 1.
        UnknownId: No suite of that name.
        InvalidData: There is no archive, or it or a data file is broken.
        ExecutorError: The sandbox as a whole could not be started.
    """
    if n < 1:
        raise InvalidConfig(f"an n-gram must have at least 1 word, got {n}")
    path = run / "archive.sqlite" if run.is_dir() else run
    with Archive.read(path) as archive:
        loaded = suites.load_named(names, Source(executor, data_dir)).present(skip_missing)
        index = Index([suite for found in loaded.suites.values() for suite in found], n)
        with progress(console, "behaviour of the suites", None) as advance:
            index.look_at_behaviour(archive, executor, advance)
        total = archive.statistics().programs
        with progress(console, "programs of the archive", total) as advance:
            index.look_at_texts(archive, total, advance)
        return Contamination(str(path), total, n, tuple(index.overlaps()), tuple(loaded.notes()))


class Index:
    """Suites by what can be found of them in an archive.

    Args:
        asked: The suites.
        n: Words of an n-gram.
    """

    def __init__(self, asked: Sequence[Suite], n: int = NGRAM) -> None:
        self.suites, self.n = asked, n
        self.problems = [problem for suite in asked for problem in suite.problems]
        self._touched = [Touched(problem.id) for problem in self.problems]
        self._identities: dict[str, list[int]] = {}
        self._ngrams: dict[int, list[int]] = {}  # by hash
        self._found: list[set[int]] = [set() for _ in self.problems]
        self._signs: list[set[str]] = [set() for _ in self.problems]  # that can be told of each
        for number, problem in enumerate(self.problems):
            for program in programs_of(problem):
                self._identities.setdefault(programs.identity(program), []).append(number)
                self._signs[number].add("program")
            for ngram in set(ngrams(text_of(problem), n)):
                self._ngrams.setdefault(hash(ngram), []).append(number)
                self._signs[number].add("ngram")

    def look_at_behaviour(self, archive: Archive, executor: Executor, advance: Progress) -> None:
        """Run the suites' programs on the gate's probes, look their behaviour up, and run what has the same."""
        asked = [(n, p.task) for n, p in enumerate(self.problems) if p.task is not None and _defines_f(p.task.program)]
        for start in range(0, len(asked), CHUNK):
            part = dict(asked[start : start + CHUNK])
            hashes = dict(zip(part, behaviours(list(part.values()), executor), strict=True))
            for number in (number for number, behaviour in hashes.items() if behaviour):
                self._signs[number].add("behaviour")
            same = [(n, task) for n, found in hashes.items() if found for task in archive.behaving(found, TASKS_TRIED)]
            for (number, task), agrees in zip(same, _agree(archive, part, same, executor), strict=True):
                if agrees:
                    self._touched[number].add("behaviour", [task])
            advance(start + len(part), len(asked))

    def look_at_texts(self, archive: Archive, total: int, advance: Progress) -> None:
        """Look at every program and message of an archive."""
        for done, (program_id, text) in enumerate(archive.programs(), start=1):
            same, shared = self._identities.get(_identity(text), ()), self._shared(text)
            if same or shared:
                tasks = archive.made_of(program_id, TASKS_NAMED)
                for number in same:
                    self._touched[number].add("program", tasks)
                self._note(shared, tasks)
            if done % PROGRESS_EVERY == 0 or done == total:
                advance(done, total)
        for task_id, message in archive.messages():
            self._note(self._shared(message), [task_id])

    def _shared(self, text: str) -> list[tuple[str, ...]]:
        return [ngram for ngram in ngrams(text, self.n) if hash(ngram) in self._ngrams]

    def _note(self, shared: Iterable[tuple[str, ...]], tasks: Sequence[int]) -> None:
        for ngram in shared:
            for number in self._ngrams[hash(ngram)]:
                touched = self._touched[number]
                touched.add("ngram", tasks)
                touched.example = touched.example or " ".join(ngram)
                self._found[number].add(hash(ngram))

    def overlaps(self) -> Iterator[Overlap]:
        """Yield what was found of each suite."""
        for problem, touched, found in zip(self.problems, self._touched, self._found, strict=True):
            if found:
                touched.ngrams = len(found) / len(set(ngrams(text_of(problem), self.n)))
        start = 0
        for suite in self.suites:
            part = slice(start, start + len(suite.problems))
            start = part.stop
            told = {sign: sum(sign in signs for signs in self._signs[part]) for sign in SIGNS}
            touched_ones = tuple(touched for touched in self._touched[part] if touched.tasks)
            yield Overlap(suite.name, suite.data_sha256, len(suite.problems), told, touched_ones)


def _agree(
    archive: Archive, asked: Mapping[int, Task], pairs: Sequence[tuple[int, int]], executor: Executor
) -> list[bool]:
    """Return whether each stored task's program gives the outputs of the problem's task for its inputs."""
    stored = [archive.task(task_id).task.program for _, task_id in pairs]
    jobs = [Job(text, asked[n].inputs, policy="plain") for (n, _), text in zip(pairs, stored, strict=True)]
    ran = run_in_chunks(jobs, executor)
    return [tuple(run.value for run in runs) == asked[n].outputs for (n, _), runs in zip(pairs, ran, strict=True)]


def programs_of(problem: Problem) -> list[str]:
    """Return the programs of a problem: the one that it shows or asks for, without a line that calls it ``f`` too."""
    texts = [problem.task.program if problem.task else "", problem.answer]
    bare = [_ALIAS.sub("", text) for text in texts]
    return [text for text in dict.fromkeys([*texts, *bare]) if _is_program(text)]


def text_of(problem: Problem) -> str:
    r"""Return the words of a problem: its program, message and answer; its question where there is no program.

    >>> from selfplay_gym.types import Task
    >>> text_of(Problem("p", Task("deduction", "def f(x): return x", ("3",), ("3",)), "3")).split("\n")
    ['def f(x): return x', '', '3', '']
    """
    task = problem.task
    if task is None:
        return problem.answer
    question = "" if task.program else "\n".join(task.inputs)
    return "\n".join((task.program, task.message, "" if problem.answer == task.program else problem.answer, question))


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """Return the runs of n words, in order.

    >>> ngrams("Return x, or return X+1.", 3)
    [('return', 'x', 'or'), ('x', 'or', 'return'), ('or', 'return', 'x'), ('return', 'x', '1')]
    """
    words = _WORD.findall(text.lower())
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def _identity(text: str) -> str:
    try:
        return programs.identity(text)
    except programs.NotAProgram:
        return ""


def _is_program(text: str) -> bool:
    """Return whether a text is Python that defines a function; a number or a word would be an expression."""
    try:
        return programs.definitions(text) > 0
    except programs.NotAProgram:
        return False


def _defines_f(text: str) -> bool:
    """Return whether a text is a program that can be called as the gate calls those of the archive."""
    try:
        return bool(_ALIAS.search(text)) or programs.takes_arguments(text, "f")
    except programs.NotAProgram:
        return False
