"""Suites as tasks of other harnesses: what is written, how it is scored, and, where they are installed, that they give
our numbers."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from selfplay_gym import grading, harness, suites
from selfplay_gym.errors import InvalidConfig, InvalidData
from selfplay_gym.evaluating import prepare
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.grading import RULES
from selfplay_gym.harness import Export, Scorer, export, once
from selfplay_gym.suites import DATA_VARIABLE, Loaded, Source
from tests.endpoint_server import Reply, chat, serving

ROWS = [{"id": "a", "code": "def f(x):\n    return x + 1", "input": "1", "output": "2"},
        {"id": "b", "code": "def f(x):\n    return x * 2", "input": "3", "output": "6"},
        {"id": "broken", "code": "def f(x):\n    return x", "input": "3", "output": "4"}]  # fmt: skip


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxExecutor]:
    with SandboxExecutor(workers=1) as executor:
        yield executor


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "cruxeval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def loaded(file: Path) -> ModuleType:
    """Import a Python file of an exported folder, as a harness does."""
    spec = importlib.util.spec_from_file_location(f"exported_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Loader(yaml.SafeLoader):
    """Reads the name of a function as text."""


Loader.add_constructor("!function", lambda loader, node: f"function {loader.construct_scalar(node)}")


# -- what is written ---------------------------------------------------------------------------------------------------


def test_a_task_of_lm_eval_asks_greedily_and_without_stop_strings(
    data: Path, tmp_path: Path, sandbox: SandboxExecutor
) -> None:
    output = tmp_path / "tasks"
    command = export(["cruxeval"], "lm-eval", output, sandbox, data_dir=data, choice=once(max_new_tokens=64))
    assert command == (
        f"lm_eval --model hf --model_args pretrained=MODEL --include_path {output} "
        "--tasks selfplay_gym_cruxeval-i,selfplay_gym_cruxeval-o"
    )
    task = yaml.load((output / "cruxeval-o.yaml").read_text(), Loader)
    assert task["generation_kwargs"] == {"until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": 64}
    assert task["process_results"] == "function scoring.process_results"
    assert task["metric_list"][0] == {"metric": "accuracy", "aggregation": "mean", "higher_is_better": True}
    assert task["metadata"]["version"] == RULES
    asked = [json.loads(line) for line in Path(task["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()]
    (suite,) = suites.load(["cruxeval-o"], Source(sandbox, data, "azr"))
    assert {row["id"]: row[task["doc_to_text"]] for row in asked} == suite.prompts()
    assert [row["id"] for row in asked] == ["a", "b"]  # the third one's reference is wrong


def test_nothing_hidden_is_written(data: Path, tmp_path: Path, sandbox: SandboxExecutor) -> None:
    export(["cruxeval-i"], "lm-eval", tmp_path / "tasks", sandbox, data_dir=data)
    for row in map(json.loads, (tmp_path / "tasks" / "cruxeval-i.jsonl").read_text().splitlines()):
        assert row.keys() == {"suite", "id", "prompt"}


def test_chats_are_asked_for_as_such(data: Path, tmp_path: Path, sandbox: SandboxExecutor) -> None:
    command = export(["cruxeval-i"], "lm-eval", tmp_path / "chat", sandbox, data_dir=data, choice=once(style="chat"))
    assert command.endswith(" --apply_chat_template")
    export(["cruxeval-i"], "inspect", tmp_path / "inspect", sandbox, data_dir=data)
    assert Export.read(tmp_path / "inspect").names == {"cruxeval-i": "chat"}
    assert (tmp_path / "inspect" / "cruxeval-i.jsonl").read_text() == (
        tmp_path / "chat" / "cruxeval-i.jsonl"
    ).read_text()


def test_the_tasks_of_inspect_have_names_of_functions(data: Path, tmp_path: Path, sandbox: SandboxExecutor) -> None:
    export(["cruxeval", "nano-easy"], "inspect", tmp_path / "tasks", sandbox, data_dir=data)
    text = (tmp_path / "tasks" / "tasks.py").read_text()
    compile(text, "tasks.py", "exec")
    assert re.findall(r"^def (\w+)", text, re.MULTILINE) == ["cruxeval_i", "cruxeval_o", "nano_easy"]


@pytest.mark.parametrize("there", ["file", "folder"])
def test_nothing_is_written_over(there: str, data: Path, tmp_path: Path, sandbox: SandboxExecutor) -> None:
    output = tmp_path / "tasks"
    if there == "file":
        output.touch()
    else:
        output.mkdir()
        (output / "mine").touch()
    with pytest.raises(InvalidConfig, match="is there already: choose a new or empty folder"):
        export(["cruxeval"], "inspect", output, sandbox, data_dir=data)
    assert output.is_file() or [file.name for file in output.iterdir()] == ["mine"]


def test_missing_data_and_misspelt_harnesses_leave_no_folder(tmp_path: Path, sandbox: SandboxExecutor) -> None:
    with pytest.raises(InvalidData, match="holds none of cruxeval"):
        export(["cruxeval"], "inspect", tmp_path / "tasks", sandbox, data_dir=tmp_path)
    with pytest.raises(InvalidConfig, match="no harness 'inspct'; did you mean 'inspect'"):
        export(["nano"], "inspct", tmp_path / "tasks", sandbox)
    assert not (tmp_path / "tasks").exists()


# -- how it is scored --------------------------------------------------------------------------------------------------


def test_completions_score_as_in_eval_and_no_verdict_is_no_score(
    data: Path, tmp_path: Path, sandbox: SandboxExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(["cruxeval-o"], "lm-eval", tmp_path / "tasks", sandbox, data_dir=data)
    scoring = loaded(tmp_path / "tasks" / "scoring.py")
    monkeypatch.setattr(scoring._SCORER, "executor", sandbox, raising=False)
    a, b = ({"suite": "cruxeval-o", "id": key} for key in "ab")
    assert scoring.process_results(a, ["1 + 1</think><answer>2</answer>"]) == {"accuracy": 1.0, "no_verdict": 0.0}
    assert scoring.process_results(b, ["7"]) == {"accuracy": 0.0, "no_verdict": 0.0}
    assert scoring.process_results({"suite": "cruxeval-o", "id": "broken"}, ["4"]) == {"no_verdict": 1.0}


def test_rows_of_a_group_count_together(
    data: Path, tmp_path: Path, sandbox: SandboxExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = suites.load_named

    def grouped(*arguments: Any) -> Loaded:
        (suite,) = load(*arguments).suites["cruxeval-o"]
        problems = tuple(replace(p, group="" if p.id == "b" else "g") for p in suite.problems)
        return Loaded({"cruxeval-o": [replace(suite, problems=problems)]}, {})

    monkeypatch.setattr(suites, "load_named", grouped)
    monkeypatch.setattr(Scorer, "executor", sandbox)
    export(["cruxeval-o"], "lm-eval", tmp_path / "tasks", sandbox, data_dir=data)
    task = yaml.load((tmp_path / "tasks" / "cruxeval-o.yaml").read_text(), Loader)
    assert task["metric_list"][0]["aggregation"] == "function scoring.mean_of_groups"
    scorer = Scorer(tmp_path / "tasks")
    found = [scorer.process_results({"suite": "cruxeval-o", "id": key}, ["2"])["accuracy"] for key in "ab"]
    assert found == [[1.0, "g", ""], [0.0, "", "b"]]
    assert harness.mean_of_groups([*found, [0.0, "g", ""]]) == 0.25


def test_a_protocol_is_exported_whole_and_asks_once(data: Path, tmp_path: Path, sandbox: SandboxExecutor) -> None:
    choice = once("customary")  # ten samples at 0.2, after two worked examples
    export(["cruxeval-o"], "lm-eval", tmp_path / "tasks", sandbox, data_dir=data, choice=choice)
    task = yaml.load((tmp_path / "tasks" / "cruxeval-o.yaml").read_text(), Loader)
    assert task["generation_kwargs"] == {
        "until": ["\nQuestion:"], "do_sample": True, "temperature": 0.2, "max_gen_toks": 1024
    }  # fmt: skip
    assert task["metadata"]["protocol"] == "customary*"
    row = json.loads((tmp_path / "tasks" / "cruxeval-o.jsonl").read_text().splitlines()[0])
    (put,) = prepare(["cruxeval-o"], Source(sandbox, data, "azr"), choice).puts
    assert row["prompt"] == put.suite.prompts()["a"]
    assert row["prompt"].count("Question:") > 1


def test_a_completion_ends_at_the_stops_of_its_protocol(
    data: Path, tmp_path: Path, sandbox: SandboxExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scorer, "executor", sandbox)
    export(["cruxeval-o"], "inspect", tmp_path / "tasks", sandbox, data_dir=data, choice=once("customary"))
    scorer = Scorer(tmp_path / "tasks")
    assert scorer.score("cruxeval-o", "a", "2\nQuestion: more? <answer>3</answer>").score == 1.0


def test_other_data_or_another_judge_is_refused(
    data: Path, tmp_path: Path, sandbox: SandboxExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(["cruxeval-o"], "lm-eval", tmp_path / "tasks", sandbox, data_dir=data)
    monkeypatch.setattr(Scorer, "executor", sandbox)
    (data / "cruxeval.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    with pytest.raises(InvalidData, match=r"data of cruxeval-o is .* or export it again"):
        Scorer(tmp_path / "tasks").score("cruxeval-o", "a", "2")
    export(["cruxeval-o"], "lm-eval", tmp_path / "again", sandbox, data_dir=data)
    monkeypatch.setattr(grading, "RULES", RULES + 1)
    with pytest.raises(InvalidData, match=r"the judge of cruxeval-o is \w+ there and \w+ here"):
        Scorer(tmp_path / "again").score("cruxeval-o", "a", "2")


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"suites": 3}', '{"suites": {}, "more": 1}'])
def test_a_folder_that_is_no_export_is_told(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / harness.HEAD).write_text(content)
    with pytest.raises(InvalidData) as caught:
        Scorer(tmp_path)
    assert "\n" not in str(caught.value)


# -- the harnesses themselves ------------------------------------------------------------------------------------------

SUITES = "nano-easy,list_functions,cruxeval"
LIMIT = 24


def environment(variable: str) -> Path:
    """Return the environment with a harness that a variable names."""
    stated = os.environ.get(variable)
    if not stated:
        pytest.skip(f"{variable} names no environment, see docs/evaluation.md")
    return Path(stated)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float, str]]:
    """Score and completion of the nano policy by ``suite/problem``."""
    if not os.environ.get(DATA_VARIABLE):
        pytest.skip(f"needs real data: set {DATA_VARIABLE}")
    from selfplay_gym.training.evaluate import evaluate_named

    keep = tmp_path_factory.mktemp("ours") / "answers.jsonl"
    with SandboxExecutor(workers=1) as executor:
        report = evaluate_named("nano", SUITES.split(","), executor, limit=LIMIT, keep=keep)
    lines = [json.loads(line) for line in keep.read_text().splitlines()[1:]]
    texts = {line["id"]: line["completion"] for line in lines}
    found = {f"{r.suite}/{row.id}": row.score for r in report.results for row in r.rows}
    assert len(found) == 4 * LIMIT
    assert 0 < sum(score == 1 for score in found.values()) < len(found)
    return {key: (float(score), texts[key]) for key, score in found.items() if score is not None}


def ran(*command: str | Path, **variables: str) -> None:
    """Run a command offline to its end."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run([*map(str, command)], env={**os.environ, **offline}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_lm_evaluation_harness_gives_our_numbers(
    ours: Mapping[str, tuple[float, str]], tmp_path: Path, sandbox: SandboxExecutor
) -> None:
    from selfplay_gym.training.evaluate import NANO_POLICY

    binaries, tasks = environment("SELFPLAY_GYM_LM_EVAL") / "bin", tmp_path / "tasks"
    export(SUITES.split(","), "lm-eval", tasks, sandbox, choice=once(style="compact"), limit=LIMIT)
    # Without max_length it cuts the beginning off what goes beyond the 384 tokens that the policy was made for.
    ran(
        binaries / "lm_eval", "--model", "hf", "--model_args", f"pretrained={NANO_POLICY},max_length=1024",
        "--include_path", tasks, "--tasks", "selfplay_gym", "--device", "cpu", "--batch_size", "24",
        "--log_samples", "--output_path", tmp_path / "out", HF_HOME=str(tmp_path / "cache"),
    )  # fmt: skip
    found = {}
    for file in (tmp_path / "out").rglob("samples_*.jsonl"):
        for row in map(json.loads, file.read_text().splitlines()):
            found[f"{row['doc']['suite']}/{row['doc']['id']}"] = row["accuracy"], row["resps"][0][0]
    assert found == ours
    (file,) = (tmp_path / "out").rglob("results_*.json")
    for task, numbers in json.loads(file.read_text())["results"].items():
        scores = [score for key, (score, _) in ours.items() if f"selfplay_gym_{key.partition('/')[0]}" == task]
        if scores:
            assert numbers["accuracy,none"] == pytest.approx(sum(scores) / len(scores))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_inspect_gives_our_numbers(
    ours: Mapping[str, tuple[float, str]], tmp_path: Path, sandbox: SandboxExecutor
) -> None:
    from selfplay_gym.training.evaluate import NANO_POLICY
    from selfplay_gym.training.policy import Policy

    binaries, tasks = environment("SELFPLAY_GYM_INSPECT") / "bin", tmp_path / "tasks"
    command = export(SUITES.split(","), "inspect", tasks, sandbox, choice=once(style="compact"), limit=LIMIT)
    policy, alone = Policy.load(NANO_POLICY), threading.Lock()

    def answer(body: dict[str, Any], tried: int) -> Reply:
        assert body["temperature"] == 0
        (message,) = body["messages"]
        with alone:
            how = {"chat": False, "max_new_tokens": body["max_tokens"], "temperature": 0.0, "seed": 0}
            (completion,) = policy.sample([message["content"]], **how)
        reply = chat(completion.text, "stop" if completion.sample.finished else "length")
        reply.body["choices"][0]["index"] = 0
        return replace(
            reply, body={"id": "1", "object": "chat.completion", "created": 0, "model": "nano", **reply.body}
        )

    with serving(answer) as server:
        ran(
            binaries / "inspect", *shlex.split(command)[1:-1], "openai-api/local/nano", "--display", "none",
            "--log-dir", tmp_path / "logs", "--log-format", "json", LOCAL_API_KEY="none", LOCAL_BASE_URL=server.url,
        )  # fmt: skip
    found = {}
    for log in (json.loads(file.read_text()) for file in (tmp_path / "logs").glob("*.json")):
        assert log["status"] == "success", log["error"]
        name = log["eval"]["task"].removeprefix("selfplay_gym_")
        for sample in log["samples"]:
            text = sample["output"]["choices"][0]["message"]["content"]
            found[f"{name}/{sample['id']}"] = sample["scores"]["sandbox"]["value"], text
        scores = [score for key, (score, _) in ours.items() if key.partition("/")[0] == name]
        metrics = log["results"]["scores"][0]["metrics"]
        assert metrics["mean"]["value"] == pytest.approx(sum(scores) / len(scores))
    assert found == ours


