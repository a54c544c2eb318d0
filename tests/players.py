"""Policies for tests: a scripted one that plays well without training, and a tiny one made in a few seconds."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from selfplay_gym import literals
from selfplay_gym.tasks import nano_programs
from selfplay_gym.tasks.deduction import Deduction
from selfplay_gym.training import nano
from selfplay_gym.training.generation import Request, Sample
from selfplay_gym.training.policy import Policy

HIDDEN, LAYERS = 64, 2


def fresh_policy(seed: int = 0, player: Callable[[str, random.Random], str] | None = None) -> Policy:
    """Return an untrained tiny policy; with ``player`` it writes what that says, with the model's own log-probs."""
    torch.manual_seed(seed)
    tokenizer = nano.build_tokenizer()
    model = nano.build_model(tokenizer, HIDDEN, LAYERS)
    return Policy(model, tokenizer, Scripted(model, tokenizer, player) if player else None)


class Scripted:
    """A generation back-end that writes ``player(prompt, rng)``; the log-probs are those of the model."""

    def __init__(self, model: Any, tokenizer: Any, player: Callable[[str, random.Random], str]) -> None:
        self.model, self.tokenizer, self.player = model, tokenizer, player

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        return [self._sample(request) for request in requests]

    @torch.no_grad()
    def _sample(self, request: Request) -> Sample:
        text = self.player(self.tokenizer.decode(request.prompt_ids), random.Random(request.seed))
        ids = [*self.tokenizer(text).input_ids, self.tokenizer.eos_token_id]
        kept = ids[: request.max_new_tokens]
        logits = self.model(torch.tensor([[*request.prompt_ids, *kept]])).logits[0, len(request.prompt_ids) - 1 : -1]
        logprobs = (logits / request.temperature).log_softmax(-1)[range(len(kept)), kept]
        return Sample(tuple(kept), tuple(logprobs.tolist()), finished=len(kept) == len(ids))


def good_player(prompt: str, rng: random.Random) -> str:
    """Propose programs over small ints; solve deduction and abduction, some programs more often than others."""
    kind, _, rest = prompt.partition("\n")
    if kind.startswith("propose"):
        return _proposal(rng)
    program = rest[: rest.index("return x") + len("return x")]
    known = re.search(r"^f\((.*)\) = (.*)$", rest, re.MULTILINE)
    assert known is not None
    candidates = range(-9, 21)
    if kind == "deduction":
        answer = _run(program, known[1])
    else:
        answer = next((str(x) for x in candidates if _run(program, str(x)) == known[2]), "0")
    share = random.Random(program).choice((0.0, 0.5, 0.5, 1.0))
    return f"</think><answer>{answer if rng.random() < share else '12345'}</answer>"


def _proposal(rng: random.Random) -> str:
    if rng.random() < 0.2:
        return "</think><answer>nothing</answer>" if rng.random() < 0.5 else "nothing"
    while True:
        program = nano_programs.random_program(rng.randint(1, 3), rng)
        if program.takes is int:
            return f"</think><answer>```python\n{program.source}\n```\n```input\n{rng.randint(-9, 20)}\n```</answer>"


def _run(program: str, argument: str) -> str:
    names: dict[str, Any] = {}
    exec(program, names)
    try:
        return literals.encode(names["f"](ast.literal_eval(argument)))
    except Exception as error:
        return type(error).__name__


WORDS = frozenset({"pair", "first", "last", "length", "modulo", "atmost", "append", "suffix"})
STEPS = 100


def train_tiny_policy(folder: Path) -> Path:
    """Make a policy that proposes valid programs and solves some of them by luck; about four seconds on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = random.Random(0)
    family = Deduction(style="compact", references=1)
    tokenizer = nano.build_tokenizer()
    model = nano.build_model(tokenizer, HIDDEN, LAYERS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.98))
    stream = (
        example.task("deduction")
        for example in nano_programs.examples((1,), rng, held_out=False)
        if example.program.steps[0][0].word in WORDS
    )
    for step in range(STEPS):
        rows = []
        for number, task in enumerate(islice(stream, 32)):
            if number % 2:
                prompt, answer = family.solve_prompt(task), task.outputs[0]
            else:
                prompt = family.proposal_prompt([next(stream)] if number % 4 else family.seeds(), rng)
                answer = f"```python\n{task.program}\n```\n```input\n{task.inputs[0]}\n```"
            question = tokenizer(prompt).input_ids
            reply = [*tokenizer(f"</think><answer>{answer}</answer>").input_ids, tokenizer.eos_token_id]
            rows.append((question + reply, [-100] * len(question) + reply))
        width = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids, _ in rows])
        labels = torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows])
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * min(1.0, (step + 1) / 10) * (1 - step / STEPS)
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    nano.save(model, tokenizer, folder, {"steps": STEPS})
    torch.set_num_threads(threads)
    return folder
