"""How the policy is sampled: one small protocol, and the back-ends behind it.

The odd decision is who draws the random numbers. Each request carries its own seed, from which every back-end takes
one uniform number a token and inverts the distribution's running sum. So a sample is a function of prompt, weights and
seed: it does not depend on which rows share its batch, on the rank, or on torch's global generator, and two back-ends
give the same sample. All of it holds up to rounding: logits that differ in the last bit, as they do between batch
shapes, may tip a draw that lies within about 1e-6 of the border between two tokens. Two back-ends sample by themselves:
vLLM draws from a generator of its own for each row, given the row's seed, and continuous batching from torch's, seeded
for each call by the requests.

Only plain temperature is offered. Under top-k, top-p or penalties the sampler's distribution is not the one whose
log-probabilities the update uses.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from transformers.integrations import is_deepspeed_zero3_enabled

from selfplay_gym.errors import InvalidConfig, SelfPlayError


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to complete.

    Attributes:
        prompt_ids: At least one token.
        max_new_tokens: Length at which the completion is cut, stop token included.
        temperature: Divides the logits; 0.0 takes the likeliest token.
        seed: The row's own seed, any integer: the same one gives the same sample in any batch.
        from_start: Sample from the weights that the run began with; see `WithStart`.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    temperature: float
    seed: int
    from_start: bool = False

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise InvalidConfig("prompt_ids must hold at least one token, got none")
        if self.max_new_tokens < 1:
            raise InvalidConfig(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InvalidConfig(f"temperature must be 0 (greedy) or a positive number, got {self.temperature}")


@dataclass(frozen=True, slots=True)
class Sample:
    """A completion.

    Attributes:
        ids: The sampled tokens, at least one; the last is the stop token when ``finished``.
        logprobs: Of each id under the distribution it was drawn from, temperature included; under the untempered
            distribution for greedy requests.
        finished: A stop token was reached; otherwise the completion was cut.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool


class GenerationBackend(Protocol):
    """Completes prompts with the policy's present weights."""

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        """Return one sample a request, in their order."""
        ...


def row_seed(*parts: int | str) -> int:
    """Return a 128-bit seed for what the parts name, such as run seed, step and row.

    >>> row_seed(0, "solve", 3) == row_seed(0, "solve", 3), row_seed(1, 23) == row_seed(12, 3)
    (True, False)
    """
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=16).digest(), "big")


# -- what the back-ends share --------------------------------------------------------------------------------------


class Sampler:
    """Draws the next token of each row of a batch from the row's own stream of random numbers.

    The stream is Philox, a counter-based generator keyed by the seed. Uniforms have 32 bits, so that in float64 their
    product with a running sum stays below the sum's end and a token of probability zero is never drawn.
    """

    def __init__(self, requests: Sequence[Request], device: torch.device) -> None:
        temperatures = torch.tensor([request.temperature for request in requests], device=device)
        longest = max(request.max_new_tokens for request in requests)
        draws = np.zeros((longest, len(requests), 1), dtype=np.float64)
        for row, request in enumerate(requests):
            if request.temperature:
                draws[: request.max_new_tokens, row, 0] = _uniforms(request.seed, request.max_new_tokens)
        self.uniforms = torch.from_numpy(draws).to(device)
        self.greedy = temperatures == 0
        self.scale = torch.where(self.greedy, 1.0, temperatures)[:, None]
        self._note_kinds()

    def _note_kinds(self) -> None:
        self.any_greedy, self.all_greedy = bool(self.greedy.any()), bool(self.greedy.all())

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows only."""
        self.uniforms = self.uniforms[:, rows]
        self.greedy, self.scale = self.greedy[rows], self.scale[rows]
        self._note_kinds()

    def __call__(self, logits: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids, int64 (rows,), and their log-probs, float32 (rows,), for logits (rows, vocabulary)."""
        logprobs = torch.log_softmax(logits.float() / self.scale, dim=-1)
        if self.all_greedy:
            ids = logprobs.argmax(-1)
        else:
            sums = logprobs.exp().cumsum(-1, dtype=torch.float64)
            ids = torch.searchsorted(sums, self.uniforms[step] * sums[:, -1:], right=True)[:, 0]
            ids = ids.clamp_(max=logits.shape[-1] - 1)  # only reached when the logits are not numbers
            if self.any_greedy:
                ids = torch.where(self.greedy, logprobs.argmax(-1), ids)
        return ids, logprobs.gather(-1, ids[:, None])[:, 0]


def _uniforms(seed: int, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    stream = np.random.Generator(np.random.Philox(key=seed % 2**128))
    return stream.integers(2**32, size=count, dtype=np.uint32) / 2.0**32


def batches(requests: Sequence[Request], batch_size: int) -> Iterator[list[int]]:
    """Yield the requests' indices in batches of similar prompt length, equal prompts side by side."""
    order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt_ids), requests[i].prompt_ids))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def trim(requests: Sequence[Request], ids: torch.Tensor, logprobs: torch.Tensor, stop: Collection[int]) -> list[Sample]:
    """Cut each row of ``ids`` and ``logprobs``, both (rows, steps), after its first stop token or at its limit."""
    samples = []
    for request, row, values in zip(requests, ids.tolist(), logprobs.tolist(), strict=True):
        row = row[: request.max_new_tokens]
        length = next((place + 1 for place, token in enumerate(row) if token in stop), 0)
        kept = values[: length or len(row)]
        if not all(map(math.isfinite, kept)):
            raise SelfPlayError(
                "the policy's logits are not numbers: its weights have diverged; lower the learning rate"
            )
        samples.append(Sample(tuple(row[: len(kept)]), tuple(kept), finished=length > 0))
    return samples


def stop_token_ids(model: Any, tokenizer: Any = None) -> frozenset[int]:
    """Return the tokenizer's EOS and every stop id that the checkpoint's generation settings name."""
    configured = model.generation_config.eos_token_id
    ids = {configured} if isinstance(configured, int) else set(configured or ())
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return frozenset(ids)


def sharded(model: Any) -> bool:
    """Return whether this process holds a part of each layer alone (FSDP2, ZeRO-3)."""
    parts = any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in model.parameters())
    return parts or bool(is_deepspeed_zero3_enabled())
