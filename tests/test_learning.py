"""The learning benchmark: its figures on hand-made results, equal tokens, and a small real one killed and resumed."""

from __future__ import annotations

import io
import json
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from selfplay_gym.bench import Target
from selfplay_gym.errors import InvalidConfig, InvalidData, RunFolderError, SelfPlayError, UnknownId
from selfplay_gym.training.jobs import Job, Jobs, running_jobs
from selfplay_gym.training.learning import ARMS, LearningBench, Plan, bench_learning, equal_steps
from selfplay_gym.training.learning_result import LearningResult
from selfplay_gym.training.learning_scores import Run, curve, read_run, read_scores, score
from tests.runs import alive, descendants, finished, started, steps_done, tiny_policy, wait_for, write_recipe

HARDER = ("nano-harder", "avg@2")


def write_eval(path: Path, rows: Mapping[str, Sequence[float | None]], suite: str = "nano-harder") -> Path:
    """Write what ``eval --json`` does, as far as it is read; with one sample a problem it keeps no list of scores."""
    written = []
    for problem, scores in rows.items():
        known = [x for x in scores if x is not None]
        row: dict[str, Any] = {"id": problem, "score": sum(known) / len(known) if known else None, "reason": ""}
        written.append(row | ({"scores": scores} if len(scores) > 1 else {}))
    path.write_text(json.dumps({"suites": [{"suite": suite, "rows": written}]}))
    return path


def write_run(folder: Path, tokens: Sequence[float], before: float = 0.25, after: float = 0.75) -> Path:
    """Write a finished run that measured a hold-out after its second step."""
    folder.mkdir(parents=True)
    lines = [
        {"step": n, "tokens/sampled": count, "solve/deduction/reward": n / 10} for n, count in enumerate(tokens, 1)
    ]
    lines[1] |= {"holdout/nano-harder": 0.5, "solve/abduction/reward": 0.6}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    row = {"suite": "nano-harder", "before": before, "after": after}
    rows = [
        {**row, "family": "deduction", "before": 0},
        {**row, "family": "all"},
        {**row, "suite": "all", "family": "all"},
    ]
    (folder / "result.json").write_text(json.dumps({"holdout": rows, "seconds": 120.0, "versions": {"torch": "2"}}))
    return folder


def run_of(tokens: Sequence[float], *values: tuple[float, float]) -> Run:
    points = tuple({"tokens": at, "tasks/new": value} for at, value in values)
    return Run(tuple(tokens), 60.0, points, {"torch": "2"})


def result_of(scores: Mapping[str, Sequence[Mapping[str, float]]], tokens: Mapping[str, float]) -> LearningResult:
    """Return a result of scores on harder programs, and of runs of two steps."""
    runs = {arm: [run_of([count / 2, count / 2], (0, 1), (count, 3))] for arm, count in tokens.items()}
    by_suite = {arm: [{HARDER: dict(seed)} for seed in seeds] for arm, seeds in scores.items()}
    overrides = {arm: (ARMS[arm], ("play.x=1",)) for arm in tokens}
    return LearningResult.of(runs, by_suite, recipe="nano", overrides=overrides, settings=(), samples=2)


# -- reading -----------------------------------------------------------------------------------------------------------


def test_scores_are_read_by_problem_and_those_without_a_verdict_are_left_out(tmp_path: Path) -> None:
    file = write_eval(tmp_path / "e.json", {"a": [1.0, 0.0], "b": [0.0, 0.0], "c": [None, 1.0], "d": [None, None]})
    assert read_scores(file, sampled=True) == {
        HARDER: {"a": 0.5, "b": 0.0, "c": 1.0},
        ("nano-harder", "pass@2"): {"a": 1.0, "b": 0.0, "c": 1.0},
    }
    greedy = write_eval(tmp_path / "g.json", {"a": [1.0], "b": [None]})
    assert read_scores(greedy, sampled=False) == {("nano-harder", "greedy"): {"a": 1.0}}


