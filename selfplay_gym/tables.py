"""Data files of held-out sets: JSON lines, plain or gzipped, with typed access and the hash of their bytes.

Data is trusted to be no attack, and not to be right: what is missing or broken is named with file and line.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfplay_gym.errors import InvalidData, MissingData

DATA_VARIABLE = "SELFPLAY_GYM_DATA"
NO_FOLDER = f"no data folder: pass --data-dir or set {DATA_VARIABLE}"
ENDING = ".jsonl"
SUMS = ("SHA256SUMS", "PROVENANCE.md")
"""Files beside the data that may state its hashes."""

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a data file, with typed access to its fields.

    Attributes:
        fields: The JSON object.
        where: File and line, for messages.
    """

    fields: Mapping[str, object]
    where: str

    def text(self, name: str) -> str:
        """Return a text field.

        Raises:
            InvalidData: It is missing or not text.
        """
        value = self.value(name)
        if not isinstance(value, str):
            raise InvalidData(f"{self.where}: field {name!r} must be text, got {type(value).__name__}")
        return value

    def list(self, name: str) -> list[object]:
        """Return a list field.

        Raises:
            InvalidData: It is missing or not a list.
        """
        value = self.value(name)
        if not isinstance(value, list):
            raise InvalidData(f"{self.where}: field {name!r} must be a list, got {type(value).__name__}")
        return value

    def value(self, name: str) -> object:
        """Return a field, whatever it is.

        Raises:
            InvalidData: It is missing.
        """
        if name not in self.fields:
            there = ", ".join(map(repr, self.fields)) or "none"
            raise InvalidData(f"{self.where}: field {name!r} is missing; there are {there}")
        return self.fields[name]


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a data file and the sha256 of its bytes."""

    rows: tuple[Row, ...]
    sha256: str


def open_table(data_dir: Path | None, *names: str) -> tuple[Table, str]:
    """Return the first of the named files that exists (plain or ``.gz``), with the name it was found under.

    Without a folder, stated or in ``SELFPLAY_GYM_DATA``, it is the first one that `selfplay_gym.hub` knows.

    Raises:
        MissingData: No folder and no such set on the hub, or none of the files in the folder.
        InvalidData: No such folder, a broken file, or one with another hash than is stated beside it.
    """
    stated = os.environ.get(DATA_VARIABLE)
    if data_dir is None and not stated:
        return _from_hub(names)
    path = _find(data_dir or Path(stated or ""), names)
    data = _read(path)
    _check_sum(path, data)
    return table(data, str(path)), path.name


def _from_hub(names: Sequence[str]) -> tuple[Table, str]:
    from selfplay_gym import hub  # which reads its files with this module

    known = next((name for name in names if name.removesuffix(ENDING) in hub.SETS), None)
    if known is None:
        raise MissingData(f"{NO_FOLDER} (looking for {names[0]})")
    return hub.fetch(known.removesuffix(ENDING)), known


def table(data: bytes, name: str) -> Table:
    """Return the rows of a data file given as bytes, each with its own ``id``.

    Raises:
        InvalidData: A line is no JSON object, lacks its id or repeats one; no line at all.
    """
    return table_of(rows_of(data, name), name, hashlib.sha256(data).hexdigest())


def table_of(rows: Iterable[Row], name: str, sha256: str) -> Table:
    """Return rows as a table, once each is seen to have its own ``id``.

    Raises:
        InvalidData: A row lacks its id or repeats one; no row at all.
    """
    kept: list[Row] = []
    seen: dict[str, str] = {}
    for row in rows:
        key = row.text("id")
        if key in seen:
            raise InvalidData(f"{row.where}: id {key!r} stands already at {seen[key]}")
        seen[key] = row.where
        kept.append(row)
    if not kept:
        raise InvalidData(f"{name}: holds no row")
    return Table(tuple(kept), sha256)


def rows_of(data: bytes, name: str) -> Iterator[Row]:
    """Yield the rows of JSON lines, gzipped where ``name`` ends in ``.gz``; blank lines are passed over.

    Raises:
        InvalidData: With file and line, where something is no JSON object in UTF-8.
    """
    for number, line in enumerate(_unpacked(data, name).split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            value = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise InvalidData(f"{where}: not JSON: {error}") from None
        yield row_of(value, where)


def row_of(value: object, where: str) -> Row:
    """Return a JSON value as a row.

    Raises:
        InvalidData: It is no object.
    """
    if not isinstance(value, dict):
        raise InvalidData(f"{where}: expected a JSON object, got {type(value).__name__}")
    return Row(value, where)


def read(path: Path) -> Iterator[Row]:
    """Yield the rows of a file of JSON lines, as `rows_of` does."""
    return rows_of(_read(path), str(path))


def _find(folder: Path, names: Sequence[str]) -> Path:
    if not folder.is_dir():
        raise InvalidData(f"data folder {folder} does not exist")
    candidates = [folder / f"{name}{ending}" for name in names for ending in ("", ".gz")]
    for path in candidates:
        if path.is_file():
            return path
    near = difflib.get_close_matches(names[0], sorted(path.name for path in folder.iterdir()), n=1, cutoff=0.8)
    hint = f"; there is {near[0]}" if near else ""
    raise MissingData(f"{folder} holds none of {', '.join(path.name for path in candidates)}{hint}")


def _check_sum(path: Path, data: bytes) -> None:
    """Refuse a data file of which a list of sums in its folder says otherwise."""
    found = hashlib.sha256(data).hexdigest()
    for where, sha256 in stated_sums(path).items():
        if found != sha256:
            raise InvalidData(
                f"{path} is not the file that {where} states: its sha256 is {found[:16]}..., expected "
                f"{sha256[:16]}...; get the file again, or correct {where}"
            )


def stated_sums(path: Path) -> dict[str, str]:
    """Return the sha256 that lists in a file's folder state for it, by the name of the list.

    A list is `SUMS`' first as ``sha256sum`` writes it, or any text with name and sum on one line.
    """
    found: dict[str, str] = {}
    for name in SUMS:
        lines = _read(path.with_name(name)).decode("utf-8", "replace") if path.with_name(name).is_file() else ""
        for words in (re.split(r"[\s|`*]+", line) for line in lines.splitlines() if path.name in line):
            sums = [word.lower() for word in words if _SHA256.fullmatch(word)]
            if path.name in words and sums:
                found.setdefault(name, sums[0])
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidData(f"cannot read {path}: {error.strerror}") from None


def _unpacked(data: bytes, name: str) -> bytes:
    if not name.endswith(".gz"):
        return data
    if not data.startswith(b"\x1f\x8b"):  # RFC 1952, section 2.3.1
        raise InvalidData(f"{name}: not a gzip file, though its name ends in .gz: unpack it, or give it another name")
    try:
        return gzip.decompress(data)
    except EOFError:
        raise InvalidData(f"{name}: a gzip file that was cut off: fetch it again") from None
    except (OSError, zlib.error) as error:
        raise InvalidData(f"{name}: a damaged gzip file ({error}): fetch it again") from None
