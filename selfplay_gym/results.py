"""What a score is told with: rows, intervals, hashes, versions and the command; as a table, and as JSON."""

from __future__ import annotations

import platform
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version

from rich import box
from rich.table import Table

from selfplay_gym.statistics import Estimate
from selfplay_gym.types import Tier

JUDGES = ("numpy", "math-verify", "sympy", "latex2sympy2_extended")
"""Distributions whose version could change a score."""


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
        source: What gave the answers: the model with a fingerprint of its files, or an endpoint; empty for a file.
    """

    results: tuple[SuiteResult, ...]
    model: str
    command: str = field(default_factory=lambda: shlex.join(sys.argv))
    seed: int | None = None
    tier: str = ""
    versions: Mapping[str, str] = field(default_factory=lambda: versions_of("selfplay-gym", *JUDGES))
    notes: tuple[str, ...] = ()
    source: Mapping[str, object] = field(default_factory=dict)

    def table(self) -> Table:
        """Return the scores as a table for people; several families of a suite follow it, indented."""
        table = Table(title=self.model, caption=_caption(self.results), caption_justify="left", box=box.SIMPLE_HEAD)
        table.pad_edge = False
        table.add_column("suite", overflow="fold")
        table.add_column("metric", no_wrap=True)
        for heading in ("n", "value", "95% interval"):
            table.add_column(heading, justify="right", no_wrap=True)
        for heading in ("no verdict", "in frame"):
            table.add_column(heading, justify="right", min_width=7)
        for result in self.results:
            _add_result(table, result)
        return table

    def warnings(self) -> list[str]:
        """Say for which problems there is no completion, and what else is to be known."""
        missing = [line for result in self.results if (line := _without_completion(result))]
        missing += [line for result in self.results if (line := _uneven(result))]
        weaker = self.tier not in ("", Tier.FULL)
        tier = [f"judged in tier {self.tier}: `selfplay-gym doctor` says which walls are absent"] if weaker else []
        return [*missing, *tier, *self.notes]

    def as_dict(self) -> dict[str, object]:
        """Return what ``--json`` writes."""
        return {
            "model": self.model,
            "source": dict(self.source),
            "command": self.command,
            "seed": self.seed,
            "tier": self.tier,
            "versions": dict(self.versions),
            "suites": [result.as_dict() for result in self.results],
        }


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


def _uneven(result: SuiteResult) -> str:
    counts = {len(row.scores) for row in result.rows if row.scores and row.score is not None}
    if len(counts) < 2:
        return ""
    told = f"{result.suite}: some problems have {min(counts)} sample{'s' * (min(counts) > 1)} and some {max(counts)}"
    return f"{told}; each line of an id counts as a sample, also one that stands twice"


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
