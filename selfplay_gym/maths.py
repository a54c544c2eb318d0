r"""Whether two final answers to a question of mathematics are the same, decided by the cheapest level that can.

1. ``exact``: the same text after normalisation of spacing, LaTeX spelling and wrappers.
2. ``numeric``: both are plain numbers (decimals, fractions, mixed numbers, powers; with thousands separators,
   currency, percent or a unit). They are exact rationals of bounded size, so nothing that a model writes costs time
   here: a number beyond `MAX_EXPONENT` is never computed, only known to differ from every number within. Decides both
   ways.
3. ``symbolic``: math-verify, inside the sandbox and never in this process, because sympy and its parser hang, recurse
   or eat memory on texts that are easy to write. Its time-outs are off; the sandbox kills at `LIMITS`. Where it rounds,
   `maths_program` looks again, since some answers would equal every reference.

Who is to blame when level 3 gives no value? References are short and come from the data; every one of the known sets is
read in a fraction of the limits. So a run that is killed for time or memory, crashes or raises does so because of what
the answer says, and the answer is not equal: were it no verdict, a model could take its failures out of the score.
No verdict is what an answer cannot cause: the sandbox gave none, or math-verify is not installed.

Where the levels differ from math-verify, they do so on purpose, and `tests/fixtures/maths_pairs.jsonl` lists each case.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from selfplay_gym import literals
from selfplay_gym.maths_program import PROGRAM
from selfplay_gym.types import Execution, Job, Limits, Status

RULES = 1
"""Version of these rules: raised whenever the same answer could compare differently."""

Level = Literal["exact", "numeric", "symbolic"]

LIMITS = Limits(cpu_seconds=3.0, wall_seconds=60.0, memory_bytes=512 * 2**20)
"""Of one symbolic comparison. The slowest two references of the known sets take 1.2 s, most pairs 0.02 s.

