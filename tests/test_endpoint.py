"""Answers from an endpoint: a real server on this machine that is slow, overloaded, broken or talks nonsense."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from selfplay_gym.answers import Answer, Question, Sampling
from selfplay_gym.endpoint import PATIENCE, Endpoint, RequestRefused, evaluate_endpoint
from selfplay_gym.errors import EndpointError, InvalidConfig, UnknownId
from selfplay_gym.types import Execution, Status
from tests.endpoint_server import EndpointServer, Reply, chat, plain, serving

QUICK: dict[str, Any] = {"pause_seconds": 0.01, "answer_seconds": 5.0, "tries": 2}
GREEDY = Sampling(max_new_tokens=7)


def ask(server: EndpointServer, count: int = 1, **settings: Any) -> dict[str, Answer | Exception]:
    """Ask so many questions and return what came of each, by its prompt."""
    settings = {"chat": True, "sampling": GREEDY, **QUICK, **settings}
    endpoint = Endpoint(settings.pop("url", server.url), "m", **settings)
    questions = [Question(f"s/p{number}", 0, f"q{number}", number) for number in range(count)]
    return {question.prompt: answer for question, answer in endpoint.answers(questions)}


def prompt_of(body: dict[str, Any]) -> str:
    return str(body.get("prompt") or body["messages"][0]["content"])


# -- what is asked -----------------------------------------------------------------------------------------------------


def test_each_question_gets_its_own_answer_and_no_more_are_asked_at_a_time_than_allowed() -> None:
    def answer(body: dict[str, Any], tried: int) -> Reply:
        time.sleep(0.02)
        return chat(f"answer to {prompt_of(body)}")

    with serving(answer) as server:
        found = ask(server, 20, concurrent=4)
    assert found == {f"q{n}": Answer(f"answer to q{n}", True) for n in range(20)}
    assert 2 <= server.most <= 4


def test_a_chat_is_a_message_and_a_completion_a_prompt() -> None:
    with serving(lambda body, tried: chat("a") if "messages" in body else plain(" b")) as server:
        assert ask(server, chat=True) == {"q0": Answer("a", True)}
        assert ask(server, chat=False) == {"q0": Answer(" b", True)}
    fields = {"model": "m", "max_tokens": 7, "temperature": 0.0}
    message = {"role": "user", "content": "q0"}
    assert server.asked == [
        {**fields, "messages": [message], "path": "/v1/chat/completions"},
        {**fields, "prompt": "q0", "path": "/v1/completions"},
    ]


def test_samples_have_seeds_and_fields_are_added_and_left_out() -> None:
    sampling = Sampling(samples=2, temperature=0.5, max_new_tokens=7)
    with serving(lambda body, tried: chat("a")) as server:
        ask(server, 2, sampling=sampling, fields={"top_p": 0.9, "max_tokens": None})
        ask(server, 1, sampling=sampling, fields={"seed": None})
    assert {body.get("seed") for body in server.asked} == {0, 1, None}
    assert [body["top_p"] for body in server.asked[:2]] == [0.9, 0.9]
    assert "max_tokens" not in server.asked[0]


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (chat("a", "length"), Answer("a", False)),
        (chat(None, "length"), Answer("", False)),  # cut while it reasoned
        (chat(None), Answer("", True)),  # refused
        (Reply({"choices": [{"message": {"content": "a"}}]}), Answer("a", True)),
    ],
)
def test_what_was_cut_off_is_not_finished(reply: Reply, answer: Answer) -> None:
    with serving(lambda body, tried: reply) as server:
        assert ask(server) == {"q0": answer}


def test_the_key_is_sent_and_shown_nowhere() -> None:
    denied = Reply({"error": {"message": "no such key: sk-secret"}}, status=401)
    with serving(lambda body, tried: chat("a") if prompt_of(body) == "q0" else denied) as server:
        assert ask(server, key="sk-secret") == {"q0": Answer("a", True)}
        assert server.headers[0]["Authorization"] == "Bearer sk-secret"
        with pytest.raises(EndpointError, match=r"status 401: no such key: \*\*\*; check the key"):
            ask(server, 2, key="sk-secret", concurrent=1)
    assert "secret" not in repr(Endpoint("http://h", "m", True, GREEDY, "sk-secret"))
    with pytest.raises(InvalidConfig, match="printable ASCII") as error:
        Endpoint("http://h", "m", True, GREEDY, "sk-\nsecret")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://h:8000", "http://h:8000/v1"),
        ("https://h/openai/v2/", "https://h/openai/v2"),
        ("http://h/v1/chat/completions", "http://h/v1"),
        ("http://[::1]:80/v1/completions", "http://[::1]:80/v1"),
    ],
)
def test_an_address_is_taken_up_to_the_version(given: str, base: str) -> None:
    assert Endpoint(given, "m", True, GREEDY).url == base


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://h", "http://", "http://h:port", "http://u:p@h", "http://h?k=1"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidConfig, match="endpoint") as error:
        Endpoint(url, "m", True, GREEDY)
    assert "p@h" not in str(error.value) or "u:p" not in str(error.value)


# -- what goes wrong ---------------------------------------------------------------------------------------------------

BROKEN = {
    "429": Reply({"error": {"message": "slow down"}}, status=429),
    "500": Reply(b"<html>oops</html>", status=500),
    "503": Reply(status=503),
    "hangs up": Reply(status=0),
    "no JSON": Reply(b"<html>it works</html>"),
    "cut JSON": Reply({"choices": [{"message": {"content": "abcdef"}}]}, cut=30),
    "no choices": Reply({"object": "chat.completion"}),
    "empty choices": Reply({"choices": []}),
    "no message": Reply({"choices": [{"finish_reason": "stop"}]}),
    "a number": Reply({"choices": [{"message": {"content": 3}}]}),
    "deep": Reply(b"[" * 100_000),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_may_pass_is_tried_again_and_what_does_not_pass_ends_with_one_line(kind: str) -> None:
    with serving(lambda body, tried: BROKEN[kind] if tried < 3 else chat("a")) as server:
        assert ask(server) == {"q0": Answer("a", True)}
    assert server.tries == {"q0": 3}
    with (
        serving(lambda body, tried: BROKEN[kind]) as server,
        pytest.raises(
            EndpointError, match=r"no question got an answer; the last: the endpoint http.* \(tries: 3\)"
        ) as error,
    ):
        ask(server)
    assert server.tries == {"q0": 3}
    assert "\n" not in str(error.value)


def test_the_server_says_how_long_to_wait() -> None:
    busy = Reply(status=429, headers={"Retry-After": "0.5"})
    with serving(lambda body, tried: busy if tried == 1 else chat("a")) as server:
        began = time.monotonic()
        assert ask(server) == {"q0": Answer("a", True)}
        assert time.monotonic() - began >= 0.5


@pytest.mark.parametrize("reply", [Reply(wait=3.0), Reply(drip=0.02)], ids=["silent", "dripping"])
def test_a_request_as_a_whole_has_a_time_limit_and_is_not_repeated(reply: Reply) -> None:
    with serving(lambda body, tried: chat("a") if prompt_of(body) == "q1" else reply) as server:
        began = time.monotonic()
        found = ask(server, 2, answer_seconds=0.4)
        assert time.monotonic() - began < 2.0
    assert found["q1"] == Answer("a", True)
    assert "gave no answer within 0.4 s" in str(found["q0"])
    assert server.tries["q0"] == 1


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply({"detail": "Not Found"}, status=404), "status 404: Not Found; check the address and the name"),
        (Reply(status=403), "status 403; check the key"),
        (
            Reply(status=302, headers={"Location": "http://elsewhere/v1"}),
            "status 302; it has moved to http://elsewhere",
        ),
    ],
)
def test_what_would_be_the_same_for_all_ends_it_at_once(reply: Reply, message: str) -> None:
    with serving(lambda body, tried: reply) as server, pytest.raises(EndpointError, match=message):
        ask(server, 50, concurrent=2)
    assert len(server.asked) <= 2


def test_an_endpoint_that_is_down_or_unknown_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with serving(lambda body, tried: chat("a")) as server:
        for url in (f"http://127.0.0.1:{port}/v1", "http://no-such-host.invalid/v1"):
            with pytest.raises(EndpointError, match=f"endpoint {url} cannot be reached .* check the address"):
                ask(server, 5, url=url, pause_seconds=60.0)


def test_no_proxy_is_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving(lambda body, tried: chat("a")) as server:
        assert ask(server) == {"q0": Answer("a", True)}
    with pytest.raises(EndpointError, match="refused"), serving(lambda body, tried: chat("a")) as server:
        ask(server, url="http://elsewhere.invalid/v1")  # through the proxy, which is not there


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of 127.0.0.1 with its key, in one file."""
    path, key = tmp_path / "here.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1", "-days", "2"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    path.write_text(path.read_text() + key.read_text())
    return path


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_an_encrypted_endpoint_is_trusted_by_its_certificate_and_limited_in_time(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(body: dict[str, Any], tried: int) -> Reply:
        return Reply(wait=3.0) if prompt_of(body) == "q1" else chat("a")

    with serving(answer, certificate) as server:
        assert server.url.startswith("https://")
        with pytest.raises(EndpointError, match="its certificate is not trusted here; set SSL_CERT_FILE"):
            ask(server)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        began = time.monotonic()
        found = ask(server, 2, answer_seconds=0.5)
        assert time.monotonic() - began < 2.0
    assert found["q0"] == Answer("a", True)
    assert "gave no answer within 0.5 s" in str(found["q1"])


def test_one_refused_request_fails_alone_and_many_in_a_row_end_it() -> None:
    long = Reply({"error": {"message": "context length exceeded"}}, status=400)
    with serving(lambda body, tried: long if prompt_of(body) == "q1" else chat("a")) as server:
        found = ask(server, 3)
    assert [isinstance(found[f"q{n}"], Answer) for n in range(3)] == [True, False, True]
    assert isinstance(found["q1"], RequestRefused)
    assert "status 400: context length exceeded" in str(found["q1"])
    assert server.tries["q1"] == 1
    given_up = f"{PATIENCE} questions in a row got no answer; the last: .*status 400"
    with serving(lambda body, tried: long) as server, pytest.raises(EndpointError, match=given_up):
        ask(server, 100, concurrent=1)
    assert len(server.asked) <= PATIENCE + 1


def test_leaving_off_hangs_up() -> None:
    """Ctrl-C, or an error elsewhere: nothing waits for answers that nobody takes."""
    with serving(lambda body, tried: chat("a") if prompt_of(body) == "q0" else Reply(wait=20.0)) as server:
        endpoint = Endpoint(server.url, "m", True, GREEDY, concurrent=3, answer_seconds=60.0)
        before = threading.active_count()
        with closing(endpoint.answers([Question(f"s/{n}", 0, f"q{n}", n) for n in range(9)])) as answers:
            assert next(answers)[0].prompt == "q0"
            ours = [thread for thread in threading.enumerate() if "_work" in thread.name]
            assert len(ours) == 3
        for thread in ours:
            thread.join(3.0)
        assert not any(thread.is_alive() for thread in ours), before


def test_an_endless_answer_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfplay_gym.endpoint.MOST_BYTES", 1000)
    with serving(lambda body, tried: chat("a" * 5000)) as server, pytest.raises(EndpointError, match="no completion"):
        ask(server)


# -- evaluation --------------------------------------------------------------------------------------------------------


@pytest.fixture
def executor(fake: Callable[..., Any]) -> Any:
    return fake(lambda program, text: Execution(Status.OK, "1"))


def test_an_endpoint_is_evaluated_by_chat_and_what_failed_has_no_verdict(executor: Any, tmp_path: Path) -> None:
    refused = Reply({"error": {"message": "too long"}}, status=400)
    keep = tmp_path / "kept.jsonl"
    first: list[str] = []

    def answer(body: dict[str, Any], tried: int) -> Reply:
        first[:] = first or [prompt_of(body)]
        return refused if prompt_of(body) == first[0] else chat("7", "length")

    with serving(answer) as server:
        report = evaluate_endpoint("m", ["nano-easy"], executor, url=server.url, limit=3, keep=keep, concurrent=1)
    (result,) = report.results
    assert result.settings["style"] == "chat"
    assert (result.n, result.no_verdict, result.missing, result.extra["cut_off"]) == (2, 1, 0, 1.0)
    assert [row.reason for row in result.rows if row.score is None] == ["no verdict: no answer"]
    assert (
        "1 of 3 questions got no answer and have no verdict; the last: RequestRefused: the endpoint" in report.notes[0]
    )
    (failure,) = map(json.loads, (tmp_path / "kept.jsonl.failures").read_text().splitlines())
    assert (failure["error"], failure["sample"]) == ("RequestRefused", 0)
    assert "status 400: too long" in failure["message"]
    assert failure["traceback"].startswith("Traceback (most recent call last)")


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({}, InvalidConfig, "pass --endpoint URL or set OPENAI_BASE_URL"),
        ({"url": "http://h", "style": "fancy"}, UnknownId, "no prompt style"),
        ({"url": "http://h", "fields": ["top_p"]}, InvalidConfig, "KEY=JSON"),
        ({"url": "http://h", "fields": ["stop=a"]}, InvalidConfig, "the field 'stop' must be JSON"),
        ({"url": "http://h", "fields": ["model=1"]}, InvalidConfig, "KEY=JSON"),
    ],
)
def test_bad_settings_are_told_before_anything_is_asked(
    settings: dict[str, Any], kind: type[Exception], message: str, executor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(kind, match=message):
        evaluate_endpoint("m", ["nano-easy"], executor, **settings)


def test_an_evaluation_of_an_endpoint_needs_no_torch() -> None:
    code = """
import sys
from selfplay_gym import cli
sys.argv[1:] = ["eval", "m", "--suite", "nano-easy", "--limit", "1", "--endpoint", sys.argv[1]]
try:
    cli.main()
finally:
    print("torch" in sys.modules)
"""
    with serving(lambda body, tried: chat("1")) as server:
        done = subprocess.run([sys.executable, "-c", code, server.url], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert len(server.asked) == 1
