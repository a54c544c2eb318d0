"""The trusted process inside the sandbox: takes jobs from the trainer, has children run them, reports how they ended.

Started by `selfplay_gym.executors.sandbox` as a fresh interpreter that sees the standard library alone, so it inherits
nothing of the trainer. It first imports all that programs may import, then walls itself in, then splits in two: the
*keeper*, which outlives nobody and ends everything when the trainer ends, and the *server*, which serves jobs. In tier
``full`` the server is process 1 of its namespaces and its file system is one empty directory.

A child is never believed: the server counts frames itself, knows the clock and the exit status itself, and looks at no
payload. Standard library only.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` wraps every call in enums
import collections
import gc
import marshal
import os
import select
import struct
import sys
from typing import Any

from selfplay_gym.executors import modules, seccomp, walls
from selfplay_gym.executors.children import Children, Filters
from selfplay_gym.executors.compiler import compiled
from selfplay_gym.executors.selftest import WallMissing, check_kept, check_walls

LENGTH, COUNT = struct.Struct("<I"), struct.Struct("<I")
CONTROL_FD = 3


def main() -> None:
    """Serve the inherited socket until it closes.

    Arguments: tier, trainer's process id, literals file, two folders for the bootstrap, size of the server, the folder
    of further packages or nothing, ``kept`` or ``fresh`` children, number of the socket.
    """
    tier, trainer, literals_file = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    size, packages, keeps, control = sys.argv[6], sys.argv[7], sys.argv[8] == "kept", int(sys.argv[9])
    if control != CONTROL_FD:
        os.dup2(control, CONTROL_FD)
        os.close(control)
    try:
        child_side, children = _build(tier, trainer, literals_file, size, packages, keeps)
    except (WallMissing, OSError) as error:
        _send(b"F" + str(error).encode("utf-8", "backslashreplace"))
        os._exit(1)
    _serve(child_side, children)
    os._exit(0)


def _build(tier: str, trainer: int, literals_file: str, size: str, packages: str, keeps: bool) -> tuple[Any, Children]:
    """Import, warm up, wall in, split; return in the server alone, with the runner module."""
    child_side = modules.load_child_side(literals_file, size == "light")
    modules.preload(size, packages)
    trainer_handle = _process_handle(trainer)
    if os.getppid() != trainer:
        os._exit(0)  # the trainer ended while this process started
    facts: dict[str, bool] = {"not_root": walls.leave_root()}
    if tier == "full":
        walls.enter_namespaces()
    alive, alive_keeper = os.pipe()
    server_id = os.fork()
    if server_id:
        os.close(alive)
        _keep(server_id, trainer, trainer_handle, alive_keeper)
    walls.die_with_parent()
    os.close(alive_keeper)
    if select.select([alive], [], [], 0)[0]:
        os._exit(0)  # the keeper ended before it could be watched
    os.close(alive)
    if trainer_handle is not None:
        os.close(trainer_handle)
    proc = walls.open_proc(own=tier == "full") if keeps and tier != "process_only" else None
    base = walls.address_space()
    if tier == "full":
        walls.empty_root()
    walls.drop_capabilities()
    walls.limit_server()
    walls.die_with_parent()  # changing credentials may have cleared it
    walls.keep_freed_memory()
    filters = _filters(tier)
    children = Children(child_side, tier, filters, base, proc)
    modules.forget_modules()
    _warm_up(child_side, size)
    child_side.learn_modules()
    child_side.reset()  # the state in which every child begins its first run
    children.learn_known_answer()
    gc.collect()
    walls.give_back_memory()
    gc.freeze()
    gc.disable()
    facts |= check_walls(children, tier, filters.child is not None)
    facts["kept_children"] = check_kept(children, child_side)
    _send(b"H" + marshal.dumps((facts, "" if children.keeps else children.refusal)))
    return child_side, children


def _filters(tier: str) -> Filters:
    if tier == "process_only":
        return Filters(None, None, None)
    table = seccomp.native_table()
    if table is None:
        raise WallMissing(f"no system-call filter for {os.uname().machine}")
    child, compiler, kept = (seccomp.Filter(table, role) for role in seccomp.Role)
    return Filters(child, compiler, kept)


def _process_handle(process: int) -> int | None:
    try:
        return os.pidfd_open(process)
    except OSError:  # an old kernel, or refused inside a container
        return None


class _Stop(Exception):
    pass


def _keep(server: int, trainer: int, trainer_handle: int | None, alive: int) -> None:
    """Wait for the end of the server, of the trainer, or of patience (SIGTERM); never return."""

    def stop(number: int, frame: object) -> None:
        raise _Stop

    status = 1
    try:
        _signal.signal(_signal.SIGTERM, stop)
        os.closerange(0, CONTROL_FD + 1)
        server_handle = _process_handle(server)
        watched = [handle for handle in (trainer_handle, server_handle) if handle is not None]
        while True:
            select.select(watched, [], [], 10.0 if len(watched) == 2 else 0.2)
            if os.waitpid(server, os.WNOHANG)[0]:
                os._exit(0)
            # Without a handle on the trainer its end shows as a new parent.
            if os.getppid() != trainer:
                break
    except _Stop:
        status = 0
    finally:
        _signal.signal(_signal.SIGTERM, _signal.SIG_IGN)
        try:
            os.kill(server, _signal.SIGKILL)
            os.waitpid(server, 0)
        except OSError:
            pass
        os._exit(status)


def _send(body: bytes) -> None:
    view = memoryview(LENGTH.pack(len(body)) + body)
    while view:
        view = view[os.write(CONTROL_FD, view) :]


def _receive() -> bytes | None:
    header = _read_exactly(LENGTH.size)
    return None if header is None else _read_exactly(LENGTH.unpack(header)[0])


def _read_exactly(count: int) -> bytes | None:
    parts = []
    while count:
        part = os.read(CONTROL_FD, min(count, 2**20))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _serve(child_side: Any, children: Children) -> None:
    """Answer messages until the trainer closes the socket."""
    while (message := _receive()) is not None:
        if message[:1] == b"U":
            _send(b"U" + struct.pack("<d", children.cpu_seconds()))
            continue
        _send(_answer(message[1:], child_side, children))


def _answer(fields: bytes, child_side: Any, children: Children) -> bytes:
    """Run jobs. Apart from the loop above, whose frame is in the children that follow: they must not find an answer."""
    jobs = [child_side.Job(*given) for given in marshal.loads(fields)]  # noqa: S302 - from the trusted side
    answer = [b"A"]
    for frames in children.run(jobs, fields):
        answer.append(COUNT.pack(len(frames)))
        answer += frames
    return b"".join(answer)


def _warm_up(child_side: Any, size: str) -> None:
    """Run programs through every path once, so that children find the interpreter warm."""
    inputs = tuple(
        marshal.dumps((list(values), {}))
        for values in (("The quick brown fox", [3, 1, 2]), ("a", [1.5, -2], {"k": {1, 2}}))
    )
    limits = (5.0, 5.0, 2**28, 4096)
    programs = [modules.WARM_UP, "def f(x): return 1 /", "def f(x, y): raise ValueError(x)"]
    if size != "light":
        programs.append(modules.WARM_UP_FULL)
    plans: list[tuple[str, tuple[int, ...], bytes]] = []
    for program in programs:
        plans += [(program, (0, 1) * 5, code) for code in (b"", compiled(program.encode()))]
    if size == "maths":
        plans.append((modules.WARM_UP_MATHS, (0,), b""))
    for program, runs, code in plans:
        job = child_side.Job(program.encode(), True, "f", inputs, runs, True, False, *limits, False, code)
        collections.deque(child_side.frames(job, 0), maxlen=0)
