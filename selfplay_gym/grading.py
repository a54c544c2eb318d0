"""Score answers to a suite: three-valued, in few executor batches, without the model that gave them.

One rule takes the answer out of a completion, whether a model just wrote it or a file holds it, so that stored
completions score the same as the run that stored them. The rule is lenient: held-out scores measure the answer, and
how many completions kept to the think/answer frame is reported beside it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import platform
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from rich import box
from rich.table import Table

from selfplay_gym import statistics, suites
from selfplay_gym.errors import InvalidData
from selfplay_gym.frame import answer_of
from selfplay_gym.protocols import Executor, TwoRunFamily
from selfplay_gym.statistics import Estimate
from selfplay_gym.suites import Problem, Source, Suite
from selfplay_gym.types import Execution, Job, Limits, Status, Task, Tier, Verdict

RULES = 1
"""Version of the judge: raised whenever the same completion could score differently."""

JUDGES = ("numpy", "math-verify", "sympy", "latex2sympy2_extended")
"""Distributions whose version could change a score."""

CHUNK = 256
"""Jobs in one executor batch: enough to fill every worker, few enough to show progress."""

_LOOSE_ANSWER = re.compile(r".*<answer>(.*?)(?:</answer>|$)", re.DOTALL)

Progress = Callable[[int, int], None]
"""Called with how many are done and how many there are."""

Completions = Mapping[str, Sequence[str]]
"""Sampled texts by problem id, one or more each."""


@runtime_checkable
class SharingFamily(Protocol):
    """A family that can also say which share of an answer's hidden parts is right."""

    def share(self, task: Task, executions: Sequence[Execution]) -> float:
        """Return a number from 0 to 1."""
        ...


@runtime_checkable
class RuledFamily(Protocol):
    """A family with rules of its own by which it judges, as values that JSON has."""

    @property
    def rules(self) -> Mapping[str, object]:
        """What a verdict depends on beside `RULES`."""
        ...


@runtime_checkable
class VotingFamily(Protocol):
    """A family that can also say which answers are the same, so that the samples of a problem can vote."""

    def vote(self, task: Task, answer: str, executions: Sequence[Execution]) -> str:
        """Return the answer in one spelling, the same for equal answers; empty where it names none.

        ``executions`` are those of the job that `check` asked for, none where it asked for none.
        """
        ...


@dataclass(frozen=True, slots=True)
class RowScore:
    """How the answers to one problem scored.

    Attributes:
        id: The problem's id.
        score: Mean over the samples that have a verdict; None when none has.
        reason: Why the first sample that is not right is not; empty when all are.
        scores: One a sample; None where there is no verdict.
        group: Of the problem; empty where it counts by itself.
        levels: How each sample was decided, where the family says so.
        votes: A hash of each sample's answer, where the family knows equal ones; empty for a sample without an answer.
    """

    id: str
    score: float | None
    reason: str
    scores: tuple[float | None, ...]
    group: str = ""
    levels: tuple[str, ...] = ()
    votes: tuple[str, ...] = ()

    @property
    def unit(self) -> tuple[str, str]:
        """What counts once in the value: the group, or the problem where it has none."""
        return self.group, "" if self.group else self.id


@dataclass(frozen=True)
class SuiteResult:
    """The score of one suite with all that is needed to believe or repeat it.

    Attributes:
        suite: Name of the suite.
        n: Problems with a verdict; the value is their mean, or that of their groups' means.
        metric: ``accuracy``, or ``avg@N`` for N samples a problem.
        value: From 0 to 1; None without any verdict.
        interval: 95% interval: Wilson for one sample a problem, else bootstrap, over problems or over their groups.
        no_verdict: Samples without a verdict because *our* machinery, or the row's own reference, failed.
        missing: Problems without a completion. They count as wrong.
        framed: Share of completions that kept to the think/answer frame.
        extra: Further metrics by name, such as ``pass@4`` and ``majority@4``.
        parts: The score by task family, where there are several.
        protocol: Hash of ``settings``.
        settings: What the score depends on: prompts, style, decoding, limits, rules.
        data_sha256: Of the data file.
        note: What a reader must know, such as ``dev half``.
        rows: One a problem, in order.
    """

    suite: str
    n: int
    metric: str
    value: float | None
    interval: tuple[float, float] | None
    no_verdict: int
    missing: int
    framed: float | None
    extra: Mapping[str, float]
    parts: Mapping[str, Estimate]
    protocol: str
    settings: Mapping[str, object]
    data_sha256: str
    note: str
    rows: tuple[RowScore, ...]

    def as_dict(self) -> dict[str, object]:
        """Return what ``--json`` writes for a suite."""
        values: dict[str, object] = asdict(self)
        # With one sample a problem its scores would only repeat the score.
        several = any(len(row.scores) > 1 for row in self.rows)
        values["rows"] = [_row_as_dict(row, several) for row in self.rows]
        return values

    @property
    def groups(self) -> int:
        """Groups with a verdict; 0 where every problem counts by itself."""
        return len({row.group for row in self.rows if row.group and row.score is not None})

    @property
    def decided(self) -> Mapping[str, int]:
        """How many samples each level decided, for families that have levels."""
        return Counter(level for row in self.rows for level in row.levels if level)


