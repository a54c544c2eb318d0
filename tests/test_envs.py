"""The environments: Gymnasium's contract, whole episodes in the real sandbox, and the traps of text and vectors."""

from __future__ import annotations

import ast
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import CustomSpaceError, ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.utils.passive_env_checker import data_shares_objects
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

from selfplay_gym import (
    Archive,
    Execution,
    Executor,
    GateConfig,
    InvalidConfig,
    InvalidData,
    Job,
    Limits,
    SelfPlayEnv,
    Status,
    Task,
    Tier,
    UnknownId,
)
from selfplay_gym.envs import CHARSET, TextEnv, environment_id
from selfplay_gym.executors.sandbox import SandboxExecutor
from selfplay_gym.games import LazySandbox
from selfplay_gym.tasks.triplets import IDENTITY
from selfplay_gym.vector import TextVectorEnv

FAMILIES = ("deduction", "abduction", "induction")
SOLVING = [environment_id(family) for family in FAMILIES]
SELF_PLAY = "selfplay_gym/SelfPlay-v0"
IDS = [SELF_PLAY, *SOLVING]

PROGRAM = "def f(a, b):\n    return [a * b, a + b]"
TRIPLET = f"```python\n{PROGRAM}\n```\n```input\n3, 5\n```"
PAIRS = "".join(f"```input\n{n}\n```\n" for n in range(10)) + "```message\nGive back what you get.\n```"
PROPOSALS = {"deduction": TRIPLET, "abduction": TRIPLET, "induction": PAIRS}
RIGHT = {"deduction": "[15, 8]", "abduction": "5, 3", "induction": "```python\ndef f(x):\n    return x\n```"}
WRONG = {"deduction": "[8, 15]", "abduction": "1, 1", "induction": "```python\ndef f(x):\n    return 0\n```"}


QUICK = Limits(cpu_seconds=0.1, wall_seconds=1.0)


def framed(answer: str) -> str:
    return f"a thought</think>\n<answer>{answer}</answer>"


class CountingExecutor:
    """Passes batches on and remembers them."""

    def __init__(self, inner: Executor) -> None:
        self.inner, self.batches, self.closed = inner, list[list[Job]](), False

    @property
    def tier(self) -> Tier:
        return self.inner.tier

    def run(self, jobs: Sequence[Job]) -> list[tuple[Execution, ...]]:
        self.batches.append(list(jobs))
        return self.inner.run(jobs)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def make(sandbox: SandboxExecutor) -> Iterator[Callable[..., gymnasium.Env[str, str]]]:
    """Makes environments over the shared sandbox and closes them."""
    made: list[gymnasium.Env[str, str]] = []

    def build(env_id: str = SELF_PLAY, **settings: Any) -> gymnasium.Env[str, str]:
        made.append(gymnasium.make(env_id, **{"executor": sandbox, **settings}))
        return made[-1]

    yield build
    for env in made:
        env.close()


@pytest.fixture
def make_vec(sandbox: SandboxExecutor) -> Iterator[Callable[..., Any]]:
    """Makes vector environments over the shared sandbox and closes them."""
    made: list[Any] = []

    def build(env_id: str = SELF_PLAY, **settings: Any) -> Any:
        made.append(gymnasium.make_vec(env_id, **{"executor": sandbox, **settings}))
        return made[-1]

    yield build
    for env in made:
        env.close()


# -- Gymnasium's contract ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["azr", "chat", "compact"])
@pytest.mark.parametrize("env_id", IDS)
def test_gymnasium_finds_no_fault(env_id: str, style: str) -> None:
    env = gymnasium.make(env_id, style=style)
    check_env(env.unwrapped)  # its warnings are errors here, those about render_fps included
    env.close()


@pytest.mark.parametrize("env_id", IDS)
def test_a_module_prefix_in_the_id_imports_us(env_id: str) -> None:
    gymnasium.make(f"selfplay_gym:{env_id}").close()


@pytest.mark.parametrize("env_id", IDS)
def test_spaces_are_text_that_holds_every_prompt(env_id: str, make: Callable[..., TextEnv]) -> None:
    env = make(env_id)
    prompt, _ = env.reset(seed=0)
    assert isinstance(env.observation_space, spaces.Text)
    assert prompt in env.observation_space
    assert "" in env.observation_space
    assert framed("1") in env.action_space
    assert prompt not in spaces.Text(10**6)  # the default alphabet has no space and no newline


