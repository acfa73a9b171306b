"""Generated code under lock: how it ends, what it may use, what it cannot reach, what it leaves behind."""

from __future__ import annotations

import asyncio
import itertools
import os
import platform
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdbench import _sandbox_child as child
from kdbench import sandbox
from kdbench.config import build
from kdbench.errors import ConfigError, RunFailed, UsageError
from kdbench.sandbox import MODULES, Limits, Ran, run_python

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in child.MACHINES, reason="no sandbox on this machine"
)

# Raw system calls. ctypes is hidden, which a program may get around; here it is left open (see `altered`).
RAW = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = libc.mmap.restype = ctypes.c_long
"""


def run(code: str, **limits: Any) -> Ran:
    return asyncio.run(run_python(code, build(Limits, limits, "limits")))


# How a program ends, and what it says.


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("print(6 * 7)", "42\n"),
        ("def solution():\n    return 6 * 7", "42\n"),
        ("answer = 6 * 7", "42\n"),
        ("answer = 1\ndef solution():\n    return 2", "2\n"),
        ("solution = 3\nanswer = 4", "4\n"),
        ("print('printed')\nanswer = 1\ndef solution():\n    return 2", "printed\n"),
        ("x = 1", ""),
        ("print('é', '\\N{BULLET}', end='')", "é •"),
        ("import os\nos.write(1, b'\\xff')", "\ufffd"),
        ("if __name__ == '__main__':\n    print('main')", "main\n"),
        ("import sys\nprint('kept')\nsys.exit()", "kept\n"),
        ("print('kept')\nexit(0)", "kept\n"),
        ("import sys\nprint(sys.argv[1:], sys.stdin.read())", "[] \n"),
        ("import warnings\nwarnings.warn('unheard')\nprint('\\d')", "\\d\n"),
        # A child that leaks its own `from __future__ import annotations` would print 'int'.
        ("def f(x: int): ...\nprint(f.__annotations__)", "{'x': <class 'int'>}\n"),
    ],
)
def test_what_it_prints_or_defines_is_its_answer(code: str, output: str) -> None:
    assert run(code) == Ran("ok", output, "")


@pytest.mark.parametrize(
    ("code", "ran"),
    [
        ("print(1)\n1 / 0", Ran("error", "1\n", "ZeroDivisionError: division by zero")),
        ("raise ValueError", Ran("error", "", "ValueError")),
        ("raise ValueError('two\\nlines \\x1b[31m')", Ran("error", "", "ValueError: two lines [31m")),
        ("def solution():\n    raise KeyError(1)", Ran("error", "", "KeyError: 1")),
        ("class E(Exception):\n    def __str__(self): 1 / 0\nraise E", Ran("error", "", "E")),
        ("import sys\nsys.exit(3)", Ran("error", "", "SystemExit: 3")),
        ("import sys\nsys.exit([])", Ran("error", "", "SystemExit: []")),
        ("raise KeyboardInterrupt", Ran("error", "", "KeyboardInterrupt")),
        ("input()", Ran("error", "", "EOFError: EOF when reading a line")),
        ("x =", Ran("syntax", "", "SyntaxError: invalid syntax (<program>, line 1)")),
        ("eval('x =')", Ran("error", "", "SyntaxError: invalid syntax (<string>, line 1)")),
        ("raise MemoryError", Ran("memory", "", "MemoryError")),
        (
            "import numpy",
            Ran("forbidden", "", "ModuleNotFoundError: module 'numpy' is not offered to generated programs"),
        ),
        (
            "open('/etc/passwd')",
            Ran("forbidden", "", "PermissionError: [Errno 1] Operation not permitted: '/etc/passwd'"),
        ),
    ],
)
def test_it_says_how_it_ended(code: str, ran: Ran) -> None:
    assert run(code) == ran


@pytest.mark.parametrize("code", ["'\ud800'", "\0", "# coding: klingon\nx ="])
def test_text_that_is_no_program_is_a_syntax_error(code: str) -> None:
    assert run(code).status == "syntax"


def test_a_crash_is_an_error() -> None:
    ran = run("import os\nprint('kept', flush=True)\nos.abort()")
    assert (ran.status, ran.output) == ("error", "kept\n")
    assert ran.detail.startswith("crashed: ")


@pytest.mark.parametrize("code", [0, 1, 7, 10, 11, 12, 13, 255])
def test_a_program_can_fake_only_its_own_end(code: int) -> None:
    ran = run(f"import os\nos.write(2, b'first\\n\\x1b[2Jlast ' + b'x' * 999)\nos._exit({code})")
    assert ran.status in {"ok", "error", "syntax", "memory", "forbidden"}
    assert ran.detail in {"", "[2Jlast " + "x" * 292}


def test_every_module_that_is_offered_can_be_imported() -> None:
    assert run("".join(f"import {name}\n" for name in MODULES) + "print('all')") == Ran("ok", "all\n", "")


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("import collections\nprint(collections.Counter('aab').most_common(1))", "[('a', 2)]\n"),
        ("import collections\nclass D(collections.UserDict): pass\nprint(D(a=1).copy())", "{'a': 1}\n"),
        ("from datetime import datetime as d\nprint(d.strptime('2020', '%Y').year)", "2020\n"),
        (
            "import functools\n@functools.singledispatch\ndef f(x): ...\n"
            "@f.register\ndef g(x: int): return x\nprint(f(1))",
            "1\n",
        ),
        ("import random\nrandom.seed('a')\nprint(random.random() < 1)", "True\n"),
        ("import re\nprint(re.sub(r'\\N{BULLET}', '*', '•'))", "*\n"),
        ("from typing import SupportsInt\nprint(isinstance(1, SupportsInt))", "True\n"),
        ("print(10**9999 // 10**5000 == 10**4999)", "True\n"),
        ("import weakref\nweakref.finalize(type('T', (), {})(), print, 'gone')", "gone\n"),
    ],
)
def test_what_a_module_imports_later_is_there(code: str, output: str) -> None:
    assert run(code) == Ran("ok", output, "")


def test_the_same_code_gives_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    code = "import time\nprint(hash('a'), {str(i) for i in range(9)}, time.tzname, time.localtime(0).tm_hour)"
    first, second = run(code), run(code)
    assert first == second
    assert first.output.endswith(" ('UTC', 'UTC') 0\n")


# What it may use.


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time\ntime.sleep(20)",
        "try:\n    while True: pass\nexcept: print('caught')",
    ],
)
def test_time_is_limited(code: str) -> None:
    assert run(f"print('kept', flush=True)\n{code}", seconds=0.3) == Ran(
        "timeout", "kept\n", "not done after 0.3 s"
    )


def test_a_lock_that_is_never_released_is_a_timeout() -> None:
    code = "import _thread\nlock = _thread.allocate_lock()\nlock.acquire()\nlock.acquire()"
    assert run(code, seconds=0.3).status == "timeout"


@pytest.mark.parametrize(
    "code",
    [
        "x = 'a' * 10**9",
        "x = []\nwhile True: x.append(bytes(1000))",
        "x = 'a'\nwhile True: x += x",
        "x = {}\nfor i in range(10**9): x[i] = str(i)",
        "import re\nre.x = []\nwhile True: re.x.append(bytearray(8))",
    ],
)
def test_memory_is_limited(code: str) -> None:
    ran = run(f"print('kept')\n{code}", memory_mb=64, seconds=60)
    assert (ran.status, ran.output) == ("memory", "kept\n")


def test_memory_that_is_not_over_the_limit_is_there() -> None:
    assert run("print(len('a' * 10**8))", memory_mb=150).status == "ok"


@pytest.mark.parametrize("descriptor", [1, 2])
def test_output_is_limited(descriptor: int) -> None:
    ran = run(f"import os\nwhile True: os.write({descriptor}, b'x' * 999)", output_bytes=1000, seconds=10)
    assert ran == Ran("output", "x" * 1000 if descriptor == 1 else "", "more than 1000 bytes written")


def test_output_of_just_the_limit_is_kept() -> None:
    assert run("print('x' * 99)", output_bytes=100) == Ran("ok", "x" * 99 + "\n", "")
    assert run("print('x' * 100)", output_bytes=100).status == "output"
    assert run("raise ValueError('x' * 10**6)", output_bytes=1) == Ran(
        "error", "", "ValueError: " + "x" * 288
    )


def test_the_smallest_limits_let_python_start() -> None:
    assert run("print(1)", memory_mb=64, output_bytes=2, seconds=10) == Ran("ok", "1\n", "")


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"memory_mb": 10}, {"output_bytes": 0}, {"second": 1}])
def test_limits_have_bounds(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        build(Limits, wrong, "limits")


def test_only_as_many_run_at_once_as_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    code = "import time\nprint(time.monotonic())\ntime.sleep(0.05)\nprint(time.monotonic())"

    async def three() -> list[Ran]:
        return await asyncio.gather(*[run_python(code) for _ in range(3)])

    for _ in range(2):  # in a second loop too: a semaphore belongs to the first that waits for it
        times = sorted([float(line) for line in ran.output.split()] for ran in asyncio.run(three()))
        assert all(ended < begun for (_, ended), (begun, _) in itertools.pairwise(times))


# What it cannot reach.


@pytest.mark.parametrize(
    "call",
    [
        "open('/etc/passwd')",
        "open(os.__file__)",
        "open('new', 'w')",
        "open('/tmp/new', 'w')",
        "os.listdir('/')",
        "os.stat('.')",
        "os.getcwd()",
        "os.mkdir('new')",
        "os.readlink('/proc/self/exe')",
        "os.fork()",
        "os.execv('/bin/true', ['true'])",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.pipe()",
        "os.dup(1)",
        pytest.param(f"os.kill({os.getpid()}, 0)", id="os.kill"),
        pytest.param(f"os.killpg({os.getpgrp()}, 0)", id="os.killpg"),
        "os.setuid(0)",
        "os.nice(1)",
    ],
)
def test_nothing_outside_is_within_reach(call: str) -> None:
    ran = run(f"import os\n{call}\nprint('done')")
    assert (ran.status, ran.output) == ("forbidden", "")


@pytest.mark.parametrize(
    "module", ["socket", "_socket", "subprocess", "threading", "multiprocessing", "ctypes"]
)
def test_modules_that_reach_outside_are_not_offered(module: str) -> None:
    assert run(f"import {module}\nprint('done')").status == "forbidden"


def test_no_threads_and_no_commands() -> None:
    ran = run("import _thread\n_thread.start_new_thread(print, ('thread',))\nprint('done')")
    assert ran == Ran("error", "", "RuntimeError: can't start new thread")
    assert "command" not in run("import os\nprint(os.system('echo command'))").output


@pytest.fixture
def ctypes_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alter_child('if "ctypes" in name', 'if "none" in name', tmp_path, monkeypatch)


def alter_child(right: str, wrong: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(child.__file__).read_text()
    assert right in source
    (folder / "child.py").write_text(source.replace(right, wrong))
    monkeypatch.setattr(sandbox, "_CHILD", folder / "child.py")


@pytest.mark.usefixtures("ctypes_open")
def test_the_filter_lets_through_what_is_listed_and_nothing_else() -> None:
    """Every other number, in the x32 calling convention too, with arguments that no call accepts."""
    column = list(child.MACHINES).index(platform.machine())
    allowed = {numbers[column] for numbers in child.SYSTEM_CALLS.values()}
    if platform.machine() == "x86_64":
        # uretprobe and uprobe: Linux since 6.14 filters neither, and kills who calls them by hand.
        allowed |= {335, 336}
    numbers = [n for n in range(600) if n not in allowed] + [n | 0x40000000 for n in range(600)]
    ran = run(
        f"{RAW}\nlibc.syscall({child.SYSTEM_CALLS['write'][column]}, 1, b'raw calls work', 14)\n"
        f"for number in {numbers}:\n"
        "    if (libc.syscall(number, -1, -1, -1, -1, -1, -1), ctypes.get_errno()) != (-1, 1):\n"
        "        print(', but not all are refused:', number)\n"
        "        break\n"
    )
    assert ran == Ran("ok", "raw calls work", "")


def test_the_list_holds_no_call_that_reaches_outside() -> None:
    memory = {"mmap", "mprotect", "munmap", "mremap", "madvise", "brk"}
    waiting = {"futex", "restart_syscall", "clock_gettime", "clock_nanosleep"}
    assert set(child.SYSTEM_CALLS) == memory | waiting | {"write", "getrandom", "exit_group"}


@pytest.mark.usefixtures("ctypes_open")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="other machines have no such second door")
def test_the_32_bit_door_is_shut() -> None:
    """int 0x80 with 12: chdir there, brk in the list. Refused (-1), not tried with a null pointer (-14)."""
    ran = run(f"""{RAW}
