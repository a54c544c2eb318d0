"""Namespaces, capabilities and resource limits: what stands around a server before it runs anything.

Every function acts on the calling process and raises `OSError` where the host refuses. Standard library only: the
server, which sees no installed package, loads this file.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct

NOBODY = 65534
OPEN_FILES = 32  # descriptors of a server and its children are below
SANDBOX_UID = 40001  # not 65534: other services of the host may run under that one, and RLIMIT_NPROC counts per user

_NEW_NAMESPACES = (
    0x10000000  # user
    | 0x00020000  # mounts
    | 0x20000000  # process ids
    | 0x40000000  # network
    | 0x08000000  # ipc
    | 0x04000000  # host name
    | 0x02000000  # control groups
)
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_MS_REC, _MS_PRIVATE, _MNT_DETACH = 0x4000, 0x40000, 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 1, 4, 24, 38, 47
_SIGKILL = 9
_SA_ONSTACK, _SIGACTION_FLAGS, _SIGACTION_BYTES = 0x08000000, 136, 152  # handler 8, mask 128, flags 4, restorer 8
_F_GETPIPE_SZ = 1032

_libc = ctypes.CDLL(None, use_errno=True)
_MEMORY_LIMIT = resource.getrlimit(resource.RLIMIT_AS)[1]  # the hard one, which nothing here changes


_NO_NAMESPACE = {
    errno.ENOSPC: "switched off or used up (sysctl user.max_user_namespaces)",
    errno.EPERM: "not permitted (a container's profile, or a sysctl of the distribution)",
}
"""What the errors of unshare mean, whose own words speak of devices and owners."""


def _check(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _prctl(option: int, value: int, what: str) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)), what)


def leave_root() -> bool:
    """Become the sandbox user if this is root; return whether the process is unprivileged now.

    Real root is exempt from the limit on processes, even inside a user namespace.
    """
    if os.getuid() != 0:
        return True
    try:
        os.setgroups([])
        os.setgid(SANDBOX_UID)
        os.setuid(SANDBOX_UID)
    except OSError:  # a container that maps few ids
        return False
    _prctl(_PR_SET_DUMPABLE, 1, "dumpable")  # else the id maps below belong to root and cannot be written
    return True


def enter_namespaces() -> None:
    """Move into new namespaces of every kind; children are in the new process-id namespace, the first as its init."""
    uid, gid = os.getuid(), os.getgid()
    if _libc.unshare(_NEW_NAMESPACES):
        code = ctypes.get_errno()
        raise OSError(code, f"no user namespace: {_NO_NAMESPACE.get(code, os.strerror(code))}")
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{NOBODY} {uid} 1")
    _write("/proc/self/gid_map", f"{NOBODY} {gid} 1")


def _write(file: str, text: str) -> None:
    # Not pathlib here: its megabyte of modules would be copied with every fork.
    descriptor = os.open(file, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def open_proc(own: bool) -> int | None:
    """Return a descriptor of a ``/proc``, above all that children keep; None where there is none to be had.

    Args:
        own: One that shows the processes of this namespace alone, for a process that will lose the rest.
    """
    try:
        if own:
            _mount(b"/", None, _MS_REC | _MS_PRIVATE, None)
            _mount(b"/proc", b"proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, None)
        descriptor = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    except OSError:
        return None
    os.dup2(descriptor, OPEN_FILES - 1, inheritable=False)
    os.close(descriptor)
    return OPEN_FILES - 1


def empty_root() -> None:
    """Replace the file system of this mount namespace by one empty read-only directory."""
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    _mount(b"/", None, _MS_REC | _MS_PRIVATE, None)
    _mount(b"/proc", b"tmpfs", flags, b"size=4k,nr_inodes=2,mode=555")
    os.chdir("/proc")  # exists wherever the id maps could be written
    _check(_libc.syscall(_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount")
    os.chdir("/")
    _mount(b"/", None, _MS_REMOUNT | _MS_RDONLY | flags, None)


def _mount(target: bytes, kind: bytes | None, flags: int, options: bytes | None) -> None:
    _check(_libc.mount(kind or b"none", target, kind, ctypes.c_ulong(flags), options), f"mount {target.decode()}")


def drop_capabilities() -> None:
    """Give up every capability, for good."""
    for capability in range(64):
        # EPERM without CAP_SETPCAP, EINVAL past the last one; the empty sets below are what counts.
        _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), *[ctypes.c_ulong(0)] * 3)
    _libc.prctl(_PR_CAP_AMBIENT, ctypes.c_ulong(4), *[ctypes.c_ulong(0)] * 3)
    header, nothing = struct.pack("<Ii", 0x20080522, 0), bytes(24)
    _check(_libc.capset(header, nothing), "capset")
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, "no_new_privs")
    _prctl(_PR_SET_DUMPABLE, 0, "dumpable")


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends."""
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL, "parent-death signal")


def limit_server(stack_bytes: int = 8 * 2**20) -> None:
    """Set the limits that every child inherits."""
    for what, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_STACK, stack_bytes),
    ):
        hard = resource.getrlimit(what)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (value, value))


def limit_memory(bytes_: int | None) -> None:
    """Set the soft limit on address space, which a child inherits; None lifts it.

    Set around the fork, since in the child the call would cost it thirty copied pages. Behind the filter a child cannot
    lift it.
    """
    hard = _MEMORY_LIMIT
    soft = hard if bytes_ is None else bytes_ if hard == resource.RLIM_INFINITY else min(bytes_, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def limit_unfiltered_child() -> None:
    """Make the inherited limit hard and forbid further processes, where no filter does."""
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    resource.setrlimit(resource.RLIMIT_AS, (soft, soft))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def give_back_memory() -> None:
    """Return free memory to the kernel: what is not there is not copied. Only some C libraries can."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(ctypes.c_size_t(0))


def keep_freed_memory() -> None:
    """Let the C library keep what a program freed: a child that is put back must not move its mappings.

    Large blocks still come and go as mappings of their own. Only some C libraries can.
    """
    if hasattr(_libc, "mallopt"):
        for option, value in ((-1, 2**30), (-2, 2**21), (-3, 2**18)):  # trim never, grow by 2 MiB, map from 256 KiB
            _libc.mallopt(option, value)


def forget_signal_stack(number: int) -> None:
    """Have the handler of a signal run on the ordinary stack.

    Returning from a signal, which no filter can forbid, sets another stack, and for good.
    """
    action = ctypes.create_string_buffer(_SIGACTION_BYTES)
    _check(_libc.sigaction(number, None, action), "sigaction")
    (flags,) = struct.unpack_from("<i", action, _SIGACTION_FLAGS)
    struct.pack_into("<i", action, _SIGACTION_FLAGS, flags & ~_SA_ONSTACK)
    _check(_libc.sigaction(number, action, None), "sigaction")


def pipe_size(descriptor: int) -> int:
    """Return how many bytes a pipe holds."""
    size: int = _libc.fcntl(descriptor, _F_GETPIPE_SZ)
    return size


def address_space() -> int:
    """Return the bytes of address space this process holds; needs ``/proc``."""
    descriptor = os.open("/proc/self/statm", os.O_RDONLY)
    try:
        return int(os.read(descriptor, 100).split()[0]) * resource.getpagesize()
    finally:
        os.close(descriptor)
