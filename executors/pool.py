"""The servers of one executor, by kind; starts those that are missing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

from selfplay_gym.errors import ExecutorError
from selfplay_gym.executors.connection import KINDS, Server
from selfplay_gym.types import Tier

_STARTS = 2  # tries to start a kind of which there is none: somebody may kill servers as they come


class Pool:
    """Servers of one tier, as many of each kind as there are workers, started on first need.

    Attributes:
        servers: By kind.
        tier: How strongly they isolate.
        workers: How many of each kind there may be.
        refusals: Why no stronger tier was had.

    Raises:
        ExecutorError: No server of any of the tiers can be started.
    """

    def __init__(self, workers: int, tiers: Sequence[Tier], keep_children: bool) -> None:
        self.workers = workers
        self._keep_children = keep_children
        self.servers: dict[str, list[Server]] = {kind: [] for kind in KINDS}
        self.refusals: list[str] = []
        self.tier = self._start_first(tiers)

    def all(self) -> Iterator[Server]:
        """Yield every server."""
        for servers in self.servers.values():
            yield from servers

    def ensure(self, kind: str) -> list[Server]:
        """Return the servers of a kind, all alive, starting those that are missing.

        Raises:
            ExecutorError: None can be started.
        """
        servers = self.servers[kind]
        if len(servers) == self.workers and all(server.alive for server in servers):
            return servers
        for _ in range(_STARTS):
            servers[:] = [server for server in servers if server.alive]
            started = [Server(kind, self.tier, self._keep_children, core) for core in self._free_cores(servers)]
            for server in started:
                with contextlib.suppress(ExecutorError):
                    servers.append(server.wait_ready())
            if servers:
                return servers
        raise ExecutorError("no server of the sandbox can be started any more")

    def _free_cores(self, servers: Sequence[Server]) -> Sequence[int | None]:
        """Return a core for each server that is missing; None where it may move.

        With a worker for each core, servers that move get in each other's way: two cores then did 1.7 times what one
        does, and 1.9 times with a core for each. Who has less of its core gets less work, a parcel at a time.
        """
        cores = sorted(os.sched_getaffinity(0))
        if self.workers != len(cores):
            return [None] * (self.workers - len(servers))
        taken = {server.core for server in servers}
        return [core for core in cores if core not in taken][: self.workers - len(servers)]

    def _start_first(self, tiers: Sequence[Tier]) -> Tier:
        for tier in tiers:
            try:
                core = self._free_cores([])[0]
                self.servers["A"].append(Server("A", tier, self._keep_children, core).wait_ready())
            except ExecutorError as error:
                self.refusals.append(f"{tier}: {error}")
            else:
                return tier
        raise ExecutorError(f"no sandbox can be built here; {'; '.join(self.refusals)}")
