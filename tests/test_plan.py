"""`selfplay-gym plan`: what it accepts, what it says, and what it proposes instead."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfplay_gym import cli
from selfplay_gym.errors import InvalidConfig
from selfplay_gym.training import plan as planning
from selfplay_gym.training.config import RunConfig
from selfplay_gym.training.memory import GB, RESERVED
from selfplay_gym.training.plan import Plan, batch, plan
from tests.models import tiny_config
from tests.runs import CLI

LARGE = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
}
"""The sizes of Qwen2.5-7B, from its published configuration: 7.6 thousand million parameters."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe for a model of 7 B, of which there is a configuration alone."""
    folder = tmp_path_factory.mktemp("large")
    tiny_config("qwen2", **LARGE).save_pretrained(folder / "model")
    contents = {
        "model": str(folder / "model"),
        "style": "azr",
        "families": {"deduction": {}},
        "play": {"proposals": 16, "tasks": 32, "attempts": 8, "prompt_tokens": 2048,
                 "max_new_tokens": {"propose": 2048, "solve": 4096}},
        "update": {"micro_batch": 8},
        "holdout": None,
    }  # fmt: skip
    path = folder / "large.yaml"
    path.write_text(yaml.safe_dump(contents), encoding="utf-8")
    return path


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*CLI, "plan", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "100", **environment}, timeout=120
    )


# -- the batch ---------------------------------------------------------------------------------------------------------


