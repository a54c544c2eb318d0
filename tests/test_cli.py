"""The command line as its users meet it: what a misuse is answered with, and that nothing is left behind by it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from selfplay_gym import __version__, alarms, cli, cli_common, registry
from selfplay_gym.archive import Archive
from selfplay_gym.errors import ExecutorError
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.training.launch import OWN_MODULES
from selfplay_gym.training.nano import build_model, build_tokenizer
from tests.endpoint_server import chat, serving

DOUBLE = "def f(x):\n    return 2 * x\n"
NO_NETWORK = {"HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Answer:
    """What a command left: exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line on stderr that says what is wrong, checked to be fit for people."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        assert not re.search(r"Traceback|pydantic\.dev|[^\x20-\uffff]", lines[0])
        assert self.out == ""
        return lines[0]


Run = Callable[..., Answer]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a command in this process, in an empty folder and without a network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SELFPLAY_GYM_DATA", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(cli_common.console, "width", 300)

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["selfplay-gym", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        shown = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Answer(end.value.code, shown.out, shown.err)

    return call


@pytest.fixture
def one_sandbox(sandbox: SandboxExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets every command use the session's sandbox, which takes no time to start."""

    class Borrowed:
        tier, run, describe, doctor = sandbox.tier, sandbox.run, sandbox.describe, sandbox.doctor

        def __init__(self, **settings: object) -> None:
            pass

        def __enter__(self) -> SandboxExecutor:
            return sandbox

        def __exit__(self, *details: object) -> None:
            pass

        def close(self) -> None:
            pass

    monkeypatch.setattr(registry.executors, "load", lambda name: Borrowed)


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with random weights that is loaded and run in a moment."""
    folder = tmp_path_factory.mktemp("tiny_policy")
    tokenizer = build_tokenizer()
    build_model(tokenizer, hidden=64, layers=2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def start(*arguments: object, code: str = "", **how: Any) -> subprocess.Popen[str]:
    """Start a command in a process of its own; ``code`` runs there before it."""
    script = (
        f"{textwrap.dedent(code)}\nimport sys\nsys.argv[0] = 'selfplay-gym'\nfrom selfplay_gym.cli import main\nmain()"
    )
    environment = {**os.environ, **NO_NETWORK, "OMP_NUM_THREADS": "1", "TERM": "dumb"}
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=how.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **how,
    )


def run_apart(*arguments: object, code: str = "", **how: Any) -> Answer:
    """Run a command in a process of its own."""
    process = start(*arguments, code=code, **how)
    out, err = process.communicate(timeout=60)
    return Answer(process.returncode, out or "", err)


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# -- usage -------------------------------------------------------------------------------------------------------------


def commands(group: Any = None, above: str = "") -> dict[str, Any]:
    """Return every command by what is typed for it, such as ``bench executor``."""
    group = group or typer.main.get_command(cli.app)
    found: dict[str, Any] = {}
    for name, command in sorted(group.commands.items()):
        path = f"{above} {name}".strip()
        found |= commands(command, path) if hasattr(command, "commands") else {path: command}
    return found


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version") == Answer(0, f"selfplay-gym {__version__}\n", "")


def test_without_arguments_the_help_is_shown(run: Run) -> None:
    answer = run()
    assert answer.code == 0
    assert all(f" {name.split()[0]} " in answer.out for name in commands())


@pytest.mark.parametrize("command", commands())
def test_every_command_explains_itself_its_arguments_and_its_defaults(command: str) -> None:
    found = commands()[command]
    assert found.help
    for parameter in found.params:
        assert parameter.help, f"{command}: {parameter.name} has no help"
        assert parameter.default is None or parameter.show_default or parameter.is_flag


@pytest.mark.parametrize("command", commands())
def test_help_reads_without_a_terminal(run: Run, command: str) -> None:
    answer = run(*command.split(), "--help")
    assert (answer.code, answer.err) == (0, "")
    assert f"selfplay-gym {command}" in answer.out


def test_defaults_stand_in_the_help(run: Run) -> None:
    assert "[default: (nano)]" in run("train", "-h").out
    assert "[default: 1.0]" in run("exec", "-h").out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "'train'"),
        (["--versoin"], "No such option: --versoin"),
        (["exec"], "Missing argument 'FILE'"),
        (["exec", "p.py", "--tier", "ful"], "'ful' is not one of 'full', 'filter_only', 'process_only'"),
        (["exec", "p.py", "--policy", "strct"], "did you mean 'strict'?"),
        (["exec", "p.py", "--cpu-seconds", "-1"], "'--cpu-seconds': Input should be greater than or equal to 0.001"),
        (["exec", "p.py", "--cpu-seconds", "nan"], "'--cpu-seconds'"),
        (["exec", "p.py", "--memory-mb", "-3"], "got '-3'"),
        (["exec", "p.py", "--memory-mb", "many"], "'--memory-mb'"),
        (["eval", "--suite", "nano"], "either a MODEL or --completions"),
        (["eval", "nano", "--suite", "nano", "--completions", "c.jsonl"], "either a MODEL or --completions"),
        (["eval", "nano"], "Missing option '--suite'"),
        (["eval", "nano", "--suite", "nano", "--samples", "0"], "'--samples'"),
        (["eval", "nano", "--suite", "nano", "--backend", "tpu"], "no backend 'tpu'"),
        (
            ["eval", "nano", "--suite", "nano", "--backend", "hf", "--endpoint", "http://h"],
            "are for the backend openai",
        ),
        (["eval", "--suite", "nano", "--completions", "c.jsonl", "--keep", "k.jsonl"], "take the answers of a MODEL"),
        (["eval", "nano", "--suite", "nano", "--max-new-tokens", "0"], "'--max-new-tokens'"),
        (["eval", "nano", "--suite", "nano", "--limit", "-1"], "'--limit'"),
        (["compare", "a.json"], "Missing argument 'AFTER'"),
        (["bench", "executer"], "Did you mean 'executor'?"),
        (["bench", "executor", "--rounds", "0"], "'--rounds'"),
        (["bench", "executor", "--seeds", "2"], "No such option: --seeds"),
        (["bench", "learning", "--rounds", "2"], "No such option: --rounds"),
        (["bench", "learning", "--seeds", "0"], "'--seeds'"),
        (["bench", "learning", "--steps", "0"], "'--steps'"),
        (["list", "famlies"], "did you mean 'families'?"),
        (
            ["list", "xyz"],
            "there are accelerate, checks, environments, executors, families, groups, protocols, recipes, suites",
        ),
        (["pretrain", "out", "--examples", "0"], "'--examples'"),
    ],
)
def test_wrong_use_is_one_line_and_code_2(run: Run, tmp_path: Path, arguments: Sequence[str], said: str) -> None:
    answer = run(*arguments)
    assert answer.code == 2
    assert said in answer.line
    assert re.search(r"\(see selfplay-gym .*--help\)$", answer.line)
    assert files(tmp_path) == []


# -- list, doctor ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["families", "executors", "recipes", "checks", "environments"])
def test_lists_are_lines_or_one_json_array(run: Run, kind: str) -> None:
    names = json.loads(run("list", kind, "--json").out)
    assert names
    assert run("list", kind) == Answer(0, "\n".join(names) + "\n", "")


@pytest.mark.parametrize("kind", ["suites", "groups", "protocols"])
def test_what_there_is_to_evaluate_with_is_listed_with_what_to_know_of_it(run: Run, kind: str) -> None:
    entries = json.loads(run("list", kind, "--json").out)
    lines = run("list", kind).out.splitlines()
    assert [line.split()[0] for line in lines] == [entry["name"] for entry in entries]
    if kind == "suites":
        cruxeval = next(entry for entry in entries if entry["name"] == "cruxeval-i")
        assert cruxeval["hub"] == "cruxeval-org/cruxeval"
        assert "customary" in cruxeval["protocols"]
        assert any(re.match(r"list_functions +data: folder; protocols: default; groups: quick, all", x) for x in lines)
    if kind == "protocols":
        assert {"suite", "hash", "decoding"} <= entries[0].keys()


def test_a_recipe_is_printed_with_what_is_set_and_what_that_means(run: Run) -> None:
    answer = run("recipe", "nano", "--set", "steps=7")
    assert (answer.code, answer.err) == (0, "")
    assert "steps: 7  # updates, one a step" in answer.out.splitlines()
    assert "did you mean 'azr-paper'" in run("recipe", "azr-papr").line
    assert "did you mean 'steps'" in run("recipe", "nano", "--set", "step=7").line


def test_doctor_prints_one_json_object(run: Run) -> None:
    answer = run("doctor", "--json")
    facts = json.loads(answer.out)
    assert (answer.code, answer.err) == (0, "")
    assert {"tier", "walls", "workers", "refused", "cores", "training"} <= facts.keys()


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        (None, "with 1 thread each"),
        ("3", "with 3 threads each"),
        ("abc", "OMP_NUM_THREADS='abc' is no number"),
        ("0", "'0'"),
    ],
)
def test_doctor_tells_the_threads(
    run: Run, one_sandbox: None, monkeypatch: pytest.MonkeyPatch, stated: str | None, said: str
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if stated is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", stated)
    assert said in run("doctor").out


def test_the_weakest_tier_is_accepted_by_an_option_that_there_is(run: Run, tmp_path: Path) -> None:
    program = write(tmp_path / "p.py", DOUBLE)
    said = run("exec", program, "--input", "2", "--tier", "process_only").line
    assert "--allow-process-only" in said
    assert run("exec", program, "--input", "2", "--tier", "process_only", "--allow-process-only").code == 0


def test_doctor_tells_people_the_tier_and_the_walls(run: Run) -> None:
    out = run("doctor").out
    assert re.search(r"^sandbox tier \w+, \d+ workers$", out, re.MULTILINE)
    assert "present  filter" in out


# -- exec --------------------------------------------------------------------------------------------------------------


def test_one_run_is_one_json_object(run: Run, tmp_path: Path, one_sandbox: None) -> None:
    answer = run("exec", write(tmp_path / "p.py", DOUBLE), "--input", "21", "--json")
    found = json.loads(answer.out)
    assert (answer.code, answer.err, found["status"], found["value"]) == (0, "", "ok", "42")
    assert {"error_type", "message", "cpu_seconds", "tier"} <= found.keys()


def test_several_runs_are_one_json_array_in_order(run: Run, tmp_path: Path, one_sandbox: None) -> None:
    answer = run("exec", write(tmp_path / "p.py", DOUBLE), "--input", "1", "--input", "[]", "--input", "{", "--json")
    assert [found["value"] for found in json.loads(answer.out)] == ["2", "[]", None]
    assert answer.code == 1  # one of them is not ok


def test_a_program_that_fails_is_a_result_with_code_1(run: Run, tmp_path: Path, one_sandbox: None) -> None:
    answer = run("exec", write(tmp_path / "p.py", DOUBLE), "--input", "None")
    assert (answer.code, answer.err) == (1, "")
    assert "TypeError" in answer.out


@pytest.mark.parametrize(
    ("program", "statuses"),
    [
        pytest.param(b"def f(x):\n    return \0 + x\n", {"error"}, id="NUL byte"),
        pytest.param(b"def f(x):\n    return '\xff\xfe'\n", {"error"}, id="undecodable"),
        pytest.param(b"", {"error"}, id="empty"),
        pytest.param(b"def f(x):\n    return x\n" + b"#" * 10_000_000, {"ok"}, id="10 MB comment"),
        pytest.param(b"x = 1\n" * 1_600_000 + b"def f(x):\n    return x\n", {"memory", "timeout"}, id="10 MB code"),
    ],
)
def test_any_bytes_get_a_status(
    run: Run, tmp_path: Path, one_sandbox: None, program: bytes, statuses: set[str]
) -> None:
    answer = run("exec", write(tmp_path / "p.py", program), "--input", "1", "--json")
    assert json.loads(answer.out)["status"] in statuses
    assert answer.err == ""


def test_a_program_that_cannot_be_read_is_one_line(run: Run, tmp_path: Path) -> None:
    assert run("exec", "nope.py").line == "error: cannot read the program nope.py: No such file or directory"
    assert run("exec", tmp_path).line.endswith("Is a directory")
    assert run("exec", "\udcff\x1b[2J.py").line.startswith(r"error: cannot read the program \udcff\x1b[2J.py: ")


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("def f(:\n    pass", "SyntaxError: invalid syntax (<program>, line 1) "),
        ("def f():\n    raise ValueError('no')", "ValueError: no (line 2) "),
    ],
)
def test_where_a_program_fails_is_said_once(
    run: Run, tmp_path: Path, one_sandbox: None, program: str, said: str
) -> None:
    out = run("exec", write(tmp_path / "p.py", program)).out
    assert said in out
    assert out.count("line") == 1


HOSTILE = """
def f(x):
    raise ValueError("[red]hi[/red] [/none] :smile: \\x1b[31mX\\x1b]0;title\\x07\\r\\u202egpj\\n")
"""


def test_what_a_program_says_is_inert_on_a_terminal(run: Run, tmp_path: Path, one_sandbox: None) -> None:
    out = run("exec", write(tmp_path / "p.py", HOSTILE), "--input", "'[bold]'").out
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", out)
    assert r"[red]hi[/red] [/none] :smile: \x1b[31mX" in out
    assert "'[bold]'" in out


def test_what_a_program_says_is_inert_as_json(run: Run, tmp_path: Path, one_sandbox: None) -> None:
    out = run("exec", write(tmp_path / "p.py", HOSTILE), "--input", "1", "--json").out
    assert out.isascii()
    assert out.count("\n") == 1
    assert "\x1b[31m" in json.loads(out)["message"]


NO_NAMESPACES = """
import ctypes, os
from pathlib import Path
user, group = os.getuid(), os.getgid()
assert ctypes.CDLL(None).unshare(0x10000000) == 0
Path("/proc/self/setgroups").write_text("deny")
Path("/proc/self/uid_map").write_text(f"0 {user} 1")
Path("/proc/self/gid_map").write_text(f"0 {group} 1")
Path("/proc/sys/user/max_user_namespaces").write_text("0")
"""


def test_without_user_namespaces_the_weaker_tier_is_used_and_named(tmp_path: Path) -> None:
    program = write(tmp_path / "p.py", DOUBLE)
    found = run_apart("exec", program, "--input", "2", code=NO_NAMESPACES)
    assert (found.code, found.err) == (0, "")
    assert "isolation: filter_only" in found.out
    doctor = run_apart("doctor", code=NO_NAMESPACES)
    assert "sandbox tier filter_only" in doctor.out
    assert "full: [Errno 28] no user namespace: switched off or used up (sysctl user.max_user_namespaces)" in " ".join(
        doctor.out.split()
    )
    refused = run_apart("exec", program, "--input", "2", "--tier", "full", code=NO_NAMESPACES)
    assert refused.code == 1
    assert "no sandbox can be built here; full: " in refused.line


def test_what_lies_in_the_working_directory_is_never_imported_by_further_processes(tmp_path: Path) -> None:
    write(tmp_path / "random.py", "raise SystemExit('imported from where the user is')")
    command = [sys.executable, *OWN_MODULES, "selfplay_gym.training.jobs", "0", str(os.getpid()), "list", "families"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "deduction" in done.stdout


def test_a_ctrl_c_that_python_drops_is_remembered() -> None:
    code = """
import signal
from selfplay_gym import interrupts

class Dying:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

with interrupts.remembered():
    interrupts.check()
    Dying()
    try:
        interrupts.check()
    except KeyboardInterrupt:
        print("stopped")
interrupts.check()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "Exception ignored" in done.stderr
    assert done.stdout == "stopped\n"


# -- eval, compare -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--suite", "nanno"], "no suite 'nanno'; did you mean 'nano'"),
        (["--suite", " , "], "no suite named; there are "),
        (["--suite", "cruxeval"], "no data folder: pass --data-dir or set SELFPLAY_GYM_DATA"),
        (["--suite", "cruxeval", "--data-dir", "nowhere"], "data folder nowhere does not exist"),
        (["--suite", "cruxeval", "--data-dir", "."], "holds none of cruxeval.jsonl"),
        (["--suite", "nano", "--json", "."], "cannot write .: it is a folder"),
        (["--suite", "nano", "--json", "a/b.json"], "cannot write a/b.json: there is no folder a"),
        (["--suite", "nano"], "cannot read c.jsonl: No such file or directory"),
    ],
)
def test_eval_names_what_is_missing(
    run: Run, tmp_path: Path, one_sandbox: None, arguments: Sequence[str], said: str
) -> None:
    answer = run("eval", "--completions", "c.jsonl", *arguments)
    assert answer.code == 1
    assert said in answer.line
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "c.jsonl: holds no completion"),
        ('{"id": "deduction-000", "comp', "c.jsonl, line 1: not JSON"),
        ("\n[1]\n", "c.jsonl, line 2: expected a JSON object, got list"),
        ('{"id": "nano-easy/dedction-000", "completion": "1"}', "did you mean 'nano-easy/deduction-000'?"),
        ('{"id": "nano-easy/[red]\\u001b[2J", "completion": "1"}', r"no problem 'nano-easy/[red]\x1b[2J'"),
        ('{"id": "nano-easy/deduction-000"}', "c.jsonl, line 1: expected the fields 'id' and 'completion'"),
        ('{"id": 3, "completion": "1"}', "c.jsonl, line 1: field 'id' must be text, got int"),
        (b"\xff\xfe", "c.jsonl, line 1: not JSON"),
    ],
)
def test_a_broken_file_of_completions_is_named_with_its_line(
    run: Run, tmp_path: Path, one_sandbox: None, content: str | bytes, said: str
) -> None:
    write(tmp_path / "c.jsonl", content)
    answer = run("eval", "--completions", "c.jsonl", "--suite", "nano-easy", "--json", "out.json")
    assert answer.code == 1
    assert said in answer.line
    assert files(tmp_path) == ["c.jsonl"]