@pytest.mark.parametrize("env_id", IDS)
def test_a_seed_fixes_prompts_and_rewards_to_the_bit(env_id: str, make: Callable[..., TextEnv]) -> None:
    def played(env: TextEnv) -> list[Any]:
        agent = random.Random(1)
        log: list[Any] = [env.reset(seed=7)]
        for _ in range(12):
            log.append(env.step(scripted(log[-1][-1], agent)))
            if log[-1][2] or log[-1][3]:
                log.append(env.reset())
        return log

    first, second = make(env_id), make(env_id)
    assert played(first) == played(second) == played(first)


def test_other_seeds_give_other_episodes(make: Callable[..., TextEnv]) -> None:
    env = make()
    assert {env.reset(seed=seed)[1]["family"] for seed in range(20)} == set(FAMILIES)


def test_no_global_random_state_is_read_or_moved(make: Callable[..., TextEnv]) -> None:
    env = make()
    random.seed(1)
    np.random.seed(1)
    first, before = env.reset(seed=3), random.getstate()
    random.seed(2)
    np.random.seed(2)
    assert env.reset(seed=3) == first
    random.seed(1)
    env.reset(seed=3)
    assert random.getstate() == before


@pytest.mark.parametrize("env_id", IDS)
def test_what_a_caller_does_to_an_info_stays_with_the_caller(env_id: str, make: Callable[..., TextEnv]) -> None:
    env = make(env_id)
    _, reset_info = env.reset(seed=0)
    kept = dict(reset_info)
    _, _, _, _, info = env.step("x")
    reset_info.clear()
    info["reward_parts"]["solve"] = 99.0
    assert env.reset(seed=0)[1] == kept
    assert env.step("x")[4]["reward_parts"]["solve"] == 0.0


@pytest.mark.parametrize("env_id", IDS)
def test_steps_out_of_order_are_errors(env_id: str, make: Callable[..., TextEnv]) -> None:
    env = make(env_id).unwrapped
    with pytest.raises(ResetNeeded):
        env.step("x")
    env.reset(seed=0)
    env.step("no frame")
    with pytest.raises(ResetNeeded):
        env.step("x")


@pytest.mark.parametrize("action", [3, None, b"x", ["x"], ("x",)])
def test_an_action_that_is_no_text_is_refused(action: Any, make: Callable[..., TextEnv]) -> None:
    env = make("selfplay_gym/Deduction-v0")
    env.reset(seed=0)
    with pytest.raises(TypeError, match=r"an action is the text .* a str"):
        env.step(action)
    assert env.step(np.str_("x"))[1] == 0.0


@pytest.mark.parametrize("answer", ["", "é \u2028 \U0001f600", "\ud800", "'\ud800'", "\x00", "1" * 100_000])
@pytest.mark.parametrize("env_id", IDS)
def test_any_text_is_an_action(env_id: str, answer: str, make: Callable[..., TextEnv]) -> None:
    env = make(env_id)
    for text in (answer, framed(answer), framed(f"```python\n{answer}\n```\n```input\n{answer}\n```")):
        env.reset(seed=0)
        observation, reward, terminated, truncated, info = env.step(text)
        assert (observation, terminated, truncated, info["passed"]) == ("", True, False, False)
        assert reward in (0.0, -1.0)


def test_a_rendered_dialogue_shows_who_said_what(make: Callable[..., TextEnv]) -> None:
    env = make(render_mode="ansi", attempts=1)
    prompt, _ = env.reset(seed=0, options={"family": "deduction"})
    assert prompt in str(env.render())
    question = env.step(framed(TRIPLET))[0]
    env.step(framed(WRONG["deduction"]))
    shown = str(env.render())
    parts = [prompt, framed(TRIPLET), question, framed(WRONG["deduction"]), "another value"]
    assert [shown.index(part) for part in parts] == sorted(shown.index(part) for part in parts)
    assert make().unwrapped.render() is None


# -- characters -------------------------------------------------------------------------------------------------------

FOREIGN = "é\u2028\U0001f600\r\x00\ud800"


def test_foreign_characters_are_shown_as_escapes_that_mean_the_same(make: Callable[..., TextEnv]) -> None:
    task = Task("deduction", f"def f(x):\n    return x + '{FOREIGN}'", (repr("ü"),), (repr("ü" + FOREIGN),))
    env = make("selfplay_gym/Deduction-v0", tasks=[task], style="compact")
    prompt, _ = env.reset(seed=0)
    assert prompt in env.observation_space
    literal = prompt[prompt.index("x + ") + 4 :].splitlines()[0]
    assert literal.isascii()
    assert ast.literal_eval(literal) == FOREIGN


