"""The archive: what it samples, what it forgets on rewind, and what survives a kill, a full disk or a damaged file."""

from __future__ import annotations

import itertools
import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfplay_gym import programs, rewards
from selfplay_gym.archive import PLAYS_COUNTED, REJECTED_TEXT_BYTES, SCHEMA_VERSION, Archive, ArchiveError, How
from selfplay_gym.errors import InvalidConfig, InvalidData, UnknownId
from selfplay_gym.types import Task

HOWS: tuple[How, ...] = get_args(How)
FAMILIES = ("abduction", "deduction", "induction")


def make_task(number: int, family: str = "deduction", behaviour: str = "") -> Task:
    return Task(family, f"def f(x):\n    return x + {number}", ("0",), (str(number),), f"adds {number}", behaviour)


def fill(archive: Archive, n: int, family: str = "deduction") -> list[int]:
    with archive.transaction():
        return [archive.add_task(make_task(number, family), number) for number in range(n)]


@pytest.fixture
def archive() -> Iterator[Archive]:
    with Archive(":memory:") as opened:
        yield opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "archive.sqlite"


# -- storing and looking up -------------------------------------------------------------------------------------------

any_text = st.text(st.characters(codec=None), max_size=8)  # lone surrogates and NUL included


@given(any_text, st.lists(st.tuples(any_text, any_text), max_size=3), any_text)
@settings(max_examples=50, deadline=None)
def test_any_text_comes_back_as_it_was(program: str, triplets: list[tuple[str, str]], message: str) -> None:
    inputs, outputs = (tuple(triplet[part] for triplet in triplets) for part in (0, 1))
    task = Task("induction", program, inputs, outputs, message, "behaves")
    with Archive(":memory:") as archive:
        stored = archive.task(archive.add_task(task, 3))
        assert archive.has_program(program, "induction")
    assert stored.task == task
    assert (stored.step, stored.attempts, stored.solved, stored.solve_rate) == (3, 0, 0, None)


def test_the_latest_record_is_the_solve_rate(archive: Archive) -> None:
    task_id = archive.add_task(make_task(1), 0)
    archive.record_attempts(1, [(task_id, 8, 8)])
    archive.record_attempts(2, [(task_id, 4, 1)])
    assert archive.task(task_id).solve_rate == 0.25


def test_a_record_without_a_judged_answer_changes_nothing(archive: Archive) -> None:
    task_id = archive.add_task(make_task(1), 0)
    archive.record_attempts(1, [(task_id, 4, 2)])
    archive.record_attempts(2, [(task_id, 0, 0)])
    assert archive.task(task_id).solve_rate == 0.5


def test_programs_and_behaviours_are_known_by_family_and_remembered_when_evicted() -> None:
    with Archive(":memory:", capacity=1) as archive:
        for number in (1, 2):
            archive.add_task(make_task(number, behaviour=f"b{number}"), 0)
        assert [archive.has_program(make_task(number).program, "deduction") for number in (1, 2, 3)] == [
            True,
            True,
            False,
        ]
        assert [archive.has_behaviour(f"b{number}", "deduction") for number in (1, 2, 3)] == [True, True, False]
        assert not archive.has_program(make_task(1).program, "abduction")
        assert not archive.has_behaviour("b1", "abduction")


def test_an_unmeasured_behaviour_is_never_known(archive: Archive) -> None:
    archive.add_task(make_task(1), 0)
    assert not archive.has_behaviour("", "deduction")


# Two programs in two spellings each, of one shape; a program of another; and what is no program.
ALIKE = (
    "def f(x): return x + 1", "def f(value):\n    return value + 1", "def f(x): return x + 2", "def f(y): return y + 2",
    "def f(x): return x - 1", "def f(x", "\ud800",
)  # fmt: skip


def shape(program: str) -> object:
    return program if program in ALIKE[-2:] else programs.shape(program)


def identity(program: str) -> object:
    return program if program in ALIKE[-2:] else programs.identity(program)


