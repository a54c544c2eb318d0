"""vLLM as a back-end, hosted by TRL: TRL starts or reaches the engine and hands it the weights after each update.

The odd decision is to ask the engine ourselves, a row at a time. TRL's own `generate` gives all prompts of a call one
set of sampling parameters, and with it one seed, so that the attempts at a task would all be the same. Asked row by
row, vLLM draws each from its own seed; its scheduler batches them again and its prefix cache reads equal prompts once.

What a server answers is checked before it is believed: a broken engine ends the step, and with it what the step would
have written to the archive. It never becomes a wrong answer of the policy.
"""

from __future__ import annotations

import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Protocol

import torch

from selfplay_gym.errors import InvalidConfig, SelfPlayError
from selfplay_gym.training.config import VLLM, RunConfig
from selfplay_gym.training.generation import Request, Sample

CONCURRENT = 64
"""Requests a server is sent at a time, as many connections as TRL's client keeps."""

TRIES = 3
"""Further tries after a broken connection, and when the server says it is overloaded. A silent server gets none."""

ROUNDING = 1e-3
"""By how much a log-probability may exceed 0."""

Answer = tuple[list[int], list[float]]
"""Token ids and their log-probs."""


class Engine(Protocol):
    """Completes prompts, wherever it runs."""

    def complete(self, requests: Sequence[Request], stop: Collection[int]) -> list[Answer]:
        """Return an answer a request, in their order, not yet checked."""
        ...


class VLLMBackend:
    """Samples with the engine of a trainer, once it is attached to one.

    Args:
        stop: Stop tokens.
        vocabulary: How many tokens the model knows.
    """

    def __init__(self, stop: Collection[int], vocabulary: int) -> None:
        self.stop, self.vocabulary = frozenset(stop), vocabulary
        self._engine: Engine | None = None
        self._sync: Callable[[], None] | None = None

    def attach(self, generation: Any, settings: VLLM) -> None:
        """Sample from now on with TRL's ``VLLMGeneration`` of a trainer.

        In server mode only rank 0 has a client; the others must not be asked (`SharedGenerator`, ``central``).
        """
        self._sync = generation.sync_weights
        generation.sync_weights = self.sync  # TRL calls it before each step: let its failures be told in one line
        if settings.mode == "colocate":
            self.use(Colocated(generation.llm, getattr(generation, "tp_group", None)))
        elif hasattr(generation, "vllm_client"):
            self.use(Server(generation.vllm_client, settings.answer_seconds))

    def use(self, engine: Engine) -> None:
        """Sample from now on with this engine."""
        self._engine = engine

    def sync(self) -> None:
        """Hand the present weights over; on all ranks at once. TRL does it by itself before each step of training.

        Raises:
            SelfPlayError: The engine did not take them.
        """
        if isinstance(self._engine, Server):
            self._engine.check()  # the hand-over itself would wait for ever for a server that has gone
        if self._sync is not None:
            with handing_over():
                self._sync()

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        """Return one sample a request, in their order.

        Raises:
            SelfPlayError: The engine is down, too slow, or answers what cannot be.
        """
        if self._engine is None:
            raise SelfPlayError(
                "the backend 'vllm' has no engine yet: a trainer attaches one, and `Policy.in_vllm` starts one"
            )
        answers = self._engine.complete(requests, self.stop)
        return [self._sample(request, *answer) for request, answer in zip(requests, answers, strict=True)]

    def _sample(self, request: Request, ids: list[int], logprobs: list[float]) -> Sample:
        sample = Sample(tuple(ids), tuple(logprobs), finished=bool(ids) and ids[-1] in self.stop)
        if wrong := self._wrong(request, sample):
            raise SelfPlayError(
                f"vLLM gave a completion that cannot be: {wrong}; check that it serves this run's model and no other "
                "run uses it"
            )
        return sample

    def _wrong(self, request: Request, sample: Sample) -> str:
        """Say what is wrong with a sample, if anything is."""
        ids, logprobs, most = sample.ids, sample.logprobs, request.max_new_tokens
        if len(ids) != len(logprobs):
            return f"{len(ids)} tokens with {len(logprobs)} log-probs"
        if any(type(token) is not int or not 0 <= token < self.vocabulary for token in ids):
            return f"token ids outside 0 to {self.vocabulary - 1}"
        if any(token in self.stop for token in ids[:-1]):
            return "tokens after a stop token"
        if len(ids) > most or (len(ids) < most and not sample.finished):
            return f"{len(ids)} tokens without a stop token where {most} were asked for"
        if not all(
            isinstance(value, (int, float)) and math.isfinite(value) and value <= ROUNDING for value in logprobs
        ):
            return "log-probs that are not numbers below 0"
        return ""


# -- a server ----------------------------------------------------------------------------------------------------------


