"""Our suites as tasks of other harnesses: a folder of prompts, whose answers are still judged here, in the sandbox.

The folder does not hold what is hidden of a task. Whoever scores loads the suite again from its data, makes sure that
it is the data that was exported, and hands the completion to `selfplay_gym.grading`. So a harness gives the numbers
that `selfplay-gym eval` gives.
"""

from __future__ import annotations

import atexit
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from selfplay_gym import grading, registry, statistics, suites
from selfplay_gym.errors import InvalidConfig, InvalidData
from selfplay_gym.eval_protocols import Choice, cut
from selfplay_gym.evaluating import Exam, Put, prepare
from selfplay_gym.output import write_whole
from selfplay_gym.protocols import Executor
from selfplay_gym.results import RowScore
from selfplay_gym.suites import Problem, Source, Suite, row_of

HEAD = "export.json"
"""File of an exported folder that says what it holds."""

STYLES = {"lm-eval": "azr", "inspect": "chat"}
"""The harnesses, with the style of prompt that suits how each asks: as text to complete, or as a user's message."""


@dataclass(frozen=True)
class Exported:
    """A suite of an exported folder.

    Attributes:
        protocol: Its name.
        style: Of the prompts.
        temperature: Of the one completion of each problem.
        max_new_tokens: Its longest.
        stops: Where it ends.
        metric: What the score of one problem means.
        groups: Whether problems form groups.
        prompts_sha256: Of all prompts.
        data_sha256: Of the data file.
        judge: Hash of the rules by which it is judged.
    """

    protocol: str
    style: str
    temperature: float
    max_new_tokens: int
    stops: Sequence[str]
    metric: str
    groups: bool
    prompts_sha256: str
    data_sha256: str
    judge: str

    @classmethod
    def of(cls, put: Put) -> Exported:
        """Return what is to be known of a suite as it is put."""
        sampling, suite = put.protocol.sampling, put.suite
        return cls(
            put.protocol.name,
            str(put.protocol.style),
            sampling.temperature,
            sampling.max_new_tokens or 1,
            put.protocol.stops,
            suite.metric,
            any(problem.group for problem in suite.problems),
            grading.prompts_sha256(suite.prompts()),
            suite.data_sha256,
            _judge(suite),
        )


def _judge(suite: Suite) -> str:
    families = {name: dict(f.rules) for name, f in suite.families.items() if isinstance(f, grading.RuledFamily)}
    return grading.digest({"rules": grading.RULES, "families": families})


@dataclass(frozen=True)
class Export:
    """What an exported folder holds.

    Attributes:
        names: The style of each suite, by the name that it was asked for under.
        limit: Only the first so many problems of each.
        data_dir: Folder of the data files; None: the variable ``SELFPLAY_GYM_DATA`` says.
        suites: By name.
    """

    names: Mapping[str, str]
    limit: int | None
    data_dir: str | None
    suites: Mapping[str, Exported]

    def load(self, executor: Executor) -> list[Suite]:
        """Return the suites from their data.

        Raises:
            InvalidData: A data file is missing or broken.
        """
        source = Source(executor, Path(self.data_dir) if self.data_dir else None)
        loaded = suites.load_named([*self.names], source, self.names.__getitem__).present()
        return [suite.first(self.limit) for found in loaded.suites.values() for suite in found]

    @classmethod
    def read(cls, folder: Path) -> Export:
        """Return what a folder says it holds.

        Raises:
            InvalidData: It was not written by `export`.
        """
        where = str(folder / HEAD)
        try:
            fields: dict[str, Any] = dict(row_of(json.loads((folder / HEAD).read_bytes()), where).fields)
            held = {name: Exported(**facts) for name, facts in fields.pop("suites").items()}
            return cls(suites=held, **fields)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidData(f"{where} was not written by `selfplay-gym export-suite`: {error}") from None


# -- writing -----------------------------------------------------------------------------------------------------------


