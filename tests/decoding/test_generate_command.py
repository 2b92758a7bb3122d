"""``lightning-kd generate``: every way to decode, folders and checkpoints, and what is wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from lightning_kd.commands import main
from lightning_kd.decoding import calibrate_thresholds, greedy
from lightning_kd.decoding.console import encode
from lightning_kd.decoding.loading import load_decoder
from lightning_kd.methods import FineTuning, SoFT
from lightning_kd.models import load_model
from tests import tiny
from tests.conformance.matrix import fit

PROMPT = "w3 w1 w4 w1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A Llama of three blocks and a tokenizer without padding and without chat template."""
    made = tmp_path_factory.mktemp("decoder")
    model = tiny.config("llama", num_hidden_layers=3, initializer_range=0.3)
    load_model(model, tiny.TASKS["text"]).save_pretrained(made)  # type: ignore[operator]
    tiny.tokenizer_folder(made)
    settings = json.loads((made / "tokenizer_config.json").read_text())
    settings = {name: value for name, value in settings.items() if name != "pad_token"}
    (made / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": None}))
    return made


def lines(capsys, *args) -> list[str]:
    main(["generate", *(str(arg) for arg in args)])
    return capsys.readouterr().out.rstrip("\n").split("\n")


def text_of(folder, depth=None, count=8) -> str:
    model, words = load_decoder(str(folder))
    assert words.pad_token is None
    made = greedy(model, words(PROMPT)["input_ids"], count, depth=depth)
    return words.decode(made.tokens, skip_special_tokens=True)


WAYS = [
    ([], "average depth 3.0"),
    (["--depth", "2"], "average depth 2.0"),
    (["--exits", "1", "2", "--thresholds", "1.5"], "average depth 3.0"),
    (["--exits", "1", "2", "--thresholds", "1.5", "2", "--confidence", "margin"], "depth 3.0"),
    (["--draft", "2", "--window", "3"], "drafted tokens accepted"),
    (["--draft", "1"], "drafted tokens accepted"),
    (["--draft", "2", "--window", "heuristic"], "drafted tokens accepted"),
]


@pytest.mark.parametrize(("options", "words"), WAYS)
def test_every_way_prints_its_text_and_its_speed(options, words, folder, capsys) -> None:
    found = lines(capsys, folder, "--prompt", PROMPT, "--max_new_tokens", 8, *options)
    assert found[0] == text_of(folder, depth=2 if "--depth" in options else None)
    assert words in found[-1]
    assert "tokens/s" in found[-1]


def test_comparing_says_whether_the_text_is_the_same(folder, capsys) -> None:
    options = [folder, "--prompt", PROMPT, "--max_new_tokens", 8, "--compare"]
    same = lines(capsys, *options, "--draft", "auto")
    assert same[0].startswith("tuned on this prompt: exit ")
    assert "the same text" in same[-2]
    assert same[-1].endswith("x its tokens/s")
    other = lines(capsys, *options, "--depth", "1")
    assert text_of(folder, depth=1) != text_of(folder)
    assert "another text" in other[-3]
    assert other[-2] == text_of(folder)


def test_a_checkpoints_student_decodes_with_the_tokenizer_it_began_from(
    folder, tmp_path, capsys
) -> None:
    module = FineTuning(str(folder), "alpaca", learning_rate=0.05)
    fit(module, folder=tmp_path / "checkpoints", max_steps=2)
    path = tmp_path / "checkpoints" / "step=2.ckpt"
    found = lines(capsys, path, "--prompt", PROMPT, "--max_new_tokens", 8)
    _, words = load_decoder(str(folder))
    expected = greedy(module.student, words(PROMPT)["input_ids"], 8)
    assert found[0] == words.decode(expected.tokens, skip_special_tokens=True)


def test_a_chat_template_is_used_unless_the_prompt_is_raw(folder) -> None:
    _, words = load_decoder(str(folder))
    words.chat_template = (
        "{% for m in messages %}w0 {{ m['content'] }} w9{% endfor %}"
        "{% if add_generation_prompt %} w8{% endif %}"
    )
    plain = words(f"w0 {PROMPT} w9 w8", add_special_tokens=False)["input_ids"]
    assert encode(words, PROMPT, raw=False) == plain
    assert encode(words, PROMPT, raw=True) == words(PROMPT)["input_ids"]


def failing(capsys, *args) -> str:
    with pytest.raises(SystemExit) as end:
        main(["generate", *(str(arg) for arg in args)])
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return str(error)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--depth", "4"], "exits 1 to 3, got 4"),
        (["--exits", "1", "5", "--thresholds", "0.5"], "exits 1 to 3, got 5"),
        (["--exits", "1", "2", "--thresholds", "0.1", "0.2", "0.3"], "3 thresholds for the exits"),
        (["--exits", "1", "2", "--thresholds", "nan", "1"], "thresholds must be numbers, got [nan"),
        (["--exits", "2", "2", "--thresholds", "1"], "blocks from 1 to 3, got [2, 2]"),
        (["--exits", "1"], "--exits and --thresholds (or --calibrate) belong together"),
        (["--thresholds", "1"], "--exits and --thresholds (or --calibrate) belong together"),
        (["--calibrate", "none.txt"], "--exits and --thresholds (or --calibrate) belong together"),
        (["--exits", "1", "--calibrate", "none.txt"], "there is no file none.txt"),
        (["--exits", "1", "--thresholds", "1", "--calibrate", "f"], "drop it, or --thresholds"),
        (["--exits", "1", "--thresholds", "1", "--agreement", "0.9"], "0.9 is of --calibrate"),
        (["--depth", "1", "--draft", "1"], "--depth and --draft are different ways"),
        (["--window", "4"], "--window 4 is of drafts"),
        (["--draft", "two"], "--draft is a number, or auto; got 'two'"),
        (["--draft", "1", "--window", "x"], "--window is a number, or auto or heuristic"),
        (["--draft", "heuristic"], "--draft is a number, or auto"),
        (["--max_new_tokens", "0"], "max_new_tokens must be at least 1, got 0"),
        (["--max_new_tokens", "30"], "36 positions, the model has 24"),
    ],
)
def test_options_that_cannot_be_followed_are_answered(options, words, folder, capsys) -> None:
    few = ["--max_new_tokens", 8]
    assert words in failing(capsys, folder, "--prompt", PROMPT, *few, *options)