@pytest.mark.parametrize(
    ("suite", "row", "said"),
    [
        ("cruxeval", '{"id": "a", "code": 3', "cruxeval.jsonl, line 2: not JSON"),
        ("cruxeval", '{"id": "ok"}', "cruxeval.jsonl, line 2: id 'ok' stands already at "),
        ("list_functions", '{"id": "a", "train": [], "test": []}', "list_functions.jsonl, line "),
    ],
)
def test_a_broken_line_of_data_is_named(
    run: Run, tmp_path: Path, one_sandbox: None, suite: str, row: str, said: str
) -> None:
    good = '{"id": "ok", "code": "def f(x):\\n    return x", "input": "1", "output": "1"}'
    write(tmp_path / f"{suite}.jsonl", f"{good}\n{row}\n")
    answer = run("eval", "--completions", "c.jsonl", "--suite", suite, "--data-dir", tmp_path)
    assert answer.code == 1
    assert said in answer.line


def broken_models(folder: Path) -> dict[str, str]:
    """Return what is no model, with a part of what is said of it."""
    for name in ("empty", "other", "garbage", "no_weights", "a_run/model"):
        (folder / name).mkdir(parents=True)
    write(folder / "a_run" / "model" / "config.json", "{}")
    write(folder / "other" / "notes.txt", "hello")
    write(folder / "garbage" / "config.json", '{"model_type":')
    write(folder / "no_weights" / "config.json", '{"model_type": "qwen3"}')
    write(folder / "file.bin", b"\0\1")
    return {
        "empty": "a folder without config.json that holds nothing",
        "other": "a folder without config.json that holds notes.txt",
        "a_run": "a folder without config.json that holds model (perhaps a_run/model is meant)",
        "garbage": "cannot load a model from 'garbage'",
        "no_weights": "'no_weights' lacks its tokenizer",
        "file.bin": "a file",
        "./nowhere": "the path of no folder",
        "somebody/no-such-model": "cannot load a model from 'somebody/no-such-model'",
    }


