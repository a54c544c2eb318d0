from __future__ import annotations

import ast
import hashlib
import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from selfplay_gym.archive import Archive
from selfplay_gym.errors import InvalidConfig
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.frame import answer_of
from selfplay_gym.referee import Referee
from selfplay_gym.registry import make_family
from selfplay_gym.tasks import nano_programs
from selfplay_gym.training import nano
from selfplay_gym.training.decoding import DecodeLoop
from selfplay_gym.training.nano import PretrainConfig, Transcripts, batches, build_model, build_tokenizer, pretrain
from selfplay_gym.training.policy import Policy

FAMILIES = ("deduction", "abduction", "induction")
SMALL = PretrainConfig(examples=300, batch_tokens=1024, hidden=64, layers=2, seed=0)
IGNORED = -100


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def transcripts(count: int, seed: int = 0) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    return list(islice(Transcripts(nano_programs.examples((1, 2), rng, held_out=False), rng), count))


def compact(name: str) -> Any:
    return make_family(name, style="compact", **({"pairs": nano_programs.PAIRS} if name == "induction" else {}))


def make(folder: Path, config: PretrainConfig = SMALL) -> list[tuple[int, float]]:
    reports: list[tuple[int, float]] = []
    pretrain(config, folder, lambda seen, loss, rate: reports.append((seen, loss)))
    return reports


# -- tokenizer ---------------------------------------------------------------------------------------------------------


def test_what_the_policy_reads_and_writes_survives_its_tokenizer() -> None:
    tokenizer = build_tokenizer()
    for prompt, completion in transcripts(300):
        for text in (prompt, completion):
            ids = tokenizer(text).input_ids
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text


def test_every_digit_and_printable_character_is_a_token() -> None:
    tokenizer = build_tokenizer()
    assert [len(tokenizer(digit).input_ids) for digit in "0123456789"] == [1] * 10
    assert len(tokenizer("1234567890").input_ids) == 10
    text = "".join(chr(code) for code in range(32, 127)) + "\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_special_tokens_are_not_written_by_text() -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.decode([tokenizer.eos_token_id, *tokenizer("x").input_ids], skip_special_tokens=True) == "x"


def test_transcripts_fit_the_model() -> None:
    tokenizer = build_tokenizer()
    lengths = [len(tokenizer(prompt + completion).input_ids) for prompt, completion in transcripts(500)]
    assert max(lengths) < nano.MAX_POSITIONS


# -- what it learns from -----------------------------------------------------------------------------------------------


def test_transcripts_are_right_in_the_eyes_of_the_referee(sandbox: SandboxExecutor) -> None:
    rng = random.Random(0)
    families = {name: compact(name) for name in FAMILIES}
    maker = Transcripts(nano_programs.examples((1, 2), rng, held_out=False), rng)
    tasks, answers = [], []
    for n, example in enumerate(islice(nano_programs.examples((1, 2), rng, held_out=False), 60)):
        name = FAMILIES[n % 3]
        prompt, completion = maker.makers[f"solve {name}"](example)
        tasks.append(example.task(name))
        answers.append(completion)
        assert prompt == families[name].solve_prompt(tasks[-1])
    with Archive(":memory:") as archive:
        verdicts = Referee(families, sandbox, archive).judge_answers(tasks, answers)
    assert [verdict.reason for verdict in verdicts if not verdict.passed] == []


def thoughts(family: str, example: nano_programs.Example) -> list[tuple[str, str]]:
    """Return the left and right sides of what is thought before the answer."""
    _, completion = Transcripts(iter([]), random.Random(0)).makers[f"solve {family}"](example)
    lines = completion.partition("</think>")[0].split("\n")
    return [(left, right) for left, _, right in (line.partition(" = ") for line in lines)]


def examples(count: int) -> list[nano_programs.Example]:
    return list(islice(nano_programs.examples((1, 2, 3, 4), random.Random(2), held_out=False), count))


