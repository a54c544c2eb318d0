"""Run programs on every node of a Ray cluster: Ray carries batches, each node judges in a sandbox of its own.

What is covered, beyond what `SandboxExecutor` covers on each node (each line has a test):

* The same jobs end the same way as in a local sandbox; nodes that hold another version of it are not used.
* A node or a pool that dies in mid-batch loses nothing: its jobs run again on the others, each is answered once, in
  order. What fails twice is `Status.NO_VERDICT`.
* Nodes that join are used from the next call on, once their pool has started; no call waits for that if it has other
  nodes. Nodes without this package or without a sandbox are named and skipped.
* Executions travel as plain tuples and are checked field by field, so what arrives is text and numbers, or a failure.

What is not covered:

* Ray itself trusts its network: whoever may connect to a cluster may run code on every node of it. Programs cannot,
  from behind their walls. A Ray that is started here listens on the loopback address alone and reports to nobody.
* A node that hangs without dying is Ray's to notice; its health checks take some tens of seconds.
* The processor time of a node is not reserved: a pool takes none of the CPUs in Ray's books, since judging and
  generating take turns. Nodes with no CPU in the books, such as a head kept free of work, run no programs.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import os
import time
import warnings
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import selfplay_gym
from selfplay_gym.errors import ExecutorError
from selfplay_gym.executors.owned import OwnedExecutor
from selfplay_gym.executors.sandbox import SandboxExecutor, check_workers
from selfplay_gym.types import ChildPer, Execution, Job, Limits, Status, Tier

# Ray is imported by the functions that need it: this module loads without it, and fast.

_FEWEST = 64  # jobs a call: 1000 short ones on two nodes of a core took 0.1 s, and 1.3 s in calls of one
_MOST_A_WORKER = 64  # jobs a call: bounds what a dying node takes with it, and what one message holds
_START_SECONDS = 60.0
_CLOSE_SECONDS = 5.0
_STORE_BYTES = 256 * 2**20  # of a Ray started here; what does not fit goes to disk
_STRONGEST_FIRST: Final = tuple(Tier)
_FIELD_TYPES: Final = frozenset(
    itertools.product([str], [str, type(None)], [str], [str], [int, type(None)], [float])
)  # of an execution, in order


class RayExecutor(OwnedExecutor):
    """Runs jobs in one `SandboxExecutor` a node, on all nodes of a Ray cluster.

    Safe to use from several threads (calls take turns). Belongs to the process that made it.

    Args:
        address: Of the cluster: ``"auto"`` or ``"host:port"`` of a running one, which this machine must be a node of.
            None takes the Ray that this process has initialised, else starts one on this machine.
        workers: Of each node; one a CPU that the node offers unless told.
        tier: Insist on this isolation; otherwise the strongest that each node allows.
        allow_process_only: Accept nodes that refuse the system-call filter; see `SandboxExecutor`.
        keep_children: As for `SandboxExecutor`.
        child_per: As for `SandboxExecutor`.

    Raises:
        ExecutorError: Ray is missing or cannot be reached, or no node can run programs; the message says why.
    """

    def __init__(
        self,
        address: str | None = None,
        workers: int | None = None,
        tier: Tier | None = None,
        allow_process_only: bool = False,
        keep_children: bool = True,
        child_per: ChildPer = "batch",
    ) -> None:
        check_workers(workers)
        super().__init__()
        self._settings = (workers, None if tier is None else str(tier), allow_process_only, keep_children, child_per)
        self._nodes: dict[str, _Node] = {}
        self._skipped: dict[str, str] = {}
        self._ray = _import_ray()
        ours = _connect(self._ray, address)
        self._connection = _connection(self._ray)
        # At exit Ray would end the pools by itself, but without giving them the time to end their servers.
        self._finalizer = weakref.finalize(self, _end, self._ray, self._connection, self._nodes, ours, self._owner)
        try:
            self._refresh()
            self._admit(_START_SECONDS)
            self._require_a_node()
        except BaseException:
            self._finalizer()
            raise

    @property
    def tier(self) -> Tier:
        """How strongly programs are isolated on the weakest node."""
        tiers = [node.tier for node in self._working()]
        return max(tiers, key=_STRONGEST_FIRST.index, default=Tier.PROCESS_ONLY)

    @property
    def workers(self) -> int:
        """Jobs that run at the same time, on all nodes together."""
        return sum(node.workers for node in self._working())

    def describe(self) -> dict[str, object]:
        """Return the facts to store with a run: weakest tier, workers, every node with its tier, who was skipped."""
        nodes = [node.describe() for node in self._working()]
        return {
            "tier": str(self.tier),
            "workers": self.workers,
            "nodes": nodes,
            "skipped": list(self._skipped.values()),
        }

    def _run(self, jobs: Sequence[Job]) -> list[tuple[Execution, ...]]:
        if not jobs:
            return []
        self._refresh()
        batch = _Batch(self, jobs)
        try:
            return batch.run()
        except BaseException:  # also Ctrl-C: what is under way is abandoned with its pool
            for node in batch.busy():
                self._drop(node)
            raise

    def _check_usable(self) -> None:
        super()._check_usable()
        if _connection(self._ray) != self._connection:
            raise ExecutorError("the Ray of this executor was shut down; make another executor")

    def _working(self) -> list[_Node]:
        """Return the nodes whose pools have started."""
        return [node for node in list(self._nodes.values()) if node.workers]

    def _starting(self) -> dict[Any, _Node]:
        """Return the nodes whose pools have not started yet, by what to wait for."""
        return {node.opening: node for node in self._nodes.values() if not node.workers}

    def _refresh(self) -> None:
        """Start a pool on every node that has none, and forget the nodes that are gone."""
        listed = self._listed()
        for node_id in self._nodes.keys() - listed.keys():
            self._drop(self._nodes[node_id])
        for node_id in sorted(listed.keys() - self._nodes.keys() - self._skipped.keys()):
            self._nodes[node_id] = self._start(listed[node_id])

    def _require_a_node(self) -> None:
        """Return once there is a node that works.

        Raises:
            ExecutorError: None is left.
        """
        if self._working():
            return
        self._refresh()
        while self._starting() and not self._working():
            self._ray.wait(list(self._starting()), timeout=1.0)
            self._admit()
        if not self._working():
            listed = self._listed()
            why = "; ".join(refusal for node_id, refusal in self._skipped.items() if node_id in listed)
            raise ExecutorError(f"no node of the Ray cluster can run programs: {why or 'none is left that has a CPU'}")

    def _listed(self) -> dict[str, dict[str, Any]]:
        """Return what Ray says of the living nodes that may work, by id."""
        try:
            nodes = self._ray.nodes()
        except Exception as error:  # its own exceptions, and those of its RPC library
            raise ExecutorError(f"Ray does not answer: {_in_a_line(error)}") from error
        return {node["NodeID"]: node for node in nodes if node["Alive"] and node["Resources"].get("CPU", 0) > 0}

    def _start(self, facts: dict[str, Any]) -> _Node:
        """Start a pool on a node, without waiting for it."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        place = NodeAffinitySchedulingStrategy(facts["NodeID"], soft=False)
        pool = self._ray.remote(_Pool).options(num_cpus=0, max_restarts=0, scheduling_strategy=place).remote()
        name = f"{facts['NodeManagerHostname']} ({facts['NodeManagerAddress']}, {facts['NodeID'][:8]})"
        cpus = max(1, int(facts["Resources"]["CPU"]))
        return _Node(facts["NodeID"], name, pool, pool.open.remote(cpus, *self._settings))

    def _admit(self, wait_seconds: float = 0.0) -> None:
        """Take the pools that have started; name the nodes where that failed, and skip them from now on."""
        starting = self._starting()
        if not starting:
            return
        ready, others = self._ray.wait(list(starting), num_returns=len(starting), timeout=wait_seconds)
        for opening in ready:
            try:
                starting[opening].learn(self._ray.get(opening))
            except (self._ray.exceptions.RayError, ValueError) as error:
                self._refuse(starting[opening], _in_a_line(error))
        for opening in others:
            if time.monotonic() - starting[opening].began >= _START_SECONDS:
                self._refuse(starting[opening], f"its pool did not start within {_START_SECONDS:.0f} s")

    def _refuse(self, node: _Node, why: str) -> None:
        """Skip a node from now on, and say so; unless it has died in the meantime."""
        self._drop(node)
        if node.id in self._listed():
            self._skipped[node.id] = f"{node.name}: {why}"
            warnings.warn(f"a Ray node is not used: {self._skipped[node.id]}", RuntimeWarning, stacklevel=2)

    def _drop(self, node: _Node) -> None:
        """End the pool of a node and forget it; if it lives and is not skipped, the next call starts another."""
        self._nodes.pop(node.id, None)
        with contextlib.suppress(Exception):  # whatever Ray raises: it may be that the node is gone
            self._ray.kill(node.pool)