@given(
    st.lists(st.tuples(st.sampled_from(FAMILIES), st.sampled_from(ALIKE), st.lists(any_text, max_size=3)), max_size=12),
    st.none() | st.integers(1, 3),
    st.integers(-1, 12),
)
@settings(deadline=None)
def test_programs_are_told_by_what_they_are_and_not_by_how_they_are_written(
    added: list[tuple[str, str, list[str]]], capacity: int | None, rewound: int
) -> None:
    with Archive(":memory:", capacity=capacity) as archive:
        for step, (family, program, inputs) in enumerate(added):
            archive.add_task(Task(family, program, tuple(inputs), tuple(inputs)), step)
        archive.rewind(rewound)
        kept = added[: rewound + 1]
        for program in ALIKE:
            assert archive.count_alike(program) == sum(shape(other) == shape(program) for _, other, _ in kept)
            for family in FAMILIES:
                of_program = [i for name, p, i in kept if name == family and identity(p) == identity(program) and i[1:]]
                assert archive.inputs_of(program, family) == list(map(tuple, of_program))


def test_what_a_look_up_by_program_costs_does_not_grow_with_the_archive(archive: Archive) -> None:
    counted = []
    for numbers in (range(50), range(50, 1000)):
        with archive.transaction():
            for number in numbers:
                archive.add_task(replace(make_task(number, "induction"), inputs=("1", "2"), outputs=("1", "2")), 0)
        counted.append(instructions(archive))
    assert counted[0] == counted[1]


def instructions(archive: Archive) -> int:
    """Return how many instructions SQLite runs to tell what is like a program and what was asked of it."""
    done = itertools.count()
    archive._file.db.set_progress_handler(lambda: next(done) < 0, 1)
    assert archive.count_alike(make_task(7).program) >= 50
    assert archive.inputs_of(make_task(7).program, "induction") == [("1", "2")]
    archive._file.db.set_progress_handler(None, 1)
    return next(done)


def test_lineage_names_every_ancestor_once(archive: Archive) -> None:
    first, second, alone = (archive.add_task(make_task(number), 0) for number in range(3))
    child = archive.add_task(make_task(3), 1, [first, second, first])
    grandchild = archive.add_task(make_task(4), 2, [child, second])
    assert archive.lineage(grandchild) == [first, second, child]
    assert archive.lineage(alone) == []


def test_tasks_are_listed_oldest_first_and_evicted_ones_on_request() -> None:
    with Archive(":memory:", capacity=2) as archive:
        fill(archive, 3)
        other = archive.add_task(make_task(9, "abduction"), 9)
        assert [stored.id for stored in archive.tasks()] == [2, 3, other]
        assert [stored.id for stored in archive.tasks("deduction")] == [2, 3]
        assert [stored.id for stored in archive.tasks(newest=2)] == [3, other]
        assert [stored.id for stored in archive.tasks("deduction", evicted=True)] == [1, 2, 3]
        assert archive.counts() == {"abduction": 1, "deduction": 2}


def test_statistics_add_up(archive: Archive) -> None:
    one, two = archive.add_task(make_task(1), 0), archive.add_task(make_task(1, "abduction"), 0)
    archive.record_attempts(1, [(one, 4, 1), (two, 4, 4)])
    for check in ("syntax", "novelty", "syntax"):
        archive.record_rejection(1, "deduction", check, "why", "text")
    statistics = archive.statistics()
    assert (statistics.tasks, statistics.evicted, statistics.programs) == (2, 0, 1)
    assert (statistics.attempts, statistics.solved) == (8, 5)
    assert statistics.rejections == {"novelty": 1, "syntax": 2}


@pytest.mark.parametrize("character", ["y", "é", "\ud800"])
def test_a_rejected_text_is_cut_at_a_character(path: Path, character: str) -> None:
    with Archive(path) as archive:
        archive.record_rejection(0, "deduction", "syntax", "", "x" + character * REJECTED_TEXT_BYTES)
    connection = sqlite3.connect(path)
    ((text,),) = connection.execute("SELECT text FROM rejections")
    connection.close()
    assert REJECTED_TEXT_BYTES - 4 < len(text.encode()) <= REJECTED_TEXT_BYTES


