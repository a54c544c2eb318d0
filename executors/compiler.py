"""Compiles short sources outside the forked child, where the parser would copy a hundred pages of memory.

A process of its own, forked from the server, behind the child's filter (plus reading its own pipe): a source that
crashes, floods or stalls the parser hits nobody. It runs no program; what it answers is marshalled code, which the
server hands on unread and only the child of that job loads. Whatever it cannot or will not compile, the child compiles
itself: so its absence changes no verdict, and a source that is refused is always refused by the child.

Standard library only.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` wraps every call in enums
import marshal
import os
import select
import struct
import sys
import time
from collections.abc import Callable
from types import CodeType

PROGRAM_NAME = "<program>"
LARGEST_SOURCE = 16 * 2**10  # bytes
LARGEST_CODE = 2**18  # nested `finally` doubles code at every level
SLOWEST = 0.02  # seconds of processor time; what takes longer belongs in the child's budget
PATIENCE_SECONDS = 0.5  # on the clock, for an answer: a loaded host must not lose it often
JOBS_A_PROCESS = 2000  # then a new one: interned names are never freed
RECURSION_LIMIT = 900  # below the child's 1000: what compiles here compiles there

SOURCE_FD, CODE_FD = 4, 3  # in the compiling process; the filter lets it write to the second alone
_LENGTH = struct.Struct("<I")

Spawn = Callable[[Callable[[], None], int, int], int]  # act, its source pipe, its code pipe -> process id


class Compiler:
    """The server's side: asks, waits with a deadline, replaces a process that died or served long enough."""

    def __init__(self, spawn: Spawn) -> None:
        self._spawn = spawn
        self._process = 0
        self._served = 0
        self._to = self._from = -1
        self._poll: select.poll = select.poll()

    def compile(self, source: bytes) -> bytes:
        """Return the marshalled code of a source, or nothing: then the child compiles it."""
        if len(source) > LARGEST_SOURCE:
            return b""
        if self._served >= JOBS_A_PROCESS:
            self.end()
        try:
            if not self._process:
                self._start()
            self._served += 1
            os.write(self._to, _LENGTH.pack(len(source)) + source)  # shorter than a pipe holds: never blocks
            return self._answer()
        except (OSError, EOFError, ValueError):
            self.end()
            return b""

    def _start(self) -> None:
        source_end, self._to = os.pipe()
        try:
            self._from, code_end = os.pipe()
            try:
                self._process = self._spawn(lambda: serve(SOURCE_FD, CODE_FD), source_end, code_end)
            finally:
                os.close(code_end)
        finally:
            os.close(source_end)
        self._served = 0
        self._poll = select.poll()
        self._poll.register(self._from, select.POLLIN)

    def _answer(self) -> bytes:
        deadline = time.monotonic() + PATIENCE_SECONDS
        answer = b""
        while len(answer) < _LENGTH.size or len(answer) < _LENGTH.size + _LENGTH.unpack_from(answer)[0]:
            if not self._poll.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
                raise ValueError("too slow")
            part = os.read(self._from, 65536)
            if not part:
                raise EOFError
            answer += part
            if len(answer) > _LENGTH.size + LARGEST_CODE:
                raise ValueError("too long")
        if len(answer) != _LENGTH.size + _LENGTH.unpack_from(answer)[0]:
            raise ValueError("more than was asked for")
        return answer[_LENGTH.size :]

    def cpu_seconds(self) -> float:
        """Return the processor time of the running process, which nobody has waited for yet."""
        try:
            return time.clock_gettime((~self._process << 3) | 2) if self._process else 0.0
        except OSError:  # it has ended
            return 0.0

    def end(self) -> None:
        """End the process, if there is one; the next source starts another."""
        for descriptor in (self._to, self._from):
            if descriptor >= 0:
                os.close(descriptor)
        self._to = self._from = -1
        if self._process:
            try:
                os.kill(self._process, _signal.SIGKILL)
                os.waitpid(self._process, 0)
            except OSError:  # reaped with everyone else
                pass
        self._process = 0


def serve(source_fd: int, code_fd: int) -> None:
    """Be the compiling process: one answer a source, until the pipe closes."""
    sys.setrecursionlimit(RECURSION_LIMIT)
    while request := os.read(source_fd, 2 * LARGEST_SOURCE):
        while len(request) < _LENGTH.size + _LENGTH.unpack_from(request)[0]:
            part = os.read(source_fd, LARGEST_SOURCE)
            if not part:
                return
            request += part
        code = compiled(request[_LENGTH.size :])
        view = memoryview(_LENGTH.pack(len(code)) + code)
        while view:
            view = view[os.write(code_fd, view) :]


def compiled(source: bytes) -> bytes:
    """Return marshalled code that behaves as if compiled in the child, or nothing."""
    begin = time.thread_time()
    try:
        code = compile(source.decode("utf-8", "surrogatepass"), PROGRAM_NAME, "exec", 0, True)
        answer = marshal.dumps(code)
    except Exception:  # the child says what is wrong with it
        return b""
    if time.thread_time() - begin > SLOWEST or len(answer) > LARGEST_CODE or not _keeps_constants(code):
        return b""
    return answer


def _keeps_constants(code: CodeType) -> bool:
    """Return whether every constant is what it was after marshalling."""
    return all(map(_keeps, code.co_consts))


def _keeps(constant: object) -> bool:
    if type(constant) is CodeType:
        return _keeps_constants(constant)
    if type(constant) is tuple:
        return all(map(_keeps, constant))
    if type(constant) is bytes:
        return len(constant) != 1  # there is one object for each; marshal makes another
    if type(constant) is frozenset:  # marshal sorts them, which may give another order
        again = marshal.loads(marshal.dumps(constant))  # noqa: S302 - our own bytes
        return list(constant) == list(again) and all(map(_keeps, constant))
    return True