def test_what_is_no_model_is_one_line_within_seconds(run: Run, tmp_path: Path, one_sandbox: None) -> None:
    for name, said in broken_models(tmp_path).items():
        began = time.monotonic()
        answer = run("eval", name, "--suite", "nano-easy")
        assert (answer.code, said in answer.line) == (1, True), answer.err
        assert time.monotonic() - began < 10


def test_a_model_is_scored_and_the_result_printed_as_json_alone(
    run: Run, tmp_path: Path, one_sandbox: None, tiny_policy: Path
) -> None:
    answer = run("eval", tiny_policy, "--suite", "nano-easy", "--limit", "2", "--max-new-tokens", "4", "--json", "-")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["suites"][0]["n"] == 2


def test_stored_completions_are_scored_shown_and_written(run: Run, tmp_path: Path, one_sandbox: None) -> None:
    write(tmp_path / "[red]c[:x:].jsonl", '{"id": "deduction-000", "completion": "1"}\n')
    arguments = ("--completions", "[red]c[:x:].jsonl", "--suite", "nano-easy", "--limit", "3", "--json", "out.json")
    answer = run("eval", *arguments)
    assert answer.code == 0
    assert "[red]c[:x:].jsonl" in answer.out
    missing = "2 of 3 problems have no completion and count as wrong: abduction-000, induction-000"
    assert answer.err == f"warning: nano-easy: {missing}\n"
    assert json.loads((tmp_path / "out.json").read_text())["suites"][0]["suite"] == "nano-easy"
    same = run("compare", "out.json", "out.json", "--json", "-")
    assert json.loads(same.out)["suites"][0]["interval"]["difference"] == 0


