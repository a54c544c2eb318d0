"""Score a policy on held-out suites: a model that is loaded here as one that answers `selfplay_gym.evaluating`."""

from __future__ import annotations

import uuid
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console

from selfplay_gym import interrupts, results, suites
from selfplay_gym.answers import Answer, Question, Sampling
from selfplay_gym.errors import InvalidConfig, UnknownId
from selfplay_gym.eval_protocols import Changes, Choice, EvalProtocol
from selfplay_gym.evaluating import Model, examine, prepare
from selfplay_gym.protocols import Executor
from selfplay_gym.results import Report
from selfplay_gym.suites import Source
from selfplay_gym.tasks.prompting import Style
from selfplay_gym.training.generation import Request
from selfplay_gym.training.loading import check_source, check_template, fingerprint, load_tokenizer
from selfplay_gym.training.policy import Policy
from selfplay_gym.training.vllm import VLLMBackend

AT_ONCE, AT_ONCE_VLLM = 128, 1024
"""Questions that a model is asked before their answers are kept: a batch, or enough to fill an engine."""

NANO_POLICY = Path(str(resources.files(__package__) / "nano_policy"))
"""The nano policy that comes with the package."""

NANO_TOKENS = frozenset({"deduction\n", "propose ", "def f(x):\n"})
"""Entries of the nano policy's vocabulary that no ordinary tokenizer has together."""


def evaluate(
    model: str | Path | Policy,
    names: Sequence[str],
    executor: Executor,
    *,
    protocol: str = "default",
    sampling: Sampling | Changes | None = None,
    backend: str = "hf",
    style: str | None = None,
    data_dir: Path | None = None,
    limit: int | None = None,
    skip_missing: bool = False,
    keep: Path | None = None,
    evalplus: Path | None = None,
    name: str | None = None,
    console: Console | None = None,
) -> Report:
    """Score a model on the named suites.

    Args:
        model: Checkpoint folder, hub id, or a loaded policy.
        names: Registered suites, and groups of them.
        executor: Runs answers and, for some suites, references.
        protocol: How problems are put and answers sampled; see `selfplay_gym.eval_protocols`.
        sampling: Another sampling than the protocol's, as a whole or only those of its fields that differ.
        backend: ``hf``, or ``vllm`` to load the model into an engine of vLLM's.
        style: Another prompt style than the protocol's, which may leave it to `style_of` the tokenizer.
        data_dir: Folder of the data files; by default ``SELFPLAY_GYM_DATA``.
        limit: Take the first so many problems of each suite only.
        skip_missing: Leave suites out that there is no data for, and say so.
        keep: File to append the answers to as they come. Those that are there already are not asked for again.
        evalplus: File to write the answers to as evalplus' samples.
        name: How the report calls the model; by default as ``model`` does.
        console: Where to show progress, if anywhere.

    Raises:
        UnknownId: No suite, protocol, style or back-end of that name.
        InvalidData: A data file, or the file of answers, is missing or broken.
        InvalidConfig: An impossible setting, nothing loadable under ``model``, answers of another evaluation, or a
            suite without such a protocol.
        ExecutorError: The sandbox as a whole could not be started.
    """
    interrupts.check()
    choice = Choice(protocol, style, sampling)
    # Before the model is loaded, so that a misspelt suite or a missing file shows at once.
    choice.check(suites.loaders_of(names))
    suited = style_of(_tokenizer(model))
    exam = prepare(names, Source(executor, data_dir, suited), choice, limit=limit, skip_missing=skip_missing)
    policy = model if isinstance(model, Policy) else _load(str(model), backend)
    for each in exam.names:
        _check_fit(policy, choice.of(suites.parted(each)[0]), suited)
    where = policy.model.name_or_path if isinstance(model, Policy) else str(model)
    # The weights of a loaded policy may be any: nothing is taken for answers of theirs.
    state = uuid.uuid4().hex if isinstance(model, Policy) else fingerprint(where)
    asked = Model(
        name=name or where,
        answerer=partial(PolicyAnswerer.of, policy),
        source={"model": where, "files": state, "backend": backend},
        style=suited,
        versions=results.versions_of("torch", "transformers", *(["vllm"] if backend == "vllm" else [])),
    )
    return examine(asked, exam, executor, keep=keep, evalplus=evalplus, console=console)


