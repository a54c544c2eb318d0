"""Everything a run has proven, tried and refused, in one SQLite file that can be wound back to any step.

A run that was killed resumes bit-exactly: it loads a checkpoint of step s and calls `Archive.rewind(s)`. That works
because the tables only ever grow at the end: rows carry the step and never a clock time, steps never go down, and row
ids count from 1 without gaps, so cutting the tail off gives back the very contents of step s. For the same reason an
evicted task stays in the file: eviction only moves the lower end of what is sampled.

Readers may open the file while a run writes it (WAL). There is one writer; a second one gets an `ArchiveError`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, get_args

from selfplay_gym import archive_draws, programs, rewards
from selfplay_gym.archive_draws import Spot
from selfplay_gym.archive_file import REWIND, ROW_ORDER, SCHEMA_VERSION, ArchiveError, ArchiveFile, utf8
from selfplay_gym.errors import InvalidConfig, InvalidData, UnknownId
from selfplay_gym.types import Task

__all__ = [
    "PLAYS_COUNTED",
    "REJECTED_TEXT_BYTES",
    "SCHEMA_VERSION",
    "Archive",
    "ArchiveError",
    "Evict",
    "How",
    "Statistics",
    "StoredRejection",
    "StoredTask",
]

How = Literal["uniform", "recency", "learnability", "half_solved", "newest"]
Evict = Literal["oldest", "newest"]
HALF_SOLVED_WINDOW = 512
PLAYS_COUNTED = 64
"""Most records of a task that `learnability` counts, so that no weight is far below the others."""
REJECTED_TEXT_BYTES = 20_000
_DIGITS = 16  # of a shape or identity: the chance that any two of a million programs agree in these alone is 3e-8

# A text may hold a lone surrogate (JSON allows "\ud800"): see `utf8`.
_ADD_TASK = """INSERT INTO tasks
    (step, family, position, program, message, behaviour, key, shape, shape_position, identity)
    VALUES (?, ?, ?, ?, CAST(? AS TEXT), ?, ?, ?, ?, ?)"""


@dataclass(frozen=True, slots=True)
class StoredTask:
    """A task with its place in the archive.

    Attributes:
        id: Row id; counts from 1 in order of creation, over all families.
        task: The task itself.
        step: When it was added.
        attempts: How many answers the latest record counted; 0 before the first record.
        solved: How many of those were right.
    """

    id: int
    task: Task
    step: int
    attempts: int
    solved: int

    @property
    def solve_rate(self) -> float | None:
        """Share of the latest attempts that passed; None before the first."""
        return self.solved / self.attempts if self.attempts else None


@dataclass(frozen=True, slots=True)
class StoredRejection:
    """A refused proposal, for people to read.

    Attributes:
        check: What refused it.
        step: When.
        family: What it was proposed for.
        detail: What the check said.
        text: The completion, cut to 20 kB as the detail is.
    """

    check: str
    step: int
    family: str
    detail: str
    text: str


@dataclass(frozen=True, slots=True)
class Statistics:
    """What an archive holds, for reports.

    Attributes:
        tasks: Every task ever added, evicted ones included.
        evicted: How many of those are no longer sampled.
        programs: Distinct program texts.
        attempts: Answers judged, over all records.
        solved: Right answers among them.
        rejections: Refused proposals by the check that refused them.
    """

    tasks: int
    evicted: int
    programs: int
    attempts: int
    solved: int
    rejections: dict[str, int] = field(default_factory=dict)


class Archive:
    """The tasks of one run and their history, in the SQLite file ``path``.

    Every method raises `ArchiveError` when the disk is full or the file locked, and `InvalidData` when the file proves
    damaged; whatever it was writing is then rolled back.

    Args:
        path: The file, created where there is none, or ``":memory:"``.
        capacity: Most live tasks a family. None keeps all.
        evict: Which tasks go beyond it: the ``oldest``, or the ``newest``, so that nothing is drawn any more that came
            after the archive was full.
        busy_seconds: How long to wait for another process that writes.

    Raises:
        InvalidConfig: ``capacity`` is below 1, or ``evict`` unknown.
        InvalidData: The file is no archive, or is truncated, or was written by a newer version. It is left as it is.
        ArchiveError: The file cannot be opened.
    """

    def __init__(
        self, path: str | Path, *, capacity: int | None = None, evict: Evict = "oldest", busy_seconds: float = 5.0
    ) -> None:
        if capacity is not None and capacity < 1:
            raise InvalidConfig(f"archive capacity must be at least 1 task a family or None, got {capacity}")
        if evict not in get_args(Evict):
            raise InvalidConfig(f"tasks to evict must be one of {', '.join(get_args(Evict))}, got {evict!r}")
        self.capacity, self.evict = capacity, evict
        self._file = ArchiveFile(str(path), "write", busy_seconds)

    @classmethod
    def read(cls, path: str | Path, *, busy_seconds: float = 5.0) -> Self:
        """Open an existing archive for reading only, also while a run writes it.

        Raises:
            InvalidData: There is no file, or it is no archive that this version reads.
            ArchiveError: The file cannot be opened.
        """
        archive = cls.__new__(cls)
        archive.capacity, archive.evict = None, "oldest"
        archive._file = ArchiveFile(str(path), "read", busy_seconds)
        return archive

    def close(self) -> None:
        """Close the file; an open transaction is rolled back. Safe to call twice."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- writing ------------------------------------------------------------------------------------------------------

    def transaction(self) -> AbstractContextManager[None]:
        """Commit everything inside at once, or, if an exception leaves the block, nothing of it.

        Blocks nest: an inner block that fails undoes its own part only.
        """
        return self._file.transaction()

    def add_task(self, task: Task, step: int, references: Sequence[int] = ()) -> int:
        """Store a proven task and return its id; evict one of its family if that is over capacity.

        Args:
            task: What to store. The archive does not look for duplicates; see `has_program`.
            step: The training step, never below the latest one recorded.
            references: Ids of the tasks that the proposer was shown.

        Raises:
            InvalidData: ``step`` goes back, a reference is unknown, or inputs and outputs differ in number.
        """
        with self.transaction():
            self._check_step(step)
            position = self._last_position(task.family) + 1
            task_id = self._insert_task(task, step, position)
            triplets = ((task_id, place, *map(utf8, triplet)) for place, triplet in enumerate(_triplets(task)))
            self._file.add("INSERT INTO triplets VALUES (?, ?, CAST(? AS TEXT), CAST(? AS TEXT))", triplets)
            shown = ((task_id, place, reference) for place, reference in enumerate(references))
            self._file.add("INSERT INTO lineage VALUES (?, ?, ?)", shown)
            self._evict(task.family, step, position)
        return task_id

    def _insert_task(self, task: Task, step: int, position: int) -> int:
        program = self._program_id(task.program)
        values = (step, task.family, position, program, utf8(task.message), task.behaviour, task.key)
        shape = _told(programs.shape, task.program)
        identity = _told(programs.identity, task.program) if len(task.inputs) > 1 else None
        self._file.rows(_ADD_TASK, *values, shape, self._last_of_shape(shape) + 1, identity)
        return int(self._file.value("SELECT last_insert_rowid()"))

    def _program_id(self, program: str) -> int:
        name = _hash(program)
        self._file.rows("INSERT OR IGNORE INTO programs (hash, text) VALUES (?, CAST(? AS TEXT))", name, utf8(program))
        return int(self._file.value("SELECT id FROM programs WHERE hash = ?", name))

    def _evict(self, family: str, step: int, last: int) -> None:
        for position in self._over(family, last):
            self._file.rows(
                """INSERT INTO evictions SELECT id, ?, family, position, 'capacity' FROM tasks
                WHERE family = ? AND position = ?""",
                *(step, family, position),
            )

    def _over(self, family: str, last: int) -> Sequence[int]:
        """Return the positions that have to go after a task of the family was added as the last."""
        live = self._live_positions(family, last)
        evicted: Evict | None = "newest" if last not in live else "oldest" if live.start > 1 else None
        over: Sequence[int] = [last] if evicted == "newest" else []
        if self.capacity is not None:
            over = live[: -self.capacity] if self.evict == "oldest" else [*live[self.capacity :], *over]
        if evicted not in (None, self.evict) and (over or evicted == "newest"):
            raise InvalidData(
                f"{self._file.path}: has evicted the {evicted} {family} tasks and cannot evict the {self.evict}; "
                f"open it with evict={evicted!r}"
            )
        return over

    def record_attempts(self, step: int, attempts: Sequence[tuple[int, int, int]]) -> None:
        """Store how often tasks were tried and solved; the newest record is what `StoredTask` shows.

        Args:
            step: The training step, never below the latest one recorded.
            attempts: ``(task id, answers judged, right answers)``. A task without a judged answer is
                left out: that says nothing about it.

        Raises:
            InvalidData: ``step`` goes back, a task is unknown, or more answers are right than were judged.
        """
        with self.transaction():
            self._check_step(step)
            for task_id, tried, solved in attempts:
                if not 0 <= solved <= tried:
                    raise InvalidData(f"task {task_id}: solved must be between 0 and {tried} attempts, got {solved}")
                if tried:
                    self._record(step, task_id, tried, solved)

    def _record(self, step: int, task_id: int, tried: int, solved: int) -> None:
        values = (step, task_id, tried, solved)
        self._file.rows("INSERT INTO attempts (step, task, attempts, solved) VALUES (?, ?, ?, ?)", *values)
        self._file.rows("UPDATE tasks SET attempts = ?, solved = ? WHERE id = ?", tried, solved, task_id)

    def record_rejection(self, step: int, family: str, check: str, detail: str, text: str) -> None:
        """Store a refused proposal for people to read; ``detail`` and ``text`` are cut to 20 kB each.

        Raises:
            InvalidData: ``step`` is below the latest one recorded.
        """
        with self.transaction():
            self._check_step(step)
            self._file.rows(
                "INSERT INTO rejections (step, family, check_name, detail, text) VALUES (?, ?, ?, ?, ?)",
                *(step, family, check, _readable(detail), _readable(text)),
            )

    def rewind(self, step: int) -> None:
        """Forget everything recorded after ``step``: contents and `fingerprint` are again those of its end.

        Takes time in proportion to the whole archive.
        """
        with self.transaction():
            for statement in REWIND:
                self._file.run(statement, {"step": step})

    def _check_step(self, step: int) -> None:
        last = self.last_step
        if last is not None and step < last:
            raise InvalidData(f"step must be at least {last}, the latest one recorded, got {step}; rewind first")

    # -- sampling -----------------------------------------------------------------------------------------------------

    def sample(
        self,
        families: str | Sequence[str],
        n: int,
        rng: random.Random,
        how: How = "uniform",
        *,
        before: int | None = None,
    ) -> list[StoredTask]:
        """Draw up to ``n`` distinct live tasks of one or several families; fewer only where fewer fit.

        ``uniform``: each live task alike. ``recency``: as many of each family as uniform would draw, but within a
        family the k-th oldest live task has weight k. ``learnability``: with the weight `rewards.curriculum_weight` of
        its latest solve rate and the number of its records, of which 64 at most count. ``half_solved``: alike among the
        newest 512 whose latest solve rate is strictly between 0 and 1. ``newest``: the newest, newest first, without
        chance. With ``before`` only tasks that were added before that step are drawn.

        The same contents, arguments and state of ``rng`` give the same tasks. The cost does not grow with the table
        (beyond the depth of its B-trees): the live tasks of a family are one range of positions whose two ends are read
        from an index, uniform and recency draw integers in that range and look each up, learnability refuses some of
        them by their weight, half_solved and newest read a bounded stretch from the upper end of an index.

        Raises:
            InvalidConfig: ``how`` is unknown or ``n`` negative.
        """
        if how not in get_args(How):
            raise InvalidConfig(f"sampling must be one of {', '.join(get_args(How))}, got {how!r}")
        if n < 0:
            raise InvalidConfig(f"the number of tasks to sample must be at least 0, got {n}")
        with self._file.snapshot():
            live = self._live(families)
            if before is not None:
                live = {name: self._added_before(before, name, positions) for name, positions in live.items()}
            if how == "newest":
                ids = self._newest(live, n)
            elif how == "half_solved":
                open_ids = self._half_solved(live)
                ids = rng.sample(open_ids, min(n, len(open_ids)))
            else:
                ids = [self._id_at(*spot) for spot in self._draw(how, live, n, rng)]
            return [self.task(task_id) for task_id in ids]

    def _draw(
        self, how: Literal["uniform", "recency", "learnability"], live: Mapping[str, range], n: int, rng: random.Random
    ) -> list[Spot]:
        if how == "uniform":
            return archive_draws.uniform(live, n, rng)
        if how == "recency":
            return archive_draws.recency(live, n, rng)
        # Weights differ by a factor of 17 at most, so that one draw looks at 22 tasks on average at worst.
        return archive_draws.by_weight(live, n, rng, self._weight, most=rewards.curriculum_weight(0.5, 0))

    def _live(self, families: str | Sequence[str]) -> dict[str, range]:
        """Return the positions of each family's live tasks."""
        names = (families,) if isinstance(families, str) else families
        return {name: self._live_positions(name, self._last_position(name)) for name in names}

    def _live_positions(self, family: str, last: int) -> range:
        first_evicted = self._file.value("SELECT min(position) FROM evictions WHERE family = ?", family)
        if first_evicted is None:
            return range(1, last + 1)
        if first_evicted > 1:  # then the newest are those that go, and all after them with them
            return range(1, first_evicted)
        return range(self._file.value("SELECT max(position) FROM evictions WHERE family = ?", family) + 1, last + 1)

    def _last_position(self, family: str) -> int:
        return self._file.value("SELECT max(position) FROM tasks WHERE family = ?", family) or 0

    def _added_before(self, step: int, family: str, positions: range) -> range:
        """Leave out the tasks of the latest steps, one by one from the upper end: those of one step are few."""
        query = "SELECT step FROM tasks WHERE family = ? AND position = ?"
        while positions and self._file.value(query, family, positions[-1]) >= step:
            positions = positions[:-1]
        return positions

    def _id_at(self, family: str, position: int) -> int:
        return int(self._file.value("SELECT id FROM tasks WHERE family = ? AND position = ?", family, position))

    def _newest(self, live: Mapping[str, range], n: int) -> list[int]:
        spots = [(family, position) for family, positions in live.items() for position in positions[::-1][:n]]
        return sorted((self._id_at(*spot) for spot in spots), reverse=True)[:n]

    def _weight(self, spot: Spot) -> float:
        query = "SELECT id, attempts, solved FROM tasks WHERE family = ? AND position = ?"
        ((task_id, attempts, solved),) = self._file.rows(query, *spot)
        # Up to a limit, as an old task may have a record of every step.
        plays = len(self._file.rows("SELECT 1 FROM attempts WHERE task = ? LIMIT ?", task_id, PLAYS_COUNTED))
        return rewards.curriculum_weight(solved / attempts if attempts else None, plays)

    def _half_solved(self, live: Mapping[str, range]) -> list[int]:
        # INDEXED BY, because without statistics SQLite may walk `tasks_position` and look at every task.
        query = """SELECT id FROM tasks INDEXED BY tasks_half_solved WHERE family = ? AND position >= ?
            AND position < ? AND solved > 0 AND solved < attempts ORDER BY position DESC LIMIT ?"""
        ids = [
            int(task_id)
            for family, positions in live.items()
            for (task_id,) in self._file.rows(query, family, positions.start, positions.stop, HALF_SOLVED_WINDOW)
        ]
        return sorted(ids, reverse=True)[:HALF_SOLVED_WINDOW]

    # -- looking up ---------------------------------------------------------------------------------------------------

    def task(self, task_id: int) -> StoredTask:
        """Return the task with that id, evicted or not.

        Raises:
            UnknownId: There is none.
        """
        rows = self._file.rows(
            """SELECT t.family, p.text, t.message, t.behaviour, t.step, t.attempts, t.solved
            FROM tasks t JOIN programs p ON p.id = t.program WHERE t.id = ?""",
            task_id,
        )
        if not rows:
            raise UnknownId(f"{self._file.path} holds no task {task_id}")
        family, program, message, behaviour, *numbers = rows[0]
        triplets = self._file.rows("SELECT input, output FROM triplets WHERE task = ? ORDER BY place", task_id)
        inputs, outputs = (tuple(row[part] for row in triplets) for part in (0, 1))
        return StoredTask(task_id, Task(family, program, inputs, outputs, message, behaviour), *numbers)

    def tasks(
        self, family: str | None = None, newest: int | None = None, *, evicted: bool = False
    ) -> Iterator[StoredTask]:
        """Yield live tasks, oldest first: of one family or of all, perhaps only the ``newest`` so many.

        Which tasks is settled at the first one; each is read when its turn comes. ``evicted`` yields those as well.
        """
        query = """SELECT id FROM tasks WHERE (:family IS NULL OR family = :family)
            AND (:evicted OR NOT EXISTS (SELECT 1 FROM evictions e WHERE e.task = tasks.id))
            ORDER BY id DESC LIMIT :newest"""
        rows = self._file.run(query, {"family": family, "evicted": evicted, "newest": -1 if newest is None else newest})
        for (task_id,) in reversed(rows):
            yield self.task(task_id)

    def programs(self) -> Iterator[tuple[int, str]]:
        """Yield the id and text of every program, in order of first use; one is held at a time."""
        yield from self._file.each("SELECT id, text FROM programs ORDER BY id")

    def messages(self) -> Iterator[tuple[int, str]]:
        """Yield the id and message of every task that has one, oldest first; one is held at a time."""
        yield from self._file.each("SELECT id, message FROM tasks WHERE message != '' ORDER BY id")

    def made_of(self, program_id: int, most: int) -> list[int]:
        """Return the ids of the first tasks, of any family, that were made of a program."""
        rows = self._file.rows("SELECT id FROM tasks WHERE program = ? ORDER BY id LIMIT ?", program_id, most)
        return [int(task_id) for (task_id,) in rows]

    def behaving(self, behaviour: str, most: int) -> list[int]:
        """Return the ids of the first tasks, of any family, that were seen to behave so."""
        rows = self._file.rows("SELECT id FROM tasks WHERE behaviour = ? ORDER BY id LIMIT ?", behaviour, most)
        return [int(task_id) for (task_id,) in rows]

    def has_program(self, program: str, family: str) -> bool:
        """Return whether a task of ``family`` was ever made of exactly this text, evicted ones included."""
        query = (
            """SELECT 1 FROM tasks WHERE program = (SELECT id FROM programs WHERE hash = ?) AND family = ? LIMIT 1"""
        )
        return bool(self._file.rows(query, _hash(program), family))

    def has_behaviour(self, behaviour: str, family: str) -> bool:
        """Return whether a task of ``family`` was ever seen to behave so; never for an unmeasured (empty) behaviour."""
        query = "SELECT 1 FROM tasks WHERE behaviour = ? AND family = ? LIMIT 1"
        return bool(behaviour) and bool(self._file.rows(query, behaviour, family))

    def inputs_of(self, program: str, family: str) -> list[tuple[str, ...]]:
        """Return the inputs of each task of ``family`` with several that was ever made of this program, oldest first.

        Programs are the same that have one `programs.identity`. Evicted tasks are included.
        """
        # INDEXED BY, because without statistics SQLite may walk all tasks of the family.
        query = """SELECT t.id, r.input FROM tasks t INDEXED BY tasks_identity JOIN triplets r ON r.task = t.id
            WHERE t.identity = ? AND t.family = ? ORDER BY t.id, r.place"""
        rows = self._file.rows(query, _told(programs.identity, program), family)
        return [tuple(text for _, text in of_task) for _, of_task in groupby(rows, key=itemgetter(0))]

    def count_alike(self, program: str) -> int:
        """Return how many tasks, of any family, were ever made of a program of the same `programs.shape`."""
        return self._last_of_shape(_told(programs.shape, program))

    def _last_of_shape(self, shape: str) -> int:
        return self._file.value("SELECT max(shape_position) FROM tasks WHERE shape = ?", shape) or 0

    def has_key(self, key: str) -> bool:
        """Return whether exactly this task (`Task.key`) was ever added."""
        return bool(self._file.rows("SELECT 1 FROM tasks WHERE key = ? LIMIT 1", key))

    def lineage(self, task_id: int) -> list[int]:
        """Return the ids of all ancestors, oldest first: the references of the proposal, theirs, and so on."""
        query = """WITH RECURSIVE ancestors (id) AS (
                SELECT reference FROM lineage WHERE task = ?
                UNION SELECT l.reference FROM ancestors a JOIN lineage l ON l.task = a.id)
            SELECT id FROM ancestors ORDER BY id"""
        return [int(ancestor) for (ancestor,) in self._file.rows(query, task_id)]

    def references(self, task_id: int) -> list[StoredTask]:
        """Return the tasks that the proposer of a task was shown, in that order."""
        rows = self._file.rows("SELECT reference FROM lineage WHERE task = ? ORDER BY place", task_id)
        return [self.task(reference) for (reference,) in rows]

    def hardest(self, count: int, *, ever_solved: bool) -> list[StoredTask]:
        """Return tasks of the lowest solve rate above 0, or else the most tried of those that were never solved.

        Attempts and solved ones are those of all records together, not of the latest. Reads whole tables: for reports.
        """
        hard = (
            "sum(solved) > 0 ORDER BY 1.0 * sum(solved) / sum(attempts)," if ever_solved else "sum(solved) = 0 ORDER BY"
        )
        rows = self._file.rows(
            f"""SELECT task, sum(attempts), sum(solved) FROM attempts GROUP BY task HAVING {hard} sum(attempts) DESC,
            task DESC LIMIT ?""",
            count,
        )
        return [replace(self.task(task_id), attempts=tried, solved=solved) for task_id, tried, solved in rows]

    def rejection_samples(self) -> list[StoredRejection]:
        """Return the newest rejection of each check, by its name. Reads a whole table: for reports."""
        rows = self._file.rows(
            """SELECT check_name, step, family, detail, text FROM rejections
            WHERE id IN (SELECT max(id) FROM rejections GROUP BY check_name) ORDER BY check_name"""
        )
        return [StoredRejection(*row) for row in rows]

    @property
    def last_step(self) -> int | None:
        """The latest step with a task, a rejection or attempts; None when nothing was recorded."""
        steps = [
            self._file.value(f"SELECT step FROM {table} WHERE id = (SELECT max(id) FROM {table})")
            for table in ("tasks", "attempts", "rejections")
        ]
        return max((int(step) for step in steps if step is not None), default=None)

    def counts(self) -> dict[str, int]:
        """Return how many live tasks each family has, by name of family."""
        with self._file.snapshot():
            return {family: len(positions) for family, positions in self._live(self._families()).items()}

    def _families(self) -> list[str]:
        """Return the families in order, stepping through the index: SELECT DISTINCT would read all of it."""
        names: list[str] = []
        while name := self._file.value("SELECT min(family) FROM tasks WHERE family > ?", names[-1] if names else ""):
            names.append(name)
        return names

    def statistics(self) -> Statistics:
        """Return a summary for reports. Reads whole tables: not for every step."""
        with self._file.snapshot():
            rejections = self._file.rows(
                "SELECT check_name, count(*) FROM rejections GROUP BY check_name ORDER BY check_name"
            )
            attempts, solved = self._file.rows("SELECT ifnull(sum(attempts), 0), ifnull(sum(solved), 0) FROM attempts")[
                0
            ]
            tasks, evicted, texts = (
                self._file.value(f"SELECT count(*) FROM {table}") for table in ("tasks", "evictions", "programs")
            )
        return Statistics(tasks, evicted, texts, attempts, solved, dict(rejections))

    def fingerprint(self) -> str:
        """Return a hash of all contents: equal for two runs that recorded the same, on any machine and Python."""
        digest = hashlib.blake2b(digest_size=16)
        with self._file.snapshot():
            for table, order in ROW_ORDER.items():
                digest.update(table.encode())
                for row in self._file.each(f"SELECT * FROM {table} ORDER BY {order}"):
                    # ascii, and not repr, which escapes by the Unicode tables of the Python at hand
                    digest.update(ascii(row).encode())
        return digest.hexdigest()


def _triplets(task: Task) -> list[tuple[str, str]]:
    if len(task.inputs) != len(task.outputs):
        raise InvalidData(f"a task needs one output an input, got {len(task.inputs)} and {len(task.outputs)}")
    return list(zip(task.inputs, task.outputs, strict=True))


def _readable(text: str) -> str:
    """Cut to the limit in UTF-8 bytes, at a character; lone surrogates are shown as escapes."""
    return text.encode("utf-8", "backslashreplace")[:REJECTED_TEXT_BYTES].decode("utf-8", "ignore")


def _hash(text: str) -> str:
    return hashlib.blake2b(utf8(text), digest_size=16).hexdigest()


def _told(tell: Callable[[str], str], program: str) -> str:
    """Return a hash of `programs`; a text that is no program has one of its own, and so is like itself alone."""
    try:
        return tell(program)[:_DIGITS]
    except programs.NotAProgram:
        return _hash(program)[:_DIGITS]
