from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from rich.console import Console

from selfplay_gym.errors import RunFolderError
from selfplay_gym.training import run
from selfplay_gym.training.config import Mismatch, RunConfig
from selfplay_gym.training.folder import COMPLETE, RunFolder
from tests.players import fresh_policy, good_player
from tests.runs import (
    STEPS,
    alive,
    assert_same_run,
    command_line,
    descendants,
    finished,
    kill_after,
    kill_in,
    metrics,
    started,
    steps_done,
    tiny_policy,
    told,
    train,
    wait_for,
    weights,
    write_recipe,
)

# -- in this process ---------------------------------------------------------------------------------------------------


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Play runs here, with a scripted player instead of a loaded policy."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setattr(run, "_quiet", lambda folder: None)
    monkeypatch.setattr(run, "load_policy", lambda config: fresh_policy(player=good_player))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(steps: int = 5, advantage: str = "group") -> RunConfig:
    return RunConfig.model_validate(
        {
            "families": {"deduction": {"references": 1}, "abduction": {"references": 1}},
            "steps": steps,
            "play": {"proposals": 4, "tasks": 10, "attempts": 4, "max_new_tokens": {"propose": 96, "solve": 32}},
            "reward": {"novelty": 0.5},
            "update": {"advantage": advantage, "learning_rate": 1e-3, "micro_batch": 16, "skip_padding": True},
            "holdout": None,
            "processes": 1,
            "save_steps": 2,
        }
    )


