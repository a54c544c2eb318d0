"""What a proposer can be paid beside learnability: for programs that are complex, unlike the others, or varied.

The extras of the published code of Absolute Zero (arXiv:2505.03335, appendix D), where they are off, too: its authors
saw little gain. Each is a pure function with values from 0 to 1, and none is computed unless it has a weight. They
differ from the published ones where a proposal could make those take seconds, or move them by renaming a variable; each
docstring says how.
"""

from __future__ import annotations

import ast
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from selfplay_gym import programs
from selfplay_gym.types import Task

MOST_NODES = 2000
"""Of a program that are compared with another one's: some 30 milliseconds for two programs of that size."""

_Function = ast.FunctionDef | ast.AsyncFunctionDef


# -- one program -------------------------------------------------------------------------------------------------------


def complexity(program: str) -> float:
    """Return the cognitive complexity over 15, at most 1; the published code has no such bound but that of the pay.

    >>> complexity("def f(x): return x if x > 0 else -x") * 15
    1.0
    """
    return min(cognitive_complexity(program) / 15, 1.0)


def cognitive_complexity(program: str) -> int:
    r"""Return how hard the flow of control is to follow (Campbell 2018, "Cognitive Complexity", SonarSource).

    One for each ``if``, conditional expression, loop, ``except`` and ``match``, and one more for each level it is
    nested in; one for each ``elif``, ``else``, sequence of ``and`` or ``or``, and for each function that calls itself.
    A comprehension counts as the loops and conditions it stands for, which the paper leaves open.

    >>> cognitive_complexity("def f(x):\n for y in x:\n  if y and x:\n   return y\n  else:\n   return 0")
    5
    """
    return sum(_cognitive(node, 0, ()) for node in programs.parse(program).body)


def _cognitive(node: ast.AST, depth: int, names: tuple[str, ...]) -> int:
    children: list[tuple[ast.AST, int]]
    own, deeper = 0, depth + 1
    match node:
        case ast.If():
            own = 1 + depth
            return own + _cognitive(node.test, depth, names) + _branches(node, depth, names)
        case ast.IfExp():
            own = 1 + depth
            children = [(node.test, depth), (node.body, deeper), (node.orelse, deeper)]
        case ast.For() | ast.While() | ast.AsyncFor():
            own = 1 + depth + bool(node.orelse)
            inner = {id(part) for part in (*node.body, *node.orelse)}
            children = [(c, deeper if id(c) in inner else depth) for c in ast.iter_child_nodes(node)]
        case ast.ExceptHandler() | ast.Match():
            own = 1 + depth
            children = [(c, deeper) for c in ast.iter_child_nodes(node)]
        case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
            loops = len(node.generators)
            own = sum(1 + depth + level for level in range(loops))
            own += sum((1 + depth + level + 1) * len(g.ifs) for level, g in enumerate(node.generators))
            children = [(c, depth + loops) for c in ast.iter_child_nodes(node)]
        case ast.BoolOp():
            own = 1
            children = [(c, depth) for c in ast.iter_child_nodes(node)]
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            own = int(_calls_itself(node))
            level = deeper if names else depth
            return own + sum(_cognitive(c, level, (*names, node.name)) for c in ast.iter_child_nodes(node))
        case ast.Lambda():
            children = [(c, deeper) for c in ast.iter_child_nodes(node)]
        case _:
            children = [(c, depth) for c in ast.iter_child_nodes(node)]
    return own + sum(_cognitive(child, level, names) for child, level in children)


def _branches(node: ast.If, depth: int, names: tuple[str, ...]) -> int:
    """Count what is in the branches; ``elif`` is a branch like ``else``, not an ``if`` one level deeper."""
    inside = sum(_cognitive(child, depth + 1, names) for child in node.body)
    if len(node.orelse) == 1 and isinstance(branch := node.orelse[0], ast.If):
        return inside + 1 + _cognitive(branch.test, depth, names) + _branches(branch, depth, names)
    return inside + bool(node.orelse) + sum(_cognitive(child, depth + 1, names) for child in node.orelse)


def _calls_itself(function: _Function) -> bool:
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == function.name
        for node in ast.walk(function)
    )


