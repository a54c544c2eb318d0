"""Names for the parts a user can add: task families, executors and evaluation suites.

A name stands for an import path; nothing is imported until the part is made. Installed packages add theirs through the
entry-point groups ``selfplay_gym.families``, ``selfplay_gym.executors`` and ``selfplay_gym.suites``. A plug-in that
does not load is named and skipped, never fatal to the others: its trouble is one warning, given when names are listed
or something is made, not when this package is imported.
"""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

from selfplay_gym.errors import InvalidConfig, UnknownId
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
        self._troubles: dict[str, str] = {}
        self._reported: set[str] = set()

    def register(self, name: str, path: str) -> None:
        """Add a name, such as ``register("reversal", "my_package.reversal:Reversal")``."""
        if trouble := self._add(name, path):
            warnings.warn(trouble, stacklevel=2)

    def paths(self) -> dict[str, str]:
        """Return every registered import path by name; looks plug-ins up, imports none and says nothing."""
        self._discover()
        return dict(self._paths)

    def names(self) -> list[str]:
        """Return every registered name, sorted."""
        self._discover()
        self._report()
        return sorted(self._paths)

    def working(self) -> list[str]:
        """Return the names that load, sorted. Imports them all; each that fails is one warning."""
        good = []
        for name in self.names():
            try:
                self.load(name)
            except UnknownId as error:
                self._troubles[name] = str(error)
            else:
                good.append(name)
        self._report()
        return good

    def load(self, name: str) -> Any:
        """Return the object registered under ``name``.

        Raises:
            UnknownId: No such name; the message gives the nearest ones. Or its import failed; the message says how.
        """
        self._discover()
        if name not in self._paths:
            self._report()
            raise UnknownId(unknown(self.kind, name, self._paths))
        self._report(but=name)  # the error below says more than a warning would
        module, _, attribute = self._paths[name].partition(":")
        try:
            return getattr(import_module(module), attribute)
        except Exception as error:  # whatever a plug-in raises on import
            why = f"{type(error).__name__}: {error}"
            raise UnknownId(f"{self.kind} {name!r} ({self._paths[name]}) does not load: {why}") from error

    def note(self, name: str, trouble: str) -> None:
        """Keep what is wrong with a plug-in for the next report."""
        self._troubles[name] = trouble

    def _add(self, name: str, path: str) -> str:
        """Register, or return why not."""
        taken = self._paths.setdefault(name, path)
        return "" if taken == path else f"{self.kind} {name!r} is taken by {taken}; {path} is skipped"

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True
        try:
            entries = list(entry_points(group=self.group))
        except Exception as error:  # one package with damaged metadata spoils the look-up for all
            self._troubles[self.group] = f"no plug-in of group {self.group} can be found: {error}"
            return
        for entry in entries:
            if trouble := self._add(entry.name, entry.value):
                self._troubles[f"{entry.name} = {entry.value}"] = trouble
            elif not _may_load(entry.value):
                self._troubles[entry.name] = f"{self.kind} {entry.name!r} does not load: there is no {entry.value}"

    def _report(self, but: str = "") -> None:
        """Warn of each trouble once."""
        for key, trouble in self._troubles.items():
            if key not in self._reported and key != but:
                self._reported.add(key)
                warnings.warn(trouble, stacklevel=3)


def _may_load(path: str) -> bool:
    """Whether an import path has both parts and its top-level package is installed; imports nothing."""
    module, _, attribute = path.partition(":")
    try:
        return bool(attribute) and find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def unknown(kind: str, name: str, known: Iterable[str], listed: Iterable[str] | None = None) -> str:
    """Return the message for a name that is not among those known, of which only some may be worth listing.

    >>> unknown("suite", "cruxevel", ["cruxeval", "nano"])
    "no suite 'cruxevel'; did you mean 'cruxeval'?"
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"no {kind} {name!r}; did you mean {' or '.join(map(repr, near))}?"
    return f"no {kind} {name!r}; there are {', '.join(names if listed is None else sorted(listed)) or 'none'}"


families = Registry(
    "task family",
    "selfplay_gym.families",
    {
        "deduction": "selfplay_gym.tasks.deduction:Deduction",
        "abduction": "selfplay_gym.tasks.abduction:Abduction",
        "induction": "selfplay_gym.tasks.induction:Induction",
        "error": "selfplay_gym.tasks.error_prediction:ErrorPrediction",
    },
)
executors = Registry(
    "executor",
    "selfplay_gym.executors",
    {
        "sandbox": "selfplay_gym.executors.sandbox:SandboxExecutor",
        "ray": "selfplay_gym.executors.ray:RayExecutor",
    },
)


def make_family(name: str, style: str | None = None, compare: str | None = None, **settings: Any) -> TaskFamily:
    """Build the task family registered under ``name``.

    Args:
        name: Of the family.
        style: Prompt style; passed on to families that have styles, the others need not take it.
        compare: When two values are the same; passed on likewise.
        settings: Passed on as they are.

    Raises:
        UnknownId: No such family, or it does not load, or what loads is no task family of that name.
        InvalidConfig: It takes no such setting; the message gives the nearest ones.
    """
    maker = families.load(name)
    known = inspect.signature(maker).parameters
    for setting, value in (("style", style), ("compare", compare)):
        if value is not None and setting in known:
            settings[setting] = value
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        for setting in settings.keys() - known.keys():
            raise InvalidConfig(unknown(f"setting of task family {name!r}", setting, known))
    family = maker(**settings)
    if not isinstance(family, TaskFamily):
        raise UnknownId(f"{families.paths()[name]} is no task family; it needs name, solve_prompt, check and judge")
    if family.name != name:
        raise UnknownId(f"task family {name!r} calls itself {family.name!r}; give it one name")
    return family