code = bytes.fromhex("53 31db b80c000000 cd80 5b 4898 c3")  # push rbx; ebx=0; eax=12; int 0x80; ...
address = libc.mmap(None, 4096, 7, 0x22, -1, 0)
ctypes.memmove(address, code, len(code))
print(ctypes.CFUNCTYPE(ctypes.c_long)(address)())
""")
    if ran.detail.startswith("crashed"):
        pytest.skip("this kernel has no 32-bit calls")
    assert ran == Ran("ok", "-1\n", "")


def test_nothing_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDBENCH_SECRET", "hunter2")
    ran = run("import os, posix\nprint(dict(os.environ), posix.environ)")
    assert ran == Ran("ok", "{} {}\n", "")
    ours, theirs = os.pipe()
    try:
        os.set_inheritable(theirs, True)
        ran = run(f"""
import os
for descriptor in [*range(3, 256), {theirs}]:
    try:
        print(descriptor, os.write(descriptor, b'x'))
    except OSError as exc:
        if exc.errno != 9:
            print(descriptor, exc)
print('none')
""")
    finally:
        os.close(ours)
        os.close(theirs)
    assert ran == Ran("ok", "none\n", "")


# What it leaves behind, and what happens where it cannot be locked up.


def children(parent: int) -> set[int]:
    """The processes of this parent, zombies included."""
    return {pid for pid, (_, of) in _processes() if of == parent}


def is_gone(pid: int) -> bool:
    """Whether it has ended; an orphan may stay a zombie where nobody collects it."""
    return dict(_processes()).get(pid, ("Z", 0))[0] == "Z"


def _processes() -> Iterator[tuple[int, tuple[str, int]]]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        yield int(path.parent.name), (state, int(parent))


def locked_children(parent: int) -> set[int]:
    return {pid for pid in children(parent) if _is_locked(pid)}


def _is_locked(pid: int) -> bool:
    with suppress(OSError):  # it ended meanwhile
        return "Seccomp:\t2\n" in Path(f"/proc/{pid}/status").read_text()
    return False


def until(condition: Callable[[], Any]) -> Any:
    """Wait, with the event loop standing still; the bound is there for a test that fails."""
    for _ in range(2000):
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError("never happened")


@asynccontextmanager
async def running(code: str, limits: Limits) -> AsyncGenerator[tuple[asyncio.Task[Ran], int]]:
    """A program at work, and the number of its process."""
    before = children(os.getpid())
    task = asyncio.create_task(run_python(code, limits))
    for _ in range(2000):
        if locked := locked_children(os.getpid()) - before:
            yield task, locked.pop()
            return
        await asyncio.sleep(0.01)
    raise AssertionError("never began")


def test_the_kernel_sees_an_empty_environment_two_files_and_the_limits() -> None:
    async def limits_of_a_child() -> dict[str, list[str]]:
        async with running("while True: pass", Limits(seconds=9, memory_mb=100)) as (task, pid):
            assert Path(f"/proc/{pid}/environ").read_bytes() == b"PYTHONHASHSEED=0\0TZ=UTC0\0"
            assert sorted(path.name for path in Path(f"/proc/{pid}/fd").iterdir()) == ["1", "2"]
            text = Path(f"/proc/{pid}/limits").read_text()
            task.cancel()
            await asyncio.wait([task])
            return {line[:25].strip(): line[25:].split()[:2] for line in text.splitlines()}

    limits = asyncio.run(limits_of_a_child())
    assert limits["Max address space"] == [str(100 * 2**20)] * 2
    assert limits["Max cpu time"] == ["11", "12"]
    assert limits["Max file size"] == limits["Max open files"] == limits["Max core file size"] == ["0", "0"]


def test_a_cancelled_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    before = children(os.getpid())

    async def cancel_it() -> None:
        async with running("import time\ntime.sleep(60)", Limits(seconds=60)) as (task, pid):
            (folder,) = tmp_path.iterdir()
            assert Path(f"/proc/{pid}/cwd").readlink() == folder
            assert list(folder.iterdir()) == []
            assert os.getsid(pid) == pid
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert children(os.getpid()) == before
        assert list(tmp_path.iterdir()) == []

    asyncio.run(cancel_it())


def test_a_run_cancelled_while_it_starts_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    before = children(os.getpid())

    async def cancel_after(turns: int) -> None:
        task = asyncio.create_task(run_python("while True: pass"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def cancel_all() -> None:
        for turns in range(12):
            await cancel_after(turns)

    asyncio.run(cancel_all())
    assert children(os.getpid()) == before
    assert list(tmp_path.iterdir()) == []


def test_no_run_leaves_a_process_or_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    before = children(os.getpid())
    programs = [
        "print(1)",
        "1 / 0",
        "while True: print('x' * 999)",
        "while True: pass",
        "import os\nos._exit(9)",
    ]

    async def all_of_them() -> list[str]:
        limits = Limits(seconds=0.3)
        return [ran.status for ran in await asyncio.gather(*[run_python(p, limits) for p in programs])]

    assert asyncio.run(all_of_them()) == ["ok", "error", "output", "timeout", "error"]
    assert children(os.getpid()) == before
    assert list(tmp_path.iterdir()) == []


def test_a_program_ends_by_itself_where_nobody_watches_the_clock() -> None:
    async def stand_still() -> Ran:
        async with running("while True: pass", Limits(seconds=0.3)) as (task, pid):
            until(lambda: is_gone(pid))
            return await task

    assert asyncio.run(stand_still()).status == "timeout"


def test_a_program_does_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import asyncio\nfrom kdbench.sandbox import Limits, run_python\n"
        "asyncio.run(run_python('import time; time.sleep(60)', Limits(seconds=60)))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)})
    try:
        (pid,) = until(lambda: locked_children(parent.pid))
    finally:
        parent.kill()
        parent.wait()
    until(lambda: is_gone(pid))


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("= 1, 38, 22, 2", "= 1, 38, 9999, 2", "Invalid argument"),  # prctl options
        ("import ctypes\n", "import no_ctypes\n", "no_ctypes"),
    ],
)
def test_what_cannot_be_locked_up_is_not_run(
    right: str, wrong: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alter_child(right, wrong, tmp_path, monkeypatch)
    with pytest.raises(RunFailed, match=f"was not run.*{said}"):
        run(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})")
    assert not (tmp_path / "ran").exists()


def test_no_process_to_run_it_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(RunFailed, match="was not run"):
        run("print(1)")


def test_other_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="riscv64"))
    with pytest.raises(
        UsageError, match=r"needs Linux on x86_64 or aarch64; this machine is linux \(riscv64\)"
    ):
        run("print(1)")