def _row_as_dict(row: RowScore, several: bool) -> dict[str, object]:
    values: dict[str, object] = {"id": row.id, "score": row.score, "reason": row.reason}
    if several:
        values["scores"] = row.scores
    if row.group:
        values["group"] = row.group
    if any(row.levels):
        values["levels"] = row.levels
    return values


@dataclass(frozen=True)
class Report:
    """Results of one evaluation and how it was made.

    Attributes:
        results: One a suite.
        model: Path or id of the policy, or the completions file.
        command: The command line.
        seed: Of sampling; None for stored completions.
        tier: Isolation of the executor.
        versions: Of Python and of the packages that matter.
        notes: What else a reader should be warned of.
    """

    results: tuple[SuiteResult, ...]
    model: str
    command: str = field(default_factory=lambda: shlex.join(sys.argv))
    seed: int | None = None
    tier: str = ""
    versions: Mapping[str, str] = field(default_factory=lambda: versions_of("selfplay-gym", *JUDGES))
    notes: tuple[str, ...] = ()

    def table(self) -> Table:
        """Return the scores as a table for people; several families of a suite follow it, indented."""
        table = Table(title=self.model, caption=_caption(self.results), caption_justify="left", box=box.SIMPLE_HEAD)
        table.pad_edge = False
        table.add_column("suite", no_wrap=True)
        table.add_column("metric", no_wrap=True)
        for heading in ("n", "value", "95% interval", "no verdict", "in frame"):
            table.add_column(heading, justify="right", no_wrap=heading == "95% interval")
        for result in self.results:
            _add_result(table, result)
        return table

    def warnings(self) -> list[str]:
        """Say for which problems there is no completion, and what else is to be known."""
        missing = [line for result in self.results if (line := _without_completion(result))]
        weaker = self.tier not in ("", Tier.FULL)
        tier = [f"judged in tier {self.tier}: `selfplay-gym doctor` says which walls are absent"] if weaker else []
        return [*missing, *tier, *self.notes]

    def as_dict(self) -> dict[str, object]:
        """Return what ``--json`` writes."""
        return {
            "model": self.model,
            "command": self.command,
            "seed": self.seed,
            "tier": self.tier,
            "versions": dict(self.versions),
            "suites": [result.as_dict() for result in self.results],
        }


# -- grading -----------------------------------------------------------------------------------------------------------


def extract(completion: str) -> str:
    """Return the answer in a completion.

    In this order: what stands in a well-formed frame; what follows the last ``<answer>``; what follows the last
    ``</think>``; the whole text.

    >>> extract("2 + 2</think><answer>4</answer>"), extract("so <answer> 4"), extract("2 + 2</think> 4"), extract("4")
    ('4', '4', '4', '4')
    """
    framed = answer_of(completion)
    if framed is not None:
        return framed
    loose = _LOOSE_ANSWER.match(completion)
    return (loose[1] if loose else completion.rpartition("</think>")[2]).strip()


