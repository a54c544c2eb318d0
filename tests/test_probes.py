"""Probe inputs and the behaviour hash."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_gym import literals, probes

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8)
HASHABLE = st.recursive(SCALARS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.sets(HASHABLE, max_size=3)
        | st.dictionaries(HASHABLE, inner, max_size=3)
    ),
    max_leaves=6,
)


def arguments_of(values: list[object], keywords: bool) -> str:
    words = [literals.encode(value, keep_order=True) for value in values]
    return ", ".join(f"k{n}={word}" if keywords else word for n, word in enumerate(words))


@given(st.lists(VALUES, min_size=1, max_size=3), st.booleans())
def test_probes_have_the_types_of_the_example(values: list[object], keywords: bool) -> None:
    arguments = arguments_of(values, keywords)
    example = [type(value) for value in values]
    for text in probes.fixed(arguments) + probes.neighbours(arguments):
        positional, named = literals.parse_arguments(text)
        assert [type(value) for value in (*positional, *named.values())] == example or type(None) in example
        assert literals.canonical_arguments(text) == text


@given(st.lists(VALUES, min_size=1, max_size=3))
def test_neighbours_differ_from_the_example_and_from_each_other(values: list[object]) -> None:
    near = probes.neighbours(arguments_of(values, False))
    assert arguments_of(values, False) not in near
    assert len(set(near)) == len(near) <= 8


def test_fixed_probes_do_not_depend_on_the_example() -> None:
    assert probes.fixed("4, 'ab'") == probes.fixed("-100, ''")
    assert probes.fixed("[1, 2]") == probes.fixed("[7]")
    assert len(probes.fixed("4")) == 8


def test_fixed_probes_of_a_set_do_not_depend_on_the_hash_seed() -> None:
    code = "from selfplay_gym import probes; print(probes.fixed(\"{'a', b'bc', ('d',), frozenset({'e'})}\"))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (1, 2, 3, 4, 5)
    }
    assert len(seen) == 1


def test_a_change_that_is_too_large_to_write_is_left_out() -> None:
    assert all(len(text) < literals.MAX_TEXT for text in probes.neighbours(hex(2**literals.MAX_INT_BITS - 1)))
    assert probes.neighbours(repr("x" * (literals.MAX_TEXT - 6)))


def test_behaviour_depends_on_types_and_outcomes_alone() -> None:
    same = probes.behaviour("4", ["=1", "=2"])
    assert probes.behaviour("9", ["=1", "=2"]) == same
    assert probes.behaviour("x=9", ["=1", "=2"]) == same
    assert probes.behaviour("'a'", ["=1", "=2"]) != same
    assert probes.behaviour("4", ["=1", "=3"]) != same
    assert probes.behaviour("4", ["=1"]) != same
    assert probes.behaviour("4, 5", ["=1", "=2"]) != same


@pytest.mark.parametrize(("one", "other"), [(["ab", "c"], ["a", "bc"]), (["a", ""], ["a"]), ([], [""])])
def test_outcomes_do_not_run_into_each_other(one: list[str], other: list[str]) -> None:
    assert probes.behaviour("4", one) != probes.behaviour("4", other)
