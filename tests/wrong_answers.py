"""Answers that are wrong in a known way, made from right ones, each with the case that `plain_judge` decides it by."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfplay_gym import literals
from selfplay_gym.suites import Problem, Suite
from selfplay_gym.types import Task

Case = dict[str, Any]
JUDGE = Path(__file__).parent / "plain_judge.py"


@dataclass(frozen=True)
class Wrong:
    """An answer and how the plain judge is asked about it."""

    problem: str
    mutant: str
    answer: str
    case: Case


def plainly_right(wrongs: Sequence[Wrong]) -> list[bool]:
    """Ask the plain judge, in a fresh interpreter."""
    cases = json.dumps([wrong.case for wrong in wrongs])
    done = subprocess.run([sys.executable, "-I", str(JUDGE)], input=cases, capture_output=True, text=True, check=True)
    found: list[bool] = json.loads(done.stdout)
    return found


# -- values ------------------------------------------------------------------------------------------------------------

# Also the text of a program: mutants move and retype what they return by it.
VALUES = '''
def moved(value):
    """Another value of the same type: the first number one more, the first text one letter more."""
    if isinstance(value, bool): return not value
    if isinstance(value, (int, float)): return value + 1
    if isinstance(value, str): return value + "x"
    if isinstance(value, (list, tuple)):
        items = [moved(value[0]), *value[1:]] if value else [0]
        return type(value)(items)
    if isinstance(value, dict): return {**value, 0: 0}
    if isinstance(value, (set, frozenset)): return value | {0, 1, "x"}
    return 0


def retyped(value):
    """A value of another type that Python may hold to be equal."""
    if isinstance(value, bool): return int(value)
    if isinstance(value, int): return bool(value) if value in (0, 1) else float(value)
    if isinstance(value, float): return int(value) if value == value and abs(value) < 1e9 else str(value)
    if isinstance(value, str): return [*value]
    if isinstance(value, list): return tuple(value)
    if isinstance(value, tuple): return list(value)
    if isinstance(value, (set, frozenset)): return sorted(value, key=repr)
    if isinstance(value, dict): return [*value.items()]
    return str(value)
'''
_names: dict[str, Callable[[object], object]] = {}
exec(VALUES, _names)  # type: ignore[arg-type]
moved, retyped = _names["moved"], _names["retyped"]


def output_mutants(right: str) -> dict[str, str]:
    """Outputs made of a right one, by what was done to it; the first is the right one."""
    value = literals.parse(right)
    return {
        "right": right,
        "off by one": literals.encode(moved(value)),
        "another type": literals.encode(retyped(value)),
        "as text": repr(right),
        "a constant": "0",
        "printed": f"print({right})",
        "an expression": f"({right})[:]" if isinstance(value, list) else f"0 or {right}",
        "in a list": f"[{right}]",
        "cut": right[:-1],
        "huge": "[0] * 10**9",
        "deep": "[" * 300 + "]" * 300,
        "an exception": "raise ValueError(1)",
        "nothing": "",
    }


def input_mutants(right: str) -> dict[str, str]:
    """Argument lists made of a right one; some are right too."""
    found = {"right": right, "nothing": "", "a constant": "1", "printed": f"print({right})", "one more": f"{right}, 0"}
    found |= {"huge": "[0] * 10**9", "an exception": "(_ for _ in ()).throw(ValueError)", "cut": right[1:]}
    try:
        first, *others = literals.parse_arguments(right)[0]
    except (literals.NotALiteral, ValueError):
        return found
    for name, other in (("off by one", moved(first)), ("another type", retyped(first)), ("as text", str(first))):
        found[name] = ", ".join(literals.encode(value) for value in (other, *others))
    return found


# -- programs ----------------------------------------------------------------------------------------------------------

BODIES = {
    "right": "return value",
    "off by one": "return moved(value)",
    "another type": "return retyped(value)",
    "as text": "return str(value)",
    "in a tuple": "return value,",
    "one less": "return value[:-1]",
    "a constant": "return {constant}",
    "shown tests special-cased": "return value if (args, named) in {shown} else {constant}",
    "printed": "print(value)",
    "an exception": "raise ValueError(value)",
    "an exception at times": "return value if (args, named) in {shown} else value[10 ** 9]",
    "the end of the process": "import os; os._exit(0)",
    "huge": "return [value] * 10 ** 7",
}
ENDLESS = {"endless": "while True: pass", "endless and deaf": "\n        ".join((
    "while True:", "    try:", "        while True: pass", "    except BaseException: pass",
))}  # fmt: skip
_FUNCTION = """{source}


def called(*args, **named):
    return args, named

{values}
_right = {entry}


def {entry}(*args, **named):
    value = _right(*args, **named)
    if True:
        {body}
"""
_BY_HEART = """def call(*args, **named):
    return args, named


TABLE = [{rows}]


def f(*args, **named):
    return next(output for given, output in TABLE if given == (args, named))
