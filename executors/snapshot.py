"""Puts a stopped process back as it was: its memory, its registers, its signal mask.

A child that is put back after each job costs a fraction of a new one. The kernel protects its memory against writing
(userfaultfd, asynchronous mode), lets each write through and remembers the page; `PAGEMAP_SCAN` lists those pages and
`process_vm_writev` copies them back. Pages once written stay unprotected for a while and are copied back every time:
programs write to much the same pages, and copying one costs less than the fault that would tell.

What the pages held stands in a *twin*, a fork of the process that never runs again and shares its memory until a
program writes; from there a page comes to this process when it is first needed. That keeps the copy small.

Nothing here believes the process: it is stopped by ptrace, and what is put back is read from the server's own memory.
A program may have gained native code there, so `restore` looks for all it could have done to mappings and signals, and
gives up where it finds anything: new or moved memory is not watched, memory that is gone is missing from the sum. That
sum could be made right only by growing what is watched, so the filter must forbid `mremap`; and beyond that whatever
the kernel keeps for a process beside memory and registers (handlers, descriptors, protection, advice). The process
itself must stop its timer before each job.

Needs Linux 6.7, and ptrace of one's own child. Standard library only.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

# Numbers by machine: system calls `userfaultfd` and `clone`, and the register set of the floating-point registers.
_MACHINES = {"x86_64": (323, 56, 0x202), "aarch64": (282, 220, 2)}
_CLONE_PARENT, _SIGCHLD = 0x8000, 17
_PIDFD_GETFD = 438
_USER_MODE_ONLY, _O_CLOEXEC = 1, 0o2000000
_UFFD_API, _UFFD_REGISTER, _UFFD_PROTECT = 0xC018AA3F, 0xC020AA00, 0xC018AA06
_UFFD_VERSION, _UNPOPULATED_TOO, _ASYNCHRONOUS, _PROTECT = 0xAA, 1 << 13, 1 << 15, 2
_PAGEMAP_SCAN, _WATCHED, _WRITTEN, _PRESENT, _SWAPPED = 0xC0606610, 1, 2, 8, 16
_SEIZE, _INTERRUPT, _DETACH, _SET_REGISTERS, _GET_REGISTERS = 0x4206, 0x4207, 17, 0x4205, 0x4204
_GET_SIGNAL_MASK, _SET_SIGNAL_MASK, _PEEK_SIGNALS, _EXIT_WITH_TRACER = 0x420A, 0x420B, 0x4209, 0x100000
_GENERAL = 1
_WALL = 0x40000000
_PR_SET_DUMPABLE = 4
_DONT_FORK = 10
_REGISTER_BYTES = 16384
_PAGE: int = os.sysconf("SC_PAGESIZE")
_MOST_RANGES = 4096
_CHUNK = 2**16  # bytes compared at once
_TOPS: tuple[int, ...] = tuple(2**bits - less for bits in (56, 52, 48, 47, 42, 39) for less in (0, _PAGE))
_MOST_UNWATCHED = 2**20  # bytes, read each time
_MOST_VECTORS = 1024  # the kernel's IOV_MAX

# When to protect all pages anew: else every page that one odd program wrote would be copied for ever.
_MOST_PAGES = 2048
_MOST_RESTORES = 256

_libc = ctypes.CDLL(None, use_errno=True)
for _function in (_libc.syscall, _libc.ptrace, _libc.process_vm_readv, _libc.process_vm_writev):
    _function.restype = ctypes.c_long
_libc.mmap.restype = ctypes.c_void_p


class _Vector(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Mapping(NamedTuple):
    """A range of memory that the process may write, and where its copy is in ours."""

    start: int
    end: int
    copy: int


class _Plan(NamedTuple):
    """One call that copies ranges of ours to ranges of the process's memory."""

    vectors: tuple[object, ...]  # starts and lengths here, how many; and the same there
    size: int


class SnapshotLost(Exception):
    """The process cannot be put back: it changed its mappings, wrote too much, or has ended."""


