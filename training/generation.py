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

import difflib
import hashlib
import math
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from torch.distributed.tensor import DTensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ContinuousBatchingConfig,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import find_adapter_config_file, logging

from selfplay_gym.errors import InvalidConfig, SelfPlayError, UnknownId

BACKENDS = ("auto", "decode_loop", "transformers", "continuous", "vllm")
SMALL_MODEL = 50_000_000
"""Parameters below which the decode loop is chosen on CPU; above, the matrix products are all that counts."""


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
    from selfplay_gym.training.decoding import DecodeLoop, supports  # they build on this module
    from selfplay_gym.training.vllm import VLLMBackend

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


# -- a policy to evaluate ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Completion:
    """The text of a sample, special tokens left out, beside the sample itself."""

    text: str
    sample: Sample


class Policy:
    """A model, its tokenizer and the way it is sampled."""

    CHUNK = 512

    def __init__(self, model: Any, tokenizer: Any, backend: GenerationBackend | None = None) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.backend = backend if backend is not None else make_backend(model, tokenizer)

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        dtype: str = "auto",
        device: str = "auto",
        backend: str = "auto",
        batch_size: int = 128,
        memory: float = 0.5,
    ) -> Policy:
        """Load a checkpoint folder or a model of the Hugging Face hub.

        Args:
            source: Folder written by ``save_pretrained``, or the hub's id; adapters are merged into their base model.
            dtype: ``auto`` (the checkpoint's), ``float32``, ``bfloat16`` or ``float16``.
            device: ``auto`` (CUDA where there is one, the process's own GPU of several), or a torch device such as
                ``cpu`` or ``cuda:1``.
            backend: See `make_backend`.
            batch_size: See `make_backend`.
            memory: See `make_backend`.

        Raises:
            InvalidConfig: Nothing loadable there, weights or a tokenizer that are missing or do not fit, or an
                impossible dtype or device.
        """
        where, precision = find_device(device), _dtype(dtype)
        check_source(str(source))
        tokenizer = load_tokenizer(str(source))
        with _explained(str(source)):
            model = _load_model(str(source), precision)
        generating = make_backend(model.to(where).eval(), tokenizer, backend, batch_size=batch_size, memory=memory)
        return cls(model, tokenizer, generating)

    def encode(self, prompt: str, chat: bool) -> tuple[int, ...]:
        """Return the prompt's tokens, begin-of-sequence token included where the tokenizer adds one.

        With ``chat`` the prompt is the user's message under the tokenizer's template, which brings its own special
        tokens, and the assistant's turn is opened.

        Raises:
            InvalidConfig: ``chat`` without a chat template.
        """
        if not chat:
            # Not verbose: what is longer than the model reads is dealt with by its length, and not once but always.
            return self._without_eos(self.tokenizer(prompt, verbose=False)["input_ids"])
        check_template(self.tokenizer)
        messages = [{"role": "user", "content": prompt}]
        return tuple(
            self.tokenizer.apply_chat_template(
                messages,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                tokenizer_kwargs={"verbose": False},
            )
        )

    def _without_eos(self, ids: list[int]) -> tuple[int, ...]:
        """Drop the end token that some tokenizers append: after it there is nothing to complete."""
        end = self.tokenizer.eos_token_id
        appended = len(ids) > 1 and ids[-1] == end and self.tokenizer("")["input_ids"][-1:] == [end]
        return tuple(ids[:-1] if appended else ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the tokens, special ones skipped, spaces as they are."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def sample(
        self,
        prompts: Sequence[str],
        *,
        chat: bool,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        progress: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """Return one completion a prompt, in order; repeat a prompt for several samples of it.

        The row's seed comes from ``seed`` and its place. ``progress`` is told how many are done after each `CHUNK`.
        """
        requests = [
            Request(self.encode(prompt, chat), max_new_tokens, temperature, row_seed(seed, place))
            for place, prompt in enumerate(prompts)
        ]
        completions: list[Completion] = []
        for start in range(0, len(requests), self.CHUNK):
            samples = self.backend.generate(requests[start : start + self.CHUNK])
            completions += [Completion(self.decode(sample.ids), sample) for sample in samples]
            if progress is not None:
                progress(len(completions))
        return completions


def load_tokenizer(source: str) -> Any:
    """Return the tokenizer of a checkpoint folder or a model of the hub.

    Raises:
        InvalidConfig: There is none.
    """
    with _explained(source):
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
    # Without its files transformers makes one up, which knows the special tokens of the model type and no letter.
    if tokenizer("a")["input_ids"] == tokenizer("b")["input_ids"]:
        raise InvalidConfig(
            f"{source!r} lacks its tokenizer: expected tokenizer.json, or the vocabulary files of its kind, beside the "
            "weights; copy them from where the model comes from"
        )
    return tokenizer


def check_template(tokenizer: Any) -> None:
    """Refuse a tokenizer that cannot write chats.

    Raises:
        InvalidConfig: It has no chat template.
    """
    if not tokenizer.chat_template:
        raise InvalidConfig(
            "style chat needs a tokenizer with a chat template, and the model's has none: choose the style azr, or "
            "compact for the nano policy"
        )


def _load_model(source: str, dtype: torch.dtype | str) -> Any:
    """Load a causal language model; where there are adapters, load what they adapt and merge them into it."""
    if find_adapter_config_file(source) is None:
        # Sizes that do not fit are then told with the rest, not as a table on the terminal.
        model, found = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, ignore_mismatched_sizes=True, output_loading_info=True
        )
        _refuse_parts(source, model, found)
        return model
    from peft import PeftConfig, PeftModel  # slow to import

    base = _load_model(PeftConfig.from_pretrained(source).base_model_name_or_path, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # what peft calls by an old name of transformers
        warnings.filterwarnings("error", message="Found missing adapter keys")  # they would be zeros
        model = PeftModel.from_pretrained(base, source).merge_and_unload()
    # Adapters that are trained on top of it name it as their base.
    model.name_or_path = model.config._name_or_path = source
    return model


def _refuse_parts(source: str, model: Any, found: Mapping[str, Any]) -> None:
    """Refuse a model of which a part is random; tied weights count as there when one of them is.

    Raises:
        InvalidConfig: Weights are missing from the checkpoint, or have other sizes than its configuration says.
    """
    missing = sorted(found["missing_keys"])
    if missing:
        parts = f"{len(missing)} of its {len(model.state_dict())} weights are missing, {missing[0]} among them"
    elif found["mismatched_keys"]:
        name, stored, expected = sorted(found["mismatched_keys"])[0]
        parts = f"its {name} has the size {list(stored)}, where its configuration asks for {list(expected)}"
    else:
        return
    raise InvalidConfig(
        f"the model {source!r} is not whole: {parts}; get the checkpoint again, or mend model_type and sizes in its "
        "config.json"
    )


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """Say in one line why a model or its tokenizer cannot be loaded."""
    try:
        with silent():
            yield
    except SelfPlayError:
        raise
    except Exception as error:  # hub, file and parser errors share no base
        raise InvalidConfig(_cannot_load(source, f"{type(error).__name__}: {error}")) from error


@contextmanager
def silent() -> Iterator[None]:
    """Keep transformers from bars, reports and warnings around files of models."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def find_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is CUDA where there is one, the process's own GPU of several.

    Raises:
        InvalidConfig: No device has that name, or there is no GPU.
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        # Of several processes each its own: on plain `cuda` all would load their weights into the first one's memory.
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidConfig(
            f"device must be 'auto' or a torch device such as 'cpu' or 'cuda:0', got {name!r}"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidConfig(f"device {name!r} was asked for, but torch sees no GPU; use 'cpu' or 'auto'")
    return device


def _dtype(name: str) -> torch.dtype | str:
    if name not in ("auto", "float32", "bfloat16", "float16"):
        raise InvalidConfig(f"dtype must be 'auto', 'float32', 'bfloat16' or 'float16', got {name!r}")
    dtype: torch.dtype | str = name if name == "auto" else getattr(torch, name)
    return dtype


def check_source(source: str) -> None:
    """Refuse what is plainly no model before the hub is asked for it."""
    path = Path(source)
    if path.is_dir():
        if not ((path / "config.json").is_file() or (path / "adapter_config.json").is_file()):
            found = sorted(entry.name for entry in path.iterdir())
            listed = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "") or "nothing"
            inside = f" (perhaps {path / 'model'} is meant)" if (path / "model" / "config.json").is_file() else ""
            raise InvalidConfig(_cannot_load(source, f"a folder without config.json that holds {listed}{inside}"))
    elif path.exists():
        raise InvalidConfig(_cannot_load(source, "a file"))
    elif source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise InvalidConfig(_cannot_load(source, "the path of no folder"))
    else:
        _check_hub(source)


def _check_hub(source: str) -> None:
    """Ask the hub once: a wrong name or a missing network is told at once, where downloads retry for a minute."""
    try:
        cached = (try_to_load_from_cache(source, name) for name in ("config.json", "adapter_config.json"))
        if not any(isinstance(path, str) for path in cached):
            HfApi().model_info(source, timeout=10)
    except Exception as error:  # the hub's own errors and those of its HTTP library share no base
        raise InvalidConfig(_cannot_load(source, f"{type(error).__name__}: {error}")) from error


def _cannot_load(source: str, found: str) -> str:
    """Say on one line what was expected, what came and what to do."""
    return (
        f"cannot load a model from {source!r}: expected a folder with config.json, weights and tokenizer (as "
        "save_pretrained writes), or the id of a causal language model on the hub, but got "
        f"{' '.join(found.split())[:300]}; check the path, or download the model first where there is no network"
    )
