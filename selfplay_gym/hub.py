"""Held-out sets from the Hugging Face hub: one file of a pinned revision each, read as the rows of our own data files.

A commit of the hub cannot change, so revision and file say which data it is. Where the file's sha256 is public too, it
is checked; in any case it goes into the result, where `rescore` and `compare` insist on it. Columns are looked up by
name, and one that is missing is named. Nothing of a data set is run: only Parquet and JSON lines are read.

Not covered: sets that come as loading scripts, and those of which file or columns are not known for certain. They are
read from a folder alone.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from selfplay_gym.errors import InvalidConfig, InvalidData, MissingData
from selfplay_gym.tables import NO_FOLDER, Row, Table, rows_of, table_of

CONNECT_SECONDS = 10.0

Fields = dict[str, object]
"""One row of ours."""


@dataclass(frozen=True, slots=True)
class HubSet:
    """Where on the hub a data file of ours can be had.

    Attributes:
        id: Of the data set.
        revision: The commit.
        file: In it; ``.jsonl`` or ``.parquet``.
        row: Makes a row of ours from one of theirs and its number.
        suites: That read the file.
        sha256: Of the file, where it is known.
    """

    id: str
    revision: str
    file: str
    row: Callable[[Row, int], Fields]
    suites: tuple[str, ...]
    sha256: str = ""

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.id}@{self.revision[:7]}/{self.file}"


def fetch(name: str) -> Table:
    """Return the set known under the name of our data file, from the hub or from what the hub's client has kept of it.

    Raises:
        InvalidConfig: The hub's client, or what reads Parquet, is not installed.
        MissingData: The hub cannot be reached or does not have it.
        InvalidData: It is another file than the known one, damaged, or lacks a column.
    """
    wanted = SETS[name]
    data = _download(wanted).read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    if wanted.sha256 and sha256 != wanted.sha256:
        raise InvalidData(
            f"{wanted.where} came with the sha256 {sha256[:16]}..., expected {wanted.sha256[:16]}...: remove it from "
            "the hub's cache and try again"
        )
    return table_of(_rows(wanted, data), wanted.where, sha256)


def _download(wanted: HubSet) -> Path:
    try:
        import huggingface_hub as client
    except ImportError:
        raise InvalidConfig(_needs("huggingface_hub", wanted)) from None
    download = partial(
        client.hf_hub_download, wanted.id, wanted.file, repo_type="dataset", revision=wanted.revision
    )  # fmt: skip
    with suppress(Exception):  # not kept here yet
        return Path(download(local_files_only=True))
    nowhere = f"{NO_FOLDER}; {wanted.where} cannot be had from the hub either"
    if client.constants.HF_HUB_OFFLINE:
        raise MissingData(f"{nowhere}: HF_HUB_OFFLINE is set, and it is not in the client's cache")
    try:
        # Asked first, since it fails at once and says why: the download tries for half a minute, telling of each try.
        address = client.hf_hub_url(wanted.id, wanted.file, repo_type="dataset", revision=wanted.revision)
        client.get_hf_file_metadata(address, timeout=CONNECT_SECONDS)
        return Path(download())
    except Exception as error:  # the client's own, its HTTP library's, the operating system's
        told = " ".join(f"{type(error).__name__}: {error}".split()).split(". ")[0]
        why = re.sub(r" ?https?://[^\s:]+:?[^\s:]*", "", told)[:200]  # the address is that of `wanted`, and long
        raise MissingData(f"{nowhere}: {why}") from None


def _rows(wanted: HubSet, data: bytes) -> Iterator[Row]:
    theirs = rows_of(data, wanted.where) if wanted.file.endswith(".jsonl") else _parquet(wanted, data)
    for number, row in enumerate(theirs):
        yield Row(wanted.row(row, number), row.where)


def _parquet(wanted: HubSet, data: bytes) -> Iterator[Row]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise InvalidConfig(_needs("pyarrow", wanted)) from None
    try:
        rows = parquet.read_table(io.BytesIO(data)).to_pylist()
    except (ValueError, OSError) as error:  # pyarrow's are of these kinds
        raise InvalidData(f"{wanted.where}: not a Parquet file that can be read: {error}") from None
    for number, fields in enumerate(rows, start=1):
        yield Row(fields, f"{wanted.where}, row {number}")


def _needs(package: str, wanted: HubSet) -> str:
    return f"{NO_FOLDER}; to get {wanted.id} from the hub needs {package}: pip install 'selfplay-gym[eval]'"


# -- rows of theirs as rows of ours ------------------------------------------------------------------------------------


def _same(prefix: str, key: str, **names: str) -> Callable[[Row, int], Fields]:
    """Return a conversion that renames columns, ours by theirs, with a column or else the row's number as id."""

    def convert(row: Row, number: int) -> Fields:
        fields = {ours: row.value(theirs) for ours, theirs in names.items()}
        return {"id": f"{prefix}{row.value(key) if key else number}", **fields}

    return convert


