r"""The game as Gymnasium environments.

``selfplay_gym/SelfPlay-v0`` plays one proposal and its attempts an episode; ``selfplay_gym/Deduction-v0`` and its like,
one id a registered family, ask for one answer. Both are thin: a game of `selfplay_gym.games` with one player, in the
spaces that Gymnasium asks for. `selfplay_gym.vector` plays several side by side.

What an agent can rely on:

* An observation is a prompt, or ``""`` when the episode is over. Any string is an action.
* The return of a self-play episode is ``r_propose + weight * mean(r_solve)``. A refused proposal ends it with its
  penalty. An admitted one pays nothing yet, since what it is worth shows only in the attempts; attempt number k then
  pays ``weight * r_solve[k] / attempts``, and the last one adds ``r_propose``. ``info["reward_parts"]`` splits each
  reward by role.
* *No verdict is not a zero.* Where our own machinery failed, ``info["no_verdict"]`` is true and the reward is 0.0 only
  because Gymnasium wants a number: an episode about which nothing is known ends with ``truncated``, and one attempt
  without a verdict is left out of the mean (the last reward makes up for its share).
* Spaces are `Text` over printable ASCII, newline and tab. Other characters in a prompt appear as Python escapes, which
  inside a Python string mean the same: ``é`` is shown as ``\xe9``.
* A reset with a seed fixes everything that follows, as long as the archive it draws from is the same. Without a file
  nothing is remembered from one episode to the next.
"""

from __future__ import annotations

import re
from typing import Any

import gymnasium
from gymnasium.error import CustomSpaceError, ResetNeeded
from gymnasium.spaces import Text
from gymnasium.vector.utils import create_shared_memory

from selfplay_gym.errors import InvalidConfig
from selfplay_gym.games import Episode, Game, SelfPlay, Solving
from selfplay_gym.registry import families

CHARSET = "\t\n" + "".join(map(chr, range(32, 127)))
"""Every character of an observation, unless an environment is made with another ``charset``."""
MAX_LENGTH = 2**20
"""Longest observation: room for any prompt that a gate with default caps lets through, even if all of it is escaped."""
ACTION_LENGTH = 2**16
"""Longest action that the action space samples; longer ones are taken too."""
_ESCAPES = frozenset("\\xuU0123456789abcdef")


class Prompt(Text):
    """A `Text` space of prompts.

    Its own class for one reason: `gymnasium.vector.AsyncVectorEnv` with shared memory decodes a text observation once,
    when it is built, and from then on returns that empty buffer for every step, without a word. For this space it
    refuses with an error instead.
    """

    def fit(self, text: str) -> str:
        """Return the text with foreign characters escaped.

        Raises:
            InvalidConfig: It is too long for the space. Nothing is cut, since a cut prompt is another task.
        """
        if foreign := set(text) - self.character_set:
            text = text.translate({ord(character): _escape(character) for character in foreign})
        if len(text) > self.max_length:
            raise InvalidConfig(f"a prompt has {len(text)} characters; make the environment with a larger max_length")
        return text


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


@create_shared_memory.register(Prompt)
def _refuse_shared_memory(space: Prompt, n: int = 1, ctx: object = None) -> Any:
    raise CustomSpaceError("text observations do not survive shared memory; pass shared_memory=False")


def prompt_space(charset: str = CHARSET, max_length: int = MAX_LENGTH) -> Prompt:
    """Return the observation space.

    Raises:
        InvalidConfig: The character set lacks what escapes are written with, or there is no room for a prompt.
    """
    if missing := _ESCAPES - set(charset):
        raise InvalidConfig(f"charset needs the characters of Python escapes, and lacks {''.join(sorted(missing))!r}")
    if max_length < 1:
        raise InvalidConfig(f"max_length must be at least 1, got {max_length}")
    return Prompt(max_length, min_length=0, charset=charset)


def action_space(observations: Prompt) -> Text:
    """Return the action space that goes with an observation space."""
    length = min(ACTION_LENGTH, observations.max_length)
    return Text(length, min_length=0, charset=observations.character_set)