def halstead(program: str) -> float:
    """0.5 min(E / 10000, 1) + 0.3 min(C / 10, 1) + 0.2 min(V / 500, 1): effort, branches and volume in one number.

    E and V are Halstead's effort and volume (`halstead_measures`), C is the greatest `cyclomatic_complexity` of a
    function; weights and bounds are those of the published code.

    >>> round(halstead("def f(x): return x * 2 + 1"), 3)  # E = V = 15.5, C = 1
    0.037
    """
    effort, volume = halstead_measures(program)
    branches = cyclomatic_complexity(program)
    return 0.5 * min(effort / 10_000, 1.0) + 0.3 * min(branches / 10, 1.0) + 0.2 * min(volume / 500, 1.0)


def halstead_measures(program: str) -> tuple[float, float]:
    """Return effort and volume (Halstead 1977, "Elements of Software Science"), counted as radon counts them.

    Operators are those of arithmetic, comparison and logic, with n1 different ones of N1; operands what they are
    applied to, with n2 of N2. Volume (N1 + N2) log2(n1 + n2), effort volume * n1 N2 / (2 n2).

    >>> effort, volume = halstead_measures("def f(x): return x * 2 + 1")  # * and +; x, 2, the product and 1
    >>> round(effort, 3), round(volume, 3)  # 6 log2(6) twice, as n1 = N1 = 2 and n2 = N2 = 4
    (15.51, 15.51)
    """
    operators: list[str] = []
    operands: list[object] = []
    for function, node in _with_function(programs.parse(program)):
        used, applied = _operation(node)
        operators += used
        operands += [(function, _operand(operand)) for operand in applied]
    kinds, different = len(set(operators)), len(set(operands))
    if not different:
        return 0.0, 0.0
    volume = (len(operators) + len(operands)) * math.log2(kinds + different)
    return volume * kinds * len(operands) / (2 * different), volume


def _operation(node: ast.AST) -> tuple[list[str], list[ast.expr]]:
    match node:
        case ast.BinOp():
            return [type(node.op).__name__], [node.left, node.right]
        case ast.UnaryOp():
            return [type(node.op).__name__], [node.operand]
        case ast.BoolOp():
            return [type(node.op).__name__], node.values
        case ast.AugAssign():
            return [type(node.op).__name__], [node.target, node.value]
        case ast.Compare():
            return [type(op).__name__ for op in node.ops], [node.left, *node.comparators]
    return [], []


def _operand(node: ast.expr) -> object:
    """Return what tells an operand from others: its name or value; any other expression is one of its own."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Constant(value=value):
            return type(value).__name__, value
    return id(node)


def _with_function(tree: ast.AST, function: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Yield every node with the name of the function it is in."""
    for node in ast.iter_child_nodes(tree):
        yield function, node
        yield from _with_function(node, node.name if isinstance(node, _Function) else function)


def cyclomatic_complexity(program: str) -> int:
    """Return the greatest number of independent paths through a function (McCabe 1976), counted as radon counts them.

    >>> cyclomatic_complexity("def f(x): return [y for y in x if y and y > 2]")
    4
    """
    tree = programs.parse(program)
    functions = [node for node in ast.walk(tree) if isinstance(node, _Function)]
    return max((1 + sum(map(_decisions, ast.walk(function))) for function in functions), default=1)


def _decisions(node: ast.AST) -> int:
    match node:
        case ast.If() | ast.IfExp() | ast.Assert():
            return 1
        case ast.For() | ast.While() | ast.AsyncFor():
            return 1 + bool(node.orelse)
        case ast.Try():
            return len(node.handlers) + bool(node.orelse)
        case ast.BoolOp():
            return len(node.values) - 1
        case ast.comprehension():
            return 1 + len(node.ifs)
        case ast.Match():
            return len(node.cases)
    return 0


OF_PROGRAMS: dict[str, Callable[[str], float]] = {"complexity": complexity, "halstead": halstead}
"""The extras that a program earns by itself."""


# -- a program beside others -------------------------------------------------------------------------------------------


def mean_edit_distance(program: str, references: Sequence[str]) -> float:
    """Return the mean `edit_distance` to the programs that the proposer was shown; 1 where it was shown none.

    >>> mean_edit_distance("def f(x): return x", ["def f(y): return y", "def f(x): return -(x - 1)"])
    0.25
    """
    return math.fsum(edit_distance(program, other) for other in references) / len(references) if references else 1.0


