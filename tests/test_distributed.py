from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from selfplay_gym.errors import InvalidConfig, RunFolderError, SelfPlayError
from selfplay_gym.training import distributed, launch
from selfplay_gym.training.config import RunConfig, dump
from selfplay_gym.training.distributed import Ranks, SharedGenerator
from selfplay_gym.training.folder import RunFolder
from selfplay_gym.training.generation import Request, Sample
from tests.runs import (
    CLI,
    STEPS,
    alive,
    assert_same_run,
    command_line,
    descendants,
    finished,
    metrics,
    started,
    steps_done,
    tiny_policy,
    train,
    wait_for,
    weights,
    write_recipe,
)

# -- places ------------------------------------------------------------------------------------------------------------


@given(prompts=st.lists(st.integers(1, 6), max_size=40), world=st.integers(1, 7))
def test_every_request_is_dealt_once_and_the_shares_are_even(prompts: list[int], world: int) -> None:
    shares = distributed._dealt([Request((prompt,), 1, 1.0, 0) for prompt in prompts], world)
    assert sorted(place for share in shares for place in share) == list(range(len(prompts)))
    assert max(map(len, shares)) <= -(-len(prompts) // world)


@given(groups=st.integers(1, 20), attempts=st.integers(1, 8), world=st.integers(1, 4))
def test_answers_to_one_prompt_are_one_ranks_work(groups: int, attempts: int, world: int) -> None:
    count = groups * world  # so that whole groups fill the shares
    shares = distributed._dealt([Request((1 + n // attempts,), 1, 1.0, n) for n in range(count * attempts)], world)
    assert [len({place // attempts for place in share}) for share in shares] == [groups] * world


def test_a_process_alone_is_the_first_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = Ranks.from_environment()
    assert ranks == Ranks(0, 1)
    assert ranks.is_main
    assert ranks.broadcast("x") == "x"
    assert ranks.gather("x") == ["x"]
    ranks.wait()


def test_a_launcher_says_which_place_a_process_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Ranks.from_environment() == Ranks(3, 4)
    assert not Ranks.from_environment().is_main


def test_alone_a_failure_is_raised_as_it_is() -> None:
    class Failing:
        def generate(self, requests: Any) -> list[Sample]:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), SharedGenerator(Failing(), Ranks()).leading():
        SharedGenerator(Failing(), Ranks()).generate([Request((1,), 1, 1.0, 0)])


def test_a_central_backend_is_asked_on_rank_0_alone() -> None:
    class Echo:
        def generate(self, requests: Sequence[Request]) -> list[Sample]:
            return [Sample(request.prompt_ids, (0.0,), finished=True) for request in requests]

    asked = [Request((n,), 1, 1.0, n) for n in range(5)]
    # No other process exists here: a message to one would raise.
    samples = SharedGenerator(Echo(), Ranks(0, 2), central=True).generate(asked)
    assert [sample.ids for sample in samples] == [request.prompt_ids for request in asked]
    with pytest.raises(ValueError, match="process group"):
        SharedGenerator(Echo(), Ranks(0, 2)).generate(asked)


# -- followers without a run -------------------------------------------------------------------------------------------


def test_a_follower_whose_starter_is_gone_ends_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "selfplay_gym.training.launch", str(tmp_path), "1"]
    assert subprocess.run(command, timeout=60, check=False).returncode == 1


def test_under_a_launcher_the_folder_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SelfPlayError, match="--output"):
        launch.train(None, [], None, resume=False, console=None)  # type: ignore[arg-type]


def test_a_place_without_a_launcher_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(SelfPlayError, match="MASTER_ADDR expected, but not set: start several processes with torchrun"):
        launch.train(None, [], Path("nowhere"), resume=False, console=None)  # type: ignore[arg-type]


def test_a_failed_run_ends_its_followers_and_names_the_one_that_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    (tmp_path / "executable").write_text("#!/bin/sh\n[ $RANK = 2 ] && exit 7\nexec sleep 60\n")
    (tmp_path / "executable").chmod(0o755)
    monkeypatch.setattr(launch.sys, "executable", str(tmp_path / "executable"))
    config = RunConfig.model_validate({"processes": 4})
    before = descendants(os.getpid())
    began = time.monotonic()
    with (
        pytest.raises(
            SelfPlayError, match=r"process 2 of the run ended with exit code 7, see .*; go on with: .* --resume"
        ),
        launch._followers(config, RunFolder(tmp_path)),
    ):
        raise RuntimeError("Connection closed by peer")
    assert descendants(os.getpid()) <= before
    assert time.monotonic() - began < 8


def test_an_error_of_the_first_process_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    (tmp_path / "executable").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "executable").chmod(0o755)
    monkeypatch.setattr(launch.sys, "executable", str(tmp_path / "executable"))
    config = RunConfig.model_validate({"processes": 2})
    before = descendants(os.getpid())
    for error in (SelfPlayError("disk full"), KeyboardInterrupt(), RuntimeError("a bug")):
        with pytest.raises(type(error)) as caught, launch._followers(config, RunFolder(tmp_path)):
            raise error
        assert caught.value is error
    assert descendants(os.getpid()) <= before


def test_a_run_keeps_its_number_of_processes_on_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfplay_gym.training import run

    used = []

    @contextmanager
    def no_followers(config: RunConfig, folder: RunFolder) -> Iterator[dict[str, str]]:
        used.append(config.processes)
        yield {}

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(run, "check", lambda config: None)
    monkeypatch.setattr(run, "check_start", lambda config: None)
    monkeypatch.setattr(run, "run_rank", lambda *arguments, **named: 0)
    monkeypatch.setattr(launch, "_followers", no_followers)
    monkeypatch.setattr(launch, "_default_processes", lambda: 3)
    folder = RunFolder(tmp_path / "run")
    console = Console(quiet=True)
    launch.launch(RunConfig(), folder, resume=False, console=console)
    assert folder.stored_config().processes == 3
    monkeypatch.setattr(launch, "_default_processes", lambda: 5)
    launch.train(None, ["save_steps=7"], folder.path, resume=True, console=console)
    launch.launch(RunConfig(), folder, resume=True, console=console)
    assert folder.stored_config().processes == 3
    with pytest.raises(RunFolderError, match="its processes is 3, not 2"):
        launch.train(None, ["processes=2"], folder.path, resume=True, console=console)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(RunFolderError, match="its processes is 3, not 4"):
        launch.train(None, [], folder.path, resume=True, console=console)
    monkeypatch.delenv("WORLD_SIZE")
    (folder.path / "config.yaml").write_text(dump(RunConfig()))  # as earlier versions wrote it
    launch.train(None, [], folder.path, resume=True, console=console)
    assert folder.stored_config().processes == 5
    assert used == [3, 3, 3, 5]


@pytest.mark.parametrize(("gpus", "most"), [(0, "3, the cores"), (4, "4, the GPUs")])
def test_no_more_processes_are_started_than_can_work(
    gpus: int, most: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 7})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(launch, "_followers", None)  # where a thousand would be started
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(InvalidConfig, match=f"processes must be at most {most} that this run may use, got 1000"):
        launch.launch(RunConfig(processes=1000), folder, resume=False, console=Console(quiet=True))
    assert not folder.path.exists()
    allowed = gpus or 3
    assert launch._processes(RunConfig(processes=allowed), folder, resume=False) == allowed


# -- two processes that exchange things --------------------------------------------------------------------------------

WORKER = """
import sys
from datetime import timedelta
import torch.distributed as dist
from selfplay_gym.errors import SelfPlayError
from selfplay_gym.training.distributed import LeaderFailed, Ranks, SharedGenerator, let_followers_begin, wait_to_begin
from selfplay_gym.training.generation import Request, Sample

ranks = Ranks.from_environment()
let_followers_begin() if ranks.is_main else wait_to_begin()  # the group still forms afterwards
dist.init_process_group("gloo", timeout=timedelta(seconds=20))

class Echo:
    asked = 0
    def generate(self, requests):
        Echo.asked += len(requests)
        if FAILS == ranks.rank:
            raise ValueError("no logits")
        return [Sample((request.seed,), (-0.5,), True) for request in requests]

def requests(count):
    return [Request((1,), 1, 1.0, seed) for seed in range(count)]

FAILS = int(sys.argv[1])
generator = SharedGenerator(Echo(), ranks)
assert ranks.broadcast(ranks.rank + 5) == 5
assert ranks.gather(list(ranks.shard(range(7)))) == [[0, 2, 4, 6], [1, 3, 5]]
try:
    if ranks.is_main:
        with generator.leading():
            for count in (5, 0, 1, 8):
                found = generator.generate(requests(count))
                assert [sample.ids[0] for sample in found] == list(range(count)), found
            if FAILS == 9:
                raise ZeroDivisionError("in the game")
    else:
        generator.follow()
except (SelfPlayError, ZeroDivisionError) as error:
    print(type(error).__name__, error)
else:
    print("asked", Echo.asked)
ranks.wait()
"""


def run_workers(fails: int, world: int = 2) -> list[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(fails)],
            env={**shared, "RANK": str(rank), "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        return [worker.communicate(timeout=60)[0].strip() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def test_ranks_share_the_work() -> None:
    assert run_workers(fails=-1) == ["asked 8", "asked 6"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_cannot_generate_does_not_hang_the_others(rank: int) -> None:
    said = f"rank {rank} cannot generate: no logits"
    assert run_workers(fails=rank) == [f"SelfPlayError {said}", f"LeaderFailed rank 0 failed: SelfPlayError: {said}"]


@pytest.mark.slow
def test_an_error_in_the_game_ends_the_followers() -> None:
    assert run_workers(fails=9) == [
        "ZeroDivisionError in the game",
        "LeaderFailed rank 0 failed: ZeroDivisionError: in the game",
    ]


# -- whole runs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same run in one process and in two."""
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for processes in (1, 2):
        recipe = write_recipe(folder / f"{processes}.yaml", tiny, processes=processes, save_steps=1)
        ended = train(recipe, "--output", folder / str(processes))
        assert ended.code == 0, ended
        found[processes] = folder / str(processes)
    return found


def completions(folder: Path, step: int) -> list[dict[str, Any]]:
    text = (folder / "completions" / f"step-{step:06d}.jsonl").read_text()
    return [json.loads(line) for line in text.split("\n") if line]


@pytest.mark.slow
def test_two_processes_play_and_learn_as_one(runs: dict[int, Path]) -> None:
    # The first step is the same to the letter. Later ones differ by rounding: rows are summed in another order, and a
    # draw within 1e-6 of a border between two tokens could tip; on this seed none does.
    for step in range(1, STEPS + 1):
        rows = [
            [(row["role"], row["group"], row["text"], row["reward"]) for row in completions(folder, step)]
            for folder in runs.values()
        ]
        assert rows[0] == rows[1], f"step {step}"
    # The slots differ (one process needs 39 rows, two need 40), not what is learned from them.
    for one, two in zip(metrics(runs[1]), metrics(runs[2]), strict=True):
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4)
    ours, theirs = weights(runs[1]), weights(runs[2])
    change = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    print(f"largest difference of a weight after {STEPS} steps: {change:.1e}")
    assert change < 1e-4


@pytest.mark.slow
def test_a_killed_follower_ends_the_run_with_one_line(runs: dict[int, Path], tmp_path: Path) -> None:
    recipe = runs[2].parent / "2.yaml"
    with started("train", recipe, "--output", tmp_path) as process:
        wait_for(lambda: steps_done(tmp_path) >= 3, process)
        others = descendants(process.pid)
        followers = [pid for pid in others if "selfplay_gym.training.launch" in command_line(pid)]
        assert len(followers) == 1
        os.kill(followers[0], signal.SIGKILL)
        ended = finished(process)
    assert ended.code == 1, ended
    assert ended.err == (
        f"error: process 1 of the run was killed by signal 9, see {tmp_path}/log.txt; go on with: selfplay-gym train "
        f"--resume --output {tmp_path}\n"
    )
    wait_for(lambda: not alive(others))
    assert train("--resume", "--output", tmp_path).code == 0
    assert_same_run(tmp_path, runs[2])


@pytest.mark.slow
def test_a_follower_that_dies_before_it_is_met_ends_the_run(runs: dict[int, Path], tmp_path: Path) -> None:
    with started("train", runs[2].parent / "2.yaml", "--output", tmp_path) as process:
        others: set[int] = set()

        def follower() -> int | None:
            others.update(descendants(process.pid))
            return next((pid for pid in others if "selfplay_gym.training.launch" in command_line(pid)), None)

        wait_for(lambda: follower() is not None, process)
        os.kill(follower() or 0, signal.SIGKILL)
        began = time.monotonic()
        ended = finished(process)
    assert time.monotonic() - began < 30
    assert ended.code == 1
    assert ended.err.startswith("error: process 1 of the run was killed by signal 9")
    assert ended.err.count("\n") == 1
    wait_for(lambda: not alive(others))
    assert train("--resume", "--output", tmp_path).code == 0
    assert_same_run(tmp_path, runs[2])


@pytest.mark.slow
def test_killing_the_first_process_leaves_nothing_behind(runs: dict[int, Path], tmp_path: Path) -> None:
    recipe = runs[2].parent / "2.yaml"
    for moment in (0, 2):
        with started("train", recipe, "--output", tmp_path / str(moment)) as process:
            # Once while the follower still imports its libraries, once in the middle of the run.
            wait_for(
                lambda moment=moment: (  # type: ignore[misc]
                    steps_done(tmp_path / str(moment)) >= moment
                    and any("training.launch" in command_line(pid) for pid in descendants(process.pid))
                ),
                process,
            )
            others = descendants(process.pid)
            process.kill()
        began = time.monotonic()
        wait_for(lambda: not alive(others))  # noqa: B023
        assert time.monotonic() - began < 10


@pytest.mark.slow
def test_hold_outs_are_solved_on_the_way_by_all_ranks(tiny: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "play": {"proposals": 4, "tasks": 4, "attempts": 4, "frozen_proposer": True},
        "steps": 4,
        "holdout": {"problems": 4, "samples": 2, "every": 2},
    }
    found = []
    for processes in (1, 2):
        recipe = write_recipe(tmp_path / f"{processes}.yaml", tiny, processes=processes, **settings)
        assert train(recipe, "--output", tmp_path / str(processes)).code == 0
        found.append(metrics(tmp_path / str(processes)))
    for records in found:
        measured = [record["step"] for record in records if "holdout/nano-harder" in record]
        assert measured == [2]  # after the last step the table tells
        assert all(record["tokens/untrained"] > 0 for record in records)
    assert found[0][1]["holdout/nano-harder"] == found[1][1]["holdout/nano-harder"]


TORCHRUN = (
    *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"),
    *("--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0", "-m", CLI[-1]),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nano"], "already holds a run or other files"),
        (["nano", "--set", "model=./none"], "cannot load a model from './none'"),
        (["nano", "--set", "play.atempts=3"], "no setting 'play.atempts'"),
    ],
)
def test_what_rank_0_refuses_no_other_rank_begins_or_speaks_of(arguments: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    ended = train(*arguments, "--output", tmp_path, command=TORCHRUN)
    assert ended.code == 1
    assert ended.err.count(said) == 1, ended.err
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_torchrun_starts_the_same_run(runs: dict[int, Path], tmp_path: Path) -> None:
    recipe = runs[2].parent / "2.yaml"
    assert train(recipe, "--output", tmp_path, "--set", "steps=4", command=TORCHRUN).code == 0
    ended = train("--resume", "--output", tmp_path, "--set", f"steps={STEPS}", command=TORCHRUN)
    assert ended.code == 0, ended
    assert_same_run(tmp_path, runs[2])
