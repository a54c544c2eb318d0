from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selfplay_gym.training.backends import ContinuousBackend, TransformersBackend
from selfplay_gym.training.decoding import DecodeLoop
from selfplay_gym.training.mismatch import Mismatch, spread
from selfplay_gym.training.policy import Policy
from selfplay_gym.training.rollouts import Row
from tests.hosting import PLAY, hosted
from tests.players import fresh_policy
from tests.runs import metrics, tiny_policy, train, write_recipe

logprobs = st.lists(st.tuples(st.floats(-30, 0), st.floats(-30, 0)), min_size=1, max_size=50)


pytestmark = pytest.mark.usefixtures("one_thread")


# -- the numbers -------------------------------------------------------------------------------------------------------


def test_by_hand() -> None:
    found = Mismatch.of([math.log(0.5), math.log(0.2), -1.0], [math.log(0.25), math.log(0.4), -1.0]).metrics()
    assert found["mismatch/mean"] == pytest.approx(2 * math.log(2) / 3)
    assert found["mismatch/max"] == pytest.approx(math.log(2))
    # Ratios 1/2, 2 and 1: ratio - 1 - log(ratio) is log(2) - 1/2, 1 - log(2) and 0.
    assert found["mismatch/kl"] == pytest.approx(0.5 / 3)


def test_the_estimate_of_the_divergence_is_unbiased() -> None:
    sampler, trainer = [0.7, 0.2, 0.1], [0.5, 0.2, 0.3]
    each = [Mismatch.of([math.log(s)], [math.log(t)]).divergence for s, t in zip(sampler, trainer, strict=True)]
    exact = sum(s * math.log(s / t) for s, t in zip(sampler, trainer, strict=True))
    assert sum(s * k for s, k in zip(sampler, each, strict=True)) == pytest.approx(exact)


@given(logprobs, st.integers(0, 50))
def test_parts_say_together_what_the_whole_says_and_nothing_is_below_zero(
    pairs: list[tuple[float, float]], cut: int
) -> None:
    sampler, trainer = [a for a, _ in pairs], [b for _, b in pairs]
    whole = Mismatch.of(sampler, trainer)
    parts = [Mismatch.of(sampler[:cut], trainer[:cut]), Mismatch.of(sampler[cut:], trainer[cut:])]
    assert Mismatch.total(parts).metrics() == pytest.approx(whole.metrics())
    assert min(whole.metrics().values()) >= 0
    assert whole.metrics()["mismatch/mean"] <= whole.metrics()["mismatch/max"] * (1 + 1e-12)


def test_nothing_measured_reports_nothing() -> None:
    assert Mismatch.total([]).metrics() == {}


@given(st.integers(0, 60), st.integers(1, 40), st.integers(1, 8))
def test_measured_rows_are_spread_and_share_out_evenly(rows: int, count: int, world: int) -> None:
    chosen = spread(list(range(rows)), count, world)  # type: ignore[arg-type]
    assert sorted(set(chosen)) == chosen  # type: ignore[comparison-overlap]
    assert min(rows, count) - world < len(chosen) <= max(min(rows, count + world - 1), 0)
    assert len(chosen) % world == 0 or rows < world
    if rows >= count + world:
        assert chosen[0] == 0  # type: ignore[comparison-overlap]


# -- measured in training ----------------------------------------------------------------------------------------------


def perturbed(policy: Policy, size: float) -> TransformersBackend:
    """Return a sampler whose weights are a little off."""
    model = deepcopy(policy.model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * size)
    return TransformersBackend(model, policy.tokenizer)


def by_forward(model: Any, rows: list[Row], temperature: float) -> dict[str, float]:
    """Return the metrics of rows, each run by itself and unpadded."""
    parts = []
    for row in rows:
        with torch.no_grad():
            logits = model.eval()(torch.tensor([[*row.prompt_ids, *row.sample.ids]])).logits[0]
        table = (logits[len(row.prompt_ids) - 1 : -1] / temperature).log_softmax(-1)
        ours = [table[place, token].item() for place, token in enumerate(row.sample.ids)]
        parts.append(Mismatch.of(row.sample.logprobs, ours))
    return Mismatch.total(parts).metrics()


