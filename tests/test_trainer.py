from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainerCallback

from selfplay_gym.errors import InvalidConfig, SelfPlayError
from selfplay_gym.training import trainer as hosting
from selfplay_gym.training.advantages import make_estimator
from selfplay_gym.training.config import ADVANTAGES, RunConfig
from selfplay_gym.training.distributed import Ranks, SharedGenerator
from selfplay_gym.training.folder import COMPLETE, RunFolder
from selfplay_gym.training.generation import Sample
from selfplay_gym.training.policy import Policy
from selfplay_gym.training.rollouts import Row
from selfplay_gym.training.trainer import Rollout, build_trainer, slots, tabulate, with_gradient
from selfplay_gym.training.watch import StepWatch
from tests.players import fresh_policy

TOLERANCE = 1e-5
FILLER = 0


pytestmark = pytest.mark.usefixtures("one_thread")


def config(loss_type: str = "dapo", micro_batch: int = 64, skip_padding: bool = False, **settings: Any) -> RunConfig:
    """Settings of one step with room for 31 rows."""
    return RunConfig.model_validate(
        {
            "families": {"deduction": {}},
            "steps": 1,
            "play": {"proposals": 1, "tasks": 6, "attempts": 5, "temperature": 0.7},
            "update": {
                "loss_type": loss_type,
                "max_grad_norm": 0.0,
                "micro_batch": micro_batch,
                "skip_padding": skip_padding,
            },
            **settings,
        }
    )


def ragged_rows(count: int = 27, estimator: str = "trr++-token", seed: int = 0) -> list[Row]:
    """Rows of many lengths and kinds, every fifth without a verdict."""
    rng = random.Random(seed)
    rows = []
    for n in range(count):
        role = "propose" if n % 3 == 0 else "solve"
        ids = tuple(rng.randrange(2, 190) for _ in range(rng.randint(1, 30)))
        prompt_ids = tuple(rng.randrange(2, 190) for _ in range(rng.randint(1, 45)))
        reward = None if n % 5 == 4 else rng.choice((-1.0, 0.0, 0.3, 1.0))
        sample = Sample(ids, tuple(-rng.random() for _ in ids), finished=True)
        rows.append(Row(role, "deduction", f"{role}-{n // 6}", "", "", prompt_ids, sample, reward))  # type: ignore[arg-type]
    rewards = np.array([np.nan if row.reward is None else row.reward for row in rows])
    kinds = [(row.role, row.family) for row in rows]
    lengths = [len(row.sample.ids) for row in rows]
    estimate = make_estimator(estimator, state={"solve/deduction": 0.9})
    advantages = estimate(rewards, kinds, [row.group for row in rows], lengths)
    return [replace(row, advantage=float(a)) for row, a in zip(rows, advantages, strict=True)]


class Fixed:
    """A game that plays the same rows whatever the step."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)

    def step(self, step: int, watch: StepWatch) -> list[Row]:
        watch.metrics["rows"] = float(len(self.rows))
        return self.rows


class Notes:
    """An observer that writes down what it is told."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.updates: list[tuple[int, Mapping[str, float]]] = []
        self.stop_after = stop_after

    def after_update(self, step: int, metrics: Mapping[str, float]) -> None:
        self.updates.append((step, metrics))

    def measure_during(self, step: int) -> None:
        pass

    def should_stop(self) -> bool:
        return self.stop_after is not None and len(self.updates) + 1 >= self.stop_after

    def archived(self) -> Mapping[str, Any]:
        return {"tasks": len(self.updates)}

    def baselines(self) -> Mapping[str, float]:
        return {"solve/deduction": 0.1}