def text_of(action: object) -> str:
    """Return an action as the text that it is.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(action, str):
        raise TypeError(f"an action is the text that a policy wrote, a str; got {type(action).__name__}")
    return str(action)


class TextEnv(gymnasium.Env[str, str]):
    """A game for one player at a time.

    Args:
        game: Whose episodes are played. Closed with the environment.
        render_mode: ``"ansi"`` lets `render` return the dialogue so far.
        charset: Characters of observations; others are escaped.
        max_length: Longest observation.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012

    def __init__(
        self, game: Game, render_mode: str | None = None, charset: str = CHARSET, max_length: int = MAX_LENGTH
    ) -> None:
        self.game, self.render_mode = game, render_mode
        self.prompts = prompt_space(charset, max_length)
        self.observation_space, self.action_space = self.prompts, action_space(self.prompts)
        self.episode: Episode | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin an episode and return its first prompt."""
        super().reset(seed=seed)
        self.episode = self.game.begin(self.np_random, options)
        return self.prompts.fit(self.episode.prompt), self.episode.info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Judge a text; see the head of this module for what is returned.

        Raises:
            ResetNeeded: No episode is under way.
            TypeError: The action is no string.
        """
        text = text_of(action)
        if self.episode is None:
            raise ResetNeeded("call reset() before step()")
        turn = self.game.play([self.episode], [text])[0]
        return turn._replace(observation=self.prompts.fit(turn.observation))

    def render(self) -> str | None:
        """Return the dialogue so far."""
        if self.render_mode is None:
            return None
        return self.episode.dialogue if self.episode else ""

    def close(self) -> None:
        """Close the game. Safe to call twice."""
        self.game.close()


class SelfPlayEnv(TextEnv):
    """``selfplay_gym/SelfPlay-v0``; ``settings`` are those of `SelfPlay`."""

    def __init__(
        self,
        *,
        render_mode: str | None = None,
        charset: str = CHARSET,
        max_length: int = MAX_LENGTH,
        **settings: Any,
    ) -> None:
        super().__init__(SelfPlay(**settings), render_mode, charset, max_length)


class SolveEnv(TextEnv):
    """``selfplay_gym/Deduction-v0`` and its like; ``settings`` are those of `Solving`."""

    def __init__(
        self,
        *,
        render_mode: str | None = None,
        charset: str = CHARSET,
        max_length: int = MAX_LENGTH,
        **settings: Any,
    ) -> None:
        super().__init__(Solving(**settings), render_mode, charset, max_length)


def environment_id(family: str) -> str:
    """Return the Gymnasium id of a family's environment.

    >>> environment_id("list_functions"), environment_id("word-count")
    ('selfplay_gym/ListFunctions-v0', 'selfplay_gym/WordCount-v0')
    """
    words = re.findall(r"[A-Za-z0-9]+", family)
    return f"selfplay_gym/{''.join(word[0].upper() + word[1:] for word in words)}-v0"


def register_environments() -> None:
    """Register ``SelfPlay-v0`` and one id for each family; imports no plug-in and says nothing."""
    _register("selfplay_gym/SelfPlay-v0", "SelfPlay", {})
    for name in families.paths():
        if trouble := _register_family(name):
            families.note(name, trouble)


def register_family(name: str, path: str) -> None:
    """Add a task family and its environment, such as ``register_family("reversal", "my_package.reversal:Reversal")``.

    For this process; an installed package does the same for all by an entry point of group ``selfplay_gym.families``.

    Raises:
        InvalidConfig: The name makes no id, or that of another environment.
    """
    if trouble := _register_family(name):
        raise InvalidConfig(trouble)
    families.register(name, path)


def _register_family(name: str) -> str:
    """Register the id, or return why not."""
    new = environment_id(name)
    taken = gymnasium.registry.get(new)
    if taken is not None:
        same = taken.kwargs.get("family") == name
        return "" if same else f"task family {name!r} gets no environment: {new} is taken"
    if new == environment_id(""):
        return f"task family {name!r} gets no environment: its name has no letter or digit"
    _register(new, "Solve", {"family": name})
    return ""


def _register(new: str, kind: str, kwargs: dict[str, Any]) -> None:
    if new not in gymnasium.registry:
        gymnasium.register(
            id=new,
            entry_point=f"selfplay_gym.envs:{kind}Env",
            vector_entry_point=f"selfplay_gym.vector:{kind}VectorEnv",
            kwargs=kwargs,
        )