def test_what_cannot_be_recorded_is_refused_and_leaves_no_trace(archive: Archive) -> None:
    task_id = archive.add_task(make_task(1), 5)
    before = archive.fingerprint()
    with pytest.raises(InvalidData, match="step must be at least 5"):
        archive.add_task(make_task(2), 4)
    with pytest.raises(InvalidData, match="step must be at least 5"):
        archive.record_rejection(4, "deduction", "syntax", "", "")
    with pytest.raises(InvalidData, match="does not hold"):
        archive.add_task(make_task(2), 5, [task_id, 99])
    with pytest.raises(InvalidData, match="does not hold"):
        archive.record_attempts(5, [(task_id, 4, 2), (99, 4, 2)])
    with pytest.raises(InvalidData, match="solved must be between 0 and 4"):
        archive.record_attempts(5, [(task_id, 4, 5)])
    with pytest.raises(InvalidData, match="one output an input"):
        archive.add_task(Task("deduction", "def f(): pass", ("1", "2"), ("1",)), 5)
    with pytest.raises(UnknownId, match="no task 99"):
        archive.task(99)
    assert archive.fingerprint() == before


def test_a_transaction_that_fails_leaves_nothing(archive: Archive) -> None:
    fill(archive, 2)
    before = archive.fingerprint()

    def one_step_that_fails() -> None:
        with archive.transaction():
            archive.record_attempts(7, [(archive.add_task(make_task(7), 7), 4, 1)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        one_step_that_fails()
    assert archive.fingerprint() == before


def test_an_inner_failure_undoes_the_inner_part_only(archive: Archive) -> None:
    with archive.transaction():
        kept = archive.add_task(make_task(1), 0)
        with pytest.raises(InvalidData):
            archive.add_task(make_task(2), 0, [99])
    assert [stored.id for stored in archive.tasks()] == [kept]
    assert not archive.has_program(make_task(2).program, "deduction")


# -- sampling ---------------------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(0, 12), min_size=3, max_size=3),
    n=st.integers(0, 15),
    capacity=st.none() | st.integers(1, 8),
    how=st.sampled_from(HOWS),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_a_sample_is_distinct_live_of_its_families_as_long_as_possible_and_repeatable(
    sizes: list[int], n: int, capacity: int | None, how: How, seed: int
) -> None:
    rng = random.Random(seed)
    with Archive(":memory:", capacity=capacity) as archive:
        families = rng.sample(
            [family for family, size in zip(FAMILIES, sizes, strict=True) for _ in range(size)], sum(sizes)
        )
        for number, family in enumerate(families):
            task_id = archive.add_task(make_task(number, family), number)
            archive.record_attempts(number, [(task_id, 2, rng.randrange(3))])
        asked = ("deduction", "abduction")
        live = {stored.id: stored for family in asked for stored in archive.tasks(family)}
        if how == "half_solved":
            live = {task_id: stored for task_id, stored in live.items() if stored.solved == 1}
        drawn = archive.sample(asked, n, random.Random(seed), how)
        assert drawn == archive.sample(asked, n, random.Random(seed), how)
    assert len({stored.id for stored in drawn}) == len(drawn) == min(n, len(live))
    assert all(stored == live[stored.id] for stored in drawn)
    if how == "newest":
        assert [stored.id for stored in drawn] == sorted(live, reverse=True)[:n]


def draws(archive: Archive, families: Sequence[str], how: How, times: int) -> Counter[int]:
    rng = random.Random(0)
    return Counter(archive.sample(families, 1, rng, how)[0].id for _ in range(times))


def test_uniform_draws_each_live_task_alike(archive: Archive) -> None:
    fill(archive, 3)
    archive.add_task(make_task(3, "abduction"), 3)
    shares = draws(archive, ["deduction", "abduction"], "uniform", 2000)
    assert all(430 < shares[task_id] < 570 for task_id in range(1, 5))  # 500 expected, standard deviation 19


def test_recency_draws_by_age_with_linear_weight(archive: Archive) -> None:
    fill(archive, 4)
    shares = draws(archive, ["deduction"], "recency", 2000)
    assert all(abs(shares[task_id] - 200 * task_id) < 90 for task_id in range(1, 5))  # standard deviation below 22


@pytest.mark.parametrize(("live", "n"), [(5, 2), (8, 2), (5, 4)])  # both algorithms: few of the range, and most of it
def test_recency_without_repeats_has_the_shares_of_drawing_one_after_the_other(
    archive: Archive, live: int, n: int
) -> None:
    fill(archive, live)
    rng, times = random.Random(0), 1500
    drawn = Counter(stored.id for _ in range(times) for stored in archive.sample("deduction", n, rng, "recency"))
    for rank in range(1, live + 1):
        share = sum(chance(order, live) for order in itertools.permutations(range(1, live + 1), n) if rank in order)
        assert abs(drawn[rank] - times * share) < 4 * math.sqrt(times * share * (1 - share))


def chance(order: Sequence[int], live: int) -> float:
    """Return the probability of drawing these ranks in this order, each by its weight among those left."""
    left = [live * (live + 1) / 2 - sum(order[:drawn]) for drawn in range(len(order))]
    return math.prod(rank / total for rank, total in zip(order, left, strict=True))


# (answers judged, right ones, records): never played, then weights 4 p (1 - p) + 1 / sqrt(1 + records)
PLAYED = [(0, 0, 0), (4, 2, 3), (4, 0, 3), (4, 1, 8), (4, 4, 24), (4, 3, 99)]
WEIGHTS = [2.0, 1.5, 0.5, 0.75 + 1 / 3, 0.2, 0.75 + 65**-0.5]


def fill_played(archive: Archive, played: Sequence[tuple[int, int, int]]) -> None:
    fill(archive, len(played))
    for task_id, (tried, solved, records) in enumerate(played, start=1):
        archive.record_attempts(100, [(task_id, tried, solved)] * records)


@pytest.mark.parametrize("live", [3, 6])  # both algorithms: most of the range, and few of it
def test_learnability_draws_by_solve_rate_and_by_how_often_a_task_was_played(archive: Archive, live: int) -> None:
    fill_played(archive, PLAYED[:live])
    times = 6000
    shares = draws(archive, ["deduction"], "learnability", times)
    expected = [times * weight / sum(WEIGHTS[:live]) for weight in WEIGHTS[:live]]
    chi_square = sum((shares[n + 1] - e) ** 2 / e for n, e in enumerate(expected))
    assert chi_square < {3: 13.8, 6: 20.5}[live]  # exceeded once in a thousand seeds


@pytest.mark.parametrize("live", [6, 8])  # both algorithms again
def test_learnability_without_repeats_has_the_shares_of_drawing_one_after_the_other(
    archive: Archive, live: int
) -> None:
    fill_played(archive, (PLAYED + PLAYED)[:live])
    weights, n = (WEIGHTS + WEIGHTS)[:live], 2
    rng, times = random.Random(0), 1500
    drawn = Counter(s.id for _ in range(times) for s in archive.sample("deduction", n, rng, "learnability"))
    for number in range(live):
        share = sum(
            math.prod(weights[m] / (sum(weights) - sum(weights[o] for o in order[:k])) for k, m in enumerate(order))
            for order in itertools.permutations(range(live), n)
            if number in order
        )
        assert abs(drawn[number + 1] - times * share) < 4 * math.sqrt(times * share * (1 - share))


@pytest.mark.parametrize("how", HOWS)
def test_how_much_is_read_for_a_sample_does_not_grow_with_the_archive(archive: Archive, how: How) -> None:
    read: list[int] = []
    step = 0
    for size in (100, 2000):
        with archive.transaction():
            while sum(archive.counts().values()) < size:
                step += 1
                task_id = archive.add_task(make_task(step), step)
                archive.record_attempts(step, [(task_id, 4, step % 5)])
        seen: list[str] = []
        archive._file.db.set_trace_callback(seen.append)
        for seed in range(20):
            archive.sample("deduction", 4, random.Random(seed), how, before=step)
        archive._file.db.set_trace_callback(None)
        read.append(len(seen))
    assert read[1] < 1.3 * read[0]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6), st.integers(0, 99))
