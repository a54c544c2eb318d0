"""Skip what an update need not compute: padding, prompts that rows have in common, and scores that nobody reads.

TRL pads every row to the longest prompt plus the longest completion of the whole step, the attempts at one task all
carry its prompt, and without Triton every position is scored. On CPU, where such tokens cost as much as any other, that
multiplies the cost of an update of short rows. `skip_padding` makes the decoder see the rows left-aligned, each common
beginning once with its endings behind it, in buckets of similar length, and puts the hidden states back where the
caller expects them; the output layer then sees those of completions alone. A token attends to its own row alone, at the
same positions as before, so nothing else changes; tests compare gradients with those of each row by itself.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

MULTIPLE = 16
"""Lengths are rounded up to this, so that CPU kernels see few shapes."""

WIDEST = 512
"""Most tokens of rows that are packed together: the cost of attention grows with the square."""

WORTH_SHARING = 1 / 3
"""Least part of a row that it must have in common with others to be packed with them."""


def skip_padding(model: PreTrainedModel) -> None:
    """Wrap ``model`` in place; calls with a cache or without an attention mask go through unchanged."""
    _skip_in_decoder(model)
    _skip_in_head(model)


def _skip_in_head(model: PreTrainedModel) -> None:
    """Score what has a label, where TRL's fused output layer is asked for: elsewhere its answer is 0 anyway."""
    original = model.forward
    labelled: list[torch.Tensor] = []  # of the call under way, (rows, length - 1)

    def select(decoder: nn.Module, args: Any, output: Any) -> Any:
        if labelled:
            output.last_hidden_state = output.last_hidden_state[:, :-1][labelled[-1]][None]
        return output

    @functools.wraps(original)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        labels = kwargs.get("labels")
        if not kwargs.get("fused_lm_head") or labels is None or not (mask := labels[:, 1:] != -100).any():
            return original(*args, **kwargs)
        labelled.append(mask)
        try:
            outputs = original(*args, **{**kwargs, "labels": None, "shift_labels": labels[:, 1:][mask][None]})
        finally:
            labelled.pop()
        for name, values in outputs.items():
            if values.shape == (1, int(mask.sum())):
                outputs[name] = values.new_zeros(mask.shape).masked_scatter(mask, values)
        return outputs

    model.base_model.register_forward_hook(select)
    model.forward = types.MethodType(forward, model)