def test_completions_of_every_problem_need_no_warning(run: Run, tmp_path: Path, one_sandbox: None) -> None:
    write(tmp_path / "c.jsonl", '{"id": "deduction-000", "completion": "1"}\n')
    assert run("eval", "--completions", "c.jsonl", "--suite", "nano-easy", "--limit", "1").err == ""
    many = run("eval", "--completions", "c.jsonl", "--suite", "nano-easy", "--limit", "5", "--json", "-")
    assert many.err.endswith(
        "4 of 5 problems have no completion and count as wrong: abduction-000, induction-000, deduction-001, ...\n"
    )
    assert json.loads(many.out)["suites"][0]["missing"] == 4


def test_an_endpoint_is_evaluated_and_its_answers_scored_again(run: Run, tmp_path: Path, one_sandbox: None) -> None:
    with serving(lambda body, tried: chat("<answer>1</answer>")) as server:
        asked = ("m", "--suite", "nano-easy", "--limit", "3", "--endpoint", server.url, "--field", "top_p=0.5")
        answer = run("eval", *asked, "--keep", "kept.jsonl", "--json", "out.json", "--evalplus", "samples.jsonl")
        assert (answer.code, answer.err) == (0, "")
        assert {body["top_p"] for body in server.asked} == {0.5}
        assert run("eval", *asked, "--keep", "kept.jsonl").code == 0
        assert len(server.asked) == 3
    assert run("rescore", "kept.jsonl", "--json", "again.json").code == 0
    first, again = (json.loads((tmp_path / name).read_text()) for name in ("out.json", "again.json"))
    assert first.pop("command") != again.pop("command")
    assert first == again
    assert first["suites"][0]["settings"]["decoding"]["fields"] == {"top_p": 0.5}
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 3