def grade(
    suite: Suite,
    completions: Completions,
    executor: Executor,
    settings: Mapping[str, object] | None = None,
    on_progress: Progress | None = None,
    seed: int = 0,
    unanswered: Mapping[str, int] | None = None,
) -> SuiteResult:
    """Score the completions of every problem of a suite.

    Args:
        suite: The problems.
        completions: Texts by problem id. A problem without any scores 0 with reason ``no completion``.
        executor: Runs what needs running, in batches of `CHUNK` jobs.
        settings: What else the score depends on (prompts, decoding); goes into the protocol hash.
        on_progress: Called after each batch.
        seed: Of the bootstrap.
        unanswered: How many further samples of a problem were asked for and not given, by problem id. They have no
            verdict: whoever was asked may have been down.

    Raises:
        ExecutorError: The sandbox as a whole could not be started.
    """
    samples = [(p, text) for p in suite.problems if p.task is not None for text in completions.get(p.id, ())]
    attempts = [(p.task, extract(text)) for p, text in samples if p.task]
    judged = judge(attempts, suite, executor, on_progress, [problem.limits for problem, _ in samples])
    by_problem: dict[str, list[Judged]] = {problem.id: [] for problem in suite.problems}
    for (problem, _), found in zip(samples, judged, strict=True):
        by_problem[problem.id].append(found)
    for problem_id, count in (unanswered or {}).items():
        by_problem[problem_id] += [Judged(Verdict(None, "no verdict: no answer"))] * count
    rows = tuple(_row(problem, by_problem[problem.id]) for problem in suite.problems)
    shares = [found.share for found in judged if found.share is not None]
    framed = [answer_of(text) is not None for _, text in samples]
    result = _result(suite, rows, shares, framed, settings or {}, seed)
    return replace(result, extra={**result.extra, **_marked(suite, by_problem)})


@dataclass(frozen=True, slots=True)
class Judged:
    """What is known of one sample.

    Attributes:
        verdict: On it.
        share: Of its hidden parts that are right; None for families that know none, or no verdict.
        vote: A hash of its answer; empty where there is none, None for families that do not know equal answers.
    """

    verdict: Verdict
    share: float | None = None
    vote: str | None = None


Check = Verdict | Job


def judge(
    attempts: Sequence[tuple[Task, str]],
    suite: Suite,
    executor: Executor,
    on_progress: Progress | None = None,
    own_limits: Sequence[Limits | None] | None = None,
) -> list[Judged]:
    """Return what is known of each pair of a suite's task and an answer to it, in order.

    Args:
        attempts: Tasks and answers.
        suite: Where the tasks are from.
        executor: Runs what needs running.
        on_progress: Called after each batch.
        own_limits: Of each attempt that needs others than the suite's.

    Raises:
        ExecutorError: The sandbox as a whole could not be started.
    """
    checks: list[Check] = [suite.families[task.family].check(task, answer) for task, answer in attempts]
    limits = [own or suite.limits for own in own_limits or [None] * len(attempts)]
    executions = _run(checks, limits, executor, on_progress)
    seconds = [_examined(suite, task, runs) for (task, _), runs in zip(attempts, executions, strict=True)]
    if any(seconds):
        checks = [second or check for second, check in zip(seconds, checks, strict=True)]
        again = _run([second or _DONE for second in seconds], limits, executor, on_progress)
        executions = [new or old for new, old in zip(again, executions, strict=True)]
    judged: list[Judged] = []
    for (task, answer), check, runs in zip(attempts, checks, executions, strict=True):
        verdict = _verdict(suite, task, check, runs)
        judged.append(Judged(verdict, _share(suite, task, verdict, runs), _vote(suite, task, answer, runs)))
    return judged


_DONE = Verdict(None)


def _run(
    checks: Sequence[Check], limits: Sequence[Limits], executor: Executor, on_progress: Progress | None
) -> list[tuple[Execution, ...]]:
    """Return the executions of each check that is a job; none for the others."""
    stated = zip(checks, limits, strict=True)
    jobs = [replace(check, limits=allowed) for check, allowed in stated if isinstance(check, Job)]
    executions = iter(run_in_chunks(jobs, executor, on_progress))
    return [next(executions) if isinstance(check, Job) else () for check in checks]


def _examined(suite: Suite, task: Task, runs: Sequence[Execution]) -> Check | None:
    """Return what a family of two runs makes of the first one; None where that is for `_verdict` to say."""
    family = suite.families[task.family]
    if not runs or not isinstance(family, TwoRunFamily) or _failed(runs):
        return None
    return family.examine(task, runs)


