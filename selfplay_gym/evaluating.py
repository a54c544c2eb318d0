"""Ask what is not answered yet, keep each answer as it comes, then hand them to `selfplay_gym.grading`.

Whatever gives the answers, and however often it was interrupted: the score is computed from the file of answers alone.
So it is the same for a run that went through, for one that was killed and went on, and for `rescore`, which asks
nobody. A question that got no answer has no verdict; it is never a wrong answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

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
from selfplay_gym.answers import Answer, Answerer, AnswersFile, Asked, Evaluation, Sampling, questions
from selfplay_gym.errors import InvalidConfig, InvalidData
from selfplay_gym.eval_protocols import Changes, Choice, EvalProtocol, cut
from selfplay_gym.frame import last_block
from selfplay_gym.grading import Progress
from selfplay_gym.output import inert, write_whole
from selfplay_gym.protocols import Executor
from selfplay_gym.results import JUDGES, Report, SuiteResult, versions_of
from selfplay_gym.suites import Source, Suite

LINE_SECONDS = 60.0
"""How often progress is told where there is no terminal."""


@dataclass(frozen=True)
class Model:
    """Something that answers, with what a report says of it.

    Attributes:
        name: As the user named it.
        answerer: Makes what gives the answers, from whether to ask through a chat template and how to sample.
        source: What its answers depend on beside prompt and sampling, such as the state of its weights.
        style: Of prompts that suit it.
        versions: Of the packages that make the answers, beside our own.
    """

    name: str
    answerer: Callable[[bool, Sampling], Answerer]
    source: Mapping[str, object]
    style: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Put:
    """A suite as it is put to a model.

    Attributes:
        suite: With the prompts of the protocol.
        protocol: With nothing left open.
    """

    suite: Suite
    protocol: EvalProtocol

    @property
    def samples(self) -> int:
        """Completions a problem."""
        return self.protocol.sampling.samples

    def asked(self, model: Model) -> Asked:
        """Return what the head of a file of answers says of it."""
        told = self.protocol.settings(model.source.get("fields"))
        settings = {**told, "prompts_sha256": grading.prompts_sha256(self.suite.prompts())}
        return Asked(str(self.protocol.style), self.protocol.sampling, settings, self.suite.data_sha256)


def load_checked(names: Sequence[str], source: Source, choice: Choice, skip_missing: bool = False) -> suites.Loaded:
    """Load suites in the styles of their protocols, once all are seen to have one.

    Raises:
        UnknownId: No suite, protocol or style of that name.
        InvalidConfig: Some of the suites have no such protocol.
        MissingData: For some there is no data, and they are not to be skipped, or for none there is.
        InvalidData: A data file is broken.
    """
    choice.check(suites.expanded(names))

    def style_of(name: str) -> str:
        return str(choice.of(suites.parted(name)[0]).suits(source.style).style)

    return suites.load_named(names, source, style_of).present(skip_missing)


def evaluate_answers(
    model: Model,
    names: Sequence[str],
    executor: Executor,
    sampling: Sampling | Changes | None = None,
    *,
    protocol: str = "default",
    style: str | None = None,
    data_dir: Path | None = None,
    limit: int | None = None,
    skip_missing: bool = False,
    keep: Path | None = None,
    evalplus: Path | None = None,
    console: Console | None = None,
) -> Report:
    """Score a model on the named suites; with ``keep``, go on with the answers that are in that file already.

    ``sampling`` and ``style`` are the protocol's where they are not given. With ``evalplus``, the answers are also
    written there as evalplus' samples.

    Raises:
        UnknownId: No suite, protocol or style of that name.
        InvalidData: A data file or the file of answers is missing or broken.
        InvalidConfig: The file of answers holds those of another evaluation, evalplus' file is asked for several
            suites, or a suite has no such protocol.
        EndpointError: No further question can be answered.
        ExecutorError: The sandbox as a whole could not be started.
    """
    choice = Choice(protocol, style, sampling)
    source = Source(executor, data_dir, model.style)
    exam = prepare(names, source, choice, limit=limit, skip_missing=skip_missing)
    return examine(model, exam, executor, keep=keep, evalplus=evalplus, console=console)


@dataclass(frozen=True)
class Exam:
    """Suites as they are put to models of one style: loaded once, asked as often as one likes.

    Attributes:
        puts: The suites with their protocols.
        names: The style they were loaded in, by the names that they were asked for under.
        limit: Only the first so many problems of each.
        seed: Of all samples.
        notes: What a reader should know, such as what there is no data for.
    """

    puts: tuple[Put, ...]
    names: Mapping[str, str]
    limit: int | None
    seed: int
    notes: tuple[str, ...]


def prepare(
    names: Sequence[str], source: Source, choice: Choice, *, limit: int | None = None, skip_missing: bool = False
) -> Exam:
    """Load suites and settle how they are put to a model of the source's style.

    Raises:
        UnknownId: No suite, protocol or style of that name.
        InvalidData: A data file is missing or broken.
        InvalidConfig: A suite has no such protocol.
    """
    loaded = load_checked(names, replace(source, most=limit), choice, skip_missing)
    puts, styles = [], {}
    for name, found in loaded.suites.items():
        settled = choice.of(suites.parted(name)[0]).suits(source.style)
        styles[name] = str(settled.style)
        puts += [Put(settled.over(suite.first(limit)), settled) for suite in found]
    return Exam(tuple(puts), styles, limit, choice.seed, tuple(loaded.notes()))


def examine(
    model: Model,
    exam: Exam,
    executor: Executor,
    *,
    keep: Path | None = None,
    evalplus: Path | None = None,
    console: Console | None = None,
) -> Report:
    """As `evaluate_answers`, on suites that are loaded already."""
    check_evalplus(evalplus, [put.suite for put in exam.puts])
    asked = {put.suite.name: put.asked(model) for put in exam.puts}
    versions = dict(model.versions)
    evaluation = Evaluation(model.name, dict(model.source), exam.names, exam.limit, exam.seed, asked, versions)
    return _evaluate(model, exam.puts, evaluation, executor, exam.notes, keep, evalplus, console)


def _evaluate(
    model: Model,
    puts: Sequence[Put],
    evaluation: Evaluation,
    executor: Executor,
    notes: Sequence[str],
    keep: Path | None,
    evalplus: Path | None,
    console: Console | None,
) -> Report:
    """Ask and grade one suite after the other."""
    results, failed = [], []
    with _answers_file(keep) as file:
        file.begin(evaluation)
        with _told_on_the_way_out(file, keep, console):
            for put in puts:
                answerer = model.answerer(put.protocol.style == "chat", put.protocol.sampling)
                failed += _ask(answerer, put, file, console)
                results.append(_grade(put.suite, file, evaluation, executor, console))
        if evalplus is not None:
            write_evalplus(evalplus, puts[0].suite, _answers(puts[0].suite, file, evaluation))
    if failed and keep is not None:
        failed.append(f"{file.failures} says why; the same command asks again for what is missing")
    return _report(evaluation, results, executor, [*notes, *failed])


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
        source = Source(executor, data_dir, most=evaluation.limit)
        loaded = suites.load_named([*evaluation.names], source, evaluation.names.__getitem__)
        asked = [suite.first(evaluation.limit) for found in loaded.present().suites.values() for suite in found]
        check_evalplus(evalplus, asked)
        _refuse_other_data(path, asked, evaluation)
        results = [_grade(suite, file, evaluation, executor, console) for suite in asked]
        notes = [line for suite in asked if (line := _unanswered_note(suite, file, evaluation))]
        if evalplus is not None:
            write_evalplus(evalplus, asked[0], _answers(asked[0], file, evaluation))
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


def _ask(answerer: Answerer, put: Put, file: AnswersFile, console: Console | None) -> list[str]:
    """Ask what has no answer yet, and return what is to be said of what got none."""
    suite = put.suite
    left, total = file.missing(questions(suite, put.protocol.sampling)), len(suite.prompts()) * put.samples
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
    asked = evaluation.suites[suite.name]
    answers = _answers(suite, file, evaluation)
    texts = {problem: [answer.text for answer in found] for problem, found in answers.items()}
    samples = asked.sampling.samples
    unanswered = {p.id: samples - len(texts.get(p.id, ())) for p in suite.problems if p.task is not None}
    with progress(console, f"{suite.name}: judging", None) as advance:
        result = grading.grade(suite, texts, executor, asked.settings, advance, evaluation.seed, unanswered)
    return replace(result, extra={**result.extra, "cut_off": _cut_off(answers)})


def _answers(suite: Suite, file: AnswersFile, evaluation: Evaluation) -> dict[str, list[Answer]]:
    """Return the answers to a suite by problem, each up to where its protocol says that it ends."""
    asked = evaluation.suites[suite.name]
    stops = asked.settings.get("stops", ())
    found = file.of(suite, asked.sampling.samples)
    return {key: [replace(a, text=cut(a.text, stops)) for a in answers] for key, answers in found.items()}


def _cut_off(answers: Mapping[str, Sequence[Answer]]) -> float:
    """Return the share of completions that reached the token limit."""
    finished = [answer.finished for found in answers.values() for answer in found]
    return 1 - sum(finished) / len(finished) if finished else 0.0


def _report(evaluation: Evaluation, results: Sequence[SuiteResult], executor: Executor, notes: Sequence[str]) -> Report:
    # The judge is the one of today; what made the answers is told as it was.
    versions = {**versions_of("selfplay-gym", *JUDGES), **evaluation.versions}
    seed, tier = evaluation.seed, str(executor.tier)
    return Report(
        tuple(results), evaluation.model, seed=seed, tier=tier, versions=versions, notes=tuple(notes),
        source=evaluation.source,
    )  # fmt: skip


def _refuse_other_data(path: Path, asked: Sequence[Suite], evaluation: Evaluation) -> None:
    for suite in asked:
        asked_then = evaluation.suites.get(suite.name)
        was = "absent" if asked_then is None else asked_then.data_sha256
        if was != suite.data_sha256:
            raise InvalidData(
                f"{path} holds answers to other data: {suite.name} is {was[:12]} there and "
                f"{suite.data_sha256[:12]} here; get that data, or score the answers all the same with `selfplay-gym "
                "eval --completions`"
            )


def _unanswered_note(suite: Suite, file: AnswersFile, evaluation: Evaluation) -> str:
    samples = evaluation.suites[suite.name].sampling.samples
    total = len(suite.prompts()) * samples
    left = total - sum(map(len, file.of(suite, samples).values()))
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
    last = already

    def advance(done: int, total: int) -> None:
        nonlocal told, began, already, last
        now = time.monotonic()
        if done < last:  # another suite has begun
            began, already = now, done
        last = done
        if now - told < LINE_SECONDS:
            return
        told = now
        rate = (done - already) / (now - began) if now > began else 0.0
        left = f", {(total - done) / rate / 60:.0f} min left" if rate else ""
        line = f"{title}: {done} of {total}, {rate:.2g}/s{left}"
        console.print(line, soft_wrap=True, markup=False, highlight=False)

    return advance