def steps_of(example: nano_programs.Example) -> list[str]:
    return re.findall(r"^    x = (.*)$", example.program.source, re.MULTILINE)


def after(steps: Sequence[str], value: Any) -> list[Any]:
    """Return the value after each step; the programs are our own."""
    return list(accumulate(steps, lambda x, step: eval(step, {"x": x}), initial=value))[1:]


def test_thoughts_of_deduction_are_the_lines_and_the_values_after_them() -> None:
    for example in examples(60):
        steps, found = steps_of(example), thoughts("deduction", example)
        assert [line for line, _ in found] == steps
        assert [ast.literal_eval(value) for _, value in found] == after(steps, example.inputs[0])


def test_thoughts_of_abduction_are_the_lines_upwards_and_the_values_before_them() -> None:
    for example in examples(60):
        steps, found = steps_of(example), thoughts("abduction", example)
        assert [line for line, _ in found] == steps[::-1]
        before = [ast.literal_eval(value) for _, value in found][::-1]
        assert [example.inputs[0], *after(steps, example.inputs[0])][:-1] == before


def test_thoughts_of_induction_are_the_words_and_the_values_after_them_of_two_pairs() -> None:
    for example in examples(60):
        steps, found = steps_of(example), thoughts("induction", example)
        assert ", ".join(word for word, _ in found) == example.task("induction").message
        pairs = zip(*(after(steps, example.inputs[n]) for n in (0, 1)), strict=True)
        assert [ast.literal_eval(values) for _, values in found] == list(pairs)


def test_proposals_are_parsed_by_their_family() -> None:
    rng = random.Random(0)
    maker = Transcripts(nano_programs.examples((1, 2), rng, held_out=False), rng)
    for name in FAMILIES:
        family = compact(name)
        for example in islice(nano_programs.examples((1, 2), rng, held_out=False), 20):
            prompt, completion = maker.makers[f"propose {name}"](example)
            answer = answer_of(completion)
            assert answer is not None
            shown = [example.task("deduction")]
            proposal = family.parse_proposal(answer, shown)
            assert prompt.startswith(f"propose {name}\n")
            assert proposal.program == example.program.source


def test_kinds_come_in_their_proportions() -> None:
    assert math.fsum(Transcripts.WEIGHTS.values()) == pytest.approx(1.0)
    counts = Counter(" ".join(prompt.split("\n")[0].split()) for prompt, _ in transcripts(2000))
    for kind, weight in Transcripts.WEIGHTS.items():
        name = kind.removeprefix("solve ")
        assert counts[name] / 2000 == pytest.approx(weight, abs=0.04)


def test_held_out_programs_are_never_shown() -> None:
    held_out = {
        example.program.source for example in islice(nano_programs.examples((1,), random.Random(1), held_out=True), 200)
    }
    text = "\n".join(prompt + completion for prompt, completion in transcripts(1500))
    assert not [program for program in held_out if program in text]


# -- batches -----------------------------------------------------------------------------------------------------------


def test_only_completions_are_learned_from() -> None:
    tokenizer = build_tokenizer()
    rows = 0
    for ids, labels in batches(SMALL, tokenizer):
        assert ids.shape == labels.shape
        assert ids.shape[1] % 16 == 0
        assert ids.numel() <= SMALL.batch_tokens or len(ids) == 1
        for row, targets in zip(ids.tolist(), labels.tolist(), strict=True):
            rows += 1
            learned = [place for place, target in enumerate(targets) if target != IGNORED]
            assert learned == list(range(learned[0], learned[-1] + 1))
            assert [row[place] for place in learned] == [targets[place] for place in learned]
            assert row[learned[-1]] == tokenizer.eos_token_id
            assert set(row[learned[-1] + 1 :]) <= {tokenizer.pad_token_id}
            assert tokenizer.decode(row[: learned[0]]).endswith("<think>")
            assert answer_of(tokenizer.decode(row[learned[0] : learned[-1]])) is not None
    assert rows == SMALL.examples