@dataclass
class _Node:
    """A node as the driver sees it: its pool, and what that said of itself."""

    id: str
    name: str
    pool: Any
    opening: Any
    began: float = field(default_factory=time.monotonic)
    tier: Tier = Tier.PROCESS_ONLY
    workers: int = 0  # until its pool has started
    walls: dict[str, bool] = field(default_factory=dict)

    def learn(self, reply: object) -> None:
        """Take in what `_Pool.open` replied.

        Raises:
            ValueError: It has no sandbox for us; the message says why.
        """
        if type(reply) is str:
            raise ValueError(reply)
        match reply:
            case (str(version), str(tier), int(workers), tuple(walls)) if workers > 0:
                if version != _version():
                    raise ValueError("it holds another version of selfplay_gym, or one that was edited")
                self.tier, self.workers = Tier(tier), workers
                self.walls = {str(name): bool(held) for name, held in walls}
            case _:
                raise ValueError("it says nothing sensible of itself")

    def describe(self) -> dict[str, object]:
        """Return the facts to store with a run."""
        return {"node": self.name, "tier": str(self.tier), "workers": self.workers, "walls": self.walls}


class _Batch:
    """One call of `RayExecutor.run`: hands jobs out, collects answers, takes back what dead pools held."""

    def __init__(self, executor: RayExecutor, jobs: Sequence[Job]) -> None:
        self._executor = executor
        self._ray = executor._ray
        self._jobs = jobs
        self._answers: list[tuple[Execution, ...]] = [()] * len(jobs)
        self._tries = [0] * len(jobs)
        self._waiting = deque(range(len(jobs)))
        self._under_way: dict[Any, tuple[_Node, list[int]]] = {}

    def busy(self) -> list[_Node]:
        """Return the nodes that have work of this batch."""
        return [node for node, _ in self._under_way.values()]

    def run(self) -> list[tuple[Execution, ...]]:
        """Return the answers, one a job."""
        while self._waiting or self._under_way:
            self._feed()
            ready, _ = self._ray.wait([*self._under_way, *self._executor._starting()])
            for call in ready:
                if call in self._under_way:  # else a node has started
                    self._take(call)
        return self._answers

    def _feed(self) -> None:
        """Give every idle node its share of what waits."""
        self._executor._admit()
        if self._waiting:
            self._executor._require_a_node()
        busy = {node.id for node in self.busy()}
        for node in self._executor._working():
            if self._waiting and node.id not in busy:
                size = chunk_size(len(self._waiting), node.workers, self._executor.workers)
                chunk = [self._waiting.popleft() for _ in range(size)]
                call = node.pool.run.remote(tuple(_job_as_tuple(self._jobs[index]) for index in chunk))
                self._under_way[call] = (node, chunk)

    def _take(self, call: Any) -> None:
        """Store the answers that a call brought, or take back its jobs."""
        node, chunk = self._under_way.pop(call)
        try:
            answers = _checked(self._ray.get(call), [self._jobs[index] for index in chunk])
        except (self._ray.exceptions.RayError, ValueError) as error:
            self._executor._drop(node)
            self._lose(chunk, _in_a_line(error))
        else:
            for index, answer in zip(chunk, answers, strict=True):
                self._answers[index] = answer

    def _lose(self, chunk: list[int], why: str) -> None:
        """Let jobs of a failed call run again, those first that were before the others; once."""
        for index in reversed(chunk):
            self._tries[index] += 1
            if self._tries[index] > 1:
                fault = Execution(Status.NO_VERDICT, error_type="node", message=why)
                self._answers[index] = (fault,) * len(self._jobs[index].inputs)
            else:
                self._waiting.appendleft(index)


