"""The ways to sample a policy through transformers, and the choice among all of them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessor, LogitsProcessorList

from selfplay_gym.errors import InvalidConfig, SelfPlayError, UnknownId
from selfplay_gym.training.decoding import DecodeLoop, supports
from selfplay_gym.training.generation import (
    GenerationBackend,
    Request,
    Sample,
    Sampler,
    batches,
    row_seed,
    sharded,
    stop_token_ids,
    trim,
)
from selfplay_gym.training.vllm import VLLMBackend

BACKENDS = ("auto", "decode_loop", "transformers", "continuous", "vllm")
SMALL_MODEL = 50_000_000
"""Parameters below which the decode loop is chosen on CPU; above, the matrix products are all that counts."""


# -- any causal language model ----------------------------------------------------------------------------------------


class TransformersBackend:
    """Samples with ``model.generate``: any causal language model, on any device.

    The model is in eval mode meanwhile (dropout would make the sampler another policy) and back in its former mode
    afterwards. The checkpoint's own generation settings are set aside, all but its stop tokens: ``generate`` would
    otherwise fill in their top-k, top-p and penalties. Where the weights are sharded over ranks (FSDP2, ZeRO-3), a
    layer runs on all ranks or on none: each must then ask for equally many samples.

    Args:
        model: Unwrapped ``transformers`` model; its weights are read at each call.
        tokenizer: For its EOS and padding tokens.
        batch_size: Rows at a time.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = 128) -> None:
        self.model, self.batch_size = model, batch_size
        self.stop = stop_token_ids(model, tokenizer)
        padding = tokenizer.pad_token_id
        self.pad_id = padding if padding is not None else min(self.stop, default=0)

    @property
    def collective(self) -> bool:
        """Whether all ranks must generate equally many samples together, since each holds a part of every layer."""
        return sharded(self.model)

    @torch.no_grad()
    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        """Return one sample a request, in their order."""
        samples: dict[int, Sample] = {}
        with _own_settings(self.model):
            for indices in batches(requests, self.batch_size):
                rows = [requests[i] for i in indices]
                samples.update(zip(indices, self._generate_batch(rows), strict=True))
        return [samples[i] for i in range(len(requests))]

    def _generate_batch(self, requests: Sequence[Request]) -> list[Sample]:
        device = self.model.device
        width = max(len(request.prompt_ids) for request in requests)
        gaps = [width - len(request.prompt_ids) for request in requests]
        ids = [[self.pad_id] * gap + list(request.prompt_ids) for gap, request in zip(gaps, requests, strict=True)]
        mask = [[0] * gap + [1] * (width - gap) for gap in gaps]
        picker = _Picker(requests, self.stop, device)
        self.model.generate(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=max(request.max_new_tokens for request in requests),
                eos_token_id=sorted(self.stop) or None,
                pad_token_id=self.pad_id,
                use_cache=True,
            ),
            logits_processor=LogitsProcessorList([picker]),
            synced_gpus=self.collective,  # go on until the longest row of any rank is done
        )
        return trim(requests, torch.stack(picker.ids, 1), torch.stack(picker.logprobs, 1), self.stop)


class _Picker(LogitsProcessor):  # type: ignore[misc]  # transformers has no types
    """Samples inside ``generate`` and keeps what it drew; the scores it returns leave only that token.

    Keeping one log-prob a token instead of ``output_logits`` saves steps x vocabulary floats a row.
    """

    def __init__(self, requests: Sequence[Request], stop: Collection[int], device: torch.device) -> None:
        self.sampler = Sampler(requests, device)
        self.limits = torch.tensor([request.max_new_tokens for request in requests], device=device)
        self.longest = max(request.max_new_tokens for request in requests)
        self.stop_id = min(stop, default=None)
        self.ids: list[torch.Tensor] = []
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = len(self.ids)
        ids, logprobs = self.sampler(scores, min(step, self.longest - 1))
        self.ids.append(ids)
        self.logprobs.append(logprobs)
        if self.stop_id is not None:  # rows at their own limit need not wait for the batch's longest
            ids = torch.where(self.limits <= step, self.stop_id, ids)
        return torch.full_like(scores, -math.inf).scatter_(1, ids[:, None], 0.0)


@contextmanager
def _own_settings(model: Any) -> Iterator[None]:
    """Put every module in eval mode and empty the model's generation settings, then restore both."""
    modes = {module: module.training for module in model.modules()}
    settings = model.generation_config
    try:
        model.eval()
        model.generation_config = GenerationConfig()
        yield
    finally:
        model.generation_config = settings
        for module, mode in modes.items():
            module.training = mode


# -- continuous batching ----------------------------------------------------------------------------------------------