def edit_distance(one: str, other: str) -> float:
    """Return how many nodes to insert, remove or replace to get from one tree to the other, over the larger one's size.

    Trees are taken as sequences of constructs in order of the text, names and constants left out, as in
    `programs.shape`, and the first 2000 nodes count. The published code takes 1 - `difflib.SequenceMatcher.ratio` of
    two JSON dumps, which is not symmetric, grows with renamed variables, and took a second for programs of 50 lines.

    >>> edit_distance("def f(x): return x", "def f(x): return -(x - 1)")  # 10 nodes, of which 5 are new
    0.5
    """
    first, second = programs.kinds(one)[:MOST_NODES], programs.kinds(other)[:MOST_NODES]
    return levenshtein(first, second) / max(len(first), len(second), 1)


def levenshtein(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the least number of insertions, removals and replacements (Levenshtein 1966).

    >>> levenshtein("kitten", "sitting"), levenshtein("", "abc")
    (3, 3)
    """
    numbers: dict[str, int] = {}
    first, second = ([numbers.setdefault(word, len(numbers)) for word in words] for words in (one, other))
    columns = np.arange(len(second) + 1)
    row, letters = columns, np.array(second, dtype=int)
    for place, letter in enumerate(first, start=1):
        best = np.minimum(row[1:] + 1, row[:-1] + (letters != letter))
        # An insertion takes one from the left: the running minimum of what is left after that many.
        row = np.minimum.accumulate(np.concatenate(([place], best)) - columns) + columns
    return int(row[-1])


def surprise(seen: int, total: int) -> float:
    """Return 1 - seen / total: how rare a value is among ``total`` of which ``seen`` are it; 1 where there are none.

    >>> surprise(1, 4), surprise(0, 4), surprise(0, 0)
    (0.75, 1.0, 1.0)
    """
    return 1.0 - seen / total if total else 1.0


class Seen:
    """Counts the inputs and outputs of tasks, by family; values are kept as hashes, so that long ones cost no more."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], Counter[bytes]] = {}

    def add(self, task: Task) -> None:
        """Take a task's inputs and outputs in."""
        for part, values in (("input", task.inputs), ("output", task.outputs)):
            self._counts.setdefault((task.family, part), Counter()).update(map(_digest, values))

    def surprise(self, part: str, task: Task, *, known: bool) -> float:
        """Return the mean `surprise` of a task's inputs or outputs among those of the other tasks of its family.

        ``known`` says that the task itself was taken in.
        """
        counts = self._counts.get((task.family, part), Counter())
        values = [_digest(value) for value in (task.inputs if part == "input" else task.outputs)]
        own = Counter(values) if known else Counter()
        total = counts.total() - own.total()
        return math.fsum(surprise(counts[value] - own[value], total) for value in values) / len(values)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


# -- paying for it -----------------------------------------------------------------------------------------------------

NAMES = (*OF_PROGRAMS, "mean_edit_distance", "input_diversity", "output_diversity", "novelty")
"""What can have a weight. ``novelty`` is `rewards.count_bonus` over program shapes, here under a cap."""


def contributions(values: Mapping[str, float], weights: Mapping[str, float], cap: float) -> list[float]:
    """Return min(weight * value, cap) for each that has a weight.

    >>> contributions({"complexity": 0.5, "halstead": 0.9}, {"complexity": 0.25, "halstead": 2.0}, cap=0.5)
    [0.125, 0.5]
    """
    return [min(weight * values[name], cap) for name, weight in weights.items()]


def _sum(reward: float, extras: Sequence[float]) -> float:
    return reward + math.fsum(extras)


def _multiply(reward: float, extras: Sequence[float]) -> float:
    return reward * math.prod(extras)


def _sum_multiply(reward: float, extras: Sequence[float]) -> float:
    return reward + math.prod(extras)


def _multiply_sum(reward: float, extras: Sequence[float]) -> float:
    return reward * math.fsum(extras)


COMBINE: dict[str, Callable[[float, Sequence[float]], float]] = {
    "sum": _sum,
    "multiply": _multiply,
    "sum_multiply": _sum_multiply,
    "multiply_sum": _multiply_sum,
}
"""The published ways to combine a reward r and contributions c: r + sum(c), r prod(c), r + prod(c), r sum(c)."""
