"""One HTML file about a run: result, alarms, curves, time and tokens, refused and stored tasks. No network, no scripts.

Everything a model wrote is escaped (`selfplay_gym.page`): a report must not become a way out of the sandbox.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from selfplay_gym.alarms import Alarms
from selfplay_gym.archive import Archive, StoredRejection, StoredTask
from selfplay_gym.errors import InvalidData
from selfplay_gym.output import write_whole
from selfplay_gym.page import chart, escape, page, table

CHARTS = {
    "Solver: share of attempts that pass": "solve/{}/reward",
    "Proposer: share of proposals admitted": "propose/{}/admitted",
    "Proposer: mean reward": "propose/{}/reward",
    "New tasks: lines in the body": "tasks/body_lines",
    "Hold-out of easier programs": "holdout/nano-easy",
    "Hold-out of harder programs": "holdout/nano-harder",
    "New tasks: share always solved": "tasks/always_solved",
    "New tasks: share never solved": "tasks/never_solved",
    "Rows without a gradient, share": "no_gradient",
    "Entropy of the policy, a token": "entropy",
    "Seconds a step": "seconds/step",
    "Live tasks in the archive": "archive/tasks",
}
PHASES = ("propose", "gate", "solve", "judge", "mismatch", "update", "holdout", "eval")
"""Parts of a step that are timed, in order; the rest is bookkeeping and checkpoints."""
SANDBOX = ("gate", "judge")
LATELY = 20
"""Steps at the end of a run whose times stand beside those of the whole run."""

TASKS_SHOWN = 4  # of each kind
ANCESTORS_SHOWN = 12
SAMPLE_CHARACTERS = 2000


def write_report(run: Path, more: Sequence[str] = ()) -> Path:
    """Write ``report.html`` into a run folder, finished or not, and return its path.

    Args:
        run: The folder.
        more: Further parts, as HTML, to stand before the archive.

    Raises:
        InvalidData: The folder holds no run with a finished step, or its metrics, result or archive are broken.
    """
    steps = read_metrics(run / "metrics.jsonl", infinite=True)
    name = run.resolve().name
    parts = [f"<h1>{escape(name)}</h1>", *_result(run / "result.json")]
    parts += _alarms(steps, _mismatch_limit(run / "config.yaml"))
    parts += [f"<h2>Curves</h2><p>{len(steps)} step{'' if len(steps) == 1 else 's'}.</p>", *_charts(steps)]
    parts += [*_time(steps), *_tokens(steps)]
    parts += more
    with Archive.read(run / "archive.sqlite") as archive:
        parts += _archive(archive)
    path = run / "report.html"
    write_whole(path, page(name, parts))
    return path


def read_metrics(path: Path, *, infinite: bool = False) -> list[dict[str, float]]:
    """Return the numbers of each step of a run; what is none, such as the loss of a step without rows, is left out.

    NaN and infinities are among them only if asked for.

    Raises:
        InvalidData: There is no finished step, or a line is no JSON object with a step.
    """
    steps = []
    for number, line in enumerate(_lines(path), start=1):
        try:
            record = json.loads(line)
            if not math.isfinite(record["step"]):
                raise ValueError(record["step"])
            steps.append({key: float(value) for key, value in record.items() if _is_number(value, infinite)})
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            raise InvalidData(f"{path}, line {number}: not a JSON object with a step") from None
    return steps


def _is_number(value: object, infinite: bool) -> bool:
    return isinstance(value, (int, float)) and (infinite or math.isfinite(value))


def _lines(path: Path) -> list[str]:
    """Return the whole lines: the last may be about to be written, or was cut off by a kill."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidData(f"{path.parent} is no run folder with a finished step: {path.name}: {reason}") from None


# -- result ------------------------------------------------------------------------------------------------------------


def _result(path: Path) -> list[str]:
    if not path.exists():
        return []
    try:
        return _result_parts(json.loads(path.read_bytes()))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InvalidData(f"{path} was not written by a run: {type(error).__name__} {error}") from None