def test_a_larger_alphabet_shows_more(make: Callable[..., TextEnv]) -> None:
    task = Task("deduction", "def f(x):\n    return x", ("'é'",), ("'é'",))
    env = make("selfplay_gym/Deduction-v0", tasks=[task], charset=CHARSET + "é")
    assert "'é'" in env.reset(seed=0)[0]


def test_an_alphabet_must_be_able_to_escape() -> None:
    with pytest.raises(InvalidConfig, match="escapes"):
        gymnasium.make("selfplay_gym/Deduction-v0", charset="abc \n")


def test_a_prompt_without_room_is_an_error_and_never_cut(make: Callable[..., TextEnv]) -> None:
    with pytest.raises(InvalidConfig, match="larger max_length"):
        make("selfplay_gym/Deduction-v0", max_length=100).reset(seed=0)


def test_a_prompt_of_nothing_but_foreign_characters_at_all_caps_still_fits(make: Callable[..., TextEnv]) -> None:
    caps = GateConfig()
    text = "\U0001f600" * caps.program_characters
    task = Task("deduction", "#" + text[1:], (text[: caps.input_characters],), (text[: caps.limits.output_bytes // 4],))
    with Archive(":memory:") as archive:
        for _ in range(6):
            archive.add_task(task, 0)
        env = make(archive=archive, families=["deduction"], record=False)
        prompt, _ = env.reset(seed=0)
    assert len(prompt) > 300_000
    assert prompt in env.observation_space


# -- whole episodes ---------------------------------------------------------------------------------------------------


def scripted(info: dict[str, Any], agent: random.Random) -> str:
    """Play by what the info says: mostly sound proposals, right and wrong answers, now and then nonsense."""
    if agent.random() < 0.2:
        return agent.choice(["nonsense", framed("nonsense"), framed("```python\ndef f(:\n```\n```input\n1\n```")])
    if info["role"] == "propose":
        return framed(PROPOSALS[info["family"]])
    seeds = {"deduction": "'Hello world'", "abduction": "'Hello world'", "induction": RIGHT["induction"]}
    return framed(agent.choice([RIGHT, WRONG, seeds])[info["family"]])


@pytest.mark.parametrize("weight", [1.0, 0.25])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_return_is_the_objective_of_absolute_zero(family: str, weight: float, make: Callable[..., TextEnv]) -> None:
    env = make(attempts=4, weight=weight)
    prompt, info = env.reset(seed=0, options={"family": family})
    assert (info["role"], info["family"]) == ("propose", family)
    question, reward, terminated, truncated, info = env.step(framed(PROPOSALS[family]))
    assert (reward, terminated, truncated, info["check"]) == (0.0, False, False, "")
    assert (info["role"], info["attempt"]) == ("solve", 0)
    assert question not in ("", prompt)
    rewards, parts = [], []
    for number, answer in enumerate([RIGHT, WRONG, WRONG, WRONG], start=1):
        assert not terminated
        observation, reward, terminated, truncated, info = env.step(framed(answer[family]))
        rewards.append(reward)
        parts.append(info["reward_parts"])
        assert info["passed"] == (answer is RIGHT)
        assert info["attempt"] == number
        assert reward == sum(info["reward_parts"].values())
    assert (terminated, truncated, observation) == (True, False, "")
    assert rewards == pytest.approx([weight / 4, 0.0, 0.0, 0.75])  # learnability of 1/4 is 3/4
    assert sum(part["propose"] for part in parts) == 0.75
    assert sum(rewards) == pytest.approx(0.75 + weight * 0.25)
    assert info["solve_rate"] == 0.25


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("answers", "solved"), [(RIGHT, 1.0), (WRONG, 0.0)])
def test_a_trivial_or_impossible_task_earns_its_proposer_nothing(
    family: str, answers: dict[str, str], solved: float, make: Callable[..., TextEnv]
) -> None:
    env = make(attempts=2)
    env.reset(seed=0, options={"family": family})
    env.step(framed(PROPOSALS[family]))
    env.step(framed(answers[family]))
    _, reward, terminated, _, info = env.step(framed(answers[family]))
    assert (terminated, info["reward_parts"]["propose"], reward) == (True, 0.0, solved / 2)


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("no frame", "format"),
        (framed("no blocks"), "parse"),
        (framed("```python\ndef f(:\n```\n```input\n1\n```"), "syntax"),
        (framed("```python\ndef f(x):\n    return 1\n```\n```input\n1\n```"), "depends_on_input"),
        (framed("```python\ndef f(x):\n    while x:\n        pass\n```\n```input\n1\n```"), "runs"),
        (framed("```python\nimport os\ndef f(x):\n    return x\n```\n```input\n1\n```"), "policy"),
    ],
)
def test_a_refused_proposal_ends_the_episode_with_its_penalty(
    text: str, check: str, make: Callable[..., TextEnv]
) -> None:
    env = make(gate=GateConfig(limits=QUICK))
    env.reset(seed=0, options={"family": "deduction"})
    observation, reward, terminated, truncated, info = env.step(text)
    assert (observation, reward, terminated, truncated) == ("", -1.0, True, False)
    assert (info["check"], info["role"], info["no_verdict"]) == (check, "propose", False)
    assert info["reward_parts"] == {"propose": -1.0, "solve": 0.0}


