"""Values as text: what is a value, which values are the same, and that nothing is ever run."""

import ast
import contextlib
import math

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from selfplay_gym import literals
from selfplay_gym.literals import (
    MAX_DEPTH,
    MAX_PLAIN,
    MAX_TEXT,
    NotALiteral,
    canonical,
    canonical_arguments,
    encode,
    parse,
    parse_arguments,
)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.characters(min_codepoint=0xD800, max_codepoint=0xDFFF, categories=["Cs"])
)
HASHABLE = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4).map(tuple) | st.frozensets(inner, max_size=4), max_leaves=8
)
VALUES = st.recursive(
    SCALARS | HASHABLE | st.sets(HASHABLE, max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(HASHABLE, inner, max_size=4)
    ),
    max_leaves=12,
)


def same(a: object, b: object) -> bool:
    """Brute-force equality of values: types exact, NaN equal, sets and dicts without order."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (set, frozenset)):
        return len(a) == len(b) and matched(list(a), list(b))
    if isinstance(a, dict):
        return len(a) == len(b) and matched(list(a.items()), list(b.items()))
    return a == b


def matched(left: list, right: list) -> bool:
    for item in left:
        position = next((n for n, other in enumerate(right) if same(item, other)), None)
        if position is None:
            return False
        del right[position]
    return True


@given(VALUES)
def test_what_is_written_is_read_back(value):
    assert same(parse(encode(value)), value)


@given(VALUES)
def test_the_canonical_text_is_a_fixed_point(value):
    text = encode(value)
    assert canonical(text) == text
    assert text.encode("utf-8")


@given(VALUES, VALUES)
def test_the_same_text_means_the_same_value(a, b):
    assert (encode(a) == encode(b)) == same(a, b)


@given(VALUES)
def test_order_of_sets_and_dicts_does_not_show(value):
    def turned(v):
        match v:
            case dict():
                return {k: turned(x) for k, x in reversed(v.items())}
            case list():
                return [turned(x) for x in v]
            case set():
                return {x for x in reversed(list(v))}  # noqa: C416 - another order of insertion
        return v

    assert encode(turned(value)) == encode(value)


@given(st.lists(VALUES, max_size=3), st.dictionaries(st.sampled_from(["a", "key", "_x"]), VALUES, max_size=3))
def test_arguments_are_read_back(positional, keywords):
    text = ", ".join([encode(v) for v in positional] + [f"{k}={encode(v)}" for k, v in keywords.items()])
    got_positional, got_keywords = parse_arguments(text)
    assert same(got_positional, positional)
    assert same(got_keywords, keywords)
    assert canonical_arguments(canonical_arguments(text)) == canonical_arguments(text)


@pytest.mark.parametrize("function", [parse, parse_arguments, canonical, canonical_arguments])
@given(text=st.text(max_size=60) | st.text(alphabet="()[]{}:=.,'\"\\ \n+-*f1e9_nasetbrojx#", max_size=60))
def test_any_text_is_a_literal_or_is_not(function, text):
    with contextlib.suppress(NotALiteral):  # and nothing else
        function(text)


@given(st.text(alphabet="()[]{}:,'\"+-1e9.b \n", max_size=30))
def test_it_agrees_with_the_standard_library(text):
    try:
        expected = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return
    try:
        got = parse(text)
    except NotALiteral:
        assume(False)  # what the standard library knows beyond: sums of complex numbers
    assert same(got, expected)


@pytest.mark.parametrize(
    "text",
    [
        "f(1)", "x", "__import__('os')", "[x for x in y]", "lambda: 1", "1 + 1", "1j", "...", "f'{1}'", "not 1", "~1",
        "-True", "-'a'", "{**{}}", "[*[]]", "{[]: 1}", "{{}}", "set(1)", "set([1], [2])", "set('ab')", "frozenset(x)",
        "a.b",
        "a[0]", "", " ", "1 2", "1,\n2)", "(", "\0", "\ud800", "1; 2", "x = 1", "0777", "NaN", "dict()",
    ],
)  # fmt: skip
def test_what_is_no_literal(text):
    with pytest.raises(NotALiteral):
        parse(text)


@pytest.mark.parametrize(
    "text", ["1) or (2", "1); f(2", "1)(2", "*[1]", "**{}", "a=1, a=2", "1 for x in y", "x", "1)\n#", "a=1, 2"]
)
def test_what_is_no_argument_list(text):
    with pytest.raises(NotALiteral):
        parse_arguments(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-0.0", "-0.0"), ("+1", "1"), ("- - 1", "1"), ("-nan", "nan"), ("-inf", "-inf"), ("1e400", "inf"),
        ("{1, 1.0, True}", "{1}"), ("set([])", "set()"), ("frozenset()", "frozenset()"), ("{nan, nan}", "{nan}"),
        ("frozenset({2,1})", "frozenset({1, 2})"), ("'a' 'b'", "'ab'"), ("{1:2,1:3}", "{1: 3}"), ("(1)", "1"),
        ("(1,)", "(1,)"), ("0x10", "16"), ("1_000", "1000"), (" [1 , 2] \n", "[1, 2]"),
        ("float('inf')", "inf"), ("float('-inf')", "-inf"), ('[float("nan"), -float("inf")]', "[nan, -inf]"),
    ],
)  # fmt: skip
def test_spellings(text, expected):
    assert canonical(text) == expected


@pytest.mark.parametrize(
    "text", ["float('1')", "float(1)", "float()", "float('inf', 1)", "float(x='inf')", "float('')"]
)
def test_no_other_call_of_float_is_a_literal(text):
    with pytest.raises(NotALiteral):
        parse(text)


def test_values_that_python_holds_equal_are_different_values():
    assert len({encode(v) for v in (1, 1.0, True, "1", b"1", [1], (1,), {1}, frozenset({1}))}) == 9


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100 + "]" * 100,
        "(" * 5000,
        "-" * 5000 + "1",
        "[" + "1," * MAX_TEXT,
        "9" * 4301,
        "'" + "a" * MAX_TEXT + "'",
    ],
)
def test_deep_and_large_texts_are_refused(text):
    with pytest.raises(NotALiteral):
        parse(text)


LONG = [list(range(20_000)), ["a b", "", [-1, 0]], "[,] and so on" * 5000]


def test_long_text_is_read_where_asked_for_if_it_is_plain():
    text = encode(LONG, MAX_PLAIN)
    assert len(text) > 2 * MAX_TEXT
    assert parse(text, MAX_PLAIN) == LONG
    assert canonical(text, MAX_PLAIN) == text
    assert parse_arguments(f"'0', {text}", MAX_PLAIN) == (["0", LONG], {})
    for refused in (text, f"{text}, 1", text[:-1], text.replace("'", '"'), text.replace("1", "1.0"), f"({text})"):
        with pytest.raises(NotALiteral, match="too large"):
            parse(refused, MAX_PLAIN if refused is not text else MAX_TEXT)


@pytest.mark.parametrize(
    "value", [[1.5] * 20_000, [True] * 20_000, ["it's"] * 20_000, (1,) * 40_000, {"a": [1] * 40_000}]
)
def test_a_long_value_that_is_not_plain_is_not_written(value):
    with pytest.raises(NotALiteral, match="too large"):
        encode(value, MAX_PLAIN)


@pytest.mark.parametrize("depth", [MAX_DEPTH - 1, MAX_DEPTH, MAX_DEPTH + 1, 100_000])
def test_long_text_may_be_as_deep_as_short_text(depth):
    short, long = ("[" * depth + blank + "1" + "]" * depth for blank in ("", " " * MAX_TEXT))
    shallow = depth < MAX_DEPTH
    for text, limit in ((short, MAX_TEXT), (long, MAX_PLAIN)):
        if shallow:
            assert parse(text, limit) == parse(short)
        else:
            with pytest.raises(NotALiteral):
                parse(text, limit)


def test_the_depth_that_is_allowed():
    text = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert canonical(text) == text


@pytest.mark.parametrize(
    "value",
    [
        1j,
        ...,
        range(3),
        bytearray(b"a"),
        print,
        type("I", (int,), {})(3),
        type("S", (str,), {})("a"),
        object(),
        {1: 2}.keys(),
    ],
)
def test_other_types_are_no_values(value):
    with pytest.raises(NotALiteral, match="is not a value"):
        encode([value])


@pytest.mark.parametrize("value", ["a" * 99, list(range(99)), 10**101, {n: n for n in range(50)}, "é" * 60])
def test_a_text_over_the_limit_is_refused_not_cut(value):
    assert len(encode(value).encode()) > 100
    with pytest.raises(NotALiteral, match="too large"):
        encode(value, limit=100)


def test_shared_structure_stops_early():
    value: object = [1]
    for _ in range(40):
        value = [value, value]
    with pytest.raises(NotALiteral, match="too large"):
        encode(value)


def test_integers_too_long_to_write_are_refused():
    with pytest.raises(NotALiteral, match="too large"):
        encode(10**4400)


def test_the_order_of_dict_items_can_be_kept():
    assert encode({"b": 1, "a": 2}, keep_order=True) == "{'b': 1, 'a': 2}"
    assert canonical_arguments("{'b': 1, 'a': 2}") == "{'b': 1, 'a': 2}"


@pytest.mark.parametrize("keep_order", [False, True])
def test_items_that_only_identity_tells_apart_are_refused(keep_order):
    two = float("nan"), float("nan")
    for value in (set(two), frozenset(two), {(two[0],), (two[1],)}, dict.fromkeys(two)):
        with pytest.raises(NotALiteral, match="identity"):
            encode(value, keep_order=keep_order)
    assert encode({two[0]}) == "{nan}"


@given(st.text("[]0123, -'a\"\\", max_size=12))
@example("'a', [-1, 'b\"']")
@example("'a' 'b'")
@example("'a', ['(', ' [1']")
def test_simple_values_are_read_the_same_by_the_fast_parser(text):
    def read() -> str:
        try:
            return repr(parse_arguments(text))
        except NotALiteral:
            return "no literal"

    fast = read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(literals, "_as_in_json", lambda text, limit: None)
        assert read() == fast
