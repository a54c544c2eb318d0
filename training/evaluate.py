"""Score a policy on held-out suites: ask every problem, then hand the completions to `selfplay_gym.grading`.

Only the asking needs the model. The completions can be kept, and scored again without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar

from selfplay_gym import grading, suites
from selfplay_gym.errors import InvalidConfig
from selfplay_gym.grading import Progress, Report, SuiteResult
from selfplay_gym.output import write_whole
from selfplay_gym.protocols import Executor
from selfplay_gym.suites import Source, Suite
from selfplay_gym.tasks.prompting import Style, check_style
from selfplay_gym.training.policy import Completion, Policy

COMPACT_TOKENS, LONG_TOKENS = 160, 2048
"""Longest completion in the compact style, and in the others, unless told."""

NANO_POLICY = Path(str(resources.files(__package__) / "nano_policy"))
"""The nano policy that comes with the package."""

NANO_TOKENS = frozenset({"deduction\n", "propose ", "def f(x):\n"})
"""Entries of the nano policy's vocabulary that no ordinary tokenizer has together."""


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


def evaluate(
    model: str | Path | Policy,
    names: Sequence[str],
    executor: Executor,
    *,
    sampling: Sampling = Sampling(),
    style: str | None = None,
    data_dir: Path | None = None,
    limit: int | None = None,
    keep: Path | None = None,
    console: Console | None = None,
) -> Report:
    """Score a model on the named suites.

    Args:
        model: Checkpoint folder, hub id, or a loaded policy.
        names: Registered suites.
        executor: Runs answers and, for some suites, references.
        sampling: How the policy is asked.
        style: Prompt style; by default `style_of` the tokenizer.
        data_dir: Folder of the data files; by default ``SELFPLAY_GYM_DATA``.
        limit: Take the first so many problems of each suite only.
        keep: File to write the completions to, for scoring again without the model.
        console: Where to show progress, if anywhere.

    Raises:
        UnknownId: No suite or style of that name.
        InvalidData: A data file is missing or broken.
        InvalidConfig: An impossible setting, or nothing loadable under ``model``.
        ExecutorError: The sandbox as a whole could not be started.
    """
    if style is not None:
        check_style(style)
    # Before the model is loaded, so that a misspelt suite or a missing file shows at once.
    suites.load(names, Source(executor, data_dir, style or "azr"))
    policy = model if isinstance(model, Policy) else Policy.load(model)
    most, tokens = positions(policy.model.config), sampling.max_new_tokens
    if most is not None and tokens is not None and tokens >= most:
        raise InvalidConfig(
            f"a completion of {tokens} new tokens does not fit the model, which reads {most} tokens, prompt included"
        )
    style = style or style_of(policy.tokenizer)
    asked = [suite.first(limit) for suite in suites.load(names, Source(executor, data_dir, style))]
    with _keeping(keep) as kept:
        results = [_evaluate_suite(policy, suite, executor, sampling, style, kept, console) for suite in asked]
    versions = grading.versions_of("selfplay-gym", *grading.JUDGES, "torch", "transformers")
    name = policy.model.name_or_path if isinstance(model, Policy) else str(model)
    return Report(tuple(results), name, seed=sampling.seed, tier=str(executor.tier), versions=versions)


def positions(config: Any) -> int | None:
    """Return how many tokens, prompt and completion together, a model of this configuration can read."""
    most = getattr(config, "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 0 else None


def evaluate_named(model: str, names: Sequence[str], executor: Executor, **how: Any) -> Report:
    """As `evaluate`, where ``nano`` stands for the shipped policy."""
    report = evaluate(NANO_POLICY if model == "nano" else model, names, executor, **how)
    return replace(report, model=model)


def style_of(tokenizer: Any) -> Style:
    """Return the prompt style that suits a policy: compact for nano, chat where there is a template, else azr."""
    if tokenizer.get_vocab().keys() >= NANO_TOKENS:
        return "compact"
    return "chat" if tokenizer.chat_template else "azr"


def _evaluate_suite(
    policy: Policy,
    suite: Suite,
    executor: Executor,
    sampling: Sampling,
    style: str,
    kept: _Kept | None,
    console: Console | None,
) -> SuiteResult:
    tokens = sampling.max_new_tokens or (COMPACT_TOKENS if style == "compact" else LONG_TOKENS)
    sampling = replace(sampling, max_new_tokens=tokens)
    prompts = suite.prompts()
    settings = {
        "style": style,
        "prompts_sha256": grading.prompts_sha256(prompts),
        # The seed is reported beside the score; another seed is the same protocol.
        "decoding": {name: value for name, value in asdict(sampling).items() if name != "seed"},
    }
    with _progress(console, f"{suite.name}: asking", len(prompts) * sampling.samples) as advance:
        sampled = _ask(policy, prompts, sampling, style, advance)
    texts = {problem: [completion.text for completion in found] for problem, found in sampled.items()}
    if kept is not None:
        kept.add(suite, texts)
    with _progress(console, f"{suite.name}: judging", None) as advance:
        result = grading.grade(suite, texts, executor, settings, advance, sampling.seed)
    return replace(result, extra={**result.extra, "cut_off": _cut_off(sampled)})


@dataclass(frozen=True, slots=True)
class _Kept:
    """Completions on their way to a file, which stays the old one until there is a whole suite to put there."""

    path: Path
    collected: Path

    def add(self, suite: Suite, texts: grading.Completions) -> None:
        """Take a suite's completions in; the file then holds all suites so far."""
        grading.write_completions(self.collected, suite, texts)
        if self.collected != self.path:
            write_whole(self.path, self.collected.read_text(encoding="utf-8"))


@contextmanager
def _keeping(path: Path | None) -> Iterator[_Kept | None]:
    """Raise what keeps a file from being written before the model is asked, not hours after."""
    if path is None:
        yield None
    elif path.exists() and not path.is_file():  # a pipe, the terminal
        yield _Kept(path, path)
    else:
        new = not path.exists()
        path.open("a", encoding="utf-8").close()
        if new:
            path.unlink()
        with TemporaryDirectory() as folder:
            yield _Kept(path, Path(folder) / "completions.jsonl")


def _ask(
    policy: Policy, prompts: dict[str, str], sampling: Sampling, style: str, advance: Progress
) -> dict[str, list[Completion]]:
    """Return the completions by problem id."""
    repeated = [prompt for prompt in prompts.values() for _ in range(sampling.samples)]
    completions = iter(
        policy.sample(
            repeated,
            chat=style == "chat",
            max_new_tokens=sampling.max_new_tokens or LONG_TOKENS,
            temperature=sampling.temperature,
            seed=sampling.seed,
            progress=lambda done: advance(done, len(repeated)),
        )
    )
    return {problem: [next(completions) for _ in range(sampling.samples)] for problem in prompts}


def _cut_off(sampled: dict[str, list[Completion]]) -> float:
    """Return the share of completions that reached the token limit."""
    finished = [completion.sample.finished for found in sampled.values() for completion in found]
    return 1 - sum(finished) / len(finished) if finished else 0.0


@contextmanager
def _progress(console: Console | None, title: str, total: int | None) -> Iterator[Progress]:
    if console is None or not console.is_terminal:  # there, rich leaves an empty line for each bar
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with ProgressBar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done, total: bar.update(task, completed=done, total=total)