def test_limits_of_an_answer_can_be_set(make: Callable[..., TextEnv]) -> None:
    env = make("selfplay_gym/Induction-v0", limits=QUICK)
    env.reset(seed=0)
    info = env.step(framed("```python\ndef f(x):\n    while True:\n        pass\n```"))[4]
    assert (info["reason"], info["passed"]) == ("timeout", False)


def test_a_switched_off_check_lets_the_proposal_through(make: Callable[..., TextEnv]) -> None:
    env = make(gate=GateConfig(disabled=frozenset({"depends_on_input"})))
    env.reset(seed=0, options={"family": "deduction"})
    assert env.step(framed("```python\ndef f(x):\n    return 1\n```\n```input\n1\n```"))[4]["role"] == "solve"


def test_rewards_go_by_their_names(make: Callable[..., TextEnv]) -> None:
    env = make(attempts=2, learnability="azr-code", solver="azr-code")
    env.reset(seed=0, options={"family": "deduction"})
    env.step(framed(TRIPLET))
    assert env.step("no frame")[1] == -0.5  # half of -1
    assert env.step(framed(WRONG["deduction"]))[1] == pytest.approx(-0.25 - 0.5)  # half of -0.5, and a proposer's -0.5


@pytest.mark.parametrize("env_id", IDS)
def test_an_agent_of_random_text_plays_whole_episodes(env_id: str, make: Callable[..., TextEnv]) -> None:
    env = make(env_id)
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(5):
        _, reward, terminated, _, _ = env.step(env.action_space.sample())
        assert terminated
        assert reward == (-1.0 if env_id == SELF_PLAY else 0.0)
        env.reset()


@pytest.mark.parametrize(
    ("family", "answer", "reward"),
    [
        ("deduction", "'Hello world'", 1.0),
        ("deduction", "'hello world'", 0.0),
        ("abduction", "'Hello world'", 1.0),
        ("abduction", "1", 0.0),
        ("induction", RIGHT["induction"], 1.0),
        ("induction", WRONG["induction"], 0.0),
        ("induction", "```python\ndef f(x):\n    return 1 // 0\n```", 0.0),
    ],
)
def test_one_answer_to_a_seed_task(family: str, answer: str, reward: float, make: Callable[..., TextEnv]) -> None:
    env = make(environment_id(family))
    _, info = env.reset(seed=0)
    assert (info["role"], info["family"]) == ("solve", family)
    observation, got, terminated, truncated, info = env.step(framed(answer))
    assert (observation, got, terminated, truncated, info["passed"]) == ("", reward, True, False, reward == 1.0)
    assert (info["reason"] == "") == (reward == 1.0)


# -- no verdict is not a zero -----------------------------------------------------------------------------------------


def test_a_proposal_without_a_verdict_is_truncated(fake: Callable[..., Executor]) -> None:
    env = gymnasium.make(SELF_PLAY, executor=breaking(fake, "3, 5"))
    env.reset(seed=0, options={"family": "deduction"})
    _, reward, terminated, truncated, info = env.step(framed(TRIPLET))
    assert (reward, terminated, truncated, info["no_verdict"], info["check"]) == (0.0, False, True, True, "")
    env.close()