def test_what_is_no_decoder_is_named(folder, tmp_path, capsys, monkeypatch) -> None:
    prompt = ["--prompt", PROMPT]
    assert "there is no model folder ./none" in failing(capsys, "./none", *prompt)
    assert "no checkpoint none.ckpt" in failing(capsys, "none.ckpt", *prompt)
    assert "no file none.gguf" in failing(capsys, "none.gguf", *prompt)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("lightning_kd.decoding.loading.find_spec", lambda _: None)
    assert "needs the package gguf" in failing(capsys, tmp_path / "a.gguf", *prompt)
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    assert "not written by a method" in failing(capsys, tmp_path / "other.ckpt", *prompt)


@pytest.mark.parametrize("name", ["model.safetensors", "a.gguf", "a.ckpt"])
def test_damaged_files_are_named(name, folder, tmp_path, capsys) -> None:
    for file in ("config.json", "model.safetensors"):
        shutil.copy(folder / file, tmp_path)
    damaged = tmp_path / name
    damaged.write_bytes((folder / "model.safetensors").read_bytes()[:-9] if "m" in name else b"ju")
    source = tmp_path if name == "model.safetensors" else damaged
    error = failing(capsys, source, "--prompt", PROMPT)
    assert "is not a loadable" in error or "is cut off or" in error
    assert str(source) in error


def test_another_models_tokenizer_is_refused(folder, tmp_path, capsys) -> None:
    small = tiny.config("llama", num_hidden_layers=3, vocab_size=6)
    load_model(small, tiny.TASKS["text"]).save_pretrained(tmp_path)  # type: ignore[operator]
    error = failing(capsys, tmp_path, "--prompt", PROMPT, "--tokenizer", folder)
    assert "the model rows 0 to 5; give the model's own with --tokenizer" in error


