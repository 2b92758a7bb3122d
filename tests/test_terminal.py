"""Some lines of libraries are kept off the terminal; all others come through."""

import logging
import warnings

import pytest

from lightning_kd.terminal import LINES, keep_quiet


@pytest.fixture(autouse=True)
def _as_before():
    """No filters of runs before, and none after; pytest resets those of warnings."""
    rank_zero = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = rank_zero.level
    for name in LINES:
        logging.getLogger(name).filters.clear()
    yield
    rank_zero.setLevel(level)
    for name in LINES:
        logging.getLogger(name).filters.clear()


@pytest.mark.parametrize(("name", "start"), LINES.items())
def test_only_the_known_lines_of_a_logger_are_dropped(name, start, caplog) -> None:
    logger = logging.getLogger(name)
    caplog.set_level(logging.DEBUG, name)
    logger.addHandler(caplog.handler)  # DeepSpeed's, once imported, hands nothing on to the root's
    try:
        logger.warning("%s, as ever", start)
        assert f"{start}, as ever" in caplog.messages
        caplog.clear()
        keep_quiet()
        logger.warning("%s, as ever", start)
        logger.warning("something else: %s", start)
        logger.error("worse")
        logger.info("begin bf16_optimizer")
        keep_quiet()
        assert len(logger.filters) == 1
    finally:
        logger.removeHandler(caplog.handler)
    assert set(caplog.messages) == {f"something else: {start}", "worse"}


def test_only_known_warnings_are_dropped() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        keep_quiet()
        warnings.warn(
            "`ModelCheckpoint(monitor='v')` could not find the monitored key", stacklevel=1
        )
        warnings.warn("the loss is large", stacklevel=1)
    assert [str(one.message) for one in caught] == ["the loss is large"]