@pytest.mark.parametrize("skip_padding", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7, {"propose": 1.3, "solve": 0.7}])
def test_the_same_weights_agree_at_every_step(skip_padding: bool, temperature: Any, tmp_path: Path) -> None:
    play = {**PLAY, "temperature": temperature}
    update = {"learning_rate": 3e-3, "skip_padding": skip_padding}
    trainer, seen, _ = hosted(fresh_policy(), tmp_path, steps=3, play=play, update=update)
    modes = [module.training for module in trainer.model.modules()]
    trainer.train()
    assert len(seen) == 3
    assert [step["mismatch/max"] for step in seen] == pytest.approx([0.0] * 3, abs=1e-5)
    assert [step["mismatch/kl"] for step in seen] == pytest.approx([0.0] * 3, abs=1e-8)
    assert [module.training for module in trainer.model.modules()] == modes


@pytest.mark.parametrize("logits", [1, 2**26])
@pytest.mark.parametrize("size", [0.01, 0.1])
def test_a_perturbed_sampler_shows_with_the_right_numbers(
    size: float, logits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfplay_gym.training.mismatch.LOGITS", logits)  # one row a pass, or all
    policy = fresh_policy()
    start = deepcopy(policy.model)
    policy.backend = perturbed(policy, size)
    trainer, seen, game = hosted(policy, tmp_path, mismatch={"rows": 6})
    trainer.train()
    expected = by_forward(start, game.rows[0][::2], 1.0)
    assert expected["mismatch/mean"] > 0.001
    assert {name: seen[0][name] for name in expected} == pytest.approx(expected, rel=1e-3)
    assert trainer.state.log_history[0]["mismatch/mean"] == pytest.approx(expected["mismatch/mean"], rel=1e-3)


@pytest.mark.slow  # seconds to make room for keys and values on a CPU
def test_continuous_batching_follows_adapters(tmp_path: Path) -> None:
    policy = fresh_policy()
    policy.backend = ContinuousBackend(policy.model, policy.tokenizer, memory=0.02)
    update = {"learning_rate": 3e-2, "lora": {"rank": 4, "alpha": 8}}
    trainer, seen, _ = hosted(policy, tmp_path, steps=2, backend="continuous", update=update)
    trainer.train()
    assert [step["mismatch/max"] for step in seen] == pytest.approx([0.0] * 2, abs=1e-4)


def test_low_precision_shows_too(tmp_path: Path) -> None:
    policy = fresh_policy()
    policy.backend = DecodeLoop(policy.model, dtype=torch.bfloat16)
    trainer, seen, _ = hosted(policy, tmp_path)
    trainer.train()
    assert 1e-4 < seen[0]["mismatch/mean"] < 0.05


# -- the alarm ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "recipe.yaml", tiny_policy(tmp_path_factory.getbasetemp()), steps=2)


@pytest.mark.slow
def test_a_run_above_its_limit_warns_once(recipe: Path, tmp_path: Path) -> None:
    # Rounding alone is above this limit.
    ended = train(recipe, "--output", tmp_path / "run", "--set", "mismatch.alarm=1e-12")
    assert ended.code == 0
    assert ended.out.count("warning: step 1: the sampler's log-probs differ from the trainer's by") == 1
    assert "warning: step 2" not in ended.out
    assert "above mismatch.alarm = 1e-12" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.slow
def test_a_run_within_its_limit_says_nothing(recipe: Path, tmp_path: Path) -> None:
    ended = train(recipe, "--output", tmp_path / "run")
    assert ended.code == 0
    assert "warning" not in ended.out
    for step in metrics(tmp_path / "run"):
        assert 0 < step["mismatch/mean"] <= step["mismatch/max"] < 1e-4