class Server:
    """A vLLM server, reached through TRL's client.

    Args:
        client: TRL's ``VLLMClient``. It would wait for ever for an answer: its connections get time-outs here.
        answer_seconds: How long one completion may take.
    """

    def __init__(self, client: Any, answer_seconds: float) -> None:
        self.client, self.answer_seconds = client, answer_seconds
        adapter = _adapter(answer_seconds)
        client.session.mount("http://", adapter)
        client.session.mount("https://", adapter)

    def check(self) -> None:
        """Return if the server is up.

        Raises:
            SelfPlayError: It is not.
        """
        with self._explained():
            self.client.session.get(f"{self.client.base_url}/health").raise_for_status()

    def complete(self, requests: Sequence[Request], stop: Collection[int]) -> list[Answer]:
        """Return an answer a request, in their order.

        Raises:
            SelfPlayError: The server is down or too slow, or TRL's client cannot read what it answers.
        """
        if not requests:
            return []
        with self._explained(), ThreadPoolExecutor(min(CONCURRENT, len(requests))) as pool:
            return list(pool.map(lambda request: self._complete(request, stop), requests))

    def _complete(self, request: Request, stop: Collection[int]) -> Answer:
        output = self.client.generate(
            [list(request.prompt_ids)],
            temperature=request.temperature,
            max_tokens=request.max_new_tokens,
            generation_kwargs={"seed": request.seed % 2**63, "stop_token_ids": sorted(stop)},
        )
        (ids,), (values,), (tokens,) = output["completion_ids"], output["logprobs"], output["logprob_token_ids"]
        pairs = zip(ids, values, tokens, strict=True)
        return ids, [dict(zip(near, scores, strict=True))[token] for token, scores, near in pairs]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say in one line what is wrong with the server. TRL raises plain exceptions, so that any may be one."""
        import requests

        where = f"the vLLM server at {self.client.base_url}"
        try:
            yield
        except requests.Timeout as error:
            raise SelfPlayError(
                f"{where} gave no answer within {self.answer_seconds:g} s: check its log, or raise vllm.answer_seconds"
            ) from error
        except requests.ConnectionError as error:
            raise SelfPlayError(f"{where} cannot be reached: start it again, then go on with --resume") from error
        except Exception as error:
            raise SelfPlayError(
                f"{where} gave an answer that is no completion ({_one_line(error)}): check its log and its version"
            ) from error


def _adapter(answer_seconds: float) -> Any:
    """Return a transport of ``requests`` with time-outs; a try again has the same seed and so the same answer."""
    from requests.adapters import HTTPAdapter
    from urllib3.exceptions import ReadTimeoutError
    from urllib3.util.retry import Retry

    class TimedAdapter(HTTPAdapter):  # type: ignore[misc]  # requests comes with vLLM alone
        def send(self, request: Any, *arguments: Any, timeout: Any = None, **settings: Any) -> Any:
            return super().send(request, *arguments, timeout=timeout or (10.0, answer_seconds), **settings)

    class Tries(Retry):  # type: ignore[misc]  # nor has urllib3 types here
        def increment(self, *arguments: Any, error: Any = None, **settings: Any) -> Any:
            if isinstance(error, ReadTimeoutError):
                raise error
            return super().increment(*arguments, error=error, **settings)

    overloaded = (502, 503, 504)
    tries = Tries(TRIES, status_forcelist=overloaded, backoff_factor=0.5, allowed_methods=None, raise_on_status=False)
    return TimedAdapter(max_retries=tries, pool_maxsize=CONCURRENT)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


# -- beside the trainer ------------------------------------------------------------------------------------------------


class Colocated:
    """An engine in this process, on the trainer's GPU.

    Args:
        llm: vLLM's ``LLM``.
        group: Ranks that share one copy of the weights: all of them ask the engine for the rows of all of them.
    """

    def __init__(self, llm: Any, group: Any = None) -> None:
        self.llm, self.group = llm, group

    def complete(self, requests: Sequence[Request], stop: Collection[int]) -> list[Answer]:
        """Return an answer a request, in their order."""
        from vllm import SamplingParams

        asked, mine = self._asked(requests)
        if not asked:
            return []
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(request.prompt_ids)} for request in asked],
            sampling_params=[
                SamplingParams(
                    temperature=request.temperature,
                    max_tokens=request.max_new_tokens,
                    seed=request.seed % 2**63,
                    stop_token_ids=sorted(stop),
                    logprobs=0,
                )
                for request in asked
            ],
            use_tqdm=False,
        )
        return [_answer(output.outputs[0]) for output in outputs[mine]]

    def _asked(self, requests: Sequence[Request]) -> tuple[list[Request], slice]:
        """Return what the group asks for, and where in it this rank's requests are."""
        if self.group is None:
            return list(requests), slice(None)
        shares: list[Any] = [None] * torch.distributed.get_world_size(self.group)
        torch.distributed.all_gather_object(shares, list(requests), group=self.group)
        rank = torch.distributed.get_rank(self.group)
        start = sum(len(share) for share in shares[:rank])
        return [request for share in shares for request in share], slice(start, start + len(requests))