class ContinuousBackend:
    """Samples with transformers' continuous batching: rows that are done make room for others at once.

    For GPUs without vLLM. It runs on CPU too, where ``generate`` is several times faster. The log-probs come from the
    same forward as the samples, temperature included.

    Args:
        model: Unwrapped ``transformers`` model; its weights are read at each call.
        tokenizer: For its EOS and padding tokens.
        memory: Share of the free memory for the cache of keys and values.
    """

    def __init__(self, model: Any, tokenizer: Any, memory: float = 0.5) -> None:
        self.model, self.memory = model, memory
        self.stop = stop_token_ids(model, tokenizer)
        self.pad_id = tokenizer.pad_token_id

    @torch.no_grad()
    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        """Return one sample a request, in their order.

        Raises:
            SelfPlayError: The batch failed, on a full GPU for example; the log says why. Or the weights are sharded.
        """
        if sharded(self.model):  # each rank goes on for as long as its own rows need, so they would wait for ever
            raise SelfPlayError(
                "continuous batching needs whole weights in each process, and these are sharded (FSDP2 or ZeRO-3): use "
                "the backend 'transformers' or 'vllm'"
            )
        kinds: dict[tuple[float, int], list[int]] = {}
        for place, request in enumerate(requests):  # one call has one temperature and one limit
            kinds.setdefault((request.temperature, request.max_new_tokens), []).append(place)
        samples: dict[int, Sample] = {}
        for places in kinds.values():
            samples.update(zip(places, self._generate_kind([requests[i] for i in places]), strict=True))
        return [samples[i] for i in range(len(requests))]

    def _generate_kind(self, requests: Sequence[Request]) -> list[Sample]:
        first, device = requests[0], self.model.device
        how = GenerationConfig(
            do_sample=first.temperature > 0,
            temperature=first.temperature or None,
            top_k=0,
            max_new_tokens=first.max_new_tokens,
            eos_token_id=sorted(self.stop) or -1,
            pad_token_id=self.pad_id,
        )
        batching = ContinuousBatchingConfig(return_logprobs=True, max_memory_percent=self.memory)
        prompts = [list(request.prompt_ids) for request in requests]
        with _own_settings(self.model), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(row_seed(*(request.seed for request in requests)) % 2**63)
            # Graphs are captured anew for each call, and would be for each shape of a step: not worth it.
            outputs = self.model.generate_batch(prompts, how, batching, warmup=False)
        self._check(outputs, len(requests))
        return [self._sample(request, output) for request, output in zip(requests, outputs.values(), strict=True)]

    def _check(self, outputs: dict[str, Any], count: int) -> None:
        """Raise where transformers only logs what went wrong and leaves it out."""
        errors = [output.error for output in outputs.values() if output.error]
        if errors or len(outputs) != count:
            reason = errors[0] if errors else "see the log"
            raise SelfPlayError(
                f"continuous batching completed {len(outputs) - len(errors)} of {count} prompts ({reason}): lower "
                "continuous.memory if memory ran out, raise it if the cache is too small, or use the backend "
                "'transformers'"
            )

    def _sample(self, request: Request, output: Any) -> Sample:
        ids, logprobs = torch.tensor([output.generated_tokens]), torch.tensor([output.logprobs])
        return trim([request], ids, logprobs, self.stop)[0]


# -- choosing ---------------------------------------------------------------------------------------------------------


def make_backend(
    model: Any,
    tokenizer: Any,
    name: str = "auto",
    *,
    batch_size: int = 128,
    dtype: torch.dtype | None = None,
    memory: float = 0.5,
) -> GenerationBackend:
    """Return the named back-end; ``auto`` takes the decode loop for small models it knows on CPU, else transformers.

    Args:
        model: The policy; shared, never copied.
        tokenizer: Its tokenizer.
        name: One of `BACKENDS`.
        batch_size: Rows at a time.
        dtype: The decode loop's matrix products; the model's own by default. transformers always uses the model's.
        memory: Share of the free memory that continuous batching takes for its cache.

    Raises:
        UnknownId: No such back-end.
        InvalidConfig: The decode loop was asked for and does not know the model's architecture.
    """
    if name not in BACKENDS:
        near = difflib.get_close_matches(name, BACKENDS) or list(BACKENDS)
        raise UnknownId(f"no generation backend {name!r}; did you mean one of {near}?")
    if name == "vllm":
        return VLLMBackend(stop_token_ids(model, tokenizer), model.config.vocab_size)
    if name == "continuous":
        return ContinuousBackend(model, tokenizer, memory)
    known = supports(model)
    if name == "decode_loop" and not known:
        raise InvalidConfig(
            f"the decode loop knows plain Qwen3, Qwen2 and Llama models, not this {type(model).__name__}; "
            "use the backend 'transformers'"
        )
    small = model.device.type == "cpu" and model.num_parameters() < SMALL_MODEL
    if name == "decode_loop" or (name == "auto" and known and small):
        return DecodeLoop(model, batch_size, dtype, stop=stop_token_ids(model, tokenizer))
    return TransformersBackend(model, tokenizer, batch_size)


class WithStart:
    """Keeps the weights that a policy has now, and samples from them what is asked ``from_start``.

    Args:
        present: Samples everything else.
        start: Samples from a copy of the model, which nothing trains.
    """

    def __init__(self, present: GenerationBackend, start: GenerationBackend) -> None:
        self.present, self.start = present, start

    @property
    def collective(self) -> bool:
        """Whether all ranks must generate equally many samples together; a call asks for the same weights on each."""
        return bool(getattr(self.present, "collective", False))

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        """Return one sample a request, in their order."""
        samples: dict[int, Sample] = {}
        for backend, from_start in ((self.start, True), (self.present, False)):
            places = [n for n, request in enumerate(requests) if request.from_start is from_start]
            if places:
                samples.update(zip(places, backend.generate([requests[n] for n in places]), strict=True))
        return [samples[n] for n in range(len(requests))]