def breaking(fake: Callable[..., Executor], *broken: str) -> Executor:
    """Doubles its argument, and breaks on some; knows the identity program, from which archives start."""

    def answer(program: str, text: str) -> Execution:
        if text in broken:
            return Execution(Status.NO_VERDICT, message="the machinery broke")
        if program == IDENTITY.program:
            return Execution(Status.OK, text)
        return Execution(Status.OK, f"[{text}, {text}]")

    return fake(answer)


def test_an_attempt_without_a_verdict_is_left_out_of_the_mean(fake: Callable[..., Executor]) -> None:
    env = gymnasium.make(SELF_PLAY, executor=breaking(fake, "13"), attempts=3, weight=0.5, families=["abduction"])
    env.reset(seed=0)
    env.step(framed("```python\ndef f(x):\n    return [x, x]\n```\n```input\n3\n```"))
    first = env.step(framed("3"))
    broken = env.step(framed("13"))
    last = env.step(framed("4"))
    assert (broken[1], broken[2], broken[3], broken[4]["no_verdict"]) == (0.0, False, False, True)
    assert broken[4]["reason"] == "the machinery broke"
    assert (last[2], last[3], last[4]["no_verdict"], last[4]["solve_rate"]) == (True, False, False, 0.5)
    assert float(first[1]) + float(last[1]) == pytest.approx(
        0.5 + 0.5 * 0.5
    )  # learnability of 1/2, and half of the mean 1/2
    env.close()


def test_an_episode_without_any_verdict_is_truncated(fake: Callable[..., Executor]) -> None:
    env = gymnasium.make(SELF_PLAY, executor=breaking(fake, "13"), attempts=2, families=["abduction"])
    env.reset(seed=0)
    env.step(framed("```python\ndef f(x):\n    return [x, x]\n```\n```input\n3\n```"))
    assert env.step(framed("13"))[1:4] == (0.0, False, False)
    _, reward, terminated, truncated, info = env.step(framed("13"))
    assert (reward, terminated, truncated, info["no_verdict"]) == (0.0, False, True, True)
    env.close()


def test_an_answer_without_a_verdict_is_truncated(fake: Callable[..., Executor]) -> None:
    env = gymnasium.make("selfplay_gym/Abduction-v0", executor=breaking(fake, "13"))
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(framed("13"))
    assert (reward, terminated, truncated, info["no_verdict"]) == (0.0, False, True, True)
    env.close()


# -- archives ---------------------------------------------------------------------------------------------------------


def propose(env: TextEnv, family: str = "deduction") -> dict[str, Any]:
    env.reset(seed=0, options={"family": family})
    return env.step(framed(PROPOSALS[family]))[4]


def test_without_an_archive_episodes_stand_alone(make: Callable[..., TextEnv]) -> None:
    env = make()
    assert propose(env) == propose(env)


def test_with_an_archive_the_same_is_new_only_once(make: Callable[..., TextEnv]) -> None:
    env = make(archive=":memory:")
    assert [propose(env)["check"], propose(env)["check"]] == ["", "new"]


def test_a_file_keeps_tasks_refusals_and_solve_counts(make: Callable[..., TextEnv], tmp_path: Path) -> None:
    path = tmp_path / "archive.sqlite"
    env = make(archive=path, attempts=2)
    propose(env)
    env.step(framed(RIGHT["deduction"]))
    env.step(framed(WRONG["deduction"]))
    propose(env)
    env.close()
    with Archive.read(path) as archive:
        stored = next(archive.tasks("deduction", newest=1))
        assert (stored.task.program, stored.attempts, stored.solved) == (PROGRAM, 2, 1)
        assert archive.statistics().rejections == {"new": 1}
        assert archive.lineage(stored.id)
    env = make("selfplay_gym/Deduction-v0", archive=path)
    prompts = {env.reset(seed=seed)[0] for seed in range(20)}
    assert len(prompts) == 2
    assert any(PROGRAM in prompt for prompt in prompts)


def test_a_record_only_read_stays_as_it_was(make: Callable[..., TextEnv], tmp_path: Path) -> None:
    path = tmp_path / "archive.sqlite"
    make(archive=path).close()
    with Archive.read(path) as archive:
        before = archive.fingerprint()
    env = make(archive=path, record=False)
    assert propose(env)["check"] == ""
    env.step("no frame")
    with Archive.read(path) as archive:
        assert archive.fingerprint() == before


def test_solving_only_reads_and_needs_the_file(make: Callable[..., TextEnv], tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="found no file"):
        make("selfplay_gym/Deduction-v0", archive=tmp_path / "nowhere.sqlite")
    assert not list(tmp_path.iterdir())


