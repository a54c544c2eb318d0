"""A policy to sample from: a model, its tokenizer and a back-end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfplay_gym.training.backends import make_backend
from selfplay_gym.training.generation import GenerationBackend, Request, Sample, row_seed, stop_token_ids
from selfplay_gym.training.loading import check_source, check_template, describe, load_model, load_tokenizer
from selfplay_gym.training.vllm import VLLMBackend, start_engine


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
        check_source(str(source))
        tokenizer = load_tokenizer(str(source))
        model = load_model(str(source), dtype=dtype, device=device)
        return cls(model, tokenizer, make_backend(model, tokenizer, backend, batch_size=batch_size, memory=memory))

    @classmethod
    def in_vllm(cls, source: str | Path, *, memory: float = 0.9, parallel: int = 1) -> Policy:
        """Load a model into vLLM; of the model itself only its configuration is then held here.

        Args:
            source: As for `load`, without adapters.
            memory: Share of each GPU's memory for the engine.
            parallel: GPUs that share one copy of the weights.

        Raises:
            InvalidConfig: Nothing loadable there, or adapters, or vLLM is not installed.
            SelfPlayError: The engine did not start.
        """
        check_source(str(source))
        tokenizer, model = load_tokenizer(str(source)), describe(str(source))
        backend = VLLMBackend(stop_token_ids(model, tokenizer), model.config.vocab_size)
        backend.use(start_engine(str(source), gpu_memory=memory, tensor_parallel=parallel))
        return cls(model, tokenizer, backend)

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
            completions += self.complete(requests[start : start + self.CHUNK])
            if progress is not None:
                progress(len(completions))
        return completions

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Return one completion a request, in their order."""
        return [Completion(self.decode(sample.ids), sample) for sample in self.backend.generate(requests)]
