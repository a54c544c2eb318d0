"""The system-call filter of the process that runs untrusted code, assembled by hand.

Only what a computation needs is allowed: memory, time, its own signals, and writing to the one result pipe. Ordinary
attempts at anything else fail with `PermissionError`; the calls that only an attack makes kill the process.

Assembled here, rather than through libseccomp, because the sandbox must not need a package of the host. Standard
library only: the server, which sees no installed package, loads this file.
"""

from __future__ import annotations

import ctypes
import os
import struct
from enum import Enum
from typing import NamedTuple

RESULT_FD = 3
JOB_FD = 4  # of a child that is kept from job to job
JOB_BYTES = 2**16 + 1  # it reads by this number alone: who guesses less is refused, as in any child

_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000 | 1  # SECCOMP_RET_ERRNO with EPERM
_KILL = 0x80000000  # SECCOMP_RET_KILL_PROCESS

# Offsets into struct seccomp_data (little-endian halves of the 64-bit arguments).
_NUMBER, _ARCH = 0, 4
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_PROT_EXEC, _MAP_ANONYMOUS = 0x4, 0x20
_ITIMER_PROF = 2


class Table(NamedTuple):
    """System-call numbers of one architecture.

    Attributes:
        audit: The kernel's name for the architecture (``AUDIT_ARCH_*``).
        read: Refused, except to the process that compiles; a kept child may read its job pipe.
        write: Allowed to the result pipe alone.
        mmap: Allowed for anonymous memory that cannot be executed.
        mprotect: Allowed without execution; deadly to a kept child.
        setitimer: Allowed; to a kept child for the timer of processor time alone.
        allowed: Always allowed.
        lasting: Allowed, but deadly to a kept child, since putting back its memory does not undo them.
        deadly: Inclusive ranges that kill the process.
        foreign: First number that belongs to another calling convention, 0 if there is none.
    """

    audit: int
    read: int
    write: int
    mmap: int
    mprotect: int
    setitimer: int
    allowed: tuple[int, ...]
    lasting: tuple[int, ...]
    deadly: tuple[tuple[int, int], ...]
    foreign: int = 0


X86_64 = Table(
    audit=0xC000003E,
    read=0,
    write=1,
    mmap=9,
    mprotect=10,
    setitimer=38,
    allowed=(
        11,  # munmap
        12,  # brk
        15,  # rt_sigreturn
        24,  # sched_yield
        35,  # nanosleep
        36,  # getitimer
        60,  # exit
        96,  # gettimeofday
        98,  # getrusage
        100,  # times
        201,  # time
        202,  # futex
        228,  # clock_gettime
        229,  # clock_getres
        230,  # clock_nanosleep
        231,  # exit_group
    ),
    lasting=(
        28,  # madvise
        13,  # rt_sigaction
        14,  # rt_sigprocmask
        131,  # sigaltstack
        334,  # rseq
        219,  # restart_syscall: goes on with a sleep that an earlier job began
    ),
    deadly=(
        (56, 59),  # clone fork vfork execve
        (101, 101),  # ptrace
        (135, 135),  # personality
        (155, 155),  # pivot_root
        (161, 161),  # chroot
        (165, 169),  # mount umount2 swapon swapoff reboot
        (175, 176),  # init_module delete_module
        (246, 246),  # kexec_load
        (248, 250),  # add_key request_key keyctl
        (272, 272),  # unshare
        (298, 298),  # perf_event_open
        (308, 308),  # setns
        (310, 311),  # process_vm_readv process_vm_writev
        (313, 313),  # finit_module
        (320, 323),  # kexec_file_load bpf execveat userfaultfd
        (425, 427),  # io_uring_*
        (435, 435),  # clone3
    ),
    foreign=0x40000000,  # x32
)

AARCH64 = Table(
    audit=0xC00000B7,
    read=63,
    write=64,
    mmap=222,
    mprotect=226,
    setitimer=103,
    allowed=(
        93,  # exit
        94,  # exit_group
        98,  # futex
        101,  # nanosleep
        102,  # getitimer
        113,  # clock_gettime
        114,  # clock_getres
        115,  # clock_nanosleep
        124,  # sched_yield
        139,  # rt_sigreturn
        153,  # times
        165,  # getrusage
        169,  # gettimeofday
        214,  # brk
        215,  # munmap
    ),
    lasting=(
        233,  # madvise
        134,  # rt_sigaction
        135,  # rt_sigprocmask
        132,  # sigaltstack
        293,  # rseq
        128,  # restart_syscall
    ),
    deadly=(
        (39, 41),  # umount2 mount pivot_root
        (51, 51),  # chroot
        (92, 92),  # personality
        (97, 97),  # unshare
        (104, 106),  # kexec_load init_module delete_module
        (117, 117),  # ptrace
        (142, 142),  # reboot
        (217, 221),  # add_key request_key keyctl clone execve
        (224, 225),  # swapon swapoff
        (241, 241),  # perf_event_open
        (268, 268),  # setns
        (270, 271),  # process_vm_readv process_vm_writev
        (273, 273),  # finit_module
        (280, 282),  # bpf execveat userfaultfd
        (294, 294),  # kexec_file_load
        (425, 427),  # io_uring_*
        (435, 435),  # clone3
    ),
)

