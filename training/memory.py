"""How much memory of a GPU a run takes, from the model's configuration alone; nothing is loaded.

Formulas, not measurements: each says where it comes from. What a transformer block keeps for the backward pass was
derived tensor by tensor from the blocks of Llama and Qwen2 in transformers 5.23 with SDPA attention and a padding
mask, and is compared in the tests with what autograd really keeps. Not known: mixtures of experts, quantised weights,
offload.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from selfplay_gym.errors import InvalidConfig
from selfplay_gym.training import holdout, milestones
from selfplay_gym.training.config import Lora, RunConfig
from selfplay_gym.training.loading import check_source
from selfplay_gym.training.run import source
from selfplay_gym.training.trainer import lora_config, slots

GB = 1e9
RESERVED = 1.5 * GB
"""CUDA context, NCCL buffers and fragmentation: an allowance of ours, not measured."""

SHARDINGS = ("replicated", "fsdp2", "zero3")
FLOAT32, BFLOAT16 = 4, 2
TOKEN_TILE, VOCABULARY_TILE = 4096, 32768
"""Size of the tiles of logits in TRL 1.16, ``trl/kernels/chunked_logprob.py`` and ``trl/trainer/utils.py``."""

LIVE, BUCKET = 1e9, 5e8
"""Parameters: DeepSpeed's ``stage3_max_live_parameters`` and ``reduce_bucket_size`` unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a decoder decides its memory; counts of parameters are of distinct ones, tied weights once.

    Attributes:
        parameters: All of them.
        adapters: Those that LoRA would add.
        layers: Decoder layers.
        layer: Parameters of one layer.
        hidden: Width.
        intermediate: Width inside the MLP.
        heads: Query heads.
        key_heads: Key and value heads.
        head_size: Width of one.
        vocabulary: Rows of the output layer.
    """

    parameters: int
    adapters: int
    layers: int
    layer: int
    hidden: int
    intermediate: int
    heads: int
    key_heads: int
    head_size: int
    vocabulary: int

    @property
    def attention(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_size


def shape_of(config: RunConfig) -> Shape:
    """Build the model of a run without memory, on torch's meta device, and count.

    Raises:
        InvalidConfig: No configuration of a dense decoder-only model there.
    """
    place = source(config)
    check_source(place)
    try:
        settings = AutoConfig.from_pretrained(place, trust_remote_code=False).get_text_config()
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(settings)
    except Exception as error:  # hub, file and parser errors share no base
        raise InvalidConfig(
            f"cannot plan for {config.model!r}: expected the configuration of a causal language model, got "
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}; check the name or the folder's config.json"
        ) from error
    return shape_of_model(model, config)


def shape_of_model(model: Any, config: RunConfig) -> Shape:
    """Count the parameters of a model, which may be on the meta device; adapters are put into it on the way.

    Raises:
        InvalidConfig: It is no dense decoder-only model.
    """
    settings = model.config
    layers = getattr(model.base_model, "layers", None)
    needed = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    missing = [name for name in needed if not isinstance(getattr(settings, name, None), int)]
    if layers is None or missing or any("expert" in name for name, _ in model.named_modules()):
        raise InvalidConfig(
            f"cannot plan for {config.model!r}: expected a dense decoder-only model such as Llama or Qwen, got "
            f"{type(model).__name__}; measure a run of one step instead: selfplay-gym train --set steps=1"
        )
    parameters, layer = _count(model), _count(layers[0])
    head_size = getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads
    return Shape(
        parameters=parameters,
        adapters=_adapters(model, config),
        layers=len(layers),
        layer=layer,
        hidden=settings.hidden_size,
        intermediate=settings.intermediate_size,
        heads=settings.num_attention_heads,
        key_heads=getattr(settings, "num_key_value_heads", None) or settings.num_attention_heads,
        head_size=head_size,
        vocabulary=settings.vocab_size,
    )


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _adapters(model: Any, config: RunConfig) -> int:
    from peft import get_peft_model  # slow to import

    lora = config.update.lora or Lora()
    with_lora = config.model_copy(update={"update": config.update.model_copy(update={"lora": lora})})
    try:
        adapted = get_peft_model(model, lora_config(with_lora))
    except ValueError as error:
        raise InvalidConfig(f"update.lora.targets: {' '.join(str(error).split())[:200]}") from error
    return sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on each GPU, by what they are for.

    Attributes:
        weights: The policy's, a reference model included where there is a KL penalty.
        gradients: With the buckets in which replicas exchange them.
        optimizer: AdamW's two moments, and ZeRO's float32 weights.
        gathered: Whole layers of sharded weights, at their turn.
        activations: Kept for the backward pass of one micro-batch.
        logits: Of one micro-batch, and the gradients at the output layer.
        generation: Key-value cache and next-token distributions.
        loading: The whole model, before it is sharded.
        reserved: `RESERVED`, and what a colocated vLLM engine holds.
    """

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    activations: float
    logits: float
    generation: float
    loading: float
    reserved: float

    @property
    def peak(self) -> float:
        """Most at any time: while loading, while generating or in the update."""
        kept = self.weights + self.optimizer + self.gathered
        update = kept + self.gradients + self.activations + self.logits
        return self.reserved + max(self.loading, kept + self.generation, update)


