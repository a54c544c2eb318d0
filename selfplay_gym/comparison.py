"""Compare two evaluation files problem by problem: is the second policy better, and how sure is that?"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from selfplay_gym import statistics
from selfplay_gym.errors import InvalidData
from selfplay_gym.results import versions_of
from selfplay_gym.suites import Row, row_of


@dataclass(frozen=True, slots=True)
class Comparison:
    """The paired difference on one suite.

    Attributes:
        suite: Its name.
        n: Problems with a verdict in both files; the only ones used. Those of one group count together as one.
        before: Mean score in the first file, over these.
        after: Mean score in the second.
        interval: The difference with its 95% interval and p-value.
        rose: Problems, or groups, whose score is higher in the second.
        fell: Those whose score is lower.
        p_corrected: The p-value for as many suites as were compared (`statistics.holm`).
        caveat: Why the two may not be comparable; empty when they are.
        data_sha256: Of the data that both were scored on.
        protocols: Their hashes, before and after.
    """

    suite: str
    n: int
    before: float
    after: float
    interval: statistics.Interval
    rose: int
    fell: int
    p_corrected: float
    caveat: str = ""
    data_sha256: str = ""
    protocols: tuple[str, str] = ("", "")

    @property
    def within_noise(self) -> bool:
        """Whether chance alone may well have made the difference, seen that so many suites were compared."""
        return self.interval.within_noise or self.p_corrected >= statistics.NOISE


def compare_files(before: Path, after: Path, seed: int = 0) -> list[Comparison]:
    """Return a comparison for each suite that both files of ``eval --json`` hold.

    Raises:
        InvalidData: A file is missing or no such file, a suite was scored on other data, or no suite is in both.
    """
    first, second = _suites(before), _suites(after)
    shared = [name for name in first if name in second]
    if not shared:
        raise InvalidData(f"{before} and {after} have no suite in common ({', '.join(first)}; {', '.join(second)})")
    return corrected([compare_results(first[name], second[name], seed) for name in shared])


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return comparisons with p-values for as many as there are."""
    p_values = statistics.holm([comparison.interval.p_value for comparison in comparisons])
    return [replace(comparison, p_corrected=p) for comparison, p in zip(comparisons, p_values, strict=True)]


def table(comparisons: Sequence[Comparison]) -> Table:
    """Return the comparisons as a table for people."""
    view = Table(box=box.SIMPLE_HEAD, caption_justify="left", pad_edge=False, collapse_padding=True)
    view.caption = "\n".join(f"{c.suite}: {c.caveat}" for c in comparisons if c.caveat) or None
    view.add_column("suite", overflow="fold")
    for heading in ("n", "before", "after", "up/down", "difference", "95% interval", "p"):
        view.add_column(heading, justify="right", no_wrap=True)
    for c in comparisons:
        i = c.interval
        ends = f"{100 * i.low:+.1f} to {100 * i.high:+.1f}" if c.rose or c.fell else "-"  # nothing to resample
        view.add_row(
            c.suite,
            str(c.n),
            f"{c.before:.1%}",
            f"{c.after:.1%}",
            f"{c.rose}/{c.fell}",
            f"{100 * i.difference:+.1f}",
            ends,
            f"{i.p_value:.4f}",
        )
    return view


def warnings(comparisons: Sequence[Comparison]) -> list[str]:
    """Say which differences may well be chance, and which only look like more because many suites were compared."""
    return [line for comparison in comparisons if (line := _warning(comparison, len(comparisons)))]


def _warning(comparison: Comparison, count: int) -> str:
    if not comparison.within_noise:
        return ""
    if not comparison.rose and not comparison.fell:
        return f"{comparison.suite}: the score of no problem changed"
    i = comparison.interval
    told = f"{comparison.suite}: {100 * i.difference:+.1f} points are within noise"
    if i.within_noise:
        return f"{told} (95% interval {100 * i.low:+.1f} to {100 * i.high:+.1f}, p {i.p_value:.2g})"
    return f"{told} (p {i.p_value:.2g}, and {comparison.p_corrected:.2g} seen that {count} suites were compared)"