def chunk_size(waiting: int, workers: int, of_all: int) -> int:
    """Return how many of the waiting jobs a node with so many of all workers takes in one call.

    Half its share, so that calls get shorter and all nodes end together; but not fewer than 64, nor leaving fewer.

    >>> [chunk_size(waiting, 8, 16) for waiting in (1000, 200, 127, 10, 100_000)]
    [250, 64, 127, 10, 512]
    """
    share = waiting * workers // (2 * of_all)
    size = max(_FEWEST, min(share, _MOST_A_WORKER * workers))
    return size if waiting - size >= _FEWEST else waiting


class _Pool:
    """A node's sandbox, as an actor. Takes and gives plain tuples, or the text of what failed: no exception travels."""

    def __init__(self) -> None:
        self._sandbox: SandboxExecutor | None = None

    def open(
        self,
        cpus: int,
        workers: int | None,
        tier: str | None,
        allow_process_only: bool,
        keep_children: bool,
        child_per: ChildPer,
    ) -> tuple[object, ...] | str:
        """Start the sandbox; return version, tier, workers and walls, or why there is none."""
        try:
            workers = workers or min(cpus, len(os.sched_getaffinity(0)))
            insisted = None if tier is None else Tier(tier)
            self._sandbox = SandboxExecutor(workers, insisted, allow_process_only, keep_children, child_per)
            return _version(), str(self._sandbox.tier), workers, tuple(self._sandbox.walls.items())
        except Exception as error:
            return _in_a_line(error)

    def run(self, jobs: tuple[tuple[Any, ...], ...]) -> tuple[object, ...] | str:
        """Run the jobs; return the executions of each, as tuples, or why there are none."""
        try:
            if self._sandbox is None:
                return "its sandbox was not opened"
            answers = self._sandbox.run([_job_from_tuple(fields) for fields in jobs])
            return tuple(tuple(map(_execution_as_tuple, answer)) for answer in answers)
        except Exception as error:
            return _in_a_line(error)

    def close(self) -> None:
        """End every process of the sandbox."""
        if self._sandbox is not None:
            self._sandbox.close()