def _maths(prefix: str, key: str, question: str, *further: str) -> Callable[[Row, int], Fields]:
    """Return a conversion of a set whose answers may come as numbers."""
    renamed = _same(prefix, key, question=question, answer="answer", **{name: name for name in further})

    def convert(row: Row, number: int) -> Fields:
        fields = renamed(row, number)
        return {**fields, "answer": _plain(fields["answer"])}

    return convert


def _plain(answer: object) -> str:
    """Return an answer as text, a whole number without leading zeros and without a decimal point.

    >>> _plain(27.0), _plain("025"), _plain("000"), _plain("pi")
    ('27', '25', '0', 'pi')
    """
    if isinstance(answer, float) and answer.is_integer():
        return str(int(answer))
    text = str(answer).strip()
    return str(int(text)) if text.isdecimal() and text.isascii() else text


def _gsm8k(row: Row, number: int) -> Fields:
    solution = row.text("answer")
    _, marked, answer = solution.rpartition("####")
    if not marked:
        raise InvalidData(f"{row.where}: field 'answer' must end with #### and the final answer")
    return {
        "id": f"gsm8k_test/{number}", "question": row.text("question"), "answer": answer.strip().replace(",", ""),
        "solution": solution,
    }  # fmt: skip


def _olympiadbench(row: Row, number: int) -> Fields:
    names = ("question", "context", "final_answer", "subfield", "answer_type", "is_multiple_answer", "unit", "error")
    fields = {name: row.value(name) for name in names}
    answer = ", ".join(map(str, row.list("final_answer")))
    return {"id": f"olympiadbench/{row.value('id')}", **fields, "answer": answer}


def _mbpp(statement: str, **names: str) -> Callable[[Row, int], Fields]:
    renamed = _same("mbpp/", "task_id", prompt=statement, code="code", test_list="test_list", **names)
    return lambda row, number: {**renamed(row, number), "split": "test"}


_ASSERTION = re.compile(r"assertion\((\w+)\(\*inp\), (?:exp|ref_func\(\*inp\)), ([\d.e+-]+)\)")


def _assertion(row: Row) -> re.Match[str]:
    """Return the call at the end of a test program of EvalPlus, with the function's name and its tolerance."""
    found = _ASSERTION.search(row.text("test"))
    if found is None:
        raise InvalidData(f"{row.where}: field 'test' must end with a call of assertion(...) on each input")
    return found


def _humanevalplus(row: Row, number: int) -> Fields:
    names = ("prompt", "entry_point", "canonical_solution", "test")
    fields: Fields = {name: row.text(name) for name in names}
    return {"id": row.text("task_id"), **fields, "atol": float(_assertion(row)[2])}


def _mbppplus(row: Row, number: int) -> Fields:
    called, first = _assertion(row), next(iter(row.list("test_list")), "")
    return {
        "id": f"mbpp/{row.value('task_id')}",
        "prompt": f'"""\n{row.text("prompt")}\n{first}\n"""\n',  # as EvalPlus itself shows it
        "entry_point": called[1],
        "canonical_solution": row.text("code"),
        "atol": float(called[2]),
        "test": row.text("test"),
    }


