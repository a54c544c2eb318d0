"""A server with the interface of vLLM's that TRL's client talks to: a tiny transformers model answers for real.

Endpoints and payloads are those of `trl.generation.vllm_client` 1.16. Weights travel through a socket where vLLM and
TRL use NCCL, which needs GPUs: they are announced, streamed, loaded and counted all the same.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Client, Connection, Listener
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from selfplay_gym.training.backends import TransformersBackend
from selfplay_gym.training.generation import Request

Answer = tuple[int, bytes]


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # TRL's client opens 64 connections at once

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that gives up is what some tests are about."""


class VLLMServer:
    """Serves a model on a free port of this machine.

    Attributes:
        backend: Writes the completions.
        model: What it samples from; holds other weights than the trainer's until some are handed over.
        calls: How often each path was asked for.
        mood: Gets a path and the honest answer, and returns what is sent instead; nothing for status 0.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.calls = model, Counter[str]()
        self.mood: Callable[[str, Answer], Answer] = lambda path, answer: answer
        self.updating = False
        self.backend: Any = TransformersBackend(model, tokenizer)
        self._lock = threading.Lock()
        self._weights: Connection | None = None
        self._http = _Http(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        if self._weights is not None:
            self._weights.close()

    def _handler(server: VLLMServer) -> type[BaseHTTPRequestHandler]:  # noqa: N805  # self is the handler inside
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer({})

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                self._answer(json.loads(self.rfile.read(length) or b"{}"))

            def _answer(self, payload: dict[str, Any]) -> None:
                path = self.path.partition("?")[0]
                server.calls[path] += 1
                route = server.routes.get(path)
                answer = (404, b"{}") if route is None else (200, json.dumps(route(payload)).encode())
                status, body = server.mood(path, answer)
                if not status:
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: Any) -> None:
                pass

        return Handler

    @property
    def routes(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        settings = {"model_config": {"logprobs_mode": "processed_logprobs"}, "weight_transfer_config": "nccl"}
        return {
            "/health": lambda _: {},
            "/v1/models": lambda _: {"data": [{"id": "policy"}]},
            "/server_info": lambda _: {"vllm_config": settings},
            "/get_world_size": lambda _: {"world_size": 1},
            "/v1/completions": self._complete,
            "/init_weight_transfer_engine": self._join,
            "/start_weight_update": lambda _: self._update(True),
            "/update_weights": self._receive,
            "/finish_weight_update": lambda _: self._update(False),
            "/reset_prefix_cache": lambda _: {"success": True},
        }

    # -- completions ---------------------------------------------------------------------------------------------------

    def _complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        plain = {"n": 1, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "logprobs": 0}
        assert {name: asked[name] for name in plain} == plain
        assert asked["return_token_ids"]
        assert asked["return_tokens_as_token_ids"]
        with self._lock:
            self.backend.stop = frozenset(asked["stop_token_ids"])
            requests = [
                Request(tuple(prompt), asked["max_tokens"], asked["temperature"], asked["seed"])
                for prompt in asked["prompt"]
            ]
            samples = self.backend.generate(requests)
        return {
            "choices": [
                {
                    "prompt_token_ids": list(request.prompt_ids),
                    "token_ids": list(sample.ids),
                    "logprobs": {
                        "tokens": (names := [f"token_id:{token}" for token in sample.ids]),
                        "token_logprobs": list(sample.logprobs),
                        "top_logprobs": [{name: value} for name, value in zip(names, sample.logprobs, strict=True)],
                    },
                }
                for request, sample in zip(requests, samples, strict=True)
            ]
        }

    # -- weights -------------------------------------------------------------------------------------------------------

    def _join(self, asked: dict[str, Any]) -> dict[str, Any]:
        info = asked["init_info"]
        assert (info["rank_offset"], info["world_size"]) == (1, 2)
        deadline = time.monotonic() + 10
        while self._weights is None:
            try:
                self._weights = Client((info["master_address"], info["master_port"]))
            except ConnectionRefusedError:  # the trainer is about to listen
                assert time.monotonic() < deadline
                time.sleep(0.01)
        return {}

    def _update(self, updating: bool) -> dict[str, Any]:
        assert self.updating != updating
        self.updating = updating
        return {}

    def _receive(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert self.updating
        assert self._weights is not None
        info, own = asked["update_info"], dict(self.model.named_parameters())
        assert sorted(info["names"]) == sorted(own)
        with self._lock, torch.no_grad():
            for name, dtype, shape in zip(info["names"], info["dtype_names"], info["shapes"], strict=True):
                received = np.frombuffer(self._weights.recv_bytes(), dtype=dtype).reshape(shape)
                own[name].copy_(torch.from_numpy(received.copy()))
        return {}


@contextmanager
def serving(model: Any, tokenizer: Any) -> Iterator[VLLMServer]:
    server = VLLMServer(model, tokenizer)
    try:
        yield server
    finally:
        server.close()


# -- the trainer's side ------------------------------------------------------------------------------------------------


def let_trl_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let TRL's client run without vLLM and without GPUs: what it needs of NCCL goes through a socket."""
    from trl.generation import vllm_client, vllm_generation

    init_communicator = vllm_client.VLLMClient.init_communicator
    replaced = {
        "is_vllm_available": lambda *_, **__: True,
        "get_ip": lambda: "127.0.0.1",
        "_HAS_STATEFUL_TRAINER_ENGINE": True,
        "_HAS_RESET_PREFIX_CACHE_SUCCESS": True,
        "open_trainer_endpoint": _listen,
        "packed_nccl_broadcast_producer": _stream,
    }
    for name, value in replaced.items():
        monkeypatch.setattr(vllm_client, name, value, raising=False)
    monkeypatch.setattr(vllm_generation, "is_vllm_available", replaced["is_vllm_available"])
    # It refuses other devices than CUDA's; nothing is ever put on this one.
    monkeypatch.setattr(
        vllm_client.VLLMClient, "init_communicator", lambda self, device: init_communicator(self, "cuda")
    )


def _listen(info: dict[str, Any]) -> SimpleNamespace:
    with Listener((info["master_address"], info["master_port"])) as listener:
        connection = listener.accept()
    return SimpleNamespace(connection=connection, group=SimpleNamespace())


def _stream(iterator: Iterator[Any], group: Any, src: int, post_iter_func: Callable[[Any], torch.Tensor]) -> None:
    assert src == 0
    for item in iterator:
        group.connection.send_bytes(post_iter_func(item).numpy().tobytes())
