"""The shipped nano policy: what it says of itself holds, and it can play."""

from __future__ import annotations

import hashlib
import json
import random

import pytest

from selfplay_gym import grading, suites
from selfplay_gym.archive import Archive
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.gate import Gate
from selfplay_gym.referee import Referee
from selfplay_gym.registry import make_family
from selfplay_gym.suites import Source
from selfplay_gym.training.config import load
from selfplay_gym.training.evaluate import NANO_POLICY
from selfplay_gym.training.policy import Policy
from selfplay_gym.types import Task

MEGABYTE = 10**6


def test_its_weights_are_the_ones_that_its_record_names() -> None:
    record = json.loads((NANO_POLICY / "pretrain.json").read_text())
    assert hashlib.sha256((NANO_POLICY / "model.safetensors").read_bytes()).hexdigest() == record["sha256"]
    assert record["command"].startswith("selfplay-gym pretrain ")
    assert f"--seed {record['seed']}" in record["command"]


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in NANO_POLICY.iterdir()) < 8 * MEGABYTE


@pytest.mark.parametrize(("suite", "least"), [("nano-easy", 0.5), ("nano-harder", 0.15)])
def test_it_solves_programs_that_it_never_saw(suite: str, least: float, sandbox: SandboxExecutor) -> None:
    part = suites.load([suite], Source(sandbox, style="compact"))[0].first(90)
    prompts = part.prompts()
    completions = Policy.load(NANO_POLICY, dtype="float32").sample(
        list(prompts.values()), chat=False, max_new_tokens=96, temperature=0.0, seed=0
    )
    texts = {problem: [completion.text] for problem, completion in zip(prompts, completions, strict=True)}
    result = grading.grade(part, texts, sandbox)
    assert result.value is not None
    assert result.value > least
    assert result.framed is not None
    assert result.framed > 0.95


def test_its_first_proposals_are_admitted(sandbox: SandboxExecutor) -> None:
    config = load("nano", [])
    policy = Policy.load(NANO_POLICY, dtype="float32")
    families = {name: make_family(name, style=config.style, **how) for name, how in config.families.items()}
    with Archive(":memory:") as archive:
        referee = Referee(families, sandbox, archive, Gate(sandbox, config.gate.build()))
        requests = referee.proposal_prompts(12, random.Random(0))
        prompts = [request.prompt for request in requests]
        texts = [c.text for c in policy.sample(prompts, chat=False, max_new_tokens=128, temperature=1.0, seed=0)]
        outcomes = referee.judge_proposals(requests, texts)
    for family in families:
        own = [isinstance(o, Task) for r, o in zip(requests, outcomes, strict=True) if r.family == family]
        assert sum(own) > len(own) / 3, family