def _tokenizer(model: str | Path | Policy) -> Any:
    if isinstance(model, Policy):
        return model.tokenizer
    check_source(str(model))
    return load_tokenizer(str(model))


def _check_fit(policy: Policy, protocol: EvalProtocol, suited: str) -> None:
    """Refuse what a model cannot do: chats without a template, completions longer than all that it reads."""
    if protocol.suits(suited).style == "chat":
        check_template(policy.tokenizer)
    most, tokens = positions(policy.model.config), protocol.sampling.max_new_tokens
    if most is not None and tokens is not None and tokens >= most:
        raise InvalidConfig(
            f"a completion of {tokens} new tokens does not fit the model, which reads {most} tokens, prompt included; "
            "set --max-new-tokens"
        )


def evaluate_named(model: str, names: Sequence[str], executor: Executor, **how: Any) -> Report:
    """As `evaluate`, where ``nano`` stands for the shipped policy."""
    return evaluate(NANO_POLICY if model == "nano" else model, names, executor, name=model, **how)


def _load(source: str, backend: str) -> Policy:
    if backend not in ("hf", "vllm"):
        raise UnknownId(f"no backend {backend!r} to evaluate with; it is hf or vllm")
    return Policy.in_vllm(source) if backend == "vllm" else Policy.load(source)


@dataclass(frozen=True, slots=True)
class PolicyAnswerer:
    """Answers with a policy, longest prompts first: what does not fit the memory fails at once, not after hours.

    Attributes:
        policy: The policy.
        chat: Ask through its chat template.
        sampling: How to sample, with a limit of tokens.
        at_once: Questions that are asked before their answers are kept.
        context: Tokens, prompt and completion together, at which an engine ends; None goes on, as transformers does
            beyond the context that a model was made for.
    """

    policy: Policy
    chat: bool
    sampling: Sampling
    at_once: int
    context: int | None = None

    @classmethod
    def of(cls, policy: Policy, chat: bool, sampling: Sampling) -> PolicyAnswerer:
        """Return one as suits the policy's own back-end."""
        if isinstance(policy.backend, VLLMBackend):
            return cls(policy, chat, sampling, AT_ONCE_VLLM, positions(policy.model.config))
        return cls(policy, chat, sampling, AT_ONCE)

    def answers(self, questions: Sequence[Question]) -> Generator[tuple[Question, Answer | Exception]]:
        """Yield each question with its answer, a batch at a time."""
        order = sorted(questions, key=lambda question: len(question.prompt), reverse=True)
        for start in range(0, len(order), self.at_once):
            yield from self._batch(order[start : start + self.at_once])

    def _batch(self, batch: Sequence[Question]) -> list[tuple[Question, Answer | Exception]]:
        requests = [self._request(question) for question in batch]
        completions = iter(self.policy.complete([request for request in requests if request is not None]))
        answered: list[tuple[Question, Answer | Exception]] = []
        for question, request in zip(batch, requests, strict=True):
            if request is None:
                answered.append((question, Answer("", finished=False)))
                continue
            completion = next(completions)
            answered.append((question, Answer(completion.text, completion.sample.finished)))
        return answered

    def _request(self, question: Question) -> Request | None:
        """Return what is asked of the model; None where its prompt alone fills an engine that ends at its context.

        That is a limit of the model's, not a failure of ours: its answer is empty and cut off.
        """
        tokens, room = self.policy.encode(question.prompt, self.chat), self.sampling.max_new_tokens or 1
        if self.context is not None:
            room = min(room, self.context - len(tokens))
        return Request(tokens, room, self.sampling.temperature, question.seed) if room > 0 else None


def positions(config: Any) -> int | None:
    """Return how many tokens, prompt and completion together, a model of this configuration can read."""
    most = getattr(config, "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 0 else None


def style_of(tokenizer: Any) -> Style:
    """Return the prompt style that suits a policy: compact for nano, chat where there is a template, else azr."""
    if tokenizer.get_vocab().keys() >= NANO_TOKENS:
        return "compact"
    return "chat" if tokenizer.chat_template else "azr"
