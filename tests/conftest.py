"""Settings of every test: no network, one thread, no display, no writing to the user's folders."""

import os
import tempfile
from pathlib import Path

# Before torch, transformers and matplotlib are imported: they read these once.
_scratch = tempfile.TemporaryDirectory(prefix="lightning-kd-tests-")
os.environ["XDG_CACHE_HOME"] = _scratch.name
os.environ["HF_HOME"] = f"{_scratch.name}/huggingface"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
# matplotlib takes seconds to list the fonts: that list, and only that, is kept from run to run
os.environ.setdefault(
    "MPLCONFIGDIR", str(Path(tempfile.gettempdir()) / f"lightning-kd-matplotlib-{os.getuid()}")
)

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)  # two xdist workers on two cores would fight otherwise


@pytest.fixture(autouse=True)
def _seeded():
    """Same random numbers in each test, whatever ran before it."""
    import random

    import numpy as np

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - Lightning and datasets draw from the global generator
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder of the offline models and data; `make assets` fills it."""
    folder = Path(os.environ.get("LIGHTNING_KD_ASSETS", "assets")).absolute()
    if not folder.is_dir():
        pytest.fail(f"no assets in {folder}; run `make assets` or set LIGHTNING_KD_ASSETS")
    return folder
