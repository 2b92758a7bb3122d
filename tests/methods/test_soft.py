"""SoFT's loss is that of the truncated models; its exits leave as plain models."""

from typing import Any

import lightning as L
import pytest
import torch
import transformers
from torch import Tensor

from lightning_kd.methods import SoFT
from lightning_kd.nn import DecoderStack
from lightning_kd.tasks import CausalLM
from tests import decoders, tiny
from tests.decoders import DEPTH, EXITS, independently_cut

TASK = CausalLM("alpaca", max_new_tokens=5)
NEW_WEIGHTS = decoders.VOCABULARY * decoders.WIDTH


def batch(rows=slice(None)) -> dict[str, Tensor]:
    tokens = decoders.batch()
    whole = {**tokens, "labels": decoders.labels(tokens), "idx": torch.arange(3)}
    whole["labels"][2, 1] = 5  # one target; the first has seven, the second four
    return {key: value[rows] for key, value in whole.items()}


def soft(family="llama", tied=False, **arguments) -> Any:
    return SoFT(decoders.made(family, tied), TASK, **{"exits": EXITS, **arguments})


def inputs() -> dict[str, Tensor]:
    return {key: batch()[key] for key in ("input_ids", "attention_mask")}


def truncated_loss(model, depth) -> Any:
    tokens = batch()
    return independently_cut(model, depth)(**inputs(), labels=tokens["labels"]).loss