def export(
    names: Sequence[str],
    harness: str,
    output: Path,
    executor: Executor,
    *,
    choice: Choice | None = None,
    data_dir: Path | None = None,
    limit: int | None = None,
) -> str:
    """Write suites as tasks of a harness into a new folder and return a command that runs them.

    Args:
        names: Registered suites, and groups of them.
        harness: One of `STYLES`.
        output: New or empty.
        executor: Runs references, for the suites that need it.
        choice: Of the protocol; its style is by default what suits the harness, which asks each problem once.
        data_dir: Folder of the data files; by default ``SELFPLAY_GYM_DATA``.
        limit: Take the first so many problems of each suite only.

    Raises:
        UnknownId: No suite, protocol or style of that name.
        InvalidData: A data file is missing or broken.
        InvalidConfig: No such harness, the folder holds something, or a suite has no such protocol.
    """
    if harness not in STYLES:
        raise InvalidConfig(registry.unknown("harness", harness, STYLES))
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InvalidConfig(f"{output} is there already: choose a new or empty folder")
    exam = prepare(names, Source(executor, data_dir, STYLES[harness]), choice or once(), limit=limit)
    place = None if data_dir is None else str(data_dir.resolve())
    head = Export(exam.names, limit, place, {put.suite.name: Exported.of(put) for put in exam.puts})
    output.mkdir(parents=True, exist_ok=True)
    _write_rows(output, exam)
    command = {"lm-eval": _write_lm_eval, "inspect": _write_inspect}[harness](output.resolve(), head)
    write_whole(output / HEAD, json.dumps(asdict(head), indent=2) + "\n")
    return command


def once(
    protocol: str = "default",
    style: str | None = None,
    *,
    temperature: float | None = None,
    max_new_tokens: int | None = None,
) -> Choice:
    """Return the choice of a protocol with one completion a problem, and what else is to differ from it."""
    stated = {"temperature": temperature, "max_new_tokens": max_new_tokens}
    changes: Any = {"samples": 1} | {name: value for name, value in stated.items() if value is not None}
    return Choice(protocol, style, changes)


