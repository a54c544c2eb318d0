r"""The 25 verifiable instructions of IFEval (arXiv:2311.07911): does a response follow one?

`CHECKS` holds a function for each, of the response and of what the row states beside. They look at the text on the host
and take time in proportion to its length: where a regular expression would go back over what it has read, the text is
taken apart by lines or by separators.

They decide as the published checker does, with these differences. Its sentences and capital words come from a trained
tokenizer and its languages from a trained detector; here they follow from the rules of `sentences`, `_CAPITAL` and
`selfplay_gym.languages`. A keyword is looked for as text, not as a regular expression. A bullet is a line that begins
with ``*`` or ``-``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence

from selfplay_gym.languages import is_in

_WORD = re.compile(r"\w+")
_CAPITAL = re.compile(r"[^\W_]+(?:[-'’.][^\W_]+)*")
_HIGHLIGHTS = re.compile(r"\*\*[^\n*]*\*\*"), re.compile(r"\*[^\n*]*\*")
_SENTENCE_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’)\]*]*+\s++(?=\S)|[。！？।॥]++")
_ABBREVIATION = re.compile(r"(?:^|[\s(\"'“])(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|[A-Za-z]\.[A-Za-z])$")
_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_POSTSCRIPTS = {"P.S.": re.compile(r"p\.\s?s\."), "P.P.S": re.compile(r"p\.\s?p\.\s?s")}
_MAX_JSON = 2**20


def _holds(relation: str, count: int, bound: int) -> bool:
    if relation not in ("at least", "less than"):
        raise ValueError(f"a relation is 'at least' or 'less than', got {relation!r}")
    return count >= bound if relation == "at least" else count < bound


def sentences(text: str) -> int:
    """Return how many sentences a text has.

    One ends with ``.``, ``!``, ``?`` or the like before a blank, unless a small letter follows, or what ends is an
    abbreviation or an initial. A number before a point ends one too, as in a numbered list.

    >>> [sentences(text) for text in ("Dr. No is here. He said so!", "Not ended", "1. One, e.g. this. 2. Two", "")]
    [2, 1, 4, 0]
    """
    count, start = 0, 0
    for end in _SENTENCE_END.finditer(text):
        before = text[max(start, end.start() - 12) : end.start()]
        if text[end.end() : end.end() + 1].islower() or (end[0][0] == "." and _ABBREVIATION.search(before)):
            continue
        count, start = count + 1, end.end()
    return count + bool(text[start:].strip())


# -- keywords ----------------------------------------------------------------------------------------------------------


def _has_keywords(text: str, keywords: Sequence[str]) -> bool:
    return all(keyword.lower() in text.lower() for keyword in keywords)


def _has_none_of(text: str, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words)


def _keyword_frequency(text: str, relation: str, keyword: str, frequency: int) -> bool:
    return _holds(relation, text.lower().count(keyword.lower()), frequency)


def _letter_frequency(text: str, let_relation: str, letter: str, let_frequency: int) -> bool:
    return _holds(let_relation, text.lower().count(letter.lower()), let_frequency)


# -- lengths -----------------------------------------------------------------------------------------------------------


def _words(text: str, relation: str, num_words: int) -> bool:
    return _holds(relation, len(_WORD.findall(text)), num_words)


def _sentences(text: str, relation: str, num_sentences: int) -> bool:
    return _holds(relation, sentences(text), num_sentences)


def _paragraphs(text: str, num_paragraphs: int) -> bool:
    """Paragraphs are parted by ``***``; none but the first and the last may be blank."""
    first, *others = text.split("***")
    inner = others[:-1]
    ends = [first, *others[-1:]]
    return all(map(str.strip, inner)) and len(inner) + sum(map(bool, map(str.strip, ends))) == num_paragraphs


def _first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs are parted by two line ends; blank ones do not count, and yet have a place."""
    parts = text.split("\n\n")
    count = sum(map(bool, map(str.strip, parts)))
    if count != num_paragraphs or not 1 <= nth_paragraph <= count or not parts[nth_paragraph - 1].strip():
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