def _answer(output: Any) -> Answer:
    ids = list(output.token_ids)
    return ids, [place[token].logprob for token, place in zip(ids, output.logprobs, strict=True)]


def start_engine(source: str, *, gpu_memory: float, tensor_parallel: int) -> Colocated:
    """Return an engine of its own for a model, for evaluation; nobody hands it weights.

    Raises:
        InvalidConfig: vLLM is not installed.
        SelfPlayError: The engine did not start.
    """
    if find_spec("vllm") is None:
        raise InvalidConfig(
            "backend 'vllm' needs vLLM, which is not installed: pip install 'selfplay-gym[vllm]', or use the backend hf"
        )
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is the result's
    with handing_over():
        from vllm import LLM

        # The log-probs of what was drawn, as `VLLMBackend` expects them, and not of the untempered distribution.
        how: dict[str, Any] = {"logprobs_mode": "processed_logprobs", "tensor_parallel_size": tensor_parallel}
        return Colocated(LLM(source, gpu_memory_utilization=gpu_memory, **how))


# -- before and while it starts ----------------------------------------------------------------------------------------


def trainer_settings(config: RunConfig) -> dict[str, Any]:
    """Return what TRL's configuration has to know, nothing for other back-ends.

    With vLLM, TRL also corrects the update for the mismatch between sampler and trainer, by importance sampling.
    """
    if config.backend != "vllm":
        return {}
    vllm = config.vllm
    return {
        "use_vllm": True,
        "vllm_mode": vllm.mode,
        "vllm_gpu_memory_utilization": vllm.gpu_memory,
        "vllm_tensor_parallel_size": vllm.tensor_parallel,
        "vllm_max_model_length": context(config),
        "vllm_server_base_url": vllm.url,
        "vllm_server_timeout": vllm.start_seconds,
        "vllm_group_port": vllm.group_port,
    }


def context(config: RunConfig) -> int:
    """Return how many tokens, prompt and completion together, the engine of a run reads."""
    lengths = list(config.play.max_new_tokens.model_dump().values())
    if config.eval:
        lengths.append(config.eval.longest(config.style))
    return config.play.prompt_tokens + int(max(lengths))


def check(config: RunConfig) -> None:
    """Refuse what vLLM cannot do here, before anything is started; wait for its server.

    Raises:
        InvalidConfig: vLLM or a GPU is missing, processes and GPUs do not divide, or no server answers.
    """
    if config.backend != "vllm":
        return
    if find_spec("vllm") is None:
        raise InvalidConfig(
            "backend 'vllm' needs vLLM, which is not installed: pip install 'selfplay-gym[vllm]', or use the backend "
            "'continuous' (GPU) or 'auto'"
        )
    if not torch.cuda.is_available():
        raise InvalidConfig(
            "backend 'vllm' needs a CUDA GPU to train on, since weights are handed over on it, and torch sees none; "
            "use the backend 'auto'"
        )
    check_processes(config, int(os.environ.get("WORLD_SIZE", config.processes or 1)))
    if config.vllm.mode == "server":
        wait_for_server(config.vllm.url, config.vllm.start_seconds)


def check_processes(config: RunConfig, processes: int) -> None:
    """Refuse a number of processes that engines beside them cannot share out.

    Raises:
        InvalidConfig: It is no multiple of the GPUs of one engine.
    """
    parallel = config.vllm.tensor_parallel
    if config.backend == "vllm" and config.vllm.mode == "colocate" and processes % parallel:
        raise InvalidConfig(
            f"vllm.tensor_parallel must divide the run's processes, got {parallel} of {processes}; set processes, or "
            "start with torchrun"
        )


def wait_for_server(url: str, seconds: float) -> None:
    """Return once a server is up.

    Raises:
        InvalidConfig: It is not, after that many seconds.
    """
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        try:
            with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=max(min(left, 10.0), 0.1)) as answer:
                if answer.status == 200:
                    return
            reason = f"status {answer.status}"
        except (urllib.error.URLError, OSError, ValueError) as error:
            reason = _one_line(error)
        if left <= 0:
            raise InvalidConfig(
                f"no vLLM server answered at {url} within {seconds:g} s ({reason}): start one as docs/backends.md "
                "says, or set vllm.url"
            )
        time.sleep(min(1.0, left))


@contextmanager
def handing_over() -> Iterator[None]:
    """Say in one line that an engine did not start or did not take weights; both raise whatever they like.

    Raises:
        SelfPlayError: Something was raised inside.
    """
    try:
        yield
    except SelfPlayError:
        raise
    except Exception as error:
        raise SelfPlayError(
            f"vLLM did not start or did not take the weights ({_one_line(error)}): see its log; docs/backends.md says "
            "how its server is started"
        ) from error
