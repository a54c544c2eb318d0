"""IFEval: each instruction told apart, strict and loose scores, and no text that takes long."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from selfplay_gym import suites
from selfplay_gym.errors import InvalidData
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.grading import grade
from selfplay_gym.instructions import CHECKS, follows, sentences, variants
from selfplay_gym.languages import LANGUAGES, is_in
from selfplay_gym.results import SuiteResult
from selfplay_gym.suites import Source, Suite

REAL = Path(os.environ.get(suites.DATA_VARIABLE, ""))

Case = tuple[str, dict[str, Any], list[str], list[str]]
CASES: list[Case] = [
    ("punctuation:no_comma", {}, ["none here.", "؛"], ["one, two", ","]),
    ("keywords:existence", {"keywords": ["War", "peace"]}, ["Warfare and Peace"], ["war", ""]),
    ("keywords:forbidden_words", {"forbidden_words": ["run", "a.b"]}, ["running", "axb"], ["Run!", "he (a.b)"]),
    ("keywords:frequency", {"relation": "at least", "keyword": "the", "frequency": 2}, ["The other"], ["the"]),
    ("keywords:frequency", {"relation": "less than", "keyword": "a.", "frequency": 1}, ["ab"], ["a."]),
    ("keywords:letter_frequency", {"let_relation": "at least", "letter": "Q", "let_frequency": 2}, ["qQ"], ["q"]),
    ("keywords:letter_frequency", {"let_relation": "less than", "letter": "!", "let_frequency": 1}, ["a"], ["a!"]),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 3}, ["it's so"], ["so, so"]),
    ("length_constraints:number_words", {"relation": "less than", "num_words": 2}, ["well_known"], ["well-known"]),
    (
        "length_constraints:number_sentences",
        {"relation": "less than", "num_sentences": 2},
        ["Mr. X ran."],
        ["A b. C d."],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "***a *** b***"],
        ["a", "a******b", "a***b***c"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Bonding"},
        ['a\n\n"bonding, he', "a\n\nBonding's"],
        ["a\n\nThe bonding", "bonding", "a\n\nbonding\n\nb", "a\n\n\n\nbonding"],
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[a] [b c]", "[[a] []"], ["[a", "[a\n] [b]"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["x\nP.S. y", "p. s. y"], ["PS y", "p.s"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["P.P.S y", "p. p. s"], ["P.S. y"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n  - b", "*a\nx\n*b"],
        ["* a", "**a**\n* b", "-\n-\n-"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* **b**", "*a*\n*b*"],
        ["*a*", "** **\n* *", "*a\nb*"],
    ),
    ("detectable_format:constrained_response", {}, ["So: My answer is yes. Bye"], ["My answer is yes", "yes"]),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Day", "num_sections": 2},
        ["Day 1 a\nDay2 b"],
        ["Day 1", "day 1 day 2"],
    ),
    ("detectable_format:json_format", {}, ['{"a": [1]}', "```json\n[1]\n```", "3"], ["{a: 1}", "so: {}", "[" * 9999]),
    ("detectable_format:title", {}, ["<<a>>", "x <<<a b>>> y"], ["<a>", "<<>>", "<<a\n>>", "<< >>", ">><<"]),
    (
        "combination:two_responses",
        {},
        ["a******b", "******a******b******"],
        ["a", "a******a", "a************b", "a******b******c"],
    ),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it. "}, [" say it. No."], ["No. Say it."]),
    ("startend:end_checker", {"end_phrase": "Is it?"}, ['So, "is IT?" ', "Is it?"], ["Is it? Yes"]),
    ("startend:quotation", {}, [' "a" ', '""'], ['"', 'a"b"', "'a'"]),
    ("change_case:english_capital", {}, ["YES.", "THE END OF IT"], ["Yes", "JA ES IST DAS WAHR", "123"]),
    ("change_case:english_lowercase", {}, ["the end of it"], ["The end", "das ist nicht die welt"]),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "at least", "capital_frequency": 2},
        ["I say NO", "U.S. WELL-KNOWN"],
        ["I say no", "DON'T"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "less than", "capital_frequency": 1},
        ["no A1b"],
        ["A"],
    ),
    (
        "language:response_language",
        {"language": "de"},
        ["Das ist nicht die ganze Wahrheit."],
        ["That is not the whole truth.", "ja", "это"],
    ),
]


@pytest.mark.parametrize(("name", "arguments", "right", "wrong"), CASES, ids=[case[0] for case in CASES])
def test_an_instruction_is_followed_or_not(
    name: str, arguments: dict[str, Any], right: list[str], wrong: list[str]
) -> None:
    assert [text for text in right if not follows(name, arguments, text)] == []
    assert [text for text in [*wrong, "", " \n "] if follows(name, arguments, text)] == []


def test_every_instruction_has_a_case() -> None:
    assert {case[0] for case in CASES} == CHECKS.keys()
    assert len(CHECKS) == 25


HOSTILE = [
    "*",
    "* ",
    "[",
    "<",
    "<<",
    ".",
    "\n",
    " ",
    "- ",
    "a.",
    "A-",
    "***",
    "p.",
    "{",
    '"',
    "Day ",
    "1",
    "é",
    "[a",
    ".",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_no_text_takes_long(piece: str) -> None:
    text = piece * (200_000 // len(piece)) + "x"
    for name, arguments, _, _ in CASES:
        begin = time.process_time()
        follows(name, arguments, text)
        assert time.process_time() - begin < 2.0, name  # a quadratic check would take minutes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two! Three? Four", 4),
        ('He said "Go." Then he went.', 2),
        ("It costs 3.5 dollars. This one, e.g. that.", 2),
        ("What?! No... really.", 2),
        ("J. R. R. Tolkien wrote it. Mr. Smith read it.", 2),
        ("यह है। वह नहीं है।", 2),
        ("1. First.\n2. Second.", 4),
        ("   ", 0),
    ],
)
def test_sentences_are_counted(text: str, count: int) -> None:
    assert sentences(text) == count


TEXTS = {
    "ar": "هذا هو البيت الذي كنا نعيش فيه من قبل",
    "bg": "Това е къщата, в която живеехме, и тя не е голяма",
    "bn": "এটা সেই বাড়ি যেখানে আমরা থাকতাম",
    "de": "Das ist das Haus, in dem wir früher gewohnt haben",
    "en": "This is the house in which we lived before",
    "es": "Esta es la casa en la que vivíamos antes",
    "fa": "این خانه ای است که ما در آن زندگی می کردیم",
    "fi": "Tämä on se talo, jossa me olimme kun hän tuli",
    "fr": "C'est la maison dans laquelle nous vivions avec elle",
    "gu": "આ તે ઘર છે જ્યાં અમે રહેતા હતા",
    "hi": "यह वह घर है जिसमें हम पहले रहते थे और यह बड़ा नहीं है",
    "it": "Questa è la casa in cui non ho più vissuto con lei",
    "kn": "ಇದು ನಾವು ವಾಸಿಸುತ್ತಿದ್ದ ಮನೆ",
    "ko": "이것은 우리가 살던 집입니다",
    "mr": "हे घर आहे आणि आम्ही त्या घरामध्ये राहत होतो पण ते मोठे नाही",
    "ne": "यो घर हो र हामी यहाँ बस्थ्यौं तर यो ठूलो छैन भने पनि राम्रो छ",
    "pa": "ਇਹ ਉਹ ਘਰ ਹੈ ਜਿੱਥੇ ਅਸੀਂ ਰਹਿੰਦੇ ਸੀ",
    "pt": "Esta é a casa em que nós não moramos mais, e ela é muito grande",
    "ru": "Это дом, в котором мы жили, и он не очень большой",
    "sw": "Hii ni nyumba ambayo watu wa kijiji walikaa kwa muda na baada ya hapo",
    "ta": "இது நாங்கள் வாழ்ந்த வீடு",
    "te": "ఇది మేము నివసించిన ఇల్లు",
    "th": "นี่คือบ้านที่เราเคยอยู่",
    "uk": "Це дім, у якому ми жили, і він не дуже великий",
    "ur": "یہ وہ گھر ہے جس میں ہم رہتے تھے اور یہ بڑا نہیں ہے",
    "vi": "Đây là ngôi nhà mà chúng tôi đã ở trong những năm đó",
}


@pytest.mark.parametrize("language", sorted(TEXTS))
def test_a_sentence_is_in_its_language_and_in_no_other(language: str) -> None:
    assert {each for each in LANGUAGES if is_in(each, TEXTS[language])} == {language}
    assert TEXTS.keys() == LANGUAGES


def test_loosely_the_first_line_the_last_and_asterisks_may_go() -> None:
    assert len(variants("Sure!\n*text*\nBye")) == 8
    assert "text" in variants("Sure!\n*text*\nBye")


# -- the suite ---------------------------------------------------------------------------------------------------------

WORDS = "length_constraints:number_words"
ROWS: list[dict[str, Any]] = [
    {"id": "ifeval/1", "prompt": "Write, without commas, at least 3 words.",
     "instruction_id_list": ["punctuation:no_comma", WORDS],
     "kwargs": [{}, {"relation": "at least", "num_words": 3}]},
    {"id": "ifeval/2", "prompt": "Quote.", "instruction_id_list": ["startend:quotation"], "kwargs": [{}]},
]  # fmt: skip


@pytest.fixture(scope="module")
def executor() -> Iterator[SandboxExecutor]:
    with SandboxExecutor(workers=1) as sandbox:
        yield sandbox


def load(executor: SandboxExecutor, folder: Path, *rows: dict[str, Any]) -> Suite:
    (folder / "ifeval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (suite,) = suites.load(["ifeval"], Source(executor, folder, "chat"))
    return suite


def score(executor: SandboxExecutor, suite: Suite, answers: dict[str, list[str]]) -> SuiteResult:
    return grade(suite, answers, executor)


def test_scores_are_strict_and_loose_by_prompt_and_by_instruction(executor: SandboxExecutor, tmp_path: Path) -> None:
    suite = load(executor, tmp_path, *ROWS)
    assert suite.prompts()["ifeval/1"] == ROWS[0]["prompt"]
    result = score(executor, suite, {"ifeval/1": ["one, two"], "ifeval/2": ['Sure:\n"so"']})
    assert (result.metric, result.value, [row.reason for row in result.rows]) == (
        "prompt_strict", 0.0, ["punctuation:no_comma", "startend:quotation"],
    )  # fmt: skip
    assert result.extra == {"prompt_loose": 0.5, "instruction_strict": 0.0, "instruction_loose": 1 / 3}
    result = score(executor, suite, {"ifeval/1": ["one two three"], "ifeval/2": ['"so"']})
    assert (result.value, set(result.extra.values())) == (1.0, {1.0})


def test_a_missing_answer_follows_no_instruction(executor: SandboxExecutor, tmp_path: Path) -> None:
    result = score(executor, load(executor, tmp_path, *ROWS), {"ifeval/1": ["one two three"]})
    assert (result.value, result.missing) == (0.5, 1)
    assert result.extra == {"prompt_loose": 0.5, "instruction_strict": 2 / 3, "instruction_loose": 2 / 3}


def test_what_cannot_be_decided_has_no_verdict(executor: SandboxExecutor, tmp_path: Path) -> None:
    odd = {**ROWS[1], "id": "odd", "instruction_id_list": ["keywords:rhyme"]}
    far = {
        **ROWS[1],
        "id": "far",
        "instruction_id_list": ["language:response_language"],
        "kwargs": [{"language": "xx"}],
    }
    result = score(executor, load(executor, tmp_path, *ROWS, odd, far), {})
    assert [row.reason for row in result.rows[2:]] == [
        "no verdict: no check of the instruction keywords:rhyme", "no verdict: no rule for the language xx",
    ]  # fmt: skip
    assert (result.n, result.no_verdict) == (2, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"kwargs": []},
        {"instruction_id_list": [], "kwargs": []},
        {"kwargs": [3]},
        {"kwargs": [{"num_words": 3}]},
        {"instruction_id_list": ["length_constraints:number_words"], "kwargs": [{"relation": "about", "num_words": 3}]},
        {
            "instruction_id_list": ["length_constraints:number_words"],
            "kwargs": [{"relation": "at least", "num_words": "3"}],
        },
    ],
)
def test_a_broken_row_is_named(executor: SandboxExecutor, tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(InvalidData, match="line 1: "):
        load(executor, tmp_path, {**ROWS[1], **change})


def test_real_rows_can_all_be_decided(executor: SandboxExecutor) -> None:
    if not os.environ.get(suites.DATA_VARIABLE) or not (REAL / "ifeval.jsonl").is_file():
        pytest.skip(f"set {suites.DATA_VARIABLE} to a folder that holds ifeval.jsonl")
    (suite,) = suites.load(["ifeval"], Source(executor, REAL, "chat"))
    assert (len(suite.problems), [p.failure for p in suite.problems if p.failure]) == (541, [])
    echo = score(executor, suite, {problem: [prompt] for problem, prompt in suite.prompts().items()})
    assert echo.value is not None
    assert 0 < echo.value <= echo.extra["prompt_loose"] < echo.extra["instruction_strict"] < 0.6