@pytest.mark.parametrize(
    ("loss", "shares"),
    [("mean", [1 / 3] * 3), ("sum", [1, 1, 1]), ("weighted", [1 / 6, 1 / 3, 1 / 2])],
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_loss_is_a_sum_over_truncated_models(family, loss, shares) -> None:
    module = soft(family, loss=loss, chunk_size=3)
    expected = [float(truncated_loss(module.student, depth).detach()) for depth in EXITS]
    total = sum(share * value for share, value in zip(shares, expected, strict=True))
    assert float(module.objective(batch())["sorted"].detach()) == pytest.approx(total, abs=3e-6)


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    module = soft()
    whole = module.objective(batch())["sorted"]
    parts = [
        module.objective({**batch(rows), "num_targets": torch.tensor(12 / 2)})["sorted"]
        for rows in (slice(0, 1), slice(1, 3))
    ]
    assert float((sum(parts) / 2 - whole).abs().detach()) < 1e-6


def test_the_drawn_exit_expects_the_sorted_gradient() -> None:
    module, drawn = soft(), soft(loss="random")
    weights = list(module.student.parameters())
    expected = torch.autograd.grad(module.objective(batch())["sorted"], weights)
    drawn.student.load_state_dict(module.student.state_dict())
    for size in EXITS:  # each is drawn as often
        drawn.resize(size)
        (drawn.objective(batch())["sorted"] / len(EXITS)).backward()
    for parameter, gradient in zip(drawn.student.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)


def loader(batches=1) -> Any:
    return torch.utils.data.DataLoader([batch()] * batches, batch_size=None)  # type: ignore[arg-type]


class Sizes(L.Callback):
    """Notes the size of every step, and what was logged."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.logged: set[str] = set()

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.sizes.append(pl_module.size)
        self.logged |= set(trainer.callback_metrics)


def fit(module, steps=4, **settings) -> Sizes:
    notes = Sizes()
    trainer = tiny.trainer(notes, max_epochs=1, log_every_n_steps=1, **settings)
    trainer.fit(module, loader(steps), loader())
    return notes


def test_one_exit_is_drawn_for_each_step_and_the_deepest_answers_after() -> None:
    module = soft(loss="random", seed=3)
    notes = fit(module, 6)
    assert notes.sizes == [module.sampler.draw(step) for step in range(6)]
    assert len(set(notes.sizes)) > 1
    assert {f"train/exit_{n}" for n in set(notes.sizes)} <= notes.logged
    assert module.size == DEPTH


def test_every_exit_is_logged_with_its_own_loss() -> None:
    module = soft(loss="sum", learning_rate=0.0)
    expected = {f"train/exit_{n}": float(truncated_loss(module.student, n).detach()) for n in EXITS}
    trainer = tiny.trainer(max_epochs=1, log_every_n_steps=1)
    trainer.fit(module, loader(), loader())
    found = {key: float(trainer.callback_metrics[key]) for key in expected}
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("arguments", [{}, {"head": "per_exit"}])
def test_one_pass_answers_at_every_exit_as_each_exit_alone(arguments) -> None:
    module = soft(**arguments)
    tokens = batch() | {"prompt_lengths": torch.tensor([2, 2, 1]), "generate": torch.ones(3).bool()}
    ran: list[int] = []
    module.stack.layers[0].register_forward_hook(lambda *_: ran.append(1))
    with torch.no_grad():
        list(module.predictions(batch()))
        assert len(ran) == 1
        for size, prediction, seconds in module.predictions(tokens):
            with module.at_size(size):
                alone = module.predict(tokens)
            torch.testing.assert_close(prediction.logits, alone.logits)
            assert torch.equal(prediction.generated, alone.generated)
            assert seconds > 0
            cut = independently_cut(module.student, size)
            if module.heads and size < DEPTH:
                cut.lm_head.weight.data = module.heads[str(size)].weight
            torch.testing.assert_close(
                prediction.logits[0], cut(**inputs()).logits[0, 1:8], atol=1e-5, rtol=1e-5
            )
    assert module.size == DEPTH


def test_the_predict_stage_answers_at_its_exit() -> None:
    module = soft(predict_exit=2)
    with torch.no_grad():
        found = module.predict_step(batch(), 0)["answers"]
        module.resize(2)
        expected = TASK.answers(module.predict(batch()), batch())
    assert torch.equal(found, expected)


def test_plain_fine_tuning_trains_the_last_exit_and_reports_all() -> None:
    module = soft(exits=[DEPTH], evaluation_exits=EXITS)
    expected = truncated_loss(module.student, DEPTH)
    torch.testing.assert_close(module.objective(batch())["sorted"], expected)
    reported = tiny.trainer().validate(module, loader(), verbose=False)
    assert {f"val/layer_{n}/perplexity" for n in EXITS} <= set(reported[0])


@pytest.mark.parametrize(
    ("arguments", "sizes"),
    [
        ({"exits": [DEPTH], "evaluation_exits": EXITS}, [DEPTH]),
        ({"head": "per_exit", "train": "heads"}, EXITS[:-1]),
        ({"exits": [DEPTH], "evaluation_exits": [2, 3]}, [2, 3]),
    ],
)
def test_exits_that_train_choose_the_checkpoint(arguments, sizes) -> None:
    module = soft(**arguments)
    (found,) = tiny.trainer().validate(module, loader(), verbose=False)
    chosen = [found[f"val/layer_{n}/perplexity"] for n in sizes]
    assert found[module.monitor] == pytest.approx(sum(chosen) / len(chosen))


def test_extracted_fine_tuning_is_a_shorter_student() -> None:
    module = soft(student_layers=4, exits=None, exit_start=4)
    assert module.exits == [4]
    whole = decoders.made("llama")
    torch.testing.assert_close(module.objective(batch())["sorted"], truncated_loss(whole, 4))


@pytest.mark.parametrize("tied", [False, True])
def test_separate_heads_train_alone_and_leave_as_plain_heads(tied, tmp_path) -> None:
    module = soft(tied=tied, head="per_exit", train="heads", learning_rate=0.1)
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    assert trained == ["heads.2.weight", "heads.4.weight"]
    assert module.num_trainable_parameters() == (len(EXITS) - 1) * NEW_WEIGHTS
    assert module.num_trainable_parameters(2) == NEW_WEIGHTS
    assert module.num_trainable_parameters(DEPTH) == 0
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert torch.equal(before["heads.2.weight"], before["student.lm_head.weight"])
    fit(module)
    changed = [n for n, value in module.state_dict().items() if not torch.equal(value, before[n])]
    assert changed == trained
    with torch.no_grad():
        for size in EXITS:
            module.export(tmp_path / str(size), size)
            again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / str(size))
            assert set(again.state_dict()) <= set(module.student.state_dict())
            assert again.config.tie_word_embeddings == (tied and size == DEPTH)
            module.resize(size)
            expected = TASK.predict(again, batch()).logits
            assert torch.equal(module.predict(batch()).logits, expected)
    assert (module.student.lm_head.weight is module.student.model.embed_tokens.weight) == tied
    assert module.student.config.tie_word_embeddings == tied


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("gpt2", True), ("qwen2", False)])
def test_every_exit_leaves_as_a_plain_model(family, tied, tmp_path) -> None:
    module = soft(family, tied).eval()
    with torch.no_grad():
        for size in (None, *EXITS):
            module.export(tmp_path / str(size), size)
            again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / str(size))
            module.resize(size or DEPTH)
            expected = TASK.predict(again, batch()).logits
            assert torch.equal(module.predict(batch()).logits, expected)
            assert len(DecoderStack.of(again).layers) == (size or DEPTH)
            assert again.config.sorted_exits == [n for n in EXITS if n <= (size or DEPTH)]
    assert "sorted_exits" not in module.student.config.to_dict()


def test_trainable_weights_of_a_size_are_those_of_the_truncated_model() -> None:
    for tied in (False, True):
        module = soft(tied=tied)
        for size in EXITS:
            cut = independently_cut(module.student, size)
            assert module.num_trainable_parameters(size) == cut.num_parameters()
            separate = soft(tied=tied, head="per_exit")
            # a head of its own comes beside the embedding, or in the place of the model's
            more = NEW_WEIGHTS if tied and size < DEPTH else 0
            assert separate.num_trainable_parameters(size) == cut.num_parameters() + more


def test_a_checkpoint_with_heads_answers_as_before(tmp_path) -> None:
    module = soft(head="per_exit", loss="weighted")
    fit(module, 2)
    trainer = tiny.trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = SoFT.load_from_checkpoint(
        tmp_path / "a.ckpt", student=decoders.made("llama"), task=TASK
    )
    assert again.exits == EXITS
    assert again.loss == "weighted"
    tokens = batch()
    for module_ in (module, again):
        module_.eval().resize(2)
    with torch.no_grad():
        assert torch.equal(again.predict(tokens).logits, module.predict(tokens).logits)


@pytest.mark.parametrize(
    ("arguments", "exits"),
    [
        ({"exits": [2]}, [2, 6]),
        ({"exits": None, "exit_start": 2, "exit_every": 3}, [2, 5, 6]),
        ({"exits": None, "exit_start": 2, "exit_every": 4}, [2, 6]),
        ({"exits": None}, [6]),
    ],
)
def test_the_deepest_exit_is_always_there(arguments, exits) -> None:
    assert soft(**arguments).exits == exits


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exits": [7]}, "the model has exits 1 to 6, got 7$"),
        ({"exits": [True, 4]}, "the model has exits 1 to 6, got True"),
        ({"exits": [4, 2]}, r"ascending numbers of blocks from 1 to 6, got \[4, 2\]"),
        ({"exits": []}, r"from 1 to 6, got \[\]"),
        ({"evaluation_exits": [0]}, "exits 1 to 6, got 0"),
        ({"predict_exit": 9}, "exits 1 to 6, got 9"),
        ({"loss": "median"}, "loss must be mean, sum, weighted or random, got 'median'"),
        ({"head": "none"}, "head must be shared or per_exit, got 'none'"),
        ({"train": "norm"}, "train must be all or heads, got 'norm'"),
        ({"exit_every": 0}, "exit_every must be at least 1, got 0"),
        ({"head": "per_exit", "exits": [6]}, r"needs an exit before the deepest, got \[6\]"),
        ({"train": "heads", "tied": True}, "would train the embedding too"),
    ],
)
def test_errors_name_the_value(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        soft(**arguments)


def test_other_tasks_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="predicts tokens, which sst2 does not ask for"):
        SoFT(tiny.model("llama"), "sst2")
    with pytest.raises(ValueError, match=r"exits after \[2, 4, 6\] blocks, got 3"):
        soft().resize(3)


def test_drawn_exits_need_a_strategy_that_expects_unused_weights() -> None:
    module = soft(loss="random")
    module.trainer = L.Trainer(strategy="ddp", accelerator="cpu", devices=2, logger=False)
    with pytest.raises(ValueError, match="ddp_find_unused_parameters_true"):
        module.setup("fit")
    module.trainer = L.Trainer(
        strategy="ddp_find_unused_parameters_true", accelerator="cpu", devices=2, logger=False
    )
    module.setup("fit")