def _result_parts(result: Mapping[str, Any]) -> list[str]:
    names = ("suite", "family", "n", "before", "after", "difference")
    rows = [
        [row["suite"], row["family"], row["n"], *(_percent(row, part) for part in names[3:]), _noise(row)]
        for row in result["holdout"]
    ]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    facts = (
        f"{result['steps']} steps in {result['seconds'] / 60:.1f} minutes; sandbox tier {result['tier']}; {versions}."
    )
    scores = [
        table((*names, ""), rows),
        "<p>Solve rates in % with 95% intervals; the difference is paired by problem.</p>",
    ]
    return [
        f"<p><strong>{escape(result['verdict'])}</strong></p>",
        *(scores if rows else []),
        *_suites(result.get("eval") or []),  # runs of earlier versions have none
        f"<p>{escape(facts)}</p>",
    ]


def _suites(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the scores of held-out suites; what was not measured, or has no verdict, is a dash."""
    names = ("suite", "metric", "n", "no verdict", "before", "after", "difference")
    cells = [
        [row["suite"], row["metric"], row["n"], row["no_verdict"], *(_percent(row, p) for p in names[4:]), _noise(row)]
        for row in rows
    ]
    said = "<p>Held-out suites: scores in % with 95% intervals; answers and scores by problem are in eval/.</p>"
    return [table((*names, ""), cells), said] if rows else []


def _percent(row: Mapping[str, Any], part: str) -> str:
    if row.get(part) is None:
        return "-"
    low, high = row[f"{part}_interval"]
    return f"{100 * row[part]:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _noise(row: Mapping[str, Any]) -> str:
    return "within noise" if row.get("within_noise") else ""  # runs of earlier versions do not say


# -- alarms ------------------------------------------------------------------------------------------------------------


def _alarms(steps: Sequence[Mapping[str, float]], mismatch_limit: float) -> list[str]:
    """Return what the run warned of, found again in its metrics."""
    alarms = Alarms(_families(steps), mismatch_limit)
    rang = [(f"{step['step']:.0f}", sentence) for step in steps for sentence in alarms.saw(step)]
    if not rang:
        return ["<h2>Alarms</h2><p>None rang.</p>"]
    return ["<h2>Alarms</h2>", *(f"<p><strong>Step {number}:</strong> {escape(said)}</p>" for number, said in rang)]


def _mismatch_limit(path: Path) -> float:
    """Return the run's ``mismatch.alarm``; without its settings nothing is above."""
    if not path.exists():
        return math.inf
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        return float(settings.get("mismatch", {}).get("alarm", math.inf))  # runs of earlier versions have none
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidData(f"{path} was not written by a run: {type(error).__name__} {error}") from None


def _families(steps: Sequence[Mapping[str, float]]) -> list[str]:
    return sorted({key.split("/")[1] for step in steps for key in step if key.startswith("propose/")})


# -- curves ------------------------------------------------------------------------------------------------------------


def _charts(steps: Sequence[Mapping[str, float]]) -> list[str]:
    families = _families(steps)
    found = []
    charts = {
        title: {n: key.format(n) for n in families} if "{}" in key else {"": key} for title, key in CHARTS.items()
    }
    charts["Held-out suites: score"] = {key.removeprefix("eval/"): key for key in _evaluated(steps)}
    for title, keys in charts.items():
        series = {n: [(s["step"], s[k]) for s in steps if math.isfinite(s.get(k, math.nan))] for n, k in keys.items()}
        series = {name: points for name, points in series.items() if len(points) > 1}
        if series:
            found.append(f"<figure><figcaption>{escape(title)}</figcaption>{chart(series)}</figure>")
    return found


def _evaluated(steps: Sequence[Mapping[str, float]]) -> list[str]:
    return sorted({key for step in steps for key in step if key.startswith("eval/")})


# -- time and tokens ---------------------------------------------------------------------------------------------------


def _time(steps: Sequence[Mapping[str, float]]) -> list[str]:
    """Return seconds a step by phase, over the run and at its end."""
    timed = [step for step in steps if step.get("seconds/step", 0.0) > 0]
    if not timed:
        return []
    over, end = phase_seconds(timed), phase_seconds(timed[-LATELY:])
    rows = [
        (phase, f"{seconds:.3f}", f"{100 * seconds / over['step']:.1f}", f"{end[phase]:.3f}")
        for phase, seconds in over.items()
        if seconds
    ]
    sandbox = sum(over[phase] for phase in SANDBOX) / over["step"]
    names = ("phase", "seconds a step", "% of the time", f"seconds a step, last {min(LATELY, len(timed))}")
    return ["<h2>Time and tokens</h2>", table(names, rows), f"<p>Sandbox: {100 * sandbox:.1f}% of the time.</p>"]


def phase_seconds(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return mean seconds a step by phase: what is left as ``other``, and all as ``step``.

    >>> found = phase_seconds([{"seconds/gate": 1.0, "seconds/step": 4.0}])
    >>> found["gate"], found["other"], found["step"]
    (1.0, 3.0, 4.0)
    """
    found = {phase: math.fsum(step.get(f"seconds/{phase}", 0.0) for step in steps) / len(steps) for phase in PHASES}
    whole = math.fsum(step["seconds/step"] for step in steps) / len(steps)
    return {**found, "other": max(0.0, whole - sum(found.values())), "step": whole}


def _tokens(steps: Sequence[Mapping[str, float]]) -> list[str]:
    counted = [step for step in steps if "tokens/untrained" in step]  # runs of earlier versions count it not
    sampled, untrained = (sum(step[f"tokens/{part}"] for step in counted) for part in ("sampled", "untrained"))
    if not sampled:
        return []
    return [f"<p>Tokens: {sampled:,.0f} sampled, {100 * untrained / sampled:.1f}% of them not trained on.</p>"]


# -- archive -----------------------------------------------------------------------------------------------------------


def _archive(archive: Archive) -> list[str]:
    facts = archive.statistics()
    rejections = sorted(facts.rejections.items(), key=lambda item: -item[1])
    parts = [
        "<h2>Archive</h2>",
        f"<p>{facts.tasks} tasks of {facts.programs} programs, {facts.attempts} attempts, {facts.solved} solved.</p>",
        *([table(("rejected by check", "proposals"), rejections)] if rejections else []),
    ]
    samples = archive.rejection_samples()
    parts += ["<h2>The newest proposal that each check refused</h2>"] if samples else []
    parts += map(_refused, samples)
    newest = [stored for family in sorted(archive.counts()) for stored in archive.tasks(family, newest=TASKS_SHOWN)]
    kinds = {
        "Hardest tasks that were solved": archive.hardest(TASKS_SHOWN, ever_solved=True),
        "Most tried tasks that never were": archive.hardest(TASKS_SHOWN, ever_solved=False),
        "Newest tasks": newest,
    }
    for title, found in kinds.items():
        parts += [f"<h2>{title}</h2>", *(_task(archive, stored) for stored in found)] if found else []
    return parts


def _refused(sample: StoredRejection) -> str:
    text = sample.text[:SAMPLE_CHARACTERS] + ("..." if len(sample.text) > SAMPLE_CHARACTERS else "")
    title = f"{sample.check}: {sample.family}, step {sample.step}"
    return f"<h3>{escape(title)}</h3><p>{escape(sample.detail[:SAMPLE_CHARACTERS])}</p><pre>{escape(text)}</pre>"


def _task(archive: Archive, stored: StoredTask) -> str:
    shown = ", ".join(f"task {parent.id} (step {parent.step})" for parent in archive.references(stored.id)) or "none"
    ancestors = archive.lineage(stored.id)
    named = ", ".join(map(str, ancestors[-ANCESTORS_SHOWN:])) or "none"
    more = f" and {len(ancestors) - ANCESTORS_SHOWN} older ones" if len(ancestors) > ANCESTORS_SHOWN else ""
    title = f"{stored.task.family} task {stored.id}, step {stored.step}: solved {stored.solved} of {stored.attempts}"
    calls = [f"f({triplet.input}) == {triplet.output}" for triplet in stored.task.triplets]
    text = "\n".join([stored.task.program, *calls, *filter(None, [stored.task.message])])
    return f"<h3>{escape(title)}</h3><p>References: {shown}. Ancestors: {named}{more}.</p><pre>{escape(text)}</pre>"