def test_a_weight_has_bounds_and_falls_with_the_number_of_plays(counts: list[tuple[int, int]], seed: int) -> None:
    for solved, failed in counts:
        rate = solved / (solved + failed) if solved + failed else None
        weights = [rewards.curriculum_weight(rate, plays) for plays in range(PLAYS_COUNTED + 1)]
        assert weights == sorted(weights, reverse=True)
        assert 2 >= weights[0] >= weights[-1] > 2 / 17
        if rate is not None:
            assert rewards.curriculum_weight(1 - rate, 3) == pytest.approx(rewards.curriculum_weight(rate, 3))
            assert rewards.curriculum_weight(0.5, 3) >= rewards.curriculum_weight(rate, 3)


@pytest.mark.parametrize("how", HOWS)
def test_a_sample_can_leave_out_what_a_step_has_added(archive: Archive, how: How) -> None:
    with archive.transaction():
        for number in range(12):
            task_id = archive.add_task(make_task(number, ("deduction", "abduction")[number % 2]), number // 3)
            archive.record_attempts(number // 3, [(task_id, 2, 1)])
    for before in range(5):
        drawn = archive.sample(["deduction", "abduction"], 99, random.Random(0), how, before=before)
        assert sorted(stored.id for stored in drawn) == list(range(1, 3 * before + 1))


def test_a_task_that_became_solved_is_no_longer_half_solved(archive: Archive) -> None:
    first, second = fill(archive, 2)
    archive.record_attempts(2, [(first, 4, 2), (second, 4, 2)])
    archive.record_attempts(3, [(second, 4, 4)])
    assert [stored.id for stored in archive.sample("deduction", 9, random.Random(0), "half_solved")] == [first]


def test_unknown_ways_and_negative_numbers_are_refused(archive: Archive) -> None:
    with pytest.raises(InvalidConfig, match="half_solved"):
        archive.sample("deduction", 1, random.Random(0), "oldest")  # type: ignore[arg-type]
    with pytest.raises(InvalidConfig, match="at least 0"):
        archive.sample("deduction", -1, random.Random(0))
    with pytest.raises(InvalidConfig, match="capacity must be at least 1"):
        Archive(":memory:", capacity=0)


def test_a_capacity_evicts_the_oldest_of_that_family_only(path: Path) -> None:
    with Archive(path) as archive:
        fill(archive, 5)
        archive.add_task(make_task(0, "abduction"), 5)
    with Archive(path, capacity=2) as archive:
        assert archive.counts() == {"abduction": 1, "deduction": 5}
        newest = archive.add_task(make_task(6), 6)
        assert archive.counts() == {"abduction": 1, "deduction": 2}
        assert [stored.id for stored in archive.tasks("deduction")] == [5, newest]
        assert archive.task(1).task == make_task(0)
        assert archive.statistics().evicted == 4
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT task, step, reason FROM evictions LIMIT 1").fetchall() == [(1, 6, "capacity")]
    connection.close()


def test_an_archive_may_keep_its_oldest(path: Path) -> None:
    with Archive(path, capacity=2, evict="newest") as archive:
        fill(archive, 5)
        archive.add_task(make_task(0, "abduction"), 5)
        assert archive.counts() == {"abduction": 1, "deduction": 2}
        assert [stored.id for stored in archive.tasks("deduction")] == [1, 2]
        assert [stored.id for stored in archive.sample("deduction", 9, random.Random(0), "newest")] == [2, 1]
        assert archive.task(5).task == make_task(4)
        assert archive.statistics().evicted == 3
    with Archive.read(path) as reader:
        assert reader.counts() == {"abduction": 1, "deduction": 2}


@pytest.mark.parametrize("first", ["oldest", "newest"])
def test_an_archive_keeps_to_one_end(path: Path, first: Any) -> None:
    other: Any = {"oldest": "newest", "newest": "oldest"}[first]
    with Archive(path, capacity=2, evict=first) as archive:
        fill(archive, 3)
    with Archive(path, capacity=2, evict=other) as archive, pytest.raises(InvalidData, match=f"evict='{first}'"):
        archive.add_task(make_task(3), 3)
    with Archive(path, capacity=2, evict=first) as archive:
        archive.add_task(make_task(3), 3)
        assert archive.counts() == {"deduction": 2}


@pytest.mark.parametrize(("capacity", "live"), [(None, [1, 2, 3]), (2, [1, 2]), (4, [1, 2, 3])])
def test_what_was_not_kept_does_not_come_back(path: Path, capacity: int | None, live: list[int]) -> None:
    with Archive(path, capacity=3, evict="newest") as archive:
        fill(archive, 4)
    with Archive(path, capacity=capacity, evict="newest") as archive:
        archive.add_task(make_task(4), 4)
        assert [stored.id for stored in archive.tasks()] == live
        assert archive.counts() == {"deduction": len(live)}


def test_there_are_two_ends_to_evict_from() -> None:
    with pytest.raises(InvalidConfig, match="oldest, newest, got 'all'"):
        Archive(":memory:", evict="all")  # type: ignore[arg-type]


@pytest.mark.parametrize("evict", ["oldest", "newest"])
def test_no_frequent_query_walks_a_table(path: Path, evict: Any) -> None:
    seen: list[str] = []
    with Archive(path, capacity=4, evict=evict) as archive:
        fill(archive, 6)
        archive._file.db.set_trace_callback(seen.append)
        task_id = archive.add_task(make_task(7, behaviour="b"), 7, [1, 2])
        archive.record_attempts(7, [(3, 2, 1), (task_id, 2, 1)])
        archive.record_rejection(7, "deduction", "syntax", "", "")
        archive.has_program("x", "deduction")
        archive.has_behaviour("x", "deduction")
        archive.inputs_of(make_task(1).program, "deduction")
        archive.count_alike(make_task(1).program)
        archive.counts()
        for how in HOWS:
            assert archive.sample(["deduction", "abduction"], 2, random.Random(0), how)
        archive._file.db.set_trace_callback(None)
    assert not [line for query in seen for line in query_plan(path, query) if "SCAN" in line and "CONSTANT" not in line]


def query_plan(path: Path, query: str) -> list[str]:
    if not query.startswith(("SELECT", "INSERT", "UPDATE", "DELETE")):
        return []
    connection = sqlite3.connect(path)
    try:
        return [f"{row[3]} of {query}" for row in connection.execute(f"EXPLAIN QUERY PLAN {query}")]
    finally:
        connection.close()


# -- rewind -----------------------------------------------------------------------------------------------------------

operations = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 5), st.sampled_from(FAMILIES), st.lists(st.integers(0, 99), max_size=2)),
    st.tuples(
        st.just("try"), st.lists(st.tuples(st.integers(0, 99), st.integers(0, 4), st.integers(0, 4)), max_size=3)
    ),
    st.tuples(st.just("refuse"), st.sampled_from(FAMILIES), st.text(max_size=3)),
)
histories = st.lists(st.lists(operations, max_size=5), min_size=1, max_size=8)