def test_an_endpoint_that_is_down_is_one_line(run: Run, one_sandbox: None) -> None:
    answer = run("eval", "m", "--suite", "nano-easy", "--endpoint", "http://127.0.0.1:9/v1")
    assert answer.code == 1
    assert "the endpoint http://127.0.0.1:9/v1 cannot be reached" in answer.line


def test_rescore_names_what_it_cannot_read(run: Run, tmp_path: Path, one_sandbox: None) -> None:
    assert "cannot read absent.jsonl: No such file" in run("rescore", "absent.jsonl").line
    write(tmp_path / "plain.jsonl", '{"task_id": "a", "solution": "b"}\n')
    assert "not written by `eval --keep`" in run("rescore", "plain.jsonl").line


def test_suites_are_exported_with_the_command_that_runs_them(run: Run, tmp_path: Path, one_sandbox: None) -> None:
    answer = run("export-suite", "nano", "--format", "lm-eval", "--output", "tasks", "--limit", "3")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.endswith(
        f"--include_path {tmp_path}/tasks --tasks selfplay_gym_nano-easy,selfplay_gym_nano-harder\n"
    )
    assert len((tmp_path / "tasks" / "nano-easy.jsonl").read_text().splitlines()) == 3
    again = run("export-suite", "nano", "--format", "inspect", "--output", "tasks")
    assert (again.code, again.line) == (1, "error: tasks is there already: choose a new or empty folder")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--suite", "nano", "--protocol", "papr"], "no protocol 'papr'; did you mean 'azr-paper'"),
        (
            ["--suite", "nano,gsm8k", "--protocol", "azr-paper"],
            "no protocol azr-paper for nano, gsm8k; there is default",
        ),
        (["--suite", "quikc"], "no suite 'quikc'; did you mean 'quick'"),
        (["--suite", "nano:0"], "expected a suite as NAME or NAME:PROBLEMS, got 'nano:0'"),
        (
            ["--suite", "quick", "--data-dir", "."],
            "(--skip-missing goes on without them): cruxeval:20: . holds none of",
        ),
        (["--suite", "cruxeval", "--data-dir", ".", "--skip-missing"], ". holds none of cruxeval.jsonl"),
        (["--suite", "cruxeval"], "cannot be had from the hub either: HF_HUB_OFFLINE is set"),
        (["--suite", "nano-easy", "--style", "chat"], "style chat needs a tokenizer with a chat template"),
    ],
)
def test_what_cannot_be_asked_is_one_line_before_anything_is_asked(
    run: Run, tiny_policy: Path, one_sandbox: None, arguments: Sequence[str], said: str
) -> None:
    answer = run("eval", tiny_policy, *arguments)
    assert (answer.code, answer.out) == (1, "")
    assert said in answer.line