# -- settings ---------------------------------------------------------------------------------------------------------


def test_given_tasks_are_the_ones_asked(make: Callable[..., TextEnv]) -> None:
    tasks = [Task("deduction", f"def f(x):\n    return x + {n}", ("0",), (str(n),)) for n in range(3)]
    env = make("selfplay_gym/Deduction-v0", tasks=tasks)
    keys = {env.reset(seed=seed)[1]["task_key"] for seed in range(30)}
    assert keys == {task.key for task in tasks}
    assert env.reset(options={"task": tasks[2]})[1]["task_key"] == tasks[2].key
    assert env.step(framed("2"))[1] == 1.0


def test_families_take_their_settings(make: Callable[..., TextEnv]) -> None:
    env = make(families={"induction": {"pairs": 2}, "deduction": {"references": 1}})
    env.reset(seed=0, options={"family": "induction"})
    two = "```input\n1\n```\n```input\n2\n```\n```message\nSame.\n```"
    assert env.step(framed(two))[4]["role"] == "solve"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"attempts": 0}, InvalidConfig, "attempts must be at least 1"),
        ({"weight": -1.0}, InvalidConfig, "weight"),
        ({"weight": float("nan")}, InvalidConfig, "weight"),
        ({"families": []}, InvalidConfig, "families that can propose"),
        ({"families": ["deductoin"]}, UnknownId, "did you mean 'deduction'"),
        ({"style": "azrr"}, UnknownId, "no prompt style"),
        ({"learnability": "zero"}, InvalidConfig, "learnability"),
        ({"solver": "zero"}, InvalidConfig, "solver"),
        ({"max_length": 0}, InvalidConfig, "max_length"),
    ],
)
def test_an_impossible_setting_is_named(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SelfPlayEnv(**settings)


@pytest.mark.parametrize(
    ("env_id", "options", "message"),
    [
        (SELF_PLAY, {"family": "deductoin"}, "did you mean 'deduction'"),
        (SELF_PLAY, {"famly": "deduction"}, "option 'family'"),
        ("selfplay_gym/Deduction-v0", {"task": "x"}, "tasks of family 'deduction', got a str"),
        ("selfplay_gym/Deduction-v0", {"task": Task("abduction", "", (), ())}, "got one of 'abduction'"),
    ],
)
def test_an_impossible_option_is_named(
    env_id: str, options: dict[str, Any], message: str, make: Callable[..., TextEnv]
) -> None:
    with pytest.raises(InvalidConfig, match=message):
        make(env_id).reset(seed=0, options=options)


# -- the executor -----------------------------------------------------------------------------------------------------


def test_a_given_executor_stays_open(sandbox: SandboxExecutor) -> None:
    executor = CountingExecutor(sandbox)
    env = gymnasium.make(SELF_PLAY, executor=executor)
    env.reset(seed=0)
    env.close()
    env.close()
    assert not executor.closed


def test_an_own_sandbox_starts_when_it_is_needed_and_ends_with_the_environment() -> None:
    env = gymnasium.make("selfplay_gym/Abduction-v0")
    executor = env.unwrapped.game.executor  # type: ignore[attr-defined]
    assert isinstance(executor, LazySandbox)
    env.reset(seed=0)
    env.step("no frame")
    assert vars(executor)["_started"] is None
    env.reset()
    assert env.step(framed("'Hello world'"))[1] == 1.0
    assert vars(executor)["_started"] is not None
    env.close()
    env.close()
    env.unwrapped.reset(seed=0)
    with pytest.raises(RuntimeError, match="closed"):
        env.unwrapped.step(framed("'Hello world'"))


def test_an_executor_can_be_named() -> None:
    env = gymnasium.make("selfplay_gym/Abduction-v0", executor="sandbox")
    env.reset(seed=0)
    assert env.step(framed("'Hello world'"))[1] == 1.0
    env.close()


# -- many at a time ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", IDS)
def test_make_vec_gives_ours_with_real_prompts(env_id: str, make_vec: Callable[..., Any]) -> None:
    envs = make_vec(env_id, num_envs=3)
    assert isinstance(envs, TextVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    prompts, _ = envs.reset(seed=0)
    assert prompts in envs.observation_space
    assert all(len(prompt) > 100 for prompt in prompts)
    envs.action_space.seed(0)
    envs.step(envs.action_space.sample())


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("env_id", IDS)
def test_the_vector_equals_gymnasiums_loop_over_single_environments(
    env_id: str, mode: AutoresetMode, make_vec: Callable[..., Any]
) -> None:
    """Prompts, rewards, ends and infos alike, over several episodes: same seeds, same actions."""
    ours = make_vec(env_id, num_envs=3, autoreset_mode=mode)
    theirs = make_vec(env_id, num_envs=3, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode})
    agent = random.Random(5)
    results = [envs.reset(seed=11) for envs in (ours, theirs)]
    for _ in range(9):
        assert_same(results)
        infos = results[0][-1]
        actions = tuple(scripted(single(infos, n), agent) for n in range(3))
        results = [envs.step(actions) for envs in (ours, theirs)]
        over = results[0][2] | results[0][3]
        if mode is AutoresetMode.DISABLED and over.any():
            assert_same(results)
            results = [envs.reset(options={"reset_mask": over.copy()}) for envs in (ours, theirs)]
    assert ours.np_random_seed == theirs.np_random_seed == (11, 12, 13)
    assert [rng.bit_generator.state for rng in ours.np_random] == [r.bit_generator.state for r in theirs.np_random]


def single(infos: dict[str, Any], n: int) -> dict[str, Any]:
    return {"role": infos["role"][n] or "solve", "family": infos["family"][n] or "deduction"}


def assert_same(results: list[Any]) -> None:
    ours, theirs = results
    assert ours[0] == theirs[0]
    for mine, other in zip(ours[1:-1], theirs[1:-1], strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_array_equal(mine, other)
    np.testing.assert_equal(ours[-1], theirs[-1])


def test_a_step_is_one_executor_batch(make_vec: Callable[..., Any], sandbox: SandboxExecutor) -> None:
    executor = CountingExecutor(sandbox)
    envs = make_vec("selfplay_gym/Abduction-v0", num_envs=8, executor=executor)
    envs.reset(seed=0)
    _, rewards, *_ = envs.step([framed("'Hello world'" if n % 2 else str(n)) for n in range(8)])
    assert rewards.tolist() == [0.0, 1.0] * 4
    assert len(executor.batches) == 1
    assert sum(len(job.inputs) for job in executor.batches[0]) == 5  # equal runs are run once
    envs.step(["reset now"] * 8)
    assert len(executor.batches) == 1


def test_eight_proposals_take_as_many_batches_as_one(make_vec: Callable[..., Any], sandbox: SandboxExecutor) -> None:
    batches = []
    for num_envs in (1, 8):
        executor = CountingExecutor(sandbox)
        envs = make_vec(num_envs=num_envs, families=["abduction"], executor=executor)
        envs.reset(seed=0)
        envs.step([framed(TRIPLET)] * num_envs)
        batches.append(len(executor.batches))
        envs.step([framed(RIGHT["abduction"])] * num_envs)
        assert len(executor.batches) == batches[-1] + 1
    assert batches[0] == batches[1]


def test_players_without_an_archive_do_not_see_each_other(make_vec: Callable[..., Any]) -> None:
    envs = make_vec(num_envs=2, families=["deduction"])
    envs.reset(seed=0)
    assert envs.step([framed(TRIPLET)] * 2)[4]["check"].tolist() == ["", ""]


def test_players_of_one_archive_compete(make_vec: Callable[..., Any]) -> None:
    envs = make_vec(num_envs=2, families=["deduction"], archive=":memory:")
    envs.reset(seed=0)
    assert envs.step([framed(TRIPLET)] * 2)[4]["check"].tolist() == ["", "new"]


def test_the_step_after_the_end_resets_and_ignores_its_action(make_vec: Callable[..., Any]) -> None:
    envs = make_vec("selfplay_gym/Deduction-v0", num_envs=2)
    first, _ = envs.reset(seed=0)
    shown, rewards, terminated, _, infos = envs.step([framed("'Hello world'"), "no frame"])
    assert (shown, rewards.tolist(), terminated.tolist()) == (("", ""), [1.0, 0.0], [True, True])
    assert infos["reason"].tolist() == ["", "format"]
    shown, rewards, terminated, truncated, infos = envs.step([framed("'Hello world'")] * 2)
    assert (shown, rewards.tolist()) == (first, [0.0, 0.0])
    assert not (terminated | truncated).any()
    assert "reward_parts" not in infos


def test_masks_say_whose_infos_are_there(make_vec: Callable[..., Any]) -> None:
    envs = make_vec(num_envs=3, families=["deduction"], attempts=1)
    envs.reset(seed=0)
    envs.step([framed(TRIPLET), framed(TRIPLET), "no frame"])
    *_, infos = envs.step([framed(RIGHT["deduction"]), framed(WRONG["deduction"]), "ignored"])
    assert infos["_solve_rate"].tolist() == [True, True, False]
    assert infos["solve_rate"].tolist() == [1.0, 0.0, 0.0]
    assert infos["_reward_parts"].tolist() == [True, True, False]
    assert infos["role"].tolist() == ["solve", "solve", "propose"]


@pytest.mark.parametrize("actions", ["ab", ["a"], ["a", "b", "c"], ["a", 1], 3, None])
def test_actions_are_one_text_for_each(actions: Any, make_vec: Callable[..., Any]) -> None:
    envs = make_vec("selfplay_gym/Deduction-v0", num_envs=2)
    envs.reset(seed=0)
    with pytest.raises(TypeError):
        envs.step(actions)
    envs.step(np.array(["a", "b"]))


def test_steps_of_a_vector_out_of_order_are_errors(make_vec: Callable[..., Any]) -> None:
    envs = make_vec("selfplay_gym/Deduction-v0", num_envs=2, autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(ResetNeeded):
        envs.step(["a", "b"])
    envs.reset(seed=0)
    envs.step(["a", "b"])
    with pytest.raises(ResetNeeded):
        envs.step(["a", "b"])
    with pytest.raises(TypeError, match="reset_mask"):
        envs.reset(options={"reset_mask": [True, False]})
    with pytest.raises(ValueError, match="one for each of 2"):
        envs.reset(seed=[1, 2, 3])


def test_a_vector_returns_new_arrays_every_time(make_vec: Callable[..., Any]) -> None:
    envs = make_vec("selfplay_gym/Deduction-v0", num_envs=2)
    returned = [envs.reset(seed=0), envs.step(["a", "b"]), envs.step(["a", "b"]), envs.step(["a", "b"])]
    for number, one in enumerate(returned):
        for other in returned[:number]:
            assert not data_shares_objects(one[1:], other[1:])
            assert not data_shares_objects(one[-1], other[-1])


def test_gymnasiums_vector_wrappers_fit(make_vec: Callable[..., Any]) -> None:
    envs = DictInfoToList(RecordEpisodeStatistics(make_vec(num_envs=2, families=["deduction"], attempts=1)))
    envs.reset(seed=0)
    envs.step([framed(TRIPLET), "no frame"])
    *_, infos = envs.step([framed(RIGHT["deduction"]), "ignored"])
    assert infos[0]["episode"]["r"] == 1.0
    assert infos[0]["reward_parts"] == {"propose": 0.0, "solve": 1.0}


def test_a_vector_renders_each_dialogue(make_vec: Callable[..., Any]) -> None:
    envs = make_vec("selfplay_gym/Deduction-v0", num_envs=2, render_mode="ansi")
    envs.reset(seed=0)
    envs.step(["first words", "second words"])
    first, second = envs.render()
    assert "first words" in first
    assert "second words" in second


# -- Gymnasium's processes --------------------------------------------------------------------------------------------


def test_shared_memory_is_refused_where_gymnasium_would_play_blind() -> None:
    """`AsyncVectorEnv` reads a text observation from shared memory once, when it is built, and never again."""
    with pytest.raises(ValueError, match="shared_memory=False") as caught:
        gymnasium.make_vec("selfplay_gym/Deduction-v0", num_envs=2, vectorization_mode="async")
    assert isinstance(caught.value.__cause__, CustomSpaceError)


def test_processes_without_shared_memory_see_real_prompts() -> None:
    # spawn, because forking a process with threads warns; a spawned one has to import us, hence the prefix
    build = functools.partial(gymnasium.make, "selfplay_gym:selfplay_gym/Abduction-v0")
    envs = AsyncVectorEnv([build, build], shared_memory=False, context="spawn")
    single_env = build()
    try:
        prompts, _ = envs.reset(seed=0)
        assert prompts == (single_env.reset(seed=0)[0],) * 2
        shown, rewards, terminated, _, infos = envs.step((framed("'Hello world'"), framed("1")))
        assert (shown, rewards.tolist(), terminated.tolist()) == (("", ""), [1.0, 0.0], [True, True])
        assert infos["reason"].tolist() == ["", "another value"]
    finally:
        envs.close()
        single_env.close()
