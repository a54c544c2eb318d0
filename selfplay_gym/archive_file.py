"""The SQLite file of an archive: its tables, how it is opened and refused, transactions, and what errors mean.

What the rows mean is the business of `selfplay_gym.archive`. A file's header is read before SQLite opens it, because
SQLite might change a file that it then refuses.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from selfplay_gym.errors import InvalidData, SelfPlayError

SCHEMA_VERSION = 2
APPLICATION_ID = 0x53504741  # "SPGA", at byte 68 of the file, where `file` and SQLite look for it

# `position` counts a family's tasks from 1 without gaps; evictions take the lowest or, in an archive that keeps its
# oldest, all beyond the capacity. The live tasks of a family are thus one range of positions, and drawing from them
# means drawing integers. `shape_position` counts the tasks of one shape so, over all families: the last of them tells
# how many there are. `identity` is that of the program where a task has several inputs, which are looked up by it.
# `attempts` and `solved` of a task repeat its latest row in `attempts`, so that half-solved tasks can be found by
# index.
_SCHEMA = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE programs (id INTEGER PRIMARY KEY, hash TEXT NOT NULL UNIQUE, text TEXT NOT NULL)",
    """CREATE TABLE tasks (
        id INTEGER PRIMARY KEY, step INTEGER NOT NULL, family TEXT NOT NULL, position INTEGER NOT NULL,
        program INTEGER NOT NULL REFERENCES programs, message TEXT NOT NULL, behaviour TEXT NOT NULL,
        key TEXT NOT NULL, shape TEXT NOT NULL, shape_position INTEGER NOT NULL, identity TEXT,
        attempts INTEGER NOT NULL DEFAULT 0, solved INTEGER NOT NULL DEFAULT 0)""",
    "CREATE UNIQUE INDEX tasks_position ON tasks (family, position)",
    "CREATE INDEX tasks_program ON tasks (program, family)",
    "CREATE INDEX tasks_behaviour ON tasks (behaviour, family)",
    "CREATE INDEX tasks_key ON tasks (key)",
    "CREATE UNIQUE INDEX tasks_shape ON tasks (shape, shape_position)",
    "CREATE INDEX tasks_identity ON tasks (identity, family) WHERE identity IS NOT NULL",
    "CREATE INDEX tasks_half_solved ON tasks (family, position) WHERE solved > 0 AND solved < attempts",
    """CREATE TABLE triplets (
        task INTEGER NOT NULL REFERENCES tasks, place INTEGER NOT NULL, input TEXT NOT NULL, output TEXT NOT NULL,
        PRIMARY KEY (task, place)) WITHOUT ROWID""",
    """CREATE TABLE attempts (
        id INTEGER PRIMARY KEY, step INTEGER NOT NULL, task INTEGER NOT NULL REFERENCES tasks,
        attempts INTEGER NOT NULL, solved INTEGER NOT NULL, CHECK (0 <= solved AND solved <= attempts))""",
    "CREATE INDEX attempts_task ON attempts (task)",
    """CREATE TABLE rejections (
        id INTEGER PRIMARY KEY, step INTEGER NOT NULL, family TEXT NOT NULL, check_name TEXT NOT NULL,
        detail TEXT NOT NULL, text TEXT NOT NULL)""",
    """CREATE TABLE lineage (
        task INTEGER NOT NULL REFERENCES tasks, place INTEGER NOT NULL, reference INTEGER NOT NULL REFERENCES tasks,
        PRIMARY KEY (task, place)) WITHOUT ROWID""",
    "CREATE INDEX lineage_reference ON lineage (reference)",
    """CREATE TABLE evictions (
        task INTEGER PRIMARY KEY REFERENCES tasks, step INTEGER NOT NULL, family TEXT NOT NULL,
        position INTEGER NOT NULL, reason TEXT NOT NULL)""",
    "CREATE UNIQUE INDEX evictions_position ON evictions (family, position)",
)
ROW_ORDER = {
    "meta": "name",
    "programs": "id",
    "tasks": "id",
    "triplets": "task, place",
    "attempts": "id",
    "rejections": "id",
    "lineage": "task, place",
    "evictions": "task",
}
REWIND = (
    """UPDATE tasks SET
        attempts = coalesce((SELECT a.attempts FROM attempts a WHERE a.task = tasks.id AND a.step <= :step
                             ORDER BY a.id DESC LIMIT 1), 0),
        solved = coalesce((SELECT a.solved FROM attempts a WHERE a.task = tasks.id AND a.step <= :step
                           ORDER BY a.id DESC LIMIT 1), 0)
        WHERE id IN (SELECT task FROM attempts WHERE step > :step)""",
    "DELETE FROM attempts WHERE step > :step",
    "DELETE FROM rejections WHERE step > :step",
    "DELETE FROM evictions WHERE step > :step",
    "DELETE FROM lineage WHERE task IN (SELECT id FROM tasks WHERE step > :step)",
    "DELETE FROM triplets WHERE task IN (SELECT id FROM tasks WHERE step > :step)",
    "DELETE FROM tasks WHERE step > :step",
    # Program ids follow first use, so those still in use are the first ones.
    "DELETE FROM programs WHERE id > coalesce((SELECT max(program) FROM tasks), 0)",
)
# How a transaction begins, commits and is undone. IMMEDIATE meets a second writer at once, not halfway through a step.
_OUTER: tuple[str, str, tuple[str, ...]] = ("BEGIN IMMEDIATE", "COMMIT", ("ROLLBACK",))
_READING: tuple[str, str, tuple[str, ...]] = ("BEGIN", "COMMIT", ("ROLLBACK",))
_INNER: tuple[str, str, tuple[str, ...]] = (
    "SAVEPOINT inner_part",
    "RELEASE inner_part",
    ("ROLLBACK TO inner_part", "RELEASE inner_part"),
)


class ArchiveError(SelfPlayError):
    """The archive file could not be read or written: disk full, locked, not permitted. Nothing was half-written."""


class ArchiveFile:
    """An open archive file, or one in memory: runs statements, and explains every error of SQLite.

    Args:
        path: The file, or ``":memory:"``.
        mode: ``write`` creates the file where there is none, ``read`` never changes it.
        busy_seconds: How long to wait for another process that writes.

    Attributes:
        db: The connection.

    Raises:
        InvalidData: The file is no archive, or is truncated, or of another version. It is left as it is.
        ArchiveError: The file cannot be opened.
    """

    def __init__(self, path: str, mode: Literal["read", "write"], busy_seconds: float) -> None:
        self.path = path
        self._writes = mode == "write"
        self._depth = 0
        if path != ":memory:" or not self._writes:
            _check_header(Path(path), may_be_new=self._writes)
        try:
            self.db = sqlite3.connect(_uri(path, self._writes), uri=True, timeout=busy_seconds, isolation_level=None)
        except sqlite3.Error as error:
            raise _explained(error, path) from error
        try:
            self.db.text_factory = _text
            self._prepare()
        except BaseException:
            self.db.close()
            raise

    def _prepare(self) -> None:
        """Create the tables in a new file, else check their version; then set the connection up."""
        if not self.rows("SELECT 1 FROM sqlite_master LIMIT 1") and self._writes:
            self._create()
        version = self.value("SELECT value FROM meta WHERE name = 'schema'")
        if version != str(SCHEMA_VERSION):
            raise InvalidData(_version_message(self.path, version))
        if self._writes:
            self.rows("PRAGMA journal_mode = WAL")
            # FULL, because a checkpoint must never be newer than its archive, not even after a power cut.
            self.rows("PRAGMA synchronous = FULL")
            self.rows("PRAGMA foreign_keys = ON")

    def _create(self) -> None:
        # Before WAL is switched on, so that the file itself says what it is from its first byte on.
        with self.transaction():
            self.rows(f"PRAGMA application_id = {APPLICATION_ID}")
            self.rows(f"PRAGMA user_version = {SCHEMA_VERSION}")
            for statement in _SCHEMA:
                self.rows(statement)
            self.rows("INSERT INTO meta VALUES ('schema', ?)", str(SCHEMA_VERSION))

    def close(self) -> None:
        """Close it; an open transaction is rolled back. Safe to call twice."""
        self.db.close()

    # -- transactions -------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything inside at once, or, if an exception leaves the block, nothing of it.

        Blocks nest: an inner block that fails undoes its own part only.
        """
        if self._depth and not self._in_transaction():  # SQLite itself rolled back: a full disk, an I/O error
            raise ArchiveError(f"{self.path}: this transaction was rolled back by an earlier error; start it again")
        if self._depth:
            begin, commit, undo = _INNER
        else:
            begin, commit, undo = _OUTER if self._writes else _READING
        self.rows(begin)
        self._depth += 1
        try:
            yield
            self.rows(commit)
        except BaseException:
            for statement in undo if self._in_transaction() else ():
                self.rows(statement)
            raise
        finally:
            self._depth -= 1

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Make several queries see one state, though another process may commit in between."""
        if self._in_transaction():
            yield
            return
        self.rows("BEGIN")
        try:
            yield
        finally:
            if self._in_transaction():
                self.rows("COMMIT")

    def _in_transaction(self) -> bool:
        try:
            return self.db.in_transaction
        except sqlite3.Error as error:
            raise _explained(error, self.path) from error

    # -- statements ---------------------------------------------------------------------------------------------------

    def each(self, query: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Run one statement and yield its rows."""
        try:
            yield from self.db.execute(query, values)
        except sqlite3.Error as error:
            raise _explained(error, self.path) from error

    def run(self, query: str, values: Sequence[Any] | Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Run one statement with a sequence of values, or values by name, and return its rows."""
        return list(self.each(query, values))

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows."""
        return self.run(query, values)

    def add(self, query: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run one statement for each of several rows."""
        try:
            self.db.executemany(query, rows)
        except sqlite3.Error as error:
            raise _explained(error, self.path) from error

    def value(self, query: str, *values: object) -> Any:
        """Return the first value of the first row, or None without rows."""
        rows = self.run(query, values)
        return rows[0][0] if rows else None


def utf8(text: str) -> bytes:
    """Return a text as it is stored: lone surrogates, which Python does not bind as text, are kept."""
    return text.encode("utf-8", "surrogatepass")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _uri(path: str, writes: bool) -> str:
    if path == ":memory:":
        return "file::memory:"
    file = Path(path).absolute()
    # A finished run on a read-only medium: without a place for its lock files SQLite wants to hear that none is needed.
    finished = not writes and not Path(f"{file}-wal").exists() and not os.access(file.parent, os.W_OK)
    return f"{file.as_uri()}?mode={'rwc' if writes else 'ro'}" + ("&immutable=1" if finished else "")


def _check_header(path: Path, *, may_be_new: bool) -> None:
    """Refuse what is no archive before SQLite opens it, which might already change it.

    See https://www.sqlite.org/fileformat.html, "The Database Header".
    """
    if not path.exists() and may_be_new:
        return
    try:
        # A writer may have put pages into the log alone, so only a file without one has to be whole. Looked up first,
        # because a writer that closes now removes the log last.
        logged = (log := Path(f"{path}-wal")).exists() and log.stat().st_size > 0
        with path.open("rb") as file:
            header, size = file.read(100), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise InvalidData(f"{path}: expected an archive, found no file; check the path") from None
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be opened: {error.strerror}") from error
    if not header and may_be_new:  # killed between creating the file and its first commit
        return
    if header[:16] != b"SQLite format 3\0" or _number(header, 68, 72) != APPLICATION_ID:
        found = "a truncated or foreign file" if header else "an empty file"
        raise InvalidData(
            f"{path}: expected an archive of selfplay-gym, found {found}; check the path, or restore it from a copy"
        )
    if (version := _number(header, 60, 64)) != SCHEMA_VERSION:
        raise InvalidData(_version_message(str(path), version))
    # 65536 bytes a page, the one size that does not fit its two bytes, is never ours
    expected = _number(header, 16, 18) * _number(header, 28, 32)
    if size < expected and not logged:
        raise InvalidData(f"{path}: expected a whole archive of {expected} bytes, found {size}; restore it from a copy")


def _number(header: bytes, start: int, stop: int) -> int:
    return int.from_bytes(header[start:stop], "big")


def _version_message(path: str, version: object) -> str:
    return f"{path}: expected archive schema {SCHEMA_VERSION}, found {version}; use the selfplay-gym that wrote it"


def _explained(error: sqlite3.Error, path: str) -> SelfPlayError:
    """Return our error for one of SQLite's, with what to do about it."""
    # The low byte is the kind, the rest details. Errors of the Python module itself (a closed archive) have no code.
    code: int = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return InvalidData(f"{path}: expected a whole archive, found a damaged one ({error}); restore it from a copy")
    if code == sqlite3.SQLITE_CONSTRAINT:
        return InvalidData(f"{path}: refers to a task that the archive does not hold, or breaks its rules ({error})")
    advice = {
        sqlite3.SQLITE_BUSY: "another process is writing it; end that or wait",
        sqlite3.SQLITE_LOCKED: "another process is writing it; end that or wait",
        sqlite3.SQLITE_FULL: "make space on the disk and resume",
        sqlite3.SQLITE_IOERR: "check the disk and its free space, and resume",
        sqlite3.SQLITE_READONLY: "it was opened for reading, or may not be written",
        sqlite3.SQLITE_CANTOPEN: "check that its folder exists and may be written",
    }.get(code, "")
    return ArchiveError(f"{path}: {error}" + (f"; {advice}" if advice else ""))
