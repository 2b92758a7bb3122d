"""What libraries say that no user of a recipe can act on, kept off the terminal."""

import logging
import warnings

WARNINGS = (
    "LightningCLI's args parameter",
    ".*LeafSpec.*is deprecated",  # Lightning 2.6 on torch 2.13
    ".*does not have many workers",  # the data are in memory
    "Checkpoint directory .* is not empty",  # it is resumed
    "Be aware that when using `ckpt_path`",  # as evaluation does
    "The dirpath has changed",  # the best is of an earlier phase
    ".*ModelCheckpoint.*could not find the monitored key",  # the report says so
    "It is recommended to use `self.log",  # metrics are gathered before they are logged
)
LINES = {
    "DeepSpeed": "Setting accelerator to CPU",  # where transformers only looks whether it is there
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",  # an optional kernel
}


def keep_quiet() -> None:
    """Ignore these warnings and log lines from now on; all others come through."""
    # The lines that a run is about are the bar, the table and where things were written.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message)
    for name, start in LINES.items():
        logger = logging.getLogger(name)
        # several runs of one process need it once
        if not any(isinstance(one, _Without) for one in logger.filters):
            logger.addFilter(_Without(start))


class _Without(logging.Filter):
    """Lets warnings through but those that begin so; DeepSpeed tells of its memory below them."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self.start = start

    def filter(self, record: logging.LogRecord) -> bool:
        known = record.getMessage().startswith(self.start)
        return record.levelno >= logging.WARNING and not known


__all__ = ["LINES", "WARNINGS", "keep_quiet"]