def test_a_changed_protocol_says_so_and_what_is_missing_is_skipped_when_asked(
    run: Run, tiny_policy: Path, tmp_path: Path, one_sandbox: None
) -> None:
    asked = ("--suite", "nano-easy:2,cruxeval", "--max-new-tokens", "4", "--data-dir", tmp_path, "--json", "out.json")
    answer = run("eval", tiny_policy, *asked, "--skip-missing")
    assert answer.code == 0
    assert "warning: cruxeval is left out: " in answer.err
    (result,) = json.loads((tmp_path / "out.json").read_text())["suites"]
    assert (result["n"], result["settings"]["protocol"]) == (2, "default*")
    assert "protocol default* " in answer.out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nano", "--format", "lm-evil"], 2, "no format 'lm-evil'; did you mean 'lm-eval'?"),
        (["nanu", "--format", "inspect"], 1, "no suite 'nanu'; did you mean 'nano'"),
        (["nano", "--format", "inspect", "--style", "azt"], 1, "no prompt style 'azt'"),
        (["cruxeval", "--format", "inspect", "--data-dir", "."], 1, "holds none of cruxeval.jsonl"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(
    run: Run, tmp_path: Path, one_sandbox: None, arguments: Sequence[str], code: int, said: str
) -> None:
    answer = run("export-suite", *arguments, "--output", "tasks")
    assert answer.code == code
    assert said in answer.line
    assert files(tmp_path) == []


@pytest.mark.parametrize("content", ["", "[1", "[]", "{}", '{"suites": 3}', '{"suites": [{"suite": "a"}]}', b"\xff"])
def test_compare_refuses_other_files(run: Run, tmp_path: Path, content: str | bytes) -> None:
    write(tmp_path / "a.json", content)
    answer = run("compare", "a.json", "a.json")
    assert answer.code == 1
    assert "a.json was not written by eval --json" in answer.line


def test_compare_refuses_files_with_nothing_in_common(run: Run, tmp_path: Path) -> None:
    suite = {"suite": "a", "data_sha256": "0", "protocol": "0", "rows": [{"id": "x", "score": 1.0}]}
    for name, other in (("a", suite), ("b", {**suite, "suite": "b"}), ("c", {**suite, "data_sha256": "1"})):
        write(tmp_path / f"{name}.json", json.dumps({"suites": [other]}))
    assert "have no suite in common" in run("compare", "a.json", "b.json").line
    assert "scored on different data" in run("compare", "a.json", "c.json").line
    assert "cannot read d.json" in run("compare", "a.json", "d.json").line


# -- train -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("stpes: 3", "no setting 'stpes'; did you mean 'steps'"),
        ("play: {atempts: 3}", "no setting 'play.atempts'; did you mean 'play.attempts'"),
        ("play: {attempts: 1}", "play.attempts must be at least 2, got 1"),
        ("steps: many", "steps must be a whole number, got 'many'"),
        ("play: 3", "play must be a section of settings"),
        ("a: [1\n b: }", "not YAML"),
        (b"\xff\xfe", "cannot be read as a recipe"),
        ("- 1", "expected a mapping of settings, got list"),
        ("", "expected a mapping of settings, got NoneType"),
        ("1: 2", "1 is no setting, whose names are text"),
        ("families: {dedction: {}}", "no task family 'dedction'; did you mean 'deduction'"),
        ("families: {deduction: {referense: 1}}", "'referense'; did you mean 'references'"),
        ("families: {deduction: {references: -1}}", "references must be a whole number of at least 0, got -1"),
        ("families: {induction: {pairs: lots}}", "pairs must be a whole number of at least 2, got 'lots'"),
        ("backend: vlm", "no generation backend 'vlm'"),
        ("backend: vllm", "backend 'vllm' needs vLLM, which is not installed"),
        ("vllm: {mod: server}", "no setting 'vllm.mod'; did you mean 'vllm.mode'"),
        ("vllm: {url: 'localhost:8000'}", "vllm.url must be an address such as http://"),
        ("report_to: [tensorbord]", "no tracker 'tensorbord'; did you mean 'tensorboard'"),
        ("model: ./nowhere", "cannot load a model from './nowhere'"),
        ("seed: 4294967296", "seed must be less than 4294967296"),
    ],
)
def test_a_wrong_recipe_is_one_line_and_starts_no_run(run: Run, tmp_path: Path, recipe: str | bytes, said: str) -> None:
    write(tmp_path / "my.yaml", recipe)
    answer = run("train", "my.yaml")
    assert answer.code == 1
    assert said in answer.line
    assert files(tmp_path) == ["my.yaml"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nanoo"], "no recipe 'nanoo'; did you mean 'nano'?"),
        (["nope.yaml"], "nope.yaml: cannot be read as a recipe"),
        (["--set", "steps"], "--set expects key=value, got 'steps'"),
        (["--set", "steps=[1"], "is not a YAML value"),
        (["--set", "stpes=1"], "did you mean 'steps'"),
        (["--set", "steps.x=1"], "'steps' is a value, not a section"),
        (["--set", "play.max_new_tokens.propose=129"], "add up to 385 tokens, but nano reads 384 at most"),
        (["--set", "play.prompt_tokens=300", "--output", "out"], "add up to 428 tokens"),
        (["--set", "play.max_new_tokens.solve=1000001"], "must be at most 1000000, got 1000001"),
        (["--resume"], "there is no run under runs/ to resume"),
        (["--resume", "--output", "nowhere"], "nowhere holds no run to resume"),
    ],
)
def test_a_wrong_command_to_train_starts_no_run(run: Run, tmp_path: Path, arguments: Sequence[str], said: str) -> None:
    answer = run("train", *arguments)
    assert answer.code == 1
    assert said in answer.line
    assert files(tmp_path) == []


def test_the_shipped_recipe_fits_its_model() -> None:
    from selfplay_gym.training.config import load
    from selfplay_gym.training.run import check

    check(load("nano", []))


def test_a_model_is_scored_without_noise(tiny_policy: Path) -> None:
    answer = run_apart("eval", tiny_policy, "--suite", "nano", "--limit", "1", "--max-new-tokens", "4", "--json", "-")
    assert (answer.code, answer.err) == (0, "")
    assert json.loads(answer.out)


def test_a_model_that_does_not_load_leaves_no_run_folder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "garbage").mkdir()
    write(tmp_path / "garbage" / "config.json", '{"model_type":')
    answer = run("train", "--output", "out", "--set", "model=garbage", "--set", "processes=1")
    assert answer.code == 1
    assert f"cannot load a model from '{tmp_path / 'garbage'}'" in answer.line
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_tokenizer_starts_no_run(run: Run, tmp_path: Path, recipe: Path, tiny_policy: Path) -> None:
    shutil.copytree(tiny_policy, tmp_path / "mute", ignore=shutil.ignore_patterns("tokenizer*"))
    answer = run("train", recipe, "--output", "out", "--set", "model=mute")
    assert answer.code == 1
    assert "mute' lacks its tokenizer" in answer.line
    assert "lacks its tokenizer" in run("eval", "mute", "--suite", "nano").line
    assert not (tmp_path / "out").exists()


def test_a_model_that_knows_no_chats_starts_no_run_of_them(run: Run, tmp_path: Path, recipe: Path) -> None:
    answer = run("train", recipe, "--output", "out", "--set", "style=chat")
    assert answer.code == 1
    assert "style chat needs a tokenizer with a chat template" in answer.line
    assert not (tmp_path / "out").exists()


def test_a_host_without_a_sandbox_starts_no_run(
    run: Run, tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**settings: object) -> SandboxExecutor:
        raise ExecutorError("no sandbox can be built here")

    monkeypatch.setattr(registry.executors, "load", lambda name: refused)
    answer = run("train", recipe, "--output", "out")
    assert answer.code == 1
    assert "no sandbox can be built here" in answer.line
    assert files(tmp_path) == ["tiny.yaml"]


@pytest.fixture
def recipe(tmp_path: Path, tiny_policy: Path) -> Path:
    """The smallest run there is: two steps with the tiny policy, without hold-outs."""
    text = f"""
    model: {tiny_policy}
    families: {{deduction: {{}}}}
    play: {{proposals: 1, tasks: 2, attempts: 2, max_new_tokens: {{propose: 8, solve: 8}}}}
    holdout: null
    steps: 2
    save_steps: 1
    processes: 1
    """
    return write(tmp_path / "tiny.yaml", textwrap.dedent(text))