"""


def by_heart(pairs: Sequence[tuple[str, str]]) -> str:
    """A program that knows pairs of argument lists and outputs: the sets of examples have no other reference."""
    return _BY_HEART.format(rows=", ".join(f"(call({given}), {output})" for given, output in pairs))


def program_mutants(
    source: str, entry: str, shown: Sequence[str], constant: str, bodies: Mapping[str, str] = BODIES
) -> dict[str, str]:
    """Programs that call a right one and do something to what it returns; the first does nothing."""
    known = f"[{', '.join(f'called({given})' for given in shown)}]"
    filled = {name: body.replace("{shown}", known).replace("{constant}", constant) for name, body in bodies.items()}
    return {
        name: _FUNCTION.format(source=source, values=VALUES, entry=entry, body=body) for name, body in filled.items()
    }


# -- suites ------------------------------------------------------------------------------------------------------------

Rows = Mapping[str, dict[str, Any]]
Maker = Callable[[Problem, Task, Rows, bool], Iterator[tuple[str, str, Case]]]


def _encoded(value: object) -> str:
    return literals.encode(value)


def _named(names: Sequence[str], values: Sequence[object]) -> str:
    return ", ".join(f"{name}={_encoded(value)}" for name, value in zip(names, values, strict=True))


def _json_pairs(row: dict[str, Any]) -> list[tuple[str, str]]:
    """The pairs that a program for a row must get right, by the README: those not shown, or for grids all."""
    if "name" in row:  # DreamCoder's
        pairs = row["examples"][8:]
    elif "arg_names" in row:  # SyGuS'
        return [(_named(row["arg_names"], each["inputs"]), _encoded(each["output"])) for each in row["examples"]]
    elif "entry_point" in row:  # pairs of HumanEval and MBPP, as text
        return [(pair["input"], pair["output"]) for pair in row["test"]]
    elif "test_ood" in row or len(row["test"]) == len(row["train"]) == 8:  # List Functions
        pairs = row["test"]
    else:
        pairs = row["train"] + row["test"]
    return [(_encoded(pair["input"]), _encoded(pair["output"])) for pair in pairs]


def programs(problem: Problem, task: Task, rows: Rows, endless: bool) -> Iterator[tuple[str, str, Case]]:
    row = rows[problem.id]
    source = problem.answer or by_heart(list(zip(task.inputs, task.outputs, strict=True)))
    shown = task.inputs[: getattr(task, "seen", 0)]
    how = "close" if "entry_point" in row else "exact"
    bodies = {**BODIES, **(ENDLESS if endless else {})}
    for name, program in program_mutants(source, "f", shown, task.outputs[0], bodies).items():
        yield name, program, {"kind": "program", "calls": _json_pairs(row), "how": how}


def outputs(problem: Problem, task: Task, rows: Rows, endless: bool) -> Iterator[tuple[str, str, Case]]:
    key, _, number = problem.id.rpartition("/") if task.family == "arc" else (problem.id, "", "")
    row = rows[key]
    if "entry_point" in row:
        case: Case = {"kind": "result", "program": task.program, "given": task.inputs[0], "how": "close"}
    else:
        stated = _encoded(row["test"][int(number)]["output"]) if number else row["output"]
        case = {"kind": "output", "expected": stated, "how": "exact"}
    for name, answer in output_mutants(task.outputs[0]).items():
        yield name, answer, case


def inputs(problem: Problem, task: Task, rows: Rows, endless: bool) -> Iterator[tuple[str, str, Case]]:
    how = "close" if "entry_point" in rows[problem.id] else "exact"
    case: Case = {"kind": "input", "program": task.program, "reference": task.inputs[0], "expected": task.outputs[0]}
    for name, answer in input_mutants(task.inputs[0]).items():
        yield name, answer, {**case, "how": how}


def puzzles(problem: Problem, task: Task, rows: Rows, endless: bool) -> Iterator[tuple[str, str, Case]]:
    bodies = {**BODIES, **(ENDLESS if endless else {})}
    for name, program in program_mutants(problem.answer, "sol", (), "1", bodies).items():
        yield name, program, {"kind": "puzzle", "sat": rows[problem.id]["sat"]}


_SCRIPT = "import sys\n{source}\nprint(*f(sys.stdin.read()), sep='\\n')\n"
_CLASS = "{source}\n\n\nclass Solution:\n    def {name}(self, **named):\n        return f(**named)\n"


def contests(problem: Problem, task: Task, rows: Rows, endless: bool) -> Iterator[tuple[str, str, Case]]:
    tests = [(test["input"], test["output"]) for test in rows[problem.id]["sample_tests"]]
    is_script = task.family == "script"
    given = [repr(text) for text in task.inputs] if is_script else list(task.inputs)
    source = by_heart(list(zip(given, task.outputs, strict=True)))
    name = task.message.partition("def ")[2].partition("(")[0]
    bodies = {**BODIES, **(ENDLESS if endless else {})}
    for mutant, program in program_mutants(source, "f", given[:1], task.outputs[0], bodies).items():
        if is_script:
            yield mutant, _SCRIPT.format(source=program), {"kind": "script", "tests": tests}
        else:
            answer = _CLASS.format(source=program, name=name)
            yield mutant, answer, {"kind": "method", "tests": tests, "method": name}


MAKERS: dict[str, Maker] = {
    "induction": programs,
    "deduction": outputs,
    "abduction": inputs,
    "test_output": outputs,
    "arc": outputs,
    "puzzle": puzzles,
    "script": contests,
    "method": contests,
}
"""By family."""


def corpus(suite: Suite, rows: Rows, every: int, endless: int) -> list[Wrong]:
    """Wrong answers, and a right one, to every so manieth problem; endless ones to the first few alone."""
    made = []
    asked = [(problem, problem.task) for problem in suite.problems[::every] if problem.task is not None]
    for number, (problem, task) in enumerate(asked):
        for name, answer, case in MAKERS[task.family](problem, task, rows, number < endless):
            case = {**case, "answer": answer, **({"seconds": 1} if name.startswith(("endless", "huge")) else {})}
            made.append(Wrong(problem.id, name, answer, case))
    return made