def test_one_block_has_no_exit_that_could_draft(tmp_path, capsys) -> None:
    one = tiny.config("llama", num_hidden_layers=1)
    load_model(one, tiny.TASKS["text"]).save_pretrained(tmp_path)  # type: ignore[operator]
    tiny.tokenizer_folder(tmp_path)
    prompt = ["--prompt", PROMPT, "--max_new_tokens", 8]
    for draft, words in (("auto", "no exit that could draft"), ("1", "is the whole model; decode")):
        assert words in failing(capsys, tmp_path, *prompt, "--draft", draft)


def test_a_draft_is_tuned_where_the_prompt_leaves_little_room(folder, capsys) -> None:
    options = ["--prompt", " ".join(["w3 w1"] * 8), "--max_new_tokens", 5, "--draft", "auto"]
    assert lines(capsys, folder, *options)[0].startswith("tuned on this prompt")


def test_calibrated_thresholds_are_printed_and_used(folder, tmp_path, capsys) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("w1 w2 w3\n\nw4 w5\n")
    options = [folder, "--prompt", PROMPT, "--max_new_tokens", 8, "--exits", 1, 2]
    found = lines(capsys, *options, "--calibrate", prompts, "--agreement", 0.6)
    model, words = load_decoder(str(folder))
    expected = calibrate_thresholds(
        model, [words(text)["input_ids"] for text in ("w1 w2 w3", "w4 w5")], [1, 2],
        agreement=0.6, max_new_tokens=8,
    )  # fmt: skip
    printed = found[0].partition("--thresholds ")[2].partition(";")[0].split()
    assert [float(value) for value in printed] == pytest.approx(expected.thresholds)
    assert found[0].startswith(f"calibrated on 2 prompts ({expected.num_tokens} tokens)")
    again = lines(capsys, *options, "--thresholds", *printed)
    assert again[0] == found[2]
    assert again[-1].partition("average")[2] == found[-1].partition("average")[2]
    prompts.write_text(" \n")
    assert "has no prompts; write one a line" in failing(capsys, *options, "--calibrate", prompts)


def test_heads_of_their_own_are_exported_before_they_decode(folder, tmp_path, capsys) -> None:
    method = SoFT(str(folder), "alpaca", exits=[1, 2], head="per_exit", train="heads")
    fit(method, folder=tmp_path / "run", max_steps=1)
    source = tmp_path / "run" / "step=1.ckpt"
    options = ["--prompt", PROMPT, "--max_new_tokens", 8]
    assert lines(capsys, source, *options)[0] == text_of(folder)
    for way in (["--depth", 1], ["--draft", 2], ["--exits", 1, "--thresholds", 1]):
        error = failing(capsys, source, *options, *way)
        assert f"`lightning-kd export {source} --layer 1`" in error
    main(["export", str(source), "--layer", "1", "--output", str(tmp_path / "one")])
    capsys.readouterr()
    assert lines(capsys, tmp_path / "one", *options)[-1].startswith("8 tokens")


def test_a_classifiers_checkpoint_has_no_layers_to_decode_with(tmp_path, capsys) -> None:
    student = str(tiny.model_folder(tmp_path / "bert"))
    fit(FineTuning(student, "sst2"), folder=tmp_path / "run", max_steps=1)
    error = failing(capsys, tmp_path / "run" / "step=1.ckpt", "--prompt", PROMPT)
    assert "BertForSequenceClassification has no layer stack" in error


def test_a_folder_without_tokenizer_asks_for_one(folder, tmp_path, capsys) -> None:
    bare = tmp_path / "bare"
    load_decoder(str(folder))[0].save_pretrained(bare)  # type: ignore[operator]
    assert "--tokenizer" in failing(capsys, bare, "--prompt", PROMPT)
    options = ["--prompt", PROMPT, "--max_new_tokens", 8, "--tokenizer", folder]
    assert lines(capsys, bare, *options)[0] == text_of(folder)
