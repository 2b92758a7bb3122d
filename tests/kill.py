"""SIGKILL harness: start a Python script, kill it at a chosen moment, run it again.

Nothing in the child can react to SIGKILL: no `finally`, no signal handler, no flush. What is on
disk then is what a power cut or the out-of-memory killer leaves.

    runs = kill_and_resume([script, folder], after(3, r"^step"))
"""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
When = Callable[[str], bool]


@dataclass(frozen=True)
class Runs:
    """Lines printed by the run that was killed and by the one that followed it."""

    killed: list[str]
    resumed: list[str]


def after(count: int, pattern: str) -> When:
    """Trigger: the `count`-th line (from 1) in which the regular expression `pattern` is found."""
    seen = 0

    def when(line: str) -> bool:
        nonlocal seen
        seen += re.search(pattern, line) is not None
        return seen >= count

    return when


def say(line: str) -> None:
    """Print a line for `When`, in one piece even where several processes share the pipe.

    `print` to an unbuffered stream writes the words and the line's end one by one.
    """
    os.write(1, f"{line}\n".encode())


def run_until_killed(args: Sequence[str | Path], when: When, timeout: float = 50) -> list[str]:
    """Start `python *args`; SIGKILL its process group as soon as `when` is true.

    `when` gets each printed line, and "" every few milliseconds in between, so that it may look at
    files instead: `lambda _: path.exists()`. A script that ends before that fails the test.
    """
    lines: list[str] = []
    arriving: queue.Queue[str | None] = queue.Queue()
    process = _start(args)
    threading.Thread(target=_read, args=(process, arriving), daemon=True).start()
    deadline = time.monotonic() + timeout
    try:
        while time.monotonic() < deadline:
            try:
                line = arriving.get(timeout=0.002)
            except queue.Empty:
                line = ""
            if line is None:
                raise AssertionError("ended before it was to be killed:\n" + "\n".join(lines))
            lines += [line] if line else []
            if when(line):
                return lines
        raise AssertionError(f"no moment to kill it in {timeout} s:\n" + "\n".join(lines))
    finally:
        _kill(process)


def run_to_end(args: Sequence[str | Path], timeout: float = 50) -> list[str]:
    """Run `python *args` undisturbed; return its lines, and fail the test if it fails."""
    process = _start(args)
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        _kill(process)
    assert process.returncode == 0, output
    return output.splitlines()


def kill_and_resume(
    args: Sequence[str | Path],
    when: When,
    resume_args: Sequence[str | Path] | None = None,
    timeout: float = 50,
) -> Runs:
    """Kill the first run when `when` is true; run `resume_args` (default: the same) to the end."""
    killed = run_until_killed(args, when, timeout)
    return Runs(killed, run_to_end(args if resume_args is None else resume_args, timeout))


def _start(args: Sequence[str | Path]) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", *map(str, args)]
    # its own session, hence process group: loader workers and DDP children die with it
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def _read(process: subprocess.Popen[str], arriving: "queue.Queue[str | None]") -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            arriving.put(line.rstrip("\n"))
    arriving.put(None)


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