def play(folder: Path, settings: RunConfig, *, resume: bool = False) -> tuple[int, str]:
    shown = io.StringIO()
    where = RunFolder(folder)
    if not resume:
        where.prepare(settings)
    code = run.run_rank(settings, where, resume=resume, console=Console(file=shown, width=80))
    return code, shown.getvalue()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("advantage", [pytest.param("group", marks=pytest.mark.slow), "rae"])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(
    advantage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(advantage=advantage)
    assert play(tmp_path / "straight", settings)[0] == 0
    assert any(line["grad_norm"] > 0 for line in metrics(tmp_path / "straight"))
    assert sum(line["tasks/replayed"] for line in metrics(tmp_path / "straight")) > 0
    with monkeypatch.context() as patch:
        patch.setattr(run.Leader, "should_stop", lambda leader: leader._watch.step >= 3)
        code, shown = play(tmp_path / "stopped early", settings)
    assert code == run.INTERRUPTED
    assert f"Stopped after step 3. Go on with: selfplay-gym train --resume --output '{tmp_path}/stopped early'" in shown
    kept = RunFolder(tmp_path / "stopped early").mark(3)["baselines"]
    assert set(kept) == (
        {f"{r}/{f}" for r in ("propose", "solve") for f in settings.families} if advantage == "rae" else set()
    )
    code, shown = play(tmp_path / "stopped early", settings, resume=True)
    assert code == 0
    assert "resuming after step 3" in shown
    assert_same_run(tmp_path / "stopped early", tmp_path / "straight")


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    play(tmp_path / "straight", config(4))
    play(tmp_path / "longer", config(2))
    assert play(tmp_path / "longer", config(4), resume=True)[0] == 0
    assert_same_run(tmp_path / "longer", tmp_path / "straight")
    clocks = [json.loads(line)["seconds/step"] for line in (tmp_path / "longer/metrics.jsonl").read_text().splitlines()]
    seconds = json.loads((tmp_path / "longer" / "result.json").read_text())["seconds"]
    assert sum(clocks) - 0.1 <= seconds < sum(clocks) + 1  # those of both sessions


@pytest.mark.usefixtures("one_process")
def test_a_resumed_run_does_not_warn_again_of_what_goes_on(tmp_path: Path) -> None:
    apart = {"mismatch": Mismatch(alarm=1e-12)}  # rounding alone is above
    assert "warning: step 1: the sampler's log-probs" in play(tmp_path, config(2).model_copy(update=apart))[1]
    code, shown = play(tmp_path, config(4).model_copy(update=apart), resume=True)
    assert code == 0
    assert "warning" not in shown


@pytest.mark.usefixtures("one_process")
def test_the_phases_of_a_step_are_timed_apart(tmp_path: Path) -> None:
    play(tmp_path, config(2))
    for line in RunFolder(tmp_path).records():
        phases = [f"seconds/{phase}" for phase in ("propose", "gate", "solve", "judge", "mismatch", "update")]
        assert all(line[phase] > 0 for phase in phases)
        assert sum(line[phase] for phase in phases) < line["seconds/step"]


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    play(tmp_path / "run", config(2))
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert play(tmp_path / "run", config(2), resume=True)[0] == 0
    assert_same_run(tmp_path / "run", tmp_path / "copy")
    play(tmp_path / "other", config(2).model_copy(update={"seed": 1}))
    shutil.copy(tmp_path / "other" / "archive.sqlite", tmp_path / "run")
    with pytest.raises(RunFolderError, match="does not belong to the checkpoint of step 2"):
        play(tmp_path / "run", config(3), resume=True)


# -- the command line, killed ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module", params=[1, 2])
def recipe(request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    return write_recipe(folder / "recipe.yaml", tiny, processes=request.param)


@pytest.fixture(scope="module")
def straight(recipe: Path) -> Path:
    """The same run, left alone."""
    ended = train(recipe, "--output", recipe.parent / "straight")
    assert ended.code == 0, ended
    measured = metrics(recipe.parent / "straight")
    assert [line["step"] for line in measured] == list(range(1, STEPS + 1))
    assert sum(line["tasks/new"] for line in measured) > 5
    assert sum(line["grad_norm"] > 0 for line in measured) >= 3
    return recipe.parent / "straight"


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_it_had_not_been(recipe: Path, straight: Path, tmp_path: Path) -> None:
    others = kill_after(1, tmp_path, recipe, delay=0.05)
    others |= kill_after(4, tmp_path, "--resume", delay=0.15)
    others |= kill_after(5, tmp_path, "--resume")
    wait_for(lambda: not alive(others))
    ended = train("--resume", "--output", tmp_path)
    assert ended.code == 0, ended
    assert_same_run(tmp_path, straight)


PHASES = ("propose", "gate", "solve", "judge", "update")
KILLS = 20


def instants(rng: random.Random) -> list[str]:
    """Return the phase of each step that a kill aims at: checkpoints are written at even steps alone."""
    odd, even = [*PHASES, *PHASES], [*PHASES, *["checkpoint"] * 5]
    rng.shuffle(odd)
    rng.shuffle(even)
    return [phase for pair in zip(odd, even, strict=True) for phase in pair]


def lengths(phases: list[tuple[float, int, str]]) -> dict[str, float]:
    """Return the median seconds of each phase."""
    found: dict[str, list[float]] = {}
    for (began, _, phase), (ended, _, following) in pairwise(phases):
        if phase != following:
            found.setdefault(phase, []).append(ended - began)
    return {phase: statistics.median(seconds) for phase, seconds in found.items()}


@pytest.mark.slow
def test_a_run_killed_at_twenty_instants_is_the_run_that_was_not(tiny: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", tiny, steps=KILLS + 2)
    unbroken, killed, notes = tmp_path / "unbroken", tmp_path / "killed", tmp_path / "phases"
    command = (sys.executable, str(Path(__file__).with_name("told_run.py")), str(notes))
    ended = train(recipe, "--output", unbroken, command=command)
    assert ended.code == 0, ended
    typical = lengths(told(notes))
    rng = random.Random(20)
    others, fell = set(), []
    for step, phase in enumerate(instants(rng), start=1):
        arguments = ("--resume",) if killed.exists() else (recipe,)
        left, last = kill_in(step, phase, rng.uniform(0, 0.9) * typical[phase], notes, *arguments, "--output", killed)
        others |= left
        fell.append(last)
    assert len(fell) == KILLS
    assert {"gate", "update", "checkpoint"} <= set(fell)
    assert {"propose", "solve"} & set(fell)
    wait_for(lambda: not alive(others))
    ended = train("--resume", "--output", killed)
    assert ended.code == 0, ended
    assert_same_run(killed, unbroken)


@pytest.mark.slow
def test_a_checkpoint_cut_off_while_it_was_written_is_passed_over(recipe: Path, straight: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(straight, folder.path)
    newest = folder.checkpoint(STEPS)
    (newest / COMPLETE).unlink()
    for file in newest.iterdir():
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)
    shutil.rmtree(folder.model)
    ended = train("--resume", "--output", folder.path)
    assert ended.code == 0, ended
    assert f"resuming after step {STEPS - 2}" in ended.out
    assert_same_run(folder.path, straight)


@pytest.mark.slow
def test_ctrl_c_ends_the_step_and_says_how_to_go_on(recipe: Path, straight: Path, tmp_path: Path) -> None:
    with started("train", recipe, "--output", tmp_path) as process:
        wait_for(lambda: steps_done(tmp_path) >= 2, process)
        others = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        ended = finished(process)
    assert ended.code == 130, ended
    assert "Finishing this step and saving" in ended.out
    done = steps_done(tmp_path)
    assert f"Stopped after step {done}. Go on with: selfplay-gym train --resume --output {tmp_path}" in ended.out
    assert ended.err == ""
    assert not alive(others)
    assert train("--resume", "--output", tmp_path).code == 0
    assert_same_run(tmp_path, straight)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(recipe: Path, straight: Path, tmp_path: Path) -> None:
    with started("train", recipe, "--output", tmp_path) as process:
        wait_for(lambda: steps_done(tmp_path) >= 3, process)
        others = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        ended = finished(process)
    assert time.monotonic() - began < 20
    assert ended.code in (1, 130), ended
    assert ended.err in ("error: interrupted\n", ""), ended
    if ended.err:  # the third one has not cut off the words as well
        assert f"Stopped at once. Go on with: selfplay-gym train --resume --output {tmp_path}\n" in ended.out
    wait_for(lambda: not alive(others))
    assert train("--resume", "--output", tmp_path).code == 0
    assert_same_run(tmp_path, straight)


@pytest.mark.slow
def test_ctrl_c_before_the_first_step_ends_at_once_and_says_how_to_go_on(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model, asked = tiny_policy(tmp_path_factory.getbasetemp()), {"problems": 4, "samples": 2}
    recipe = write_recipe(tmp_path / "tiny.yaml", model, holdout=asked, steps=1)
    with started("train", recipe, "--output", tmp_path / "run") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("starting: ")
        process.send_signal(signal.SIGINT)
        ended = finished(process)
    assert (ended.code, ended.err) == (130, "error: interrupted\n")
    assert "Finishing" not in ended.out
    assert ended.out.endswith(f"Stopped at once. Go on with: selfplay-gym train --resume --output {tmp_path / 'run'}\n")
    assert steps_done(tmp_path / "run") == 0
    assert train("--resume", "--output", tmp_path / "run").code == 0
    assert steps_done(tmp_path / "run") == 1


def sandbox_servers(process: subprocess.Popen[str]) -> list[int]:
    return [pid for pid in descendants(process.pid) if "selfplay_gym.executors.server" in command_line(pid)]


@pytest.mark.slow
def test_a_killed_server_of_the_sandbox_loses_nothing(recipe: Path, straight: Path, tmp_path: Path) -> None:
    killed = 0
    with started("train", recipe, "--output", tmp_path) as process:
        for step in range(1, STEPS - 1):
            wait_for(lambda step=step: steps_done(tmp_path) >= step, process)  # type: ignore[misc]
            # The last one: started latest, so a server and not the keeper above it.
            os.kill(max(sandbox_servers(process)), signal.SIGKILL)
            killed += 1
        ended = finished(process)
    assert ended.code == 0, ended
    assert killed == STEPS - 2
    assert [line["no_verdict"] for line in metrics(tmp_path)] == [0] * STEPS
    assert_same_run(tmp_path, straight)


@pytest.mark.slow
def test_a_sandbox_killed_as_a_whole_costs_verdicts_at_most(recipe: Path, straight: Path, tmp_path: Path) -> None:
    with started("train", recipe, "--output", tmp_path) as process:
        for step in range(1, STEPS - 1):
            wait_for(lambda step=step: steps_done(tmp_path) >= step, process)  # type: ignore[misc]
            for pid in sandbox_servers(process):
                with suppress(ProcessLookupError):  # what belonged to one killed just before is gone already
                    os.kill(pid, signal.SIGKILL)
        ended = finished(process)
    assert ended.code == 0, ended
    for line in metrics(tmp_path):
        refused = sum(count for name, count in line.items() if name.startswith("rejected/"))
        # Each of the six proposals is refused by a check, became a task, or has no verdict: none is just gone.
        assert 6 - refused - line["tasks/new"] <= line["no_verdict"]
    # Up to the first step without a verdict, that one included, the policy is that of the run that was left alone, and
    # so are its proposals: a check refuses none that it did not refuse there.
    for line, unbroken in zip(metrics(tmp_path), metrics(straight), strict=True):
        for name, count in line.items():
            assert not name.startswith("rejected/") or count <= unbroken.get(name, 0), (line["step"], name)
        if line["no_verdict"]:
            break


@pytest.mark.slow
def test_a_run_is_not_entered_twice(recipe: Path, tmp_path: Path) -> None:
    with started("train", recipe, "--output", tmp_path, "--set", "steps=100000") as process:
        wait_for(lambda: steps_done(tmp_path) >= 1, process)
        ended = train("--resume", "--output", tmp_path)
        assert ended.code == 1
        assert ended.err == f"error: {tmp_path} is in use by another run (process {process.pid})\n"
        assert process.poll() is None


@pytest.mark.slow
def test_a_resumed_run_may_be_longer_in_every_process(recipe: Path, straight: Path, tmp_path: Path) -> None:
    assert train(recipe, "--output", tmp_path, "--set", "steps=3").code == 0
    ended = train("--resume", "--output", tmp_path, "--set", f"steps={STEPS}")
    assert ended.code == 0, ended
    assert_same_run(tmp_path, straight)


@pytest.mark.slow
def test_the_result_says_what_was_done(straight: Path) -> None:
    result = json.loads((straight / "result.json").read_text())
    assert result["steps"] == STEPS
    assert result["archive"]["tasks"] > 5
    assert all(tensor.isfinite().all() for tensor in weights(straight).values())
