"""Named protocols: all that a score depends on beside the model and the data, frozen under a name.

A protocol of a suite says how its problems are put (worked examples included), how completions are sampled, where one
ends, and by which rules it is judged. ``default`` is ours; ``customary`` is what the literature on a set reports;
``azr-paper`` is the evaluation of Absolute Zero. The wording is ours throughout: what is taken over are the number of
worked examples, the decoding and what counts as the answer.

What a user changes (``--samples`` and its like) is part of the result's settings and hash, and an asterisk behind the
name says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from importlib import resources
from importlib.resources.abc import Traversable
from typing import TypedDict

from selfplay_gym import grading, maths
from selfplay_gym.answers import GREEDY, Sampling
from selfplay_gym.errors import InvalidConfig, UnknownId
from selfplay_gym.protocols import TaskFamily
from selfplay_gym.registry import unknown
from selfplay_gym.suites import Suite, parted
from selfplay_gym.types import Task

COMPACT_TOKENS, LONG_TOKENS = 160, 2048
"""Longest completion in the compact style, and in the others, where neither user nor protocol says."""

PROMPTS = "selfplay_gym.tasks"
"""The package with the prompt texts."""


class Changes(TypedDict, total=False):
    """What of the sampling is to differ from a protocol's, and the seed."""

    samples: int
    temperature: float
    max_new_tokens: int | None
    seed: int


@dataclass(frozen=True, slots=True)
class EvalProtocol:
    """How one suite is asked and read.

    Attributes:
        name: Under which results report it.
        style: Prompt style; None takes what suits the model: its chat template, else text to be completed.
        template: Prompts are ``prompts/TEMPLATE.FAMILY.txt``, worked examples included; empty takes the family's own.
        texts: Without a template, the prompt texts that the family's own prompt is made of: they are in the hash.
        closed: The prompt does not open the thought, as style azr else does.
        sampling: Its seed is no part of the protocol. Without a limit of tokens the style's is taken.
        stops: A completion ends where one of these begins: a model that completes text goes on with further examples.
    """

    name: str = "default"
    style: str | None = None
    template: str = ""
    texts: tuple[str, ...] = ()
    closed: bool = False
    sampling: Sampling = GREEDY
    stops: tuple[str, ...] = ()

    def digest(self) -> str:
        """Return 16 hexadecimal digits that change with anything in the protocol, the rules of judging included."""
        fields = asdict(self)
        del fields["sampling"]["seed"]
        rules = {"rules": grading.RULES, "maths": maths.RULES}
        texts = {name: _text(name) for name in self.texts} | _texts(self.template)
        return grading.digest({**fields, **rules, "texts": texts})

    def settings(self, fields: object = None) -> dict[str, object]:
        """Return what goes into a result's settings beside the hash of the prompts.

        Args:
            fields: Further ones of the requests to an endpoint; they are part of the decoding.
        """
        decoding: dict[str, object] = asdict(self.sampling)
        del decoding["seed"]  # it is reported beside the score; another seed is the same protocol
        if fields:
            decoding["fields"] = fields
        told = {"template": self.template, "closed": self.closed, "stops": list(self.stops)}
        given = {name: value for name, value in told.items() if value}
        return {"protocol": self.name, "style": self.style, **given, "decoding": decoding}

    def suits(self, style: str) -> EvalProtocol:
        """Return the protocol with what it leaves open settled for a model of this style."""
        style = self.style or style
        tokens = self.sampling.max_new_tokens or (COMPACT_TOKENS if style == "compact" else LONG_TOKENS)
        return replace(self, style=style, sampling=replace(self.sampling, max_new_tokens=tokens))

    def over(self, suite: Suite) -> Suite:
        """Return a suite whose prompts are this protocol's.

        Raises:
            InvalidConfig: The template has no text for a family of the suite.
        """
        if not self.template and not self.closed:
            return suite
        if self.template and (other := sorted(suite.families.keys() - _texts(self.template).keys())):
            raise InvalidConfig(f"protocol {self.name} has no prompt for {', '.join(other)} of suite {suite.name}")
        return replace(suite, wording=self._wording)

    def _wording(self, family: TaskFamily, task: Task) -> str:
        if self.template:
            from selfplay_gym.tasks.prompting import fill_task  # the core imports nothing of the tasks at load

            return fill_task(f"{self.template}.{family.name}", task)
        prompt = family.solve_prompt(task)
        return prompt.removesuffix("<think>").rstrip() if self.closed else prompt


