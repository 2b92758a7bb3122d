"""DyLoRA as a module: sizes, evaluation at every rank, merging, arguments and refusals."""

import warnings
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy

from lightning_kd.methods import DyLoRA
from lightning_kd.nn import DynamicLoRALinear
from lightning_kd.optim import NestedAdamW
from tests import tiny

TASK = tiny.TASKS["classification"]
R = 4


def made(kind: str = "bert", seed: int = 0, **settings) -> DyLoRA:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = DyLoRA(tiny.model(kind), TASK, **{"max_rank": R, **settings})
    return tiny.filled(module)


def logits(module: DyLoRA, rank: int, **batch) -> torch.Tensor:
    with torch.no_grad(), module.at_size(rank):
        return module.predict(tiny.batch(**batch)).logits


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({}, [1, 2, 3, 4]),
        ({"min_rank": 3}, [3, 4]),
        ({"min_rank": 4}, [4]),
        ({"sampler": [1, 4]}, [1, 4]),
        ({"sampler": [2]}, [2]),
    ],
)
def test_the_sizes_are_the_ranks_that_are_drawn(settings, sizes) -> None:
    module = made(**settings)
    assert module.sizes == module.evaluation_sizes == module.sampler.sizes == sizes
    assert module.size == sizes[-1]  # what is beyond it never trains
    assert made(evaluation_ranks=[2], **settings).evaluation_sizes == [2]


def test_resizing_sets_every_layer_and_at_size_gives_rank_and_rule_back() -> None:
    module = made()
    module.resize(3)
    with module.at_size(2):
        assert {(a.rank, a.num_frozen) for a in module.adapters.values()} == {(2, 1)}
    assert {(a.rank, a.num_frozen) for a in module.adapters.values()} == {(3, 2)}
    full = made(update="full")
    full.resize(3)
    assert {(a.rank, a.num_frozen) for a in full.adapters.values()} == {(3, 0)}


@pytest.mark.parametrize("rank", [0, R + 1, 2.5])
def test_a_rank_that_is_none_is_answered_with_the_range(rank) -> None:  # A9
    with pytest.raises(Exception, match=f"between 1 and max_rank={R}, got {rank}|Type-check"):
        made().resize(rank)
    if isinstance(rank, int):
        with pytest.raises(ValueError, match=f"got {rank}"):
            made().merge(rank)


def test_counts_the_weights_of_each_rank() -> None:
    module = made()
    head = 8 * 2 + 2 + 8 * 8 + 8  # classifier and pooler
    assert [module.num_trainable_parameters(rank) for rank in range(1, R + 1)] == [
        head + 4 * rank * (8 + 8) for rank in range(1, R + 1)
    ]
    assert module.num_trainable_parameters() == module.num_trainable_parameters(R)


