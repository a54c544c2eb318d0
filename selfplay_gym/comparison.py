"""Compare two evaluation files problem by problem: is the second policy better, and how sure is that?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from selfplay_gym import statistics
from selfplay_gym.errors import InvalidData
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
        caveat: Why the two may not be comparable; empty when they are.
    """

    suite: str
    n: int
    before: float
    after: float
    interval: statistics.Interval
    caveat: str = ""


def compare_files(before: Path, after: Path, seed: int = 0) -> list[Comparison]:
    """Return a comparison for each suite that both files of ``eval --json`` hold.

    Raises:
        InvalidData: A file is missing or no such file, a suite was scored on other data, or no suite is in both.
    """
    first, second = _suites(before), _suites(after)
    shared = [name for name in first if name in second]
    if not shared:
        raise InvalidData(f"{before} and {after} have no suite in common ({', '.join(first)}; {', '.join(second)})")
    return [_compare(name, first[name], second[name], seed) for name in shared]


def table(comparisons: Sequence[Comparison]) -> Table:
    """Return the comparisons as a table for people."""
    view = Table(box=box.SIMPLE_HEAD, caption_justify="left")
    view.caption = "\n".join(f"{c.suite}: {c.caveat}" for c in comparisons if c.caveat) or None
    view.add_column("suite", no_wrap=True)
    for heading in ("n", "before", "after", "difference", "95% interval", "p"):
        view.add_column(heading, justify="right", no_wrap=True)
    for c in comparisons:
        i = c.interval
        ends = f"{100 * i.low:+.1f} to {100 * i.high:+.1f}"
        view.add_row(
            c.suite,
            str(c.n),
            f"{c.before:.1%}",
            f"{c.after:.1%}",
            f"{100 * i.difference:+.1f}",
            ends,
            f"{i.p_value:.4f}",
        )
    return view


def as_dict(comparisons: Sequence[Comparison]) -> dict[str, object]:
    """Return what ``compare --json`` writes."""
    return {"suites": [asdict(comparison) for comparison in comparisons]}


def _compare(name: str, first: Mapping[str, Any], second: Mapping[str, Any], seed: int) -> Comparison:
    if first["data_sha256"] != second["data_sha256"]:
        raise InvalidData(f"suite {name}: the two files were scored on different data")
    old, new = ({row["id"]: row["score"] for row in result["rows"]} for result in (first, second))
    shared = [key for key in old if old[key] is not None and new.get(key) is not None]
    if not shared:
        raise InvalidData(f"suite {name}: no problem has a verdict in both files")
    groups = {row["id"]: row.get("group") or (row["id"],) for row in second["rows"]}
    units = [groups[key] for key in shared]
    before, after = (statistics.group_means([float(scores[key]) for key in shared], units) for scores in (old, new))
    interval = statistics.paired_difference(before, after, seed)
    same = first["protocol"] == second["protocol"]
    caveat = "" if same else f"other protocols ({first['protocol']}, {second['protocol']})"
    return Comparison(name, len(shared), sum(before) / len(before), sum(after) / len(after), interval, caveat)


def _suites(path: Path) -> dict[str, Mapping[str, Any]]:
    where = f"{path} was not written by eval --json"
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InvalidData(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"{where}: not JSON: {error}") from None
    found: dict[str, Mapping[str, Any]] = {}
    for item in row_of(content, where).list("suites"):
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
