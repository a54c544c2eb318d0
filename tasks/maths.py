"""Held-out mathematics: questions whose final answer is a number or a piece of LaTeX, told apart as `maths` does it.

All sets have rows with ``question`` and ``answer``; the table below says which files, and what else is right than the
very value. They have no programs, so a task's one input is the question and its one output the reference.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import cast

from selfplay_gym import maths
from selfplay_gym.errors import InvalidConfig, InvalidData
from selfplay_gym.maths import EXACTLY, Comparison, Rule
from selfplay_gym.suites import Problem, Row, Source, Suite, open_table
from selfplay_gym.tasks import prompting
from selfplay_gym.tasks.prompting import Style
from selfplay_gym.types import Execution, Job, Task, Verdict


class Maths:
    """Asks a question; the final answer counts, however it is written.

    Args:
        style: Prompt style.
        rule: What else than the very value is right.
        exceptions: Rules of single questions.
    """

    name = "maths"

    def __init__(
        self, style: Style = "azr", rule: Rule = EXACTLY, exceptions: Mapping[str, Rule] | None = None
    ) -> None:
        prompting.check_style(style)
        self.style: Style = style
        self._rule = rule
        self._exceptions = exceptions or {}

    @property
    def rules(self) -> Mapping[str, object]:
        """The version of the comparison, and what else than the very value is right."""
        return {"maths": maths.RULES, "relative": str(self._rule.relative), "absolute": str(self._rule.absolute)}

    def solve_prompt(self, task: Task) -> str:
        """Show the question."""
        return prompting.fill(self.name, "solve", self.style, question=task.inputs[0])

    def check(self, task: Task, answer: str) -> Verdict | Job:
        """Compare text and numbers; what needs more is a job for math-verify in the sandbox."""
        given, reference = maths.final_answer(answer), task.outputs[0]
        rule = self._exceptions.get(task.inputs[0], self._rule)
        found = maths.compare(reference, given, rule)
        return maths.job(reference, given, rule) if found is None else _verdict(found)

    def judge(self, task: Task, executions: Sequence[Execution]) -> Verdict:
        """Take over what math-verify said."""
        return _verdict(maths.judged(executions[0]))

    def vote(self, task: Task, answer: str, executions: Sequence[Execution]) -> str:
        """Return the number, else the text as `maths.normal` spells it; math-verify is not asked."""
        rule = self._exceptions.get(task.inputs[0], self._rule)
        return maths.one_spelling(maths.final_answer(answer), rule)


def _verdict(found: Comparison) -> Verdict:
    score = None if found.equal is None else float(found.equal)
    return Verdict(score, found.reason, level=found.level)


# -- the sets ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Set:
    """One set.

    Attributes:
        name: Of its file and its suite.
        file: Name of its file where that is another.
        rule: What else than the very value is right.
        keep: Which rows are asked; None for all.
        note: What a reader of the score must know.
    """

    name: str
    file: str = ""
    rule: Rule = EXACTLY
    keep: Callable[[Row], bool] | None = None
    note: str = ""


_SETS = {
    each.name: each
    for each in (
        _Set("gsm8k"),
        _Set("math500"),
        _Set("aime24"),
        _Set("aime25"),
        _Set("amc23"),
        _Set("hmmt24"),
        _Set("hmmt25"),
        # Of the sciences, with rounded references; that 1% is right is the set's custom.
        _Set("minerva", "minerva_math", Rule(relative=Fraction(1, 100)), note="numbers within 1%"),
        _Set("olympiadbench"),
        _Set("svamp"),
        _Set("asdiv", keep=lambda row: row.value("numeric") is True, note="rows with a numeric answer"),
        _Set("multiarith"),
    )
}


def _load(names: Sequence[str], source: Source) -> list[Suite]:
    if importlib.util.find_spec("math_verify") is None:
        # Without it answers that are no plain number would get no verdict, and so leave the score.
        raise InvalidConfig(f"suite {names[0]} needs math-verify: pip install 'selfplay-gym[eval]'")
    return [_suite(_SETS[name], source) for name in names]


gsm8k, math500, aime24, aime25, amc23, hmmt24, hmmt25, minerva, olympiadbench, svamp, asdiv, multiarith = (
    partial(_load, (name,)) for name in _SETS
)
hmmt = partial(_load, ("hmmt24", "hmmt25"))


def _suite(wanted: _Set, source: Source) -> Suite:
    file = wanted.file or wanted.name
    data, found = open_table(source.data_dir, f"{file}.jsonl", f"{file}_dev.jsonl")
    rows = [row for row in data.rows if wanted.keep is None or wanted.keep(row)]
    family = Maths(cast(Style, source.style), wanted.rule, _exceptions(rows, wanted.rule))
    problems = tuple(_problem(row) for row in rows)
    note = "; ".join(filter(None, ("dev half" if "_dev" in found else "", wanted.note)))
    return Suite(wanted.name, {"maths": family}, problems, data.sha256, limits=maths.LIMITS, note=note)


def _problem(row: Row) -> Problem:
    reference = row.text("answer")
    task = Task("maths", "", (_question(row),), (reference,))
    return Problem(row.text("id"), task, rf"\boxed{{{reference}}}")


def _question(row: Row) -> str:
    context = row.fields.get("context")  # of OlympiadBench: what several questions share
    return "\n\n".join(filter(None, (str(context or ""), row.text("question"))))


def _exceptions(rows: Sequence[Row], rule: Rule) -> dict[str, Rule]:
    """Return the rules of rows that say of themselves how they are scored, as OlympiadBench's do."""
    found: dict[str, Rule] = {}
    for row in rows:
        several = row.fields.get("is_multiple_answer") is True
        error = row.fields.get("error")
        if several or error:
            found[_question(row)] = replace(rule, several=several, absolute=_error(row) if error else rule.absolute)
    return found


def _error(row: Row) -> Fraction:
    try:
        return Fraction(row.text("error"))
    except (ValueError, ZeroDivisionError):
        raise InvalidData(f"{row.where}: field 'error' must be a number, got {row.text('error')!r}") from None
