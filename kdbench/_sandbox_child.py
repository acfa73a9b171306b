"""The process that runs generated code: it locks itself up, says so, and only then begins.

    python -P -s -S -B _sandbox_child.py 536870912 7 < program.py     # bytes of memory, CPU seconds

    stdout     what the program prints
    stderr     READY when the locks are on and before the program begins; the last line says what went wrong
    exit code  OK, ERROR, SYNTAX, MEMORY or FORBIDDEN

`kdbench.sandbox` starts it and reads it. The guarantee is the seccomp filter: a short list of system calls
of which none takes a file name, an address or another process's number. What is hidden in Python
(ctypes, the finders) only makes for clearer messages. Standard library only, and no slow import at the top.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import struct
import sys
import types
import warnings
from contextlib import suppress

READY = b"ready\n"
OK, ERROR, SYNTAX, MEMORY, FORBIDDEN = 0, 10, 11, 12, 13

# What a program may import. To save time, only those that its text mentions are loaded.
MODULES = tuple(
    """
    __future__ abc array base64 bisect calendar cmath collections collections.abc contextlib copy dataclasses
    datetime decimal enum fractions functools heapq io itertools json math numbers operator os pprint random
    re statistics string struct sys textwrap time types typing unicodedata
    """.split()  # noqa: SIM905 - as a list it takes forty lines
)
# What the library imports inside its functions, and the word in a program that may lead there ("": any).
# Some are not in every version of Python.
_INNER_IMPORTS = (
    ("", "atexit"),
    ("", "heapq"),
    ("", "weakref"),
    ("", "_pylong"),  # arithmetic on very long integers
    ("random", "_sha2"),
    ("singledispatch", "typing"),
    ("Protocol", "inspect"),
    ("Supports", "inspect"),
    ("strptime", "_strptime"),
    ("\\N{", "unicodedata"),
)

# By name: the number on x86_64, on aarch64. Everything that is not here is refused with EPERM.
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*
SYSTEM_CALLS = {
    "write": (1, 64),  # stdout and stderr: nothing else is open
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "futex": (202, 98),  # a program that waits for its own lock runs out of time instead of crashing
    "restart_syscall": (219, 128),  # a sleep goes on after the machine was suspended
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "getrandom": (318, 278),
}

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 1, 38, 22, 2
_SIGKILL = 9
_INSTRUCTION = struct.Struct("HBBI")  # struct sock_filter: code, jump if true, jump if false, k


class _Stdout(io.FileIO):
    """File descriptor 1, and how many bytes went through it."""

    written = 0

    def write(self, data: object) -> int:
        count = super().write(data)  # type: ignore[arg-type]
        self.written += count
        return count


class _NoFinder:
    """Stands in for all finders: what is not loaded by now cannot be imported."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        raise ModuleNotFoundError(f"module '{name}' is not offered to generated programs", name=name)


def main() -> None:
    """Read the program from stdin, lock the process up, run the program, end."""
    memory_bytes, cpu_seconds = int(sys.argv[1]), int(sys.argv[2])
    source = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
    os.close(0)
    _preload(source)
    raw = _Stdout(1, "wb", closefd=False)
    out = sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8")
    _lock(memory_bytes, cpu_seconds)
    _undress()
    os.write(2, READY)
    code, detail = _run(source, out, raw)
    os.write(2, b"\n" + detail.encode(errors="replace"))
    os._exit(code)  # no finalizer, no atexit: the program has ended


def _preload(source: str) -> None:
    for name in MODULES:
        if name.partition(".")[0] in source:
            __import__(name)
    for word, name in _INNER_IMPORTS:
        if word in source:
            with suppress(ImportError):
                __import__(name)


def _undress() -> None:
    """Take away what a program could trip over. Not a lock: that is the filter."""
    sys.stdin = io.StringIO()
    os.environ.clear()
    sys.argv[:] = ["program.py"]
    sys.path.clear()
    sys.meta_path[:] = [_NoFinder]
    for name in [name for name in sys.modules if "ctypes" in name]:
        del sys.modules[name]
    warnings.simplefilter("ignore")
    # The `site` module makes these two, and it is not loaded.
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]


def _lock(memory_bytes: int, cpu_seconds: int) -> None:
    """Set the limits, then allow SYSTEM_CALLS and nothing else, for good. Raises OSError or ValueError."""
    import ctypes
    import resource

    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]

    def control(name: str, option: int, first: int, second: int = 0) -> None:
        if prctl(option, first, second, 0, 0) != 0:
            raise OSError(f"prctl({name}): {os.strerror(ctypes.get_errno())}")

    program = _filter(os.uname().machine)
    instructions = ctypes.create_string_buffer(program, len(program))
    length = len(program) // _INSTRUCTION.size
    sock_fprog = ctypes.create_string_buffer(struct.pack("HP", length, ctypes.addressof(instructions)))
    for kind, soft, hard in (
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_NOFILE, 0, 0),
        (resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1),  # SIGXCPU, which says why; then SIGKILL
        (resource.RLIMIT_AS, memory_bytes, memory_bytes),
    ):
        resource.setrlimit(kind, (soft, hard))
    control("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, _SIGKILL)  # nothing outlives a parent that was killed
    control("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)
    control("PR_SET_SECCOMP", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(sock_fprog))


def _filter(machine: str) -> bytes:
    """The BPF program: is it a native call, is it one of SYSTEM_CALLS, else EPERM."""
    load, jump_if_equal, give_back = 0x20, 0x15, 0x06  # LD|W|ABS, JMP|JEQ|K, RET|K
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.EPERM
    column = list(MACHINES).index(machine)
    instructions = [
        (load, 0, 0, 4),  # seccomp_data.arch: in 32-bit calls the numbers mean something else
        (jump_if_equal, 1, 0, MACHINES[machine]),
        (give_back, 0, 0, refuse),
        (load, 0, 0, 0),  # seccomp_data.nr
    ]
    for numbers in SYSTEM_CALLS.values():
        instructions += [(jump_if_equal, 0, 1, numbers[column]), (give_back, 0, 0, allow)]
    instructions.append((give_back, 0, 0, refuse))
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in instructions)


def _run(source: str, out: io.TextIOWrapper, raw: _Stdout) -> tuple[int, str]:
    """Run a program; gives the exit code and what went wrong."""
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    names = module.__dict__
    reserve = bytearray(2**20)  # given up where memory has run out, so that there is room to say so
    try:
        try:
            code = compile(source, "<program>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as exc:  # ValueError: a null byte, half a surrogate pair
            return SYNTAX, _describe(exc)
        exec(code, names)  # noqa: S102 - what this file is for
        out.flush()
        if not raw.written:
            if callable(names.get("solution")):
                print(names["solution"](), file=out)
            elif "answer" in names:
                print(names["answer"], file=out)
    except SystemExit as exc:
        return (OK, "") if exc.code in (None, 0) else (ERROR, _describe(exc))
    except MemoryError:
        del reserve
        return MEMORY, "MemoryError"
    except (PermissionError, ModuleNotFoundError) as exc:
        return FORBIDDEN, _describe(exc)
    except BaseException as exc:
        return ERROR, _describe(exc)
    finally:
        out.flush()
    return OK, ""


def _describe(exc: BaseException) -> str:
    """Type and message in one line; a message may be of any length, and may fail to be made."""
    name = type(exc).__name__
    try:
        message = str(exc)
    except Exception:
        return name
    return " ".join(f"{name}: {message[:1000]}".split()) if message else name


if __name__ == "__main__":
    main()