@pytest.mark.slow
def test_the_log_of_a_run_holds_no_warnings_of_old_names(tmp_path: Path, recipe: Path) -> None:
    assert run_apart("train", recipe, "--output", tmp_path / "out").code == 0
    assert "Warning" not in (tmp_path / "out" / "log.txt").read_text()


def test_a_run_holds_no_model_cards_with_blanks(run: Run, tmp_path: Path, recipe: Path, here: None) -> None:
    assert run("train", recipe, "--output", "out").code == 0
    assert (tmp_path / "out" / "checkpoints" / "checkpoint-2" / "model.safetensors").exists()
    assert not [name for name in files(tmp_path / "out") if name.endswith("README.md")]


def test_a_family_that_admits_nothing_for_long_is_warned_of_once(
    run: Run, recipe: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alarms, "DROUGHT", 2)  # the policy's weights are random, and so are its proposals
    shown = run("train", recipe, "--output", "out", "--set", "steps=3").out
    assert shown.count("has admitted no task") == 1
    assert "warning: step 2: deduction has admitted no task for 2 steps (rejected most in this one: " in shown


def test_a_folder_with_other_files_is_refused_and_left_as_it_is(
    run: Run, tmp_path: Path, recipe: Path, tiny_policy: Path
) -> None:
    (tmp_path / "thesis").mkdir()
    write(tmp_path / "thesis" / "chapter.tex", "x")
    before = files(tmp_path)
    assert "thesis already holds a run or other files" in run("train", recipe, "--output", "thesis").line
    assert "tiny.yaml is a file" in run("train", recipe, "--output", "tiny.yaml").line
    assert files(tmp_path) == before


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, one_sandbox: None) -> None:
    """Lets runs happen in this process without changing how it logs and warns."""
    from selfplay_gym.training import run

    monkeypatch.setattr(run, "_quiet", lambda folder: None)
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("4711")
        file.flush()
        yield


def new_run(folder: Path, recipe: Path) -> Path:
    """Make a run's folder as it is before the first step."""
    from selfplay_gym.training.config import load
    from selfplay_gym.training.folder import RunFolder

    RunFolder(folder).prepare(load(str(recipe), []))
    return folder


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_folder_in_use_is_refused(run: Run, tmp_path: Path, recipe: Path, resume: list[str]) -> None:
    new_run(tmp_path / "out", recipe)
    with locked(tmp_path / "out" / ".lock"):
        answer = run("train", recipe, "--output", "out", *resume)
    assert answer.code == 1
    assert "out is in use by another run (process 4711)" in answer.line


def test_another_runs_state_is_refused(run: Run, tmp_path: Path, recipe: Path) -> None:
    new_run(tmp_path / "out", recipe)
    before = files(tmp_path / "out")
    assert "out already holds a run" in run("train", recipe, "--output", "out").line
    answer = run("train", "--resume", "--output", "out", "--set", "seed=5")
    assert "out holds another run: its seed is 0, not 5" in answer.line
    assert sorted({*before, ".lock"}) == files(tmp_path / "out")


def test_a_recipe_named_for_resuming_must_be_that_of_the_run(run: Run, tmp_path: Path, recipe: Path) -> None:
    new_run(tmp_path / "out", recipe)
    answer = run("train", "nano", "--resume", "--output", "out")
    assert answer.code == 1
    assert "out holds a run of another recipe than nano: its model is " in answer.line
    assert "leave the recipe out" in answer.line
    answer = run("train", recipe, "--resume", "--output", "out", "--set", "seed=5")
    assert "seed is 0, not 5" in answer.line
    assert files(tmp_path / "out") == files(new_run(tmp_path / "same", recipe))


def test_a_run_whose_rate_falls_says_why_it_ends(run: Run, tmp_path: Path, recipe: Path) -> None:
    write(tmp_path / "falling.yaml", recipe.read_text() + "update: {schedule: linear}\n")
    new_run(tmp_path / "out", tmp_path / "falling.yaml")
    answer = run("train", "--resume", "--output", "out", "--set", "steps=3")
    assert answer.code == 1
    assert "out cannot be resumed with steps=3: its learning rate falls to 0 at step 2" in answer.line
    assert "--set model=out/model" in answer.line


@pytest.mark.parametrize("damage", ["truncated", "foreign", "other database"])
def test_a_damaged_archive_is_refused_and_left_as_it_is(
    run: Run, tmp_path: Path, recipe: Path, here: None, damage: str
) -> None:
    archive = new_run(tmp_path / "out", recipe) / "archive.sqlite"
    if damage == "foreign":
        write(archive, b"\x7fELF" + bytes(5000))
    elif damage == "other database":
        database = sqlite3.connect(archive)
        database.execute("CREATE TABLE a (b)")
        database.close()
    else:
        Archive(archive).close()
        os.truncate(archive, 5000)
    before = archive.read_bytes()
    answer = run("train", "--resume", "--output", "out")
    assert answer.code == 1
    assert "archive.sqlite: expected " in answer.line
    assert "restore it from a copy" in answer.line
    assert archive.read_bytes() == before


def test_a_run_ends_its_report_is_written_and_it_cannot_lose_its_archive(
    run: Run, tmp_path: Path, recipe: Path, here: None
) -> None:
    answer = run("train", recipe, "--output", "[red]o")
    assert (answer.code, "Traceback" in answer.err) == (0, False)
    assert "everything is in [red]o" in answer.out
    assert run("report", "[red]o") == Answer(0, "[red]o/report.html\n", "")
    (tmp_path / "[red]o" / "archive.sqlite").unlink()
    resumed = run("train", "--resume", "--output", "[red]o", "--set", "steps=3")
    assert resumed.code == 1
    assert "archive.sqlite is missing" in resumed.line