def open_own(proc: int) -> tuple[int, ...]:
    """Open what a `Snapshot` of the calling process needs; return the descriptors.

    Args:
        proc: Descriptor of a ``/proc`` directory in which this process is ``self``.

    Raises:
        OSError: The kernel lacks something, or refuses it.
    """
    if os.uname().machine not in _MACHINES:
        raise OSError(f"no snapshots on {os.uname().machine}")
    _checked(_libc.prctl(_PR_SET_DUMPABLE, *map(ctypes.c_ulong, (1, 0, 0, 0))), "dumpable")  # or no ptrace
    number, flags = _MACHINES[os.uname().machine][0], _O_CLOEXEC | _USER_MODE_ONLY
    userfault = _checked(_libc.syscall(ctypes.c_long(number), ctypes.c_long(flags)), "userfaultfd")
    features = struct.pack("<QQQ", _UFFD_VERSION, _UNPOPULATED_TOO | _ASYNCHRONOUS, 0)
    _ioctl(userfault, _UFFD_API, ctypes.create_string_buffer(features, len(features)))
    return (userfault, *(os.open(f"self/{name}", os.O_RDONLY, dir_fd=proc) for name in ("pagemap", "maps", "statm")))


def fork_twin() -> int:
    """Fork a child of this process's parent; return its number here, and 0 there.

    Raises:
        OSError: The kernel refuses.
    """
    numbers = (_MACHINES[os.uname().machine][1], _CLONE_PARENT | _SIGCHLD, 0, 0, 0, 0)
    return _checked(_libc.syscall(*map(ctypes.c_long, numbers)), "clone")