def estimate(config: RunConfig, shape: Shape, sharding: str, gpus: int, memory: float) -> Memory:
    """Return what a run takes on each of ``gpus`` GPUs of ``memory`` bytes.

    Args:
        config: The run's settings.
        shape: Of its model.
        sharding: One of `SHARDINGS`.
        gpus: How many, one process each.
        memory: Of one GPU, in bytes.
    """
    parts = gpus if sharding != "replicated" else 1
    weights, gradients, optimizer = states(config, shape, sharding, gpus)
    reference = shape.parameters * FLOAT32 / parts if config.update.beta and not config.update.lora else 0.0
    micro_batch = slots(config, gpus)[1]
    completion = max(config.play.max_new_tokens.propose, config.play.max_new_tokens.solve)
    gathered = _gathered(shape, sharding, gpus)
    reserved = RESERVED + memory * engine_share(config)
    free = memory - reserved - weights - reference - optimizer - gathered
    return Memory(
        weights=weights + reference,
        gradients=gradients,
        optimizer=optimizer,
        gathered=gathered,
        activations=activations(config, shape, micro_batch, config.play.prompt_tokens + completion, sharding),
        logits=logits(config, shape, micro_batch * completion),
        generation=generation(config, shape, gpus, free),
        loading=float(shape.parameters * _weight_bytes(config)),
        reserved=reserved,
    )


def engine_share(config: RunConfig) -> float:
    """Return the share of each GPU that a vLLM engine beside the trainer holds all the time."""
    beside = config.backend == "vllm" and config.vllm.mode == "colocate"
    return config.vllm.gpu_memory if beside else 0.0


def _weight_bytes(config: RunConfig) -> int:
    return BFLOAT16 if config.dtype == "bfloat16" else FLOAT32


def states(config: RunConfig, shape: Shape, sharding: str, gpus: int) -> tuple[float, float, float]:
    """Return the bytes of weights, gradients and optimizer states on each GPU.

    Replicated and FSDP2: float32 weights and gradients of what is trained and AdamW's two float32 moments (torch,
    ``AdamW``), 16 bytes a trained parameter; adapters stay float32 on a base of any precision (peft). Replicas hold
    gradients a second time, in the buckets that `DistributedDataParallel` exchanges (its ``gradient_as_bucket_view`` is
    off). FSDP2 divides all of it by the GPUs. ZeRO-3 holds 2 bytes of weights, 2 of gradients and 12 of float32 weights
    and moments, divided by the GPUs (ZeRO, arXiv:1910.02054, section 3.1); without bf16 as FSDP2.
    """
    frozen = shape.parameters if config.update.lora else 0
    trained = shape.adapters if config.update.lora else shape.parameters
    if sharding == "zero3" and config.update.bf16:
        return (
            (frozen + trained) * BFLOAT16 / gpus,
            trained * BFLOAT16 / gpus,
            trained * 3 * FLOAT32 / gpus,
        )
    parts = gpus if sharding != "replicated" else 1
    buckets = 2 if sharding == "replicated" and gpus > 1 else 1
    return (
        (frozen * _weight_bytes(config) + trained * FLOAT32) / parts,
        trained * FLOAT32 * buckets / parts,
        trained * 2 * FLOAT32 / parts,
    )


def _gathered(shape: Shape, sharding: str, gpus: int) -> float:
    """Return the bytes of whole layers beside the shards.

    FSDP2 holds the layer at work, the next one, embeddings and output layer (PyTorch, ``fully_shard`` with
    ``reshard_after_forward``) and a layer's gradients; ZeRO-3 up to `LIVE` parameters and `BUCKET` gradients
    (DeepSpeed, configuration, "ZeRO optimizations"). FSDP2's in float32, as without bf16: with it, it is less.
    """
    if sharding == "replicated" or gpus == 1:
        return 0.0
    if sharding == "zero3":
        return BFLOAT16 * (min(shape.parameters, LIVE) + min(shape.parameters, BUCKET))
    outside = shape.parameters - shape.layers * shape.layer
    return float(FLOAT32 * (3 * shape.layer + outside))


