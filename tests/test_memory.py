"""The formulas of `training/memory.py` against what torch really holds, for tiny models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import MixtralConfig, MixtralForCausalLM

from selfplay_gym.errors import InvalidConfig
from selfplay_gym.protocols import Executor
from selfplay_gym.training import holdout, memory
from selfplay_gym.training.config import Holdout, RunConfig
from selfplay_gym.training.memory import (
    FLOAT32,
    SHARDINGS,
    activations,
    estimate,
    generation,
    logits,
    shape_of,
    shape_of_model,
    states,
)  # fmt: skip
from selfplay_gym.training.trainer import lora_config
from tests.models import ARCHITECTURES, save_tiny, tiny_model

ROWS, LENGTH = 4, 96
TOLERANCE = 0.02
"""Of activations: what is left out is the tokens themselves and the rotary tables."""

LORA = {"rank": 4, "alpha": 8}
KINDS: dict[str, dict[str, Any]] = {
    "full": {"update": {}},
    "full-bf16": {"update": {"bf16": True}},
    "lora": {"update": {"lora": LORA}},
    "lora-bf16": {"update": {"lora": LORA, "bf16": True}},
    "lora-bf16-base": {"update": {"lora": LORA, "bf16": True}, "dtype": "bfloat16"},
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(kind: str = "full", **update: Any) -> RunConfig:
    settings = KINDS[kind]
    play = {
        "proposals": 2,
        "tasks": 3,
        "attempts": 4,
        "prompt_tokens": 64,
        "max_new_tokens": {"propose": 8, "solve": 4},
    }
    return RunConfig.model_validate(
        {
            "families": {"deduction": {}},
            "play": play,
            "holdout": None,
            **settings,
            "update": {**settings["update"], **update},
        }
    )


def build(architecture: str, settings: RunConfig, **sizes: Any) -> Any:
    """Return the model as training holds it."""
    sizes = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3, **sizes}
    model = tiny_model(architecture, **sizes)
    if settings.dtype == "bfloat16":
        model = model.to(torch.bfloat16)
    return get_peft_model(model, lora_config(settings)) if settings.update.lora else model


def nbytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def shape(architecture: str, **sizes: Any) -> memory.Shape:
    sizes = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3, **sizes}
    return shape_of_model(tiny_model(architecture, **sizes), config("lora"))


def autocast(settings: RunConfig) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if settings.update.bf16 else nullcontext()


# -- weights, gradients, optimizer -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_states_are_those_that_torch_holds(architecture: str, kind: str) -> None:
    settings = config(kind)
    model = build(architecture, settings)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    with autocast(settings):
        model(torch.arange(20)[None]).logits.sum().backward()
    optimizer.step()
    moments = [t for state in optimizer.state.values() for name, t in state.items() if name != "step"]
    measured = (nbytes(model.parameters()), nbytes(p.grad for p in trained), nbytes(moments))
    assert states(settings, shape(architecture), "replicated", 1) == measured


def test_sharded_states_are_the_whole_over_the_gpus() -> None:
    size = shape("llama")
    whole = sum(states(config(), size, "replicated", 1))
    assert whole == 16 * size.parameters
    assert sum(states(config(), size, "fsdp2", 8)) * 8 == pytest.approx(whole)
    assert sum(states(config("full-bf16"), size, "zero3", 8)) * 8 == pytest.approx(16 * size.parameters)
    # Replicas exchange gradients in buckets of their own.
    assert sum(states(config(), size, "replicated", 8)) == 20 * size.parameters


# -- activations -------------------------------------------------------------------------------------------------------


def kept(model: Any, settings: RunConfig) -> int:
    """Return the bytes of distinct tensors that the decoder keeps for the backward pass, its weights left out."""
    model.train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            found[place] = tensor  # held, so that no other tensor gets its place
        return tensor

    decoder = model.get_base_model().model if settings.update.lora else model.model
    mask = torch.ones(ROWS, LENGTH, dtype=torch.int64)
    mask[0, :10] = 0
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast(settings):
        decoder(input_ids=torch.zeros_like(mask), attention_mask=mask, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


@pytest.mark.parametrize("layers", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_activations_are_what_autograd_keeps(architecture: str, kind: str, layers: int, record_property: Any) -> None:
    settings = config(kind, gradient_checkpointing=False)
    measured = kept(build(architecture, settings, num_hidden_layers=layers), settings)
    estimated = activations(settings, shape(architecture, num_hidden_layers=layers), ROWS, LENGTH)
    record_property("ratio", estimated / measured)
    print(f"{architecture} {kind} {layers}: estimated {estimated:.0f}, measured {measured}")
    assert estimated == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.parametrize("kind", ["full", "lora", "lora-bf16-base"])
def test_checkpointing_keeps_the_input_of_each_layer(kind: str) -> None:
    settings = config(kind, gradient_checkpointing=True)
    measured, estimated, adapters = [], [], []
    for layers in (2, 6):
        model = build("llama", settings, num_hidden_layers=layers)
        model.gradient_checkpointing_enable()
        if settings.update.lora:
            model.enable_input_require_grads()
        measured.append(kept(model, settings))
        size = shape("llama", num_hidden_layers=layers)
        estimated.append(activations(settings, size, ROWS, LENGTH))
        adapters.append(size.adapters)
    # autocast keeps bfloat16 copies of the adapters till the forward pass ends, in a cache that no hook sees.
    cached = 2 * (adapters[1] - adapters[0]) if settings.update.bf16 else 0
    assert estimated[1] - estimated[0] - cached == pytest.approx(measured[1] - measured[0], rel=TOLERANCE)
    plain = config(kind, gradient_checkpointing=False)
    assert estimated[1] < activations(plain, shape("llama", num_hidden_layers=6), ROWS, LENGTH) / 2


# -- generation and logits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_cache_is_as_large_as_estimated(architecture: str) -> None:
    settings, size = config(), shape(architecture)
    # The longest phase of a step here: 12 attempts of 64 prompt and 4 new tokens.
    cache = build(architecture, settings)(torch.zeros(12, 68, dtype=torch.int64), use_cache=True).past_key_values
    measured = sum(nbytes([layer.keys, layer.values]) for layer in cache.layers)
    distributions = 12 * size.vocabulary * (3 * FLOAT32 + 8 + FLOAT32)
    assert generation(settings, size, 1, 0) - distributions == measured * (size.layers + 1) / size.layers
    assert generation(settings, size, 2, 0) == pytest.approx(generation(settings, size, 1, 0) / 2)


def test_answers_that_only_measure_are_sampled_too() -> None:
    settings = config()
    alone = settings.model_copy(update={"play": settings.play.model_copy(update={"reuse_probes": False, "answers": 2})})
    # Two proposals may become tasks of 4 attempts each, and 3 tasks are answered twice: 14 rows in place of 12.
    found = generation(alone, shape("llama"), 1, 0) / generation(settings, shape("llama"), 1, 0)
    assert found == pytest.approx(14 / 12)


@pytest.mark.parametrize(("problems", "samples", "rows"), [(1, 4, 12), (3, 4, 36), (150, 4, 128)])
def test_the_hold_outs_may_be_the_largest_phase(problems: int, samples: int, rows: int) -> None:
    """With 12 answers a step, and 3 families of hold-outs; a process completes 128 rows at a time."""
    settings = config()
    measured = settings.model_copy(update={"holdout": Holdout(problems=problems, samples=samples)})
    found = generation(measured, shape("llama"), 1, 0) / generation(settings, shape("llama"), 1, 0)
    assert found == pytest.approx(rows / 12)


def test_hold_outs_ask_for_no_more_rows_than_are_planned(echo: Executor) -> None:
    assert {len(suite.families) for suite in holdout.load(echo, "compact")} == {holdout.FAMILIES}


def test_the_back_end_decides_what_sampling_takes() -> None:
    def found(**settings: Any) -> memory.Memory:
        chosen = RunConfig.model_validate({**config().model_dump(), **settings})
        return estimate(chosen, shape("llama"), "replicated", 4, 10e9)

    plain, engine = found(), found(backend="vllm", vllm={"gpu_memory": 0.4})
    assert plain.generation > 0
    assert (engine.generation, engine.reserved) == (0, plain.reserved + 0.4 * 10e9)
    server = found(backend="vllm", vllm={"mode": "server", "gpu_memory": 0.4})
    assert (server.generation, server.reserved) == (0, plain.reserved)
    continuous = found(backend="continuous", continuous={"memory": 0.25})
    kept = continuous.reserved + continuous.weights + continuous.optimizer + continuous.gathered
    assert continuous.generation == 0.25 * (10e9 - kept)


def test_whole_layers_beside_the_shards_by_hand() -> None:
    size = replace(shape("llama"), parameters=1000, layers=4, layer=200)
    found = [estimate(config(), size, sharding, 4, 10e9).gathered for sharding in SHARDINGS]
    # Three layers and what is in none, in float32; twice all there is, in bfloat16.
    assert found == [0, 4 * (3 * 200 + 200), 2 * (1000 + 1000)]
    large = replace(size, parameters=3_000_000_000)
    assert estimate(config(), large, "zero3", 4, 10e9).gathered == 2 * (1e9 + 5e8)
    assert estimate(config(), size, "zero3", 1, 10e9).gathered == 0


def test_few_tokens_have_a_tile_of_their_own_size() -> None:
    size = replace(shape("llama"), vocabulary=100, hidden=8)
    assert logits(config(), size, 10) == 4 * (10 * 32768 + 100 * 8) + 4 * (10 * 8 + 100 * 8)
    more = logits(config(), size, 5000) - logits(config(), size, 4096)
    assert more == 4 * (5000 - 4096) * 8  # beyond 4,096 only the gradients of hidden states grow


def test_tiles_of_logits_are_as_large_as_in_trl() -> None:
    kernel = pytest.importorskip("trl.kernels.chunked_logprob", reason="this TRL has no tiles")
    from trl.trainer import utils

    assert kernel.TOKEN_CHUNK_SIZE == memory.TOKEN_TILE
    assert utils._CHUNKED_LOGPROB_CHUNK_SIZE == memory.VOCABULARY_TILE
    full, lora, size = config(), config("lora"), shape("llama")
    assert logits(full, size, 100) - logits(lora, size, 100) == FLOAT32 * size.vocabulary * size.hidden
    assert logits(full, size, 8192) - logits(full, size, 4096) == FLOAT32 * 4096 * size.hidden


# -- the whole ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_configuration_alone_tells_the_shape(architecture: str, tied: bool, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, architecture, tie_word_embeddings=tied)
    (folder / "model.safetensors").unlink()
    found = shape_of(config().model_copy(update={"model": str(folder)}))
    model = tiny_model(architecture, tie_word_embeddings=tied)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.layer * 2 < found.parameters
    assert (found.layers, found.heads, found.key_heads, found.head_size, found.vocabulary) == (2, 4, 2, 8, 264)
    rank = 32
    adapted = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in name]
    assert found.adapters == sum(rank * (m.in_features + m.out_features) for m in adapted)


def test_mixtures_of_experts_are_refused() -> None:
    model = MixtralForCausalLM(
        MixtralConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    )
    with pytest.raises(InvalidConfig, match=r"expected a dense decoder-only model .* got MixtralForCausalLM"):
        shape_of_model(model, config())


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_the_peak_is_the_largest_of_three_moments(sharding: str) -> None:
    size = shape("llama")
    found = estimate(config(), size, sharding, 4, 1e9)
    kept_always = found.weights + found.optimizer + found.gathered
    update = kept_always + found.gradients + found.activations + found.logits
    assert found.peak == found.reserved + max(update, kept_always + found.generation, found.loading)
    with_penalty = estimate(config(beta=0.1), size, sharding, 4, 1e9)
    parts = 1 if sharding == "replicated" else 4
    assert with_penalty.weights - found.weights == FLOAT32 * size.parameters / parts
