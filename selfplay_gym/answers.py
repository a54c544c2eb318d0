"""What a model is asked and what it answered, and the file that keeps it through any kill.

An answer is a line, appended as it comes; the file is never rewritten. Each line carries a key, the hash of all that
the answer depends on: model, prompt, decoding, sample. An answer under another key is never taken for one that is
asked for; since a file that mixed the two could not be scored, it is refused instead.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import traceback
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

from selfplay_gym.errors import InvalidConfig, InvalidData
from selfplay_gym.suites import Row, Suite, row_of

FORMAT = 2
"""Version of the file's first line."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a policy is asked.

    Attributes:
        samples: Completions a problem.
        temperature: 0.0 is greedy and then one sample is all there is.
        max_new_tokens: Where a completion is cut; None takes a default for the prompt style.
        seed: Fixes every sample.
    """

    samples: int = 1
    temperature: float = 0.0
    max_new_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InvalidConfig(f"samples must be at least 1, got {self.samples}")
        if self.samples > 1 and self.temperature == 0:
            raise InvalidConfig(f"{self.samples} greedy samples would all be the same: set a temperature above 0")


GREEDY = Sampling()
"""One completion a problem, the likeliest."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, asked once.

    Attributes:
        id: ``suite/problem``.
        sample: Which of the samples of the problem this is, from 0.
        prompt: The text.
        seed: Of this sample; 128 bits.
    """

    id: str
    sample: int
    prompt: str
    seed: int

    @property
    def suite(self) -> str:
        """The name of its suite."""
        return self.id.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Answer:
    """A completion.

    Attributes:
        text: Special tokens left out.
        finished: The model ended it; otherwise it was cut at the limit.
    """

    text: str
    finished: bool


class Answerer(Protocol):
    """Answers questions, in any order and as many at a time as it likes."""

    def answers(self, questions: Sequence[Question]) -> Generator[tuple[Question, Answer | Exception]]:
        """Yield each question with its answer, or with what kept it from being answered, as they come.

        Raises:
            SelfPlayError: No further question can be answered.
        """
        ...


def questions(suite: Suite, sampling: Sampling) -> Iterator[Question]:
    """Yield what is asked of a suite. A sample's seed does not depend on what else is asked."""
    for problem, prompt in suite.prompts().items():
        for sample in range(sampling.samples):
            parts = repr((sampling.seed, suite.name, problem, sample)).encode()
            seed = int.from_bytes(hashlib.blake2b(parts, digest_size=16).digest(), "big")
            yield Question(f"{suite.name}/{problem}", sample, prompt, seed)