def run_in_chunks(
    jobs: Sequence[Job], executor: Executor, on_progress: Progress | None = None
) -> list[tuple[Execution, ...]]:
    """Run jobs in batches of `CHUNK`, order kept, and report progress after each batch."""
    executions: list[tuple[Execution, ...]] = []
    for start in range(0, len(jobs), CHUNK):
        executions += executor.run(jobs[start : start + CHUNK])
        if on_progress is not None:
            on_progress(len(executions), len(jobs))
    return executions


def _verdict(suite: Suite, task: Task, check: Verdict | Job, runs: Sequence[Execution]) -> Verdict:
    if isinstance(check, Verdict):
        return check
    if _failed(runs):
        return Verdict(None, "no verdict: the executor failed")
    return suite.families[task.family].judge(task, runs)


def _failed(runs: Sequence[Execution]) -> bool:
    return any(run.status is Status.NO_VERDICT for run in runs)


def _share(suite: Suite, task: Task, verdict: Verdict, runs: Sequence[Execution]) -> float | None:
    family = suite.families[task.family]
    if not isinstance(family, SharingFamily) or verdict.score is None:
        return None
    return family.share(task, runs) if runs else verdict.score


def _vote(suite: Suite, task: Task, answer: str, runs: Sequence[Execution]) -> str | None:
    family = suite.families[task.family]
    if not isinstance(family, VotingFamily):
        return None
    text = family.vote(task, answer, runs)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest() if text else ""


def _row(problem: Problem, judged: Sequence[Judged]) -> RowScore:
    if problem.task is None:
        return RowScore(problem.id, None, f"no verdict: {problem.failure}", (None,), problem.group)
    if not judged:
        return RowScore(problem.id, 0.0, "no completion", (), problem.group)
    verdicts = [found.verdict for found in judged]
    scores = tuple(verdict.score for verdict in verdicts)
    known = [score for score in scores if score is not None]
    reason = next((verdict.reason for verdict in verdicts if not verdict.passed), "")
    levels = tuple(verdict.level for verdict in verdicts)
    votes = tuple(found.vote or "" for found in judged) if any(found.vote is not None for found in judged) else ()
    score = sum(known) / len(known) if known else None
    return RowScore(problem.id, score, reason, scores, problem.group, levels, votes)


def _result(
    suite: Suite,
    rows: tuple[RowScore, ...],
    shares: Sequence[float],
    framed: Sequence[bool],
    settings: Mapping[str, object],
    seed: int,
) -> SuiteResult:
    samples = max((len(row.scores) for row in rows), default=1)
    total = _estimate(rows, seed)
    settings = {"rules": RULES, "problems": len(rows), "limits": asdict(suite.limits), **settings}
    if ruled := {name: dict(f.rules) for name, f in suite.families.items() if isinstance(f, RuledFamily)}:
        settings["family_rules"] = ruled
    if groups := {row.group for row in rows if row.group}:
        settings["groups"] = len(groups)
    if own := {problem.id: asdict(problem.limits) for problem in suite.problems if problem.limits is not None}:
        settings["own_limits"] = own
    missing = sum(row.score is not None and not row.scores for row in rows)
    extra = pass_rates(rows) | majority_rates(rows)
    if shares:
        # A missing answer gets none of its pairs right.
        extra["pair_accuracy"] = sum(shares) / (len(shares) + missing)
    return SuiteResult(
        suite=suite.name,
        n=total.n if total else 0,
        metric=suite.metric if samples <= 1 else f"avg@{samples}",
        value=total.value if total else None,
        interval=total.interval if total else None,
        no_verdict=sum(score is None for row in rows for score in row.scores),
        missing=missing,
        framed=sum(framed) / len(framed) if framed else None,
        extra=extra,
        parts=_parts(suite, rows, seed),
        protocol=digest({"suite": suite.name, "metric": suite.metric, **settings}),
        settings=settings,
        data_sha256=suite.data_sha256,
        note=suite.note,
        rows=rows,
    )


