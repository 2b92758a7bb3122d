"""Two gloo processes stay replicas of each other, whatever ranks they draw (check A13)."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.methods.two_processes import MODES

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.ddp, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict[str, Any]]:
    """What each of the two processes found, by mode."""
    folder = tmp_path_factory.mktemp("ddp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.methods.two_processes", str(folder)]
    started: list[subprocess.Popen[bytes]] = []
    for process in ("0", "1"):
        environment = {**os.environ, **address, "LOCAL_RANK": process}
        with (folder / f"{process}.log").open("w") as log:
            started.append(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
            )
    try:
        codes = [child.wait(timeout=250) for child in started]
    finally:
        for child in started:
            child.kill()
    assert codes == [0, 0], (folder / "0.log").read_text()[-2000:]
    return [torch.load(folder / f"{process}.pt", weights_only=True) for process in range(2)]


@pytest.mark.parametrize("mode", MODES)
def test_replicas_are_equal_bit_for_bit_after_twenty_steps(mode, results) -> None:
    first, second = (result[mode]["weights"] for result in results)
    assert len(first) == 12
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "per_process"])
def test_in_global_mode_both_draw_the_same_rank(mode, results) -> None:
    first, second = (result[mode]["ranks"] for result in results)
    assert len(first) == 20
    assert first == second
    assert len(set(first)) > 1


def test_in_per_process_mode_each_draws_its_own(results) -> None:
    first, second = (result["per_process"]["ranks"] for result in results)
    assert len(first) == len(second) == 20
    assert first != second