# Revisions, files, columns and sums as public code states them that has read these very files.
SETS = {
    "cruxeval": HubSet(
        "cruxeval-org/cruxeval",
        "b96af0450242eb4da433032b90998f25588a5d0f",
        "test.jsonl",
        _same("", "id", code="code", input="input", output="output"),
        ("cruxeval", "cruxeval-i", "cruxeval-o"),
        "8368b81047dc5014e4caf5a2f97604eff7644e0ecd7415e3ceeb184bbc2e0c96",
    ),
    "humaneval": HubSet(
        "openai/openai_humaneval",
        "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
        "openai_humaneval/test-00000-of-00001.parquet",
        _same("", "task_id", **{n: n for n in ("prompt", "entry_point", "canonical_solution", "test")}),
        ("humaneval",),
    ),
    "humanevalplus": HubSet(
        "evalplus/humanevalplus",
        "d32357cf319e50e9c8d8dab5ea876c72b0fd321b",
        "test.jsonl",
        _humanevalplus,
        ("humaneval+",),
        "908377f1daf28dcb36846db73a5662b2e05a9907407c2696c89ad9d3b0b04492",
    ),
    "mbpp": HubSet(
        "google-research-datasets/mbpp",
        "4bb6404fdc6cacfda99d4ac4205087b89d32030c",
        "full/test-00000-of-00001.parquet",
        _mbpp("text", test_setup_code="test_setup_code"),
        ("mbpp",),
        "566fd53060ffba5766dace1d1e2f4c38906781526de222b0dfbdbc325b696c77",
    ),
    "mbpp_sanitized": HubSet(
        "google-research-datasets/mbpp",
        "4bb6404fdc6cacfda99d4ac4205087b89d32030c",
        "sanitized/test-00000-of-00001.parquet",
        _mbpp("prompt", test_imports="test_imports"),
        ("mbpp_sanitized",),
        "e9e9efa2c0d59ef5e55537a9d126b8f875d5ac010a8d75628d76824884e15850",
    ),
    "mbppplus": HubSet(
        "evalplus/mbppplus",
        "b2d74c91837c3f2a20c1299ae98133cbe7cfa077",
        "data/test-00000-of-00001-d5781c9c51e02795.parquet",
        _mbppplus,
        ("mbpp+",),
        "dc20030b3788fccf617444edcb34138ef13d7e4fafd17bfcb8c1279dbb12399b",
    ),
    "ifeval": HubSet(
        "google/IFEval",
        "966cd89545d6b6acfd7638bc708b98261ca58e84",
        "ifeval_input_data.jsonl",
        _same("ifeval/", "key", **{n: n for n in ("prompt", "instruction_id_list", "kwargs")}),
        ("ifeval",),
        "6a85310ca8ce15eff755aa08a3a4ff931c7e273e7515ebb3c492ea85fd8288f2",
    ),
    "gsm8k": HubSet(
        "openai/gsm8k",
        "cc7b047b6e5bb11b4f1af84efc572db110a51b3c",
        "main/test-00000-of-00001.parquet",
        _gsm8k,
        ("gsm8k",),
    ),
    "math500": HubSet(
        "HuggingFaceH4/MATH-500",
        "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        "test.jsonl",
        _same("", "unique_id", question="problem", answer="answer", subject="subject", level="level"),
        ("math500",),
        "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132",
    ),
    "aime24": HubSet(
        "HuggingFaceH4/aime_2024",
        "2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
        "data/train-00000-of-00001.parquet",
        _maths("aime24/", "id", "problem"),
        ("aime24",),
        "26139847601a5037c237d5928b195e7260ca8074cf4f264b794af42847f79ccf",
    ),
    "aime25": HubSet(
        "math-ai/aime25",
        "563bb8404243c5f09de6ec262f2db674fe5bce9b",
        "test.jsonl",
        _maths("aime25/", "id", "problem"),
        ("aime25",),
        "b4e273c02d3e7fe1b74b59eae768fc8230bfb0f79539890cb56f4361caac0331",
    ),
    "amc23": HubSet(
        "math-ai/amc23",
        "80815d37005feb82cd7f8fbc6901d5d3eff43057",
        "test-00000-of-00001.parquet",
        _maths("amc23/", "id", "question"),
        ("amc23",),
        "b696e87ba47be4e879a60fd4ef1d4aa522ba78c5ae013c6aff5cc9788a397c5e",
    ),
    "hmmt25": HubSet(
        "MathArena/hmmt_feb_2025",
        "6fdc4277120810ff75aa22d2d5489b91f7a262a1",
        "data/train-00000-of-00001.parquet",
        _maths("hmmt25/", "problem_idx", "problem"),
        ("hmmt25",),
    ),
    "minerva_math": HubSet(
        "math-ai/minervamath",
        "ee46ddc498933b1977577953250ca5c66be64f96",
        "test.jsonl",
        _maths("minerva_math/", "", "question"),
        ("minerva",),
    ),
    "olympiadbench": HubSet(
        "Hothan/OlympiadBench",
        "91184b52131e7fc9455fef848035173aea8cc01a",
        "OlympiadBench/OE_TO_maths_en_COMP/OE_TO_maths_en_COMP.parquet",
        _olympiadbench,
        ("olympiadbench",),
    ),
}
"""By the name of our data file."""


def source_of(suite: str) -> str:
    """Return the id of the data set of the hub that a suite reads, empty where there is none."""
    return next((known.id for known in SETS.values() if suite in known.suites), "")
