"""Many episodes side by side, judged in one executor batch.

What `gymnasium.make_vec` builds for our ids. A step judges the texts of all sub-environments together, however slow one
of them is, where Gymnasium's own vector environments would judge one after the other or in a process each. Everything
else is as Gymnasium documents it: sub-environment i has seed ``seed + i`` and earns what a single environment with that
seed earns, observations and actions are tuples of strings, infos are arrays with a mask under ``_key``, and by default
a sub-environment whose episode ended is reset by the next step, which then ignores its action.

With an archive that is written to, the sub-environments share it: of two that propose the same program only one has
found something new.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from selfplay_gym.envs import CHARSET, MAX_LENGTH, action_space, prompt_space, text_of
from selfplay_gym.errors import InvalidConfig
from selfplay_gym.games import Episode, Game, SelfPlay, Solving, Turn

Texts = tuple[str, ...]
Step = tuple[Texts, "np.ndarray[Any, Any]", "np.ndarray[Any, Any]", "np.ndarray[Any, Any]", dict[str, Any]]


class TextVectorEnv(VectorEnv[Texts, Sequence[str], "np.ndarray[Any, Any]"]):
    """A game for several players at a time.

    Args:
        game: Whose episodes are played. Closed with the environment.
        num_envs: How many side by side.
        render_mode: ``"ansi"`` lets `render` return the dialogues so far.
        charset: Characters of observations; others are escaped.
        max_length: Longest observation.
        autoreset_mode: When a sub-environment whose episode ended begins the next one.
    """

    def __init__(
        self,
        game: Game,
        num_envs: int,
        render_mode: str | None = None,
        charset: str = CHARSET,
        max_length: int = MAX_LENGTH,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        if num_envs < 1:
            raise InvalidConfig(f"num_envs must be at least 1, got {num_envs}")
        self.game, self.num_envs, self.render_mode = game, num_envs, render_mode
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {"render_modes": ["ansi"], "render_fps": 1, "autoreset_mode": self.autoreset_mode}
        self.prompts = prompt_space(charset, max_length)
        self.single_observation_space, self.single_action_space = self.prompts, action_space(self.prompts)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.episodes: list[Episode] = []
        self._generators, self._seeds = self._seeded([None] * num_envs)

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The sub-environments' generators; to be set by `reset` alone."""
        return tuple(self._generators)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The sub-environments' seeds."""
        return tuple(self._seeds)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Texts, dict[str, Any]]:
        """Begin an episode in every sub-environment, or in those that ``options["reset_mask"]`` says.

        Args:
            seed: Sub-environment i gets ``seed + i``, or item i of a list.
            options: For every sub-environment.
        """
        rest = {name: value for name, value in (options or {}).items() if name != "reset_mask"}
        chosen = self._chosen((options or {}).get("reset_mask"))
        seeds = self._split(seed)
        fresh, numbers = self._seeded(seeds)
        infos: dict[str, Any] = {}
        episodes = dict(enumerate(self.episodes))
        for n in chosen:
            if seeds[n] is not None:
                self._generators[n], self._seeds[n] = fresh[n], numbers[n]
            episodes[n] = self.game.begin(self._generators[n], rest)
            infos = self._add_info(infos, episodes[n].info, n)
        self.episodes = [episodes[n] for n in range(self.num_envs)]
        return tuple(self.prompts.fit(episode.prompt) for episode in self.episodes), infos

    def step(self, actions: Sequence[str]) -> Step:
        """Judge a text in every sub-environment, except in those that are reset instead.

        Raises:
            ResetNeeded: Before the first reset, or after the end of an episode where none is automatic.
            TypeError: The actions are not one string a sub-environment.
        """
        texts = self._texts(actions)
        if not self.episodes:
            raise ResetNeeded("call reset() before step()")
        skipped = self.autoreset_mode is AutoresetMode.NEXT_STEP
        playing = [n for n, episode in enumerate(self.episodes) if not (skipped and episode.over)]
        turns = dict(
            zip(playing, self.game.play([self.episodes[n] for n in playing], [texts[n] for n in playing]), strict=True)
        )
        infos: dict[str, Any] = {}
        shown = []
        for n in range(self.num_envs):
            turn = turns.setdefault(n, _NOTHING)
            if turn is _NOTHING or (self.autoreset_mode is AutoresetMode.SAME_STEP and self.episodes[n].over):
                if turn is not _NOTHING:
                    final = {"final_obs": self.prompts.fit(turn.observation), "final_info": turn.info}
                    infos = self._add_info(infos, final, n)
                self.episodes[n] = self.game.begin(self._generators[n])
                turn = turn._replace(observation=self.episodes[n].prompt, info=self.episodes[n].info)
            infos = self._add_info(infos, turn.info, n)
            shown.append(self.prompts.fit(turn.observation))
        ordered = [turns[n] for n in range(self.num_envs)]
        return (
            tuple(shown),
            np.array([turn.reward for turn in ordered], dtype=np.float64),
            np.array([turn.terminated for turn in ordered], dtype=np.bool_),
            np.array([turn.truncated for turn in ordered], dtype=np.bool_),
            infos,
        )

    def render(self) -> Texts | None:
        """Return the dialogues so far."""
        return None if self.render_mode is None else tuple(episode.dialogue for episode in self.episodes)

    def close_extras(self, **kwargs: Any) -> None:
        """Close the game."""
        self.game.close()

    def _texts(self, actions: object) -> list[str]:
        if isinstance(actions, (str, bytes)) or not isinstance(actions, (Sequence, np.ndarray)):
            raise TypeError(f"actions are one text for each of {self.num_envs} sub-environments, got {type(actions)}")
        if len(actions) != self.num_envs:
            raise TypeError(f"actions are one text for each of {self.num_envs} sub-environments, got {len(actions)}")
        return [text_of(action) for action in actions]

    def _split(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None or isinstance(seed, (int, np.integer)):
            return [None if seed is None else int(seed) + n for n in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"a list of seeds needs one for each of {self.num_envs} sub-environments, got {len(seed)}")
        return list(seed)

    def _seeded(self, seeds: Sequence[int | None]) -> tuple[list[np.random.Generator], list[int]]:
        pairs = [seeding.np_random(seed) for seed in seeds]
        return [generator for generator, _ in pairs], [number for _, number in pairs]

    def _chosen(self, mask: object) -> list[int]:
        if mask is None or not self.episodes:
            return list(range(self.num_envs))
        if not isinstance(mask, np.ndarray) or mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            raise TypeError(f"reset_mask must be an array of {self.num_envs} bools, got {mask!r}")
        return [int(n) for n in np.flatnonzero(mask)]


_NOTHING = Turn("", 0.0, False, False, {})


class SelfPlayVectorEnv(TextVectorEnv):
    """``selfplay_gym/SelfPlay-v0``, several at a time; ``settings`` are those of `SelfPlay`."""

    def __init__(
        self,
        num_envs: int = 1,
        *,
        render_mode: str | None = None,
        charset: str = CHARSET,
        max_length: int = MAX_LENGTH,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **settings: Any,
    ) -> None:
        game = SelfPlay(players=num_envs, **settings)
        super().__init__(game, num_envs, render_mode, charset, max_length, autoreset_mode)


class SolveVectorEnv(TextVectorEnv):
    """``selfplay_gym/Deduction-v0`` and its like, several at a time; ``settings`` are those of `Solving`."""

    def __init__(
        self,
        num_envs: int = 1,
        *,
        render_mode: str | None = None,
        charset: str = CHARSET,
        max_length: int = MAX_LENGTH,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **settings: Any,
    ) -> None:
        game = Solving(players=num_envs, **settings)
        super().__init__(game, num_envs, render_mode, charset, max_length, autoreset_mode)
