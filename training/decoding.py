"""A tight decode loop for tiny models on CPU, where ``model.generate`` spends its time between the matrix products.

It reads the weights of a plain Qwen3, Qwen2 or Llama model and runs them itself: the projections that share an input
are one product, the gains of the norms in front of them are folded in, the cache is written in place, and the query
heads of one key head are rows of one product, so that keys are never repeated. Rows that are done leave the batch.
Equal prompts (the samples of one group) are read once.

Rotary pairs: transformers rotates dimension i with i + d/2. Here the rows of the query and key projections are
reordered so that pairs are neighbours and one complex product rotates them; scores are sums over dimensions and do not
notice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from selfplay_gym.training.generation import Request, Sample, Sampler, batches, stop_token_ids, trim

MODEL_CLASSES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
MASKED = -1e9
"""Added to the scores of padding. Finite, so that a padding row, which sees nothing, stays a number."""

PREFILL_TOKENS = 1024
"""Prompt tokens read at a time: their activations fit the core's cache."""

PREFILL_WIDTH = 256
"""Of one prompt; scores take width x columns, so a long prompt is read in pieces."""

COLUMNS = 64
"""The cache grows by this many tokens at a time."""

ROWS = 16
"""A shrinking batch keeps a multiple of this many rows: oneDNN prepares a kernel for each shape it meets."""

Linear = Callable[[Tensor], Tensor]


def supports(model: Any) -> bool:
    """Whether the loop computes exactly what this model does: its architecture, plain rotary embedding, full attention.

    Adapters, quantised layers and anything else in place of a plain linear layer are refused too.
    """
    if type(model).__name__ not in MODEL_CLASSES:
        return False
    config = model.config
    rope = config.rope_parameters
    return (
        config.hidden_act == "silu"
        and rope.get("rope_type") == "default"
        and rope.get("partial_rotary_factor", 1.0) == 1.0
        and all(kind == "full_attention" for kind in getattr(config, "layer_types", None) or ())
        and all(type(layer) is nn.Linear for layer in _linear_layers(model))
    )


def _linear_layers(model: Any) -> list[Any]:
    blocks = [part for layer in model.model.layers for part in (layer.self_attn, layer.mlp)]
    return [child for block in blocks for name, child in block.named_children() if name.endswith("_proj")]


# -- weights ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layer:
    """One decoder layer, ready to run.

    Attributes:
        qkv: Hidden to query, key and value heads, input norm and (without ``gain``) score scale folded in.
        gain: Of the query and key norms (Qwen3), float (query heads + key heads, head size), score scale folded in.
        out: Attention heads to hidden.
        gate_up: Hidden to both halves of the feed-forward layer, its norm folded in.
        down: Back to hidden.
    """

    qkv: Linear
    gain: Tensor | None
    out: Linear
    gate_up: Linear
    down: Linear


