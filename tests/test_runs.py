"""A run folder is one command's at a time, until it ends however it ends."""

import os
import signal
import time

import pytest
from lightning.pytorch.utilities import rank_zero_only

from lightning_kd import runs
from lightning_kd.runs import hold, shared


def other_process(folder) -> int:
    """The number of a process that holds the folder until it is killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            runs._held.clear()  # a child has its parent's memory
            hold(folder)
            os.write(writing, b"held")
            time.sleep(1000)
        finally:
            os._exit(1)
    os.close(writing)
    assert os.read(reading, 4) == b"held"
    os.close(reading)
    return child


def test_a_folder_in_which_another_process_works_is_refused_until_that_is_dead(tmp_path) -> None:
    child = other_process(tmp_path)
    try:
        with pytest.raises(ValueError, match=f"another process is working in {tmp_path}; let it"):
            hold(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with shared(tmp_path):
        hold(tmp_path)
        hold(tmp_path)  # its own
    child = other_process(tmp_path)  # it was given up
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert list(tmp_path.iterdir()) == []


def test_the_other_processes_of_a_run_ask_for_nothing(tmp_path, monkeypatch) -> None:
    child = other_process(tmp_path)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    try:
        hold(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
