"""The small programs that the executor and its rivals are measured on, and what each answer should be.

Every rival gets the same programs; running them in this process, with nothing around them, is the floor and says the
answers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Final

from selfplay_gym import literals
from selfplay_gym.types import Execution, Job, Status

# A small program each, `{n}` a number from 2 to 9, and what to call it with: `{i}` from 1 to 12, `{j}` up
# to a million, so that the texts of most inputs are new to whoever remembers some.
_TEMPLATES: Final = (
    ("def f(xs):\n    total = 0\n    for i, x in enumerate(xs):\n        total += x * (i % {n} + 1)\n    return total",
     "[{i}, 2, 3, 5, 8, {j}]"),
    ("def f(text):\n    words = text.split()\n"
     "    return ' '.join(w[::-1] if len(w) > {n} else w.upper() for w in words)",
     "'the quick brown fox {j} jumps'"),
    ("def f(n):\n    a, b = 0, 1\n    out = []\n    while len(out) < n + {n}:\n        out.append(a)\n"
     "        a, b = b, a + b\n    return out", "{i}"),
    ("def f(items):\n    counts = {{}}\n    for item in items:\n        counts[item] = counts.get(item, 0) + {n}\n"
     "    return sorted(counts.items())", "['a', 'b', 'a', 'c', 'b{j}']"),
    ("import re\n\ndef f(text):\n    return [int(d) * {n} for d in re.findall(r'[0-9]+', text)]", "'a1b22c333 {j}'"),
    ("def f(rows):\n    return [[x * {n} for x in column] for column in zip(*rows)]", "[[1, 2, {i}], [4, {j}, 6]]"),
    ("class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n"
     "        self.items.append(item)\n        return self\n\ndef f(n):\n    stack = Stack()\n"
     "    for i in range(n + {n}):\n        stack.push(i * i)\n    return stack.items[::-1]", "{i}"),
    ("from collections import Counter\n\ndef f(text):\n    return dict(Counter(text).most_common({n}))",
     "'mississippi{j}'"),
    ("def f(n):\n    def walk(k):\n        return 1 if k < 2 else walk(k - 1) + walk(k - 2)\n"
     "    return walk(n % 5 + {n} // 2)", "{i}"),
    ("def f(xs, k):\n    seen = set()\n    for x in xs:\n        if (x + k) % {n} == 0:\n            seen.add(x)\n"
     "    return seen", "[3, 1, 4, 1, 5, 9, 2, {j}], {i}"),
    ("import itertools\n\ndef f(xs):\n    return sum(a * b % {n} for a, b in itertools.combinations(xs, 2))",
     "[{j}, 2, 3, {i}]"),
    ("def f(n):\n    if n > {n}:\n        raise ValueError(f'too large: {{n}}')\n"
     "    return {{'n': n, 'half': n / 2}}", "{i}"),
)  # fmt: skip

KINDS: Final = len(_TEMPLATES)
"""That many programs in a row are of different kinds."""


def programs(count: int, inputs: int, seed: int = 0) -> list[Job]:
    """Return ``count`` different small programs with ``inputs`` inputs each; the seed fixes them."""
    rng = random.Random(seed)
    jobs = []
    for number in range(count):
        program, arguments = _TEMPLATES[number % len(_TEMPLATES)]
        text = program.format(n=rng.randint(2, 9)) + f"\n# {number}\n"
        texts = tuple(_filled(arguments, rng) for _ in range(inputs))
        jobs.append(Job(text, texts, policy="plain"))
    return jobs


def _filled(arguments: str, rng: random.Random) -> str:
    return arguments.replace("{i}", str(rng.randint(1, 12))).replace("{j}", str(rng.randint(1, 10**6)))


def evaluate(program: str, arguments: str) -> str:
    """Run one of our own programs here, with nothing around it: the floor that no sandbox can pass."""
    try:
        namespace: dict[str, Any] = {}
        exec(compile(program, "<program>", "exec", 0, True), namespace)
        values = eval(compile(f"({arguments}\n,)", "<input>", "eval", 0, True), {})  # noqa: S307
        return repr(namespace["f"](*values))
    except Exception as error:
        return raised(error)


def raised(error: Exception) -> str:
    """Return the answer of a program that raised: the last line of its traceback.

    >>> raised(ValueError("too large: 12"))
    'ValueError: too large: 12'
    """
    return f"{type(error).__name__}: {error}"


def agreement(answers: Sequence[str | Execution], expected: Sequence[str]) -> float:
    """Return which share of the answers is as expected, whatever the order of the items of sets and dicts.

    >>> agreement(["{1, 2}", "ValueError: 3"], ["{2, 1}", "4"])
    0.5
    """
    pairs = zip(answers, expected, strict=True)
    return sum(_spelled(answer) == _spelled(other) for answer, other in pairs) / len(expected)


def _spelled(answer: str | Execution) -> str:
    if isinstance(answer, Execution):
        if answer.status is not Status.OK:
            return f"{answer.error_type}: {answer.message}" if answer.status is Status.ERROR else str(answer.status)
        answer = str(answer.value)
    try:
        return literals.canonical(answer)
    except literals.NotALiteral:
        return answer
