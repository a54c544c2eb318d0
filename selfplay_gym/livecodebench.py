"""LiveCodeBench's rows as its hub publishes them (arXiv:2403.07974), hidden tests included, as rows of our data files.

There the hidden tests of most rows are JSON, pickled as one text, packed and in base64. No pickle is loaded here: its
operations are read, and the one text among them is taken.
"""

from __future__ import annotations

import base64
import binascii
import json
import pickletools
import zlib
from collections.abc import Mapping

from selfplay_gym.errors import InvalidData
from selfplay_gym.suites import Row

_LARGEST = 2**28  # bytes of one row's unpacked tests
_TEXTS = frozenset(("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"))


def converted(row: Row, number: int = 0) -> dict[str, object]:
    """Return the row of ours for a row of ``livecodebench/code_generation_lite``; its number tells nothing.

    Raises:
        InvalidData: A field is missing or cannot be read.
    """
    hidden = _tests(row, "private_test_cases", _unpacked(row))
    return {
        "id": row.text("question_id"),
        "platform": row.text("platform"),
        "contest_date": row.text("contest_date")[:10],
        "question": row.text("question_content"),
        "starter_code": row.text("starter_code") or None,
        "tests": _tests(row, "public_test_cases", row.text("public_test_cases")) + hidden,
    }


def _tests(row: Row, field: str, text: str) -> list[dict[str, str]]:
    try:
        tests = json.loads(text)
        return [{"input": _input(test), "output": str(test["output"])} for test in tests]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise InvalidData(f"{row.where}: field {field!r} holds no tests: {type(error).__name__}: {error}") from None


def _input(test: Mapping[str, str]) -> str:
    """Return what a script reads, or the arguments of a call, of which the hub has one a line."""
    return ", ".join(test["input"].splitlines()) if test["testtype"] == "functional" else test["input"]


def _unpacked(row: Row) -> str:
    text = row.text("private_test_cases")
    if text.lstrip().startswith("["):
        return text
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(text, validate=True), _LARGEST)
        if unpacker.unconsumed_tail:
            raise ValueError(f"over {_LARGEST} bytes")
        (found,) = [argument for code, argument, _ in pickletools.genops(data) if code.name in _TEXTS]
    except (ValueError, binascii.Error, zlib.error) as error:
        raise InvalidData(f"{row.where}: field 'private_test_cases' cannot be unpacked: {error}") from None
    return str(found)
