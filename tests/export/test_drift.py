"""How far apart two models are: against a computation by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from sftpipe.export.drift import Drift, answers_chrf, measure_drift, record_logits
from support.models import llama

ROWS = [[1, 5, 9, 33], [2, 7], [60]]


def drift(first: PreTrainedModel, second: PreTrainedModel, folder: Path) -> Drift:
    record_logits(first.eval(), ROWS, folder)
    return measure_drift(second.eval(), ROWS, folder)


def test_a_model_does_not_drift_from_itself(tmp_path: Path) -> None:
    model = llama(64, tied=False)
    assert drift(model, model, tmp_path) == Drift(0.0, 1.0, 7)


def test_divergence_and_agreement_are_means_over_the_tokens(tmp_path: Path) -> None:
    first, second = llama(64, tied=False), llama(64, tied=False)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.mul_(1.5)
    found = drift(first, second, tmp_path)
    each, same = [], []
    for row in ROWS:
        with torch.no_grad():
            p, q = (one(torch.tensor([row])).logits[0].softmax(-1) for one in (first, second))
        each += (p * (p / q).log()).sum(-1).tolist()
        same += (p.argmax(-1) == q.argmax(-1)).tolist()
    assert found.kl == pytest.approx(sum(each) / 7, rel=1e-4)
    assert found.kl > 1e-4
    assert (found.top1, found.tokens) == (sum(same) / 7, 7)
    assert 0 < found.top1 < 1


def test_a_padded_table_is_compared_on_the_tokens_that_both_have(tmp_path: Path) -> None:
    first, second = llama(64, tied=False), llama(64, tied=False)
    second.resize_token_embeddings(96, mean_resizing=False)
    with torch.no_grad():
        second.get_output_embeddings().weight[64:] = 0.0
    assert drift(first, second, tmp_path).kl == pytest.approx(0, abs=1e-9)


def test_answers_are_compared_as_texts() -> None:
    assert answers_chrf(["yes", ""], ["yes", ""]) == 100.0
    assert answers_chrf(["", ""], ["", ""]) == 100.0
    assert answers_chrf(["a b c"], ["x y z"]) == 0.0
    assert 0 < answers_chrf(["a good day"], ["a good night"]) < 100
