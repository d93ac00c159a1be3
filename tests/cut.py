"""Kills a save before its n-th call that changes a file of its folder. Linux on x86-64 alone: ptrace, through ctypes.

`python -m tests.cut STATE META` reads lines "FOLDER N" and answers each with the call that was cut, or with "none" once a save
makes fewer calls than N. Each save is a fork of this process, which has its imports done. A tool like strace counts calls by
thread; orbax writes from several, so the calls are counted here, in the order in which they come.
"""

import ctypes
import json
import os
import pickle
import signal
import sys
from pathlib import Path

from lods_jax.training import checkpoint

TRACEME, CONT_SYSCALL, SETOPTIONS, SYSCALL_INFO = 0, 24, 0x4200, 0x420E
OPTIONS = 1 | 2 | 4 | 8 | 0x100000  # mark calls; follow forks, vforks and threads; die with the tracer
CALL, WALL, CREATE = signal.SIGTRAP | 0x80, 0x40000000, os.O_CREAT | os.O_TRUNC
# Of each call: its name, and where among its arguments the folder (or -1) and the path are; "" where it takes an open file alone.
FILE, PATH, AT = "file", (-1, 0), (0, 1)
CALLS = {
    1: ("write", FILE), 18: ("pwrite64", FILE), 20: ("writev", FILE), 40: ("sendfile", FILE), 74: ("fsync", FILE),
    75: ("fdatasync", FILE), 77: ("ftruncate", FILE), 91: ("fchmod", FILE), 285: ("fallocate", FILE), 296: ("pwritev", FILE),
    328: ("pwritev2", FILE), 2: ("open", PATH), 76: ("truncate", PATH), 82: ("rename", PATH), 83: ("mkdir", PATH),
    84: ("rmdir", PATH), 85: ("creat", PATH), 86: ("link", PATH), 87: ("unlink", PATH), 88: ("symlink", (-1, 1)),
    90: ("chmod", PATH), 257: ("openat", AT), 258: ("mkdirat", AT), 263: ("unlinkat", AT), 264: ("renameat", AT),
    265: ("linkat", AT), 266: ("symlinkat", (1, 2)), 268: ("fchmodat", AT), 280: ("utimensat", AT), 316: ("renameat2", AT),
    326: ("copy_file_range", FILE),
}  # fmt: skip
FLAGS = {"open": 1, "openat": 2}  # which argument says whether the call creates or empties a file, or only looks at it
ptrace = ctypes.CDLL(None, use_errno=True).ptrace
ptrace.argtypes, ptrace.restype = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p], ctypes.c_long


def cut(folder: Path, state, meta: dict, n: int) -> str | None:
    """Saves in a process of its own that is killed before its n-th call. Returns that call; None if the save came to its end."""
    child = os.fork()
    if child == 0:
        ptrace(TRACEME, 0, None, None)
        os.kill(os.getpid(), signal.SIGSTOP)
        try:
            checkpoint.save(folder, state, meta, keep=1)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    os.waitpid(child, WALL)
    assert ptrace(SETOPTIONS, child, None, OPTIONS) == 0
    ptrace(CONT_SYSCALL, child, None, None)
    count, killed = 0, None
    while True:
        thread, status = os.waitpid(-1, WALL)
        if not os.WIFSTOPPED(status):
            if thread == child:
                assert killed or status == 0, f"the save failed with status {status}"
                return killed
            continue
        number = os.WSTOPSIG(status)
        if number == CALL and killed is None and (call := changes(thread, str(folder))):
            count += 1
            if count == n:  # the call is not made: it ends in the kill
                killed = call
                os.kill(child, signal.SIGKILL)
        ptrace(CONT_SYSCALL, thread, None, 0 if number in (CALL, signal.SIGTRAP, signal.SIGSTOP) else number)


def changes(thread: int, folder: str) -> str | None:
    """The call that a thread is about to make, if it changes something at or below the folder."""
    info = (ctypes.c_uint64 * 12)()
    ptrace(SYSCALL_INFO, thread, ctypes.sizeof(info), ctypes.addressof(info))
    arguments = info[4:10]
    if info[0] & 0xFF != 1 or info[3] not in CALLS:  # 1: on the way in
        return None
    name, where = CALLS[info[3]]
    if name in FLAGS and not arguments[FLAGS[name]] & CREATE:
        return None
    path = opened(thread, arguments[2 if name == "copy_file_range" else 0]) if where == FILE else named(thread, arguments, *where)
    return f"{name} {path.removeprefix(folder)}" if f"{path}/".startswith(f"{folder}/") else None


def opened(thread: int, number: int) -> str:
    try:
        return os.readlink(f"/proc/{thread}/fd/{ctypes.c_int(number).value}")
    except OSError:
        return ""


def named(thread: int, arguments: list[int], folder: int, path: int) -> str:
    with open(f"/proc/{thread}/mem", "rb", 0) as memory:
        memory.seek(arguments[path])
        text = memory.read(4096).split(b"\0")[0].decode()
    return os.path.join(opened(thread, arguments[folder]), text) if folder >= 0 else text


if __name__ == "__main__":
    state, meta = pickle.loads(Path(sys.argv[1]).read_bytes()), json.loads(sys.argv[2])
    import orbax.checkpoint  # noqa: F401 (once, and not after each fork)

    for line in sys.stdin:
        folder, n = line.rsplit(maxsplit=1)
        print(cut(Path(folder), state, meta, int(n)) or "none", flush=True)
