"""Data files from the hub: the real client, asked by a process of its own, against a hub on this machine."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from selfplay_gym import hub, suites, tables
from selfplay_gym.errors import InvalidData, MissingData
from selfplay_gym.suites import Source
from selfplay_gym.tables import Row, stated_sums
from selfplay_gym.types import Execution, Status

FETCH = """
import json, sys
from selfplay_gym import hub
from selfplay_gym.errors import SelfPlayError
for name in sys.argv[1:]:
    try:
        table = hub.fetch(name)
        print(json.dumps({"rows": [dict(row.fields) for row in table.rows], "sha256": table.sha256}))
    except SelfPlayError as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
"""


class Hub(ThreadingHTTPServer):
    """Serves files of data sets as the hub does, at the revisions that are asked for and no other."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {f"/datasets/{hub.SETS[n].id}/resolve/{hub.SETS[n].revision}/{hub.SETS[n].file}": n for n in files}
        self.contents = files
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        name = self.server.files.get(self.path)
        if name is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = self.server.contents[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", hub.SETS[name].revision)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def serving(files: Mapping[str, bytes]) -> Iterator[Hub]:
    server = Hub(files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def fetched(url: str, home: Path, *names: str, offline: bool = False) -> list[dict[str, Any]]:
    """What a process that knows only this hub makes of the sets."""
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline))}
    command = [sys.executable, "-c", FETCH, *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def parquet(*rows: Mapping[str, object]) -> bytes:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    file = io.BytesIO()
    write_table(arrow.Table.from_pylist([dict(row) for row in rows]), file)
    return file.getvalue()


def jsonl(*rows: Mapping[str, object]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


GSM8K = {"question": "How many?", "answer": "1,000 + 34 = 1,034\n#### 1,034"}
MINERVA = {"question": "How far?", "answer": r"\frac{1}{2}", "solution": "so"}


def test_sets_come_as_rows_of_ours_and_again_from_the_clients_cache(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    files = {"gsm8k": parquet(GSM8K, GSM8K), "minerva_math": jsonl(MINERVA)}
    with serving(files) as server:
        found = fetched(server.url, tmp_path, *files)
        asked = len(server.asked)
        assert fetched(server.url, tmp_path, *files, offline=True) == found
        assert len(server.asked) == asked
    gsm8k, minerva = found
    assert [row["id"] for row in gsm8k["rows"]] == ["gsm8k_test/0", "gsm8k_test/1"]
    assert gsm8k["rows"][0]["answer"] == "1034"
    assert minerva["rows"] == [{"id": "minerva_math/0", "question": "How far?", "answer": r"\frac{1}{2}"}]
    assert [each["sha256"] for each in found] == [hashlib.sha256(data).hexdigest() for data in files.values()]


def test_what_the_hub_does_not_have_changed_or_damaged_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    files = {
        "cruxeval": jsonl({"id": "sample_0", "code": "", "input": "", "output": ""}),
        "olympiadbench": parquet({"id": 1, "question": "?"}),
        "hmmt25": b"PAR1 and no more",
        "gsm8k": parquet({**GSM8K, "answer": "1034"}),
    }
    with serving(files) as server:
        told = [each["error"] for each in fetched(server.url, tmp_path, *files, "math500")]
    assert all("\n" not in line for line in told)
    crux, olympiad, hmmt, gsm8k, math500 = told
    assert "InvalidData: cruxeval-org/cruxeval@b96af04/test.jsonl came with the sha256" in crux
    assert "expected 8368b81047dc5014" in crux
    assert "row 1: field 'context' is missing; there are 'id', 'question'" in olympiad
    assert "hmmt25" not in hmmt
    assert "not a Parquet file that can be read" in hmmt
    assert "row 1: field 'answer' must end with ####" in gsm8k
    assert math500.startswith(
        "MissingData: no data folder: pass --data-dir or set SELFPLAY_GYM_DATA; HuggingFaceH4/MATH"
    )
    assert "cannot be had from the hub either: RemoteEntryNotFoundError" in math500
    assert "http" not in math500


def test_a_hub_that_nobody_answers_for_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    began = time.monotonic()
    told = [each["error"] for each in fetched("http://127.0.0.1:9", tmp_path, "gsm8k", "cruxeval")]
    assert time.monotonic() - began < 20  # the client's own patience is half a minute for each
    assert all("cannot be had from the hub either: ConnectError" in line for line in told)
    assert "HF_HUB_OFFLINE is set" in fetched("http://127.0.0.1:9", tmp_path, "gsm8k", offline=True)[0]["error"]


# -- the table ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", hub.SETS)
def test_every_set_is_pinned_to_a_commit_and_belongs_to_suites(name: str) -> None:
    known = hub.SETS[name]
    assert len(known.revision) == 40
    assert set(known.revision) <= set("0123456789abcdef")
    assert len(known.sha256) in (0, 64)
    assert known.file.endswith((".jsonl", ".parquet"))
    assert set(known.suites) <= set(suites.SUITES.names())


PLUS = """inputs = [[1], [2]]
results = [2, 3]
for i, (inp, exp) in enumerate(zip(inputs, results)):
    assertion(plus_one(*inp), exp, 1e-06)
"""
THEIRS = {
    "humaneval": {
        "task_id": "HumanEval/0", "prompt": "def plus_one(x):\n    'Add one.'\n", "entry_point": "plus_one",
        "canonical_solution": "    return x + 1\n", "test": "def check(candidate):\n    assert candidate(1) == 2\n",
    },
    "humanevalplus": {
        "task_id": "HumanEval/0", "prompt": "def plus_one(x):\n    'Add one.'\n", "entry_point": "plus_one",
        "canonical_solution": "    return x + 1\n", "test": PLUS.replace("plus_one", "candidate"),
    },
    "mbpp": {
        "task_id": 11, "text": "Add one.", "code": "def plus_one(x):\n    return x + 1",
        "test_list": ["assert plus_one(1) == 2"], "test_setup_code": "", "challenge_test_list": [],
    },
    "mbpp_sanitized": {
        "source_file": "f", "task_id": 11, "prompt": "Add one.", "code": "def plus_one(x):\n    return x + 1",
        "test_imports": [], "test_list": ["assert plus_one(1) == 2"],
    },
    "mbppplus": {
        "task_id": 11, "code": "def plus_one(x):\n    return x + 1", "prompt": "Add one.", "source_file": "f",
        "test_imports": [], "test_list": ["assert plus_one(1) == 2"], "test": PLUS,
    },
    "cruxeval": {"id": "sample_0", "code": "def f(x):\n    return x", "input": "1", "output": "1"},
    "ifeval": {
        "key": 1000, "prompt": "Use no comma.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}],
    },
    "gsm8k": GSM8K,
    "math500": {"problem": "1+1?", "solution": "so", "answer": "2", "subject": "Algebra", "level": 1, "unique_id": "a"},
    "aime24": {"id": 60, "problem": "1+1?", "solution": "so", "answer": "025", "url": "u", "year": "2024"},
    "aime25": {"id": "0", "problem": "1+1?", "answer": "70"},
    "amc23": {"id": 0, "question": "1+1?", "answer": 27.0, "url": "u"},
    "hmmt25": {"problem_idx": 1, "problem": "1+1?", "answer": "103", "problem_type": ["Number Theory"]},
    "minerva_math": MINERVA,
    "olympiadbench": {
        "id": 1606, "question": "1+1?", "solution": ["so"], "final_answer": ["2", "3"], "context": None,
        "subfield": "Algebra", "answer_type": "Numerical", "is_multiple_answer": True, "unit": None, "error": None,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", hub.SETS)
def test_a_row_of_theirs_makes_a_problem_of_ours(name: str, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify")
    known = hub.SETS[name]
    table = tables.table_of([Row(known.row(Row(THEIRS[name], "there"), 0), "there")], "there", "0" * 64)
    monkeypatch.delenv(suites.DATA_VARIABLE, raising=False)
    monkeypatch.setattr(hub, "fetch", {name: table}.__getitem__)
    executor = fake(lambda program, text: Execution(Status.OK, "1"))
    for suite in suites.load([known.suites[0]], Source(executor)):
        assert [problem.failure for problem in suite.problems] == [""]
        assert list(suite.prompts())


@pytest.mark.skipif(not os.environ.get(suites.DATA_VARIABLE), reason=f"set {suites.DATA_VARIABLE} to the data files")
@pytest.mark.parametrize(
    "name", ["gsm8k", "ifeval", "math500", "aime24", "amc23", "hmmt25", "minerva_math", "olympiadbench"]
)
def test_rows_from_the_hub_have_the_ids_of_the_files(name: str) -> None:
    ours, _ = tables.open_table(Path(os.environ[suites.DATA_VARIABLE]), f"{name}.jsonl", f"{name}_dev.jsonl")
    made = hub.SETS[name].row(Row(THEIRS[name], ""), 0)
    prefix = str(made["id"]).rpartition("/")[0]
    assert str(ours.rows[0].text("id")).startswith(prefix)
    assert made.keys() - {"solution"} <= ours.rows[0].fields.keys()


@pytest.mark.skipif(not os.environ.get(suites.DATA_VARIABLE), reason=f"set {suites.DATA_VARIABLE} to the data files")
@pytest.mark.parametrize("name", ["humanevalplus", "mbppplus"])
def test_what_the_hub_leaves_out_of_evalplus_rows_is_read_from_their_tests(name: str) -> None:
    ours, _ = tables.open_table(Path(os.environ[suites.DATA_VARIABLE]), f"{name}.jsonl", f"{name}_dev.jsonl")
    for row in ours.rows:
        theirs = {**row.fields, "task_id": row.text("id"), "code": row.text("canonical_solution")}
        if name == "mbppplus":
            sentence = row.text("prompt").strip().removeprefix('"""').removesuffix('"""').strip().rpartition("\n")[0]
            theirs.update(task_id=row.text("id").removeprefix("mbpp/"), prompt=sentence)
        made = hub.SETS[name].row(Row(theirs, row.where), 0)
        assert made == {key: row.fields[key] for key in made}


# -- a folder ----------------------------------------------------------------------------------------------------------


def rows_file(folder: Path) -> Path:
    path = folder / "gsm8k.jsonl"
    path.write_bytes(jsonl({"id": "a", "question": "1+1?", "answer": "2"}))
    return path


def test_a_file_that_is_not_the_one_its_folder_states_is_refused(tmp_path: Path) -> None:
    path = rows_file(tmp_path)
    tables.open_table(tmp_path, path.name)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  other.jsonl\n{sha256}  {path.name}\n")
    (tmp_path / "PROVENANCE.md").write_text(f"| GSM8K | `{path.name}` | 1 | `{sha256}` |\n")
    assert stated_sums(path) == {"SHA256SUMS": sha256, "PROVENANCE.md": sha256}
    tables.open_table(tmp_path, path.name)
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(InvalidData, match=rf"gsm8k.jsonl is not the file that SHA256SUMS states.*{sha256[:16]}"):
        tables.open_table(tmp_path, path.name)


def test_sums_of_other_files_say_nothing_of_this_one(tmp_path: Path) -> None:
    path = rows_file(tmp_path)
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  my_{path.name}\nnonsense {path.name}\n\xff\n")
    assert stated_sums(path) == {}


def test_a_folder_that_is_stated_is_all_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "fetch", lambda name: pytest.fail("asked the hub"))
    with pytest.raises(MissingData, match=r"holds none of gsm8k.jsonl"):
        tables.open_table(tmp_path, "gsm8k.jsonl")
    monkeypatch.setenv(suites.DATA_VARIABLE, str(tmp_path))
    with pytest.raises(MissingData, match=r"holds none of gsm8k.jsonl"):
        tables.open_table(None, "gsm8k.jsonl")