def _texts(template: str) -> dict[str, str]:
    """Return the texts of a template by family; none without one."""
    names = [file.name.removesuffix(".txt") for file in _folder().iterdir()]
    return {name.split(".")[1]: _text(name) for name in sorted(names) if template and name.startswith(f"{template}.")}


def _text(name: str) -> str:
    return _folder().joinpath(f"{name}.txt").read_text(encoding="utf-8")


def _folder() -> Traversable:
    return resources.files(PROMPTS).joinpath("prompts")


# -- the table ---------------------------------------------------------------------------------------------------------


def _words_of(protocol: EvalProtocol, *families: str) -> EvalProtocol:
    """Return a protocol with the families' own prompts in its hash, as base and chat models see them."""
    return replace(protocol, texts=("frame.azr", *(f"{family}.solve.long" for family in families)))


DEFAULT = EvalProtocol()
"""Ours: the family's own prompt in the style that suits the model, greedy."""

# Absolute Zero (arXiv:2505.03335) and its published code: greedy, one answer, in the plain-text conversation of style
# azr, whose last tag its evaluation leaves out. 16,000 tokens for mathematics; 8,096 for LiveCodeBench, and none stated
# for the other code sets. CRUXEval is only watched during training, with the prompts of training.
_AZR = EvalProtocol("azr-paper", style="azr")
_AZR_MATHS = _words_of(replace(_AZR, closed=True, sampling=Sampling(max_new_tokens=16_000)), "maths")
_AZR_CRUXEVAL = _words_of(replace(_AZR, sampling=Sampling(max_new_tokens=8096)), "deduction", "abduction")
_AZR_CODE = replace(_AZR, closed=True, sampling=Sampling(max_new_tokens=8096))

_CUSTOMARY = EvalProtocol("customary")
_QUESTION = ("\nQuestion:",)
# Eight worked examples with the reasoning written out, greedy (arXiv:2201.11903); as there, the same for four sets.
_WORKED_MATHS = replace(_CUSTOMARY, template="worked", sampling=Sampling(max_new_tokens=512), stops=_QUESTION)
# Without examples, the answer in a box, greedy: how MATH-500 and its like are reported for instructed models.
_BOXED = replace(_CUSTOMARY, template="boxed", sampling=Sampling(max_new_tokens=4096))
# Thirty or forty problems: many samples, and room to think.
_COMPETITION = replace(_BOXED, sampling=Sampling(samples=32, temperature=0.6, max_new_tokens=32_768))
# Two worked examples without reasoning, ten samples at 0.2 (arXiv:2401.03065).
_TEN = Sampling(samples=10, temperature=0.2, max_new_tokens=1024)
_CRUXEVAL = replace(_CUSTOMARY, template="direct", sampling=_TEN, stops=_QUESTION)
# EvalPlus (arXiv:2305.01210): no examples, greedy, 768 tokens.
_EVALPLUS = replace(_CUSTOMARY, sampling=Sampling(max_new_tokens=768))
# Ten samples at 0.2 (arXiv:2403.07974).
_LIVECODEBENCH = replace(_CUSTOMARY, sampling=Sampling(samples=10, temperature=0.2, max_new_tokens=2000))
# The prompt alone, greedy (arXiv:2311.07911).
_IFEVAL = replace(_CUSTOMARY, sampling=Sampling(max_new_tokens=1280))

