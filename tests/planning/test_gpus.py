"""GPUs by name, and sizes of memory."""

import pytest

from lightning_kd.planning import GPUS, gpu_named, parse_memory
from lightning_kd.planning.gpus import GPU


@pytest.mark.parametrize("name", list(GPUS))
def test_a_card_has_a_little_less_than_its_name_says_in_gib(name) -> None:
    labelled = int(name.partition("-")[2].removesuffix("GB")) * 2**30
    assert 0.92 * labelled < GPUS[name].memory < labelled


def test_bf16_begins_with_ampere() -> None:
    without = {name for name, gpu in GPUS.items() if not gpu.has_bf16}
    assert without == {"V100-16GB", "V100-32GB", "T4-16GB"}
    assert GPU("32GB", 1).has_bf16  # of a card without a name nothing is refused


def test_names_are_taken_in_any_case() -> None:
    assert gpu_named("a100-80gb") is GPUS["A100-80GB"]


def test_an_unknown_name_is_answered_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match=r"no GPU 'V100'.*V100-32GB.*--memory 32GB"):
        gpu_named("V100")


@pytest.mark.parametrize(
    ("text", "size"),
    [("32GB", 32 * 10**9), ("24gib", 24 * 2**30), ("1.5 GB", 1_500_000_000), ("2TB", 2 * 10**12)],
)
def test_decimal_and_binary_units(text, size) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["32", "GB", "-3GB", "0GB", "32 G", ""])
def test_what_is_no_size_is_refused(text) -> None:
    with pytest.raises(ValueError, match="32GB"):
        parse_memory(text)