def _write_rows(output: Path, exam: Exam) -> None:
    """Write what is asked: a problem without a task, whose reference gave no value here, is not."""
    for suite in (put.suite for put in exam.puts):
        rows = [{"suite": suite.name, "id": key, "prompt": prompt} for key, prompt in suite.prompts().items()]
        write_whole(output / f"{suite.name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


class _Function(str):
    """A name in the file of scoring, which lm-evaluation-harness resolves."""


class _Dumper(yaml.SafeDumper):
    """Writes such names as it reads them."""


_Dumper.add_representer(_Function, lambda dumper, name: dumper.represent_scalar("!function", str(name)))

_LM_EVAL_SCORING = '''"""Scores completions through selfplay_gym's sandbox for the task files beside this one."""

from pathlib import Path

from selfplay_gym.harness import Scorer, mean_of_groups

__all__ = ["mean_of_groups", "process_results"]
_SCORER = Scorer(Path(__file__).parent)


def process_results(doc, results):  # a function: the harness copies what a task names, and a sandbox cannot be copied
    return _SCORER.process_results(doc, results)
'''


def _write_lm_eval(output: Path, head: Export) -> str:
    write_whole(output / "scoring.py", _LM_EVAL_SCORING)
    for name, facts in head.suites.items():
        task = _lm_eval_task(output, name, facts)
        write_whole(output / f"{name}.yaml", yaml.dump(task, Dumper=_Dumper, sort_keys=False))
    template = " --apply_chat_template" if "chat" in head.names.values() else ""
    return (
        f"lm_eval --model hf --model_args pretrained=MODEL --include_path {shlex.quote(str(output))} "
        f"--tasks {','.join(map(_task_name, head.suites))}{template}"
    )


def _task_name(suite: str) -> str:
    return f"selfplay_gym_{suite}"


def _lm_eval_task(output: Path, name: str, facts: Exported) -> dict[str, Any]:
    mean = _Function("scoring.mean_of_groups") if facts.groups else "mean"
    sampling = {"do_sample": facts.temperature > 0, "temperature": facts.temperature}
    return {
        "task": _task_name(name),
        "tag": "selfplay_gym",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(output / f"{name}.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "id",  # never shown: no example is, and answers are judged by running them
        "generation_kwargs": {"until": list(facts.stops), **sampling, "max_gen_toks": facts.max_new_tokens},
        "process_results": _Function("scoring.process_results"),
        "metric_list": [
            {"metric": facts.metric, "aggregation": mean, "higher_is_better": True},
            {"metric": "no_verdict", "aggregation": "mean", "higher_is_better": False},
        ],
        "metadata": {"version": grading.RULES, "protocol": facts.protocol, "data_sha256": facts.data_sha256},
    }


_INSPECT_HEAD = '''"""Tasks of Inspect, whose answers selfplay_gym judges in its sandbox."""

from pathlib import Path

from inspect_ai import Task, task
from selfplay_gym.inspect_tasks import suite_task

HERE = Path(__file__).parent
'''

_INSPECT_TASK = """

@task
def {function}() -> Task:
    return suite_task(HERE, {name!r})
"""


def _write_inspect(output: Path, head: Export) -> str:
    functions = {name: "".join(c if c.isalnum() else "_" for c in name) for name in head.suites}
    tasks = (_INSPECT_TASK.format(function=function, name=name) for name, function in functions.items())
    write_whole(output / "tasks.py", _INSPECT_HEAD + "".join(tasks))
    places = (shlex.quote(f"{output / 'tasks.py'}@{function}") for function in functions.values())
    return f"inspect eval {' '.join(places)} --model MODEL"


# -- scoring -----------------------------------------------------------------------------------------------------------


class Scorer:
    """Judges completions to the tasks of an exported folder; sandbox and data are opened at the first one.

    Args:
        folder: What `export` wrote.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.export = Export.read(folder)

    @cached_property
    def executor(self) -> Executor:
        """The sandbox, for as long as this process lives."""
        executor: Executor = registry.executors.load("sandbox")()
        atexit.register(executor.close)
        return executor

    @cached_property
    def problems(self) -> dict[tuple[str, str], tuple[Suite, Problem]]:
        """Suite and problem by their names.

        Raises:
            InvalidData: It is not the data that was exported, or another version of the judge.
        """
        loaded = self.export.load(self.executor)
        for suite in loaded:
            self._refuse_another(suite)
        return {(suite.name, problem.id): (suite, problem) for suite in loaded for problem in suite.problems}

    def _refuse_another(self, suite: Suite) -> None:
        exported = self.export.suites[suite.name]
        for what, then, now in (
            ("data", exported.data_sha256, suite.data_sha256),
            ("the judge", exported.judge, _judge(suite)),
        ):
            if now != then:
                raise InvalidData(
                    f"{self.folder}: {what} of {suite.name} is {then[:12]} there and {now[:12]} here: use what it was "
                    "exported with, or export it again"
                )

    def score(self, suite: str, problem: str, completion: str) -> RowScore:
        """Return how a completion scores; the score is None where there is no verdict."""
        whole, asked = self.problems[suite, problem]
        text = cut(completion, self.export.suites[suite].stops)
        return grading.grade(replace(whole, problems=(asked,)), {asked.id: [text]}, self.executor).rows[0]

    def process_results(self, doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
        """Return the metrics of one row for lm-evaluation-harness; without a verdict it has no score.

        In a suite with groups the score comes with what counts once (`mean_of_groups`).
        """
        row = self.score(doc["suite"], doc["id"], results[0])
        if row.score is None:
            return {"no_verdict": 1.0}
        facts = self.export.suites[doc["suite"]]
        score = [row.score, *row.unit] if facts.groups else row.score
        return {facts.metric: score, "no_verdict": 0.0}


def mean_of_groups(items: Sequence[Sequence[Any]]) -> float:
    """Return the mean over groups of the mean within each; an item is a score and what names its group.

    >>> mean_of_groups([[1.0, "a", ""], [0.0, "a", ""], [1.0, "", "b"]])
    0.75
    """
    means = statistics.group_means([float(item[0]) for item in items], [tuple(item[1:]) for item in items])
    return math.fsum(means) / len(means)
