"""The benchmark of a GPU: its formulas by hand, its tables from metrics by hand, and all of it on CPU, tiny."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from selfplay_gym.cli import app
from selfplay_gym.errors import InvalidConfig, UnknownId
from selfplay_gym.report import read_metrics
from selfplay_gym.training import bench_gpu as bench
from selfplay_gym.training.bench_gpu import SIZES, GpuResult, Machine, Measured, Plan, build_tokenizer, measured
from selfplay_gym.training.distributed import Ranks, SharedGenerator
from selfplay_gym.training.memory import GB, Shape, estimate
from selfplay_gym.training.trainer import Rollout

SHAPE = Shape(
    parameters=1000, adapters=10, layers=2, layer=400, hidden=8, intermediate=16, heads=2, key_heads=1, head_size=4,
    vocabulary=25,
)  # fmt: skip
H200 = Machine("NVIDIA H200", 141 * 10**9, 989.0)
TINY = ("--cpu", "--sizes", "tiny", "--steps", "2", "--max-new-tokens", "8")

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def a_step(number: int, **changed: float) -> dict[str, float]:
    return {
        "step": number, "rows": 10, "tokens/prompts": 600, "tokens/sampled": 400, "unfinished": 0.9,
        "seconds/propose": 1.0, "seconds/gate": 0.5, "seconds/solve": 3.0, "seconds/update": 5.0,
        "seconds/step": 10.0, **changed,
    }  # fmt: skip


def of_steps(*steps: dict[str, float], machine: Machine = H200) -> Measured:
    return measured("tiny", steps, Plan().config(Path("m")), SHAPE, machine)


def shown(result: GpuResult) -> str:
    console = Console(width=120, file=io.StringIO())
    with console.capture() as capture:
        console.print(result.table())
    return capture.get()


# -- formulas ----------------------------------------------------------------------------------------------------------


def test_the_work_of_a_step_is_that_of_the_formula() -> None:
    # 10 rows of 60 + 40 tokens: 6 N = 6000 and 12 L H Q T = 12 * 2 * 2 * 4 * 100 = 19200 for a token that is trained
    # on, a third of their sum for one that is sampled.
    work = bench.work_of_step(SHAPE, rows=10, prompt_tokens=600, sampled_tokens=400)
    assert work.update == 25_200 * 1000
    assert work.sampling == 8400 * 400


def test_utilisation_is_work_by_time_and_peak() -> None:
    seconds = {"propose": 1.0, "solve": 3.0, "update": 5.0, "step": 10.0}
    used = bench.utilisation(bench.Work(sampling=4e12, update=50e12), seconds, peak_tflops=100.0)
    assert (used.sampling, used.update, used.step) == pytest.approx((0.01, 0.1, 0.054))


@pytest.mark.parametrize(("name", "parameters"), [("0.5b", 494_032_768), ("3b", 3_085_938_688)])
def test_the_shapes_have_the_parameters_of_the_models_that_they_are_named_after(name: str, parameters: int) -> None:
    config = bench.model_config(SIZES[name], build_tokenizer(300))
    with torch.device("meta"):
        assert AutoModelForCausalLM.from_config(config).num_parameters() == parameters


# -- what a run has written --------------------------------------------------------------------------------------------


def test_metrics_become_means_rates_and_peaks() -> None:
    first = a_step(2, **{"memory/allocated": 7.0, "memory/reserved": 8.0})
    second = a_step(3, **{"memory/allocated": 5.0, "memory/reserved": 9.0, "seconds/solve": 5.0, "seconds/step": 12.0})
    found = of_steps(first, second)
    assert (found.rows, found.prompt_tokens, found.new_tokens, found.unfinished) == (10, 60, 40, 0.9)
    assert found.tokens_per_second == 400 / 5
    assert (found.seconds["solve"], found.seconds["step"]) == (4.0, 11.0)
    assert found.seconds["other"] == pytest.approx(0.5)
    assert (found.allocated, found.reserved) == (7.0, 9.0)
    assert found.utilisation is not None
    assert found.utilisation.update == pytest.approx(25_200 * 1000 / 5 / 989e12)


def test_the_estimate_is_that_of_plan() -> None:
    config = Plan().config(Path("m"))
    assert of_steps(a_step(2)).estimated == estimate(config, SHAPE, "replicated", 1, H200.memory).peak


def test_the_table_and_json_hold_every_figure(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    steps = [a_step(n, **{"memory/allocated": 12 * GB, "memory/reserved": 14 * GB}) for n in (1, 2, 3)]
    metrics.write_text("".join(json.dumps(step) + "\n" for step in steps))
    one = of_steps(*read_metrics(metrics)[1:])
    result = GpuResult((one, replace(one, size="3b")), H200, Plan(output=tmp_path))
    text = shown(result)
    for words in ("NVIDIA H200", "tiny, 0.0 M", "3b, 0.0 M", "100", "90%", "12.00", "14.00", "FLOP utilisation, step"):
        assert words in text
    assert all(f"seconds, {phase}" in text for phase in ("propose", "gate", "solve", "update", "other", "step"))
    assert "seconds, holdout" not in text
    assert "holds 1.5 GB for CUDA" in text
    again = json.loads(json.dumps(result.as_dict()))
    assert again["measured"][0]["allocated"] == 12 * GB
    assert again["measured"][1]["utilisation"]["step"] > 0
    assert again["machine"]["name"] == "NVIDIA H200"
    assert again["plan"]["output"] == str(tmp_path)


def test_without_a_known_peak_there_is_a_line_in_place_of_utilisation() -> None:
    machine = Machine("NVIDIA of tomorrow", 10**11, None)
    one = of_steps(a_step(2), machine=machine)
    assert one.utilisation is None
    text = shown(GpuResult((one,), machine, Plan()))
    assert "FLOP utilisation," not in text
    assert "the peak of NVIDIA of tomorrow is not known; give it by --peak-tflops" in text


# -- what is run -------------------------------------------------------------------------------------------------------


def test_every_slot_of_the_update_can_be_filled() -> None:
    config = Plan(prompt_tokens=3000, max_new_tokens=64, backend="continuous").config(Path("m"))
    assert (config.proposals, config.answers - config.proposals * config.play.attempts) == (24, 192)
    assert config.rows == 24 + 192
    assert config.play.tasks == len(config.families)
    tiny = Plan(sizes=("tiny",), cpu=True).config(Path("m"))
    assert tiny.rows == 3 + 6
    assert (config.play.prompt_tokens, config.play.max_new_tokens.solve, config.backend) == (3000, 64, "continuous")


def test_settings_change_the_recipe_but_not_what_is_measured() -> None:
    settings = ("update.micro_batch=4", "play.proposals=2", "model=elsewhere", "steps=99", "save_steps=1")
    config = Plan(steps=3, settings=settings).config(Path("m"))
    assert (config.update.micro_batch, config.play.proposals) == (4, 2)
    assert (config.model, config.steps, config.save_steps) == ("m", 3, 3)


def test_a_token_is_a_byte_and_every_id_of_the_vocabulary_has_one() -> None:
    tokenizer = build_tokenizer(1000)
    assert len(tokenizer) == 1000
    text = "def f(x):\n    return 'é' + x"
    ids = tokenizer(text).input_ids
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert all(isinstance(tokenizer.convert_ids_to_tokens(number), str) for number in range(1000))


# -- memory ------------------------------------------------------------------------------------------------------------


def test_the_memory_of_a_step_is_measured_anew_on_a_gpu_and_not_at_all_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = [(5, 8), (3, 8)]
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peaks[0][0])
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: peaks[0][1])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peaks.pop(0))
    found = [metrics_of_an_update(torch.device(name)) for name in ("cpu", "cuda:0", "cuda:0")]
    assert [metrics.keys() for metrics in found[:1]] == [{"seconds/update"}]
    assert [(m["memory/allocated"], m["memory/reserved"]) for m in found[1:]] == [(5, 8), (3, 8)]


def metrics_of_an_update(device: torch.device) -> dict[str, float]:
    ranks = Ranks(0, 1)
    rollout = Rollout(None, SharedGenerator(None, ranks), ranks, 0, lambda watch, rows: None)  # type: ignore[arg-type]
    rollout.updated(device)
    return rollout.metrics


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sizes": ()}, "at least one of 0.5b, 3b, tiny, got none"),
        ({"steps": 1}, "steps must be at least 2, the first of which is left out, got 1"),
        ({"peak_tflops": -1.0}, "peak_tflops must be above 0, got -1"),
        ({"cpu": True}, "on CPU only the size tiny can be tried, got 0.5b, 3b"),
    ],
)
def test_impossible_plans_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        Plan(**settings)


def test_an_unknown_size_names_the_known_ones() -> None:
    with pytest.raises(UnknownId, match=r"0\.5b"):
        Plan(sizes=("0.5",))


@needs_no_gpu
def test_without_a_gpu_it_says_so_in_one_line_and_how_to_try_it() -> None:
    with pytest.raises(InvalidConfig, match=r"torch sees none here; to try the command on CPU: .* --cpu --sizes tiny"):
        bench.bench_gpu(Plan())


@needs_no_gpu
def test_a_limit_that_leaves_prompts_out_and_a_folder_in_use_are_refused(tmp_path: Path) -> None:
    tiny = Plan(sizes=("tiny",), cpu=True)
    with pytest.raises(InvalidConfig, match=r"the longest prompt of the recipe has 2\d\d\d tokens, .* got 500"):
        bench.bench_gpu(replace(tiny, prompt_tokens=500))
    (tmp_path / "file").touch()
    with pytest.raises(InvalidConfig, match="holds something already"):
        bench.bench_gpu(replace(tiny, output=tmp_path))


def test_a_disk_that_is_too_small_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 8 * 10**9}))
    with pytest.raises(InvalidConfig, match=r"writes up to 9 GB, but the disk of .* has 8 GB free"):
        bench.save_random(SIZES["0.5b"], tmp_path / "model")
    assert not list((tmp_path / "model").iterdir())


# -- the real thing ----------------------------------------------------------------------------------------------------


@needs_no_gpu
@pytest.mark.slow
def test_the_whole_of_it_runs_on_cpu(tmp_path: Path) -> None:
    output, file = tmp_path / "out", tmp_path / "gpu.json"
    told = CliRunner().invoke(
        app, ["bench", "gpu", *TINY, "--peak-tflops", "0.1", "--output", str(output), "--json", str(file)]
    )
    assert told.exit_code == 0, told.output
    assert "tiny, 0.1 M" in told.output
    (found,) = json.loads(file.read_text())["measured"]
    assert (found["rows"], found["allocated"]) == (9, None)  # each prompt was played: 3 proposals, 2 answers a family
    assert 1000 < found["prompt_tokens"] < 2304
    assert 7 < found["new_tokens"] <= 8
    assert all(found["seconds"][phase] > 0 for phase in ("propose", "gate", "solve", "judge", "mismatch", "update"))
    assert 0 < found["utilisation"]["step"] < 1
    first, second = read_metrics(output / "tiny" / "run" / "metrics.jsonl")
    assert found["seconds"]["step"] == second["seconds/step"] != first["seconds/step"]
