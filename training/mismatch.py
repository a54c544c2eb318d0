"""How far the sampler is from the trainer: log-probs as drawn, against the trainer's at the same weights.

On policy, both are the same numbers up to rounding, and the update takes their ratio to be 1. Another precision,
another engine, weights that were not handed over or a temperature that only one side knows of make them differ, and
training then drifts without any other sign. A few completions of each step are enough to see that, at the price of one
forward pass over them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from selfplay_gym.training.distributed import Ranks
    from selfplay_gym.training.rollouts import Row

LOGITS = 2**26
"""Logits of one forward pass at most, if more than one row: 256 MiB in float32."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Differences of log-probs, trainer less sampler, over tokens drawn by the sampler.

    Attributes:
        tokens: How many.
        absolute: Sum of the absolute differences.
        largest: Largest absolute difference.
        divergence: Sum of the tokens' estimates of KL(sampler || trainer): ``exp(d) - 1 - d``, never negative and
            unbiased (k3 of http://joschu.net/blog/kl-approx.html).
    """

    tokens: int = 0
    absolute: float = 0.0
    largest: float = 0.0
    divergence: float = 0.0

    @classmethod
    def of(cls, sampler: Sequence[float], trainer: Sequence[float]) -> Mismatch:
        """Compare the log-probs of the same tokens.

        >>> found = Mismatch.of([-1.0, -2.0], [-1.0, -2.5])
        >>> found.metrics()["mismatch/mean"], found.metrics()["mismatch/max"], round(found.metrics()["mismatch/kl"], 4)
        (0.25, 0.5, 0.0533)
        """
        gaps = [ours - theirs for theirs, ours in zip(sampler, trainer, strict=True)]
        sizes = [abs(gap) for gap in gaps]
        # A gap beyond 700 has no exponential; the estimate is astronomic there anyway.
        return cls(
            len(gaps), math.fsum(sizes), max(sizes, default=0.0), math.fsum(math.expm1(min(d, 700.0)) - d for d in gaps)
        )

    @classmethod
    def total(cls, parts: Iterable[Mismatch]) -> Mismatch:
        """Return what the parts say together."""
        parts = list(parts)
        return cls(
            sum(part.tokens for part in parts),
            math.fsum(part.absolute for part in parts),
            max((part.largest for part in parts), default=0.0),
            math.fsum(part.divergence for part in parts),
        )

    def metrics(self) -> dict[str, float]:
        """Return means a token, and the maximum; nothing without tokens."""
        if not self.tokens:
            return {}
        mean, divergence = self.absolute / self.tokens, self.divergence / self.tokens
        return {"mismatch/mean": mean, "mismatch/max": self.largest, "mismatch/kl": divergence}


def measure(rows: Sequence[Row], count: int, trainer: Any, ranks: Ranks) -> Mismatch:
    """Compare about ``count`` of the step's rows with what the trainer's model makes of them.

    Called on every rank with the same rows; every rank makes equally many forward passes, as sharded weights need it.
    """
    chosen = spread(rows, count, ranks.world)
    if not chosen:
        return Mismatch()
    longest = max(len(row.prompt_ids) for row in chosen) + max(len(row.sample.ids) for row in chosen)
    model = trainer.accelerator.unwrap_model(trainer.model)
    together = max(1, LOGITS // (longest * model.config.get_text_config().vocab_size))
    # Fewer rows than ranks: each rank takes them all, which changes no mean.
    mine = ranks.shard(chosen) if len(chosen) >= ranks.world else chosen
    with _evaluating(model), torch.no_grad(), trainer.accelerator.autocast():
        parts = [_compare(mine[at : at + together], trainer) for at in range(0, len(mine), together)]
    return Mismatch.total(ranks.gather(Mismatch.total(parts)))


def spread(rows: Sequence[Row], count: int, world: int) -> list[Row]:
    """Return about ``count`` rows, evenly spaced, a multiple of ``world`` where there are enough."""
    count = min(-(-count // world) * world, len(rows))
    count -= count % world if count >= world else 0
    return [rows[place * len(rows) // count] for place in range(count)]


def _compare(rows: Sequence[Row], trainer: Any) -> Mismatch:
    """Run the rows as TRL does: prompts padded on the left, completions on the right."""
    device, padding = trainer.accelerator.device, trainer.processing_class.pad_token_id or 0
    before = max(len(row.prompt_ids) for row in rows)
    after = max(len(row.sample.ids) for row in rows)
    ids = torch.full((len(rows), before + after), padding, device=device)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        here = slice(before - len(row.prompt_ids), before + len(row.sample.ids))
        ids[place, here] = torch.tensor([*row.prompt_ids, *row.sample.ids], device=device)
        mask[place, here] = 1
    # Without a cache, as in the update: there each row has the temperature of its role (`RoleTemperatures`).
    outputs = trainer.model_wrapped(input_ids=ids, attention_mask=mask, use_cache=False)
    logits = outputs.logits[:, before - 1 : -1]
    parts = []
    for row, table in zip(rows, logits, strict=True):
        drawn = torch.tensor(row.sample.ids, device=device)
        logprobs = (table[: len(drawn)].float() / trainer.args.temperature).log_softmax(-1)
        parts.append(Mismatch.of(row.sample.logprobs, logprobs.gather(-1, drawn[:, None])[:, 0].tolist()))
    return Mismatch.total(parts)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Switch dropout off: it would show as a mismatch. Every module then goes back to its own mode."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
