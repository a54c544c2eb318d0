"""Families of other packages: installed ones get an id and play, broken ones harm nobody."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from selfplay_gym import families, registry
from selfplay_gym.errors import UnknownId
from selfplay_gym.registry import Registry

TESTS = Path(__file__).parent
TOY = TESTS / "toy_package"
PAGE, README = TESTS.parent / "docs" / "families.md", TESTS.parent / "README.md"


def run(code: str, *folders: Path) -> str:
    """Run code in a process of its own that also sees packages in ``folders``; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env={"PYTHONPATH": ":".join(map(str, folders)), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def install(folder: Path, name: str, path: str, source: str | None = None, module: str = "") -> None:
    """Lay out what an installed package with one family leaves behind."""
    info = folder / f"plug_in_{len(list(folder.iterdir()))}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {info.name.split('-')[0]}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[selfplay_gym.families]\n{name} = {path}\n")
    if source is not None:
        (folder / f"{module}.py").write_text(source)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy package, installed by pip into a folder of its own."""
    source = tmp_path_factory.mktemp("source") / "toy_package"  # a copy, since building writes beside the sources
    shutil.copytree(TOY, source, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    if subprocess.run([sys.executable, "-c", "import pip, setuptools"], capture_output=True).returncode == 0:
        subprocess.run([*pip, "--target", str(target), str(source)], check=True, capture_output=True)
    else:
        install(target, "counterexample", "counterexample:Counterexample")
        shutil.copy(source / "counterexample.py", target)
    return target


def test_a_family_of_an_installed_package_gets_its_id_and_plays(installed: Path) -> None:
    output = run(
        """
        import sys
        import gymnasium, selfplay_gym
        from gymnasium.utils.env_checker import check_env

        assert "counterexample" not in sys.modules  # found by name, imported by make
        assert "counterexample" in selfplay_gym.families.names()
        env = gymnasium.make("selfplay_gym/Counterexample-v0")
        check_env(env.unwrapped)
        env.reset(seed=0)
        print(env.step("It is 0 or more, except at 1.</think><answer>1</answer>")[1])
        env.reset()
        print(env.step("</think><answer>```input\\n2\\n```</answer>")[1])
        env.close()

        envs = gymnasium.make_vec("selfplay_gym/Counterexample-v0", num_envs=3)
        prompts, _ = envs.reset(seed=0)
        assert all("something other than `True`" in prompt for prompt in prompts)
        answers = [f"</think><answer>{n}</answer>" for n in (0, 1, "'no number'")]
        print(envs.step(answers)[1].tolist())
        envs.close()

        env = gymnasium.make("selfplay_gym/SelfPlay-v0", families=["counterexample"], attempts=2, style="chat")
        env.reset(seed=0)
        program = "def f(a, b):\\n    return a + b == 12"
        proposal = f"</think><answer>```python\\n{program}\\n```\\n```input\\n3, 5\\n```</answer>"
        rewards = [env.step(text)[1] for text in (proposal, *("</think><answer>6, 6</answer>", "what?"))]
        print(rewards)
        env.close()
        """,
        installed,
    )
    assert output.splitlines() == ["1.0", "0.0", "[0.0, 1.0, 0.0]", "[0.0, 0.5, 0.5]"]


def test_a_family_can_be_registered_without_a_package() -> None:
    output = run(
        """
        import gymnasium, selfplay_gym
        selfplay_gym.register_family("counterexample", "counterexample:Counterexample")
        selfplay_gym.register_family("counterexample", "counterexample:Counterexample")  # twice does no harm
        env = gymnasium.make("selfplay_gym/Counterexample-v0")
        env.reset(seed=0)
        print(env.step("</think><answer>1</answer>")[1])
        env.close()
        for name in ("self-play", "Deduction", "!"):
            try:
                selfplay_gym.register_family(name, "counterexample:Counterexample")
            except selfplay_gym.InvalidConfig as error:
                print(error)
        """,
        TOY,
    )
    assert output.splitlines() == [
        "1.0",
        "task family 'self-play' gets no environment: selfplay_gym/SelfPlay-v0 is taken",
        "task family 'Deduction' gets no environment: selfplay_gym/Deduction-v0 is taken",
        "task family '!' gets no environment: its name has no letter or digit",
    ]


def test_broken_plug_ins_are_named_once_and_harm_nobody(tmp_path: Path) -> None:
    install(tmp_path, "gone", "package_that_was_removed:Gone")
    install(tmp_path, "halved", "no_attribute_given")
    install(tmp_path, "explodes", "exploding:Family", "raise SystemError('boom')", "exploding")
    install(tmp_path, "empty", "empty_module:Family", "", "empty_module")
    install(tmp_path, "deduction", "usurper:Family", "", "usurper")
    install(tmp_path, "self-play", "usurper:Family")
    output = run(
        """
        import warnings
        import selfplay_gym, gymnasium  # a warning here would be an error

        def told(action):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                result = action()
            for warning in caught:
                print("warning:", warning.message)
            return result

        env = told(lambda: gymnasium.make("selfplay_gym/Deduction-v0"))
        env.reset(seed=0)
        print(env.step("</think><answer>'Hello world'</answer>")[1])
        told(selfplay_gym.families.names)
        print("--")
        print(told(selfplay_gym.families.working))
        print("--")
        print(told(selfplay_gym.families.working))
        for name in ("Gone", "Explodes"):
            try:
                gymnasium.make(f"selfplay_gym/{name}-v0")
            except selfplay_gym.UnknownId as error:
                print(error)
        """,
        tmp_path,
    )
    first, second, third = output.split("--\n")
    assert sorted(first.splitlines()) == [
        "1.0",
        f"warning: task family 'deduction' is taken by {families.paths()['deduction']}; usurper:Family is skipped",
        "warning: task family 'gone' does not load: there is no package_that_was_removed:Gone",
        "warning: task family 'halved' does not load: there is no no_attribute_given",
        "warning: task family 'self-play' gets no environment: selfplay_gym/SelfPlay-v0 is taken",
    ]
    listed = [line for line in second.splitlines() if not line.startswith("warning:")]
    assert listed == ["['abduction', 'deduction', 'error', 'induction']"]
    for name, why in (("explodes", "SystemError: boom"), ("empty", "has no attribute 'Family'")):
        assert re.search(f"warning: task family '{name}' .* does not load: .*{why}", second)
    assert third.splitlines()[0] == "['abduction', 'deduction', 'error', 'induction']"
    assert "family 'gone' (package_that_was_removed:Gone) does not load: ModuleNotFoundError" in third
    assert "family 'explodes' (exploding:Family) does not load: SystemError: boom" in third


def test_damaged_metadata_of_any_package_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(group: str) -> object:
        raise TypeError("line 3 has no equals sign")

    monkeypatch.setattr(registry, "entry_points", spoilt)
    things = Registry("thing", "selfplay_gym.things", {"builtin": "collections:OrderedDict"})
    with pytest.warns(UserWarning, match=r"no plug-in of group selfplay_gym\.things can be found: line 3"):
        assert things.names() == ["builtin"]
    assert things.load("builtin").__name__ == "OrderedDict"


def test_what_is_no_family_of_that_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {"fraction": "fractions:Fraction", "deduced": "selfplay_gym.tasks.deduction:Deduction"}
    monkeypatch.setattr(registry, "families", Registry("task family", "no.such.group", paths))
    with pytest.raises(UnknownId, match="fractions:Fraction is no task family; it needs name"):
        registry.make_family("fraction")
    with pytest.raises(UnknownId, match="'deduced' calls itself 'deduction'"):
        registry.make_family("deduced")


def test_the_page_shows_the_very_files_that_are_tested() -> None:
    page = PAGE.read_text()
    assert f"````python\n{(TOY / 'counterexample.py').read_text()}````\n" in README.read_text()
    assert f"```toml\n{(TOY / 'pyproject.toml').read_text()}```\n" in page


def test_the_code_on_the_page_runs() -> None:
    parts = python_blocks(PAGE.read_text())
    assert len(parts) == 4
    run("\n".join([*parts, "env.close()"]), TOY)


def test_the_code_of_the_readme_runs() -> None:
    before, after = README.read_text().split("\n````\n")  # four, around a file that holds fences itself
    registers = "import selfplay_gym\nselfplay_gym.register_family('counterexample', 'counterexample:Counterexample')"
    parts = [*python_blocks(before.partition("\n````python")[0]), registers, *python_blocks(after)]
    assert len(parts) == 3
    run("\n".join([*parts, "env.close()"]), TOY)


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```\n", text, re.DOTALL | re.MULTILINE)


def test_the_page_speaks_of_every_part_of_the_contract() -> None:
    page = PAGE.read_text()
    parts = ("name", "solve_prompt", "check", "judge", "references", "seeds", "proposal_prompt", "parse_proposal")
    assert [part for part in parts if f"`{part}`" not in page] == []
    assert "counterexample" not in families.paths()  # the page's family is not one of ours