class Snapshot:
    """One child of this process as it was at `take`; it is stopped then, and after every `restore`.

    Attributes:
        has_ended: Whether the process was waited for.

    Args:
        process: The child, waiting for its first job.
        twin: What `fork_twin` made there: it has done nothing since, or little.
        proc: Descriptor of a ``/proc`` that shows both.
        descriptors: What `open_own` returned there; it may close them once this exists.

    Raises:
        OSError: The kernel refuses something, or the child has ended.
    """

    def __init__(self, process: int, twin: int, proc: int, descriptors: tuple[int, ...]) -> None:
        self._process = process
        self.has_ended = False
        self._owned: list[int] = []
        self._memory = (0, 0)  # where the copy is, and its bytes
        self._copied = bytearray()  # 1 for every page that is there; the others are in the twin
        self._mappings: list[_Mapping] = []
        self._last_changed = b""
        self._plans: list[_Plan] = []
        self._restores = self._pages = 0
        self._top = 0  # of all memory that there could be
        # Buffers that the kernel reads and writes.
        self._request = ctypes.create_string_buffer(96)
        self._ranges = ctypes.create_string_buffer(24 * _MOST_RANGES)
        self._signal_mask = ctypes.create_string_buffer(8)
        self._peek, self._signal = ctypes.create_string_buffer(16), ctypes.create_string_buffer(128)
        handle = os.pidfd_open(process)
        try:
            for number in (process, twin):
                self._owned.append(os.open(f"{number}/mem", os.O_RDONLY, dir_fd=proc))
            for descriptor in descriptors:
                arguments = map(ctypes.c_long, (_PIDFD_GETFD, handle, descriptor, 0))
                self._owned.append(_checked(_libc.syscall(*arguments), "pidfd_getfd"))
        except OSError:
            self.close()
            raise
        finally:
            os.close(handle)
        self._own_memory, self._twin_memory, *others = self._owned
        self._userfault, self._pagemap, self._maps, self._sizes = others

    def take(self) -> None:
        """Stop the process and remember it as it is.

        Raises:
            OSError, SnapshotLost: The kernel refuses something, or the process has ended.
        """
        self.stop()
        ranges = _ranges_of(self._read_layout())
        self._top = self._find_top()
        self._mappings = self._place_copies(ranges)
        self._starts = [mapping.start for mapping in self._mappings]
        for mapping in self._mappings:
            self._on_range(_UFFD_REGISTER, mapping.start, mapping.end, _PROTECT, 0)
        touched = [each[:2] for each in struct.iter_unpack("<3Q", self._scan(_PRESENT | _SWAPPED, all_of=_WATCHED))]
        touched += [(range_.start, range_.end) for range_ in ranges if range_.is_file and b"w" in range_.access]
        for start, end in touched:  # all else is zero
            for part, length in self._parts(start, end):
                self._copy_what_differs(part, part + length)
        self._keep_registers()
        self._protect_all()
        for range_ in ranges:
            if b"w" not in range_.access:
                self._watch_constant(range_.start, range_.end)
        self._unwatched = _Unwatched(self._process, self._scan(any_of=_WATCHED | _WRITTEN, inverted=_WATCHED))
        self._size = self._read_size()

    def _watch_constant(self, start: int, end: int) -> None:
        """Watch memory that the process cannot write, so that it shows if other memory takes its place."""
        # What the kernel refuses is either listed as not watched, or its own and never listed: other memory would be.
        with contextlib.suppress(OSError):
            self._on_range(_UFFD_REGISTER, start, end, _PROTECT, 0)
            self._on_range(_UFFD_PROTECT, start, end, 1)

    def _keep_registers(self) -> None:
        self._registers = [_RegisterSet(which) for which in (_GENERAL, _MACHINES[os.uname().machine][2])]
        for registers in self._registers:
            _ptrace(_GET_REGISTERS, self._process, registers.which, registers.address)
        _ptrace(_GET_SIGNAL_MASK, self._process, 8, ctypes.addressof(self._signal_mask))

    def resume(self) -> None:
        """Let the stopped process run."""
        _ptrace(_DETACH, self._process)

    def stop(self) -> None:
        """Stop the running process.

        Raises:
            SnapshotLost: It has ended; it may have been waited for.
        """
        try:
            _ptrace(_SEIZE, self._process, 0, _EXIT_WITH_TRACER)
            _ptrace(_INTERRUPT, self._process)
        except OSError as error:
            raise SnapshotLost("it has ended") from error
        if not os.WIFSTOPPED(os.waitpid(self._process, _WALL)[1]):
            self.has_ended = True
            raise SnapshotLost("it has ended")

    def restore(self) -> None:
        """Put the stopped process back.

        Raises:
            SnapshotLost: It cannot be; end it.
        """
        try:
            self._restore()
        except OSError as error:
            raise SnapshotLost(str(error)) from error

    def _restore(self) -> None:
        if self._read_size() != self._size:
            raise SnapshotLost("its memory grew or shrank")
        if not self._unwatched.is_unchanged():
            raise SnapshotLost("memory was replaced")
        self._check_no_signals()
        changed = self._scan(any_of=_WATCHED | _WRITTEN, inverted=_WATCHED)
        if changed != self._last_changed:
            self._plans = self._plans_for(changed)
            self._pages = sum(plan.size for plan in self._plans) // _PAGE
            self._last_changed = changed
        for plan in self._plans:
            if _libc.process_vm_writev(self._process, *plan.vectors, ctypes.c_ulong(0)) != plan.size:
                raise SnapshotLost("its memory cannot be written")
        for registers in self._registers:
            _ptrace(_SET_REGISTERS, self._process, registers.which, registers.address)
        _ptrace(_SET_SIGNAL_MASK, self._process, 8, ctypes.addressof(self._signal_mask))
        self._restores += 1
        if self._restores >= _MOST_RESTORES or self._pages > _MOST_PAGES:
            self._protect_all()

    def _check_no_signals(self) -> None:
        """Look for signals that wait for the next job."""
        for shared in (0, 1):
            request = struct.pack("<QIi", 0, shared, 1)
            ctypes.memmove(self._peek, request, len(request))
            addresses = ctypes.addressof(self._peek), ctypes.addressof(self._signal)
            if _ptrace(_PEEK_SIGNALS, self._process, *addresses):
                raise SnapshotLost("it left a signal behind")

    def close(self) -> None:
        """Give back what this holds; the process must have ended or be about to."""
        for descriptor in self._owned:
            os.close(descriptor)
        self._owned = []
        if self._memory[1]:
            _libc.munmap(*map(ctypes.c_void_p, self._memory))
        self._memory = (0, 0)

    def _read_size(self) -> bytes:
        """Return how many pages all mappings have together, and those that may be written, in decimals."""
        fields = os.pread(self._sizes, 128, 0).split()
        return fields[0] + b" " + fields[5]

    def _read_layout(self) -> bytes:
        """Return the process's list of mappings, as the kernel writes it."""
        text, at = b"", 0
        while part := os.pread(self._maps, 2**16, at):
            text += part
            at += len(part)
        return text

    def _place_copies(self, found: list[_Range]) -> list[_Mapping]:
        """Return the mappings that the process may write, each with its place in one block that no fork inherits."""
        writable = [range_ for range_ in found if b"w" in range_.access]
        if any(b"s" in range_.access for range_ in writable):
            raise SnapshotLost("it shares memory that it may write")
        total = sum(range_.end - range_.start for range_ in writable)
        block = _libc.mmap(None, ctypes.c_size_t(total), 3, 0x22, -1, ctypes.c_long(0))
        if block is None or block == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "mmap")
        self._memory = (block, total)
        _checked(_libc.madvise(ctypes.c_void_p(block), ctypes.c_size_t(total), _DONT_FORK), "madvise")
        self._copied = bytearray(b"\1") * (total // _PAGE)  # as long as all is zero here
        mappings = []
        for range_ in writable:
            mappings.append(_Mapping(range_.start, range_.end, block))
            block += range_.end - range_.start
        return mappings

    def _copy_what_differs(self, start: int, end: int) -> None:
        """Copy the pages that the twin does not have as they are; remember the others as being there."""
        mapping = self._mapping_at(start)
        for at in range(start, end, _CHUNK):
            size = min(_CHUNK, end - at)
            mine, other = (os.pread(memory, size, at) for memory in (self._own_memory, self._twin_memory))
            alike = mine == other
            for offset in range(0, size, _PAGE):
                place = mapping.copy + at + offset - mapping.start
                page = mine[offset : offset + _PAGE]
                same = alike or page == other[offset : offset + _PAGE]
                self._copied[(place - self._memory[0]) // _PAGE] = not same
                if not same:
                    ctypes.memmove(place, page, _PAGE)

    def _fetch(self, place: int, start: int, length: int) -> None:
        """Have the copies of these pages, whose place is given, come from the twin if they are still there."""
        first = (place - self._memory[0]) // _PAGE
        last = first + length // _PAGE
        while (missing := self._copied.find(0, first, last)) >= 0:
            found = self._copied.find(1, missing, last)
            count = (found if found >= 0 else last) - missing
            begin, size = (missing - first) * _PAGE, count * _PAGE
            # Not by `process_vm_readv`, which would have the kernel give the twin pages of its own.
            if (
                os.preadv(self._twin_memory, [(ctypes.c_char * size).from_address(place + begin)], start + begin)
                != size
            ):
                raise SnapshotLost("its twin cannot be read")
            self._copied[missing : missing + count] = b"\1" * count
            first, place, start = missing + count, place + begin + size, start + begin + size

    def _protect_all(self) -> None:
        for mapping in self._mappings:
            self._on_range(_UFFD_PROTECT, mapping.start, mapping.end, 1)
        self._restores = self._pages = 0
        self._last_changed = b""
        self._plans = []

    def _on_range(self, request: int, start: int, end: int, *numbers: int) -> None:
        argument = struct.pack(f"<{2 + len(numbers)}Q", start, end - start, *numbers)
        _ioctl(self._userfault, request, ctypes.create_string_buffer(argument, len(argument)))

    def _find_top(self) -> int:
        """Return the end of all that a process here could map, which depends on machine and kernel."""
        for top in _TOPS:
            self._top = top
            with contextlib.suppress(OSError):
                self._scan(_PRESENT, all_of=_WATCHED)  # nothing is, yet
                return top
        raise SnapshotLost("the end of memory is not known")

    def _scan(self, any_of: int, all_of: int = 0, inverted: int = 0) -> bytes:
        """Return the ranges whose pages have these properties, and whether they are watched, as the kernel lists them.

        Properties that are ``inverted`` count where a page lacks them.
        """
        limits = (0, self._top, 0, ctypes.addressof(self._ranges), _MOST_RANGES)
        request = struct.pack("<12Q", 96, 0, *limits, 0, inverted, all_of, any_of, _WATCHED)
        ctypes.memmove(self._request, request, len(request))
        count = _ioctl(self._pagemap, _PAGEMAP_SCAN, self._request)
        if count >= _MOST_RANGES:
            raise SnapshotLost("too many ranges")
        return ctypes.string_at(self._ranges, 24 * count)

    def _plans_for(self, listed: bytes) -> list[_Plan]:
        """Prepare the copying of these ranges, in as many calls as the kernel needs."""
        ours: list[int] = []  # start and length, in turn, as the kernel takes them
        theirs: list[int] = []
        for start, end, kind in struct.iter_unpack("<3Q", listed):
            if not kind & _WATCHED:
                if (start, end) in self._unwatched.ranges:
                    continue
                raise SnapshotLost("there is new memory")
            for part, length in self._parts(start, end):
                mapping = self._mapping_at(part)
                place = mapping.copy + part - mapping.start
                self._fetch(place, part, length)
                ours += (place, length)
                theirs += (part, length)
        steps = range(0, len(ours), 2 * _MOST_VECTORS)
        return [_plan(ours[at : at + 2 * _MOST_VECTORS], theirs[at : at + 2 * _MOST_VECTORS]) for at in steps]

    def _parts(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield starts and lengths by mapping: the kernel joins ranges of neighbours."""
        while start < end:
            length = min(end, self._mapping_at(start).end) - start
            yield start, length
            start += length

    def _mapping_at(self, address: int) -> _Mapping:
        mapping = self._mappings[max(0, bisect.bisect_right(self._starts, address) - 1)]
        if not mapping.start <= address < mapping.end:
            raise SnapshotLost("there was nothing before")
        return mapping


def _plan(ours: list[int], theirs: list[int]) -> _Plan:
    here, there = (ctypes.create_string_buffer(struct.pack(f"<{len(side)}Q", *side)) for side in (ours, theirs))
    count = ctypes.c_ulong(len(ours) // 2)
    return _Plan((here, count, there, count), sum(ours[1::2]))


class _Unwatched:
    """The little constant memory that the kernel refuses to watch, such as files that are mapped shared.

    Attributes:
        ranges: Their starts and ends.

    Args:
        process: Stopped.
        listed: As `Snapshot._scan` lists it.

    Raises:
        SnapshotLost: It is not to be read, or too much.
    """

    def __init__(self, process: int, listed: bytes) -> None:
        self._process = process
        self.ranges = {(start, end) for start, end, _ in struct.iter_unpack("<3Q", listed)}
        self._size = sum(end - start for start, end in self.ranges)
        if self._size > _MOST_UNWATCHED or len(self.ranges) > _MOST_VECTORS:
            raise SnapshotLost("too much memory that cannot be watched")
        self._buffer = ctypes.create_string_buffer(max(1, self._size))
        self._ours = _Vector(ctypes.addressof(self._buffer), self._size)
        self._theirs = (_Vector * len(self.ranges))(*(_Vector(start, end - start) for start, end in self.ranges))
        self._content = self._read()

    def _read(self) -> bytes:
        vectors = (ctypes.byref(self._ours), ctypes.c_ulong(1), self._theirs, ctypes.c_ulong(len(self.ranges)))
        if _libc.process_vm_readv(self._process, *vectors, ctypes.c_ulong(0)) != self._size:
            raise SnapshotLost("some of its memory cannot be read")
        return self._buffer.raw

    def is_unchanged(self) -> bool:
        """Return whether the same stands there as at first."""
        return self._read() == self._content


class _Range(NamedTuple):
    start: int
    end: int
    access: bytes  # such as b"rw-p"
    is_file: bool


def _ranges_of(layout: bytes) -> list[_Range]:
    """Return every mapping, but for the page that the kernel maps for all."""
    ranges = []
    for line in layout.splitlines():
        place, access, _, _, inode, *_ = line.split(None, 5)
        start, end = (int(word, 16) for word in place.split(b"-"))
        if start < 2**63:
            ranges.append(_Range(start, end, access, inode != b"0"))
    return ranges


class _RegisterSet:
    def __init__(self, which: int) -> None:
        self.which = which
        self._values = ctypes.create_string_buffer(_REGISTER_BYTES)
        self._vector = _Vector(ctypes.addressof(self._values), _REGISTER_BYTES)
        self.address = ctypes.addressof(self._vector)  # the kernel writes the true length there


def _ptrace(request: int, process: int, address: int = 0, data: int = 0) -> int:
    arguments = ctypes.c_long(request), ctypes.c_long(process), ctypes.c_void_p(address), ctypes.c_void_p(data)
    return _checked(_libc.ptrace(*arguments), "ptrace")


def _ioctl(descriptor: int, request: int, argument: ctypes.Array[ctypes.c_char]) -> int:
    return _checked(_libc.ioctl(descriptor, ctypes.c_ulong(request), argument), f"ioctl {request:#x}")


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return int(result)