@given(
    families=st.integers(1, 3),
    proposals=st.integers(1, 12),
    extra=st.integers(0, 40),
    attempts=st.integers(2, 9),
    micro_batch=st.integers(1, 200),
    gpus=st.integers(1, 16),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
def test_trl_accepts_every_batch_that_training_makes(
    families: int, proposals: int, extra: int, attempts: int, micro_batch: int, gpus: int
) -> None:
    play = {"proposals": proposals, "tasks": families * proposals + extra, "attempts": attempts}
    config = RunConfig.model_validate(
        {"families": {f"f{n}": {} for n in range(families)}, "play": play, "update": {"micro_batch": micro_batch}}
    )
    found = batch(config, gpus)
    assert found.rows == config.rows < found.slots == found.generation_batch
    assert found.rows_a_process * gpus == found.slots
    assert found.micro_batch * found.passes == found.rows_a_process
    assert found.micro_batch <= micro_batch


@pytest.mark.parametrize(
    ("split", "settings", "said"),
    [
        ((30, 8, 1), {}, r"generation_batch_size \(16\) must be divisible by num_generations \(30\)"),
        ((1, 1, 1), {"steps": 1}, "at least 2 generations"),
    ],
)
def test_what_trl_refuses_is_refused_in_its_words(
    split: tuple[int, int, int], settings: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfplay_gym.training import trainer

    monkeypatch.setattr(planning, "slots", lambda config, gpus: split)
    monkeypatch.setattr(trainer, "slots", lambda config, gpus: split)
    with pytest.raises(InvalidConfig, match=f"TRL refuses these settings: .*{said}"):
        batch(RunConfig.model_validate(settings), 1 if split == (1, 1, 1) else 2)


VERDICTS = """
import itertools, json, sys, tempfile, warnings
warnings.simplefilter("ignore")
from trl import GRPOConfig
factor, found = int(sys.argv[1]), []
for rows, passes, generations in itertools.product((1, 2, 3, 4), (1, 2, 3), (1, 2, 3, 4, 6, 8, 12)):
    try:
        args = GRPOConfig(output_dir=tempfile.gettempdir(), per_device_train_batch_size=rows * factor, use_cpu=True,
            gradient_accumulation_steps=passes, num_generations=generations, bf16=False, report_to="none")
        found.append(args.generation_batch_size)
    except ValueError:
        found.append(None)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_one_process_tells_what_trl_accepts_in_two() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    pair = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    places = [{**pair, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", VERDICTS, factor], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **place},
        )
        for factor, place in (("1", places[0]), ("1", places[1]), ("2", {}))
    ]  # fmt: skip
    try:
        first, second, alone = [json.loads(worker.communicate(timeout=120)[0].splitlines()[-1]) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert first == second == alone
    assert None in alone
    assert len(set(alone)) > 5


# -- what fits ---------------------------------------------------------------------------------------------------------


def best(found: Plan, trained: str, sharding: str) -> float:
    return next(w.memory.peak for w in found.ways if (w.trained, w.sharding) == (trained, sharding)) / GB


def test_sharding_adapters_and_checkpointing_save_memory(recipe: Path) -> None:
    found = plan(str(recipe), 8, 80)
    assert found.shape.parameters == pytest.approx(7.6e9, rel=0.01)
    # 16 bytes a parameter and 4 of buckets, before anything is computed.
    assert best(found, "all weights", "replicated") > 20 * 7.6
    assert best(found, "all weights", "fsdp2") < best(found, "all weights", "replicated") / 2
    assert best(found, "adapters", "replicated") < best(found, "all weights", "replicated") / 2
    assert all(way.with_checkpointing < way.without_checkpointing for way in found.ways)
    assert {way.memory.peak for way in found.ways} == {way.with_checkpointing for way in found.ways}
    assert [way.sharding for way in plan(str(recipe), 1, 80).ways] == ["replicated", "replicated"]


@pytest.mark.parametrize(("gpus", "memory"), [(8, 40), (2, 48), (1, 80)])
def test_what_is_proposed_fits_when_it_is_asked_for(recipe: Path, gpus: int, memory: float) -> None:
    found = plan(str(recipe), gpus, memory)
    assert found.fitting is None
    assert found.nearest
    for suggestion in found.nearest:
        again = plan(str(recipe), suggestion.gpus, memory, suggestion.settings)
        assert again.fitting == suggestion.sharding
        peaks = [w.memory.peak for w in again.ways if w.sharding == suggestion.sharding]
        assert suggestion.peak in peaks
        assert suggestion.peak <= memory * GB


def test_the_nearest_settings_change_no_more_than_needed(recipe: Path) -> None:
    ample = plan(str(recipe), 8, 400)
    assert ample.fitting == "replicated"
    assert ample.nearest == ()
    tight = plan(str(recipe), 8, 40)
    assert len(tight.nearest) == 2
    assert "update.lora={}" not in tight.nearest[0].settings
    assert "update.lora={}" in tight.nearest[1].settings
    kept = plan(str(recipe), 8, 12, ["update.lora={rank: 8}"])
    assert all("lora" not in setting for s in kept.nearest for setting in s.settings)


def test_the_split_of_the_rows_is_told(recipe: Path) -> None:
    (told,) = (line for line in plan(str(recipe), 1, 400).lines() if line.startswith("a step"))
    assert told.startswith("a step: 272 rows at most in 280 slots, 280 a process, in 35 passes of 8 rows; TRL's")
    assert any(
        "in 1 pass of 273 rows" in line for line in plan(str(recipe), 1, 400, ["update.micro_batch=999"]).lines()
    )


def test_more_gpus_are_proposed_where_no_setting_helps(recipe: Path) -> None:
    found = plan(str(recipe), 1, 18)
    assert [(s.gpus, s.sharding) for s in found.nearest] == [(2, "zero3")]
    nothing = plan(str(recipe), 1, RESERVED / GB)
    assert nothing.nearest == ()
    assert any("take a smaller model" in line for line in nothing.lines())


def test_an_engine_beside_the_trainer_takes_its_share_and_need_not_be_installed(recipe: Path) -> None:
    """Nothing is asked of vLLM, of a GPU or of a server, which the machine that plans need not have."""
    beside = ["backend=vllm", "vllm.gpu_memory=0.25"]
    plain, engine = plan(str(recipe), 8, 80), plan(str(recipe), 8, 80, beside)
    server = plan(str(recipe), 8, 80, [*beside, "vllm.mode=server"])
    reserved = [found.ways[0].memory.reserved / GB for found in (plain, engine, server)]
    assert reserved == pytest.approx([RESERVED / GB, RESERVED / GB + 20, RESERVED / GB])
    assert {way.memory.generation for found in (engine, server) for way in found.ways} == {0}


def test_continuous_batching_is_planned_with_whole_weights(recipe: Path) -> None:
    found = plan(str(recipe), 8, 40, ["backend=continuous"])
    assert {way.sharding for way in found.ways} == {"replicated"}
    assert {suggestion.sharding for suggestion in found.nearest} == {"replicated"}


def test_adapters_are_proposed_where_the_decode_loop_was_asked_for(recipe: Path) -> None:
    found = plan(str(recipe), 1, 40, ["backend=decode_loop"])
    assert [s.settings[:2] for s in found.nearest] == [("backend=auto", "update.lora={}")]


@pytest.mark.parametrize("preset", ["azr-paper", "selfplay"])
def test_the_recipes_for_real_models_can_be_planned(preset: str, recipe: Path) -> None:
    model = [f"model={recipe.parent / 'model'}"]
    found = plan(preset, 8, 80, model)
    # 64 proposals in each of three families; 192 tasks, answered once, or 8 times.
    assert found.batch.rows == 192 + 192 * {"azr-paper": 1, "selfplay": 8}[preset]
    assert found.fitting is not None or found.nearest
    for suggestion in found.nearest:
        assert plan(preset, suggestion.gpus, 80, [*model, *suggestion.settings]).fitting == suggestion.sharding


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_prints_the_table_and_how_to_start(recipe: Path) -> None:
    ended = run(recipe, "--gpus", "8", "--memory", "100", "--set", "update.bf16=true")
    assert (ended.returncode, ended.stderr) == (0, "")
    for word in ("weights", "gradients", "optimizer", "activations", "generation", "peak", "zero3"):
        assert word in ended.stdout
    assert "a step: 272 rows at most in" in ended.stdout
    assert "accelerate launch --config_file" in ended.stdout
    assert f"train {recipe} --set update.bf16=true --output runs/a" in ended.stdout


@pytest.mark.slow
def test_eighty_columns_are_enough_for_the_table(recipe: Path) -> None:
    ended = run(recipe, "--gpus", "8", "--memory", "80", COLUMNS="80")
    assert "not checkpointed" in ended.stdout
    assert "…" not in ended.stdout


@pytest.mark.slow
def test_a_hub_id_is_looked_up_as_for_training(recipe: Path, tmp_path: Path) -> None:
    """The hub's own cache, as a download leaves it, and no network."""
    model = tmp_path / "models--somebody--large"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("0123456789abcdef0123456789abcdef01234567")
    shutil.copytree(recipe.parent / "model", model / "snapshots" / "0123456789abcdef0123456789abcdef01234567")
    where = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    ended = run(recipe, "--gpus", "2", "--memory", "80", "--json", "--set", "model=somebody/large", **where)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["shape"]["parameters"] == pytest.approx(7.6e9, rel=0.01)
    assert found["batch"]["generation_batch"] == found["batch"]["slots"]
    assert len(found["ways"]) == 6
    other = run(recipe, "--gpus", "2", "--memory", "80", "--set", "model=somebody/other", **where)
    assert other.returncode == 1
    assert other.stderr.startswith("error: cannot load a model from 'somebody/other'")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nanno", "--gpus", "1", "--memory", "80"], "no recipe 'nanno'"),
        (["nano", "--gpus", "0", "--memory", "80"], "gpus must be between 1 and 4096, got 0"),
        (["nano", "--gpus", "1", "--memory", "0"], "memory must be a positive number of GB"),
        (["nano", "--gpus", "1", "--memory", "nan"], "memory must be a positive number of GB"),
        (["nano", "--gpus", "1", "--memory", "lots"], "got 'lots'"),
        (["nano", "--gpus", "1"], "Missing option '--memory'"),
        (
            ["nano", "--gpus", "3", "--memory", "80", "--set", "backend=vllm", "--set", "vllm.tensor_parallel=2"],
            "vllm.tensor_parallel must divide the run's processes, got 2 of 3",
        ),
        (["nano", "--gpus", "1", "--memory", "80", "--set", "model=./none"], "cannot load a model from './none'"),
        (["nano", "--gpus", "1", "--memory", "80", "--set", "play.atempts=3"], "play.attempts"),
    ],
)
def test_bad_input_gives_one_clear_line(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["selfplay-gym", "plan", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, errors = capsys.readouterr()
    assert ended.value.code in (1, 2)
    assert out == ""
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert said in errors


def test_a_folder_that_describes_no_language_model_gives_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    with pytest.raises(
        InvalidConfig, match=r"cannot plan for .*: expected the configuration of a causal language model"
    ):
        plan("nano", 1, 80, [f"model={tmp_path}"])