Nothing in a comparison sleeps, so whoever meets the clock on the wall was kept from the processor: it is far off.
"""

MAX_ANSWER = 2000
"""Longest answer that is read as mathematics, in characters; the longest reference known has 210."""

MAX_EXPONENT = 1000
"""Largest exponent that is computed; beyond, a number is only known to be beyond."""

_TAIL = 50_000  # characters at the end of a completion in which its answer is looked for


@dataclass(frozen=True, slots=True)
class Comparison:
    """What comparing an answer with the reference gave.

    Attributes:
        equal: None where there is no verdict.
        level: That decided.
        reason: Why it is not equal; empty where it is.
    """

    equal: bool | None
    level: Level
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """What else than the very value is right.

    Attributes:
        relative: How far a number may be off, as a share of the reference.
        absolute: How far, in units of the reference.
        several: The reference is a list of answers, all of which must be given, in any order.
    """

    relative: Fraction = Fraction(0)
    absolute: Fraction = Fraction(0)
    several: bool = False


EXACTLY = Rule()


# -- the final answer of a completion ----------------------------------------------------------------------------------

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_STATED = re.compile(r"(?:answer\s+is|answer\s*:|####)[\s:*]*([^\n]*)", re.IGNORECASE)
_NUMBER_IN_TEXT = re.compile(
    r"(?<![0-9.])-?(?:\\[dt]?frac\{-?[0-9]+\}\{[0-9]+\}|(?:[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+)(?:/[0-9]+)?%?)"
)


def final_answer(completion: str) -> str:
    r"""Return the final answer in a completion, empty where there is none.

    In this order: the content of the last ``\boxed{...}`` whose braces are balanced; the rest of the line after the
    last "answer is", "answer:" or ``####``, if it holds anything; the last number.

    >>> final_answer(r"so \boxed{1} or rather \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    >>> final_answer("#### 1,234"), final_answer("first 3, then 4")
    ('1,234', '4')
    """
    text = completion[-_TAIL:]
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed.strip()
    for stated in reversed(_STATED.findall(text)):
        if (sentence := _first_sentence(stated)) != "":
            return sentence
    numbers = _NUMBER_IN_TEXT.findall(text)
    return numbers[-1] if numbers else ""


def _last_boxed(text: str) -> str | None:
    found: tuple[int, int] | None = None
    opened: list[int] = []  # where the content begins; -1 for a brace that opens no box
    for token in _BRACES.finditer(text):
        if token[0].endswith("{") and token[0] != r"\{":
            opened.append(token.end() if token[0] != "{" else -1)
        elif token[0] == "}" and opened:
            start = opened.pop()
            if start >= 0 and (found is None or start > found[0]):
                found = (start, token.start())
    return None if found is None else text[found[0] : found[1]]


def _first_sentence(stated: str) -> str:
    """Return what is stated, without the sentences after it and the marks around it."""
    return re.split(r"[.!?](?:\s|$)", stated, maxsplit=1)[0].strip(" \t*_`\"'.:")


# -- normalisation -----------------------------------------------------------------------------------------------------

_CHARACTERS = str.maketrans({
    "\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "\u2215": "/",
    "π": r"\pi ", "θ": r"\theta ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "\u222a": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ", "°": r"^\circ ", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "²": "^{2}",
    "³": "^{3}", "\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u2019": "'",
})  # fmt: skip
_REWRITES = tuple((re.compile(pattern, re.ASCII), to) for pattern, to in (
    (r"\\[,;:! ]|~|\\q?quad\b|\\(?:display|text)style\b|\\limits\b", " "),
    (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\s*\.?", ""),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}"),
    (r"\\frac\s*([0-9])\s*\{", r"\\frac{\1}{"),
    (r"\\frac\s*(\{[^{}]*\})\s*([0-9])", r"\\frac\1{\2}"),
    (r"\\sqrt\s*([0-9])", r"\\sqrt{\1}"),
    (r"\\(?:leq|leqslant|geq|geqslant|neq)\b", lambda m: {"l": r"\le", "g": r"\ge", "n": r"\ne"}[m[0][1]]),
    (r"\{,\}", ","),
    (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ\b)|\\degree\b|\\textdegree\b", r"\\degree "),
    (r"\\([%#&_])", r"\1"),
    (r"\\?\$|\\[()\[\]]", ""),
))  # fmt: skip
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|tt|sf|normal)?|mbox|math(?:rm|bf|it|sf|tt)|operatorname)\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]+")
_CHOICE = re.compile(r"\(([A-Z])\)")
_SPACES = re.compile(r"\s+")
# A space goes unless it keeps two numbers or a command and a letter apart.
_NEEDLESS_SPACE = re.compile(r"(?<![0-9A-Za-z]) | (?![0-9A-Za-z])")
_EXPONENT = re.compile(r"(?<![A-Za-z\\0-9.])([0-9]+\.?[0-9]*|\.[0-9]+)[eE]([-+]?[0-9]{1,6})(?![A-Za-z0-9.])")


def normal(text: str) -> str:
    r"""Return an answer in the spelling in which equal texts are equal answers.

    >>> normal(r"$ \dfrac12 $"), normal(r"\left( 3 , \pi \right)"), normal(r"\text{Even}."), normal("1{,}000")
    ('\\frac{1}{2}', '(3,\\pi)', 'even', '1,000')
    """
    text = _plain(text)
    text = _SPACES.sub(" ", _TEXT.sub(r" \1 ", text)).strip().rstrip(".").strip()
    if _WORDS.fullmatch(text):
        return text.lower()
    if (choice := _CHOICE.fullmatch(text)) is not None:
        return choice[1]
    return _NEEDLESS_SPACE.sub("", text)


def _plain(text: str) -> str:
    text = text.translate(_CHARACTERS)
    for pattern, to in _REWRITES:
        text = pattern.sub(to, text)
    return text


# -- numbers -----------------------------------------------------------------------------------------------------------

_DIGITS = r"[0-9]{1,3}(?:[, ][0-9]{3})+(?![0-9])|[0-9]+"
_DECIMAL = rf"(?:{_DIGITS})(?:\.[0-9]*)?|\.[0-9]+"
_MONEY = r"(?:[£€¥₹]|\busd\b|\brs\b\.?)"
_SIGNED = re.compile(rf"([-+]?)\s*{_MONEY}?\s*([-+]?)(.*)", re.DOTALL | re.IGNORECASE)
_BODY = re.compile(
    rf"(?P<whole>{_DECIMAL})?(?:\s+(?P<parts>[0-9]+)\s*/\s*(?P<of>[0-9]+)|\s*(?:"
    rf"\\frac\{{\s*(?P<top>[-+]?(?:{_DECIMAL}))\s*\}}\{{\s*(?P<bottom>[-+]?(?:{_DECIMAL}))\s*\}}"
    rf"|/\s*(?P<over>{_DECIMAL})"
    r"|[eE](?P<e>[-+]?[0-9]+)"
    r"|(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*(?:\{\s*(?P<times>[-+]?[0-9]+)\s*\}|(?P<times1>[-+]?[0-9]+))"
    r"|\^\s*(?:\{\s*(?P<power>[-+]?[0-9]+)\s*\}|(?P<power1>[0-9]))"
    r"|\^\s*\{?\s*(?P<tower>[-+]?[0-9]+)\s*\^\s*(?:\{\s*[0-9]+(?:\s*\^\s*\{?[0-9]+\}?)*\s*\}|[0-9]+)\s*\}?"
    r"))?(?P<rest>.*)",
    re.DOTALL,
)
_PERCENT = re.compile(r"\s*(?:%|percent)\s*")
_DEGREES = re.compile(r"\s*\\degree\s*")
_UNIT = re.compile(r"\s+([A-Za-z]+(?:[ /-][A-Za-z]+){0,3})\.?(?:\s*\^\s*\{?[23]\}?)?", re.ASCII)
_NAMED = re.compile(r"\s*((?:[A-Za-z]|\\[a-z]+)(?:_\{?\w\}?)?(?:\([a-z]\))?)\s*=(.*)", re.DOTALL)
# A word after a number is its unit if it has three letters or is one of these; shorter ones may be variables.
_SHORT_UNITS = frozenset(
    ("cm", "mm", "km", "ft", "in", "mi", "yd", "kg", "mg", "lb", "oz", "ml", "hr", "am", "of", "per")
)
# But these change the number, or bring in another one.
_NO_UNITS = frozenset((
    "and", "plus", "minus", "times", "over", "through", "hundred", "thousand", "million", "billion", "trillion",
    "hundreds", "thousands", "millions", "billions", "trillions", "dozen", "dozens", "score",
    "pair", "pairs", "half", "halves", "third", "thirds", "quarter", "quarters", "tenth", "tenths",
    "squared", "cubed", "factorial", "point", "mod", "choose",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Number:
    """A plain number.

    Attributes:
        value: None for one beyond `MAX_EXPONENT`, too large or too close to 0 to be computed.
        is_decimal: Written with a point or an exponent, and so perhaps rounded.
        percent: Written with a percent sign.
        unit: Written after it.
        name: Of the variable that is said to have this value.
    """

    value: Fraction | None
    is_decimal: bool
    percent: bool
    unit: str
    name: str


def _number(text: str) -> _Number | None:
    """Return the plain number that a normalised text is, None where it is none."""
    if len(text) > MAX_ANSWER:
        return None
    name = ""
    if (named := _NAMED.fullmatch(text)) is not None:
        name, text = named[1], named[2]
    signs = _SIGNED.fullmatch(text.strip())
    body = _BODY.fullmatch(signs[3]) if signs is not None else None
    if signs is None or body is None or (signs[1] and signs[2]):
        return None
    rest = body["rest"]
    percent = _PERCENT.fullmatch(rest) is not None
    unit = "" if percent or not rest.strip() or _DEGREES.fullmatch(rest) else _unit(rest)
    if unit is None:
        return None
    try:
        value = _value(body)
    except (ValueError, ZeroDivisionError):
        return None
    if value is not None and "-" in signs[1] + signs[2]:
        value = -value
    is_decimal = "." in body[0][: body.start("rest")] or body["e"] is not None
    return _Number(value, is_decimal, percent, unit, name)


def _unit(text: str) -> str | None:
    """Return the unit that stands after a number, None where the text may be something else."""
    found = _UNIT.fullmatch(text)
    if found is None:
        return None
    words = re.findall("[a-z]+", found[1].lower())
    if any(word in _NO_UNITS or (len(word) < 3 and word not in _SHORT_UNITS) for word in words):
        return None
    return found[0].strip().lower()


def _value(body: re.Match[str]) -> Fraction | None:
    whole = None if body["whole"] is None else _fraction(body["whole"])
    top, bottom = body["top"] or body["parts"], body["bottom"] or body["of"]
    if top is not None:
        part = _fraction(top) / _fraction(bottom)
        if whole is not None and (part < 0 or "." in body["whole"]):
            raise ValueError("neither a mixed number nor a fraction")
        return part + (whole or 0)
    if whole is None:
        raise ValueError("no digit")
    if body["over"] is not None:
        return whole / _fraction(body["over"])
    if body["tower"] is not None:
        return None if whole not in (0, 1) else whole
    power = body["power"] or body["power1"]
    exponent = power or body["e"] or body["times"] or body["times1"]
    if exponent is None:
        return whole
    base = whole if power else Fraction(10)
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if len(exponent) > 7 or abs(int(exponent)) > MAX_EXPONENT or bits > 256:
        return whole if whole == 0 or (power and whole == 1) else None
    return base ** int(exponent) * (1 if power else whole)


def _fraction(text: str) -> Fraction:
    return Fraction(re.sub("[, ]", "", text))


def _same_number(reference: _Number, answer: _Number, rule: Rule) -> bool | None:
    """Return whether two plain numbers are equal; None where that takes more than is computed here."""
    if reference.value is None or answer.value is None:
        return None if reference.value is answer.value else False
    pairs = [(reference.value, answer.value)]
    if reference.percent != answer.percent:  # 50% is 50 to some and 0.5 to others
        pairs.append((_share(reference), _share(answer)))
    is_rounded = reference.is_decimal or answer.is_decimal
    return any(_close(right, value, is_rounded, rule) for right, value in pairs)


def _share(number: _Number) -> Fraction:
    value = number.value or Fraction(0)
    return value / 100 if number.percent else value


def _close(right: Fraction, value: Fraction, is_rounded: bool, rule: Rule) -> bool:
    """Return whether a value is right.

    A decimal may be rounded: six decimals must agree, as math-verify has it, and five digits, without which every two
    small numbers would be equal.
    """
    off = abs(value - right)
    if is_rounded and off <= abs(right) / 10**5 and round(value, 6) == round(right, 6):
        return True
    return off <= max(rule.relative * abs(right), rule.absolute)


# -- the levels --------------------------------------------------------------------------------------------------------


def compare(reference: str, answer: str, rule: Rule = EXACTLY) -> Comparison | None:
    r"""Compare by text and as numbers; None where only the symbolic level can say.

    Args:
        reference: Trusted.
        answer: What `final_answer` found.
        rule: What else is right.

    >>> compare(r"\frac{1}{2}", "0.5")
    Comparison(equal=True, level='numeric', reason='')
    >>> compare("18", "10^{10^{10}}")
    Comparison(equal=False, level='numeric', reason='another number')
    >>> compare(r"\sqrt{8}", r"2\sqrt{2}") is None
    True
    """
    if not answer.strip():
        return Comparison(False, "exact", "no answer")
    if answer.strip() == reference.strip():
        return Comparison(True, "exact")
    if len(answer) > MAX_ANSWER:
        return Comparison(False, "exact", f"over {MAX_ANSWER} characters")
    if not _is_balanced(answer):
        return Comparison(False, "exact", "braces do not match")  # it would end the box it is put in for math-verify
    right, given = normal(reference), normal(answer)
    if right == given:
        return Comparison(True, "exact")
    if rule.several:
        return _compare_lists(_items(right), _items(given), rule)
    return _compare_numbers(right, given, rule)


def one_spelling(answer: str, rule: Rule = EXACTLY) -> str:
    r"""Return an answer so that equal texts are equal answers, for counting votes.

    Numbers are compared by value, whatever unit, percent sign or name of a variable stands beside them; lists, where
    several answers are asked for, in any order; all else by `normal`. Answers that only math-verify knows to be equal
    are told apart. Numbers are written in hexadecimal digits, which are never too many for Python.

    >>> one_spelling("0.50"), one_spelling(r"\frac{1}{2}"), one_spelling("50%"), one_spelling(r"2\sqrt{2}")
    ('1/2', '1/2', '32/1', '2\\sqrt{2}')
    """
    text = normal(answer[:MAX_ANSWER])
    items = _items(text) if rule.several else [text]
    return ";".join(sorted(map(_by_value, items)))


def _by_value(text: str) -> str:
    number = _number(text)
    if number is None or number.value is None:
        return text
    return f"{number.value.numerator:x}/{number.value.denominator:x}"


def _is_balanced(text: str) -> bool:
    depth = 0
    for token in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth < 0:
            return False
    return depth == 0


def _compare_numbers(right: str, given: str, rule: Rule) -> Comparison | None:
    numbers = _number(right), _number(given)
    if numbers[0] is None or numbers[1] is None:
        return None
    if any(a and b and a != b for a, b in zip(*((n.unit, n.name) for n in numbers if n), strict=True)):
        return None
    same = _same_number(numbers[0], numbers[1], rule)
    if same is None:
        return None
    return Comparison(same, "numeric", "" if same else "another number")


def _compare_lists(right: list[str], given: list[str], rule: Rule) -> Comparison | None:
    """Pair the items off; None as soon as one has no partner, since math-verify may know better."""
    left = list(given)
    level: Level = "exact"
    for item in right:
        if item in left:
            left.remove(item)
            continue
        level = "numeric"
        partners = ((other, _compare_numbers(item, other, rule)) for other in left)
        partner = next((other for other, found in partners if found is not None and found.equal), None)
        if partner is None:
            return None
        left.remove(partner)
    return None if left else Comparison(True, level)


def _items(text: str) -> list[str]:
    """Return the items of a list, split at commas outside brackets and at "and" and "or"."""
    items, depth, start = [], 0, 0
    for match in re.finditer(r"[(\[{]|[)\]}]|,|;|\b(?:and|or)\b", text):
        if match[0] in "([{":
            depth += 1
        elif match[0] in ")]}":
            depth -= 1
        elif depth == 0:
            items.append(text[start : match.start()].strip())
            start = match.end()
    items.append(text[start:].strip())
    return [item for item in items if item]


def job(reference: str, answer: str, rule: Rule = EXACTLY) -> Job:
    """Return the job of the symbolic level, whose execution `judged` understands."""
    texts = [literals.encode(_for_math_verify(text)) for text in (reference, answer)]
    # A plain program that imports math-verify goes to a server that holds it.
    return Job(PROGRAM, (f"{texts[0]}, {texts[1]}, {float(rule.relative)!r}",), policy="plain", limits=LIMITS)


def _for_math_verify(text: str) -> str:
    """Return an answer as LaTeX; math-verify would read the ``e`` of an exponent as Euler's number."""
    text = text.translate(_CHARACTERS).replace(r"\$", "").replace("$", "").replace("\0", "")
    text = text.encode("utf-8", "replace").decode()
    return _EXPONENT.sub(r"\1 \\times 10^{\2}", text)


def judged(execution: Execution) -> Comparison:
    """Return what the job of `job` found. Never called with an execution that has no verdict."""
    if execution.status is Status.OK and execution.value in ("True", "False"):
        equal = execution.value == "True"
        return Comparison(equal, "symbolic", "" if equal else "another value")
    if execution.error_type in ("ImportError", "ModuleNotFoundError"):
        return Comparison(None, "symbolic", "no verdict: math-verify is missing: pip install 'selfplay-gym[eval]'")
    why = f"{execution.status} {execution.error_type}".strip()
    return Comparison(False, "symbolic", f"cannot be compared: {why}")
