"""The sandbox on a Ray cluster: the same answers, whatever dies on the way.

The slow tests start a cluster of three nodes on the loopback address: a head that runs no programs, and two that do.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfplay_gym import registry
from selfplay_gym.errors import ExecutorError
from selfplay_gym.executors import ray as our_ray
from selfplay_gym.executors.ray import RayExecutor, chunk_size
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.types import Execution, Job, Limits, Status, Tier

HAS_RAY = importlib.util.find_spec("ray") is not None
SHORT = Limits(cpu_seconds=0.05, wall_seconds=1.0)
DOUBLE = Job("def f(x): return x * 2", ("1", "'a'"))
NAP = "import time\ndef f(x):\n    time.sleep(0.03)\n    return x"


def plain(program: str | bytes, *inputs: str, **settings: Any) -> Job:
    return Job(program, inputs, policy="plain", **settings)


KINDS = {
    "values": DOUBLE,
    "several inputs": Job("def f(x): return 6 // x", ("1", "0", "4", "x", "'a'")),
    "no input": Job("def f(): return 1", ()),
    "another entry": Job("def g(x): return [x]", ("2",), entry="g"),
    "loop": plain("def f():\n    while True: pass", "", limits=SHORT),
    "sleep": plain("import time\ndef f(): time.sleep(9)", "", limits=Limits(cpu_seconds=0.05, wall_seconds=0.3)),
    "memory": plain("def f(): return len(bytearray(10**9))", ""),
    "long value": plain("def f(): return 'x' * 99", "", limits=Limits(output_bytes=50)),
    "no value": plain("def f(): return object()", ""),
    "exit": plain("import os\ndef f(): os._exit(3)", ""),
    "forbidden": Job("import os\ndef f(): return os.getcwd()", ("",)),
    "syntax": plain("def f(:", ""),
    "bytes": plain(b"# -*- coding: latin-1 -*-\ndef f(): return '\xe9'", ""),
    "surrogates": plain("def f(x): return '\\ud800' + x + '\udfff'", "'\ud900'"),
    "message": plain("def f(): raise KeyError('\\ud800 \\0 \\n')", ""),
    "expressions": plain("def f(x): return x", "list(range(3))", literal_inputs=False),
    "same": Job("def f(x): return x", ("1", "2"), check_determinism=True),
    "repeat": Job("n = []\ndef f(x):\n    n.append(x)\n    return len(n)", ("1",), check_determinism=True),
    "seed": plain("def f(): return list({'a', 'b', 'c', 'd', 'e', 'f'})", "", check_determinism=True),
    "check and error": Job("def f(x): return 1 / x", ("1", "0", "2"), check_determinism=True),
}


def told(answers: list[tuple[Execution, ...]]) -> list[list[Execution]]:
    """Leave out what differs from run to run: processor time, and what an unsteady program returned."""
    return [
        [replace(e, cpu_seconds=0.0, message="" if e.status is Status.NONDETERMINISTIC else e.message) for e in answer]
        for answer in answers
    ]


# --- without Ray -----------------------------------------------------------------------------------------------------


def test_it_is_registered() -> None:
    assert registry.executors.load("ray") is RayExecutor


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ExecutorError, match=r"pip install 'selfplay-gym\[ray\]'"):
        RayExecutor()


def test_workers_are_at_least_one() -> None:
    with pytest.raises(ExecutorError, match=r"at least 1, or None .*, got 0"):
        RayExecutor(workers=0)


@given(st.integers(1, 5000), st.lists(st.integers(1, 128), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_no_call_carries_fewer_than_64_jobs_unless_there_are_fewer(
    jobs: int, nodes: list[int], order: random.Random
) -> None:
    waiting, sizes = jobs, []
    while waiting:
        sizes.append(chunk_size(waiting, order.choice(nodes), sum(nodes)))
        waiting -= sizes[-1]
    assert sum(sizes) == jobs
    assert min(sizes) >= min(64, jobs)


JOBS = st.builds(
    Job,
    st.text(st.characters(), max_size=20) | st.binary(max_size=20),
    st.lists(st.text(), max_size=3).map(tuple),
    st.sampled_from(["f", "g"]),
    st.builds(Limits, st.floats(0.01, 1), st.floats(1, 9), st.integers(2**20, 2**30), st.integers(1, 4096)),
    st.sampled_from(["strict", "plain"]),
    st.booleans(),
    st.booleans(),
)


@given(JOBS)
def test_a_job_arrives_as_it_was(job: Job) -> None:
    assert our_ray._job_from_tuple(our_ray._job_as_tuple(job)) == job


EXECUTIONS = st.one_of(
    st.builds(Execution, st.just(Status.OK), st.text(max_size=50), cpu_seconds=st.floats(0, 9)),
    st.builds(
        Execution,
        st.sampled_from(sorted(set(Status) - {Status.OK})),
        st.none(),
        st.text(max_size=80),
        st.text(max_size=200),
        st.none() | st.integers(1, 99),
        st.floats(0, 9),
    ),
)


def sent(executions: list[Execution]) -> tuple[object, ...]:
    return (tuple(map(our_ray._execution_as_tuple, executions)),)


@given(st.lists(EXECUTIONS, max_size=3))
def test_an_execution_arrives_as_it_was_and_as_plain_values(executions: list[Execution]) -> None:
    reply = sent(executions)
    asked = Job("", tuple("1" for _ in executions))
    assert our_ray._checked(reply, [asked]) == [tuple(executions)]
    plain_types = {str, int, float, type(None)}
    assert {type(value) for answer in reply for fields in answer for value in fields} <= plain_types


class Text(str):
    """A string with an opinion of its own."""


GOOD = ("ok", "1", "", "", None, 0.0)


@pytest.mark.parametrize(
    "fields",
    [
        GOOD[:5],
        [*GOOD],
        (Text("ok"), *GOOD[1:]),
        ("fine", *GOOD[1:]),
        ("ok", None, *GOOD[2:]),
        ("error", *GOOD[1:]),
        ("ok", Text("1"), *GOOD[2:]),
        ("ok", "1" * 5000, *GOOD[2:]),
        ("ok", 1, *GOOD[2:]),
        (*GOOD[:4], True, 0.0),
        (*GOOD[:5], float("nan")),
        (*GOOD[:5], -1.0),
        (*GOOD[:5], 0),
    ],
)
def test_a_reply_of_another_shape_is_a_failure(fields: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the messages differ, and no caller reads them
        our_ray._checked(((fields,),), [Job("", ("",))])


@pytest.mark.parametrize("reply", ["it broke", (), None, [((GOOD,),)], ((GOOD, GOOD),), ((GOOD,), (GOOD,)), (GOOD,)])
def test_a_reply_to_something_else_is_a_failure(reply: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        our_ray._checked(reply, [Job("", ("",))])


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("no walls here", "no walls here"),
        (("0", "full", 2, ()), "another version"),
        ((our_ray._version(), "best", 2, ()), "best"),
        ((our_ray._version(), "full", 0, ()), "nothing sensible"),
        (None, "nothing sensible"),
    ],
)
def test_a_node_that_does_not_fit_is_not_used(reply: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        our_ray._Node("1", "one", None, None).learn(reply)


# --- on a cluster ----------------------------------------------------------------------------------------------------

needs_ray = pytest.mark.skipif(not HAS_RAY, reason="needs Ray: pip install -e '.[dev,ray]'")
on_a_cluster = [needs_ray, pytest.mark.slow]


def stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; none for a process that ended or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
    return fields if fields[0] != "Z" else []


def descendants(root: int) -> list[int]:
    """Process ids of all that a process started, and of all that those did."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = [], [root]
    while todo:
        todo += (below := children.get(todo.pop(), []))
        found += below
    return found