PROTOCOLS: dict[str, dict[str, EvalProtocol]] = {
    "azr-paper": {
        "cruxeval": _AZR_CRUXEVAL,
        "humaneval+": _words_of(_AZR_CODE, "humaneval"),
        "mbpp+": _words_of(_AZR_CODE, "mbpp"),
        "livecodebench": _words_of(_AZR_CODE, "script", "method"),
        **dict.fromkeys(("aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench"), _AZR_MATHS),
    },
    "customary": {
        "cruxeval": _CRUXEVAL,
        **dict.fromkeys(("humaneval", "humaneval+"), _words_of(_EVALPLUS, "humaneval")),
        **dict.fromkeys(("mbpp", "mbpp+", "mbpp_sanitized"), _words_of(_EVALPLUS, "mbpp")),
        "livecodebench": _words_of(_LIVECODEBENCH, "script", "method"),
        "ifeval": _words_of(_IFEVAL, "ifeval"),
        **dict.fromkeys(("gsm8k", "svamp", "asdiv", "multiarith"), _WORKED_MATHS),
        **dict.fromkeys(("math500", "minerva", "olympiadbench"), _BOXED),
        **dict.fromkeys(("aime24", "aime25", "amc23", "hmmt", "hmmt24", "hmmt25"), _COMPETITION),
    },
}
"""By name and suite. ``default`` is there for every suite, and not in the table."""

NAMES = ("default", *PROTOCOLS)


def protocol_of(name: str, suite: str) -> EvalProtocol | None:
    """Return a suite's protocol of that name; what ``cruxeval`` has, ``cruxeval-i`` has too.

    Several names with commas between are an order of preference.

    Raises:
        UnknownId: No protocol of that name for any suite.
    """
    for each in (part.strip() for part in name.split(",")):
        if each == DEFAULT.name:
            return DEFAULT
        if each not in PROTOCOLS:
            raise UnknownId(unknown("protocol", each, NAMES))
        known = PROTOCOLS[each]
        if found := known.get(suite) or known.get(suite.partition("-")[0]):
            return found
    return None


def protocols_of(suite: str) -> list[str]:
    """Return the names of the protocols that a suite has."""
    return [name for name in NAMES if protocol_of(name, suite) is not None]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which protocol is asked for, and what is to differ from it.

    Attributes:
        protocol: Its name, or several in order of preference.
        style: Another prompt style.
        sampling: Another sampling as a whole, or those of its fields that differ.
    """

    protocol: str = DEFAULT.name
    style: str | None = None
    sampling: Sampling | Changes | None = None

    @property
    def seed(self) -> int:
        """Of all samples."""
        return self.sampling.seed if isinstance(self.sampling, Sampling) else (self.sampling or {}).get("seed", 0)

    def of(self, suite: str) -> EvalProtocol:
        """Return what a suite is asked by, an asterisk behind its name where something differs."""
        frozen = protocol_of(self.protocol, suite)
        if frozen is None:
            raise InvalidConfig(f"suite {suite} has no protocol {self.protocol}; {_there_are([suite])}")
        sampling = self._over(frozen.sampling)
        style = self.style or frozen.style
        # Where the protocol leaves the style to the model, to name one is no other protocol.
        other = replace(sampling, seed=0) != frozen.sampling or (frozen.style is not None and style != frozen.style)
        return replace(frozen, name=f"{frozen.name}{'*' if other else ''}", style=style, sampling=sampling)

    def check(self, names: Iterable[str]) -> None:
        """Refuse suites that have no such protocol, all of them at once.

        Raises:
            UnknownId: There is no protocol of that name, or no style.
            InvalidConfig: Some of the suites have none of that name.
        """
        if self.style is not None:
            from selfplay_gym.tasks.prompting import check_style  # the core imports nothing of the tasks at load

            check_style(self.style)
        suites = [parted(name)[0] for name in names]
        without = [suite for suite in suites if protocol_of(self.protocol, suite) is None]
        if without:
            raise InvalidConfig(f"no protocol {self.protocol} for {', '.join(without)}; {_there_are(without)}")

    def _over(self, frozen: Sampling) -> Sampling:
        if isinstance(self.sampling, Sampling):
            return self.sampling
        return replace(frozen, **(self.sampling or {}))


def _there_are(suites: Iterable[str]) -> str:
    both = set.intersection(*(set(protocols_of(suite)) for suite in suites))
    names = [name for name in NAMES if name in both]
    return (
        f"there {'is' if len(names) == 1 else 'are'} {', '.join(names)} (--protocol A,default takes the first there is)"
    )


def cut(completion: str, stops: Iterable[str]) -> str:
    r"""Return a completion up to where the first of the stops begins.

    >>> cut("4\nQuestion: and then?", ["\nQuestion:"])
    '4'
    """
    ends = [at for stop in stops if (at := completion.find(stop)) >= 0]
    return completion[: min(ends)] if ends else completion
