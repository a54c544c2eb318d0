"""Named protocols: frozen, hashed, and what a user changes of them is told."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfplay_gym import eval_protocols, results, suites
from selfplay_gym.answers import Answer, Question, Sampling
from selfplay_gym.errors import InvalidConfig, InvalidData, MissingData, UnknownId
from selfplay_gym.eval_protocols import DEFAULT, PROTOCOLS, Choice, EvalProtocol, cut, protocol_of, protocols_of
from selfplay_gym.evaluating import Model, evaluate_answers, rescore
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.maths import EXACTLY, compare, final_answer
from selfplay_gym.suites import Source
from selfplay_gym.types import Execution, Job, Status

PROMPTS = Path(__file__).parent.parent / "tasks" / "prompts"
FIXTURES = Path(__file__).parent / "fixtures" / "suites"

# A protocol is a promise about numbers that are already published. Change a hash here only together with the name of
# the protocol, or with the version of the rules that made it change.
FROZEN = {
    "default": "1d9b727902cdb49c",
    "azr-paper/cruxeval": "d1e506ed1e154c63",
    "azr-paper/humaneval+": "76ea8e45ca10a56d",
    "azr-paper/mbpp+": "a7865204b0936cd0",
    "azr-paper/livecodebench": "16110380fcf92fda",
    "azr-paper/aime24": "6e407831e4a1b846",
    "azr-paper/aime25": "6e407831e4a1b846",
    "azr-paper/amc23": "6e407831e4a1b846",
    "azr-paper/math500": "6e407831e4a1b846",
    "azr-paper/minerva": "6e407831e4a1b846",
    "azr-paper/olympiadbench": "6e407831e4a1b846",
    "customary/cruxeval": "86de461d88c89540",
    "customary/humaneval": "08410ecd3b3cb239",
    "customary/humaneval+": "08410ecd3b3cb239",
    "customary/mbpp": "9094fd2a7d8761b1",
    "customary/mbpp+": "9094fd2a7d8761b1",
    "customary/mbpp_sanitized": "9094fd2a7d8761b1",
    "customary/livecodebench": "23e553c9c23df707",
    "customary/ifeval": "faaa182401420529",
    "customary/gsm8k": "e5c08278db125cce",
    "customary/svamp": "e5c08278db125cce",
    "customary/asdiv": "e5c08278db125cce",
    "customary/multiarith": "e5c08278db125cce",
    "customary/math500": "7d4a330f114ee410",
    "customary/minerva": "7d4a330f114ee410",
    "customary/olympiadbench": "7d4a330f114ee410",
    "customary/aime24": "ed4a10e020634115",
    "customary/aime25": "ed4a10e020634115",
    "customary/amc23": "ed4a10e020634115",
    "customary/hmmt": "ed4a10e020634115",
    "customary/hmmt24": "ed4a10e020634115",
    "customary/hmmt25": "ed4a10e020634115",
}


class Scripted:
    """Answers with a text, and remembers what it was asked."""

    def __init__(self, text: str = "x") -> None:
        self.text = text
        self.asked: list[tuple[bool, Sampling, str]] = []

    def __call__(self, chat: bool, sampling: Sampling) -> Scripted:
        self.chat, self.sampling = chat, sampling
        return self

    def answers(self, questions: Sequence[Question]) -> Generator[tuple[Question, Answer | Exception]]:
        for question in questions:
            self.asked.append((self.chat, self.sampling, question.prompt))
            yield question, Answer(self.text, True)


def ask(scripted: Scripted, names: Sequence[str], executor: Any, style: str = "azr", **how: Any) -> results.Report:
    how.setdefault("data_dir", FIXTURES)
    return evaluate_answers(Model("m", scripted, {"model": "m"}, style, {}), names, executor, **how)


@pytest.fixture
def executor(fake: Callable[..., Any]) -> Any:
    return fake(lambda program, text: Execution(Status.OK, "1"))


def frozen() -> dict[str, EvalProtocol]:
    table = {f"{name}/{suite}": each for name, entries in PROTOCOLS.items() for suite, each in entries.items()}
    return {"default": DEFAULT, **table}


# -- frozen ------------------------------------------------------------------------------------------------------------


def test_no_protocol_changes_unnoticed() -> None:
    assert {name: protocol.digest() for name, protocol in frozen().items()} == FROZEN


@pytest.mark.parametrize(
    "change",
    [
        {"style": "chat"},
        {"template": "boxed"},
        {"closed": True},
        {"stops": ("\n\n",)},
        {"sampling": Sampling(samples=2, temperature=0.5)},
        {"sampling": Sampling(max_new_tokens=7)},
    ],
)
def test_whatever_a_score_depends_on_is_in_the_hash(change: dict[str, Any]) -> None:
    assert replace(DEFAULT, **change).digest() != DEFAULT.digest()


def test_the_seed_is_not_in_the_hash_and_the_rules_of_judging_are(monkeypatch: pytest.MonkeyPatch) -> None:
    before = DEFAULT.digest()
    assert replace(DEFAULT, sampling=Sampling(seed=7)).digest() == before
    monkeypatch.setattr(eval_protocols.maths, "RULES", 99)
    assert DEFAULT.digest() != before


@pytest.mark.parametrize("name", ["customary/gsm8k", "customary/cruxeval", "azr-paper/aime24", "azr-paper/cruxeval"])
def test_a_prompt_text_that_changes_changes_the_hash(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = frozen()[name].digest()
    text = eval_protocols._text
    monkeypatch.setattr(eval_protocols, "_text", lambda name: text(name) + "!")
    assert frozen()[name].digest() != before


def test_the_entries_of_the_table_are_named_as_the_table_says() -> None:
    assert all(each.name == name for name, entries in PROTOCOLS.items() for each in entries.values())
    assert {suite for entries in PROTOCOLS.values() for suite in entries} <= set(suites.SUITES.names())


# -- the choice --------------------------------------------------------------------------------------------------------


def test_every_suite_has_the_default_and_parts_have_what_the_whole_has() -> None:
    assert protocols_of("nano-easy") == ["default"]
    assert protocols_of("cruxeval-i") == protocols_of("cruxeval") == ["default", "azr-paper", "customary"]
    assert protocol_of("customary", "list_functions") is None


def test_names_with_commas_are_an_order_of_preference() -> None:
    assert [protocol_of("customary,default", suite) for suite in ("gsm8k", "nano")] == [
        PROTOCOLS["customary"]["gsm8k"],
        DEFAULT,
    ]


def test_what_differs_from_the_protocol_is_told_by_an_asterisk() -> None:
    def named(**how: Any) -> str:
        return Choice("customary", **how).of("gsm8k").name

    assert [named(), named(sampling={"seed": 3}), named(style="chat")] == ["customary"] * 3
    assert [named(sampling={"max_new_tokens": 9}), named(sampling=Sampling(samples=2, temperature=1.0))] == [
        "customary*"
    ] * 2
    assert Choice("azr-paper", style="azr").of("math500").name == "azr-paper"
    assert Choice("azr-paper", style="chat").of("math500").name == "azr-paper*"


def test_a_protocol_that_samples_can_be_asked_for_fewer_samples() -> None:
    choice = Choice("customary", sampling={"samples": 4, "seed": 7})
    sampling = choice.of("aime24").sampling
    assert (choice.seed, sampling.samples, sampling.temperature, sampling.seed) == (7, 4, 0.6, 7)


def test_a_change_leaves_the_rest_of_the_sampling_as_it_is() -> None:
    asked = Choice("customary", sampling={"samples": 4}).of("aime24").sampling
    assert asked == replace(PROTOCOLS["customary"]["aime24"].sampling, samples=4)


def test_a_protocol_that_is_not_there_is_told_for_all_suites_at_once(executor: Any) -> None:
    with pytest.raises(UnknownId, match="no protocol 'costomary'; did you mean 'customary'"):
        ask(Scripted(), ["cruxeval"], executor, protocol="costomary")
    told = r"no protocol customary for nano, list_functions; there is default \(--protocol A,default takes"
    with pytest.raises(InvalidConfig, match=told):
        ask(Scripted(), ["nano", "cruxeval", "list_functions:3"], executor, protocol="customary")
    with pytest.raises(UnknownId, match="no prompt style 'fancy'"):
        Choice(style="fancy").check(["nano"])


# -- what a model is asked ---------------------------------------------------------------------------------------------


def test_each_suite_of_one_evaluation_is_asked_by_its_own_protocol(sandbox: SandboxExecutor, tmp_path: Path) -> None:
    scripted = Scripted("</think><answer>1</answer>")
    how: dict[str, Any] = {"protocol": "customary,default", "keep": tmp_path / "kept.jsonl"}
    report = ask(scripted, ["nano-easy:2", "cruxeval-o:2"], sandbox, "chat", **how)
    first, second = report.results
    assert [first.settings["protocol"], second.settings["protocol"]] == ["default", "customary"]
    assert [first.metric, second.metric, second.settings["template"]] == ["accuracy", "avg@10", "direct"]
    asked = [(sampling.samples, sampling.max_new_tokens) for _, sampling, _ in scripted.asked]
    assert asked == [(1, 2048)] * 2 + [(10, 1024)] * 20
    again = rescore(how["keep"], sandbox, data_dir=FIXTURES)
    assert json.dumps(again.as_dict()) == json.dumps(report.as_dict())
    assert "protocol customary " in str(again.table().caption)
    ask(scripted, ["nano-easy:2", "cruxeval-o:2"], sandbox, "chat", **how)
    assert len(scripted.asked) == 22


def test_a_protocols_text_goes_through_the_models_chat_template_where_it_has_one(sandbox: SandboxExecutor) -> None:
    for style, chat in (("chat", True), ("azr", False), ("compact", False)):
        scripted = Scripted()
        ask(scripted, ["cruxeval-o:1"], sandbox, style, protocol="customary")
        assert {asked[0] for asked in scripted.asked} == {chat}
        assert all(prompt.endswith("Answer:") for _, _, prompt in scripted.asked)


def test_the_hidden_part_is_in_no_prompt_of_a_template(sandbox: SandboxExecutor) -> None:
    for name, hidden in (("cruxeval-o", "output"), ("cruxeval-i", "input")):
        scripted = Scripted()
        report = ask(scripted, [f"{name}:1"], sandbox, protocol="customary")
        assert report.results[0].n == 1
        (suite,) = suites.load([name], Source(sandbox, FIXTURES))
        task = suite.problems[0].task
        assert task is not None
        question = scripted.asked[0][2].rpartition("Question:")[2]
        assert task.program in question
        assert getattr(task.triplets[0], {"output": "input", "input": "output"}[hidden]) in question
        assert f"```{hidden}" not in question


def test_the_papers_evaluation_does_not_open_the_thought(executor: Any, tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    (tmp_path / "math500.jsonl").write_text('{"id": "a", "question": "1+1?", "answer": "2"}\n')
    prompts = {}
    for protocol in ("azr-paper", "default"):
        scripted = Scripted()
        ask(scripted, ["math500"], executor, "azr", protocol=protocol, data_dir=tmp_path)
        prompts[protocol] = scripted.asked[0][2]
    assert prompts["default"] == prompts["azr-paper"] + " <think>"


def test_a_completion_ends_where_the_next_question_begins(sandbox: SandboxExecutor, tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    (tmp_path / "gsm8k.jsonl").write_text('{"id": "a", "question": "1+1?", "answer": "2"}\n')
    text = " 1 + 1 = 2. The answer is 2.\n\nQuestion: 2 + 2?\nAnswer: The answer is 4."
    values = {
        protocol: ask(Scripted(text), ["gsm8k"], sandbox, protocol=protocol, data_dir=tmp_path).results[0].value
        for protocol in ("customary", "default")
    }
    assert values == {"customary": 1.0, "default": 0.0}
    assert cut("a<b>c<d>", ["<d>", "<b>"]) == "a"


def test_the_rules_of_a_family_are_in_the_hash_of_the_result(tmp_path: Path, executor: Any) -> None:
    pytest.importorskip("math_verify")
    for name in ("minerva_math", "math500"):
        (tmp_path / f"{name}.jsonl").write_text('{"id": "a", "question": "1+1?", "answer": "2"}\n')
    found = {
        r.suite: r.settings["family_rules"]
        for r in ask(Scripted(), ["minerva", "math500"], executor, data_dir=tmp_path).results
    }
    assert found["minerva"] == {"maths": {"maths": 1, "relative": "1/100", "absolute": "0"}}
    assert found["math500"] == {"maths": {"maths": 1, "relative": "0", "absolute": "0"}}


# -- worked examples ---------------------------------------------------------------------------------------------------


def examples(name: str) -> list[tuple[str, str]]:
    """Question and answer of each worked example."""
    parts = (PROMPTS / name).read_text().replace("$$", "$").split("Question:")[1:-1]
    return [(question.strip(), answer.strip()) for question, _, answer in (part.partition("Answer:") for part in parts)]


def test_the_worked_calculations_are_right_and_end_as_answers_are_read() -> None:
    shown = examples("worked.maths.txt")
    assert len(shown) == 8
    for _, answer in shown:
        steps = re.findall(r"([\d.]+(?: [-+*/] [\d.]+)+) = ([\d.]+\d|\d+)", answer)
        assert steps
        for left, right in steps:
            assert _value(left) == pytest.approx(float(right))
        found = compare(final_answer(answer), steps[-1][1], EXACTLY)
        assert found is not None
        assert found.equal


def _value(text: str) -> float:
    """Of a chain of one kind of operation, or of one operation."""
    numbers, operators = [float(part) for part in text.split()[::2]], text.split()[1::2]
    total = numbers[0]
    for operator, number in zip(operators, numbers[1:], strict=True):
        total = {"+": total + number, "-": total - number, "*": total * number, "/": total / number}[operator]
    return total


@pytest.mark.parametrize("name", ["direct.deduction.txt", "direct.abduction.txt"])
def test_the_worked_programs_give_what_is_said(sandbox: SandboxExecutor, name: str) -> None:
    shown = examples(name)
    assert len(shown) == 2
    for question, answer in shown:
        found = dict(re.findall(r"```(\w+)\n(.*?)\n```", f"{question}\n{answer}", re.DOTALL))
        (run,) = sandbox.run([Job(found["python"], (found["input"],))])[0]
        assert run.value == found["output"]


@pytest.mark.skipif(not os.environ.get(suites.DATA_VARIABLE), reason=f"set {suites.DATA_VARIABLE} to the data files")
def test_no_worked_example_is_a_row_that_is_scored() -> None:
    folder = Path(os.environ[suites.DATA_VARIABLE])
    files = [path for name in ("gsm8k", "svamp", "asdiv", "multiarith", "cruxeval") for path in folder.glob(f"{name}*")]
    assert len(files) >= 5
    texts = [path.read_text() for path in files]
    for name in ("worked.maths.txt", "direct.deduction.txt", "direct.abduction.txt"):
        for question, _ in examples(name):
            words = re.findall(r"\w+", question)
            grams = {" ".join(words[i : i + 8]) for i in range(len(words) - 7)}
            spread = [" ".join(re.findall(r"\w+", text)) for text in texts]
            assert not [gram for gram in grams for text in spread if gram in text]


# -- groups, and what is missing ---------------------------------------------------------------------------------------


def test_what_was_skipped_is_told_and_scoring_again_does_not_ask_for_it(
    sandbox: SandboxExecutor, tmp_path: Path
) -> None:
    keep, folder = tmp_path / "kept.jsonl", tmp_path / "data"
    folder.mkdir()
    shutil.copy(FIXTURES / "cruxeval.jsonl", folder)
    how: dict[str, Any] = {"data_dir": folder, "skip_missing": True, "keep": keep}
    report = ask(Scripted(), ["arc_1d", "cruxeval-o:2"], sandbox, **how)
    assert [result.suite for result in report.results] == ["cruxeval-o"]
    assert report.warnings()[0].startswith("arc_1d is left out: ")
    assert rescore(keep, sandbox, data_dir=folder).as_dict() == report.as_dict()
    with pytest.raises(MissingData, match="no data for 1 of 2 suites"):
        ask(Scripted(), ["arc_1d", "cruxeval-o:2"], sandbox, data_dir=folder)


def test_a_file_of_another_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_text('{"evaluation": {"format": 1, "model": "m"}}\n')
    with pytest.raises(InvalidData, match="score the file with `selfplay-gym eval --completions`"):
        rescore(tmp_path / "old.jsonl", None)  # type: ignore[arg-type]