def play(archive: Archive, step: int, done: Sequence[tuple[Any, ...]]) -> None:
    """Do one step's operations; task numbers are taken modulo the tasks there are."""
    with archive.transaction():
        for kind, *rest in done:
            existing = archive.statistics().tasks
            if kind == "add":
                number, family, references = rest
                shown = [reference % existing + 1 for reference in references if existing]
                archive.add_task(make_task(number, family), step, shown)
            elif kind == "try" and existing:
                archive.record_attempts(step, [(i % existing + 1, n, min(n, passed)) for i, n, passed in rest[0]])
            elif kind == "refuse":
                archive.record_rejection(step, rest[0], "syntax", "", rest[1])


def sampled(archive: Archive) -> list[object]:
    rng = random.Random(0)
    return [archive.sample(FAMILIES, 4, rng, how) for how in HOWS for _ in range(3)] + [rng.random(), archive.counts()]


@given(histories, st.none() | st.integers(1, 3), st.sampled_from(["oldest", "newest"]), st.data())
@settings(max_examples=80, deadline=None)
def test_a_rewound_archive_is_the_one_that_stopped_there_and_continues_like_it(
    history: list[list[tuple[Any, ...]]], capacity: int | None, evict: Any, data: st.DataObject
) -> None:
    step = data.draw(st.integers(-1, len(history) - 1))
    rewound, stopped = (Archive(":memory:", capacity=capacity, evict=evict) for _ in range(2))
    with rewound, stopped:
        for number, done in enumerate(history):
            play(rewound, number, done)
        finished = rewound.fingerprint()
        for number, done in enumerate(history[: step + 1]):
            play(stopped, number, done)
        rewound.rewind(step)
        assert rewound.fingerprint() == stopped.fingerprint()
        assert sampled(rewound) == sampled(stopped)
        assert rewound.last_step == stopped.last_step
        for number, done in list(enumerate(history))[step + 1 :]:
            play(rewound, number, done)
        assert rewound.fingerprint() == finished