@pytest.mark.parametrize("scaling", ["alpha/b", "alpha/R", "alpha/sqrt(b)"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@torch.no_grad()
def test_a_batched_sweep_gives_what_the_loop_gives(kind, scaling) -> None:  # A18
    module, batch = made(kind, scaling=scaling), tiny.batch()
    loop = list(module.predictions(batch))
    module.evaluation = "sweep"
    sweep = list(module.predictions(batch))
    assert [size for size, *_ in loop] == [size for size, *_ in sweep] == [1, 2, 3, 4]
    for (_, one, _), (_, other, seconds) in zip(loop, sweep, strict=True):
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-5, atol=1e-5)
        assert seconds > 0
    assert not torch.allclose(sweep[0][1].logits, sweep[3][1].logits)


@pytest.mark.parametrize("evaluation", ["loop", "sweep"])
def test_validation_reports_every_rank_and_their_mean(evaluation) -> None:
    module = made(evaluation=evaluation, target_modules="all-linear")
    trainer = tiny.trainer()
    (values,) = trainer.validate(module, tiny.loader(), verbose=False)
    labels = torch.cat([batch["labels"] for batch in tiny.loader()])
    expected = {
        f"val/rank_{rank}/accuracy": (logits(module, rank, size=16).argmax(-1) == labels)
        .double()
        .mean()
        .item()
        for rank in range(1, R + 1)
    }
    assert len(set(expected.values())) > 1
    expected["val/mean/accuracy"] = sum(expected.values()) / R
    assert values == pytest.approx(expected)
    assert module.monitor == "val/mean/accuracy"
    assert {size for _, size in module.evaluations} == {1, 2, 3, 4}


def test_two_evaluations_are_identical_and_leave_rank_and_generator_alone() -> None:  # A16
    module = made()
    module.resize(2)
    draws = [module.sampler.draw(step) for step in range(20)]
    first, second = (
        tiny.trainer().validate(module, tiny.loader(), verbose=False)[0] for _ in range(2)
    )
    assert first == second
    assert module.size == 2
    assert [module.sampler.draw(step) for step in range(20)] == draws
    for evaluation in module.evaluations.values():
        assert evaluation.collected()[0].shape == (16,)
    state = torch.get_rng_state()
    for module.evaluation in ("loop", "sweep"):
        list(module.predictions(tiny.batch()))
        assert torch.equal(torch.get_rng_state(), state)


def test_training_with_and_without_validation_ends_with_the_same_weights() -> None:  # A16
    weights = []
    for validate in (True, False):
        module = made(learning_rate=0.01)
        options = {"val_check_interval": 1} if validate else {"limit_val_batches": 0}
        tiny.trainer(max_epochs=1, **options).fit(module, tiny.loader(), tiny.loader())
        weights.append(module.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(("given", "used"), [(None, R), (2, 2)])
def test_predicts_at_its_rank_and_gives_the_number_of_each_example(given, used) -> None:
    module = made(predict_rank=given)
    module.resize(1)
    batches = tiny.trainer().predict(module, tiny.loader())
    assert batches is not None
    answers = torch.cat([batch["answers"] for batch in batches])  # type: ignore[call-overload]
    idx = torch.cat([batch["idx"] for batch in batches])  # type: ignore[call-overload]
    assert torch.equal(answers, logits(module, used, size=16).argmax(-1))
    assert torch.equal(idx, torch.arange(16))
    assert module.size == 1


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_merging_folds_the_rank_in_and_unmerging_takes_it_out_bit_for_bit(kind) -> None:  # A8
    module = made(kind)
    weights = {n: p.detach().clone() for n, p in module.named_parameters()}
    for rank in (1, 3):
        expected = logits(module, rank)
        module.merge(rank)
        with torch.no_grad():
            merged = module.predict(tiny.batch()).logits
        with pytest.raises(RuntimeError, match="merged at rank"):
            module.resize(2)
        module.unmerge()
        torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)
        assert all(torch.equal(p, weights[n]) for n, p in module.named_parameters())


def test_the_adapters_are_where_peft_s_would_be_and_the_rest_is_frozen() -> None:
    module = made(target_modules="all-linear")
    assert len(module.adapters) == 12
    trainable = {n for n, p in module.named_parameters() if p.requires_grad}
    heads = {f"student.{n}.{p}" for n in ("classifier", "bert.pooler.dense") for p in ("weight",)}
    assert {n for n in trainable if "lora" not in n and "bias" not in n} == heads
    assert len([n for n in trainable if "lora" in n]) == 24
    assert list(made().adapters) == [
        f"bert.encoder.layer.{i}.attention.self.{n}" for i in range(2) for n in ("query", "value")
    ]


def test_modules_to_save_are_trained_whole_and_take_no_adapter() -> None:
    module = made(modules_to_save=["pooler"], target_modules=["dense"])
    trainable = {n for n, p in module.named_parameters() if p.requires_grad and "lora" not in n}
    assert trainable == {"student.bert.pooler.dense.weight", "student.bert.pooler.dense.bias"}
    assert not any("pooler" in name for name in module.adapters)
    assert not isinstance(module.student.get_submodule("bert.pooler.dense"), DynamicLoRALinear)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_rank": 0}, "max_rank must be a whole number of at least 1, got 0"),
        ({"min_rank": 0}, "between 1 and max_rank=4, got 0"),
        ({"min_rank": 5}, "between 1 and max_rank=4, got 5"),
        ({"alpha": -1.0}, "alpha must be a positive number, got -1.0"),
        ({"scaling": "alpha/r"}, "scaling must be one of .*'alpha/r'"),
        ({"update": "half"}, "update must be frozen or full, got 'half'"),
        ({"sampler": "zipf"}, "distribution must be uniform or geometric, got 'zipf'"),
        ({"sampler": []}, r"ascending without repeats, got \[\]"),
        ({"sampler": [2, 1]}, r"ascending without repeats, got \[2, 1\]"),
        ({"sampler": [1, 1]}, r"ascending without repeats, got \[1, 1\]"),
        ({"sampler": [1, 5]}, "between 1 and max_rank=4, got 5"),
        ({"sampler": "geometric", "geometric_p": 2.0}, "geometric_p must be .* got 2.0"),
        (
            {"rank_sync": "local", "optimizer_semantics": "dense"},
            "sync must be global or .*'local'",
        ),
        ({"rank_sync": "per_process"}, "needs optimizer_semantics=dense"),
        (
            {"optimizer_semantics": "lazy"},
            "optimizer_semantics must be strict or dense, got 'lazy'",
        ),
        ({"target_modules": ["quary"]}, "match no linear layer; near names: .*query"),
        ({"modules_to_save": ["head"]}, "modules_to_save has 'head', .*classifier"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"evaluation": "tree"}, "evaluation must be loop or sweep, got 'tree'"),
        ({"evaluation_ranks": []}, "evaluation_ranks is empty"),
        ({"evaluation_ranks": [0]}, "between 1 and max_rank=4, got 0"),
        ({"predict_rank": 0}, "between 1 and max_rank=4, got 0"),
        ({"predict_rank": 5}, "between 1 and max_rank=4, got 5"),
        ({"lr_schedule": "step"}, "lr_schedule must be one of .*'step'"),
        ({"warmup_fraction": 6.0}, "warmup_fraction must be between 0 and 1, got 6.0"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_value(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        made(**settings)


@pytest.mark.parametrize("strategy", [FSDPStrategy, type("FSDPStrategy", (), {})])
def test_the_strict_optimizer_refuses_a_strategy_that_hides_components(strategy) -> None:
    for semantics in ("strict", "dense"):
        module = made(optimizer_semantics=semantics)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module._trainer = SimpleNamespace(strategy=object.__new__(strategy))  # type: ignore[assignment]
        if semantics == "strict":
            with pytest.raises(ValueError, match="FSDPStrategy hides the components"):
                module.setup("fit")
        else:
            module.setup("fit")
        module.setup("validate")


def test_the_strict_optimizer_accepts_ddp() -> None:
    module = made()
    module._trainer = SimpleNamespace(strategy=DDPStrategy())  # type: ignore[assignment]
    module.setup("fit")


def test_strict_and_dense_name_their_optimizers_and_an_own_one_replaces_them() -> None:
    assert isinstance(made().make_optimizer(), NestedAdamW)
    assert isinstance(made(optimizer_semantics="dense").make_optimizer(), torch.optim.AdamW)
    module = made(optimizer=lambda params: torch.optim.SGD(params, lr=0.5))
    trainer = tiny.trainer(max_epochs=1)
    trainer.fit(module, tiny.loader(), tiny.loader())
    assert isinstance(trainer.optimizers[0], torch.optim.SGD)


class Ranks(L.Callback):
    """What every layer had when each micro-batch was done."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, set[int | None]]] = []
        self.step = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append((self.step, {a.rank for a in pl_module.adapters.values()}))


def test_one_rank_per_optimizer_step_shared_by_micro_batches_and_layers() -> None:  # A11
    module, ranks = made(), Ranks()
    trainer = tiny.trainer(ranks, accumulate_grad_batches=4, max_epochs=3)
    trainer.fit(module, tiny.loader(40), tiny.loader())  # ten batches per epoch: 4 + 4 + 2
    assert [step for step, _ in ranks.seen] == [
        3 * e + w for e in range(3) for w in (0, 0, 0, 0, 1, 1, 1, 1, 2, 2)
    ]
    assert [found for _, found in ranks.seen] == [
        {module.sampler.draw(step)} for step, _ in ranks.seen
    ]
    assert len({module.sampler.draw(step) for step in range(9)}) > 1
