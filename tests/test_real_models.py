"""What real models need around the trainer, on tiny ones: adapters, checkpointing, bf16, chat and base, long rows."""

from __future__ import annotations

import io
import json
import os
import random
import resource
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from selfplay_gym import suites
from selfplay_gym.errors import InvalidConfig
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.training import run
from selfplay_gym.training.config import RunConfig
from selfplay_gym.training.evaluate import evaluate_named
from selfplay_gym.training.folder import RunFolder
from selfplay_gym.training.generation import Sample
from selfplay_gym.training.memory import shape_of
from selfplay_gym.training.policy import Policy
from selfplay_gym.training.rollouts import Row
from tests.models import ARCHITECTURES, byte_tokenizer, save_tiny, tiny_model
from tests.players import Scripted, good_player
from tests.runs import assert_same_run, metrics
from tests.test_trainer import FILLER, Gradients, config, host, ragged_rows, reference_gradients, relative_error

LORA = {"rank": 4, "alpha": 8}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setattr(run, "_quiet", lambda folder: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["qwen2", pytest.param("llama", marks=pytest.mark.slow)])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base") / request.param, request.param)


def settings(model: Path, update: dict[str, Any] | None = None, **more: Any) -> RunConfig:
    """A short run of deduction in few tokens."""
    return RunConfig.model_validate(
        {
            "model": str(model),
            "families": {"deduction": {"references": 1}},
            "steps": 4,
            "play": {"proposals": 4, "tasks": 6, "attempts": 4, "max_new_tokens": {"propose": 160, "solve": 48}},
            "reward": {"novelty": 0.5},
            "update": {"learning_rate": 1e-2, "micro_batch": 16, **(update or {})},
            "holdout": None,
            "processes": 1,
            "save_steps": 2,
            **more,
        }
    )


def play(folder: Path, config: RunConfig, *, resume: bool = False) -> int:
    where = RunFolder(folder)
    if not resume:
        where.prepare(config)
    return run.run_rank(config, where, resume=resume, console=Console(file=io.StringIO(), width=400))


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[Policy]:
    """Let a script write what the model, whose weights are random, cannot; log-probs and updates are the model's."""
    load = run.load_policy
    policies: list[Policy] = []

    def with_script(config: RunConfig) -> Policy:
        policy = load(config)
        policy.backend = Scripted(policy.model, policy.tokenizer, good_player)
        policies.append(policy)
        return policy

    monkeypatch.setattr(run, "load_policy", with_script)
    return policies