IN_INSPECT = """
import math, sys
import tasks
from inspect_ai.model import ChatMessageAssistant, ContentReasoning, ContentText, ModelOutput
from inspect_ai.scorer import SampleScore
from selfplay_gym import inspect_tasks as ours
from selfplay_gym.results import RowScore

assert "torch" not in sys.modules
assert [sample.id for sample in tasks.nano_easy().dataset] == ["deduction-000", "abduction-000", "induction-000"]
parts = [ContentReasoning(reasoning="1 + 1"), ContentText(text="<answer>2</answer>")]
output = ModelOutput.from_message(ChatMessageAssistant(content=parts))
assert ours.completion_of(output) == "<think>1 + 1</think><answer>2</answer>"
assert ours.completion_of(ModelOutput(model="m")) == ""
rows = [RowScore("a", 1.0, "", (1.0,), "g"), RowScore("b", 0.0, "wrong", (0.0,), "g"), RowScore("c", 1.0, "", (1.0,))]
scores = [SampleScore(score=ours._score(row, "2")) for row in rows]
assert ours.group_mean()(scores) == 0.75
assert [score.score.explanation for score in scores] == ["right", "wrong", "right"]
assert math.isnan(ours._score(RowScore("d", None, "no verdict", (None,)), "2").value)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_parts_of_a_task_of_inspect(tmp_path: Path, sandbox: SandboxExecutor) -> None:
    python, tasks = environment("SELFPLAY_GYM_INSPECT") / "bin" / "python", tmp_path / "tasks"
    export(["nano-easy"], "inspect", tasks, sandbox, limit=3)
    ran(python, "-P", "-c", IN_INSPECT, PYTHONPATH=str(tasks))
