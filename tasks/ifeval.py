"""IFEval (arXiv:2311.07911): does a response follow the instructions of its prompt, all of which code can check?

The score is strict: all instructions hold of the response as it is. Beside it stand the loose score, where dropping the
first line, the last line or asterisks may help, and the shares of single instructions. Nothing is run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import cast

from selfplay_gym.errors import InvalidData
from selfplay_gym.instructions import CHECKS, follows, variants
from selfplay_gym.languages import LANGUAGES
from selfplay_gym.suites import Problem, Row, Source, Suite, open_table
from selfplay_gym.tasks import prompting
from selfplay_gym.types import Execution, Mark, Task, Verdict

FILE = "ifeval.jsonl"
_PROBE = "Some text.\n\nMore of it, in the end."


class Instructions:
    """Asks a prompt; the task's message holds its instructions, each with its arguments, as JSON.

    Args:
        style: Prompt style.
    """

    name = "ifeval"

    def __init__(self, style: prompting.Style = "azr") -> None:
        prompting.check_style(style)
        self.style = style

    def solve_prompt(self, task: Task) -> str:
        """Show the prompt as it is."""
        return prompting.fill(self.name, "solve", self.style, prompt=task.inputs[0])

    def check(self, task: Task, answer: str) -> Verdict:
        """Check every instruction, strictly and loosely."""
        asked = json.loads(task.message)
        strict = [follows(name, arguments, answer) for name, arguments in asked]
        texts = variants(answer)
        loose = [any(follows(name, arguments, text) for text in texts) for name, arguments in asked]
        marks = (
            Mark("prompt_loose", all(loose), 1),
            Mark("instruction_strict", sum(strict), len(asked)),
            Mark("instruction_loose", sum(loose), len(asked)),
        )
        broken = next((name for (name, _), held in zip(asked, strict, strict=True) if not held), "")
        return Verdict(float(not broken), broken, marks=marks)

    def judge(self, task: Task, executions: Sequence[Execution]) -> Verdict:
        """Never needed: `check` decides."""
        raise AssertionError("ifeval needs no execution")


def load(source: Source) -> list[Suite]:
    """Return the one suite ``ifeval``; further metrics are ``prompt_loose`` and ``instruction_strict``, ``_loose``."""
    data, _ = open_table(source.data_dir, FILE)
    family = Instructions(cast(prompting.Style, source.style))
    problems = tuple(_problem(row) for row in data.rows)
    return [Suite("ifeval", {family.name: family}, problems, data.sha256, metric="prompt_strict")]


def _problem(row: Row) -> Problem:
    names, arguments = row.list("instruction_id_list"), row.list("kwargs")
    if not names or len(names) != len(arguments):
        raise InvalidData(
            f"{row.where}: expected arguments for each instruction, got {len(arguments)} for {len(names)}"
        )
    asked = list(zip(names, arguments, strict=True))
    failure = next(filter(None, (_failure(row, name, given) for name, given in asked)), "")
    if failure:
        return Problem(row.text("id"), None, failure=failure)
    return Problem(row.text("id"), Task(Instructions.name, "", (row.text("prompt"),), ("",), json.dumps(asked)))


def _failure(row: Row, name: object, arguments: object) -> str:
    """Return why an instruction cannot be checked here."""
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise InvalidData(f"{row.where}: an instruction is a name and an object, got {name!r} and {arguments!r}")
    if name not in CHECKS:
        return f"no check of the instruction {name}"
    if "language" in arguments and arguments["language"] not in LANGUAGES:
        return f"no rule for the language {arguments['language']}"
    try:
        follows(name, arguments, _PROBE)
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidData(f"{row.where}: the arguments of {name} are not those it takes: {error}") from None
    return ""