def pools() -> list[int]:
    """Process ids of the actors, on all nodes of the cluster that this process started."""
    found = []
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::_Pool"):
                found.append(pid)
    return found


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


# Else Ray takes a quarter of a minute to see that a node is gone.
FAST_HEALTH_CHECKS = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 200}


class Cluster:
    """A head that runs no programs, and nodes that do, all on this machine."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": FAST_HEALTH_CHECKS}
        self._cluster = RayCluster(True, head_node_args={**head, **self._settings()})
        self.address = self._cluster.address

    @staticmethod
    def _settings() -> dict[str, Any]:
        return {"node_ip_address": "127.0.0.1", "object_store_memory": 80 * 2**20}

    def add(self, **environment: str) -> Any:
        return self._cluster.add_node(num_cpus=1, env_vars=environment, **self._settings())

    def kill(self, node: Any) -> None:
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray._private.ray_constants, "ENABLE_RAY_CLUSTER", False)  # else 127.0.0.1 is not taken as given
        cluster = Cluster()
        for _ in range(2):
            cluster.add()
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
        ray.shutdown()
        cluster.close()


@pytest.fixture
def executor(cluster: Cluster) -> Iterator[RayExecutor]:
    with RayExecutor() as executor:
        assert len(executor._working()) == 2
        yield executor
    assert wait_until(lambda: not pools())


def losses(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect how many jobs each failed call took with it."""
    lost: list[int] = []
    lose = our_ray._Batch._lose
    monkeypatch.setattr(our_ray._Batch, "_lose", lambda s, chunk, why: (lost.append(len(chunk)), lose(s, chunk, why)))
    return lost