class _Weights:
    """The model's weights as they are now, fused. Activations between the products are float32."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        config = model.config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_size = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.eps = config.rms_norm_eps
        self.dtype = dtype
        self.inv_freq = model.model.rotary_emb.inv_freq.float()
        self.embedding = model.model.embed_tokens.weight
        self.layers = [self._layer(layer) for layer in model.model.layers]
        self.head = self._linear([model.lm_head], model.model.norm)

    def _layer(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        parts = [attention.q_proj, attention.k_proj, attention.v_proj]
        half, device = self.head_size // 2, self.embedding.device
        pairs = torch.arange(self.head_size, device=device).view(2, half).t().reshape(-1)  # 0, half, 1, half + 1, ...
        rotated = self.heads + self.kv_heads
        everything = torch.arange((rotated + self.kv_heads) * self.head_size, device=device).view(-1, self.head_size)
        order = torch.cat([everything[:rotated, pairs], everything[rotated:]]).reshape(-1)
        scale = torch.ones(rotated + self.kv_heads, self.head_size, device=device)
        gain = None
        if hasattr(attention, "q_norm"):
            gains = attention.q_norm.weight[pairs].expand(self.heads, -1) * self.head_size**-0.5
            gain = torch.cat([gains, attention.k_norm.weight[pairs].expand(self.kv_heads, -1)]).float()
        else:
            scale[: self.heads] = self.head_size**-0.5
        return _Layer(
            qkv=self._linear(parts, layer.input_layernorm, order, scale.view(-1, 1)),
            gain=gain,
            out=self._linear([attention.o_proj]),
            gate_up=self._linear([mlp.gate_proj, mlp.up_proj], layer.post_attention_layernorm),
            down=self._linear([mlp.down_proj]),
        )

    def _linear(
        self, parts: list[Any], norm: Any = None, order: Tensor | None = None, scale: Tensor | None = None
    ) -> Linear:
        """Stack layers that share an input; ``order`` and ``scale`` apply to their outputs."""
        weight = torch.cat([part.weight.float() for part in parts])
        bias = None if parts[0].bias is None else torch.cat([part.bias.float() for part in parts])
        if norm is not None:
            weight = weight * norm.weight.float()
        if scale is not None:
            weight, bias = weight * scale, None if bias is None else bias * scale.view(-1)
        if order is not None:
            weight, bias = weight[order], None if bias is None else bias[order]
        return _runner(weight, bias, self.dtype)


def _runner(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Linear:
    """Return the affine map, float32 in and out, its product in ``dtype``.

    On CPU float32 products go to oneDNN through the operators that torch's compiler uses. torch itself calls MKL, which
    keeps to AVX2 on AMD processors: 100 against 190 to 250 GFLOP/s on one core of an AVX-512 EPYC.
    """
    if dtype != torch.float32:
        low, low_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        return lambda x: nn.functional.linear(x.to(dtype), low, low_bias).float()
    if weight.device.type == "cpu" and _ONEDNN:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 128)
        run = torch.ops.mkldnn._linear_pointwise.default
        return lambda x: run(x, packed, bias, "none", [], "")
    return lambda x: nn.functional.linear(x, weight, bias)


_ONEDNN = torch._C._has_mkldnn and all(
    hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
)


# -- one batch --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Cache:
    """Keys, (rows, key heads, head size, columns), and values, (rows, key heads, columns, head size), of each layer."""

    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def empty(cls, weights: _Weights, rows: int, columns: int) -> _Cache:
        heads, size, device = weights.kv_heads, weights.head_size, weights.inv_freq.device
        return cls(
            [torch.empty(rows, heads, size, columns, device=device) for _ in weights.layers],
            [torch.empty(rows, heads, columns, size, device=device) for _ in weights.layers],
        )

    @property
    def columns(self) -> int:
        return self.keys[0].shape[-1]

    def part(self, rows: slice) -> _Cache:
        """Return a view of these rows."""
        return _Cache([keys[rows] for keys in self.keys], [values[rows] for values in self.values])

    def resized(self, weights: _Weights, rows: Tensor, filled: int, columns: int) -> _Cache:
        """Return a cache of these rows, perhaps repeated, with room for ``columns``, the first ``filled`` copied."""
        new = _Cache.empty(weights, len(rows), columns)
        for old, keys in zip(self.keys, new.keys, strict=True):
            keys[..., :filled] = old[..., :filled][rows]
        for old, values in zip(self.values, new.values, strict=True):
            values[:, :, :filled] = old[:, :, :filled][rows]
        return new


def _forward(weights: _Weights, ids: Tensor, positions: Tensor, mask: Tensor, cache: _Cache, start: int) -> Tensor:
    """Read ``ids``, int64 (rows, tokens), into the cache's columns from ``start`` on; return the last token's logits.

    Args:
        weights: Of the model.
        ids: Left-padded.
        positions: Of each token in its own row, int64 (rows, tokens).
        mask: Added to the scores, float (rows, 1, tokens or 1, columns up to the last one read).
        cache: Of as many rows.
        start: Column of the first token.
    """
    rows, tokens = ids.shape
    angles = positions[..., None].float() * weights.inv_freq
    rotation = torch.polar(torch.ones_like(angles), angles)[:, :, None]
    x = weights.embedding[ids.reshape(-1)].float()
    width = (x.shape[-1],)
    for layer, keys, values in zip(weights.layers, cache.keys, cache.values, strict=True):
        qkv = layer.qkv(rms_norm(x, width, eps=weights.eps)).view(rows, tokens, -1, weights.head_size)
        heads = _attend(weights, layer, qkv, rotation, mask, keys, values, start)
        x = x + layer.out(heads)
        gate, up = layer.gate_up(rms_norm(x, width, eps=weights.eps)).chunk(2, dim=-1)
        x = x + layer.down(silu(gate).mul_(up))
    last = x.view(rows, tokens, -1)[:, -1]
    return weights.head(rms_norm(last, width, eps=weights.eps))


def _attend(
    weights: _Weights,
    layer: _Layer,
    qkv: Tensor,
    rotation: Tensor,
    mask: Tensor,
    keys: Tensor,
    values: Tensor,
    start: int,
) -> Tensor:
    """Write the new keys and values; return what the queries see, (rows * tokens, heads * head size)."""
    rows, tokens, _, size = qkv.shape
    rotated = weights.heads + weights.kv_heads
    stop, shared = start + tokens, weights.heads // weights.kv_heads
    qk = qkv[:, :, :rotated]
    if layer.gain is not None:
        qk = rms_norm(qk, (size,), eps=weights.eps).mul_(layer.gain)
    pairs = torch.view_as_complex(qk.view(rows, tokens, rotated, -1, 2))
    qk = torch.view_as_real(pairs * rotation).flatten(-2)
    keys[..., start:stop] = qk[:, :, weights.heads :].permute(0, 2, 3, 1)
    values[:, :, start:stop] = qkv[:, :, rotated:].transpose(1, 2)
    # The query heads of a key head, and the tokens, are rows of one product: (rows, key heads, shared * tokens, size).
    queries = qk[:, :, : weights.heads].view(rows, tokens, -1, shared, size).permute(0, 2, 3, 1, 4).flatten(2, 3)
    scores = (queries @ keys[..., :stop]).view(rows, -1, shared, tokens, stop).add_(mask[:, :, None])
    seen = torch.softmax(scores, dim=-1).view(rows, -1, shared * tokens, stop) @ values[:, :, :stop]
    return seen.view(rows, -1, shared, tokens, size).permute(0, 3, 1, 2, 4).reshape(rows * tokens, -1)


class _Batch:
    """Rows being decoded together."""

    def __init__(self, weights: _Weights, requests: Sequence[Request], stop: Collection[int]) -> None:
        self.weights, self.requests, self.stop = weights, requests, stop
        device = weights.inv_freq.device
        count, longest = len(requests), max(request.max_new_tokens for request in requests)
        self.ids = torch.zeros(count, longest, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(count, longest, device=device)
        self.live = torch.arange(count, device=device)  # which request each row of the cache belongs to
        self.limits = torch.tensor([request.max_new_tokens for request in requests], device=device)
        self.done = torch.zeros(count, dtype=torch.bool, device=device)
        self.stops = torch.zeros(len(weights.embedding), dtype=torch.bool, device=device)
        self.stops[[token for token in stop if token < len(self.stops)]] = True
        self.sampler = Sampler(requests, device)

    def run(self) -> list[Sample]:
        """Read the prompts, then sample a token a row at a time until every row is done."""
        logits = self._prefill()
        for step in range(self.ids.shape[1]):
            ids, logprobs = self.sampler(logits, step)
            self.ids[self.live, step] = ids
            self.logprobs[self.live, step] = logprobs
            self.done |= self.stops[ids] | (self.limits <= step + 1)
            left = len(self.done) - int(self.done.sum())
            if not left:
                break
            ids = self._compact(ids, left)
            logits = self._decode(ids)
        return trim(self.requests, self.ids, self.logprobs, self.stop)

    def _prefill(self) -> Tensor:
        """Read each distinct prompt once; return the logits of the first new token, (rows, vocabulary)."""
        device = self.live.device
        prompts = list(dict.fromkeys(request.prompt_ids for request in self.requests))
        width = -(-max(map(len, prompts)) // 8) * 8
        gaps = torch.tensor([width - len(prompt) for prompt in prompts], device=device)
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        read = _Cache.empty(self.weights, len(prompts), width)
        logits = _read_prompts(self.weights, ids, gaps, read)
        places = {prompt: place for place, prompt in enumerate(prompts)}
        rows = torch.tensor([places[request.prompt_ids] for request in self.requests], device=device)
        self.cache = read.resized(self.weights, rows, width, width + min(COLUMNS, self.ids.shape[1]))
        self.filled, self.gaps = width, gaps[rows]
        self.mask = _padding_mask(self.gaps, self.cache.columns)
        return logits[rows]

    def _compact(self, ids: Tensor, left: int) -> Tensor:
        """Drop rows that are done once a quarter of them is, and give the cache room for another token."""
        rows = torch.arange(len(self.done), device=ids.device)
        target = -(-left // ROWS) * ROWS
        shrink, grow = target <= 0.75 * len(rows), self.filled == self.cache.columns
        if shrink:
            rows = torch.argsort(self.done, stable=True)[:target]
            self.live, self.limits, self.done, self.gaps = (
                tensor[rows] for tensor in (self.live, self.limits, self.done, self.gaps)
            )
            self.sampler.keep(rows)
        if shrink or grow:
            columns = self.cache.columns + (COLUMNS if grow else 0)
            self.cache = self.cache.resized(self.weights, rows, self.filled, columns)
            self.mask = _padding_mask(self.gaps, columns)
        return ids[rows]

    def _decode(self, ids: Tensor) -> Tensor:
        """Read one token a row, (rows,); return the logits of the next, (rows, vocabulary)."""
        column = self.filled
        self.filled += 1
        positions = (column - self.gaps)[:, None]
        return _forward(self.weights, ids[:, None], positions, self.mask[..., : self.filled], self.cache, column)


def _read_prompts(weights: _Weights, ids: Tensor, gaps: Tensor, cache: _Cache) -> Tensor:
    """Fill the cache with left-padded prompts, (prompts, width), a piece at a time; return their last logits."""
    width = ids.shape[1]
    columns = torch.arange(width, device=ids.device)
    positions = (columns - gaps[:, None]).clamp_(min=0)
    padding = _padding_mask(gaps, width)
    several = max(1, PREFILL_TOKENS // width)
    logits = []
    for row in range(0, len(ids), several):
        rows = slice(row, row + several)
        for start in range(0, width, PREFILL_WIDTH):
            stop = min(start + PREFILL_WIDTH, width)
            ahead = (columns[:stop] > columns[start:stop, None]) * MASKED
            last = _forward(
                weights,
                ids[rows, start:stop],
                positions[rows, start:stop],
                padding[rows, ..., :stop] + ahead,
                cache.part(rows),
                start,
            )
        logits.append(last)
    return torch.cat(logits)


def _padding_mask(gaps: Tensor, columns: int) -> Tensor:
    """Return `MASKED` in the first ``gaps`` columns of each row and 0 elsewhere, float (rows, 1, 1, columns)."""
    padding = torch.arange(columns, device=gaps.device) < gaps[:, None]
    return (padding * MASKED)[:, None, None].float()


class DecodeLoop:
    """Samples from a small model that it `supports`, sharing its weights.

    In float32 its log-probs equal the model's own forward to 1e-5. In bfloat16 only the matrix products are in low
    precision; the log-probs then differ from a float32 trainer's by about 1e-2.

    Args:
        model: Plain Qwen3, Qwen2 or Llama.
        batch_size: Rows at a time.
        dtype: Of the matrix products; the model's own by default.
        stop: Stop tokens; those of the model's generation settings by default (`stop_token_ids` adds the tokenizer's).
    """

    def __init__(
        self, model: Any, batch_size: int = 128, dtype: torch.dtype | None = None, stop: Collection[int] | None = None
    ) -> None:
        self.model, self.batch_size, self.dtype = model, batch_size, dtype
        self.stop = frozenset(stop_token_ids(model) if stop is None else stop)

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        """Return one sample a request, in their order, from the weights as they are now."""
        samples: dict[int, Sample] = {}
        with torch.inference_mode(), torch.autocast(self.model.device.type, enabled=False):
            weights = _Weights(self.model, self.dtype or self.model.dtype)
            for indices in batches(requests, self.batch_size):
                rows = [requests[i] for i in indices]
                samples.update(zip(indices, _Batch(weights, rows, self.stop).run(), strict=True))
        return [samples[i] for i in range(len(requests))]
