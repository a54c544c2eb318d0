"""Ask what is not answered yet, keep each answer as it comes, then hand them to `selfplay_gym.grading`.

Whatever gives the answers, and however often it was interrupted: the score is computed from the file of answers alone.
So it is the same for a run that went through, for one that was killed and went on, and for `rescore`, which asks
nobody. A question that got no answer has no verdict; it is never a wrong answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as ProgressBar
from rich.progress import Task as BarTask
from rich.text import Text

from selfplay_gym import grading, suites
from selfplay_gym.answers import Answer, Answerer, AnswersFile, Evaluation, Sampling, questions
from selfplay_gym.errors import InvalidConfig, InvalidData
from selfplay_gym.frame import last_block
from selfplay_gym.grading import Progress, Report, SuiteResult
from selfplay_gym.output import inert, write_whole
from selfplay_gym.protocols import Executor
from selfplay_gym.suites import Source, Suite

COMPACT_TOKENS, LONG_TOKENS = 160, 2048
"""Longest completion in the compact style, and in the others, unless told."""

LINE_SECONDS = 60.0
"""How often progress is told where there is no terminal."""


@dataclass(frozen=True)
class Model:
    """Something that answers, with what a report says of it.

    Attributes:
        name: As the user named it.
        answerer: Gives the answers.
        source: What its answers depend on beside prompt and sampling, such as the state of its weights.
        style: Of its prompts.
        versions: Of the packages that make the answers, beside our own.
    """

    name: str
    answerer: Answerer
    source: Mapping[str, object]
    style: str
    versions: Mapping[str, str]


def tokens_of(sampling: Sampling, style: str) -> Sampling:
    """Return the sampling with its limit of tokens filled in."""
    tokens = sampling.max_new_tokens or (COMPACT_TOKENS if style == "compact" else LONG_TOKENS)
    return replace(sampling, max_new_tokens=tokens)


def evaluate_answers(
    model: Model,
    names: Sequence[str],
    executor: Executor,
    sampling: Sampling,
    *,
    data_dir: Path | None = None,
    limit: int | None = None,
    keep: Path | None = None,
    evalplus: Path | None = None,
    console: Console | None = None,
) -> Report:
    """Score a model on the named suites; with ``keep``, go on with the answers that are in that file already.

    With ``evalplus``, the answers are also written there as evalplus' samples.

    Raises:
        UnknownId: No suite of that name.
        InvalidData: A data file or the file of answers is missing or broken.
        InvalidConfig: The file of answers holds those of another evaluation, or evalplus' file is asked for several
            suites.
        EndpointError: No further question can be answered.
        ExecutorError: The sandbox as a whole could not be started.
    """
    sampling = tokens_of(sampling, model.style)
    asked = [suite.first(limit) for suite in suites.load(names, Source(executor, data_dir, model.style))]
    check_evalplus(evalplus, asked)
    settings = {suite.name: _settings(suite, model, sampling) for suite in asked}
    evaluation = Evaluation(
        model.name, dict(model.source), tuple(names), limit, model.style, sampling, settings, dict(model.versions)
    )
    with _answers_file(keep) as file:
        file.begin(evaluation)
        results, notes = [], []
        with _told_on_the_way_out(file, keep, console):
            for suite in asked:
                notes += _ask(model.answerer, suite, sampling, file, console)
                results.append(_grade(suite, file, evaluation, executor, console))
        if evalplus is not None:
            write_evalplus(evalplus, asked[0], file.of(asked[0], sampling.samples))
    if notes and keep is not None:
        notes.append(f"{file.failures} says why; the same command asks again for what is missing")
    return _report(evaluation, results, executor, notes)


def rescore(
    path: Path,
    executor: Executor,
    *,
    data_dir: Path | None = None,
    evalplus: Path | None = None,
    console: Console | None = None,
) -> Report:
    """Repeat the grading of a file of answers without the model: the same report, its command apart.

    Raises:
        InvalidData: The file, or a data file, is missing or broken, or the data has changed since.
        InvalidConfig: evalplus' file is asked for several suites.
    """
    with AnswersFile.read(path) as file:
        evaluation = file.evaluation
        if evaluation is None:
            raise InvalidData(
                f"{path} does not say what was asked, as files of `eval --keep` do: score it with `selfplay-gym eval "
                f"--completions {path} --suite A,B`"
            )
        loaded = suites.load(evaluation.names, Source(executor, data_dir, evaluation.style))
        asked = [suite.first(evaluation.limit) for suite in loaded]
        check_evalplus(evalplus, asked)
        _refuse_other_data(path, asked, evaluation)
        results = [_grade(suite, file, evaluation, executor, console) for suite in asked]
        notes = [line for suite in asked if (line := _unanswered_note(suite, file, evaluation))]
        if evalplus is not None:
            write_evalplus(evalplus, asked[0], file.of(asked[0], evaluation.sampling.samples))
    return _report(evaluation, results, executor, notes)


def check_evalplus(path: Path | None, asked: Sequence[Suite]) -> None:
    """Refuse to write evalplus' samples of several suites, whose ids have no place for a suite's name.

    Raises:
        InvalidConfig: There are several.
    """
    if path is not None and len(asked) > 1:
        names = ", ".join(suite.name for suite in asked)
        raise InvalidConfig(f"evalplus' samples are those of one suite, got {names}: name one")


def write_evalplus(path: Path, suite: Suite, answers: Mapping[str, Sequence[Answer]]) -> None:
    """Write answers as evalplus reads them: a line ``{"task_id": ..., "solution": ...}`` each, the program alone.

    Raises:
        OSError: The file cannot be written.
    """
    rows = [
        {"task_id": problem.id, "solution": last_block(grading.extract(answer.text), "python")}
        for problem in suite.problems
        for answer in answers.get(problem.id, ())
    ]
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


def _settings(suite: Suite, model: Model, sampling: Sampling) -> dict[str, Any]:
    # The seed is reported beside the score; another seed is the same protocol.
    decoding = {name: value for name, value in asdict(sampling).items() if name != "seed"}
    fields = model.source.get("fields")
    settings = {
        "style": model.style,
        "prompts_sha256": grading.prompts_sha256(suite.prompts()),
        "decoding": {**decoding, **({"fields": fields} if fields else {})},
    }
    return {"settings": settings, "data_sha256": suite.data_sha256}


@contextmanager
def _answers_file(keep: Path | None) -> Iterator[AnswersFile]:
    """Open the file of answers, one that nobody keeps if need be."""
    if keep is not None:
        with AnswersFile.write(keep) as file:
            yield file
        return
    with TemporaryDirectory() as folder, AnswersFile.write(Path(folder) / "answers.jsonl") as file:
        yield file


@contextmanager
def _told_on_the_way_out(file: AnswersFile, keep: Path | None, console: Console | None) -> Iterator[None]:
    """Say what is kept where an error or Ctrl-C ends an evaluation."""
    try:
        yield
    except BaseException:
        if keep is not None and console is not None:
            told = (
                f"{len(file)} answers are kept in {inert(str(keep))}; the same command goes on, `rescore` scores them."
            )
            console.print(told, soft_wrap=True, markup=False, highlight=False)
        raise


def _ask(answerer: Answerer, suite: Suite, sampling: Sampling, file: AnswersFile, console: Console | None) -> list[str]:
    """Ask what has no answer yet, and return what is to be said of what got none."""
    left, total = file.missing(questions(suite, sampling)), len(suite.prompts()) * sampling.samples
    done, failed, reason = total - len(left), 0, ""
    # Closed at once, and not when it is collected: an endpoint's connections end with it.
    with progress(console, f"{suite.name}: asking", total, done) as advance, closing(answerer.answers(left)) as answers:
        for question, answer in answers:
            done += 1
            if isinstance(answer, Answer):
                file.add(question, answer)
            else:
                file.fail(question, answer)
                failed, reason = failed + 1, f"{type(answer).__name__}: {answer}"
            advance(done, total)
    if not failed:
        return []
    return [f"{suite.name}: {failed} of {total} questions got no answer and have no verdict; the last: {reason}"]


def _grade(
    suite: Suite, file: AnswersFile, evaluation: Evaluation, executor: Executor, console: Console | None
) -> SuiteResult:
    samples = evaluation.sampling.samples
    answers = file.of(suite, samples)
    texts = {problem: [answer.text for answer in found] for problem, found in answers.items()}
    unanswered = {p.id: samples - len(texts.get(p.id, ())) for p in suite.problems if p.task is not None}
    settings = evaluation.suites[suite.name]["settings"]
    with progress(console, f"{suite.name}: judging", None) as advance:
        result = grading.grade(suite, texts, executor, settings, advance, evaluation.sampling.seed, unanswered)
    return replace(result, extra={**result.extra, "cut_off": _cut_off(answers)})


def _cut_off(answers: Mapping[str, Sequence[Answer]]) -> float:
    """Return the share of completions that reached the token limit."""
    finished = [answer.finished for found in answers.values() for answer in found]
    return 1 - sum(finished) / len(finished) if finished else 0.0


def _report(evaluation: Evaluation, results: Sequence[SuiteResult], executor: Executor, notes: Sequence[str]) -> Report:
    # The judge is the one of today; what made the answers is told as it was.
    versions = {**grading.versions_of("selfplay-gym", *grading.JUDGES), **evaluation.versions}
    seed, tier = evaluation.sampling.seed, str(executor.tier)
    return Report(tuple(results), evaluation.model, seed=seed, tier=tier, versions=versions, notes=tuple(notes))


def _refuse_other_data(path: Path, asked: Sequence[Suite], evaluation: Evaluation) -> None:
    for suite in asked:
        was = evaluation.suites.get(suite.name, {}).get("data_sha256")
        if was != suite.data_sha256:
            raise InvalidData(
                f"{path} holds answers to other data: {suite.name} is {str(was)[:12]} there and "
                f"{suite.data_sha256[:12]} here; get that data, or score the answers all the same with `selfplay-gym "
                "eval --completions`"
            )


def _unanswered_note(suite: Suite, file: AnswersFile, evaluation: Evaluation) -> str:
    total = len(suite.prompts()) * evaluation.sampling.samples
    left = total - sum(map(len, file.of(suite, evaluation.sampling.samples).values()))
    return f"{suite.name}: {left} of {total} questions have no answer and no verdict" if left else ""


# -- progress ----------------------------------------------------------------------------------------------------------


class _Rate(ProgressColumn):
    """How many a second."""

    def render(self, task: BarTask) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.2g}/s" if speed < 10 else f"{speed:.0f}/s")


@contextmanager
def progress(console: Console | None, title: str, total: int | None, done: int = 0) -> Iterator[Progress]:
    """Show progress with rate and time left: a bar on a terminal, elsewhere a line a minute."""
    if console is None:
        yield lambda done, total: None
    elif not console.is_terminal:  # there, rich leaves an empty line for each bar
        yield _lines(console, title, done)
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate())
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        with ProgressBar(*columns, *times, console=console, transient=True) as bar:
            task = bar.add_task(title, total=total, completed=done)
            yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(console: Console, title: str, already: int) -> Progress:
    began = told = time.monotonic()

    def advance(done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told < LINE_SECONDS:
            return
        told = now
        rate = (done - already) / (now - began)
        left = f", {(total - done) / rate / 60:.0f} min left" if rate else ""
        line = f"{title}: {done} of {total}, {rate:.2g}/s{left}"
        console.print(line, soft_wrap=True, markup=False, highlight=False)

    return advance