def _marked(suite: Suite, judged: Mapping[str, Sequence[Judged]]) -> dict[str, float]:
    """Return the further metrics that families mark; a problem without an answer is marked as an empty one."""
    right: Counter[str] = Counter()
    of: Counter[str] = Counter()
    for problem in suite.problems:
        if problem.task is None:
            continue
        checked: list[Check] = [found.verdict for found in judged[problem.id]]
        checked = checked or [suite.families[problem.task.family].check(problem.task, "")]
        for mark in (mark for each in checked if isinstance(each, Verdict) for mark in each.marks):
            right[mark.name] += mark.right
            of[mark.name] += mark.of
    return {name: right[name] / of[name] for name in of}


def _estimate(rows: Sequence[RowScore], seed: int) -> Estimate | None:
    known = [(row.score, row.unit) for row in rows if row.score is not None]
    if not known:
        return None
    means = statistics.group_means([score for score, _ in known], [unit for _, unit in known])
    return replace(statistics.mean_with_interval(means, seed), n=len(known))


def pass_rates(rows: Sequence[RowScore]) -> dict[str, float]:
    """Return pass@k for k of 2, 4, 8 ... and the number of samples that every scored problem has."""
    judged = [row for row in rows if row.score is not None]
    known = [[score for score in row.scores if score is not None] for row in judged]
    chances = {k: [statistics.pass_at_k(len(s), sum(x == 1.0 for x in s), k) for s in known] for k in _ks(judged)}
    return {f"pass@{k}": _mean(judged, found) for k, found in chances.items()}


def majority_rates(rows: Sequence[RowScore]) -> dict[str, float]:
    """Return majority@k for the same k, but for 2, of problems whose family knows equal answers.

    A majority of two is a mean: where they differ, each counts half.
    """
    judged = [row for row in rows if row.score is not None]
    if not all(row.votes for row in judged):
        return {}
    counted = [_ballot(row) for row in judged]
    ks = [k for k in _ks(judged) if k > 2]
    return {
        f"majority@{k}": _mean(judged, [statistics.majority_at_k(votes, k, none) for votes, none in counted])
        for k in ks
    }


def _ballot(row: RowScore) -> tuple[list[tuple[int, float]], int]:
    """Return how often each answer was given, with its score, and how many samples gave none."""
    scores: dict[str, list[float]] = {}
    for vote, score in zip(row.votes, row.scores, strict=True):
        if score is not None:
            scores.setdefault(vote, []).append(score)
    none = len(scores.pop("", ()))
    return [(len(found), sum(found) / len(found)) for found in scores.values()], none


def _ks(judged: Sequence[RowScore]) -> list[int]:
    """Return 2, 4, 8 ... and the number of samples with a verdict that every row has."""
    most = min((sum(score is not None for score in row.scores) for row in judged), default=0)
    return sorted({2**i for i in range(1, most.bit_length()) if 2**i <= most} | ({most} if most > 1 else set()))


def _mean(rows: Sequence[RowScore], values: Sequence[float]) -> float:
    return float(np.mean(statistics.group_means(values, [row.unit for row in rows])))


def _parts(suite: Suite, rows: Sequence[RowScore], seed: int) -> dict[str, Estimate]:
    if len(suite.families) < 2:
        return {}
    by_family: dict[str, list[RowScore]] = {name: [] for name in suite.families}
    for problem, row in zip(suite.problems, rows, strict=True):
        if problem.task is not None:
            by_family[problem.task.family].append(row)
    found = {name: _estimate(part, seed) for name, part in by_family.items()}
    return {name: estimate for name, estimate in found.items() if estimate is not None}


