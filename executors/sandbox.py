"""Run programs that nobody trusts, on this machine, behind walls that are reported.

What is covered (tier ``full``; each line has a test):

* The host: a program sees no file, no network, no other process, no environment, and starts no process. It runs as
  nobody, without capabilities, in namespaces of its own on an empty root, behind a system-call filter.
* Resources: processor time, clock time, memory, printed text and the size of the result have limits, and every run is
  killed at its limit whatever it does.
* Other jobs: a process serves one program, or several of a kind that meets nothing which another one uses, and is then
  checked for tampering; it is put back as it was, or ended, before it serves others.
* This process: nothing a program wrote is evaluated, unpickled or decoded here, beyond text of bounded length.
* Determinism: on request each input runs twice in one process and once in another under a different hash seed.
* Our own faults: a server that dies is replaced and its jobs run again once; what still fails is `Status.NO_VERDICT`.

What is not covered:

* Bugs of the Linux kernel, and side channels such as timing between programs.
* A program under policy ``plain`` can say anything about *itself*: it shares its process with the code that frames its
  results. It can forge only its own value, and only a canonical one.
* Runs of one job share a process. A change to a module made by one run can reach the next run of the same program;
  the determinism check shows it.
* Clock time on an overloaded host: a program that gets no processor for ``wall_seconds`` runs again alone, once; then
  it times out.
* Tier ``filter_only`` (user namespaces refused) rests on the system-call filter alone. Tier ``process_only`` stops
  accidents, not attacks, and must be asked for.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Mapping, Sequence
from typing import get_args

from selfplay_gym.errors import ExecutorError
from selfplay_gym.executors.cache import ResultCache
from selfplay_gym.executors.connection import Server
from selfplay_gym.executors.owned import OwnedExecutor
from selfplay_gym.executors.pool import Pool
from selfplay_gym.executors.scheduling import Batch, Memory
from selfplay_gym.types import ChildPer, Execution, Job, Tier


class SandboxExecutor(OwnedExecutor):
    """Runs jobs in per-core server processes, behind walls.

    Safe to use from several threads (calls take turns). Belongs to the process that made it: make another one after
    a fork. The servers start at once; those for determinism checks on first need.

    Attributes:
        workers: Jobs that run at the same time.

    Args:
        workers: One a usable core unless told.
        tier: Insist on this isolation; otherwise the strongest that the host allows.
        allow_process_only: Accept a host that refuses the system-call filter. Programs can then do to this machine
            what any program of this user can.
        keep_children: Put a child back as it was after its work and use it again, where the kernel can; False forks
            one every time. No verdict depends on it.
        child_per: What has a child to itself: a ``batch`` of programs that cannot reach each other (the others have
            one each), a ``program``, or a ``run``.
        cache_bytes: How much to remember of what jobs answered, about; 0 runs every job.

    Raises:
        ExecutorError: No accepted tier can be had here; the message names every wall that failed.
    """

    def __init__(
        self,
        workers: int | None = None,
        tier: Tier | None = None,
        allow_process_only: bool = False,
        keep_children: bool = True,
        child_per: ChildPer = "batch",
        cache_bytes: int = 2**25,
    ) -> None:
        check_workers(workers)
        if child_per not in get_args(ChildPer):
            raise ExecutorError(f"child_per must be one of {', '.join(get_args(ChildPer))}, got {child_per!r}")
        if not isinstance(cache_bytes, int) or cache_bytes < 0:
            raise ExecutorError(f"cache_bytes must be a whole number of at least 0, got {cache_bytes!r}")
        if not sys.platform.startswith("linux"):
            raise ExecutorError(f"the sandbox needs Linux, this is {sys.platform}")
        super().__init__()
        self.workers = workers or len(os.sched_getaffinity(0))
        self._child_per = child_per
        self._memory = Memory(ResultCache(cache_bytes))
        self._pool = Pool(self.workers, _accepted_tiers(tier, allow_process_only), keep_children)
        # At exit the servers would end by themselves; this ends them without a word on stderr.
        self._finalizer = weakref.finalize(self, _end_all, self._pool.servers, self._owner)
        self._pool.ensure("A")

    @property
    def tier(self) -> Tier:
        """How strongly programs are isolated here."""
        return self._pool.tier

    @property
    def walls(self) -> Mapping[str, bool]:
        """Every wall by name, and whether a server saw it hold."""
        first = self._pool.servers["A"]
        return dict(first[0].walls) if first else {}

    @property
    def audits(self) -> tuple[int, int]:
        """How many answers from shared children were checked by running them apart, and how many were not confirmed."""
        return self._memory.audited, self._memory.mismatched

    def describe(self) -> dict[str, object]:
        """Return the facts to store with a run: tier, workers, walls, audits, and why no stronger tier was had."""
        return {
            "tier": str(self.tier),
            "workers": self.workers,
            "walls": dict(self.walls),
            "refused": self._pool.refusals,
            "audits": self.audits,
        }

    def doctor(self) -> list[str]:
        """Return one line a fact, for people."""
        lines = [f"sandbox tier {self.tier}, {self.workers} workers"]
        lines += [f"{'present' if held else 'ABSENT '}  {name}" for name, held in self.walls.items()]
        reasons = [server.keeps_none for server in self._pool.servers["A"][:1] if server.keeps_none]
        lines += [f"kept_children: {reason}; every job gets a fork, which is slower" for reason in reasons]
        return lines + [f"refused: {reason}" for reason in self._pool.refusals]

    def _run(self, jobs: Sequence[Job]) -> list[tuple[Execution, ...]]:
        try:
            return Batch(self._pool, self._memory, self._child_per, jobs).run()
        except BaseException:  # also Ctrl-C: what is under way is abandoned with its servers
            for server in self._pool.all():
                if server.under_way:
                    server.kill()
            raise

    def cpu_seconds(self) -> float:
        """Return the processor time that servers and their children have used so far."""
        with self._lock:
            self._check_usable()
            return sum(server.ask_usage() for server in self._pool.all() if server.alive)


def check_workers(workers: int | None) -> None:
    """Refuse what is no number of workers.

    Raises:
        ExecutorError: It is neither None nor a whole number of at least 1.
    """
    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise ExecutorError(f"workers must be a whole number of at least 1, or None for one a core, got {workers!r}")


def _accepted_tiers(tier: Tier | str | None, allow_process_only: bool) -> list[Tier]:
    if tier is not None and tier not in list(Tier):
        raise ExecutorError(f"tier must be one of {', '.join(Tier)}, got {tier!r}")
    tier = None if tier is None else Tier(tier)
    if tier is Tier.PROCESS_ONLY and not allow_process_only:
        raise ExecutorError(
            "tier process_only does not stop attacks; accept that with allow_process_only=True, on the command line "
            "with --allow-process-only"
        )
    if tier is not None:
        return [tier]
    return [Tier.FULL, Tier.FILTER_ONLY] + ([Tier.PROCESS_ONLY] if allow_process_only else [])


def _end_all(servers: dict[str, list[Server]], owner: int) -> None:
    everyone = [server for kind in servers.values() for server in kind]
    if os.getpid() != owner:  # a fork of the trainer: the servers are not its own
        for server in everyone:
            server.forget()
        return
    for server in everyone:
        server.ask_to_end()
    for server in everyone:
        server.kill()
