"""The system-call filter of the process that runs untrusted code, assembled by hand.

Only what a computation needs is allowed: memory, time, its own signals, and writing to the one result pipe. Ordinary
attempts at anything else fail with `PermissionError`; the calls that only an attack makes kill the process.

Assembled here, rather than through libseccomp, because the sandbox must not need a package of the host. Standard
library only: the server, which sees no installed package, loads this file.
"""

from __future__ import annotations

import ctypes
import platform
import struct
from dataclasses import dataclass

RESULT_FD = 3

_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000 | 1  # SECCOMP_RET_ERRNO with EPERM
_KILL = 0x80000000  # SECCOMP_RET_KILL_PROCESS

# Offsets into struct seccomp_data (little-endian halves of the 64-bit arguments).
_NUMBER, _ARCH = 0, 4
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_PROT_EXEC, _MAP_ANONYMOUS = 0x4, 0x20


@dataclass(frozen=True, slots=True)
class Table:
    """System-call numbers of one architecture.

    Attributes:
        audit: The kernel's name for the architecture (``AUDIT_ARCH_*``).
        write: Allowed to the result pipe alone.
        mmap: Allowed for anonymous memory that cannot be executed.
        mprotect: Allowed without execution.
        allowed: Always allowed.
        deadly: Inclusive ranges that kill the process.
        foreign: First number that belongs to another calling convention, 0 if there is none.
    """

    audit: int
    write: int
    mmap: int
    mprotect: int
    allowed: tuple[int, ...]
    deadly: tuple[tuple[int, int], ...]
    foreign: int = 0


X86_64 = Table(
    audit=0xC000003E,
    write=1,
    mmap=9,
    mprotect=10,
    allowed=(
        11,  # munmap
        12,  # brk
        13,  # rt_sigaction
        14,  # rt_sigprocmask
        15,  # rt_sigreturn
        24,  # sched_yield
        25,  # mremap
        28,  # madvise
        35,  # nanosleep
        36,  # getitimer
        38,  # setitimer
        60,  # exit
        96,  # gettimeofday
        98,  # getrusage
        100,  # times
        131,  # sigaltstack
        201,  # time
        202,  # futex
        219,  # restart_syscall
        228,  # clock_gettime
        229,  # clock_getres
        230,  # clock_nanosleep
        231,  # exit_group
        334,  # rseq
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
    write=64,
    mmap=222,
    mprotect=226,
    allowed=(
        93,  # exit
        94,  # exit_group
        98,  # futex
        101,  # nanosleep
        102,  # getitimer
        103,  # setitimer
        113,  # clock_gettime
        114,  # clock_getres
        115,  # clock_nanosleep
        124,  # sched_yield
        128,  # restart_syscall
        132,  # sigaltstack
        134,  # rt_sigaction
        135,  # rt_sigprocmask
        139,  # rt_sigreturn
        153,  # times
        165,  # getrusage
        169,  # gettimeofday
        214,  # brk
        215,  # munmap
        216,  # mremap
        233,  # madvise
        293,  # rseq
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


def assemble(table: Table) -> bytes:
    """Return the filter as classic BPF, one 8-byte instruction after the other.

    Jumps name one of three verdicts at the end of the program, or the next instruction.
    """
    lines: list[tuple[int, str, str, int]] = []  # code, verdict if true, verdict if false, operand
    add = lines.append
    add((_LOAD, "", "", _ARCH))
    add((_EQUAL, "", "kill", table.audit))
    add((_LOAD, "", "", _NUMBER))
    if table.foreign:
        add((_AT_LEAST, "kill", "", table.foreign))
    for number in table.allowed:
        add((_EQUAL, "allow", "", number))
    for low, high in table.deadly:
        if low == high:
            add((_EQUAL, "kill", "", low))
        else:  # the accumulator is at least `low`; it is deadly unless at least `high + 1` too
            add((_AT_LEAST, "", "+1", low))
            add((_AT_LEAST, "", "kill", high + 1))
    add((_EQUAL, "", "+5", table.write))
    add((_LOAD, "", "", _argument(0)))
    add((_EQUAL, "", "refuse", RESULT_FD))
    add((_LOAD, "", "", _argument(0) + 4))
    add((_EQUAL, "allow", "refuse", 0))
    add((_RETURN, "", "", _REFUSE))  # not reached; keeps the block's length plain
    add((_EQUAL, "", "+4", table.mmap))
    add((_LOAD, "", "", _argument(3)))
    add((_ANY_BIT, "", "refuse", _MAP_ANONYMOUS))
    add((_LOAD, "", "", _argument(2)))
    add((_ANY_BIT, "refuse", "allow", _PROT_EXEC))
    add((_EQUAL, "", "refuse", table.mprotect))
    add((_LOAD, "", "", _argument(2)))
    add((_ANY_BIT, "refuse", "allow", _PROT_EXEC))
    verdicts = {"allow": len(lines), "refuse": len(lines) + 1, "kill": len(lines) + 2}
    lines += [(_RETURN, "", "", _ALLOW), (_RETURN, "", "", _REFUSE), (_RETURN, "", "", _KILL)]

    def distance(target: str, position: int) -> int:
        if target in verdicts:
            return verdicts[target] - position - 1
        return int(target or "0")

    return b"".join(
        struct.pack("<HBBI", code, distance(yes, at), distance(no, at), operand)
        for at, (code, yes, no, operand) in enumerate(lines)
    )


def _argument(index: int) -> int:
    return 16 + 8 * index


def native_table() -> Table | None:
    """Return the table of this machine, or None where no filter is known for it."""
    return TABLES.get(platform.machine()) if struct.calcsize("P") == 8 else None


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


class Filter:
    """An assembled filter, ready to be switched on in a forked child with one system call."""

    def __init__(self, table: Table) -> None:
        code = assemble(table)
        self._code = ctypes.create_string_buffer(code, len(code))
        self._program = _Program(len(code) // 8, ctypes.addressof(self._code))
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl
        self._prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)
        self._address = ctypes.addressof(self._program)

    def install(self) -> None:
        """Switch the filter on in this process, for good. Needs ``PR_SET_NO_NEW_PRIVS``.

        Raises:
            OSError: The kernel refuses filters.
        """
        if self._prctl(22, 2, self._address, 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
            raise OSError(ctypes.get_errno(), "seccomp filter refused")
