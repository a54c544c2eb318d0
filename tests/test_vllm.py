from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from selfplay_gym import answers
from selfplay_gym.answers import Question, Sampling
from selfplay_gym.archive import Archive
from selfplay_gym.errors import InvalidConfig, SelfPlayError
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.referee import Referee
from selfplay_gym.registry import make_family
from selfplay_gym.training import vllm as hosting
from selfplay_gym.training.advantages import make_estimator
from selfplay_gym.training.backends import TransformersBackend, make_backend
from selfplay_gym.training.config import Play, RunConfig
from selfplay_gym.training.evaluate import PolicyAnswerer, evaluate
from selfplay_gym.training.generation import Request, Sample, row_seed
from selfplay_gym.training.policy import Completion, Policy
from selfplay_gym.training.rollouts import Row, SelfPlay
from selfplay_gym.training.vllm import Colocated, Engine, Server, VLLMBackend, wait_for_server
from selfplay_gym.training.watch import StepWatch
from tests.hosting import PLAY, hosted
from tests.players import Scripted, fresh_policy, good_player
from tests.vllm_server import Answer, VLLMServer, let_trl_in, serving

pytest.importorskip("requests", reason="TRL's client of a vLLM server needs requests, which extra dev installs")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def policy() -> Policy:
    policy = fresh_policy()
    policy.backend = make_backend(policy.model, policy.tokenizer, "vllm")
    return policy


@pytest.fixture
def server(policy: Policy) -> Iterator[VLLMServer]:
    """A server with weights of its own, as one that was started from another checkpoint."""
    other = fresh_policy(seed=1).model.eval()
    with serving(other, policy.tokenizer) as server:
        yield server