# --- what travels ----------------------------------------------------------------------------------------------------


def _job_as_tuple(job: Job) -> tuple[object, ...]:
    limits = job.limits
    numbers = (limits.cpu_seconds, limits.wall_seconds, limits.memory_bytes, limits.output_bytes)
    return job.program, job.inputs, job.entry, numbers, job.policy, job.literal_inputs, job.check_determinism


def _job_from_tuple(fields: tuple[Any, ...]) -> Job:
    program, inputs, entry, numbers, *settings = fields
    return Job(program, inputs, entry, Limits(*numbers), *settings)


def _execution_as_tuple(e: Execution) -> tuple[object, ...]:
    return str(e.status), e.value, e.error_type, e.message, e.line, float(e.cpu_seconds)


def _checked(reply: object, jobs: Sequence[Job]) -> list[tuple[Execution, ...]]:
    """Return the executions that a pool's reply says.

    Raises:
        ValueError: It failed, or the reply is not one to these jobs.
    """
    if type(reply) is str:
        raise ValueError(reply)
    if type(reply) is not tuple or len(reply) != len(jobs):
        raise ValueError("a reply of another length")
    return [_checked_answer(answer, job) for answer, job in zip(reply, jobs, strict=True)]


def _checked_answer(answer: object, job: Job) -> tuple[Execution, ...]:
    if type(answer) is not tuple or len(answer) != len(job.inputs):
        raise ValueError("an answer of another length")
    return tuple(_checked_execution(fields, job.limits) for fields in answer)