def test_batches_follow_from_the_seed() -> None:
    tokenizer = build_tokenizer()
    first, again, other = (
        [ids.tolist() for ids, _ in batches(PretrainConfig(examples=50, seed=seed), tokenizer)] for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


# -- pretraining -------------------------------------------------------------------------------------------------------


def test_the_policy_follows_from_the_seed(tmp_path: Path) -> None:
    reports = [make(tmp_path / name) for name in ("first", "again")]
    assert reports[0] == reports[1]
    facts = [json.loads((tmp_path / name / "pretrain.json").read_text()) for name in ("first", "again")]
    assert facts[0]["sha256"] == facts[1]["sha256"]
    make(tmp_path / "other", PretrainConfig(examples=300, batch_tokens=1024, hidden=64, layers=2, seed=1))
    assert json.loads((tmp_path / "other" / "pretrain.json").read_text())["sha256"] != facts[0]["sha256"]


def test_a_device_is_found_by_itself_and_written_down(tmp_path: Path) -> None:
    few = replace(SMALL, examples=60)
    reports = [make(tmp_path / name, replace(few, device=name)) for name in ("auto", "cpu")]
    facts = [json.loads((tmp_path / name / "pretrain.json").read_text()) for name in ("auto", "cpu")]
    assert facts[1]["device"] == "cpu"
    assert facts[1]["command"].endswith("--device cpu")
    if torch.cuda.is_available():
        assert facts[0]["device"] == "cuda:0"
        assert reports[0][-1][1] == pytest.approx(reports[1][-1][1], rel=0.05)
    else:
        assert reports[0] == reports[1]
        assert (facts[0]["sha256"], facts[0]["command"]) == (facts[1]["sha256"], facts[1]["command"])


def test_an_impossible_device_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="device must be 'auto' or a torch device such as 'cpu'"):
        make(tmp_path / "policy", replace(SMALL, device="gpu"))
    assert not list(tmp_path.iterdir())


def test_a_base_one_size_up_has_ten_to_thirty_million_parameters() -> None:
    assert 10e6 < build_model(build_tokenizer(), hidden=384, layers=8).num_parameters() < 30e6


def test_it_learns_counts_its_examples_and_says_what_made_it(tmp_path: Path) -> None:
    reports = make(tmp_path)
    seen = [count for count, _ in reports]
    assert seen == sorted(seen)
    assert seen[-1] == SMALL.examples
    assert sum(loss for _, loss in reports[-5:]) < 0.8 * sum(loss for _, loss in reports[:5])
    facts = json.loads((tmp_path / "pretrain.json").read_text())
    assert {name: facts[name] for name in ("examples", "batch_tokens", "hidden", "layers", "seed")} == {
        "examples": 300, "batch_tokens": 1024, "hidden": 64, "layers": 2, "seed": 0,
    }  # fmt: skip
    assert facts["sha256"] == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "model.safetensors").values())


def test_the_checkpoint_is_an_ordinary_one(tmp_path: Path) -> None:
    make(tmp_path)
    policy = Policy.load(tmp_path, dtype="float32", device="cpu")
    assert isinstance(policy.backend, DecodeLoop)
    assert policy.tokenizer.get_vocab() == build_tokenizer().get_vocab()
    (completion,) = policy.sample(["deduction\n"], chat=False, max_new_tokens=8, temperature=1.0, seed=0)
    assert 1 <= len(completion.sample.ids) <= 8
    assert json.loads((tmp_path / "pretrain.json").read_text())["parameters"] == policy.model.num_parameters()


def test_the_default_model_is_as_small_as_it_says() -> None:
    tokenizer = build_tokenizer()
    assert build_model(tokenizer).num_parameters() < 1_000_000
    assert len(tokenizer) < 256


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"examples": 0}, "examples must be at least 1, got 0"),
        ({"threads": -1}, "threads must be at least 1, got -1"),
        ({"hidden": 96}, "hidden must be a multiple of 64, got 96"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        PretrainConfig(**settings)  # type: ignore[arg-type]