def _skip_in_decoder(model: PreTrainedModel) -> None:
    decoder = model.base_model
    original = decoder.forward
    packs = _attends_as_told(model.config)

    def forward(self: nn.Module, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        plain = kwargs.get("past_key_values") is None and kwargs.get("inputs_embeds") is None
        if input_ids is None or attention_mask is None or attention_mask.dim() != 2 or not plain:
            return original(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        states = _bucketed(original, input_ids, attention_mask.bool(), packs)
        return BaseModelOutputWithPast(last_hidden_state=states)

    decoder.forward = types.MethodType(forward, decoder)


def _attends_as_told(config: Any) -> bool:
    """Return whether the model takes any mask, query by key: not so with sliding windows or other kernels."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return config._attn_implementation == "sdpa" and kinds == {"full_attention"}


@dataclass(frozen=True, slots=True)
class _Row:
    """The real tokens of a row, and where each stands in the flattened batch."""

    tokens: list[int]
    places: list[int]


@dataclass(frozen=True, slots=True)
class _Pack:
    """Rows that begin with the same ``shared`` tokens, as one sequence: these tokens, then the rest of each row."""

    rows: list[_Row]
    shared: int

    @property
    def width(self) -> int:
        """Tokens of the sequence."""
        return self.shared + sum(len(row.tokens) - self.shared for row in self.rows)


def _bucketed(run: Any, ids: torch.Tensor, real: torch.Tensor, packs: bool) -> torch.Tensor:
    """Return hidden states ``(rows, length, width)``, zero at padding, with each bucket run at its own length."""
    rows = _rows(ids, real)
    buckets: dict[int, list[_Pack]] = {}
    for pack in _packed(rows) if packs else (_Pack([row], 0) for row in rows):
        buckets.setdefault(-(-pack.width // MULTIPLE) * MULTIPLE, []).append(pack)
    batches = [_Batch(bucket, width, ids.device) for width, bucket in sorted(buckets.items())]
    states = [
        run(batch.ids, batch.mask(packs), position_ids=batch.positions, use_cache=False).last_hidden_state
        for batch in batches
    ]
    found = torch.cat([s.flatten(0, 1)[batch.sources] for s, batch in zip(states, batches, strict=True)])
    places = torch.cat([batch.targets for batch in batches])
    return found.new_zeros((ids.numel(), found.shape[-1])).index_copy(0, places, found).view(*ids.shape, -1)


def _rows(ids: torch.Tensor, real: torch.Tensor) -> list[_Row]:
    """Return the rows without their padding; those of nothing else are left out."""
    found = []
    for number, (tokens, mask) in enumerate(zip(ids.tolist(), real.tolist(), strict=True)):
        kept = [column for column, is_real in enumerate(mask) if is_real]
        if kept:
            found.append(_Row([tokens[c] for c in kept], [number * len(tokens) + c for c in kept]))
    return found


def _packed(rows: Sequence[_Row]) -> Iterator[_Pack]:
    """Yield the rows packed with those that begin alike; sorted, these are neighbours."""
    pack: _Pack | None = None
    for row in sorted(rows, key=lambda row: row.tokens):
        wider = pack and _joined(pack, row)
        if pack and not wider:
            yield pack
        pack = wider or _Pack([row], len(row.tokens))
    if pack:
        yield pack


def _joined(pack: _Pack, row: _Row) -> _Pack | None:
    """Return the pack with one more row, or None where that saves too little."""
    shared = min(pack.shared, _common(pack.rows[-1].tokens, row.tokens))
    joined = _Pack([*pack.rows, row], shared)
    longest = max(len(row.tokens) for row in joined.rows)
    return joined if shared >= WORTH_SHARING * longest and joined.width <= WIDEST else None


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two rows begin with alike.

    >>> _common([5, 6, 7], [5, 6, 8, 9])
    2
    """
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


class _Batch:
    """Packs of about one width as tensors.

    Attributes:
        ids: Tokens, int64 ``(packs, width)``.
        positions: Of each token in its row, int64 ``(packs, width)``.
        parts: Whose token it is: 0 all rows of the pack, 1... one of them, -1 none; int64 ``(packs, width)``.
        sources: Places in the flattened packs...
        targets: ...and the places in the flattened batch that their states go to; a shared token goes to several.
    """

    def __init__(self, packs: Sequence[_Pack], width: int, device: torch.device) -> None:
        ids, positions, parts = ([[fill] * width for _ in packs] for fill in (0, 0, -1))
        sources: list[int] = []
        targets: list[int] = []
        for number, pack in enumerate(packs):
            end, first = pack.shared, number * width
            ids[number][:end] = pack.rows[0].tokens[:end]
            positions[number][:end] = range(end)
            parts[number][:end] = [0] * end
            for part, row in enumerate(pack.rows, start=1):
                start, end = end, end + len(row.tokens) - pack.shared
                ids[number][start:end] = row.tokens[pack.shared :]
                positions[number][start:end] = range(pack.shared, len(row.tokens))
                parts[number][start:end] = [part] * (end - start)
                sources += [*range(first, first + pack.shared), *range(first + start, first + end)]
                targets += row.places
        self.ids, self.positions, self.parts, self.sources, self.targets = (
            torch.tensor(values, device=device) for values in (ids, positions, parts, sources, targets)
        )

    def mask(self, packed: bool) -> torch.Tensor:
        """Return which tokens are read: by each token, bool ``(packs, 1, width, width)``, or if not packed by all."""
        if not packed:
            return (self.parts >= 0).long()
        keys, queries = self.parts[:, None, :], self.parts[:, :, None]
        earlier = torch.ones(keys.shape[-1], keys.shape[-1], dtype=torch.bool, device=keys.device).tril()
        return (((keys == 0) | (keys == queries)) & earlier)[:, None]