def digest(settings: Mapping[str, object]) -> str:
    """Return 16 hexadecimal digits that change with any setting."""
    text = json.dumps(settings, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def prompts_sha256(prompts: Mapping[str, str]) -> str:
    """Return the hash of all prompts with their ids, in order."""
    text = json.dumps(list(prompts.items()), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


# -- stored completions ------------------------------------------------------------------------------------------------


def score_completions(
    path: Path,
    names: Sequence[str],
    executor: Executor,
    data_dir: Path | None = None,
    limit: int | None = None,
    on_progress: Progress | None = None,
    skip_missing: bool = False,
) -> Report:
    """Score a file of stored completions on the named suites.

    Raises:
        InvalidData: The file, or a data file, is missing or broken, or a line names a problem that is not asked.
        UnknownId: No suite of that name.
    """
    loaded = suites.load_named(names, Source(executor, data_dir)).present(skip_missing)
    asked = [suite for found in loaded.suites.values() for suite in found]
    completions = read_completions(path, asked)
    settings = {"answers": "completions"}
    results = [grade(suite.first(limit), completions[suite.name], executor, settings, on_progress) for suite in asked]
    return Report(tuple(results), str(path), tier=str(executor.tier), notes=tuple(loaded.notes()))


def read_completions(path: Path, asked: Sequence[Suite]) -> dict[str, dict[str, list[str]]]:
    """Return completions by suite and problem id.

    A line is ``{"id": ..., "completion": ...}`` or evalplus' ``{"task_id": ..., "solution": ...}``, which may also
    hold a ``completion``; several lines of one id are samples. The id is ``suite/problem``, or the problem's alone
    where only one suite asked has it.

    Raises:
        InvalidData: With the line number.
    """
    places = _places(asked)
    found: dict[str, dict[str, list[str]]] = {suite.name: {} for suite in asked}
    for row in suites.read(path):
        if "evaluation" in row.fields:  # the head that `eval --keep` writes
            continue
        names = ("id" if "id" in row.fields else "task_id", "solution" if "solution" in row.fields else "completion")
        if not set(names) <= row.fields.keys():
            raise InvalidData(f"{row.where}: expected the fields 'id' and 'completion', or 'task_id' and 'solution'")
        suite, problem = _place(row.text(names[0]), places, row.where)
        found[suite].setdefault(problem, []).append(row.text(names[1]))
    if not any(found.values()):
        raise InvalidData(f"{path}: holds no completion")
    return found


Place = tuple[str, str]


def _places(asked: Sequence[Suite]) -> dict[str, list[Place]]:
    """Return where each id may belong; an id in full belongs to one place, whatever else it might be short for."""
    places: dict[str, list[Place]] = {}
    for suite in asked:
        for problem in suite.problems:
            places.setdefault(problem.id, []).append((suite.name, problem.id))
    places.update({f"{s.name}/{p.id}": [(s.name, p.id)] for s in asked for p in s.problems})
    return places


def _place(key: str, places: Mapping[str, list[Place]], where: str) -> Place:
    found = places.get(key)
    if found is None:
        near = difflib.get_close_matches(key, places, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InvalidData(f"{where}: the suites asked for have no problem {key!r}{hint}")
    if len(found) > 1:
        choices = " or ".join(repr("/".join(place)) for place in found)
        raise InvalidData(f"{where}: id {key!r} could be one of several; write {choices}")
    return found[0]


# -- display -----------------------------------------------------------------------------------------------------------


def versions_of(*names: str) -> dict[str, str]:
    """Return the versions of Python and of the named distributions, ``absent`` for those not installed."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def _without_completion(result: SuiteResult) -> str:
    ids = [row.id for row in result.rows if row.score is not None and not row.scores]
    if not ids:
        return ""
    shown = ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")
    return f"{result.suite}: {len(ids)} of {len(result.rows)} problems have no completion and count as wrong: {shown}"


def _add_result(table: Table, result: SuiteResult) -> None:
    value = (str(result.n), _percent(result.value), _range(result.interval))
    table.add_row(result.suite, result.metric, *value, str(result.no_verdict), _percent(result.framed))
    for name, extra in result.extra.items():
        table.add_row(f"  {name}", "", "", _percent(extra))
    for name, part in result.parts.items():
        table.add_row(f"  {name}", "", str(part.n), _percent(part.value), _range(part.interval))


def _range(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{100 * interval[0]:.1f} to {interval[1]:.1%}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _caption(results: Sequence[SuiteResult]) -> str:
    lines = []
    for result in results:
        facts = [result.note] if result.note else []
        if result.groups:
            facts.append(f"mean over {result.groups} groups of problems")
        if result.missing:
            facts.append(f"no completion for {result.missing}, counted as wrong")
        if result.decided:
            facts.append("decided: " + ", ".join(f"{n} {level}" for level, n in sorted(result.decided.items())))
        if result.no_verdict:
            facts.append(f"no verdict on {result.no_verdict}, left out of the value")
        named = f"{result.settings['protocol']} " if "protocol" in result.settings else ""
        facts.append(f"protocol {named}{result.protocol}, data {result.data_sha256[:12]}")
        lines.append(f"{result.suite}: {'; '.join(facts)}")
    return "\n".join(lines)