# -- adapters ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("scripted")
def test_adapters_are_trained_saved_and_resumed_bit_for_bit(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(base, {"lora": LORA})
    assert play(tmp_path / "straight", config) == 0
    assert any(line["grad_norm"] > 0 for line in metrics(tmp_path / "straight"))
    with monkeypatch.context() as patch:
        patch.setattr(run.Leader, "should_stop", lambda leader: leader._watch.step >= 3)
        assert play(tmp_path / "stopped", config) == run.INTERRUPTED
    assert play(tmp_path / "stopped", config, resume=True) == 0
    assert_same_run(tmp_path / "stopped", tmp_path / "straight")

    model = RunFolder(tmp_path / "straight").model
    assert not (model / "model.safetensors").exists()
    adapters = load_file(model / "adapter_model.safetensors")
    assert {name.rpartition(".lora_")[0].rpartition(".")[2] for name in adapters} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    assert all(tensor.shape[0 if ".lora_A" in name else 1] == LORA["rank"] for name, tensor in adapters.items())
    assert any(tensor.any() for name, tensor in adapters.items() if ".lora_B" in name)


@pytest.mark.usefixtures("scripted")
def test_adapters_are_loaded_from_anywhere_on_their_base(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sandbox: SandboxExecutor
) -> None:
    monkeypatch.chdir(base.parent)
    assert play(tmp_path / "run", settings(Path(base.name), {"lora": LORA}, steps=2)) == 0
    monkeypatch.chdir(tmp_path)
    model = RunFolder(tmp_path / "run").model
    ids = torch.arange(40)[None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # those that the tests ignore elsewhere would be seen by whoever loads it
        plain, merged = Policy.load(base).model, Policy.load(model).model
    weight = "model.layers.0.self_attn.q_proj"
    adapters = load_file(model / "adapter_model.safetensors")
    a, b = (adapters[f"base_model.model.{weight}.lora_{side}.weight"] for side in "AB")
    expected = plain.get_submodule(weight).weight + LORA["alpha"] / LORA["rank"] * b @ a
    torch.testing.assert_close(merged.get_submodule(weight).weight, expected)
    with torch.no_grad():
        assert not torch.allclose(merged(ids).logits, plain(ids).logits)
    report = evaluate_named(str(model), ["nano"], sandbox, limit=1, style="compact")
    assert len(report.results) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("scripted")
def test_adapters_can_be_trained_on_top_of_adapters(base: Path, tmp_path: Path) -> None:
    first, second = (RunFolder(tmp_path / name).model for name in ("first", "second"))
    assert play(tmp_path / "first", settings(base, {"lora": LORA}, steps=2)) == 0
    assert play(tmp_path / "second", settings(first, {"lora": LORA}, steps=2)) == 0
    weight = "model.layers.0.self_attn.q_proj"
    expected = Policy.load(base).model.get_submodule(weight).weight.detach().clone()
    for folder in (first, second):
        adapters = load_file(folder / "adapter_model.safetensors")
        a, b = (adapters[f"base_model.model.{weight}.lora_{side}.weight"] for side in "AB")
        assert b.any()
        expected += LORA["alpha"] / LORA["rank"] * b @ a
    torch.testing.assert_close(Policy.load(second).model.get_submodule(weight).weight.detach(), expected)
    assert shape_of(settings(second)).parameters == shape_of(settings(base)).parameters


def test_adapters_on_a_bfloat16_base_stay_float32(base: Path, tmp_path: Path, scripted: list[Policy]) -> None:
    assert play(tmp_path / "run", settings(base, {"lora": LORA, "bf16": True}, dtype="bfloat16", steps=2)) == 0
    assert any(line["grad_norm"] > 0 for line in metrics(tmp_path / "run"))
    adapters = load_file(RunFolder(tmp_path / "run").model / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapters.values()} == {torch.float32}
    parameters = scripted[0].model.named_parameters()
    assert {parameter.dtype for name, parameter in parameters if "lora" not in name} == {torch.bfloat16}


def test_layers_that_the_model_does_not_have_are_refused_in_one_line(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"update\.lora\.targets: .*query_key_value.*; name linear layers"):
        play(tmp_path / "run", settings(base, {"lora": {"targets": ["query_key_value"]}}))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"dtype": "bfloat16"}, "dtype bfloat16 needs update.lora"),
        ({"backend": "decode_loop", "update": {"lora": {}}}, "backend decode_loop does not know adapters"),
        ({"update": {"lora": {"rank": 0}}}, "greater than or equal to 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RunConfig.model_validate(wrong)


# -- the whole model ---------------------------------------------------------------------------------------------------


def policy(architecture: str) -> Policy:
    return Policy(tiny_model(architecture), byte_tokenizer())


def hosted(run_config: RunConfig, architecture: str, rows: list[Row], path: Path) -> tuple[Any, dict[str, Any]]:
    callback = Gradients()
    trainer = host(run_config, policy(architecture), rows, path)
    trainer.add_callback(callback)
    trainer.train()
    return trainer, callback.found


def with_update(**update: Any) -> RunConfig:
    plain = config()
    return plain.model_copy(update={"update": plain.update.model_copy(update=update)})


def saved_bytes(trainer: Any, rows: int = 4, length: int = 64) -> int:
    """Return the bytes of distinct tensors that a forward pass keeps for the backward pass, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    trainer.model.train()
    ids = torch.arange(rows * length).reshape(rows, length) % 256
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        states = trainer.model.base_model(ids, use_cache=False).last_hidden_state
        assert states.requires_grad
        return sum(kept.values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradient_checkpointing_changes_memory_and_nothing_else(architecture: str, tmp_path: Path) -> None:
    plain, expected = hosted(with_update(gradient_checkpointing=False), architecture, ragged_rows(), tmp_path / "a")
    saving, found = hosted(with_update(gradient_checkpointing=True), architecture, ragged_rows(), tmp_path / "b")
    assert relative_error(found, expected) < 1e-5
    assert saved_bytes(saving) < saved_bytes(plain) / 3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bf16_rounds_the_products_and_leaves_the_weights(architecture: str, tmp_path: Path) -> None:
    _, expected = hosted(config(), architecture, ragged_rows(), tmp_path / "a")
    trainer, found = hosted(with_update(bf16=True), architecture, ragged_rows(), tmp_path / "b")
    # bfloat16 keeps 8 bits: half a unit in the last place is 0.2%, and errors of a few layers add up.
    assert 1e-4 < relative_error(found, expected) < 0.05
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_long_rows_are_learned_from_like_short_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    ids = tuple(rng.randrange(256) for _ in range(1024))
    sample = Sample(ids, (-5.0,) * len(ids), finished=True)
    rows = [*ragged_rows(6), Row("solve", "deduction", "solve-long", "", "", ids[:300], sample, 1.0, advantage=0.7)]
    monkeypatch.setattr("tests.test_trainer.fresh_policy", lambda: policy("qwen2"))
    _, found = hosted(with_update(gradient_checkpointing=True, micro_batch=2), "qwen2", rows, tmp_path)
    assert relative_error(found, reference_gradients(config(), rows)) < 1e-5


# -- chat and base models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["chat", "azr"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_chat_models_get_their_template_and_base_models_plain_text(
    style: str, architecture: str, tmp_path: Path
) -> None:
    model = save_tiny(tmp_path / "model", architecture, chat=style == "chat")
    play_settings = {
        "proposals": 1,
        "tasks": 1,
        "attempts": 2,
        "prompt_tokens": 6000,
        "max_new_tokens": {"propose": 16, "solve": 8},
        "temperature": {"propose": 1.2, "solve": 0.8},
    }
    seen: list[Row] = []
    with pytest.MonkeyPatch.context() as patch:
        after_step = run.Leader.after_step
        patch.setattr(run.Leader, "after_step", lambda s, watch, rows: (seen.extend(rows), after_step(s, watch, rows)))
        config = settings(model, {"lora": LORA}, style=style, play=play_settings, steps=1)
        assert play(tmp_path / "run", config) == 0
    tokenizer = byte_tokenizer(chat=style == "chat")
    assert seen
    for row in seen:
        text = tokenizer.decode(row.prompt_ids)
        expected = (
            f"<|im_start|>user\n{row.prompt}<|im_end|>\n<|im_start|>assistant\n" if style == "chat" else row.prompt
        )
        assert text == expected
        assert 1 <= len(row.sample.ids) <= play_settings["max_new_tokens"][row.role]
    assert json.loads((model / "tokenizer_config.json").read_text())["pad_token"] == tokenizer.decode(
        [tokenizer.pad_token_id]
    )
    assert tokenizer.pad_token_id != FILLER


def test_a_base_model_is_refused_the_chat_style(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="style chat needs a tokenizer with a chat template"):
        play(tmp_path / "run", settings(base, style="chat", steps=1))


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get(suites.DATA_VARIABLE), reason=f"set {suites.DATA_VARIABLE} to the data files")
@pytest.mark.parametrize("chat", [False, True])
def test_a_tiny_random_model_takes_the_whole_quick_group_in_ten_minutes_of_two_cores(
    tmp_path: Path, chat: bool
) -> None:
    model = save_tiny(tmp_path / "model", "qwen2", chat=chat)
    began = _processor_seconds()
    with SandboxExecutor() as executor:
        report = evaluate_named(str(model), ["quick"], executor)
    assert _processor_seconds() - began < 2 * 600
    assert len(report.results) >= len(suites.members("quick"))
    assert all(len(result.rows) <= 30 for result in report.results)


def _processor_seconds() -> float:
    """Of this process, and of those that it has waited for: the sandbox's, once it is closed."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