class TestOnACluster:
    pytestmark = on_a_cluster

    def test_every_kind_of_job_ends_as_in_a_local_sandbox(
        self, executor: RayExecutor, sandbox: SandboxExecutor
    ) -> None:
        jobs = list(KINDS.values()) * 7
        random.Random(0).shuffle(jobs)
        answers = told(executor.run(jobs))
        by_program = {id(job): told(sandbox.run([job]))[0] for job in KINDS.values()}
        assert answers == [by_program[id(job)] for job in jobs]
        statuses = {execution.status for answer in answers for execution in answer}
        assert statuses == set(Status) - {Status.NO_VERDICT}

    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
    @given(st.lists(st.sampled_from([job for kind, job in KINDS.items() if kind != "sleep"]), max_size=200))
    def test_any_jobs_end_as_in_a_local_sandbox(
        self, executor: RayExecutor, sandbox: SandboxExecutor, jobs: list[Job]
    ) -> None:
        assert told(executor.run(jobs)) == told(sandbox.run(jobs))

    def test_it_describes_every_node(self, executor: RayExecutor) -> None:
        facts = json.loads(json.dumps(executor.describe()))
        assert (facts["tier"], facts["workers"], facts["skipped"]) == (str(executor.tier), 2, [])
        assert len({node["node"] for node in facts["nodes"]}) == 2
        assert all(node["tier"] == "full" and node["walls"]["filter"] for node in facts["nodes"])

    def test_the_weakest_node_decides_the_tier(self, executor: RayExecutor) -> None:
        assert executor.tier is Tier.FULL
        next(iter(executor._nodes.values())).tier = Tier.FILTER_ONLY
        executor.run([DOUBLE])
        assert executor.tier is Tier.FILTER_ONLY

    def test_a_tier_that_is_asked_for_is_had(self, cluster: Cluster) -> None:
        with RayExecutor(tier=Tier.FILTER_ONLY, workers=2, keep_children=False) as executor:
            assert (executor.tier, executor.workers) == (Tier.FILTER_ONLY, 4)
            assert executor.run([DOUBLE])[0][1].value == "'aa'"

    def test_nodes_without_a_sandbox_are_all_named(self, cluster: Cluster) -> None:
        with (
            pytest.warns(RuntimeWarning, match="is not used"),
            pytest.raises(ExecutorError, match=r"no node .*127\.0\.0\.1.*allow_process_only.*; .*allow_process_only"),
        ):
            RayExecutor(tier=Tier.PROCESS_ONLY)

    def test_both_nodes_work_on_one_batch(self, executor: RayExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[tuple[str, int]] = []
        take = our_ray._Batch._take

        def spy(self: Any, call: Any) -> None:
            node, chunk = self._under_way[call]
            calls.append((node.id, len(chunk)))
            take(self, call)

        monkeypatch.setattr(our_ray._Batch, "_take", spy)
        jobs = [plain("def f(x): return x + 1", str(number)) for number in range(400)]
        assert [answer[0].value for answer in executor.run(jobs)] == [str(number + 1) for number in range(400)]
        assert {node for node, _ in calls} == set(executor._nodes)
        assert min(size for _, size in calls) >= 64

    def test_a_node_killed_in_mid_batch_loses_and_doubles_nothing(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lost = losses(monkeypatch)
        victim = cluster.add()
        with RayExecutor() as executor:
            assert len(executor._working()) == 3
            timer = threading.Timer(1.0, cluster.kill, [victim])
            timer.start()
            jobs = [plain(NAP, str(number)) for number in range(400)]
            answers = executor.run(jobs)
            timer.join()
            assert [answer[0].value for answer in answers] == [str(number) for number in range(400)]
            assert len(lost) == 1
            assert lost[0] >= 64
            assert len(executor._working()) == 2

    def test_with_every_node_killed_it_says_so(self, cluster: Cluster) -> None:
        """On a cluster of its own, since nothing is left of it."""
        script = f"""
            import os, threading, ray
            ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
            from ray.cluster_utils import Cluster
            from selfplay_gym.executors.ray import RayExecutor
            from selfplay_gym.types import Job
            settings = dict(node_ip_address="127.0.0.1", object_store_memory={80 * 2**20})
            head = dict(num_cpus=0, include_dashboard=False, _system_config={FAST_HEALTH_CHECKS}, **settings)
            cluster = Cluster(True, head_node_args=head)
            node = cluster.add_node(num_cpus=1, **settings)
            with RayExecutor(cluster.address) as executor:
                threading.Timer(0.5, cluster.remove_node, [node, False]).start()
                try:
                    executor.run([Job({NAP!r}, ("1",), policy="plain")] * 400)
                except Exception as error:
                    print("told", type(error).__name__, error)
                node = cluster.add_node(num_cpus=1, **settings)
                print("told", executor.run([Job({NAP!r}, ("1",), policy="plain")])[0][0].value)
            print("told", ray.is_initialized())
            cluster.shutdown()
        """
        # Ray itself prints what it thinks of nodes that die.
        lines = [line for line in run_script(script).splitlines() if line.startswith("told ")]
        assert lines == [
            "told ExecutorError no node of the Ray cluster can run programs: none is left that has a CPU",
            "told 1",
            "told False",
        ]

    def test_a_pool_killed_in_mid_batch_loses_and_doubles_nothing(
        self, executor: RayExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lost = losses(monkeypatch)
        timer = threading.Timer(0.5, lambda: os.kill(pools()[0], signal.SIGKILL))
        timer.start()
        answers = executor.run([plain(NAP, str(number)) for number in range(250)])
        timer.join()
        assert [answer[0].value for answer in answers] == [str(number) for number in range(250)]
        assert len(lost) == 1
        assert executor.run([DOUBLE])[0][0].value == "2"
        assert wait_until(lambda: (executor.run([DOUBLE]), executor.workers == 2)[1]), "the node gets another pool"

    def test_what_fails_twice_is_no_verdict(self, executor: RayExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
        lost = losses(monkeypatch)
        feed = our_ray._Batch._feed

        def feed_and_kill(batch: Any) -> None:
            feed(batch)
            for node in batch.busy():
                executor._ray.kill(node.pool)

        with monkeypatch.context() as patch:
            patch.setattr(our_ray._Batch, "_feed", feed_and_kill)
            answers = executor.run([DOUBLE, KINDS["no input"], plain(NAP, "1")])
        assert [[e.status for e in answer] for answer in answers] == [
            [Status.NO_VERDICT] * 2,
            [],
            [Status.NO_VERDICT],
        ]
        assert lost == [3, 3]
        assert executor.run([DOUBLE])[0][0].value == "2"

    def test_a_pool_that_talks_nonsense_is_replaced(
        self, executor: RayExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checked, replies = our_ray._checked, []

        def first_broken(reply: Any, jobs: Any) -> Any:
            replies.append(reply)
            return checked(((("ok", 1),),) if len(replies) == 1 else reply, jobs)

        monkeypatch.setattr(our_ray, "_checked", first_broken)
        assert executor.run([DOUBLE])[0][0].value == "2"
        assert len(replies) == 2

    def test_a_sandbox_server_killed_on_a_node_costs_no_verdict(
        self, executor: RayExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lost = losses(monkeypatch)

        def kill_servers() -> None:
            for pool in pools():
                for pid in descendants(pool):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

        timer = threading.Timer(0.5, kill_servers)
        timer.start()
        answers = executor.run([plain(NAP, str(number)) for number in range(200)])
        timer.join()
        assert [answer[0].value for answer in answers] == [str(number) for number in range(200)]
        assert lost == []

    def test_a_node_that_joins_is_used_at_the_next_call(self, cluster: Cluster, executor: RayExecutor) -> None:
        executor.run([DOUBLE])
        joined = cluster.add()
        try:
            answers = executor.run([plain(NAP, str(number)) for number in range(400)])
            assert [answer[0].value for answer in answers] == [str(number) for number in range(400)]
            assert executor.workers == 3
        finally:
            cluster.kill(joined)
        assert wait_until(lambda: joined.node_id not in executor._listed())
        executor.run([DOUBLE])
        assert executor.workers == 2

    @pytest.mark.parametrize(
        ("damage", "why"),
        [
            ("sys.modules['selfplay_gym'] = None", "selfplay_gym"),
            ("sys.executable = '/nonexistent'", "cannot start /nonexistent"),
        ],
    )
    def test_a_node_that_cannot_run_programs_is_named_and_skipped(
        self, cluster: Cluster, tmp_path: Path, damage: str, why: str
    ) -> None:
        (tmp_path / "sitecustomize.py").write_text(f"import sys\n{damage}\n")
        bad = cluster.add(PYTHONPATH=str(tmp_path))
        try:
            with pytest.warns(RuntimeWarning, match=f"{bad.node_id[:8]}.*{why}"):
                executor = RayExecutor()
            with executor:
                assert len(executor._working()) == 2
                (skipped,) = executor.describe()["skipped"]
                assert why in skipped
                assert executor.run([DOUBLE])[0][0].value == "2"  # and no second warning, which would be an error
        finally:
            cluster.kill(bad)

    def test_several_threads_take_turns(self, executor: RayExecutor) -> None:
        values: dict[int, str | None] = {}

        def ask(number: int) -> None:
            values[number] = executor.run([plain(NAP, str(number))])[0][0].value

        threads = [threading.Thread(target=ask, args=[number]) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert values == {number: str(number) for number in range(6)}

    def test_what_is_interrupted_leaves_no_answer_for_the_next_call(
        self, executor: RayExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        jobs = [plain(NAP, str(number)) for number in range(200)]
        with monkeypatch.context() as patch:
            patch.setattr(our_ray._Batch, "_take", interrupted)
            with pytest.raises(KeyboardInterrupt):
                executor.run(jobs)
        assert executor.run([DOUBLE])[0][0].value == "2"

    def test_closing_ends_the_pools_and_leaves_the_rest_of_ray_alone(self, cluster: Cluster) -> None:
        import ray

        executor = RayExecutor()
        executor.run([DOUBLE, KINDS["same"]] * 64)
        at_work = [pid for pool in pools() for pid in (pool, *descendants(pool))]
        assert len(at_work) >= 8, "two pools, each with keepers and servers"
        executor.close()
        executor.close()
        assert wait_until(lambda: not any(map(stat, at_work)))
        assert ray.is_initialized()
        with pytest.raises(ExecutorError, match="closed"):
            executor.run([DOUBLE])

    def test_an_executor_that_is_forgotten_ends_its_pools(self, cluster: Cluster) -> None:
        assert wait_until(lambda: not pools())
        executor = RayExecutor()
        assert len(pools()) == 2
        del executor
        assert wait_until(lambda: not pools())

    def test_two_clusters_at_once_are_refused(self, cluster: Cluster) -> None:
        with pytest.raises(ExecutorError, match="leave the address out"):
            RayExecutor(cluster.address)


# --- a Ray of its own ------------------------------------------------------------------------------------------------


def at_home(folder: str | Path) -> dict[str, str]:
    """Return an environment in which Ray does not write its token into the home of whoever runs the tests."""
    return {**os.environ, "HOME": str(folder)}


def run_script(script: str) -> str:
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=200, env=at_home(home))
    return done.stdout


def listening(pids: list[int]) -> set[str]:
    """Return the addresses on which processes listen, as /proc writes them."""
    inodes = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    inodes.add(str(entry.readlink()))
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}


START = """
    import os, sys
    from selfplay_gym.executors.ray import RayExecutor
    from selfplay_gym.types import Job
    executor = RayExecutor(workers=1)
    print(executor.run([Job("def f(): return 1", ("",), check_determinism=True)])[0][0].value, flush=True)
    sys.stdin.readline()
"""


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("end", ["close", "exit", "kill"])
def test_a_ray_of_its_own_stays_on_this_machine_and_leaves_no_process(end: str, tmp_path: Path) -> None:
    script = textwrap.dedent(START) + (
        "executor.close()\nprint('closed', flush=True)\nsys.stdin.readline()\n" * (end == "close")
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=at_home(tmp_path)
    ) as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None
        assert driver.stdout.readline() == "1\n"
        started = descendants(driver.pid)
        assert len(started) >= 6
        loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
        assert listening([driver.pid, *started]) <= loopback
        assert listening([driver.pid, *started])
        if end == "kill":
            # Ray's two agents of a node look for their Ray for a minute before they end.
            started = [pid for pid in started if b"Agent" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
            driver.kill()
        else:
            driver.stdin.write("\n")
            driver.stdin.flush()
        if end == "close":
            assert driver.stdout.readline() == "closed\n"
        assert wait_until(lambda: not any(map(stat, started)))
        driver.stdin.close()


@needs_ray
@pytest.mark.slow
def test_it_says_when_ray_is_gone_and_when_it_is_another_process() -> None:
    script = """
        import os, ray
        from selfplay_gym.errors import ExecutorError
        from selfplay_gym.executors.ray import RayExecutor
        from selfplay_gym.types import Job

        def ask():
            try:
                executor.run([Job("def f(): return 1", ("",))])
            except ExecutorError as error:
                print(error, flush=True)

        executor = RayExecutor(workers=1)
        print(os.environ["RAY_USAGE_STATS_ENABLED"], flush=True)
        if not os.fork():
            ask()
            os._exit(0)
        os.wait()
        ray.shutdown()
        ask()
        executor.close()
    """
    lines = run_script(script).splitlines()
    assert lines == [
        "0",
        "this executor belongs to another process; make one after the fork",
        "the Ray of this executor was shut down; make another executor",
    ]
