"""Answers from an OpenAI-compatible endpoint: vLLM, SGLang, llama.cpp, Ollama and the hosted ones speak that dialect.

The odd decision is the standard library's HTTP client: evaluation of an endpoint then needs neither torch nor any
extra. Its time-outs are those of a single read, so that a server which sends a byte a second is never too slow; here a
timer hangs up on a request as a whole.

What is tried again: broken connections, status 408, 425, 429 and 5xx, and answers that are no completion. What ends the
evaluation at once: an endpoint that nobody answers at, a key that is refused, a model or path that is not there.
Anything else fails one question, until too many have failed in a row.
"""

from __future__ import annotations

import email.utils
import functools
import http.client
import itertools
import json
import os
import queue
import random
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console

from selfplay_gym.answers import GREEDY, Answer, Question, Sampling
from selfplay_gym.errors import EndpointError, InvalidConfig
from selfplay_gym.eval_protocols import Changes
from selfplay_gym.evaluating import Model, evaluate_answers
from selfplay_gym.protocols import Executor
from selfplay_gym.results import Report

KEY_VARIABLE, URL_VARIABLE = "OPENAI_API_KEY", "OPENAI_BASE_URL"
CONNECT_SECONDS = 10.0
MOST_BYTES = 32 * 2**20
"""Of one response; what is longer is no completion."""

PATIENCE = 10
"""Questions that may fail in a row before no more are asked."""

LONGEST_PAUSE = 60.0
TRIED_AGAIN = frozenset({408, 425, 429})
THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})
HOPELESS = frozenset({401, 403, 404, 405})


@dataclass(frozen=True)
class Endpoint:
    """Where and how to ask.

    Attributes:
        url: Up to the version, such as ``http://127.0.0.1:8000/v1``; a bare host gets the ``/v1``.
        model: By the name that the endpoint knows it under.
        chat: Ask ``chat/completions`` with the prompt as the user's message, else ``completions``.
        sampling: How to sample.
        key: Sent as a bearer token where there is one.
        concurrent: Requests at a time.
        answer_seconds: How long one request may take.
        tries: Further tries of a request that may yet succeed.
        pause_seconds: Before the first of them; doubled from try to try, and longer where the server says so.
        fields: Further fields of each request; None leaves one of ours out.
    """

    url: str
    model: str
    chat: bool
    sampling: Sampling
    key: str = field(default="", repr=False)
    concurrent: int = 16
    answer_seconds: float = 600.0
    tries: int = 5
    pause_seconds: float = 0.5
    fields: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", _base(self.url))
        if not self.model:
            raise InvalidConfig("an endpoint needs the name of a model, got none")
        if self.key and not (self.key.isascii() and self.key.isprintable() and " " not in self.key):
            raise InvalidConfig("the key of the endpoint must be printable ASCII without blanks; it is not shown here")
        if self.concurrent < 1 or self.tries < 0 or not self.answer_seconds > 0:
            raise InvalidConfig(
                f"expected at least 1 request at a time, 0 further tries and some seconds an answer, got "
                f"{self.concurrent}, {self.tries} and {self.answer_seconds:g}"
            )

    def answers(self, questions: Sequence[Question]) -> Generator[tuple[Question, Answer | Exception]]:
        """Yield each question with its answer, or the error of its last try, as they come.

        Raises:
            EndpointError: It cannot be asked at all, `PATIENCE` questions in a row have failed, or none of them gave
                anything usable.
        """
        failed, usable = 0, 0
        with _Session(self).answering(questions) as following:
            for _ in questions:
                question, result = following()
                if isinstance(result, _Hopeless):
                    raise EndpointError(str(result)) from result
                failed = 0 if isinstance(result, Answer) else failed + 1
                usable += isinstance(result, (Answer, RequestRefused))
                yield question, result
                if failed >= PATIENCE:
                    raise EndpointError(f"{failed} questions in a row got no answer; the last: {result}")
        if questions and not usable:
            raise EndpointError(f"no question got an answer; the last: {result}")

    def body(self, question: Question) -> dict[str, object]:
        """Return what is sent."""
        prompt: dict[str, object] = {"prompt": question.prompt}
        if self.chat:
            prompt = {"messages": [{"role": "user", "content": question.prompt}]}
        body = {
            "model": self.model,
            **prompt,
            "max_tokens": self.sampling.max_new_tokens,
            "temperature": self.sampling.temperature,
        }
        if self.sampling.temperature:
            body["seed"] = question.seed % 2**31  # some servers take no more
        return {name: value for name, value in {**body, **self.fields}.items() if value is not None}

    def read(self, content: bytes) -> Answer:
        """Return the completion in a response.

        Raises:
            EndpointError: There is none.
        """
        try:
            choice = json.loads(content)["choices"][0]
            text = choice["message"]["content"] if self.chat else choice["text"]
            # None where a model refused, or was cut while it reasoned: its answer, and empty.
            if text is not None and not isinstance(text, str):
                raise TypeError(f"a completion of type {type(text).__name__}")
            return Answer(text or "", finished=choice.get("finish_reason") != "length")
        except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
            began = _one_line(content[:80].decode("utf-8", "replace"), self.key)
            raise _Again(
                f"the endpoint {self.url} answers with what is no completion ({type(error).__name__}: "
                f"{_one_line(error, self.key)[:80]}): {began!r}"
            ) from error


