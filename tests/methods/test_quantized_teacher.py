"""A teacher in 4 or 8 bits; only where the ``quant`` extra is installed."""

import pytest
import torch

from lightning_kd.fingerprints import fingerprint_of
from lightning_kd.methods import VanillaKD
from lightning_kd.models import load_model
from lightning_kd.teachers import load_teacher
from tests import tiny
from tests.conformance.matrix import differing, fit, weights

pytest.importorskip("bitsandbytes")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
TASK = tiny.TASKS["classification"]


@pytest.fixture(scope="module")
def named(tmp_path_factory) -> str:
    """A BERT whose matrices are wide enough for blocks of 64."""
    folder = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    config = tiny.config(hidden_size=128, intermediate_size=256)
    model = load_model(config, TASK)
    model.save_pretrained(folder)  # type: ignore[operator]
    return str(tiny.tokenizer_folder(folder))


@pytest.mark.parametrize(("bits", "kind"), [(4, "Linear4bit"), (8, "Linear8bitLt")])
def test_its_matrices_are_quantized_and_its_head_is_not(bits, kind, named) -> None:
    teacher, whole = load_teacher(named, TASK, bits).eval(), load_teacher(named, TASK).eval()
    query = teacher.get_submodule("bert.encoder.layer.0.attention.self.query")
    assert type(query).__name__ == kind
    assert type(teacher.get_submodule("classifier")).__name__ == "Linear"
    batch = tiny.batch()
    with torch.no_grad():
        ours, theirs = (TASK.predict(model, batch).logits for model in (teacher, whole))
    assert not torch.equal(ours, theirs)
    torch.testing.assert_close(ours, theirs, atol=0.1, rtol=0.1)
    assert fingerprint_of(teacher) != fingerprint_of(whole)


@pytest.mark.parametrize("bits", [4, 8])
def test_it_teaches_live_and_from_its_cache_and_is_in_no_checkpoint(bits, named, tmp_path) -> None:
    ended = []
    for cache in (None, str(tmp_path / "cache"), str(tmp_path / "cache")):
        module = VanillaKD(
            tiny.model(),
            TASK,
            teacher=named,
            teacher_bits=bits,
            teacher_cache=cache,
            learning_rate=0.01,
        )
        fit(module, max_epochs=3, folder=tmp_path / "checkpoints")
        ended.append(weights(module))
    assert module.cache is not None
    assert module.cache.complete
    assert differing(ended[0], ended[1]) == []
    assert differing(ended[0], ended[2]) == []
    size = next((tmp_path / "checkpoints").iterdir()).stat().st_size
    assert size < 200_000
    fit(module, max_epochs=4)  # the same teacher again, whose weights were packed anew
