"""New tokens under LoRA on a 4-bit base: trained, saved, loaded by plain PEFT after the lines of
the card, merged, asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sftpipe

TOKENS = ["<|turn|>", "##[YODA]##>"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_new_rows_move_and_survive(
    kind: str, tiny_model: Path, untied_model: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    from bitsandbytes.nn import Linear4bit
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    base_folder = tiny_model if kind == "tied" else untied_model
    done = cli(
        "train",
        "recipe=yoda",
        "model=custom",
        f"model.name_or_path={base_folder}",
        "evaluation.max_new_tokens=4",
        "format=template",
        "format.prompt='<|turn|>{instruction} ##[YODA]##>'",
        "format.completion=' {output}'",
        "tokenizer.special_tokens=['<|turn|>']",
        "tokenizer.tokens=['##[YODA]##>']",
        "sft.max_steps=4",
        "sft.learning_rate=1e-2",
        "run=run",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    run = sftpipe.load_run(tmp_path / "run")
    ids = run.tokenizer.convert_tokens_to_ids(TOKENS)
    assert ids == [49152, 49153]
    adapter = json.loads((run.dir / "adapter_config.json").read_text())
    tables = ["embed_tokens"] if kind == "tied" else ["embed_tokens", "lm_head"]
    assert adapter["trainable_token_indices"] == dict.fromkeys(tables, ids)
    assert (run.dir / "adapter_model.safetensors").stat().st_size < 1_000_000  # rows, not tables

    # plain PEFT, with the lines of the card
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = AutoModelForCausalLM.from_pretrained(
        base_folder, quantization_config=four_bit, dtype=torch.float32, device_map="cpu"
    )
    card = (run.dir / "README.md").read_text()
    (resize,) = re.findall(
        r"^(base\.resize_token_embeddings.*?)\nmodel = ", card, flags=re.MULTILINE | re.DOTALL
    )
    assert len(resize.splitlines()) == 3
    exec(resize, {"base": base})
    for module in (
        base.modules()
    ):  # bitsandbytes' bfloat16 kernel for such CPUs is coarser than what is compared here
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    start = base.get_input_embeddings().weight[49152].clone()
    plain = PeftModel.from_pretrained(base, run.dir).eval()
    ours = run.load_model().eval()
    prompt = run.tokenizer("<|turn|>You will find it. ##[YODA]##>", return_tensors="pt").input_ids
    assert set(ids) <= set(prompt[0].tolist())
    with torch.no_grad():
        expected = ours(prompt).logits
        torch.testing.assert_close(plain(prompt).logits, expected, atol=1e-5, rtol=1e-5)

    with pytest.warns(UserWarning, match="Merge lora module to 4-bit linear"):
        merged = plain.merge_and_unload()
    rows = merged.get_input_embeddings().weight
    assert not torch.allclose(rows[ids], start.expand(2, -1), atol=1e-4)  # they moved
    assert torch.equal(rows[49154:], start.expand(62, -1))  # spare ones did not
    if kind == "untied":
        head = merged.get_output_embeddings().weight
        assert not torch.equal(head[49153], head[49154])
    answer = merged.generate(prompt, max_new_tokens=3, do_sample=False)
    assert answer.shape[1] > prompt.shape[1]
