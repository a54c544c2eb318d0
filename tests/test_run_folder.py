from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from selfplay_gym.archive import Archive
from selfplay_gym.errors import RunFolderError, SelfPlayError
from selfplay_gym.training.config import RunConfig, parse
from selfplay_gym.training.folder import (
    COMPLETE,
    RunFolder,
    RunLock,
    contents,
    latest_output,
    next_output,
)
from selfplay_gym.types import Task


def config(**settings: Any) -> RunConfig:
    return RunConfig.model_validate({"families": {"deduction": {"references": 1}}, **settings})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run at step 5, killed while it wrote the checkpoint of step 6."""
    run = RunFolder(tmp_path / "run")
    run.prepare(config(steps=9))
    for step in (2, 4, 6):
        run.checkpoint(step).mkdir()
        (run.checkpoint(step) / "model.safetensors").write_text("weights")
        if step < 6:
            (run.checkpoint(step) / COMPLETE).write_text("{}")
    with Archive(run.archive) as archive:
        for step in range(1, 7):
            archive.record_rejection(step, "deduction", "syntax", "", f"{step}")
    for step in range(1, 7):
        run.append_metrics({"step": step, "loss": step / 10})
        run.write_completions(step, [{"text": "\u2028 \ud800"}])
    return run


def steps_of(run: RunFolder) -> list[int]:
    return [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()]


# -- beginning ---------------------------------------------------------------------------------------------------------


def test_the_settings_are_kept_whole(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a" / "b")
    run.prepare(config(seed=7))
    assert run.stored_config() == config(seed=7)
    assert run.checkpoints.is_dir()


@pytest.mark.parametrize("name", ["config.yaml", "notes.txt"])
def test_a_folder_with_anything_in_it_is_not_begun_in(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunFolderError, match="already holds a run or other files: continue that run with --resume"):
        RunFolder(tmp_path).prepare(config())
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_that_is_merely_locked_is_begun_in(tmp_path: Path) -> None:
    with RunLock(tmp_path / "run"):
        RunFolder(tmp_path / "run").prepare(config())


# -- going back --------------------------------------------------------------------------------------------------------


def test_resuming_goes_back_to_the_last_complete_checkpoint(folder: RunFolder) -> None:
    assert folder.resume(config(steps=9)) == 4
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    assert steps_of(folder) == [1, 2, 3, 4]
    assert [path.stem for path in sorted((folder.path / "completions").iterdir())] == [
        f"step-{step:06d}" for step in range(1, 5)
    ]


def test_resuming_twice_is_resuming_once(folder: RunFolder) -> None:
    assert folder.resume(config(steps=9)) == folder.resume(config(steps=9)) == 4
    assert steps_of(folder) == [1, 2, 3, 4]


@pytest.mark.parametrize("complete", [[], [2], [2, 4, 6]])
def test_every_part_of_the_history_may_be_complete(complete: list[int], folder: RunFolder) -> None:
    for step in (2, 4, 6):
        mark = folder.checkpoint(step) / COMPLETE
        mark.write_text("{}") if step in complete else mark.unlink(missing_ok=True)
    step = max(complete, default=0)
    assert folder.resume(config(steps=9)) == step
    assert steps_of(folder) == list(range(1, step + 1))


def test_a_run_that_never_got_to_a_step_is_resumed_from_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.prepare(config())
    shutil.rmtree(run.checkpoints)  # killed just after the settings were written
    assert run.resume(config()) == 0


@pytest.mark.parametrize("cut", ['{"step": 5, "lo', '{"step"', "{}", "[1]", "7", "", '{"step": null}'])
def test_a_metrics_line_cut_off_in_the_middle_is_dropped(cut: str, folder: RunFolder) -> None:
    lines = folder.metrics.read_text().splitlines()[:4]
    folder.metrics.write_text("\n".join(lines) + "\n" + cut)
    folder.resume(config(steps=9))
    folder.append_metrics({"step": 5})
    assert steps_of(folder) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "name", ["checkpoint-", "checkpoint-six", "checkpoint-²", "checkpoint-7.part", "tmp-checkpoint-9"]
)
def test_what_is_not_named_like_a_checkpoint_is_left_alone(name: str, folder: RunFolder) -> None:
    odd = folder.checkpoints / name
    odd.mkdir()
    (odd / COMPLETE).write_text("{}")
    assert folder.resume(config(steps=9)) == 4
    assert odd.exists()


def test_a_file_named_like_a_checkpoint_is_left_alone(folder: RunFolder) -> None:
    (folder.checkpoints / "checkpoint-8").write_text("mine")
    assert folder.resume(config(steps=9)) == 4


def test_a_file_of_the_users_among_the_completions_is_left_alone(folder: RunFolder) -> None:
    mine = folder.path / "completions" / "step-best.jsonl"
    mine.write_text("mine")
    folder.resume(config(steps=9))
    assert mine.exists()


# -- whose run it is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"seed": 1}, "seed"),
        ({"update": {"learning_rate": 0.5}}, "update"),
        ({"families": {"abduction": {}}}, "families"),
    ],
)
def test_other_settings_are_another_run(settings: dict[str, Any], key: str, folder: RunFolder) -> None:
    with pytest.raises(RunFolderError, match=f"holds another run: its {key} is"):
        folder.resume(config(**{"steps": 9, **settings}))
    assert folder.checkpoint(6).exists()
    assert len(steps_of(folder)) == 6
    assert folder.stored_config() == config(steps=9)


def test_how_long_a_run_goes_on_may_change(folder: RunFolder) -> None:
    changed = config(steps=50, save_steps=3, keep_checkpoints=4, report_to=("tensorboard",))
    assert folder.resume(changed) == 4
    assert folder.stored_config() == changed


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"a: [", b"", b"[1, 2]", b"steps: many", b"surprise: 1"])
def test_what_is_no_run_is_not_resumed(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(SelfPlayError, match=r"holds no run to resume|config\.yaml: ") as caught:
        RunFolder(tmp_path).resume(config())
    assert "\n" not in str(caught.value)


def everything(run: RunFolder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(run.path.rglob("*")) if path.is_file()}


def test_a_run_is_not_made_shorter_than_it_is(folder: RunFolder) -> None:
    before = everything(folder)
    with pytest.raises(RunFolderError, match="is at step 4 already: resume it with steps=4 or more"):
        folder.resume(config(steps=3))
    assert everything(folder) == before
    assert folder.resume(config(steps=4)) == 4


def note_archive(run: RunFolder, step: int) -> None:
    """Write down in a checkpoint what the archive held then."""
    copy = run.path.with_name("copy.sqlite")
    shutil.copy(run.archive, copy)
    with Archive(copy) as archive:
        archive.rewind(step)
        (run.checkpoint(step) / COMPLETE).write_text(json.dumps({"step": step, "archive": contents(archive)}))


def test_an_archive_with_later_steps_belongs_to_the_checkpoint(folder: RunFolder) -> None:
    note_archive(folder, 4)
    assert folder.resume(config(steps=9)) == 4
    with Archive.read(folder.archive) as archive:
        assert archive.last_step == 6  # taken back later, by whoever holds it


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (None, "archive.sqlite is missing"),
        ("", "archive.sqlite is empty, but the run is at step 4"),
        ("new", "does not belong to the checkpoint of step 4"),
        ("other", "does not belong to the checkpoint of step 4"),
    ],
)
def test_without_its_archive_a_run_is_not_resumed(archive: str | None, message: str, folder: RunFolder) -> None:
    note_archive(folder, 4)
    folder.archive.unlink()
    if archive == "":
        folder.archive.touch()
    elif archive is not None:
        with Archive(folder.archive) as other:
            if archive == "other":
                other.add_task(Task("deduction", "def f(x):\n    return x", ("1",), ("1",)), 3)
                other.add_task(Task("deduction", "def f(x):\n    return -x", ("1",), ("-1",)), 7)
    before = everything(folder)
    with pytest.raises(RunFolderError, match=message) as caught:
        folder.resume(config(steps=50))
    assert "\n" not in str(caught.value)
    assert everything(folder) == before


# -- one run at a time -------------------------------------------------------------------------------------------------


def test_a_run_in_use_is_not_entered(tmp_path: Path) -> None:
    with (
        RunLock(tmp_path),
        pytest.raises(RunFolderError, match=rf"in use by another run \(process {os.getpid()}\)"),
        RunLock(tmp_path),
    ):
        pass
    with RunLock(tmp_path):
        pass


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib\nfrom selfplay_gym.training.folder import RunLock\n"
        "with RunLock(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match=f"process {holder.pid}"), RunLock(tmp_path):
            pass
        holder.kill()
    with RunLock(tmp_path):
        pass


def test_a_lock_is_let_go_when_the_run_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path):
        raise ZeroDivisionError
    with RunLock(tmp_path):
        pass


# -- finding runs ------------------------------------------------------------------------------------------------------


def test_outputs_are_numbered(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        path = next_output(tmp_path, "nano")
        path.mkdir()
        names.append(path.name)
    assert names == ["nano", "nano-2", "nano-3"]


def test_the_latest_run_is_the_one_written_to_last(tmp_path: Path) -> None:
    for age, name in enumerate(["new", "old", "no-run"]):
        path = tmp_path / name
        path.mkdir()
        if name != "no-run":
            (path / "config.yaml").touch()
        os.utime(path, (1e9 - age, 1e9 - age) if name != "no-run" else (2e9, 2e9))
    assert latest_output(tmp_path).name == "new"


def test_where_there_is_no_run_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"there is no run under .* to resume; name its folder with --output"):
        latest_output(tmp_path / "runs")


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write_json("result.json", "old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        folder.write_json("result.json", "new")
    assert folder.read_json("result.json") == "old"


def test_what_is_not_there_reads_as_nothing(folder: RunFolder) -> None:
    assert folder.read_json("result.json") is None
    folder.write_json("result.json", {"steps": 3})
    assert folder.read_json("result.json") == {"steps": 3}


def test_a_run_whose_rate_falls_to_its_last_step_keeps_its_number_of_steps(tmp_path: Path) -> None:
    config = parse({"steps": 5, "update": {"schedule": "linear"}}, "test")
    folder = RunFolder(tmp_path / "run")
    folder.prepare(config)
    with pytest.raises(RunFolderError, match="with steps=6: its learning rate falls to 0 at step 5"):
        folder.resume(parse({"steps": 6, "update": {"schedule": "linear"}}, "test"))