# -- content and form --------------------------------------------------------------------------------------------------


def _placeholders(text: str, num_placeholders: int) -> bool:
    return sum(sum(1 for _ in _bracketed(line)) for line in text.split("\n")) >= num_placeholders


def _bracketed(line: str) -> Iterator[str]:
    start = line.find("[")
    while start >= 0 and (end := line.find("]", start)) >= 0:
        yield line[start : end + 1]
        start = line.find("[", end)


def _postscript(text: str, postscript_marker: str) -> bool:
    pattern = _POSTSCRIPTS.get(postscript_marker) or re.compile(re.escape(postscript_marker.lower()))
    return pattern.search(text.lower()) is not None


def _bullets(text: str, num_bullets: int) -> bool:
    lines = [line.strip() for line in text.split("\n")]
    return sum(line[:1] == "-" or (line[:1] == "*" and line[1:2] != "*") for line in lines) == num_bullets


def _highlights(text: str, num_highlights: int) -> bool:
    return sum(bool(found.strip("*").strip()) for each in _HIGHLIGHTS for found in each.findall(text)) >= num_highlights


def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", text)) >= num_sections


def _title(text: str) -> bool:
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if start >= 0 and start + 2 < end and line[start:end].strip("<>").strip():
            return True
    return False


def _json(text: str) -> bool:
    body = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        body = body.removeprefix(fence)
    body = body.removesuffix("```").strip()
    try:
        json.loads(body[: _MAX_JSON + 1])
    except (ValueError, RecursionError):
        return False
    return len(body) <= _MAX_JSON


def _constrained(text: str) -> bool:
    return any(answer in text for answer in _ANSWERS)


def _two_responses(text: str) -> bool:
    first, *others = text.split("******")
    inner, ends = others[:-1], [first, *others[-1:]]
    found = [part for part in map(str.strip, [*ends[:1], *inner, *ends[1:]]) if part]
    return all(map(str.strip, inner)) and len(found) == 2 and found[0] != found[1]


def _repeats(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends_with(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quoted(text: str) -> bool:
    body = text.strip()
    return len(body) > 1 and body[0] == body[-1] == '"'


# -- letters -----------------------------------------------------------------------------------------------------------


def _capital_words(text: str, capital_relation: str, capital_frequency: int) -> bool:
    return _holds(capital_relation, sum(map(str.isupper, _CAPITAL.findall(text))), capital_frequency)


CHECKS: dict[str, Callable[..., bool]] = {
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": lambda text: text.isupper() and is_in("en", text),
    "change_case:english_lowercase": lambda text: text.islower() and is_in("en", text),
    "combination:repeat_prompt": _repeats,
    "combination:two_responses": _two_responses,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:constrained_response": _constrained,
    "detectable_format:json_format": _json,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:title": _title,
    "keywords:existence": _has_keywords,
    "keywords:forbidden_words": _has_none_of,
    "keywords:frequency": _keyword_frequency,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": lambda text, language: is_in(language, text),
    "length_constraints:nth_paragraph_first_word": _first_word,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_words": _words,
    "punctuation:no_comma": lambda text: "," not in text,
    "startend:end_checker": _ends_with,
    "startend:quotation": _quoted,
}


def follows(instruction: str, arguments: dict[str, object], response: str) -> bool:
    """Return whether a response follows an instruction to the letter; a blank one follows none.

    Raises:
        KeyError: There is no such instruction.
        TypeError, ValueError, AttributeError: Its arguments are not those it takes.
    """
    return bool(CHECKS[instruction](response, **arguments)) and bool(response.strip())


def variants(response: str) -> list[str]:
    r"""Return what also counts, loosely: without the first line, the last, or both, and each without asterisks.

    >>> variants("a\n*b*\nc")[:4]
    ['a\n*b*\nc', '*b*\nc', 'a\n*b*', '*b*']
    """
    lines = response.split("\n")
    cut = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cut, *(text.replace("*", "") for text in cut)]