# -- the file ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """How one suite is asked.

    Attributes:
        style: Of the prompts.
        sampling: With its limit of tokens filled in.
        settings: What a score depends on, the protocol's name among them.
        data_sha256: Of the data file.
    """

    style: str
    sampling: Sampling
    settings: Mapping[str, Any]
    data_sha256: str

    def decides(self) -> dict[str, object]:
        """Return what an answer depends on beside the model and its prompt; greedy ones on no seed."""
        sampling = asdict(self.sampling)
        del sampling["samples"]
        if not self.sampling.temperature:
            del sampling["seed"]
        return {"style": self.style, **sampling}


@dataclass(frozen=True)
class Evaluation:
    """What is asked of which model: the line at the head of a file of answers.

    Attributes:
        model: As the user named it.
        source: What gives the answers, with all that they depend on beside the prompt and the sampling.
        names: The names that the suites were asked for under, groups resolved, with the style they were loaded in.
        limit: Only the first so many problems of each.
        seed: Of all samples.
        suites: By name, how each is asked.
        versions: Of the packages that made the answers.
    """

    model: str
    source: Mapping[str, object]
    names: Mapping[str, str]
    limit: int | None
    seed: int
    suites: Mapping[str, Asked]
    versions: Mapping[str, str]

    def key(self, question: Question) -> str:
        """Return the hash of all that the answer to a question depends on."""
        asked = self.suites[question.suite]
        seed = question.seed if asked.sampling.temperature else None
        decides = {**self.source, **asked.decides()}
        parts = [sorted(decides.items()), question.id, question.sample, question.prompt, seed]
        return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()

    def differences(self, other: Evaluation) -> Iterator[tuple[str, object, object]]:
        """Yield what keeps answers to one from being answers to the other: a name and both values."""
        shared = [name for name in self.suites if name in other.suites]
        pairs = [(self.source, other.source)]
        pairs += [(self.suites[name].decides(), other.suites[name].decides()) for name in shared]
        for mine, theirs in pairs:
            names = dict.fromkeys((*mine, *theirs))
            yield from ((n, mine.get(n), theirs.get(n)) for n in names if mine.get(n) != theirs.get(n))

    def line(self) -> str:
        """Return the line of the file."""
        return json.dumps({"evaluation": {"format": FORMAT, **asdict(self)}})

    @classmethod
    def read(cls, row: Row) -> Evaluation:
        """Return what `line` wrote.

        Raises:
            InvalidData: It was written by another version, or by something else.
        """
        fields = row.value("evaluation")
        try:
            if not isinstance(fields, dict) or fields.pop("format") != FORMAT:
                raise ValueError
            if not isinstance(fields["names"], dict):
                raise TypeError
            suites = {name: _asked(**asked) for name, asked in fields.pop("suites").items()}
            return cls(suites=suites, **fields)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise InvalidData(
                f"{row.where}: no head of an evaluation that this version writes; score the file with `selfplay-gym "
                "eval --completions`"
            ) from None


def _asked(style: str, sampling: dict[str, Any], settings: dict[str, Any], data_sha256: str) -> Asked:
    if not isinstance(settings, dict):
        raise TypeError
    return Asked(style, Sampling(**sampling), settings, data_sha256)


class AnswersFile:
    """A file of answers: one writer at a time, any number of readers later.

    Which answers are there is held in memory, the texts are not.

    Attributes:
        evaluation: What the file was last opened for, or None while it has no head.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.evaluation: Evaluation | None = None
        self._places: dict[tuple[str, int], tuple[int, str]] = {}
        self._whole = 0  # bytes up to the end of the last whole line
        self._file: IO[bytes] | None = None

    @property
    def failures(self) -> Path:
        """The side file: what was asked and not answered the last time, with the errors."""
        return self.path.with_name(f"{self.path.name}.failures")

    def __len__(self) -> int:
        return len(self._places)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return a file as it is, only to be read.

        Raises:
            InvalidData: It cannot be read, or a line is broken.
        """
        try:
            return cls(path)._over(path.open("rb"))
        except OSError as error:
            raise InvalidData(f"cannot read {path}: {error.strerror}") from None

    @classmethod
    def write(cls, path: Path) -> Self:
        """Return a file to go on with, or a new one.

        Raises:
            InvalidConfig: It cannot be written, or another evaluation writes it.
            InvalidData: A line is broken.
        """
        if path.exists() and not path.is_file():
            raise InvalidConfig(f"cannot keep answers in {path}: expected an ordinary file, which can be read back")
        try:
            return cls(path)._over(path.open("a+b"), alone=True)
        except BlockingIOError:
            raise InvalidConfig(f"{path} is in use by another evaluation: let it end, or name another file") from None
        except OSError as error:
            raise InvalidConfig(f"cannot write {path}: {error.strerror}") from None

    def _over(self, file: IO[bytes], alone: bool = False) -> Self:
        """Take an open file in, closing it where it is not fit."""
        self._file = file
        try:
            if alone:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._index()
        except BaseException:
            file.close()
            raise
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with suppress(OSError):  # what could not be written has been told
                self._file.close()

    def _index(self) -> None:
        for row, start, end in self._rows():
            if "evaluation" in row.fields:
                self.evaluation = Evaluation.read(row)
            else:
                self._places[row.text("id"), _sample(row)] = start, row.text("key")
            self._whole = end

    def _rows(self) -> Iterator[tuple[Row, int, int]]:
        """Yield each line with where it begins and ends, but not a last one that was cut off."""
        file, end = self._open, 0
        file.seek(0)
        for number, line in enumerate(file, start=1):
            start, end = end, end + len(line)
            where = f"{self.path}, line {number}"
            try:
                value = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                if not line.endswith(b"\n"):
                    return
                raise InvalidData(f"{where}: not JSON: {error}") from None
            row = row_of(value, where)
            if "evaluation" not in row.fields and not {"id", "completion", "sample", "finished", "key"} <= value.keys():
                raise InvalidData(f"{where}: not written by `eval --keep`, so an evaluation cannot go on from it")
            yield row, start, end

    @property
    def _open(self) -> IO[bytes]:
        assert self._file is not None, "open it with read or write"
        return self._file

    def begin(self, evaluation: Evaluation) -> None:
        """Say what is asked from now on. Answers that are there already must be answers to that.

        A last line that a kill cut off is taken away.

        Raises:
            InvalidConfig: They are answers of another model, or were asked for in another way.
        """
        if self.evaluation is not None:
            self._refuse_another(self.evaluation, evaluation)
        if self._open.seek(0, os.SEEK_END) != self._whole:
            self._open.truncate(self._whole)
        self.failures.unlink(missing_ok=True)
        if self.evaluation != evaluation:
            self._append(evaluation.line())
        self.evaluation = evaluation

    def _refuse_another(self, before: Evaluation, now: Evaluation) -> None:
        for name, was, wanted in before.differences(now):
            raise InvalidConfig(
                f"{self.path} holds answers of another evaluation: {name} is {was!r} there and {wanted!r} now; name "
                "another file, or remove this one"
            )

    def missing(self, asked: Iterator[Question]) -> list[Question]:
        """Return the questions that have no answer here yet.

        Raises:
            InvalidConfig: An answer is one to another prompt.
        """
        assert self.evaluation is not None, "begin first"
        left = []
        for question in asked:
            place = self._places.get((question.id, question.sample))
            if place is None:
                left.append(question)
            elif place[1] != self.evaluation.key(question):
                raise InvalidConfig(
                    f"{self.path} holds an answer of {question.id} to another prompt than it has now (another version "
                    "of this package or of the data); name another file, or remove this one"
                )
        return left

    def add(self, question: Question, answer: Answer) -> None:
        """Append an answer; once this returns, no kill of this process loses it."""
        assert self.evaluation is not None, "begin first"
        key = self.evaluation.key(question)
        line = {"id": question.id, "completion": answer.text, "sample": question.sample, "finished": answer.finished}
        start = self._append(json.dumps({**line, "key": key}))
        self._places[question.id, question.sample] = start, key

    def fail(self, question: Question, error: Exception) -> None:
        """Note in the side file why there is no answer."""
        told = "".join(traceback.format_exception(error))
        line = {"id": question.id, "sample": question.sample, "error": type(error).__name__, "message": str(error)}
        with self.failures.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "traceback": told}) + "\n")

    def _append(self, line: str) -> int:
        """Write a line at the end and return where it begins."""
        start = self._open.seek(0, os.SEEK_END)
        # A last line may lack its end and be whole: somebody's editor.
        newline = b"\n" if start and self._last_byte(start) != b"\n" else b""
        try:
            self._open.write(newline + line.encode() + b"\n")
            self._open.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        return start + len(newline)

    def _last_byte(self, end: int) -> bytes:
        self._open.seek(end - 1)
        return self._open.read(1)

    def of(self, suite: Suite, samples: int) -> dict[str, list[Answer]]:
        """Return the answers to a suite by problem, in the order of their samples."""
        found: dict[str, list[Answer]] = {}
        for problem in suite.problems:
            places = (self._places.get((f"{suite.name}/{problem.id}", sample)) for sample in range(samples))
            answers = [self._read(place[0]) for place in places if place is not None]
            if answers:
                found[problem.id] = answers
        return found

    def _read(self, start: int) -> Answer:
        self._open.seek(start)
        fields = json.loads(self._open.readline())
        return Answer(fields["completion"], fields["finished"])


def _sample(row: Row) -> int:
    sample = row.value("sample")
    if type(sample) is not int or sample < 0 or not isinstance(row.value("finished"), bool):
        raise InvalidData(f"{row.where}: expected a sample from 0 and finished true or false, got {sample!r}")
    row.text("completion")
    return sample
