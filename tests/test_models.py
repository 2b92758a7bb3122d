"""From a name, a folder or a config to a model with the task's head; and what cannot be loaded."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from lightning_kd.data.encoding import load_tokenizer
from lightning_kd.models import check_local, head_modules, load_model, unreachable
from lightning_kd.tasks import Classification
from tests import tiny

MNLI = Classification("mnli", ("entailment", "neutral", "contradiction"))
HEADS = {
    "bert": ["classifier", "bert.pooler"],
    "roberta": ["classifier"],
    "gpt2": ["score"],
    "llama": ["score"],
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_config_gives_a_model_with_the_head_the_task_needs(kind) -> None:
    model = load_model(tiny.config(kind), MNLI)
    inputs = tiny.batch()
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    assert logits.shape == (4, 3)
    config: transformers.PretrainedConfig = model.config  # type: ignore[assignment]
    assert config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}
    assert config.label2id == {"entailment": 0, "neutral": 1, "contradiction": 2}
    regression = load_model(tiny.config(kind), tiny.TASKS["regression"])
    assert regression.config.num_labels == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", HEADS)
def test_the_head_is_all_outside_the_encoder_and_bert_s_pooler(kind) -> None:
    assert head_modules(tiny.model(kind)) == HEADS[kind]


def test_a_module_without_an_encoder_is_all_head() -> None:
    assert head_modules(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) == ["0"]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_decoder_without_padding_pads_with_its_end_token(kind) -> None:
    model = load_model(tiny.config(kind), MNLI)
    assert model.config.pad_token_id == 0  # type: ignore[union-attr]


def test_a_folder_gives_its_weights_and_another_task_s_head(tmp_path, capfd) -> None:
    folder = tiny.model_folder(tmp_path / "bert")
    model = load_model(str(folder), MNLI)
    saved = load_file(folder / "model.safetensors")
    own = model.state_dict()
    names = [name for name in saved if not name.startswith("classifier")]
    assert len(names) >= 30
    assert all(torch.equal(own[name], saved[name]) for name in names)
    assert own["classifier.weight"].shape == (3, 8)


def test_loading_leaves_transformers_messages_as_they_were(tmp_path) -> None:
    from transformers.utils import logging

    folder = tiny.model_folder(tmp_path / "bert")
    logging.set_verbosity(30)
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model(str(folder), tiny.TASKS["classification"])
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_a_head_of_the_right_width_is_kept(tmp_path) -> None:
    folder = tiny.model_folder(tmp_path / "bert")
    own = load_model(str(folder), tiny.TASKS["classification"]).state_dict()
    saved = load_file(folder / "model.safetensors")
    assert torch.equal(own["classifier.weight"], saved["classifier.weight"])


def test_a_home_folder_may_be_written_with_a_tilde(tmp_path, monkeypatch) -> None:
    tiny.model_folder(tmp_path / "bert")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert head_modules(load_model("~/bert", MNLI)) == HEADS["bert"]


@pytest.mark.parametrize("damage", ["missing", "of another shape"])
def test_encoder_weights_that_are_missing_or_of_another_shape_are_named(tmp_path, damage) -> None:
    folder = tiny.model_folder(tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    lost = "bert.encoder.layer.1.output.dense.weight"
    del weights[lost]
    if damage == "of another shape":
        weights[lost] = torch.zeros(8, 15)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"no weights for .*{lost}.* give a complete model"):
        load_model(str(folder), tiny.TASKS["classification"])


@pytest.mark.parametrize(
    "path", ["./nowhere", "~/no/where", "/no/where", "assets/nowhere", "a/b/c", "../x/y"]
)
def test_a_path_without_a_folder_is_said_to_be_one(path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model folder .*lightning-kd assets"):
        check_local(path)
    with pytest.raises(FileNotFoundError):
        load_model(path, MNLI)


@pytest.mark.parametrize("name", ["roberta-base", "owner/model"])
def test_hub_names_are_not_taken_for_paths(name) -> None:
    check_local(name)


def test_a_name_that_neither_hub_nor_cache_has_tells_the_offline_way() -> None:
    with pytest.raises(ConnectionError, match=r"nobody/nothing is neither .*offline\.yaml"):
        load_model("nobody/nothing", MNLI)


def test_a_folder_that_is_no_model_is_said_to_be_none(tmp_path) -> None:
    with pytest.raises(ValueError, match="Unrecognized model in"):
        load_model(str(tmp_path), MNLI)
    tiny.config().save_pretrained(tmp_path)  # without weights
    with pytest.raises(ValueError, match=f"{tmp_path} is not a loadable Hugging Face folder"):
        load_model(str(tmp_path), MNLI)


def test_what_could_not_be_loaded_is_a_folder_or_a_name(tmp_path) -> None:
    assert isinstance(unreachable(str(tmp_path), OSError("no config")), ValueError)
    assert isinstance(unreachable("owner/model", OSError("no network")), ConnectionError)


def test_a_decoder_without_padding_takes_the_one_that_the_data_are_padded_with(tmp_path) -> None:
    folder = tiny.model_folder(tmp_path, "gpt2", eos_token_id=3, pad_token_id=None)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "pad_token_id": None}))
    model = load_model(str(folder), tiny.TASKS["classification"]).eval()
    padding = load_tokenizer(str(folder), 16).pad_token_id
    alone = torch.tensor([[7, 8, 9]])
    padded = nn.functional.pad(alone, (0, 2), value=padding)
    mask = (padded != padding).long()
    assert torch.allclose(
        model(input_ids=padded, attention_mask=mask).logits, model(input_ids=alone).logits
    )


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_an_encoder_is_no_language_model_unless_it_is_made_one(kind, tmp_path) -> None:
    task = tiny.TASKS["text"]
    with pytest.raises(ValueError, match=rf"the model \({kind}\) reads texts both ways .*smollm2"):
        load_model(tiny.config(kind), task)
    model = load_model(tiny.config(kind, is_decoder=True), task)
    model.config.is_decoder = False  # type: ignore[union-attr]
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    with pytest.raises(ValueError, match=rf"{tmp_path} \({kind}\) reads texts both ways"):
        load_model(str(tmp_path), task)
