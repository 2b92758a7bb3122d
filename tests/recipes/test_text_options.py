"""Benchmarks of texts on the command line: each option has a type that a word or number fills."""

import pytest
from jsonargparse import ArgumentParser

from lightning_kd.data import DART, E2E, GSM8K, Instructions, TriviaQA, WebNLG
from lightning_kd.data.generation import GenerationDataModule

ALL: list[type[GenerationDataModule]] = [DART, E2E, GSM8K, Instructions, TriviaQA, WebNLG]
SHARED = ["--data.packing=true", "--data.chat_template=never", "--data.generate_examples=7",
          "--data.mask_prompt=false", "--data.max_length=64", "--data.holdout_fraction=0.1",
          "--data.group_by_length=true", "--data.tokenizer=some/model"]  # fmt: skip
OWN = {
    GSM8K: ["--data.keep_calculations=false", "--data.prompt_template={question}\n"],
    TriviaQA: ["--data.source=rc"],
    E2E: ["--data.prompt_template={facts}{end}"],
}


@pytest.mark.parametrize("benchmark", ALL)
def test_a_command_line_makes_the_data_module(benchmark) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(benchmark, "data")
    for task in benchmark.tasks:
        given = [f"--data.task={task}", *SHARED, *OWN.get(benchmark, [])]
        made = parser.instantiate_classes(parser.parse_args(given)).data
        assert isinstance(made, benchmark)
        assert (made.packing, made.chat_template, made.generate_examples) == (True, "never", 7)
        assert (made.mask_prompt, made.max_length, made.holdout_fraction) == (False, 64, 0.1)
    if benchmark is GSM8K:
        assert (made.keep_calculations, made.prompt_template) == (False, "{question}\n")
    elif benchmark is TriviaQA:
        assert made.source == "rc"
    elif benchmark is E2E:
        assert made.prompt_template == "{facts}{end}"
