"""The think/answer frame and fenced blocks."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfplay_gym.frame import answer_of, blocks, last_block

WITHOUT_TAGS = st.text(alphabet="ab<>/ \n`$Assistant:", max_size=40)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("thought</think><answer>4</answer>", "4"),
        ("<think>thought</think><answer>4</answer>", "4"),
        ("  <think>\nthought\n</think>\n\n<answer>\n4\n</answer>\n", "4"),
        ("</think><answer></answer>", ""),
        ("a < b</think><answer>1 < 2</answer>", "1 < 2"),
        ("Assistant: x</think><answer>User: y</answer>", "User: y"),
    ],
)
def test_a_framed_completion_has_an_answer(completion: str, answer: str) -> None:
    assert answer_of(completion) == answer


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "4",
        "<answer>4</answer>",
        "t</think>4",
        "t</think><answer>4",
        "t</think>4</answer>",
        "t</think><answer>4</answer> and more",
        "t</think>so<answer>4</answer>",
        "t</think><answer>1</answer><answer>2</answer>",
        "t<answer>1</answer></think><answer>2</answer>",
        "t</think><answer>1<answer>2</answer></answer>",
        "t</think></think><answer>1</answer>",
        "<think><think>t</think><answer>1</answer>",
        "before<think>t</think><answer>1</answer>",
        "t</think><answer>a</think><answer>b</answer>",
        "t</THINK><answer>1</answer>",
    ],
)
def test_anything_else_has_none(completion: str) -> None:
    assert answer_of(completion) is None


@given(WITHOUT_TAGS, WITHOUT_TAGS)
def test_what_is_framed_is_read_back(thought: str, answer: str) -> None:
    # One character of a tag may stand anywhere; the whole tag is what ends a part.
    assert answer_of(f"{thought}</think><answer>{answer}</answer>") == answer.strip()


@pytest.mark.parametrize(
    "text", ["<think>" * 4000, "</think> <answer>" * 4000, "<" * 60_000, " " * 60_000 + "<answer>"]
)
def test_a_hostile_completion_is_read_in_linear_time(text: str) -> None:
    start = time.process_time()
    assert answer_of(text) is None
    blocks(text.replace("<", "```"), "python")
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("```input\n1\n```", ["1"]),
        ("```input\n1```", ["1"]),
        ("```input  \n1\n```", ["1"]),
        ("```input\r\n1\n```", ["1"]),
        ("```input\n\n```", [""]),
        ("```input\n1\n2\n```", ["1\n2"]),
        ("```input\n1\n```\ntext\n```input\n2\n```", ["1", "2"]),
        ("```python\nx\n```\n```input\n2\n```", ["2"]),
        ("```input_1\n1\n```\n```input\n2\n```", ["2"]),
        ("```c++ code\n1\n```\n```input\n2\n```", ["2"]),
        ("```\n1\n```\n```input\n2\n```", ["2"]),
        ("```inputs\n1\n```", []),
        ("```Input\n1\n```\n```INPUT\n2\n```", ["1", "2"]),
        ("```input\n1", []),
        ("input\n1", []),
    ],
)
def test_blocks_have_the_label(answer: str, found: list[str]) -> None:
    assert blocks(answer, "input") == found


def test_the_last_block_counts_and_a_bare_answer_stands_for_one() -> None:
    assert last_block("```output\n1\n```\n```output\n2\n```", "output") == "2"
    assert last_block(" 3 ", "output") == "3"


@pytest.mark.parametrize("written", ["", "output", "Output", "python", "text", " OUTPUT "])
def test_a_single_block_counts_whatever_its_label(written: str) -> None:
    assert last_block(f"It is\n```{written}\n1\n```\nI think.", "output") == "1"


@pytest.mark.parametrize("written", ["python", "Python", "py", "python3"])
def test_python_has_several_names(written: str) -> None:
    assert last_block(f"```{written}\nx\n```\n```\ny\n```", "python") == "x"
    assert blocks("```py\nx\n```", "python") == []


def test_a_block_with_the_label_goes_before_a_later_one_without() -> None:
    assert last_block("```output\n1\n```\n```\n2\n```", "output") == "1"


@pytest.mark.parametrize(
    "answer", ["```\n1\n```\n```text\n2\n```", "```output\n1", "```\n1\n```\n```output\n2", "1 ```", ""]
)
def test_an_answer_that_cannot_be_told_is_empty(answer: str) -> None:
    assert last_block(answer, "output") == ""