TABLES = {"x86_64": X86_64, "aarch64": AARCH64}


Line = tuple[int, int, int, int]  # code, lines to skip if true, if false, operand


class Role(Enum):
    """Whom a filter is for."""

    CHILD = "child"
    COMPILER = "compiler"
    KEPT = "kept"


def assemble(table: Table, role: Role = Role.CHILD) -> bytes:
    """Return the filter as classic BPF, one 8-byte instruction after the other.

    A tree of comparisons: when a filter is installed, the kernel runs it once for every system call there is.
    """
    verdicts: dict[int, list[Line]] = dict.fromkeys((*table.allowed, *table.lasting, table.setitimer), _ALLOW_IT)
    verdicts |= {number: _KILL_IT for low, high in table.deadly for number in range(low, high + 1)}
    verdicts |= {
        table.write: _check_argument(0, RESULT_FD),
        table.mmap: [(_LOAD, 0, 0, _argument(3)), (_ANY_BIT, 1, 0, _MAP_ANONYMOUS), *_REFUSE_IT, *_NOT_EXECUTABLE],
        table.mprotect: _NOT_EXECUTABLE,
    }
    match role:
        case Role.COMPILER:
            verdicts[table.read] = _ALLOW_IT
        case Role.KEPT:
            verdicts |= dict.fromkeys((*table.lasting, table.mprotect), _KILL_IT)
            verdicts |= {
                table.read: _check_argument(0, JOB_FD, _check_argument(2, JOB_BYTES)),
                table.setitimer: _check_argument(0, _ITIMER_PROF, otherwise=_KILL_IT),
            }
    pieces: list[tuple[int, list[Line]]] = [(0, verdicts.get(0, _REFUSE_IT))]  # first number, what happens from there
    for number in range(1, max(verdicts) + 2):
        verdict = verdicts.get(number, _REFUSE_IT)
        if verdict != pieces[-1][1]:
            pieces.append((number, verdict))
    if table.foreign:
        pieces.append((table.foreign, _KILL_IT))
    start = [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, table.audit), *_KILL_IT, (_LOAD, 0, 0, _NUMBER)]
    return b"".join(struct.pack("<HBBI", *line) for line in start + _tree(pieces))


def _tree(pieces: list[tuple[int, list[Line]]]) -> list[Line]:
    if len(pieces) == 1:
        return pieces[0][1]
    middle = len(pieces) // 2
    below = _tree(pieces[:middle])
    return [(_AT_LEAST, len(below), 0, pieces[middle][0]), *below, *_tree(pieces[middle:])]


def _check_argument(
    index: int, value: int, then: list[Line] | None = None, otherwise: list[Line] | None = None
) -> list[Line]:
    """Allow (or go on with ``then``) if an argument has a value, else refuse it (or do ``otherwise``)."""
    low, high = _argument(index), _argument(index) + 4
    return [
        (_LOAD, 0, 0, low),
        (_EQUAL, 0, 2, value),
        (_LOAD, 0, 0, high),
        (_EQUAL, 1, 0, 0),
        *(otherwise or _REFUSE_IT),
        *(then or _ALLOW_IT),
    ]


def _argument(index: int) -> int:
    return 16 + 8 * index


_ALLOW_IT: list[Line] = [(_RETURN, 0, 0, _ALLOW)]
_REFUSE_IT: list[Line] = [(_RETURN, 0, 0, _REFUSE)]
_KILL_IT: list[Line] = [(_RETURN, 0, 0, _KILL)]
_NOT_EXECUTABLE: list[Line] = [(_LOAD, 0, 0, _argument(2)), (_ANY_BIT, 0, 1, _PROT_EXEC), *_REFUSE_IT, *_ALLOW_IT]


def native_table() -> Table | None:
    """Return the table of this machine, or None where no filter is known for it."""
    return TABLES.get(os.uname().machine) if struct.calcsize("P") == 8 else None


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


class Filter:
    """An assembled filter, ready to be switched on in a forked child with one system call."""

    def __init__(self, table: Table, role: Role = Role.CHILD) -> None:
        code = assemble(table, role)
        self._code = ctypes.create_string_buffer(code, len(code))
        self._program = _Program(len(code) // 8, ctypes.addressof(self._code))
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl
        # Ready-made: in a forked child, converting them would copy twenty pages.
        mode, program, nothing = ctypes.c_ulong(2), ctypes.c_void_p(ctypes.addressof(self._program)), ctypes.c_ulong(0)
        self._arguments = (ctypes.c_int(22), mode, program, nothing, nothing)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER

    def install(self) -> None:
        """Switch the filter on in this process, for good. Needs ``PR_SET_NO_NEW_PRIVS``.

        Raises:
            OSError: The kernel refuses filters.
        """
        if self._prctl(*self._arguments):
            raise OSError(ctypes.get_errno(), "seccomp filter refused")
