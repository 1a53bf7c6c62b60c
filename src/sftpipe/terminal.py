"""One console for progress and remarks; third-party noise and telemetry switched off.

Remarks go to stderr, so that stdout holds results alone.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

console = Console(stderr=True, highlight=False, soft_wrap=True)

_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


@contextmanager
def quiet() -> Iterator[None]:
    """Run a block without telemetry and without needless messages of the libraries.

    What a user set in the environment stays.
    """
    missing = [name for name in _ENVIRONMENT if name not in os.environ]
    os.environ.update({name: _ENVIRONMENT[name] for name in missing})
    # bitsandbytes warns at import of an optional kernel that nobody asked for
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # known and harmless: what torch, bitsandbytes and peft say of their own internals
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
        for name in missing:
            os.environ.pop(name, None)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Lower the log levels and hide the bars of transformers and datasets (imports both)."""
    import datasets
    from transformers.utils import logging as hf_logging

    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    dataset_bars_off = datasets.are_progress_bars_disabled()
    dataset_verbosity = datasets.logging.get_verbosity()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what fails there is raised here
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        datasets.logging.set_verbosity(dataset_verbosity)
        if bars:
            hf_logging.enable_progress_bar()
        if not dataset_bars_off:
            datasets.enable_progress_bars()