def evaluate_endpoint(
    model: str,
    names: Sequence[str],
    executor: Executor,
    *,
    url: str | None = None,
    protocol: str = "default",
    sampling: Sampling | Changes | None = None,
    style: str | None = None,
    data_dir: Path | None = None,
    key_variable: str = KEY_VARIABLE,
    fields: Sequence[str] = (),
    limit: int | None = None,
    skip_missing: bool = False,
    keep: Path | None = None,
    evalplus: Path | None = None,
    console: Console | None = None,
    **asking: Any,
) -> Report:
    """Score a model behind an endpoint on the named suites.

    Args:
        model: By the name that the endpoint knows it under.
        names: Registered suites, and groups of them.
        executor: Runs answers and, for some suites, references.
        url: Of the endpoint; by default ``OPENAI_BASE_URL``.
        protocol: How problems are put and answers sampled; see `selfplay_gym.eval_protocols`.
        sampling: Another sampling than the protocol's, as a whole or only those of its fields that differ.
        style: Another prompt style than the protocol's, which may leave it to us: ``chat``. The others are sent as
            text to be completed.
        data_dir: Folder of the data files; by default ``SELFPLAY_GYM_DATA``.
        key_variable: Environment variable with the key; it may be missing.
        fields: Further fields of each request, as ``KEY=JSON``.
        limit: Take the first so many problems of each suite only.
        skip_missing: Leave suites out that there is no data for, and say so.
        keep: File to append the answers to as they come. Those that are there already are not asked for again.
        evalplus: File to write the answers to as evalplus' samples.
        console: Where to show progress, if anywhere.
        asking: ``concurrent``, ``answer_seconds``, ``tries`` and ``pause_seconds`` of `Endpoint`.

    Raises:
        EndpointError: No further question can be answered; what was answered is kept.
        UnknownId: No suite, protocol or style of that name.
        InvalidData: A data file, or the file of answers, is missing or broken.
        InvalidConfig: An impossible setting, answers of another evaluation, or a suite without such a protocol.
        ExecutorError: The sandbox as a whole could not be started.
    """
    url = url or os.environ.get(URL_VARIABLE)
    if not url:
        raise InvalidConfig(f"no endpoint to ask: pass --endpoint URL or set {URL_VARIABLE}")
    further, key = parse_fields(fields), os.environ.get(key_variable, "").strip()
    plain = Endpoint(url, model, chat=True, sampling=GREEDY, key=key, fields=further, **asking)
    asked = Model(
        name=model,
        answerer=lambda chat, sampling: replace(plain, chat=chat, sampling=sampling),
        source={"model": model, "endpoint": plain.url, "fields": further},
        style="chat",
        versions={},
    )
    return evaluate_answers(
        asked, names, executor, sampling, protocol=protocol, style=style, data_dir=data_dir, limit=limit,
        skip_missing=skip_missing, keep=keep, evalplus=evalplus, console=console,
    )  # fmt: skip


def parse_fields(fields: Sequence[str]) -> dict[str, object]:
    """Return fields of a request that are given as ``KEY=JSON``.

    >>> parse_fields(["top_p=0.95", "seed=null"])
    {'top_p': 0.95, 'seed': None}

    Raises:
        InvalidConfig: One is not of that form, or is none that may be changed.
    """
    parsed: dict[str, object] = {}
    for stated in fields:
        name, equals, value = stated.partition("=")
        if not (name and equals) or name in ("model", "messages", "prompt", "n", "stream"):
            raise InvalidConfig(f"expected a field of a request as KEY=JSON, such as top_p=0.95, got {stated!r}")
        try:
            parsed[name] = json.loads(value)
        except (ValueError, RecursionError):
            raise InvalidConfig(f"the field {name!r} must be JSON (text in double quotes), got {value!r}") from None
    return parsed


