"""One training step against TRL's: what is compared, and the parts of ours."""

from __future__ import annotations

import pytest

from sftpipe.bench import step


@pytest.mark.slow
def test_a_ratio_is_our_tokens_a_second_by_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "ROUNDS", 1)
    measured = step.step()
    for dtype in ("float32", "bfloat16"):
        ours, theirs = (measured[f"{name}, {dtype}, tokens/s"] for name in ("sftpipe", "trl"))
        assert measured[f"sftpipe / trl, {dtype}"] == pytest.approx(ours / theirs, rel=0.02)
        shares = [
            float(measured[f"share of the limit, {name}, {dtype}"]) for name in ("trl", "sftpipe")
        ]
        assert 0 < shares[0] < 1
        assert shares[1] == pytest.approx(shares[0] * ours / theirs, abs=0.02)
        parts = [
            text for name, text in measured.items() if name.startswith(f"of our step, {dtype}")
        ]
        assert sum(int(text.split()[-1].rstrip("%")) for text in parts) > 90
    assert "float32 differ by" in measured["same work"]


def test_losses_in_float32_must_be_equal_and_those_in_bfloat16_are_told() -> None:
    near = {"trl, float32": 2.0, "sftpipe, float32": 2.001, "sftpipe, bfloat16": 2.1}
    found = step._compared(near)
    assert found == "losses in float32 differ by 5.0e-04, those in bfloat16 from them by 5.0e-02"
    with pytest.raises(RuntimeError, match="float32 differ"):
        step._compared({**near, "sftpipe, float32": 2.01})


@pytest.mark.parametrize(
    ("name", "shapes", "part"),
    [
        ("aten::mm", [[470, 576], [576, 1536]], "products of frozen layers"),
        ("mkldnn::_linear_pointwise", [[470, 576], [1536, 576], []], "products of frozen layers"),
        ("aten::addmm_", [[470, 1536], [470, 16], [16, 1536]], "products of LoRA"),
        ("aten::mm", [[126, 576], [576, 49152]], "head and loss"),
        ("aten::_log_softmax", [[126, 49152]], "head and loss"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", [[1, 9, 57, 64]], "attention"),
        ("aten::copy_", [[470, 576]], "copies and casts"),
        ("aten::mul", [[470, 576]], "norms, activations, rotations"),
    ],
)
def test_an_operation_belongs_to_a_part(name: str, shapes: list[list[int]], part: str) -> None:
    assert step._part_of(name, shapes, 49152) == part
