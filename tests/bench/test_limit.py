"""The products that a step needs, on a model whose every product can be counted by hand."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from sftpipe.bench import limit
from support.models import llama

N, TRAINED, H, V, R = 10, 4, 8, 20, 2  # tokens, trained ones, width, vocabulary, rank


def test_each_product_is_counted_and_the_first_layer_needs_no_gradient_of_its_input() -> None:
    adapter = LoraConfig(task_type="CAUSAL_LM", r=R, target_modules=["q_proj", "o_proj"])
    model = get_peft_model(llama(V, tied=True), adapter)
    ids = torch.tensor([[1, 2, 3]])  # what the forward is made of does not matter
    found = limit.products(model, lambda: model(input_ids=ids), N, TRAINED)
    assert found == {
        (N, H, H): 2 + 1,  # q and o forward, and the gradient of what enters o
        (N, H, R): 2 + 2,  # x A^T, dy B
        (N, R, H): 2 + 1,  # (x A^T) B^T, and the gradient of what enters o
        (R, N, H): 2,  # dA
        (H, N, R): 2,  # dB
        (TRAINED, H, V): 1,
        (TRAINED, V, H): 1,
    }
    assert limit.frozen(found, R) == {(N, H, H): 3}
    assert limit.operations({(N, H, H): 3}) == 2 * N * H * H * 3


def test_seconds_are_the_sum_of_each_product_s_best() -> None:
    one = limit.seconds({(64, 64, 64): 1}, torch.float32)
    assert 0 < one < 0.1
    tried = {(2, 3, 4): 2, (5, 6, 7): 3}
    best = {(2, 3, 4): 0.5, (5, 6, 7): 0.25}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limit, "_tries", lambda sizes, dtype: iter([9.0, best[sizes], 8.0]))
        assert limit.seconds(tried, torch.float32) == 2 * 0.5 + 3 * 0.25
