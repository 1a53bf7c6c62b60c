"""What a block of code without noise changes, and that all of it is put back."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings

import datasets
import pytest
from transformers.utils import logging as hf_logging

from sftpipe.terminal import console, printable, quiet, quiet_libraries

TELEMETRY = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def test_telemetry_is_off_inside_and_as_before_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TELEMETRY:
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)

    with contextlib.suppress(ZeroDivisionError), quiet():
        assert {name: os.environ[name] for name in TELEMETRY} == TELEMETRY
        raise ZeroDivisionError

    assert dict(os.environ) == before


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")

    with quiet():
        assert os.environ["TOKENIZERS_PARALLELISM"] == "true"

    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"


def test_warnings_about_the_inside_of_libraries_are_hidden_and_others_are_not() -> None:
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with quiet():
            assert logger.level == logging.ERROR
            for kind in (FutureWarning, DeprecationWarning, UserWarning):
                warnings.warn("hm", kind, stacklevel=1)
        warnings.warn("hm", FutureWarning, stacklevel=1)

    assert [one.category for one in seen] == [UserWarning, FutureWarning]
    assert logger.level == level


@pytest.mark.parametrize("bars", [True, False])
def test_bars_and_logs_of_the_libraries_are_put_back(bars: bool) -> None:
    def state() -> tuple[int, bool, int, bool]:
        return (
            hf_logging.get_verbosity(),
            hf_logging.is_progress_bar_enabled(),
            datasets.logging.get_verbosity(),
            datasets.are_progress_bars_disabled(),
        )

    with quiet_libraries():  # puts back what this test changes
        hf_logging.set_verbosity_info()
        datasets.logging.set_verbosity_debug()
        if bars:
            hf_logging.enable_progress_bar()
            datasets.enable_progress_bars()
        before = state()

        with contextlib.suppress(ZeroDivisionError), quiet_libraries():
            assert state() == (logging.ERROR, False, logging.CRITICAL, True)
            raise ZeroDivisionError

        assert state() == before
        assert before == (logging.INFO, bars, logging.DEBUG, not bars)


def test_remarks_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.print("a remark, " + "long " * 40)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "a remark, " + "long " * 40 + "\n"  # not wrapped: it may be copied


def test_a_text_cannot_steer_the_terminal_and_is_otherwise_as_it_is() -> None:
    kept = "<script> 오늘\n\t \U0001f9d1\u200d\U0001f680 \ufffd"
    assert printable(kept) == kept
    hostile = "\x1b[2J\x07\r\x9b\ud800\u202e\u2066"
    assert printable(hostile) == r"\x1b[2J\x07\x0d\x9b\xd800\x202e\x2066"
