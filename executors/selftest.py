"""Sees every wall of a tier hold, from inside, before the first job.

Runs in the server alone. Standard library only.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` wraps every call in enums
import ctypes
import marshal
import os
from collections.abc import Callable
from typing import Any

from selfplay_gym.executors import walls
from selfplay_gym.executors.children import Children

NO_WALLS = ("not_root", "kept_children")  # facts that a tier does without
_KEPT_ROUNDS = 3
_exit = os._exit

# Leaves marks where the next job would find them: in a module, among the builtins, on the heap.
_LEAVES_MARKS = b"""
import math, builtins
def f():
    seen = getattr(math, "seen", 0) + getattr(builtins, "seen", 0)
    math.seen = builtins.seen = 1
    math.hoard = [[i] for i in range(2000)]
    return seen
"""


class WallMissing(Exception):
    """A wall that this tier promises does not hold, or cannot be built here."""


def check_walls(children: Children, tier: str, filtered: bool) -> dict[str, bool]:
    """Return every wall by name, and whether it was seen to hold.

    Raises:
        WallMissing: One that the tier promises does not.
    """
    facts = {"memory": children.probe(_probe_memory) == 0}
    if filtered:
        held = children.probe(_probe_calls)
        for bit, name in enumerate(("no_files", "no_network", "no_foreign_write", "no_signals", "no_exec_memory")):
            facts[name] = os.WIFEXITED(held) and bool(os.WEXITSTATUS(held) >> bit & 1)
        forked = children.probe(_probe_fork)
        facts["no_fork"] = os.WIFSIGNALED(forked) and os.WTERMSIG(forked) == _signal.SIGSYS
        facts["filter"] = facts["no_fork"]
    if tier == "full":
        facts["own_processes"] = os.getpid() == 1
        facts["empty_root"] = os.listdir("/") == []  # noqa: PTH208
        facts["no_capabilities"] = _refused(lambda: os.chroot("/"))
    missing = [name for name, held in facts.items() if not held]
    if missing:
        raise WallMissing(f"tier {tier}: these walls do not hold: {', '.join(missing)}")
    return facts


def check_kept(children: Children, child_side: Any) -> bool:
    """Return whether one child serves several jobs without a trace of those before; if not, keep none from here on."""
    if children.keeps:
        job = (_LEAVES_MARKS, True, "f", (marshal.dumps(([], {})),), (0,), True, False, 5.0, 5.0, 2**28, 4096)
        message = marshal.dumps([job])
        answers = [children.run([child_side.Job(*job)], message)[0] for _ in range(_KEPT_ROUNDS)]
        clean = all(len(frames) == 1 and frames[0].endswith(b"0") for frames in answers)
        if not clean:
            children.refusal = "a job left a trace"
        children.keeps = clean and children.kept_served >= _KEPT_ROUNDS
    if not children.keeps:
        children.end_kept()
    return children.keeps


def _refused(act: Callable[[], object]) -> bool:
    try:
        act()
    except OSError:
        return True
    return False


def _probe_memory() -> None:
    try:
        bytearray(256 * 2**20)
    except MemoryError:
        return
    _exit(1)


def _probe_calls() -> None:
    """Exit with one bit a refusal."""
    libc = walls._libc
    held = (
        _refused(lambda: os.open("/", os.O_RDONLY)),
        libc.socket(1, 1, 0) == -1,
        _refused(lambda: os.write(0, b"x")),
        _refused(lambda: os.kill(1, 0)),
        _refused_executable_memory(),
    )
    _exit(sum(1 << bit for bit, refused in enumerate(held) if refused))


def _refused_executable_memory() -> bool:
    libc = walls._libc
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, ctypes.c_size_t(4096), 7, 0x22, -1, ctypes.c_long(0))
    return address is None or address == ctypes.c_void_p(-1).value


def _probe_fork() -> None:
    os.fork()
