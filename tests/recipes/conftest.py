"""Runs that several tests look at, each made once."""

from pathlib import Path

import pytest

from tests.recipes.command import Site, make_site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A folder to run recipes in."""
    return make_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="session")
def lora_run(site: Site) -> Path:
    """LoRA of rank 2."""
    return site.fit("lora_glue", **{"model.rank": 2})


@pytest.fixture(scope="session")
def dylora_run(site: Site) -> Path:
    """DyLoRA of ranks 1 to 4, with nothing else asked for."""
    return site.fit("dylora_glue", **{"model.max_rank": 4})