def test_held_out_programs_stay_out_of_training_also_when_they_are_not_measured(
    run: Run, recipe: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfplay_gym.training import run as training

    gates = []

    class Remembered(training.Gate):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            gates.append(self)

    monkeypatch.setattr(training, "Gate", Remembered)
    assert run("train", recipe, "--output", "out", "--set", "steps=1").code == 0
    assert len(gates[0].held_out) > 100


@pytest.mark.parametrize("content", [None, "", "not JSON\n", "[1]\n", '{"a": 1}\n', '{"step": 1}\n'])
def test_report_of_no_run_is_one_line(run: Run, tmp_path: Path, content: str | None) -> None:
    (tmp_path / "out").mkdir()
    if content is not None:
        write(tmp_path / "out" / "metrics.jsonl", content)
    answer = run("report", "out")
    assert answer.code == 1
    assert "out" in answer.line
    assert not (tmp_path / "out" / "report.html").exists()
    assert "nowhere is no run folder" in run("report", "nowhere").line


# -- full disks, readers that leave, Ctrl-C ----------------------------------------------------------------------------


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file grow beyond ``size`` bytes, which to a program is much like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("size", "said"),
    [(300, "out/config.yaml: File too large"), (5000, "archive.sqlite: "), (200_000, "a checkpoint in out ")],
)
def test_a_full_disk_is_one_line_and_nothing_counts_that_is_half_written(
    run: Run, tmp_path: Path, recipe: Path, here: None, size: int, said: str
) -> None:
    with full_disk(size):
        answer = run("train", recipe, "--output", "out")
    assert answer.code == 1
    *_, last = answer.err.splitlines()
    assert last.startswith("error: ")
    assert said in last
    assert not [name for name in files(tmp_path) if name.endswith((".part", "complete.json", "result.json"))]
    begun = (tmp_path / "out" / "config.yaml").exists()
    assert run("train", recipe, "--output", "out", *(["--resume"] if begun else [])).code == 0


@pytest.mark.parametrize("size", [100, 5000, 100_000])
def test_a_policy_that_does_not_fit_on_the_disk_is_not_trained_and_not_left_half_written(
    run: Run, tmp_path: Path, size: int
) -> None:
    """There is room for nothing, for its settings, or for all but its weights."""
    with full_disk(size):
        answer = run("pretrain", "made", "--examples", "60", "--layers", "1", "--hidden", "64")
    assert answer.code == 1
    assert re.search(r"cannot write a checkpoint to .*made.* check the disk and its free space", answer.line)
    assert files(tmp_path) == []


def test_a_policy_is_not_made_over_anything(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine" / "thesis.tex", "x")
    assert "mine holds something already" in run("pretrain", "mine", "--examples", "60").line
    assert "mine/thesis.tex holds something already" in run("pretrain", "mine/thesis.tex", "--examples", "60").line
    assert files(tmp_path) == ["mine", "mine/thesis.tex"]


def test_a_policy_that_is_interrupted_leaves_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> Iterator[Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr("selfplay_gym.training.nano.batches", interrupted)
    (tmp_path / "empty").mkdir()
    assert run("pretrain", "empty", "--examples", "60").code == cli.INTERRUPTED
    assert files(tmp_path) == ["empty"]


def test_a_result_that_does_not_fit_on_the_disk_leaves_the_old_file(
    run: Run, tmp_path: Path, one_sandbox: None
) -> None:
    write(tmp_path / "c.jsonl", '{"id": "deduction-000", "completion": "1"}\n')
    write(tmp_path / "out.json", "old")
    with full_disk(1000):
        answer = run("eval", "--completions", "c.jsonl", "--suite", "nano-easy", "--json", "out.json")
    assert answer.code == 1
    assert answer.err.endswith("\nerror: out.json: File too large\n")  # after the warning of what is missing
    assert files(tmp_path) == ["c.jsonl", "out.json"]
    assert (tmp_path / "out.json").read_text() == "old"


def test_a_full_standard_output_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        answer = run_apart("list", "checks", stdout=full)
    assert (answer.code, answer.line) == (1, "error: No space left on device")


def test_a_reader_that_leaves_early_hears_no_complaint() -> None:
    process = start("list", "checks")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait(30) == 1


def test_a_terminal_that_knows_ascii_only_gets_escapes(tmp_path: Path) -> None:
    program = write(tmp_path / "p.py", "def f(x):\n    return x\n")
    code = "import sys\nsys.stdout.reconfigure(encoding='ascii', errors='strict')"
    answer = run_apart("exec", program, "--input", "'é'", code=code)
    assert (answer.code, answer.err) == (0, "")
    assert r"'\xe9'" in answer.out


FOREVER = "def f(x):\n    while True:\n        pass\n"


INTERRUPTING = """
import os, signal, threading
from selfplay_gym.executors.sandbox import SandboxExecutor

run = SandboxExecutor.run

def interrupted(*arguments):
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    return run(*arguments)

SandboxExecutor.run = interrupted
"""


def test_ctrl_c_ends_a_program_with_one_line(tmp_path: Path) -> None:
    program = write(tmp_path / "p.py", FOREVER)
    answer = run_apart("exec", program, "--input", "1", "--cpu-seconds", "60", code=INTERRUPTING)
    assert (answer.code, answer.out, answer.err) == (cli.INTERRUPTED, "", "error: interrupted\n")


ANNOUNCING = """
from selfplay_gym.training.policy import Policy

complete = Policy.complete

def announce(*arguments, **named):
    print("asking", flush=True)
    return complete(*arguments, **named)

Policy.complete = announce
"""


def test_ctrl_c_ends_an_evaluation_with_one_line_and_without_a_file(tmp_path: Path, tiny_policy: Path) -> None:
    asked = ("--suite", "nano", "--samples", "100", "--temperature", "1", "--json", tmp_path / "out.json")
    process = start("eval", tiny_policy, *asked, code=ANNOUNCING)
    assert process.stdout is not None
    assert process.stdout.readline() == "asking\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == cli.INTERRUPTED
    assert err.splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in err
    assert not (tmp_path / "out.json").exists()