class Gradients(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Copies the gradients of the first update."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.found = self.found or gradients(kwargs["model"])


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def host(config: RunConfig, policy: Policy, rows: Sequence[Row], path: Path, notes: Notes | None = None) -> Any:
    """Return the trainer over a game of fixed rows."""
    ranks = Ranks()
    seen: list[int] = []
    rollout = Rollout(
        Fixed(rows),  # type: ignore[arg-type]
        SharedGenerator(policy.backend, ranks),
        ranks,
        FILLER,
        lambda watch, rows: seen.append(watch.step),
        loss_type=config.update.skipping,
    )
    folder = RunFolder(path / "run")
    folder.prepare(config)
    trainer = build_trainer(config, policy, rollout, folder, notes or Notes())
    trainer.steps_seen = seen
    return trainer


def hosted_gradients(config: RunConfig, rows: Sequence[Row], path: Path) -> dict[str, torch.Tensor]:
    """Return the gradients of one update as TRL computes them."""
    callback = Gradients()
    trainer = host(config, fresh_policy(), rows, path)
    trainer.add_callback(callback)
    trainer.train()
    return callback.found


def reference_gradients(config: RunConfig, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Return the gradients of REINFORCE with our advantages: row by row, without padding, without TRL."""
    policy = fresh_policy()
    judged = [row for row in rows if row.reward is not None]
    tokens = sum(len(row.sample.ids) for row in judged)
    places = slots(config, 1)[0]
    longest = max(config.play.max_new_tokens.propose, config.play.max_new_tokens.solve)
    policy.model.train()
    for row in judged:
        ids = torch.tensor([[*row.prompt_ids, *row.sample.ids]])
        logits = policy.model(ids).logits[0, len(row.prompt_ids) - 1 : -1] / getattr(config.play.temperature, row.role)
        logprobs = logits.log_softmax(-1)[range(len(row.sample.ids)), list(row.sample.ids)]
        share = {
            "dapo": logprobs.sum() / tokens,
            "grpo": logprobs.mean() / places,  # every slot counts, fillers and rows without a verdict too
            "dr_grpo": logprobs.sum() / (places * longest),
        }[config.update.loss_type]
        (-row.advantage * share).backward()
    return gradients(policy.model)


def relative_error(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    difference = torch.cat([(found[name] - expected[name]).flatten() for name in expected])
    return float(difference.norm() / torch.cat([tensor.flatten() for tensor in expected.values()]).norm())


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip_padding", [False, True])
@pytest.mark.parametrize("micro_batch", [64, 11, 8])
@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_gradients_are_those_of_a_plain_loop(
    loss_type: str, micro_batch: int, skip_padding: bool, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    settings, rows = config(loss_type, micro_batch, skip_padding), ragged_rows()
    error = relative_error(hosted_gradients(settings, rows, tmp_path), reference_gradients(settings, rows))
    record_property("relative_error", error)
    print(f"{loss_type} {slots(settings, 1)} {skip_padding}: {error:.2e}")
    assert error < TOLERANCE


@pytest.mark.parametrize("entropy_coef", [0.0, 0.1])
@pytest.mark.parametrize("micro_batch", [64, 8])
def test_the_published_loss_is_a_mean_over_each_micro_batch(
    micro_batch: int, entropy_coef: float, tmp_path: Path
) -> None:
    """Of the tokens' losses, less the bonus times the tokens' entropies; TRL draws which rows are in which."""
    settings = config("bnpo", micro_batch)
    settings = settings.model_copy(update={"update": settings.update.model_copy(update={"entropy_coef": entropy_coef})})
    rows, passes, gradient = ragged_rows(), Passes(), Gradients()
    trainer = host(settings, fresh_policy(), rows, tmp_path)
    trainer.model.base_model.register_forward_pre_hook(passes, with_kwargs=True)
    trainer.add_callback(gradient)
    trainer.train()
    assert len(passes.seen) == slots(settings, 1)[2] == (1 if micro_batch == 64 else 4)
    policy = fresh_policy()
    policy.model.train()
    for seen in passes.seen:
        part = [row for row in rows if row.reward is not None and row.prompt_ids + row.sample.ids in seen]
        loss = torch.cat([_token_losses(policy, row, 0.7, entropy_coef) for row in part]).mean()
        (loss / len(passes.seen)).backward()
    assert relative_error(gradient.found, gradients(policy.model)) < TOLERANCE


class Passes:
    """A hook of a decoder that writes down the rows of each forward pass that is learned from."""

    def __init__(self) -> None:
        self.seen: list[set[tuple[int, ...]]] = []

    def __call__(self, module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        if torch.is_grad_enabled():
            pairs = zip(kwargs["input_ids"], kwargs["attention_mask"].bool(), strict=True)
            self.seen.append({tuple(row[real].tolist()) for row, real in pairs})


def _token_losses(policy: Policy, row: Row, temperature: float, entropy_coef: float) -> torch.Tensor:
    logits = policy.model(torch.tensor([[*row.prompt_ids, *row.sample.ids]])).logits[0, len(row.prompt_ids) - 1 : -1]
    logprobs = (logits / temperature).log_softmax(-1)
    entropies = -(logprobs.exp() * logprobs).sum(-1)
    return -row.advantage * logprobs[range(len(row.sample.ids)), list(row.sample.ids)] - entropy_coef * entropies


@pytest.mark.parametrize("estimator", ADVANTAGES)
def test_every_estimator_is_hosted_as_it_is(estimator: str, tmp_path: Path) -> None:
    rows = ragged_rows(estimator=estimator, seed=1)
    found = hosted_gradients(config(), rows, tmp_path)
    assert relative_error(found, reference_gradients(config(), rows)) < TOLERANCE


@pytest.mark.parametrize("skip_padding", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_each_role_has_its_own_temperature(skip_padding: bool, checkpointing: bool, tmp_path: Path) -> None:
    play = {"proposals": 1, "tasks": 6, "attempts": 5, "temperature": {"propose": 1.3, "solve": 0.7}}
    update = {"skip_padding": skip_padding, "gradient_checkpointing": checkpointing, "max_grad_norm": 0.0}
    settings = config(play=play, update={**update, "micro_batch": 8})
    expected = reference_gradients(settings, ragged_rows())
    assert relative_error(hosted_gradients(settings, ragged_rows(), tmp_path / "own"), expected) < TOLERANCE
    assert relative_error(hosted_gradients(config(), ragged_rows(), tmp_path / "same"), expected) > 0.01


def test_the_kl_penalty_compares_at_the_temperature_of_the_role(tmp_path: Path) -> None:
    # On the first step the policy is the reference: at equal temperatures there is nothing to pay.
    settings = config(play={"proposals": 1, "tasks": 6, "attempts": 5, "temperature": {"propose": 1.3, "solve": 0.7}})
    policy = fresh_policy()
    policy.model.save_pretrained(tmp_path / "start")
    policy.model.config._name_or_path = str(tmp_path / "start")
    update = settings.update.model_copy(update={"beta": 0.1})
    trainer = host(settings.model_copy(update={"update": update}), policy, ragged_rows(), tmp_path)
    trainer.train()
    assert trainer.state.log_history[0]["kl"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("what", ["bias", "cap"])
def test_a_model_that_cannot_have_two_temperatures_is_refused(what: str, tmp_path: Path) -> None:
    policy = fresh_policy()
    if what == "bias":
        policy.model.lm_head.bias = torch.nn.Parameter(torch.zeros(policy.model.config.vocab_size))
    else:
        policy.model.config.final_logit_softcapping = 30.0
    settings = config(play={"proposals": 1, "tasks": 6, "attempts": 5, "temperature": {"propose": 1.3, "solve": 0.7}})
    with pytest.raises(InvalidConfig, match=r"play\.temperature: .*give both roles the same temperature"):
        host(settings, policy, ragged_rows(), tmp_path)


def test_advantages_need_not_have_mean_zero(tmp_path: Path) -> None:
    # TRL subtracts the mean over the slots; the remainder on a filler row has to make that nothing.
    rows = [replace(row, advantage=row.advantage + 1.5) for row in ragged_rows()]
    found = hosted_gradients(config(), rows, tmp_path)
    assert relative_error(found, reference_gradients(config(), rows)) < TOLERANCE


def test_the_comparison_would_notice_another_centre(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [replace(row, advantage=row.advantage + 1.5) for row in ragged_rows()]

    def without_remainder(rows: Sequence[Row], slots: int, filler_id: int, world: int) -> dict[str, list[Any]]:
        table = tabulate(rows, slots, filler_id, world)
        table["advantage"][len(rows)] = 0.0
        return table

    monkeypatch.setattr(hosting, "tabulate", without_remainder)
    found = hosted_gradients(config(), rows, tmp_path)
    assert relative_error(found, reference_gradients(config(), rows)) > 0.01


def test_the_comparison_would_notice_another_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = hosting.GRPOConfig
    monkeypatch.setattr(hosting, "GRPOConfig", lambda **settings: plain(**{**settings, "scale_rewards": "group"}))
    found = hosted_gradients(config(), ragged_rows(), tmp_path)
    assert relative_error(found, reference_gradients(config(), ragged_rows())) > 0.01


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_rows_without_an_advantage_are_skipped_and_still_count(loss_type: str, tmp_path: Path) -> None:
    rows = [row if n % 4 else replace(row, advantage=0.0) for n, row in enumerate(ragged_rows())]
    idle = sum(row.advantage == 0 for row in rows)
    learned = with_gradient(rows, loss_type)
    assert len(learned) == 27 - idle < 20
    settings = config(loss_type, micro_batch=11, skip_padding=True)
    assert settings.update.skipping == loss_type
    found = hosted_gradients(settings, rows, tmp_path)
    assert relative_error(found, reference_gradients(settings, rows)) < TOLERANCE


@pytest.mark.parametrize("settings", [{"beta": 0.1}, {"entropy_coef": 0.01}, {"loss_type": "bnpo"}])
def test_rows_without_an_advantage_are_learned_from_where_something_else_counts(settings: dict[str, Any]) -> None:
    assert RunConfig.model_validate({"update": {"skip_padding": True, **settings}}).update.skipping is None


def test_rows_that_are_not_trained_change_nothing(tmp_path: Path) -> None:
    rows = ragged_rows()
    strangers = [replace(row, trained=False, advantage=3.0) for row in ragged_rows()[:4]]
    with_them = hosted_gradients(config(), [*strangers, *rows], tmp_path / "with")
    assert relative_error(with_them, hosted_gradients(config(), rows, tmp_path / "without")) < TOLERANCE


def test_rows_without_a_verdict_change_nothing(tmp_path: Path) -> None:
    rows = ragged_rows()
    with_them = hosted_gradients(config(), rows, tmp_path / "with")
    without = hosted_gradients(config(), [row for row in rows if row.reward is not None], tmp_path / "without")
    assert relative_error(with_them, without) < TOLERANCE


@pytest.mark.parametrize("rows", [[], [replace(row, reward=None, advantage=0.0) for row in ragged_rows()]])
def test_a_step_without_any_verdict_leaves_no_gradient(rows: list[Row], tmp_path: Path) -> None:
    found = hosted_gradients(config(), rows, tmp_path)
    assert found
    assert all(torch.count_nonzero(gradient) == 0 for gradient in found.values())


# -- hosting -----------------------------------------------------------------------------------------------------------


def test_a_run_reports_saves_and_marks_its_checkpoints(tmp_path: Path) -> None:
    notes = Notes()
    trainer = host(config(steps=3, save_steps=2), fresh_policy(), ragged_rows(), tmp_path, notes)
    trainer.train()
    folder = RunFolder(tmp_path / "run")
    assert trainer.steps_seen == [1, 2, 3]
    assert [step for step, _ in notes.updates] == [1, 2, 3]
    assert all({"loss", "grad_norm", "entropy"} <= metrics.keys() for _, metrics in notes.updates)
    # Step 2 by its number, step 3 because it is the last.
    assert sorted(path.parent.name for path in folder.checkpoints.glob(f"*/{COMPLETE}")) == [
        "checkpoint-2",
        "checkpoint-3",
    ]


@pytest.mark.parametrize(
    ("schedule", "warmup", "rates"),
    [("constant", 0, [1, 1, 1, 1]), ("constant", 2, [0, 1 / 2, 1, 1]), ("linear", 0, [1, 3 / 4, 1 / 2, 1 / 4])],
)
def test_the_rate_of_adamw_follows_its_schedule(schedule: str, warmup: int, rates: list[float], tmp_path: Path) -> None:
    update = {"learning_rate": 1e-3, "schedule": schedule, "warmup_steps": warmup, "max_grad_norm": 0.25}
    settings = RunConfig.model_validate({**config().model_dump(), "steps": 4, "update": update})
    used, trainer = Rates(), host(settings, fresh_policy(), ragged_rows(), tmp_path)
    trainer.add_callback(used)
    trainer.train()
    assert used.rates == pytest.approx([1e-3 * rate for rate in rates])
    assert {type(used.optimizer).__name__, *used.decays} == {"AdamW", 0.0}
    assert all(norm <= 0.25 + 1e-6 for norm in used.norms)


class Rates(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Writes down what each update is made with."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.norms: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.optimizer = getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])
        self.decays = {part["weight_decay"] for part in self.optimizer.param_groups}
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        self.norms.append(float(torch.cat([g.flatten() for g in gradients(kwargs["model"]).values()]).norm()))


def test_a_run_asked_to_stop_saves_first(tmp_path: Path) -> None:
    trainer = host(config(steps=5), fresh_policy(), ragged_rows(), tmp_path, Notes(stop_after=2))
    trainer.train()
    assert trainer.state.global_step == 2
    assert (RunFolder(tmp_path / "run").checkpoint(2) / COMPLETE).exists()


def test_trackers_get_our_metrics(tmp_path: Path) -> None:
    trainer = host(config(), fresh_policy(), ragged_rows(), tmp_path)
    trainer.train()
    assert trainer.state.log_history[0]["rows"] == 27.0


# -- the table ---------------------------------------------------------------------------------------------------------


def test_a_table_holds_every_row_and_sums_to_zero() -> None:
    rows = ragged_rows()
    table = tabulate(rows, 32, FILLER)
    assert {len(column) for column in table.values()} == {32}
    assert sum(table["advantage"]) == pytest.approx(0.0, abs=1e-12)
    expected = sorted((row.prompt_ids, row.sample.ids, row.advantage, row.reward is not None) for row in rows)
    found = [
        (tuple(prompt), tuple(ids), advantage, bool(mask[0]))
        for prompt, ids, advantage, mask in zip(
            table["prompt_ids"], table["completion_ids"], table["advantage"], table["env_mask"], strict=True
        )
    ]
    assert sorted(found[:27]) == expected
    assert table["env_mask"][27:] == [[0]] * 5
    for ids, mask, logprobs in zip(table["completion_ids"], table["env_mask"], table["logprobs"], strict=True):
        assert len(ids) == len(mask) == len(logprobs)


@pytest.mark.parametrize("world", [2, 3])
def test_rows_of_one_prompt_go_to_one_rank_and_ranks_have_equally_much(world: int) -> None:
    sample = Sample((5, 6), (-1.0, -1.0), finished=True)
    groups = [[Row("solve", "deduction", "", "", "", (g,) * (3 + g), sample, 1.0)] * 4 for g in range(12)]
    rows = [row for turn in zip(*groups, strict=True) for row in turn]
    table = tabulate(rows, 60, FILLER, world)
    slots = 60 // world
    prompts = [table["prompt_ids"][rank * slots : (rank + 1) * slots] for rank in range(world)]
    owners = [{tuple(prompt) for prompt in own if prompt != [FILLER]} for own in prompts]
    assert sum(map(len, owners)) == 12
    assert [sum(prompt != [FILLER] for prompt in own) for own in prompts] == [48 // world] * world
    tokens = [sum(map(len, own)) for own in prompts]
    assert max(tokens) < 1.3 * min(tokens)


def test_the_fullest_table_has_one_filler() -> None:
    assert tabulate(ragged_rows(), 28, FILLER)["env_mask"][-1] == [0]


@pytest.mark.parametrize("places", [26, 27])
def test_rows_that_do_not_fit_are_refused(places: int) -> None:
    with pytest.raises(SelfPlayError, match=f"27 rows do not fit {places} slots"):
        tabulate(ragged_rows(), places, FILLER)


@pytest.mark.parametrize(("ids", "logprobs"), [((5, 6), (-1.0,)), ((5,), (-1.0, -1.0)), ((), ())])
def test_a_row_of_other_length_than_its_log_probs_is_refused(ids: tuple[int, ...], logprobs: tuple[float, ...]) -> None:
    row = replace(ragged_rows()[0], sample=Sample(ids, logprobs, finished=True))
    with pytest.raises(SelfPlayError, match=f"a row has {len(ids)} tokens and {len(logprobs)} log-probs"):
        tabulate([row], 4, FILLER)


@given(
    families=st.integers(1, 4),
    proposals=st.integers(1, 12),
    extra=st.integers(0, 40),
    attempts=st.integers(2, 9),
    micro_batch=st.integers(1, 200),
    world=st.integers(1, 9),
)
def test_slots_hold_a_step_and_a_filler_with_little_waste(
    families: int, proposals: int, extra: int, attempts: int, micro_batch: int, world: int
) -> None:
    play = {"proposals": proposals, "tasks": families * proposals + extra, "attempts": attempts}
    settings = RunConfig.model_validate(
        {"families": {f"f{n}": {} for n in range(families)}, "play": play, "update": {"micro_batch": micro_batch}}
    )
    total, rows_a_pass, passes = slots(settings, world)
    assert total == rows_a_pass * passes * world
    assert total >= settings.rows + 1
    assert 1 <= rows_a_pass <= micro_batch
    assert total - (settings.rows + 1) < passes * world + world
    assert passes == math.ceil(math.ceil((settings.rows + 1) / world) / micro_batch)