def test_every_kind_of_row_changes_the_fingerprint(archive: Archive) -> None:
    prints = [archive.fingerprint()]
    for number in range(2):
        archive.add_task(make_task(number), 0)
        prints.append(archive.fingerprint())
    archive.record_attempts(0, [(1, 2, 1)])
    prints.append(archive.fingerprint())
    archive.record_rejection(0, "deduction", "syntax", "", "")
    prints.append(archive.fingerprint())
    archive.capacity = 2
    archive.add_task(make_task(2), 0, [1])
    prints.append(archive.fingerprint())
    assert len(set(prints)) == len(prints)


# -- the file ---------------------------------------------------------------------------------------------------------


def test_an_archive_is_found_again_as_it_was_left(path: Path) -> None:
    with Archive(path) as archive:
        fill(archive, 3)
        before = archive.fingerprint()
    with Archive(path) as again, Archive.read(path) as reader:
        assert again.fingerprint() == reader.fingerprint() == before
        assert again.last_step == 2


def test_an_empty_file_becomes_an_archive(path: Path) -> None:
    path.touch()
    with Archive(path) as archive:
        assert archive.counts() == {}
        assert archive.last_step is None


def test_a_reader_sees_commits_and_never_half_a_step(path: Path) -> None:
    with Archive(path) as archive, Archive.read(path) as reader:
        with archive.transaction():
            fill(archive, 2)
            assert reader.counts() == {}
        assert reader.counts() == {"deduction": 2}
        with pytest.raises(ArchiveError, match="opened for reading"):
            reader.add_task(make_task(9), 9)


