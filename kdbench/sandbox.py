"""Generated Python code, run in a locked process of its own, and what it printed.

    await run_python("def solution():\n    return 6 * 7")      # Ran("ok", "42\n", "")
    await run_python("print(open('/etc/passwd').read())")
    # Ran("forbidden", "", "PermissionError: [Errno 1] Operation not permitted: '/etc/passwd'")

A program's answer is what it prints. One that prints nothing is asked for `solution()`, where it defines
that, else for the variable `answer`. It may import MODULES. It runs in UTC with PYTHONHASHSEED=0, so that
it gives the same answer each time, as far as it does not draw from `random` or look at addresses.

The code is taken to be hostile. It sees an empty environment, no stdin and no open file but its own stdout
and stderr; a seccomp filter lets it compute, write to these two, sleep and end, and refuses all else: files,
processes, threads, signals, sockets (`_sandbox_child.py` has the list). Memory, time and output are limited.
What it can fake is its own end: it may claim any status and any detail, as it may print any answer. It
cannot claim that the sandbox failed, for that is settled before it begins.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from kdbench import _sandbox_child as child
from kdbench.config import StrictConfig
from kdbench.errors import RunFailed, UsageError

MODULES = child.MODULES
Status = Literal["ok", "error", "syntax", "timeout", "memory", "output", "forbidden"]

_CHILD = Path(child.__file__)
# Not -I, which would ignore PYTHONHASHSEED: nothing else is in the environment, and -P -s are the rest of it.
_FLAGS = ("-P", "-s", "-S", "-B")
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "TZ": "UTC0"}
_STATUSES: dict[int, Status] = {
    child.OK: "ok",
    child.ERROR: "error",
    child.SYNTAX: "syntax",
    child.MEMORY: "memory",
    child.FORBIDDEN: "forbidden",
}
# How long Python may take to start before something is wrong with the machine, in seconds.
_START = 60.0
# Room on stderr for the child's own last line, and how much of it is kept.
_LAST_LINE_BYTES = 8192
_DETAIL_CHARS = 300

# As many programs at once as there are cores: more would only take each other's time.
_slots: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}


class Limits(StrictConfig):
    """What one generated program may use."""

    seconds: float = Field(5.0, gt=0, le=3600, description="seconds from its first instruction to its end")
    memory_mb: int = Field(512, ge=64, le=65536, description="MiB of address space, 20 for Python included")
    output_bytes: int = Field(65536, ge=1, le=2**26, description="bytes it may print, and as many on stderr")


_DEFAULTS = Limits()


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended, what it printed until then, and in one line what went wrong ("" if nothing).

    status: ok; error (an exception, a crash, an exit code other than 0); syntax (never began); timeout,
    memory, output (a limit); forbidden (it stopped at something that the sandbox does not give).
    """

    status: Status
    output: str
    detail: str


async def run_python(code: str, limits: Limits = _DEFAULTS) -> Ran:
    """Run generated code within `limits`; whatever it does, it gives a Ran.

    Raises UsageError on a machine whose processes cannot be locked up, RunFailed where the locks
    cannot be set: then nothing was run. Cancelled, it kills the program.
    """
    _check_machine()
    async with _slot():
        try:
            with tempfile.TemporaryDirectory(prefix="kdbench-") as folder:
                return await _run(code, limits, folder)
        except OSError as exc:
            raise RunFailed(f"Generated code was not run, for no process could be started: {exc}") from exc


def _check_machine() -> None:
    machine = os.uname().machine if sys.platform == "linux" else "no Linux"
    if machine not in child.MACHINES:
        raise UsageError(
            f"Running generated code needs Linux on {' or '.join(child.MACHINES)}; this machine is "
            f"{sys.platform} ({machine})"
        )


def _slot() -> asyncio.Semaphore:
    """The running loop's semaphore: one cannot serve two loops."""
    for loop in list(_slots):
        if loop.is_closed():
            _slots.pop(loop, None)
    return _slots.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(len(os.sched_getaffinity(0))))


async def _run(code: str, limits: Limits, folder: str) -> Ran:
    process = await _start(limits, folder)
    out, err = bytearray(), bytearray()
    most_out, most_err = limits.output_bytes, limits.output_bytes + _LAST_LINE_BYTES
    late = False
    try:
        await _begin(process, code)
        async with asyncio.timeout(limits.seconds):
            await asyncio.gather(
                _drain(process, process.stdout, out, most_out),
                _drain(process, process.stderr, err, most_err),
            )
            await process.wait()
    except TimeoutError:
        late = True
    finally:
        await _end(process)
    output = out[:most_out].decode(errors="replace")
    if late or process.returncode == -signal.SIGXCPU:
        return Ran("timeout", output, f"not done after {limits.seconds:g} s")
    if len(out) > most_out or len(err) > most_err:
        return Ran("output", output, f"more than {most_out} bytes written")
    status, detail = _ending(process.returncode, bytes(err))
    return Ran(status, output, detail)


async def _start(limits: Limits, folder: str) -> Process:
    """Start the child, which waits for its program. Raises OSError."""
    # The wall clock stops a program; the CPU limit stops one whose parent is stuck, and so comes later.
    memory_bytes, cpu_seconds = limits.memory_mb * 2**20, int(limits.seconds) + 2
    return await asyncio.create_subprocess_exec(
        *(sys.executable, *_FLAGS, str(_CHILD), str(memory_bytes), str(cpu_seconds)),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env=_ENVIRONMENT,
        cwd=folder,
        start_new_session=True,
        close_fds=True,
    )


async def _begin(process: Process, code: str) -> None:
    """Hand over the code and wait until the child has locked itself up. Raises RunFailed."""
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(code.encode("utf-8", "surrogatepass"))
    process.stdin.close()
    said = b""
    with suppress(TimeoutError):
        async with asyncio.timeout(_START):
            said = await process.stderr.readline()
            if said == child.READY:
                return
            said += await process.stderr.read()
    reason = _last_line(said) or f"no sign of life within {_START:g} s"
    raise RunFailed(
        f"Generated code was not run, for its process could not be locked up: {reason}; it needs "
        "a machine or container that allows seccomp filters and resource limits"
    )


async def _drain(process: Process, stream: asyncio.StreamReader | None, into: bytearray, most: int) -> None:
    """Read a stream to its end; a process that writes more than `most` bytes is killed."""
    assert stream is not None
    while chunk := await stream.read(65536):
        into += chunk
        if len(into) > most:
            _kill(process)
            return


def _kill(process: Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):  # it has ended, and the loop has yet to hear of it
            os.killpg(process.pid, signal.SIGKILL)


async def _end(process: Process) -> None:
    """Leave no process behind, however the run ended."""
    _kill(process)
    await process.communicate()  # reads what is left in the pipes, or their end would never be seen


def _ending(code: int | None, err: bytes) -> tuple[Status, str]:
    """Status and detail of a process that ended by itself."""
    assert code is not None
    if code == child.OK:
        return "ok", ""
    if code == -signal.SIGKILL:
        return "memory", "killed by the system, which had none left"
    if code < 0:
        return "error", f"crashed: {signal.strsignal(-code)}"
    return _STATUSES.get(code, "error"), _last_line(err) or f"exit code {code}"


def _last_line(err: bytes) -> str:
    """Made fit to be shown: the program may have written anything."""
    text = err.rstrip().rpartition(b"\n")[2].decode(errors="replace")
    return "".join(c for c in text if c.isprintable())[:_DETAIL_CHARS]
