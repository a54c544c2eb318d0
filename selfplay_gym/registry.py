"""Names for the parts a user can add: task families, executors and evaluation suites.

A name stands for an import path; nothing is imported until the part is made. Installed packages add theirs through the
entry-point groups ``selfplay_gym.families``, ``selfplay_gym.executors`` and ``selfplay_gym.suites``. A plug-in that
does not load is named and skipped, never fatal to the others.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, cast

from selfplay_gym.errors import UnknownId
from selfplay_gym.protocols import TaskFamily


class Registry:
    """Import paths by name, built-in ones first, then those of installed packages.

    Args:
        kind: What is registered, in the singular, for messages.
        group: Entry-point group that installed packages use.
        builtin: Import paths (``"module:attribute"``) by name.
    """

    def __init__(self, kind: str, group: str, builtin: dict[str, str]) -> None:
        self.kind, self.group = kind, group
        self._paths = dict(builtin)
        self._discovered = False

    def register(self, name: str, path: str) -> None:
        """Add a name, such as ``register("reversal", "my_package.reversal:Reversal")``."""
        taken = self._paths.setdefault(name, path)
        if taken != path:
            warnings.warn(f"{self.kind} {name!r} is taken by {taken}; {path} is skipped", stacklevel=2)

    def names(self) -> list[str]:
        """Return every registered name, sorted."""
        self._discover()
        return sorted(self._paths)

    def load(self, name: str) -> Any:
        """Return the object registered under ``name``.

        Raises:
            UnknownId: No such name; the message gives the nearest ones. Or its import failed; the message says how.
        """
        self._discover()
        if name not in self._paths:
            raise UnknownId(unknown(self.kind, name, self._paths))
        module, _, attribute = self._paths[name].partition(":")
        try:
            return getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UnknownId(f"{self.kind} {name!r} ({self._paths[name]}) does not load: {error}") from error

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True
        for entry in entry_points(group=self.group):
            self.register(entry.name, entry.value)


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the message for a name that is not among those known.

    >>> unknown("suite", "cruxevel", ["cruxeval", "nano"])
    "no suite 'cruxevel'; did you mean 'cruxeval'?"
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"no {kind} {name!r}; did you mean {' or '.join(map(repr, near))}?"
    return f"no {kind} {name!r}; there are {', '.join(names)}"


families = Registry(
    "task family",
    "selfplay_gym.families",
    {
        "deduction": "selfplay_gym.tasks.deduction:Deduction",
        "abduction": "selfplay_gym.tasks.abduction:Abduction",
        "induction": "selfplay_gym.tasks.induction:Induction",
    },
)
executors = Registry(
    "executor", "selfplay_gym.executors", {"sandbox": "selfplay_gym.executors.sandbox:SandboxExecutor"}
)


def make_family(name: str, **settings: Any) -> TaskFamily:
    """Build the task family registered under ``name``.

    Raises:
        UnknownId: No such family, or it does not load.
    """
    return cast(TaskFamily, families.load(name)(**settings))
