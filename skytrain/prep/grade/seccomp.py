"""System calls that no program needs and that the other limits do not see: memory that belongs to no process, other
processes' memory, new namespaces, and interfaces whose faults have let programs out before."""

from __future__ import annotations

import errno
import functools
import platform
import struct

_X86_64 = {"arch": 0xC000003E, "clone": 56, "refused": {
    "shmget": 29, "msgget": 68, "ptrace": 101, "pivot_root": 155, "mount": 165, "umount2": 166, "init_module": 175,
    "kexec_load": 246, "add_key": 248, "request_key": 249, "keyctl": 250, "unshare": 272, "perf_event_open": 298,
    "open_by_handle_at": 304, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "finit_module": 313,
    "memfd_create": 319, "bpf": 321, "userfaultfd": 323}}  # fmt: skip
_AARCH64 = {"arch": 0xC00000B7, "clone": 220, "refused": {
    "shmget": 194, "msgget": 186, "ptrace": 117, "pivot_root": 41, "mount": 40, "umount2": 39, "init_module": 105,
    "kexec_load": 104, "add_key": 217, "request_key": 218, "keyctl": 219, "unshare": 97, "perf_event_open": 241,
    "open_by_handle_at": 265, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271, "finit_module": 273,
    "memfd_create": 279, "bpf": 280, "userfaultfd": 282}}  # fmt: skip
_MACHINES = {"x86_64": _X86_64, "aarch64": _AARCH64}
_EVERYWHERE = {"io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430, "memfd_secret": 447}
_CLONE3 = 435
_NEW_NAMESPACES = 0x7E020000
_OTHER_ABI = 0x40000000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
"""Offsets of what a filter is told; of an argument the lower half."""


@functools.cache
def program() -> bytes:
    """A filter as bubblewrap takes it: refused calls fail as not permitted. Empty for a machine that is not known."""
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return b""
    lines = [(_LOAD, 0, 0, _ARCHITECTURE), *_unless(_EQUAL, machine["arch"], errno.EPERM), (_LOAD, 0, 0, _NUMBER)]
    lines += _if(_AT_LEAST, _OTHER_ABI, errno.EPERM)
    for number in (*machine["refused"].values(), *_EVERYWHERE.values()):
        lines += _if(_EQUAL, number, errno.EPERM)
    # Its flags lie in memory, which a filter cannot read; the C library asks with clone then.
    lines += _if(_EQUAL, _CLONE3, errno.ENOSYS)
    clone = [(_LOAD, 0, 0, _FIRST_ARGUMENT), *_if(_ANY_BIT, _NEW_NAMESPACES, errno.EPERM)]
    lines += [(_EQUAL, 0, len(clone), machine["clone"]), *clone, (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def _if(test: int, value: int, error: int) -> list[tuple[int, int, int, int]]:
    return [(test, 0, 1, value), (_RETURN, 0, 0, _REFUSE | error)]


def _unless(test: int, value: int, error: int) -> list[tuple[int, int, int, int]]:
    return [(test, 1, 0, value), (_RETURN, 0, 0, _REFUSE | error)]