def _base(url: str) -> str:
    """Return the address up to the version."""
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        raise InvalidConfig(f"expected an endpoint such as http://127.0.0.1:8000/v1, got {url!r}")
    if parts.username is not None:
        raise InvalidConfig(f"the address of an endpoint must hold no user or key: put the key into {KEY_VARIABLE}")
    path = parts.path.rstrip("/")
    for ending in ("/chat/completions", "/completions"):
        path = path.removesuffix(ending)
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


# -- one request -------------------------------------------------------------------------------------------------------


class _Again(EndpointError):
    """May succeed at another try.

    Attributes:
        after: Seconds that the server asks to wait.
    """

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


class RequestRefused(EndpointError):
    """The endpoint does not want this request, because its prompt is too long for example."""


class _Hopeless(EndpointError):
    """Would be the same for any question."""


Result = tuple[Question, Answer | Exception]


class _Session:
    """The threads of one call of `Endpoint.answers`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._over = threading.Event()
        self._lines: list[_Line] = []

    @contextmanager
    def answering(self, questions: Sequence[Question]) -> Generator[Callable[[], Result]]:
        """Have the questions asked; yields what waits for the next result. Ends all requests on the way out."""
        todo: queue.SimpleQueue[Question] = queue.SimpleQueue()
        done: queue.SimpleQueue[Result] = queue.SimpleQueue()
        for question in questions:
            todo.put(question)
        reached = threading.Event()
        self._lines = [_Line(self.endpoint, reached) for _ in range(min(self.endpoint.concurrent, len(questions)))]
        for line in self._lines:
            # Daemons: Ctrl-C waits for no server.
            threading.Thread(target=self._work, args=(line, todo, done), daemon=True).start()
        try:
            yield done.get
        finally:
            self._over.set()
            for line in self._lines:
                line.hang_up()

    def _work(self, line: _Line, todo: queue.SimpleQueue[Question], done: queue.SimpleQueue[Result]) -> None:
        while not self._over.is_set():
            try:
                question = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((question, self._ask(line, question)))
            except Exception as error:  # a thread that died in silence would be waited for without end
                done.put((question, error))
                if isinstance(error, _Hopeless):
                    self._over.set()  # not only once somebody has read it: no other question is begun

    def _ask(self, line: _Line, question: Question) -> Answer:
        """Return the answer, after as many tries as it takes and is allowed."""
        body = json.dumps(self.endpoint.body(question)).encode()
        for tried in itertools.count():
            try:
                return self.endpoint.read(line.post(body))
            except _Again as error:
                if tried == self.endpoint.tries:
                    raise EndpointError(f"{error} (tries: {tried + 1})") from error
                # Not all at once again: those that failed together would fail together.
                pause = self.endpoint.pause_seconds * 2**tried * random.uniform(0.5, 1.0)
                if self._over.wait(min(max(pause, error.after), LONGEST_PAUSE)):
                    raise
        raise AssertionError("not reached")


class _Line:
    """One request after the other, each on a connection of its own and with a limit to its time.

    Args:
        endpoint: Where to.
        reached: Set once anything has answered there.
    """

    def __init__(self, endpoint: Endpoint, reached: threading.Event) -> None:
        self.endpoint, self.reached = endpoint, reached
        self._socket: socket.socket | None = None
        self._cut = self._expired = False
        self._turn, self._lock = 0, threading.Lock()
        handlers = [_NoRedirect(), _Http(self._connected), _Https(self._connected)]
        if urlsplit(endpoint.url).hostname in THIS_MACHINE:
            handlers.append(urllib.request.ProxyHandler({}))  # a proxy of the environment would look for it elsewhere
        self._opener = urllib.request.build_opener(*handlers)

    def post(self, body: bytes) -> bytes:
        """Send a request and return the body of its response.

        Raises:
            EndpointError: There is none.
        """
        path = "chat/completions" if self.endpoint.chat else "completions"
        headers = {"Content-Type": "application/json", "User-Agent": "selfplay-gym"}
        if self.endpoint.key:
            headers["Authorization"] = f"Bearer {self.endpoint.key}"
        request = urllib.request.Request(f"{self.endpoint.url}/{path}", body, headers, method="POST")
        self._expired = False
        timer = threading.Timer(self.endpoint.answer_seconds, self._expire, [self._turn])
        timer.daemon = True
        timer.start()
        try:
            content = self._exchange(request)
        finally:
            timer.cancel()
            with self._lock:
                self._turn, self._socket = self._turn + 1, None
        if self._expired:  # a body that was cut off reads like one that ended
            raise self._too_slow()
        return content

    def _exchange(self, request: urllib.request.Request) -> bytes:
        try:
            with self._opener.open(request, timeout=self.endpoint.answer_seconds) as response:
                self.reached.set()
                content: bytes = response.read(MOST_BYTES + 1)
                return content
        except urllib.error.HTTPError as error:
            self.reached.set()
            raise self._refused(error) from None
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error

    def hang_up(self) -> None:
        """End the request, and any that begins."""
        self._cut = True
        self._shut()

    def _expire(self, turn: int) -> None:
        with self._lock:
            if turn == self._turn:  # and not the next request, when this one ended in the same moment
                self._expired = True
                self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                # Not `ssl.SSLSocket.shutdown`, which would pull the encryption from under the thread that reads.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def _connected(self, connection: socket.socket) -> None:
        connection.settimeout(self.endpoint.answer_seconds)
        self._socket = connection
        if self._cut or self._expired:
            self._shut()

    def _too_slow(self) -> EndpointError:
        return EndpointError(
            f"the endpoint {self.endpoint.url} gave no answer within {self.endpoint.answer_seconds:g} s: check its "
            "load, ask less at a time or raise the limit"
        )

    def _broken(self, error: OSError | http.client.HTTPException) -> EndpointError:
        """Say why there was no response."""
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if self._expired or (isinstance(reason, TimeoutError) and self._socket is not None):
            return self._too_slow()
        what = f"the endpoint {self.endpoint.url} cannot be reached ({_one_line(reason)})"
        if isinstance(reason, ssl.SSLCertVerificationError):
            return _Hopeless(f"{what}: its certificate is not trusted here; set SSL_CERT_FILE")
        # Before anything has answered there, it is an address that is wrong or a server that is not up.
        if not self.reached.is_set() and isinstance(reason, (ConnectionRefusedError, socket.gaierror, TimeoutError)):
            return _Hopeless(f"{what}: check the address and that the server is up")
        return _Again(what)

    def _refused(self, error: urllib.error.HTTPError) -> EndpointError:
        """Say what a status other than 2xx means."""
        told = _one_line(_reason(error), self.endpoint.key)
        what = f"the endpoint {self.endpoint.url} answers with status {error.code}{': ' if told else ''}{told}"
        if error.code in TRIED_AGAIN or error.code >= 500:
            return _Again(what, _seconds(error.headers.get("Retry-After", "")))
        if 300 <= error.code < 400:
            return _Hopeless(f"{what}; it has moved to {_one_line(error.headers.get('Location', 'nowhere'))}")
        if error.code in HOPELESS:
            hint = "check the key" if error.code in (401, 403) else "check the address and the name of the model"
            return _Hopeless(f"{what}; {hint}")
        return RequestRefused(what)


def _reason(error: urllib.error.HTTPError) -> str:
    """Return what the body says of an error."""
    try:
        with error:
            text = error.read(MOST_BYTES).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return ""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    while isinstance(value, dict):  # {"error": {"message": ...}}, {"message": ...}, {"detail": ...}
        value = next((value[name] for name in ("error", "message", "detail") if name in value), text)
    return str(value)


def _one_line(text: object, secret: str = "") -> str:
    told = str(text).replace(secret, "***") if secret else str(text)
    return " ".join(told.split())[:300]


def _seconds(after: str) -> float:
    """Return how long a ``Retry-After`` asks to wait: seconds or a date."""
    try:
        return max(float(after), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(after).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return 0.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: a POST would become a GET, and the key would go along."""

    def redirect_request(self, *arguments: Any) -> None:
        """Refuse."""


class _Http(urllib.request.HTTPHandler):
    """Tells of each connection that it makes."""

    def __init__(self, connected: Callable[[socket.socket], None]) -> None:
        super().__init__()
        self.connected = connected

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """Open a connection of `_Plain`."""
        return self.do_open(functools.partial(_Plain, self.connected), request)


class _Https(urllib.request.HTTPSHandler):
    """Tells of each connection that it makes."""

    def __init__(self, connected: Callable[[socket.socket], None]) -> None:
        super().__init__()
        self.connected, self.trust = connected, ssl.create_default_context()

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """Open a connection of `_Secure`."""
        make = functools.partial(_Secure, self.connected)
        return self.do_open(make, request, context=self.trust)


class _Plain(http.client.HTTPConnection):
    def __init__(self, connected: Callable[[socket.socket], None], *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **{**settings, "timeout": CONNECT_SECONDS})
        self.connected = connected

    def connect(self) -> None:
        super().connect()
        self.connected(self.sock)


class _Secure(_Plain, http.client.HTTPSConnection):
    pass