def as_dict(comparisons: Sequence[Comparison], before: Path, after: Path) -> dict[str, object]:
    """Return what ``compare --json`` writes, with what the two files say of themselves."""
    return {
        "command": shlex.join(sys.argv),
        "versions": versions_of("selfplay-gym", "numpy"),
        "before": _origin(before),
        "after": _origin(after),
        "suites": [{**asdict(comparison), "within_noise": comparison.within_noise} for comparison in comparisons],
    }


def _origin(path: Path) -> dict[str, object]:
    content = _content(path)
    known = {name: content.fields.get(name) for name in ("model", "source", "seed", "command", "versions")}
    return {"file": str(path), **known}


def compare_results(first: Mapping[str, Any], second: Mapping[str, Any], seed: int = 0) -> Comparison:
    """Compare two results of one suite, as `SuiteResult.as_dict` has them.

    Raises:
        InvalidData: They are of other data, or no problem has a verdict in both.
    """
    name = first["suite"]
    if first["data_sha256"] != second["data_sha256"]:
        hashes = " and ".join(result["data_sha256"][:12] for result in (first, second))
        raise InvalidData(f"suite {name}: the two files were scored on different data ({hashes}): score both on one")
    old, new = ({row["id"]: row["score"] for row in result["rows"]} for result in (first, second))
    shared = [key for key in old if old[key] is not None and new.get(key) is not None]
    if not shared:
        raise InvalidData(f"suite {name}: no problem has a verdict in both files")
    groups = {row["id"]: row.get("group") or (row["id"],) for row in second["rows"]}
    units = [groups[key] for key in shared]
    before, after = (statistics.group_means([float(scores[key]) for key in shared], units) for scores in (old, new))
    interval = statistics.paired_difference(before, after, seed)
    changes = [new > old for old, new in zip(before, after, strict=True) if new != old]
    means = sum(before) / len(before), sum(after) / len(after)
    caveat = "; ".join(filter(None, (_other_protocol(first, second), _left_out(first, second, len(shared)))))
    rose = sum(changes)
    return Comparison(
        name, len(shared), *means, interval, rose, len(changes) - rose, interval.p_value, caveat,
        second["data_sha256"], (first["protocol"], second["protocol"]),
    )  # fmt: skip


def _other_protocol(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """Say what else than the policies is different."""
    if first["protocol"] == second["protocol"]:
        return ""
    told = f"other protocols ({first['protocol']}, {second['protocol']})"
    old, new = first.get("settings"), second.get("settings")
    if not isinstance(old, dict) or not isinstance(new, dict):
        return told
    changed = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    return f"{told}: they differ in {', '.join(changed)}" if changed else told


def _left_out(first: Mapping[str, Any], second: Mapping[str, Any], used: int) -> str:
    total = len({row["id"] for result in (first, second) for row in result["rows"]})
    return f"{total - used} of {total} problems have no verdict in one of the files" if total > used else ""


def _content(path: Path) -> Row:
    where = f"{path} was not written by eval --json"
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InvalidData(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"{where}: not JSON: {error}") from None
    return row_of(content, where)


def _suites(path: Path) -> dict[str, Mapping[str, Any]]:
    content = _content(path)
    where = content.where
    found: dict[str, Mapping[str, Any]] = {}
    for item in content.list("suites"):
        result = row_of(item, where)
        name = result.text("suite")
        if name in found:
            raise InvalidData(f"{where}: suite {name!r} is in it twice")
        _check(result, f"{where}: suite {name!r}")
        found[name] = result.fields
    if not found:
        raise InvalidData(f"{where}: there is no suite in it")
    return found


def _check(result: Row, where: str) -> None:
    """Raise InvalidData for what is no suite's result."""
    result.text("data_sha256")
    result.text("protocol")
    ids: set[str] = set()
    for item in result.list("rows"):
        row = row_of(item, where)
        key = row.text("id")
        if "group" in row.fields:
            row.text("group")
        score: Any = row.value("score")
        if key in ids:
            raise InvalidData(f"{where}: id {key!r} is there twice")
        ids.add(key)
        if score is not None and not (type(score) in (int, float) and 0 <= score <= 1):
            raise InvalidData(f"{where}: the score of {key!r} must be null or from 0 to 1, got {score!r}")