def test_a_run_is_read_with_its_tokens_and_its_measurements_on_the_way(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", [1e6, 2e6, 3e6]))
    assert (run.sampled, run.tokens, run.seconds) == ((1e6, 2e6, 3e6), 6e6, 120.0)
    assert curve([run], "holdout/nano-harder") == [(0.0, 0.25), (3.0, 0.5), (6.0, 0.75)]
    assert curve([run], "solve") == [(1.0, 0.1), (3.0, pytest.approx(0.4)), (6.0, 0.3)]


def test_a_curve_is_the_mean_over_runs_in_tokens_and_values() -> None:
    runs = [run_of([], (1.0, 10.0), (2.0, 30.0)), run_of([], (1.5, 20.0), (3.0, 50.0))]
    assert curve(runs, "tasks/new") == [(1.25, 15.0), (2.5, 40.0)]


@pytest.mark.parametrize("text", ["{", "[]", '{"suites": [{"suite": "nano"}]}', '{"suites": [{"rows": [3]}]}'])
def test_what_is_no_evaluation_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "e.json"
    path.write_text(text)
    with pytest.raises(InvalidData, match=r"e\.json was not written by eval --json"):
        read_scores(path, sampled=True)


@pytest.mark.parametrize("file", ["metrics.jsonl", "result.json"])
def test_what_is_no_finished_run_is_named(tmp_path: Path, file: str) -> None:
    run = write_run(tmp_path / "run", [1.0, 2.0])
    (run / file).unlink()
    with pytest.raises(InvalidData, match=r"run.* no .*run"):
        read_run(run)


# -- statistics --------------------------------------------------------------------------------------------------------


def test_scores_are_averaged_over_seeds_and_compared_problem_by_problem() -> None:
    start = {"a": 0.5, "b": 0.0, "only here": 1.0}
    own = [{"a": 1.0, "b": 0.5}, {"a": 0.5, "b": 0.5}]
    frozen = [{"a": 0.25, "b": 0.5}, {"b": 1.0}]  # no verdict of a in the second
    first, second, third = score(*HARDER, {"start": [start], "self-play": own, "frozen-proposer": frozen})
    assert (first.n, first.value, first.seeds, first.spread) == (3, 0.5, (0.5,), None)
    assert first.over_start is first.below_self_play is None
    # a: 0.75, b: 0.5
    assert (second.n, second.value, second.seeds) == (2, 0.625, (0.75, 0.5))
    assert second.spread == pytest.approx(0.25 / 2**0.5)
    assert second.over_start is not None
    assert second.over_start.difference == pytest.approx((0.25 + 0.5) / 2)
    assert (second.over_start.low, second.over_start.high) == (0.25, 0.5)
    assert second.below_self_play is None
    # a: 0.25 of one seed, b: 0.75 of two
    assert third.value == 0.5
    assert third.below_self_play is not None
    assert third.below_self_play.difference == pytest.approx((0.5 - 0.25) / 2)


def test_scores_of_different_problems_are_not_compared() -> None:
    with pytest.raises(InvalidData, match="no problem with a verdict in common"):
        score(*HARDER, {"start": [{"a": 1.0}], "self-play": [{"b": 1.0}]})


# -- what it says ------------------------------------------------------------------------------------------------------


def shown(result: LearningResult, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(result.table())
    return console.file.getvalue()  # type: ignore[attr-defined]


def constant(value: float) -> list[dict[str, float]]:
    return [{f"problem {n}": value for n in range(20)}]


@pytest.mark.parametrize(
    ("own", "frozen", "said", "met"),
    [
        (0.5, 0.25, ["shown, +25.0", "shown, +25.0"], [True, True]),
        (0.3, 0.3, ["shown, +5.0", "NOT shown, +0.0"], [False, False]),
        (0.25, 0.5, ["NOT shown, +0.0", "the CONTRARY is shown, -25.0"], [False, False]),
    ],
)
def test_the_verdicts_say_what_is_shown_and_what_is_not(
    own: float, frozen: float, said: list[str], met: list[bool]
) -> None:
    scores = {"start": constant(0.25), "self-play": constant(own), "frozen-proposer": constant(frozen)}
    result = result_of(scores, {"self-play": 100, "frozen-proposer": 104})
    verdicts = result.verdicts()
    assert len(verdicts) == 2  # tokens are equal within 5%
    for verdict, words in zip(verdicts, said, strict=True):
        assert f"on harder programs: {words} points (95% interval" in verdict
    assert [target.met for target in result.targets] == met


def test_tokens_that_differ_by_more_than_a_twentieth_are_said() -> None:
    scores = {arm: constant(0.5) for arm in ("start", "self-play", "lax-gate", "flat-reward")}
    result = result_of(scores, {"self-play": 1000, "lax-gate": 1060, "flat-reward": 960})
    assert result.unequal() == ["Not at equal tokens: lax-gate sampled +6% of what self-play did."]
    assert result.verdicts()[-1] == result.unequal()[0]
    assert shown(result, 400).count("Not at equal tokens") == 1
    assert "recipe nano, 1 seed\n" in re.sub(" +\n", "\n", shown(result, 400))
    assert [target.met for target in result.targets] == [False, None]


@pytest.mark.parametrize("most", [1.0, 0.4])
def test_80_columns_hold_every_figure_whole(most: float) -> None:
    scores = {arm: [{f"problem {n}": n % (3 + k) / (2 + k) * most for n in range(20)}] for k, arm in enumerate(ARMS)}
    result = result_of({"start": constant(0.0), **scores}, dict.fromkeys(ARMS, 1e6))
    table = shown(result, 80)
    assert "…" not in table
    words = {word for row in result.score_tables()[0].columns for cell in row.cells for word in str(cell).split()}
    assert words <= set(table.split())


def test_a_limit_that_is_not_enough_is_missed() -> None:
    assert str(Target("lead", 0.0, 0, " points", at_least=True, strictly=True)) == "> 0 points missed"
    assert str(Target("lead", 0.1, 0, " points", at_least=True, strictly=True)) == "> 0 points met"


def test_the_result_is_written_as_json_and_as_one_page_with_curves(tmp_path: Path) -> None:
    scores = {"start": constant(0.25), "self-play": constant(0.5), "lax-gate": constant(0.5)}
    result = result_of(scores, {"self-play": 100, "lax-gate": 100})
    result.write(tmp_path)
    page = (tmp_path / "learning.html").read_text()
    for part in (*result.verdicts(), "nano-harder, avg@2, 20 problems", "play.x=1", "New tasks a step", "met"):
        assert part in page
    assert page.count("<polyline") == 2  # the one curve there is, of two arms
    assert "default-src 'none'" in page
    assert "<script" not in page
    content = json.loads((tmp_path / "learning.json").read_text())
    assert content["budget"] == 100
    assert [row["arm"] for row in content["scores"]] == ["start", "self-play", "lax-gate"]
    assert content["arms"][1]["curves"]["New tasks a step"] == [[0, 1.0], [100, 3.0]]


# -- equal tokens ------------------------------------------------------------------------------------------------------


def test_an_arm_gets_the_steps_that_self_plays_tokens_buy() -> None:
    ramp = [100, 200, 300, 400, 400, 400, 500, 500]
    assert equal_steps(8, ramp, ramp[:6]) == 8
    assert equal_steps(8, ramp, [200, 400, 600, 800]) == 4
    # Probes that are not reused: twice as many tokens at first, a third more once replays fill the batch.
    assert equal_steps(400, ramp, [200, 400, 600, 500, 500, 600]) == 300
    assert equal_steps(1, [1], [1000]) == 1


def test_steps_stay_once_they_are_settled(tmp_path: Path) -> None:
    bench = LearningBench(Plan(tmp_path, steps=8, arms=("self-play", "lax-gate")))
    write_run(bench.folder("self-play", 0), [10.0] * 8)
    write_run(bench.pilot_folder("lax-gate"), [20.0] * 8)
    assert bench.settle_steps() == {"self-play": 8, "lax-gate": 4}
    later = LearningBench(Plan(tmp_path, steps=8, arms=("self-play", "lax-gate", "flat-reward")))
    write_run(bench.pilot_folder("flat-reward"), [5.0] * 8)
    (bench.pilot_folder("lax-gate") / "metrics.jsonl").unlink()
    assert later.settle_steps() == {"self-play": 8, "lax-gate": 4, "flat-reward": 16}


# -- the arms ----------------------------------------------------------------------------------------------------------


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(settings, dict):
        return {prefix: settings}
    return {k: v for name, part in settings.items() for k, v in flat(part, f"{prefix}.{name}".strip(".")).items()}


@pytest.mark.parametrize(
    ("arm", "changed"),
    [
        ("frozen-proposer", {"play.frozen_proposer": True}),
        ("flat-reward", {"reward.learnability": "flat"}),
        ("probes-not-reused", {"play.reuse_probes": False, "play.answers": 8, "play.lag": 0}),
        (
            "lax-gate",
            {
                "gate.disabled": ["distinct_inputs", "message", "depends_on_input", "new", "deterministic"],
                "gate.single_def": True,
            },
        ),
    ],
)
def test_an_arm_differs_from_self_play_in_its_part_alone(arm: str, changed: dict[str, Any]) -> None:
    bench = LearningBench(Plan())
    base, own = (flat(bench.config(name).model_dump(mode="json")) for name in ("self-play", arm))
    assert {key: value for key, value in own.items() if value != base[key]} == changed
    rows = bench.config(arm).rows
    assert rows == bench.config("self-play").rows - 24 * (arm == "frozen-proposer")


def sets(job: Job) -> list[str]:
    return [word for before, word in zip(job.arguments, job.arguments[1:], strict=False) if before == "--set"]


def test_runs_have_paired_seeds_one_process_and_about_ten_measurements(tmp_path: Path) -> None:
    plan = Plan(tmp_path, settings=("seed=7", "holdout.problems=5"), seeds=2)
    first, second = LearningBench(plan).training("frozen-proposer", 243)
    assert first.arguments[:2] == ("train", "nano")
    for job, seed in ((first, 7), (second, 8)):
        asked = sets(job)
        assert {f"seed={seed}", "steps=243", "processes=1", "holdout.every=24", "play.frozen_proposer=true"} < {*asked}
        assert asked.index("holdout.problems=50") < asked.index("holdout.problems=5") < asked.index("processes=1")
    assert set(sets(second)) - set(sets(first)) == {"seed=8"}


def test_a_run_that_was_begun_goes_on(tmp_path: Path) -> None:
    bench = LearningBench(Plan(tmp_path, seeds=1))
    folder = bench.folder("self-play", 0)
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    assert bench.training("self-play", 9)[0].arguments == ("train", "--resume", "--output", str(folder))


def test_list_functions_are_scored_where_they_are_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SELFPLAY_GYM_DATA", raising=False)
    assert len(LearningBench(Plan(tmp_path)).scoring("start")) == 2
    with pytest.raises(InvalidData, match="holds none of list_functions"):
        LearningBench(Plan(tmp_path, data_dir=tmp_path))
    data = Path(__file__).parent / "fixtures" / "suites"
    jobs = LearningBench(Plan(tmp_path, data_dir=data)).scoring("start")
    assert [job.arguments[job.arguments.index("--suite") + 1] for job in jobs] == [
        *["nano-easy,nano-harder"] * 2, *["list_functions"] * 2,
    ]  # fmt: skip


# -- refused -----------------------------------------------------------------------------------------------------------


def test_impossible_plans_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownId, match="did you mean 'frozen-proposer'"):
        Plan(arms=("self-play", "frozen-propser"))
    with pytest.raises(InvalidConfig, match="must include self-play"):
        Plan(arms=("flat-reward",))
    with pytest.raises(InvalidConfig, match="seeds must be at least 1, got 0"):
        Plan(seeds=0)
    with pytest.raises(InvalidConfig, match="arm flat-reward is what nano does anyway"):
        LearningBench(Plan(settings=("reward.learnability=flat",)))
    with pytest.raises(InvalidConfig, match="did you mean 'steps'"):
        LearningBench(Plan(settings=("stepz=3",)))


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RunFolderError, match="holds other files: choose a new or empty folder"):
        bench_learning(Plan(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_benchmark_of_other_runs_is_not_gone_on_with(tmp_path: Path) -> None:
    LearningBench(Plan(tmp_path, steps=5)).claim()
    LearningBench(Plan(tmp_path, steps=5, seeds=9, arms=("self-play", "lax-gate"))).claim()  # more may come
    for other, said in (
        (Plan(tmp_path, steps=6), "steps is 5 there, not 6"),
        (Plan(tmp_path, steps=5, limit=3), "limit"),
    ):
        with pytest.raises(RunFolderError, match=f"holds a benchmark of other runs: {said}"):
            LearningBench(other).claim()


# -- processes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    return lambda *arguments: Job("a job", arguments, tmp_path / "result", tmp_path / "log.txt")


def test_what_is_finished_is_not_run_again(job: Callable[..., Job]) -> None:
    asked = job("train", "no such recipe")
    asked.result.touch()
    Jobs(None, None, 1).run([asked])
    assert not asked.log.exists()


def test_a_job_that_fails_is_one_line_with_its_last_words_and_its_log(job: Callable[..., Job]) -> None:
    with pytest.raises(
        SelfPlayError, match=r"a job ended with exit code 1: no recipe 'nanno'.* \(see .*log\.txt\)"
    ) as said:
        Jobs(None, None, 1).run([job("train", "nanno")])
    assert "\n" not in str(said.value)


def test_without_a_terminal_a_line_says_what_has_started(job: Callable[..., Job]) -> None:
    console = Console(file=io.StringIO(), width=80)
    with pytest.raises(SelfPlayError), running_jobs(console, 1) as jobs:
        jobs.run([job("doctor", "--no-such")])
    assert console.file.getvalue() == "a job: started\n"  # type: ignore[attr-defined]


def test_a_job_has_one_core_and_must_leave_its_result(job: Callable[..., Job]) -> None:
    with pytest.raises(SelfPlayError, match=r'a job ended with exit code 0: \{.*"cores": 1,'):
        Jobs(None, None, 1).run([job("doctor", "--json")])


@pytest.mark.slow
def test_a_benchmark_is_interrupted_killed_resumed_and_finished_runs_are_kept(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SELFPLAY_GYM_DATA", raising=False)  # its suite would be scored, too
    model = tiny_policy(tmp_path_factory.getbasetemp())
    recipe = write_recipe(tmp_path / "tiny.yaml", model, holdout={"problems": 2, "samples": 2})
    output = tmp_path / "bench"
    command = [
        "bench", "learning", "--output", output, "--recipe", recipe, "--seeds", "1", "--limit", "4",
        "--arms", "frozen-proposer,self-play", "--json", tmp_path / "result.json",
    ]  # fmt: skip
    own, frozen = (output / "runs" / f"{arm}-0" for arm in ("self-play", "frozen-proposer"))

    with started(*command) as process:
        wait_for(lambda: steps_done(own) >= 2, process)
        children = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        ended = finished(process)
    assert ended.code == 130
    assert "the same command goes on" in ended.err
    assert alive(children) == set()
    assert 2 <= steps_done(own) < 8
    assert (own / "checkpoints").is_dir()

    with started(*command) as process:
        wait_for(lambda: steps_done(frozen) >= 1, process)
        children = descendants(process.pid)
        process.kill()
        process.wait()
        wait_for(lambda: not alive(children))
    assert (own / "result.json").exists()
    before = {path: path.stat().st_mtime_ns for path in output.rglob("result.json")}

    with started(*command) as process:
        ended = finished(process)
    assert (ended.code, "self-play-0: " in ended.err) == (0, False), ended.err
    assert "Self-play is above frozen-proposer on harder programs" in " ".join(ended.out.split())
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == json.loads((output / "learning.json").read_text())
    assert [arm["name"] for arm in result["arms"]] == ["self-play", "frozen-proposer"]
    assert result["arms"][0]["steps"] == 8
    assert {(row["suite"], row["measure"]) for row in result["scores"]} == {
        (suite, measure) for suite in ("nano-easy", "nano-harder") for measure in ("avg@8", "pass@8", "greedy")
    }
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())
    assert (output / "learning.html").exists()

    began = time.monotonic()
    with started(*command) as process:
        assert finished(process).code == 0
    assert time.monotonic() - began < 30  # nothing was run
