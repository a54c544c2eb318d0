"""Several processes that play as one: rank 0 judges and remembers, all ranks generate and learn.

Rank 0 plays the step as if it were alone and asks for completions through `SharedGenerator`; the other ranks follow,
each generating its share, until rank 0 says that the step is over. No decision is ever made twice.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from selfplay_gym.errors import SelfPlayError
from selfplay_gym.training.generation import GenerationBackend, Request, Sample

T = TypeVar("T")
_BEGIN = "selfplay-gym/begin"


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place among those of the run."""

    rank: int = 0
    world: int = 1

    @classmethod
    def from_environment(cls) -> Ranks:
        """Return the place that the launcher (ours, torchrun or accelerate) gave this process."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def is_main(self) -> bool:
        """Whether this is the process that judges, remembers and reports."""
        return self.rank == 0

    def broadcast(self, item: T) -> T:
        """Return rank 0's ``item`` on every rank."""
        if self.world == 1:
            return item
        box = [item]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """Return this rank's part: every ``world``-th item, so that similar neighbours are spread."""
        return items[self.rank :: self.world]

    def gather(self, item: T) -> list[T]:
        """Return every rank's ``item`` on every rank, by rank."""
        if self.world == 1:
            return [item]
        items: list[Any] = [None] * self.world
        dist.all_gather_object(items, item)
        return items

    def wait(self) -> None:
        """Return when every rank has come here."""
        if self.world > 1:
            dist.barrier()


def let_followers_begin() -> None:
    """On rank 0: let the others go past `wait_to_begin`."""
    _store().set(_BEGIN, "")


def wait_to_begin() -> None:
    """On the other ranks: return when rank 0 has found nothing wrong with the run.

    Where it refuses the run, their launcher ends those that wait here.

    Raises:
        SelfPlayError: It does neither, or cannot be reached.
    """
    try:
        _store().wait([_BEGIN])
    except dist.DistError as error:
        raise SelfPlayError(f"rank 0 has not begun the run, see what it says ({str(error).splitlines()[0]})") from error


@cache  # kept for good: rank 0 may be the one that serves it
def _store() -> Any:
    """Return what the members of a process group find each other by: all there is before TRL makes the group."""
    try:
        return next(rendezvous("env://"))[0]
    except ValueError as error:
        raise SelfPlayError(f"{error}: start several processes with torchrun or accelerate, or unset RANK") from error


def _dealt(requests: Sequence[Request], world: int) -> list[list[int]]:
    """Return which requests each rank gets: even shares, where equal prompts stay together and are read once."""
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for place, request in enumerate(requests):
        by_prompt.setdefault(request.prompt_ids, []).append(place)
    most = -(-len(requests) // world)
    shares: list[list[int]] = [[] for _ in range(world)]
    for places in by_prompt.values():
        while places:
            share = min(shares, key=len)
            room = most - len(share)
            share += places[:room]
            places = places[room:]
    return shares


class LeaderFailed(SelfPlayError):
    """Rank 0 ended the run with an error, which it reports itself."""


@dataclass(frozen=True, slots=True)
class _Over:
    """Sent to followers when rank 0 is done; ``error`` says why when it failed."""

    error: str = ""


class SharedGenerator:
    """Spreads generation over all ranks; as a back-end it is used on rank 0, inside `leading`.

    Args:
        backend: Generates this rank's share.
        ranks: The processes of the run.
        central: Rank 0 generates all by itself, since its back-end only passes requests on to a server.
    """

    def __init__(self, backend: GenerationBackend, ranks: Ranks, *, central: bool = False) -> None:
        self.backend, self.ranks, self.central = backend, ranks, central

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        """Return the samples in order; every follower does its share.

        Raises:
            SelfPlayError: A rank could not generate its share.
        """
        if self.central:
            return self.backend.generate(requests)
        self.ranks.broadcast(requests)
        return self._share(requests)

    @contextmanager
    def leading(self) -> Iterator[None]:
        """On rank 0: let the followers go when the block ends, and tell them if it failed.

        An interrupt may come in the middle of an exchange, where a message would never be read: then the launcher
        ends them.
        """
        try:
            yield
        except Exception as error:
            with suppress(RuntimeError):  # a rank that has died is told nothing
                self.ranks.broadcast(_Over(f"{type(error).__name__}: {error}"))
            raise
        self.ranks.broadcast(_Over())

    def follow(self) -> None:
        """On the other ranks: generate shares until rank 0 is done.

        Raises:
            LeaderFailed: Rank 0 failed.
        """
        while True:
            received: Any = self.ranks.broadcast(None)
            if not isinstance(received, _Over):
                self._share(received)
            elif received.error:
                raise LeaderFailed(f"rank 0 failed: {received.error}")
            else:
                return

    def _generate_part(self, requests: Sequence[Request], share: Sequence[int]) -> list[Sample]:
        """Return this rank's samples; where all ranks must do the same work, one with less to do repeats a request."""
        part = [requests[place] for place in share]
        padded = part
        if getattr(self.backend, "collective", False):
            most = -(-len(requests) // self.ranks.world)
            padded = part + list(requests[:1]) * (most - len(part))
        return self.backend.generate(padded)[: len(part)]

    def _share(self, requests: Sequence[Request]) -> list[Sample]:
        """Return everyone's samples; a failure is exchanged like samples, or the other ranks would wait for ever."""
        shares = _dealt(requests, self.ranks.world)
        own: list[Sample] | str
        try:
            own = self._generate_part(requests, shares[self.ranks.rank])
        except Exception as error:
            if self.ranks.world == 1:
                raise
            logging.getLogger(__name__).exception("rank %d cannot generate", self.ranks.rank)
            own = f"rank {self.ranks.rank} cannot generate: {error}"
        parts = self.ranks.gather(own)
        failures = [part for part in parts if isinstance(part, str)]
        if failures and self.ranks.is_main:
            raise SelfPlayError(failures[0])
        if failures:
            return []
        found: dict[int, Sample] = {}
        for share, part in zip(shares, parts, strict=True):
            found.update(zip(share, part, strict=True))  # type: ignore[arg-type]  # no failures, so samples
        return [found[place] for place in range(len(requests))]
