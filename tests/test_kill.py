"""The SIGKILL harness itself: it kills at the moment asked for, and says so when it cannot."""

import os
import textwrap
import time

import pytest

from tests.kill import after, kill_and_resume, run_to_end, run_until_killed

COUNTS = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
counter = pathlib.Path(sys.argv[1])
start = int(counter.read_text()) if counter.exists() else 0
child = os.fork()
if child == 0:
    time.sleep(1000)
print("child", child)
for number in range(start, 6):
    counter.write_text(str(number))
    print("step", number)
    if start == 0:
        time.sleep(0.05)
os.kill(child, signal.SIGKILL)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "counts.py"
    path.write_text(textwrap.dedent(COUNTS))
    return path


def steps(lines) -> list[int]:
    return [int(line.split()[1]) for line in lines if line.startswith("step")]


def test_kills_at_the_line_asked_for_and_runs_again_from_there(script, tmp_path) -> None:
    runs = kill_and_resume([script, tmp_path / "counter"], after(3, r"^step"))
    assert steps(runs.killed) == [0, 1, 2]
    assert steps(runs.resumed)[0] in (2, 3)  # it may have come a step further before it died
    assert steps(runs.resumed)[-1] == 5


def test_a_file_can_be_the_moment_and_other_arguments_the_resume(script, tmp_path) -> None:
    counter, other = tmp_path / "counter", tmp_path / "other"
    runs = kill_and_resume([script, counter], lambda _: counter.exists(), [script, other])
    assert steps(runs.killed) in ([], [0])
    assert steps(runs.resumed) == list(range(6))


def test_the_whole_process_group_dies(script, tmp_path) -> None:
    lines = run_until_killed([script, tmp_path / "counter"], after(1, "step"))
    child = int(lines[0].split()[1])
    for _ in range(200):  # init takes a moment to collect an orphan
        if not _runs(child):
            return
        time.sleep(0.01)
    raise AssertionError(f"process {child} outlived its group")


def _runs(pid) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_lines_of_processes_that_share_the_pipe_stay_whole(script) -> None:
    script.write_text(
        "import os\n"
        "from tests.kill import say\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n"
        "        for number in range(2000):\n"
        "            say(f'step {number}')\n"
        "        os._exit(0)\n"
        "for _ in range(3):\n"
        "    os.wait()\n"
    )
    assert sorted(steps(run_to_end([script]))) == sorted([*range(2000)] * 3)


def test_a_script_that_ends_or_hangs_before_the_moment_fails_with_its_output(
    script, tmp_path
) -> None:
    with pytest.raises(AssertionError, match=r"ended before it was to be killed:(.|\n)*step 5"):
        run_until_killed([script, tmp_path / "counter"], after(9, "step"))
    script.write_text("import time; print('hangs'); time.sleep(1000)")
    with pytest.raises(AssertionError, match=r"no moment to kill it in 1 s:\nhangs"):
        run_until_killed([script], after(9, "step"), timeout=1)


def test_a_run_that_fails_fails_the_test_with_its_output(script) -> None:
    script.write_text("raise SystemExit('no such rank')")
    with pytest.raises(AssertionError, match="no such rank"):
        run_to_end([script])


def test_the_script_sees_the_project_and_the_tests_environment(script) -> None:
    script.write_text("import lightning_kd, os; print(os.environ['HF_HUB_OFFLINE'])")
    assert run_to_end([script]) == [os.environ["HF_HUB_OFFLINE"]]
