"""Weights sharded over processes, and the shipped configurations of accelerate that make them so on GPUs."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from selfplay_gym.training.backends import TransformersBackend
from selfplay_gym.training.config import accelerate_configs
from selfplay_gym.training.folder import RunFolder
from selfplay_gym.training.generation import Request
from tests.models import byte_tokenizer, tiny_model
from tests.runs import STEPS, Ended, assert_same_run, finished, started, tiny_policy, write_recipe
from tests.runs import train as train_here
from tests.test_readme import code_blocks

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = (sys.executable, "-m", "accelerate.commands.launch")


def launch_lines() -> list[str]:
    """Return the launch lines that the docs show."""
    text = (ROOT / "docs" / "gpus.md").read_text(encoding="utf-8")
    lines = "\n".join(code_blocks(text, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("accelerate launch")]


def launched_with(line: str, *changes: str) -> list[str]:
    """Return the words after ``accelerate launch``, whatever folder we are in."""
    words = shlex.split(line)[2:]
    place = words.index("--config_file") + 1
    words[place] = str(accelerate_configs()[Path(words[place]).stem])
    start = words.index("-m")
    return [*words[:start], *changes, *words[start:]]


@pytest.mark.parametrize(("name", "kind"), [("fsdp2", "FSDP"), ("zero3", "DEEPSPEED")])
def test_accelerate_reads_the_configurations(name: str, kind: str) -> None:
    found = load_config_from_file(str(accelerate_configs()[name]))
    assert found.distributed_type == kind
    assert found.mixed_precision == "no"  # what accelerate says here would override the recipe
    assert not found.use_cpu


def test_accelerate_refuses_a_configuration_that_it_does_not_know(tmp_path: Path) -> None:
    text = accelerate_configs()["fsdp2"].read_text(encoding="utf-8")
    (tmp_path / "wrong.yaml").write_text(text + "fsdp_versoin: 2\n")
    with pytest.raises(ValueError, match="fsdp_versoin"):
        load_config_from_file(str(tmp_path / "wrong.yaml"))


def test_the_docs_have_a_launch_line_for_each_configuration() -> None:
    assert len(launch_lines()) == len(accelerate_configs())
    for line, (name, path) in zip(launch_lines(), accelerate_configs().items(), strict=True):
        assert (ROOT / shlex.split(line)[3]).samefile(path)
        arguments = launch_command_parser().parse_args(launched_with(line))
        assert arguments.config_file == str(path)
        validated, _, _ = _validate_launch_command(arguments)
        assert validated.use_fsdp == (name == "fsdp2")
        assert validated.use_deepspeed == (name == "zero3")
        assert (validated.module, validated.training_script) == (True, "selfplay_gym.cli")
        assert validated.training_script_args[0] == "train"
        assert "--output" in validated.training_script_args


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = tiny_policy(tmp_path_factory.getbasetemp())
    return write_recipe(tmp_path_factory.mktemp("recipe") / "recipe.yaml", tiny, processes=2, steps=2)


def launch(line: str, recipe: Path, output: Path) -> Ended:
    """Run a launch line of the docs in two processes, on our recipe."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    words = launched_with(line, "--num_processes", "2", "--main_process_port", str(port))
    command = words[: words.index("train")]
    with started("train", recipe, "--output", output, command=(*LAUNCH, *command)) as process:
        return finished(process)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="two processes on CPU: gloo, weights replicated")
def test_the_launch_line_starts_the_run_that_we_would_start(recipe: Path, tmp_path: Path) -> None:
    (line,) = (line for line in launch_lines() if "fsdp2" in line)
    ended = launch(line, recipe, tmp_path / "launched")
    assert ended.code == 0, ended
    assert train_here(recipe, "--output", tmp_path / "ours").code == 0
    assert RunFolder(tmp_path / "launched").stored_config().processes == 2
    assert STEPS > 2
    assert_same_run(tmp_path / "launched", tmp_path / "ours")


SHARDED = """
import sys
from datetime import timedelta
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from selfplay_gym.errors import SelfPlayError
from selfplay_gym.training.distributed import Ranks, SharedGenerator
from selfplay_gym.training.backends import ContinuousBackend, TransformersBackend
from tests.models import byte_tokenizer, tiny_model
from tests.test_sharded import requests

ranks = Ranks.from_environment()
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
model = tiny_model("qwen2")
for layer in model.model.layers:
    fully_shard(layer)
fully_shard(model)
backend = TransformersBackend(model, byte_tokenizer(), batch_size=1)
assert backend.collective
try:
    ContinuousBackend(model, byte_tokenizer()).generate(requests(1))
except SelfPlayError as error:
    assert "needs whole weights" in str(error)
else:
    raise AssertionError("continuous batching took sharded weights")
generator = SharedGenerator(backend, ranks)
if ranks.is_main:
    with generator.leading():
        for count in (1, 3, 0, 4):
            print([sample.ids for sample in generator.generate(requests(count))])
else:
    generator.follow()
ranks.wait()
"""


def requests(count: int) -> list[Request]:
    """Prompts of several lengths; each rank has a different share of them and stops elsewhere."""
    return [Request(tuple(range(5 + seed, 9 + 2 * seed)), 3 + 4 * seed, 1.0, seed) for seed in range(count)]


@pytest.mark.slow
def test_sharded_weights_generate_what_whole_ones_do() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", SHARDED], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        (found, errors), _ = [worker.communicate(timeout=120) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    whole = TransformersBackend(tiny_model("qwen2"), byte_tokenizer())
    assert not whole.collective
    expected = [[sample.ids for sample in whole.generate(requests(count))] for count in (1, 3, 0, 4)]
    assert found.splitlines() == [str(ids) for ids in expected], errors
