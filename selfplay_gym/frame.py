"""The think/answer frame that every completion is written in, and the fenced blocks inside an answer."""

from __future__ import annotations

import re

# A prompt may already end with the opening tag, so a completion may start inside the thought. Nothing but blanks may
# stand around or between the two parts, and neither tag may occur inside the answer. Possessive (*+), because a
# completion of nothing but blanks would otherwise take time quadratic in its length: half a minute for 60,000.
_FRAME = re.compile(
    r"\s*+(?:<think>)?+(?P<thought>(?:(?!</?think>|</?answer>).)*+)</think>\s*+"
    r"<answer>(?P<answer>(?:(?!</?think>|</?answer>).)*+)</answer>\s*+",
    re.DOTALL,
)
# Any label is understood, or a fence with an unknown one would turn all that follow inside out.
_FENCE = re.compile(r"```(?P<label>[^\n`]*)\n(?P<body>.*?)\n?```", re.DOTALL)
_SYNONYMS = {"py": "python", "python3": "python"}


def answer_of(completion: str) -> str | None:
    """Return what stands in the answer tags, or None when the completion does not keep to the frame.

    >>> answer_of("2 + 2 is 4</think><answer>4</answer>")
    '4'
    >>> answer_of("<answer>4</answer>") is None
    True
    """
    match = _FRAME.fullmatch(completion)
    return match["answer"].strip() if match else None


def loose_answer_of(completion: str) -> str | None:
    """Return what follows the last opening answer tag, up to a closing one; None where there is no such tag.

    So the published code of Absolute Zero reads completions whose form it finds bad.

    >>> loose_answer_of("<answer>3</answer> no, wait: <answer>4</answer> done")
    '4'
    >>> loose_answer_of("4") is None
    True
    """
    _, tag, rest = completion.rpartition("<answer>")
    return rest.partition("</answer>")[0].strip() if tag else None


def blocks(answer: str, label: str) -> list[str]:
    r"""Return the bodies of all fenced blocks with this label, in upper or lower case, in order.

    >>> blocks("```input\n1\n```\n```Input\n2\n```", "input")
    ['1', '2']
    """
    return [match["body"] for match in _FENCE.finditer(answer) if match["label"].strip().lower() == label]


def last_block(answer: str, label: str) -> str:
    r"""Return the last block with this label (``py`` and ``python3`` are ``python`` too).

    Where no block has it, a single block counts whatever its label, and an answer without any fence counts whole.

    >>> last_block("```output\n[1]\n```", "output"), last_block("```\n[1]\n```", "output"), last_block("[1]", "output")
    ('[1]', '[1]', '[1]')
    """
    found = [(match["label"].strip().lower(), match["body"].strip()) for match in _FENCE.finditer(answer)]
    labelled = [body for written, body in found if _SYNONYMS.get(written, written) == label]
    if labelled:
        return labelled[-1]
    if len(found) == 1 and answer.count("```") == 2:  # and none that is left open
        return found[0][1]
    return "" if "```" in answer else answer.strip()