def test_a_finished_archive_is_read_where_nothing_can_be_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Archive(path) as archive:
        fill(archive, 2)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with Archive.read(path) as reader:
        assert reader.counts() == {"deduction": 2}
        assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_second_writer_is_refused_with_one_clear_line(path: Path) -> None:
    with Archive(path) as archive, Archive(path, busy_seconds=0.01) as second:
        with archive.transaction():
            fill(archive, 1)
            with pytest.raises(ArchiveError, match="another process is writing") as caught:
                fill(second, 1)
            assert "\n" not in str(caught.value)
        assert archive.counts() == {"deduction": 1}


def refused_and_untouched(path: Path, expected: str) -> None:
    before = path.read_bytes()
    for opening in (Archive, Archive.read):
        with pytest.raises(InvalidData, match=expected) as caught:
            opening(path)
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("keep", [0.001, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_archive_is_refused_and_left_alone(path: Path, keep: float) -> None:
    with Archive(path) as archive:
        fill(archive, 50)
    os.truncate(path, int(path.stat().st_size * keep))
    refused_and_untouched(path, "expected a")
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_foreign_file_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("not a database\n" * 20)
    refused_and_untouched(path, "expected an archive of selfplay-gym, found a truncated or foreign file")


def test_a_foreign_database_is_refused_and_left_alone(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE tasks (id INTEGER PRIMARY KEY)")
    connection.close()
    refused_and_untouched(path, "expected an archive of selfplay-gym")


@pytest.mark.parametrize(
    "change", ["PRAGMA user_version = {version}", "UPDATE meta SET value = '{version}' WHERE name = 'schema'"]
)
@pytest.mark.parametrize("version", [SCHEMA_VERSION - 1, SCHEMA_VERSION + 1])
def test_an_archive_of_another_version_is_refused_and_left_alone(path: Path, change: str, version: int) -> None:
    Archive(path).close()
    connection = sqlite3.connect(path)
    connection.execute(change.format(version=version))
    connection.commit()
    connection.close()
    refused_and_untouched(path, f"expected archive schema {SCHEMA_VERSION}, found {version}; use the selfplay-gym that")


def test_what_is_missing_is_not_created_by_reading(path: Path) -> None:
    with pytest.raises(InvalidData, match="found no file"):
        Archive.read(path)
    assert not path.exists()
    path.touch()
    with pytest.raises(InvalidData, match="found an empty file"):
        Archive.read(path)


def test_a_path_that_cannot_be_opened_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="Is a directory"):
        Archive(tmp_path)
    with pytest.raises(ArchiveError, match="check that its folder exists"):
        Archive(tmp_path / "missing" / "archive.sqlite")


def test_odd_characters_in_the_path_are_just_characters(tmp_path: Path) -> None:
    path = tmp_path / "a?b#c%20 d.sqlite"
    with Archive(path) as archive:
        fill(archive, 1)
    assert path.exists()
    with Archive.read(path) as reader:
        assert reader.counts() == {"deduction": 1}


def test_a_closed_archive_says_so(path: Path) -> None:
    archive = Archive(path)
    archive.close()
    archive.close()
    with pytest.raises(ArchiveError, match="closed"):
        archive.counts()


def run_child(path: Path, body: str) -> subprocess.Popen[str]:
    source = "from selfplay_gym.archive import Archive, ArchiveError\nfrom selfplay_gym.types import Task\n"
    command = [sys.executable, "-c", source + textwrap.dedent(body), str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


ADD_STEPS = """
    import sys, time
    archive = Archive(sys.argv[1])
    def add(step):
        task = Task("deduction", f"def f(x):\\n    return x + {step}", ("0",), (str(step),), f"adds {step}")
        archive.add_task(task, step)
"""


def test_a_writer_killed_in_a_transaction_loses_that_transaction_only(path: Path) -> None:
    body = """
    for step in range(5):
        add(step)
    with archive.transaction():
        for step in range(5, 3000):
            add(step)
        print("halfway", flush=True)
        time.sleep(60)
    """
    with run_child(path, ADD_STEPS + body) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "halfway\n"
        copy = path.with_name("copy.sqlite")  # what a machine without power would find
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
        child.send_signal(signal.SIGKILL)
    for left in (path, copy):
        with Archive(left) as archive, Archive(":memory:") as expected:
            fill(expected, 5)
            assert archive.fingerprint() == expected.fingerprint()
            archive.add_task(make_task(5), 5)
            assert archive.last_step == 5


def test_a_full_disk_is_a_clean_error_and_the_archive_goes_on(path: Path) -> None:
    body = """
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    add(0)
    before = archive.fingerprint()
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    try:
        with archive.transaction():
            for step in range(1, 20_000):
                add(step)
    except ArchiveError as error:
        print(len(str(error).splitlines()), archive.fingerprint() == before)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    add(1)
    print(archive.counts())
    archive.close()
    """
    with run_child(path, ADD_STEPS + body) as child:
        assert child.communicate()[0] == "1 True\n{'deduction': 2}\n"
