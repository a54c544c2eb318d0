"""Score answers to a suite: three-valued, in few executor batches, without the model that gave them.

One rule takes the answer out of a completion, whether a model just wrote it or a file holds it, so that stored
completions score the same as the run that stored them. The rule is lenient: held-out scores measure the answer, and
how many completions kept to the think/answer frame is reported beside it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from selfplay_gym import statistics
from selfplay_gym.frame import answer_of
from selfplay_gym.protocols import Executor, TwoRunFamily
from selfplay_gym.results import RowScore, SuiteResult
from selfplay_gym.statistics import Estimate
from selfplay_gym.suites import Problem, Suite
from selfplay_gym.types import Execution, Job, Limits, Status, Task, Verdict

RULES = 1
"""Version of the judge: raised whenever the same completion could score differently."""

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
