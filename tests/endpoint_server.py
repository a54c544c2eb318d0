"""An endpoint of OpenAI's dialect on this machine, which does to each request what a test tells it to."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What a request gets.

    Attributes:
        body: Bytes, or what is sent as JSON.
        status: 0 hangs up without a word.
        headers: Beside the usual ones.
        wait: Seconds before anything is sent.
        drip: Send a byte of the headers at a time, with this many seconds in between.
        cut: Hang up after so many bytes of the body.
    """

    body: Any = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    wait: float = 0.0
    drip: float = 0.0
    cut: int | None = None


def chat(text: str | None, reason: str = "stop") -> Reply:
    return Reply({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason}]})


def plain(text: str, reason: str = "stop") -> Reply:
    return Reply({"choices": [{"text": text, "finish_reason": reason}]})


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that gives up is what some tests are about."""


class EndpointServer:
    """Attributes: ``asked`` and ``headers`` hold all requests so far, ``most`` how many there were at a time."""

    def __init__(self, answer: Callable[[dict[str, Any], int], Reply], certificate: Path | None = None) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.tries = Counter[str]()
        self.open = self.most = 0
        self._lock = threading.Lock()
        self._http = _Http(("127.0.0.1", 0), self._handler())
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self.url = f"http{'s' if certificate else ''}://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _begin(self, body: dict[str, Any], headers: dict[str, str]) -> int:
        with self._lock:
            self.asked.append(body)
            self.headers.append(headers)
            prompt = str(body.get("prompt") or body["messages"][0]["content"])
            self.tries[prompt] += 1
            self.open += 1
            self.most = max(self.most, self.open)
            return self.tries[prompt]

    def _handler(server: EndpointServer) -> type[BaseHTTPRequestHandler]:  # noqa: N805  # self is the handler inside
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                body["path"] = self.path
                tried = server._begin(body, dict(self.headers))
                try:
                    reply = server.answer(body, tried)
                    time.sleep(reply.wait)
                finally:  # before the reply: once it has that, the client may ask again
                    with server._lock:
                        server.open -= 1
                self._send(reply)

            def _send(self, reply: Reply) -> None:
                self.close_connection = True
                if not reply.status:
                    return
                content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                if reply.drip:
                    for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 10_000:
                        self.wfile.write(bytes([byte]))
                        time.sleep(reply.drip)
                self.send_response(reply.status)
                self.send_header("Content-Length", str(len(content)))
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content[: reply.cut])

            def log_message(self, *arguments: Any) -> None:
                pass

        return Handler


@contextmanager
def serving(
    answer: Callable[[dict[str, Any], int], Reply], certificate: Path | None = None
) -> Iterator[EndpointServer]:
    server = EndpointServer(answer, certificate)
    try:
        yield server
    finally:
        server.close()
