"""What there is to evaluate with: suites, groups and protocols, each with what a user wants to know before choosing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from selfplay_gym import eval_protocols, hub
from selfplay_gym.eval_protocols import DEFAULT, PROTOCOLS, EvalProtocol
from selfplay_gym.suites import SUITES, group_names, members, parted


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a list.

    Attributes:
        name: What is listed.
        facts: What is to be known of it, by name; values are text or JSON's others.
        told: The same in words.
    """

    name: str
    facts: Mapping[str, object]
    told: str

    def line(self, width: int) -> str:
        """Return the line, the name padded to a width."""
        return f"{self.name:{width}}  {self.told}".rstrip()

    def as_dict(self) -> dict[str, object]:
        """Return what ``--json`` prints."""
        return {"name": self.name, **self.facts}


def suites() -> list[Entry]:
    """Return the suites that load, with their protocols, their groups and where on the hub their data is."""
    return [_suite(name) for name in SUITES.working()]


def groups() -> list[Entry]:
    """Return the groups with their suites."""
    return [Entry(name, {"suites": members(name)}, ", ".join(members(name))) for name in group_names()]


def protocols() -> list[Entry]:
    """Return the protocols of the suites that there are, each with its hash."""
    there = SUITES.names()
    named = [(name, suite, frozen) for name, table in PROTOCOLS.items() for suite, frozen in table.items()]
    return [
        _protocol("default", "every suite", DEFAULT),
        *(_protocol(name, suite, frozen) for name, suite, frozen in named if suite in there),
    ]


def _suite(name: str) -> Entry:
    facts = {
        "protocols": eval_protocols.protocols_of(name),
        "groups": [group for group in group_names() if name in {parted(member)[0] for member in members(group)}],
        "hub": hub.source_of(name),
    }
    told = f"data: {_data(name)}; protocols: {', '.join(facts['protocols'])}"
    return Entry(name, facts, told + (f"; groups: {', '.join(facts['groups'])}" if facts["groups"] else ""))


def _data(name: str) -> str:
    """Say where the data of a suite comes from."""
    path = SUITES.paths()[name]
    if path.startswith("selfplay_gym.tasks.nano:"):
        return "shipped"
    if found := hub.source_of(name):
        return f"folder or hub ({found})"
    return "folder" if path.startswith("selfplay_gym.") else "the plug-in's"


def _protocol(name: str, suite: str, protocol: EvalProtocol) -> Entry:
    facts = {"suite": suite, "hash": protocol.digest(), **protocol.settings()}
    return Entry(name, facts, f"{suite}  {facts['hash']}  {_words(protocol)}")


def _words(protocol: EvalProtocol) -> str:
    sampling = protocol.sampling
    samples = f"{sampling.samples} samples at {sampling.temperature:g}" if sampling.samples > 1 else "greedy"
    tokens = f"{sampling.max_new_tokens} tokens" if sampling.max_new_tokens else "160 or 2048 tokens"
    style = f"style {protocol.style}" if protocol.style else "style that suits the model"
    return ", ".join([f"prompts {protocol.template!r}" if protocol.template else style, samples, tokens])