@pytest.fixture
def client(server: VLLMServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    let_trl_in(monkeypatch)
    from trl.generation.vllm_client import VLLMClient

    return VLLMClient(base_url=server.url)


@pytest.fixture
def backend(policy: Policy, client: Any) -> VLLMBackend:
    assert isinstance(policy.backend, VLLMBackend)
    policy.backend.use(Server(client, 60.0))
    return policy.backend


def requests(policy: Policy, count: int = 12) -> list[Request]:
    """Requests of several prompts, limits and temperatures, equal prompts among them."""
    prompts = [policy.encode(text, chat=False) for text in ("abs(x)", "def f(x):\n", "f(3) = ?")]
    return [Request(prompts[n % 3], 4 + n % 5, (1.0, 0.7, 0.0)[n // 3 % 3], row_seed(n)) for n in range(count)]


def forward_logprobs(model: Any, request: Request, sample: Sample) -> list[float]:
    with torch.no_grad():
        logits = model(torch.tensor([[*request.prompt_ids, *sample.ids]])).logits[0, len(request.prompt_ids) - 1 : -1]
    table = (logits / (request.temperature or 1.0)).log_softmax(-1)
    return [table[place, token].item() for place, token in enumerate(sample.ids)]


def assert_sampled_from(model: Any, asked: Sequence[Request], samples: Sequence[Sample]) -> None:
    for request, sample in zip(asked, samples, strict=True):
        assert sample.finished or len(sample.ids) == request.max_new_tokens
        assert sample.logprobs == pytest.approx(forward_logprobs(model, request, sample), abs=1e-5)


# -- completions -------------------------------------------------------------------------------------------------------


def test_each_row_keeps_its_prompt_limit_temperature_and_log_probs(
    backend: VLLMBackend, policy: Policy, server: VLLMServer
) -> None:
    asked = requests(policy, 40)
    assert_sampled_from(server.model, asked, backend.generate(asked))


def test_a_seed_fixes_a_sample_and_equal_prompts_get_their_own(backend: VLLMBackend, policy: Policy) -> None:
    prompt = policy.encode("abs(x)", chat=False)
    asked = [Request(prompt, 8, 1.0, row_seed(n)) for n in range(20)]
    samples = backend.generate(asked)
    assert len({sample.ids for sample in samples}) > 15
    assert backend.generate(asked[::-1]) == samples[::-1]


def test_every_stop_token_of_the_policy_is_asked_for(backend: VLLMBackend, policy: Policy) -> None:
    backend.stop = frozenset(range(5, 60))
    samples = backend.generate([replace(request, max_new_tokens=30) for request in requests(policy, 20)])
    assert len({sample.ids[-1] for sample in samples if sample.finished}) > 2
    assert not any(token in backend.stop for sample in samples for token in sample.ids[:-1])


def test_no_requests_ask_nobody(backend: VLLMBackend, server: VLLMServer) -> None:
    asked = server.calls.total()
    assert backend.generate([]) == []
    assert server.calls.total() == asked


def test_without_a_trainer_it_says_so(policy: Policy) -> None:
    with pytest.raises(SelfPlayError, match="has no engine yet"):
        policy.backend.generate(requests(policy, 1))


# -- a server that fails -----------------------------------------------------------------------------------------------


def test_a_server_that_is_down_is_one_line(
    policy: Policy, client: Any, server: VLLMServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosting, "TRIES", 1)
    backend = make_backend(policy.model, policy.tokenizer, "vllm")
    assert isinstance(backend, VLLMBackend)
    backend.use(Server(client, 60.0))
    server.close()
    for ask in (lambda: backend.generate(requests(policy, 80)), backend.sync):
        with pytest.raises(
            SelfPlayError, match="cannot be reached: start it again, then go on with --resume"
        ) as caught:
            ask()
        assert server.url in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_slow_server_is_waited_for_no_longer_than_told(policy: Policy, client: Any, server: VLLMServer) -> None:
    engine, over = Server(client, 0.3), threading.Event()
    server.mood = lambda path, answer: (200 if over.wait(60) else 500, answer[1])
    started = time.monotonic()
    with pytest.raises(
        SelfPlayError, match=r"gave no answer within 0.3 s: check its log, or raise vllm.answer_seconds"
    ):
        engine.complete(requests(policy, 3), ())
    assert time.monotonic() - started < 30
    over.set()


@pytest.mark.slow
def test_a_server_that_is_overloaded_or_hangs_up_is_asked_again(
    backend: VLLMBackend, policy: Policy, server: VLLMServer
) -> None:
    asked, left = requests(policy, 1), [503, 0, 502]
    expected = backend.generate(asked)
    server.mood = lambda path, answer: (left.pop(), b"busy") if left else answer
    assert backend.generate(asked) == expected


def test_an_answer_that_cannot_be_read_is_one_line(backend: VLLMBackend, policy: Policy, server: VLLMServer) -> None:
    garbage: list[Answer] = [
        (200, b"<html>\nnot json</html>"),
        (200, b"[]"),
        (200, b'{"choices": []}'),
        (200, b'{"choices": [{"token_ids": [4]}]}'),
        (400, b'{"error": "the prompt\\nis too long"}'),
        (500, b"internal error"),
    ]
    for answer in garbage:
        server.mood = lambda path, _, answer=answer: answer
        with pytest.raises(SelfPlayError, match="gave an answer that is no completion") as caught:
            backend.generate(requests(policy, 2))
        assert "\n" not in str(caught.value)


def tampering(change: Callable[[dict[str, Any]], Any]) -> Callable[[str, Answer], Answer]:
    """Return a mood that changes the first choice of a completion."""

    def mood(path: str, answer: Answer) -> Answer:
        body = json.loads(answer[1])
        change(body["choices"][0])
        return answer[0], json.dumps(body).encode()

    return mood


def put(choice: dict[str, Any], token: int, logprob: float | None) -> None:
    """Make a token and its log-prob the only ones of a choice."""
    name = f"token_id:{token}"
    choice["token_ids"] = [token]
    choice["logprobs"] = {"tokens": [name], "token_logprobs": [logprob], "top_logprobs": [{name: logprob}]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda choice: put(choice, 10**6, -1.0), "token ids outside 0 to"),
        (lambda choice: put(choice, -1, -1.0), "token ids outside 0 to"),
        (lambda choice: put(choice, 1, 0.5), "log-probs that are not numbers below 0"),
        (lambda choice: put(choice, 1, float("nan")), "log-probs that are not numbers below 0"),
        (lambda choice: put(choice, 50, -1.0), "1 tokens without a stop token where 4 were asked for"),
        (lambda choice: choice["token_ids"].append(50), "no completion"),
        (lambda choice: choice["token_ids"].reverse(), "no completion"),
    ],
)
def test_a_completion_that_cannot_be_is_not_believed(
    backend: VLLMBackend, policy: Policy, server: VLLMServer, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    server.mood = tampering(change)
    with pytest.raises(SelfPlayError, match=said):
        backend.generate(requests(policy, 1))


def test_a_failing_server_loses_no_verdict_and_the_step_can_be_played_again(
    backend: VLLMBackend, policy: Policy, server: VLLMServer, sandbox: SandboxExecutor
) -> None:
    server.backend = Scripted(server.model, policy.tokenizer, good_player)
    lengths = {"propose": 96, "solve": 32}
    play = Play.model_validate({"proposals": 3, "tasks": 4, "attempts": 3, "max_new_tokens": lengths})
    families = {"deduction": make_family("deduction", style="compact", references=1)}

    def second_step(archive: Archive, fail: bool) -> tuple[list[Row], str]:
        game = SelfPlay(policy, backend, Referee(families, sandbox, archive), play, make_estimator("group"), seed=0)
        game.step(1, StepWatch(1))
        if fail:  # in the middle of the attempts
            before, asked = archive.fingerprint(), server.calls["/v1/completions"]
            server.mood = lambda path, answer: (
                (200, b"garbage") if server.calls[path] > asked + play.proposals + 4 else answer
            )
            with pytest.raises(SelfPlayError, match="no completion"):
                game.step(2, StepWatch(2))
            assert archive.fingerprint() == before
            server.mood = lambda path, answer: answer
        return game.step(2, StepWatch(2)), archive.fingerprint()

    with Archive(":memory:") as unbroken, Archive(":memory:") as broken:
        rows, kept = second_step(unbroken, fail=False)
        assert {row.role for row in rows} == {"propose", "solve"}
        assert second_step(broken, fail=True) == (rows, kept)


# -- training ----------------------------------------------------------------------------------------------------------


def served(
    policy: Policy, url: str, path: Path, steps: int = 3, update: dict[str, Any] | None = None, **settings: Any
) -> tuple[Any, list[dict[str, float]]]:
    """Return a trainer whose policy is sampled by a server, and where the metrics of its steps will be."""
    vllm = {"mode": "server", "url": url, "group_port": _free_port(), "start_seconds": 2}
    update = {"learning_rate": 3e-3, **(update or {})}
    trainer, metrics, _ = hosted(policy, path, steps=steps, backend="vllm", vllm=vllm, update=update, **settings)
    return trainer, metrics


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_weights_are_handed_over_after_each_update(
    policy: Policy, server: VLLMServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    let_trl_in(monkeypatch)
    trainer, metrics = served(policy, server.url, tmp_path)
    start = deepcopy(policy.model.state_dict())
    trainer.train()
    assert server.calls["/update_weights"] == server.calls["/reset_prefix_cache"] == 3
    assert [step["mismatch/max"] for step in metrics] == pytest.approx([0.0] * 3, abs=1e-5)
    # TRL's own look at all rows says the same.
    logged = [entry["sampling/sampling_logp_difference/max"] for entry in trainer.state.log_history[:3]]
    assert logged == pytest.approx([0.0] * 3, abs=1e-5)

    # The weights of the last update are still the trainer's alone.
    asked = requests(policy)
    assert any(not torch.equal(start[name], tensor) for name, tensor in policy.model.state_dict().items())
    assert not _same(policy.model, server.model)
    policy.backend.sync()  # type: ignore[attr-defined]
    assert _same(policy.model, server.model)
    assert_sampled_from(policy.model.eval(), asked, policy.backend.generate(asked))


@pytest.mark.parametrize(
    "settings",
    [
        {"play": {**PLAY, "temperature": {"propose": 1.3, "solve": 0.7}}},
        {"update": {"learning_rate": 3e-2, "lora": {"rank": 4, "alpha": 8}}},
    ],
    ids=["a temperature for each role", "adapters"],
)
def test_a_server_samples_what_is_trained(
    settings: dict[str, Any], policy: Policy, server: VLLMServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    let_trl_in(monkeypatch)
    trainer, metrics = served(policy, server.url, tmp_path, **settings)
    trainer.train()
    assert [step["mismatch/max"] for step in metrics] == pytest.approx([0.0] * 3, abs=1e-5)
    logged = [entry["sampling/sampling_logp_difference/max"] for entry in trainer.state.log_history[:3]]
    assert logged == pytest.approx([0.0] * 3, abs=1e-5)


def _same(one: Any, other: Any) -> bool:
    theirs = dict(other.named_parameters())
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.named_parameters())


def test_weights_that_are_not_handed_over_show_as_a_mismatch(
    policy: Policy, server: VLLMServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    let_trl_in(monkeypatch)
    trainer, metrics = served(policy, server.url, tmp_path, steps=1)
    monkeypatch.setattr(trainer.vllm_generation, "sync_weights", lambda: None)
    trainer.train()
    assert metrics[0]["mismatch/mean"] > 0.05


def test_a_server_that_dies_between_steps_ends_training_with_one_line(
    policy: Policy, server: VLLMServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    let_trl_in(monkeypatch)
    trainer, metrics = served(policy, server.url, tmp_path)
    server.mood = lambda path, answer: (500, b"dead") if len(metrics) == 2 else answer
    with pytest.raises(SelfPlayError, match="500") as caught:
        trainer.train()
    assert "\n" not in str(caught.value)
    assert trainer.state.global_step == 2


def test_a_server_without_weight_transfer_is_refused(
    policy: Policy, server: VLLMServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    let_trl_in(monkeypatch)
    server.mood = lambda path, answer: (404, b"{}") if path == "/server_info" else answer
    with pytest.raises(SelfPlayError, match=r"did not start or did not take the weights .*VLLM_SERVER_DEV_MODE=1"):
        served(policy, server.url, tmp_path)


# -- before a run ------------------------------------------------------------------------------------------------------


def config(**settings: Any) -> RunConfig:
    return RunConfig.model_validate({"backend": "vllm", "vllm": settings})


def pretend(monkeypatch: pytest.MonkeyPatch, *, installed: bool, cuda: bool) -> None:
    monkeypatch.setattr(hosting, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)


def test_what_vllm_cannot_do_here_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, installed=False, cuda=False)
    with pytest.raises(InvalidConfig, match=r"not installed: pip install 'selfplay-gym\[vllm\]'"):
        hosting.check(config())
    pretend(monkeypatch, installed=True, cuda=False)
    with pytest.raises(InvalidConfig, match="needs a CUDA GPU"):
        hosting.check(config())
    pretend(monkeypatch, installed=True, cuda=True)
    with pytest.raises(InvalidConfig, match="must divide the run's processes, got 2 of 1"):
        hosting.check(config(tensor_parallel=2))
    hosting.check(config())
    hosting.check(RunConfig())


def test_a_server_is_waited_for(server: VLLMServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, installed=True, cuda=True)
    starting = [503, 503]
    server.mood = lambda path, answer: (starting.pop(), b"") if starting else answer
    hosting.check(config(mode="server", url=server.url, start_seconds=20))
    assert server.calls["/health"] == 3


def test_a_server_that_never_comes_is_one_line() -> None:
    with pytest.raises(InvalidConfig, match=r"no vLLM server answered at .* within 0.2 s \(.*\): start one"):
        wait_for_server(f"http://127.0.0.1:{_free_port()}", 0.2)


def test_a_silent_server_does_not_hold_the_start() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        with pytest.raises(InvalidConfig, match="no vLLM server answered"):
            wait_for_server(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.5)
        assert time.monotonic() - started < 5


# -- evaluation --------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(policy: Policy, tmp_path: Path) -> Path:
    policy.model.save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    policy.model.eval()
    return tmp_path


def engine_module(policy: Policy) -> ModuleType:
    """Stand in for the package: an ``LLM`` of its interface in which transformers answers; notes what it was asked."""
    module: Any = ModuleType("vllm")
    module.started, module.asked = [], []
    backend: Any = TransformersBackend(policy.model, policy.tokenizer)

    def generate(self: Any, prompts: Any, sampling_params: Any, use_tqdm: bool) -> list[Any]:
        module.asked.append(len(prompts))
        backend.stop = frozenset(sampling_params[0].stop_token_ids)
        asked = [
            Request(tuple(prompt["prompt_token_ids"]), how.max_tokens, how.temperature, how.seed)
            for prompt, how in zip(prompts, sampling_params, strict=True)
        ]
        return [SimpleNamespace(outputs=[output(sample)]) for sample in backend.generate(asked)]

    def output(sample: Sample) -> Any:
        logprobs = [{t: SimpleNamespace(logprob=p)} for t, p in zip(sample.ids, sample.logprobs, strict=True)]
        return SimpleNamespace(token_ids=sample.ids, logprobs=logprobs)

    def start(self: Any, model: str, **how: Any) -> None:
        module.started.append((model, how))

    module.SamplingParams = SimpleNamespace
    module.LLM = type("LLM", (), {"__init__": start, "generate": generate})
    return module


@pytest.fixture
def engine(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = engine_module(policy)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(hosting, "find_spec", lambda name: module)
    return module


def test_a_model_is_evaluated_in_an_engine_of_its_own(engine: Any, checkpoint: Path, sandbox: SandboxExecutor) -> None:
    asked: dict[str, Any] = {"sampling": Sampling(max_new_tokens=12), "limit": 5}
    found = evaluate(checkpoint, ["nano-easy"], sandbox, backend="vllm", **asked)
    (where, how), *others = engine.started
    assert (where, others, engine.asked) == (str(checkpoint), [], [5])
    assert how["logprobs_mode"] == "processed_logprobs"
    expected = evaluate(checkpoint, ["nano-easy"], sandbox, **asked)
    assert [result.rows for result in found.results] == [result.rows for result in expected.results]
    assert found.results[0].protocol == expected.results[0].protocol
    assert "vllm" in found.versions


def test_an_engine_is_asked_for_no_more_than_its_context_holds(
    engine: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy.in_vllm(checkpoint)
    most = policy.model.config.max_position_embeddings
    asked = [Question(f"s/{n}", 0, "x" * n, 0) for n in (1, most - 3, most)]
    lengths: list[int] = []
    complete = policy.complete

    def noted(requests: Sequence[Request]) -> list[Completion]:
        lengths.extend(request.max_new_tokens for request in requests)
        return complete(requests)

    monkeypatch.setattr(policy, "complete", noted)
    answerer = PolicyAnswerer.of(policy, False, Sampling(max_new_tokens=50))
    found = {question.id: answer for question, answer in answerer.answers(asked)}
    assert lengths == [3, 50]
    assert found[f"s/{most}"] == answers.Answer("", finished=False)


def test_an_engine_that_does_not_start_is_one_line(engine: Any, checkpoint: Path) -> None:
    def fails(*arguments: Any, **named: Any) -> None:
        raise ValueError("no room for\nthe cache")

    engine.LLM = fails
    with pytest.raises(SelfPlayError, match=r"vLLM did not start .*\(ValueError: no room for the cache\)"):
        Policy.in_vllm(checkpoint)


def test_adapters_are_refused_before_an_engine_is_started(engine: Any, checkpoint: Path) -> None:
    (checkpoint / "adapter_config.json").write_text("{}")
    with pytest.raises(InvalidConfig, match="holds adapters, and vLLM is given whole models"):
        Policy.in_vllm(checkpoint)
    assert engine.started == []


# -- the real engine ---------------------------------------------------------------------------------------------------


real = [
    pytest.mark.vllm,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None,
        reason="vLLM is not installed here; docs/backends.md says how to run this",
    ),
]
CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def assert_real(policy: Policy, engine: Engine) -> None:
    """Compare an engine with the model that it serves in float32."""
    backend = make_backend(policy.model, policy.tokenizer, "vllm")
    assert isinstance(backend, VLLMBackend)
    backend.use(engine)
    asked = requests(policy, 40)
    samples = backend.generate(asked)
    assert backend.generate(asked) == samples
    assert len({sample.ids for sample in samples}) > 20
    assert_sampled_from(policy.model, asked, samples)


class TestRealEngine:
    pytestmark = real

    def test_in_this_process(self, policy: Policy, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in CPU.items():
            monkeypatch.setenv(name, value)
        from vllm import LLM

        how = {"dtype": "float32", "enforce_eager": True, "max_model_len": 128}
        assert_real(policy, Colocated(LLM(str(checkpoint), logprobs_mode="processed_logprobs", **how)))

    def test_in_an_evaluation(
        self, checkpoint: Path, sandbox: SandboxExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in CPU.items():
            monkeypatch.setenv(name, value)
        asked: dict[str, Any] = {"sampling": Sampling(max_new_tokens=24), "limit": 10}
        found = evaluate(checkpoint, ["nano-easy"], sandbox, backend="vllm", **asked)
        expected = evaluate(checkpoint, ["nano-easy"], sandbox, **asked)
        assert [result.rows for result in found.results] == [result.rows for result in expected.results]

    def test_as_a_server(self, policy: Policy, checkpoint: Path) -> None:
        from trl.generation.vllm_client import VLLMClient

        port = str(_free_port())
        # `vllm serve` of the CPU build asks for a distribution called vllm; the module behind it does not.
        command = [
            sys.executable,
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            str(checkpoint),
            "--port",
            port,
        ]
        flags = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "128", "--max-logprobs", "-1"]
        flags += ["--logprobs-mode", "processed_logprobs"]
        process = subprocess.Popen([*command, *flags], env={**os.environ, **CPU}, start_new_session=True)
        try:
            wait_for_server(f"http://127.0.0.1:{port}", 300)
            assert_real(policy, Server(VLLMClient(base_url=f"http://127.0.0.1:{port}"), 60.0))
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)