def activations(config: RunConfig, shape: Shape, rows: int, length: int, sharding: str = "replicated") -> float:
    """Return the bytes that a forward pass of ``rows`` rows of ``length`` tokens keeps, logits left out.

    With gradient checkpointing: the input of each layer, and all of one layer while it is computed again (Chen et al.,
    arXiv:1604.06174); else all of every layer. Under autocast the bfloat16 copies of the weights are kept as well
    (torch: ``autocast`` caches them, and the matrix products keep them); sharded weights are gathered in it instead.
    """
    tokens, one = rows * length, _layer_bytes(config, shape, length)
    # Of the last norm: its input, and what its gain is multiplied with.
    last = FLOAT32 * shape.hidden * (1 if config.update.lora else 2)
    copied = sharding == "replicated" and config.update.bf16
    weights_copied = copied and config.dtype == "float32"
    adapters = shape.adapters if copied and config.update.lora else 0
    if config.update.gradient_checkpointing is False:
        copies = shape.layers * shape.layer if weights_copied else 0
        # Nothing before the first adapters is trained: the first norm keeps nothing.
        first = FLOAT32 * (shape.hidden + 1) if config.update.lora else 0
        return tokens * (shape.layers * one + last - first) + BFLOAT16 * (copies + adapters)
    # Weights that are trained are cached until the forward pass ends, frozen ones only while they are used.
    copies = (shape.layer if config.update.lora else shape.layers * shape.layer) if weights_copied else 0
    kept = shape.layers * shape.hidden * _weight_bytes(config)
    return tokens * (kept + one + last) + BFLOAT16 * (copies + adapters)


def _layer_bytes(config: RunConfig, shape: Shape, length: int) -> float:
    """Return the bytes a token that one layer keeps.

    In the manner of Korthikanti et al. (arXiv:2205.05198, section 4.1), for blocks with RMSNorm, rotary embedding,
    repeated key heads and a gated MLP: two norms, the inputs of the matrix products, queries, keys, values and output
    of attention with its row sums and mask, four MLP tensors. Frozen weights need no inputs, their adapters do.
    """
    mixed, lora = config.update.bf16 or config.dtype == "bfloat16", config.update.lora
    size = BFLOAT16 if mixed else FLOAT32
    h, a, f = shape.hidden, shape.attention, shape.intermediate
    norms = FLOAT32 * (2 * h * (1 if lora else 2) + 2)
    inputs = 2 * h  # of queries, keys and values together; of gate and up
    if mixed:  # each product casts its input by itself
        inputs = 5 * h + (a if lora else 0)
    attention = size * (4 * a + length) + FLOAT32 * shape.heads
    adapters = size * 7 * lora.rank if lora else 0
    return norms + size * (inputs + 4 * f) + attention + adapters


def logits(config: RunConfig, shape: Shape, tokens: int) -> float:
    """Return the bytes at the output layer for that many completion tokens.

    TRL computes log-probabilities in tiles and never holds all logits (1.16, ``ChunkedLogProbFunction``): a tile of
    logits and one of weights; in the backward pass the float32 gradient of the hidden states, and of the output layer
    where that is trained.
    """
    mixed = config.update.bf16 or config.dtype == "bfloat16"
    tile = min(tokens, TOKEN_TILE) * VOCABULARY_TILE
    weights = min(shape.vocabulary, VOCABULARY_TILE) * shape.hidden
    trained = 0 if config.update.lora else shape.vocabulary * shape.hidden
    return (BFLOAT16 if mixed else FLOAT32) * (tile + weights) + FLOAT32 * (tokens * shape.hidden + trained)


def generation(config: RunConfig, shape: Shape, gpus: int, free: float) -> float:
    """Return the bytes that sampling takes, of those that are ``free`` on each GPU while nothing is updated.

    vLLM takes none of the trainer's, continuous batching its share of what is free. `generation.TransformersBackend`
    holds keys and values: 2 x layers x key heads x head size a token (Pope et al., arXiv:2211.05102, section 3.3), one
    layer of them twice while it grows; for each row of the batch three float32 copies of the next token's distribution
    and its running sum in float64 (`generation.Sampler`), beside the logits. Rows are those of the largest phase, which
    in a run of short steps is the hold-out.
    """
    if config.backend == "vllm":
        return 0.0
    if config.backend == "continuous":
        return config.continuous.memory * max(free, 0.0)
    play = config.play
    solving = max(config.answers, holdout.rows(config))
    phases = [(config.proposals, play.max_new_tokens.propose), (solving, play.max_new_tokens.solve)]
    if config.eval:  # how many problems there are, and how long, the data alone tells: a full batch of usual prompts
        phases.append((milestones.rows(config), config.eval.longest(config.style)))
    a_token = 2 * (shape.layers + 1) * shape.key_heads * shape.head_size * _weight_bytes(config)
    a_row = shape.vocabulary * (FLOAT32 * 3 + 8 + _weight_bytes(config))
    return max(
        min(-(-rows // gpus), config.generation_batch) * (a_token * (play.prompt_tokens + new) + a_row)
        for rows, new in phases
    )