def _checked_execution(fields: object, limits: Limits) -> Execution:
    # Exact types: a subclass would bring its own behaviour.
    if type(fields) is not tuple or tuple(map(type, fields)) not in _FIELD_TYPES:
        raise ValueError("an execution of other types")
    status, value, error_type, message, line, seconds = fields
    execution = Execution(Status(status), value, error_type, message, line, seconds)
    if (execution.status is Status.OK) != (value is not None) or len(value or "") > limits.output_bytes:
        raise ValueError(f"a value that does not go with status {status}")
    if not (0 <= seconds < math.inf):
        raise ValueError(f"{seconds} s of processor time")
    return execution


@cache
def _version() -> str:
    """Return what tells one version of the sandbox from another: a hash of the sources that decide how a run ends."""
    core = Path(selfplay_gym.__file__).parent
    digest = hashlib.blake2b(digest_size=16)
    for file in (core / "literals.py", core / "types.py", *sorted(Path(__file__).parent.glob("*.py"))):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _in_a_line(error: BaseException) -> str:
    """Return what an error says in one short line: of Ray's long reports with tracebacks, the end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


# --- Ray's beginning and end -----------------------------------------------------------------------------------------


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ExecutorError(f"the Ray executor needs Ray: pip install 'selfplay-gym[ray]' ({error})") from error
    return ray


def _connect(ray: Any, address: str | None) -> bool:
    """See that Ray is initialised; return whether it was done here."""
    if ray.is_initialized():
        if address is not None:
            raise ExecutorError("Ray is initialised in this process already; leave the address out to use that")
        return False
    try:
        if address is None:
            _start_here(ray)
        else:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except ExecutorError:
        raise
    except Exception as error:  # ConnectionError, RuntimeError, ValueError and its own, by what failed
        how = "be started" if address is None else f"be reached at {address!r}"
        raise ExecutorError(f"Ray cannot {how}: {_in_a_line(error)}") from error
    return True


def _start_here(ray: Any) -> None:
    """Start a Ray for this process: on the loopback address, without dashboard or reports of usage.

    Raises:
        ExecutorError: It would listen elsewhere too.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    constants = ray._private.ray_constants
    as_it_was = constants.ENABLE_RAY_CLUSTER
    # Ray takes another address for 127.0.0.1 wherever it is told that, and listens on all; only without this it does
    # not. There is no public setting.
    constants.ENABLE_RAY_CLUSTER = False
    try:
        ray.init(
            address="local",  # else it connects to what RAY_ADDRESS names, or to any Ray that runs here
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            num_gpus=0,
            object_store_memory=_STORE_BYTES,
        )
    finally:
        constants.ENABLE_RAY_CLUSTER = as_it_was
    outside = [node["NodeManagerAddress"] for node in ray.nodes() if not _is_loopback(node["NodeManagerAddress"])]
    if outside:
        ray.shutdown()
        raise ExecutorError(
            f"Ray {ray.__version__} cannot be kept to this machine, it took {outside[0]}; start it and give its address"
        )


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


def _connection(ray: Any) -> str:
    """Return what is different for every initialisation of Ray, and empty without one."""
    return str(ray.get_runtime_context().get_worker_id()) if ray.is_initialized() else ""


def _end(ray: Any, connection: str, nodes: dict[str, _Node], ours: bool, owner: int) -> None:
    if os.getpid() != owner or _connection(ray) != connection:  # a fork, or Ray has ended and the pools with it
        return
    with contextlib.suppress(Exception):  # a broken Ray must not keep us from the rest
        closing = [node.pool.close.remote() for node in nodes.values()]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_SECONDS)
    for node in nodes.values():
        with contextlib.suppress(Exception):
            ray.kill(node.pool)
    if ours:
        ray.shutdown()
