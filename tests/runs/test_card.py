"""The model card of a run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from sftpipe.export.card import plain_use
from sftpipe.runs.card import write_card
from sftpipe.runs.folder import RunFolder
from support.configs import compose
from support.models import llama
from support.summaries import METRICS, SAMPLES

HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
CARD = f"""---
library_name: peft
pipeline_tag: text-generation
tags:
- sftpipe
- sft
base_model: {HUB}
---

# yoda

Fine-tuned from `{HUB}@abc` with sftpipe. `config.yaml` holds the whole config, `manifest.json` the versions and hashes.

## Numbers

| | |
|---|---|
| validation loss | 3.250 -> 2.500 |
| validation perplexity | 25.79 -> 12.18 |
| test loss | 2.625 |
| training loss | 2.875 over 40 steps |
| training time | 13 s, 1234 tokens/s |
| peak memory | 1.5 GiB |

![Loss](loss.png)

## Answers before and after

| prompt | before | after |
|---|---|---|
| Sort 3 1. | a \\| b | 1 3 |
| Who? | Nobody. | {"x" * 200} |

## Use

```python
import sftpipe

run = sftpipe.load_run("PATH/OF/THIS/FOLDER")
print(run.generate("Hello!")[0].text)
model, tokenizer = run.load_model(), run.tokenizer
```

or without sftpipe, on the base weights `{HUB}@abc`:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{HUB}")
base.resize_token_embeddings(12, mean_resizing=False)
for table in (base.get_input_embeddings(), base.get_output_embeddings()):
    table.weight.data[10:] = table.weight.data[:10].mean(dim=0)
model = PeftModel.from_pretrained(base, "PATH/OF/THIS/FOLDER")
tokenizer = AutoTokenizer.from_pretrained("PATH/OF/THIS/FOLDER")
```

vLLM does not apply this adapter to its base (new tokens); `export=merged` makes weights that it serves.
"""  # noqa: E501


def card(
    folder: Path, overrides: Sequence[str], weights: str, rows: tuple[int, int], *, samples: bool
) -> str:
    """The card of a run with the numbers and answers above."""
    files = RunFolder(folder)
    files.write_metrics(METRICS)
    files.write_samples(SAMPLES if samples else [])
    write_card(files, compose(overrides), weights, rows)
    return files.card.read_text(encoding="utf-8")


def test_the_card_of_an_adapter_holds_numbers_answers_and_how_to_load_it(tmp_path: Path) -> None:
    assert card(tmp_path, ["recipe=yoda"], f"{HUB}@abc", (10, 12), samples=True) == CARD


@pytest.mark.parametrize("tied", [True, False])
def test_the_lines_of_the_card_give_new_rows_the_mean_of_the_old_ones(
    tied: bool, tmp_path: Path
) -> None:
    text = card(tmp_path, ["recipe=yoda"], f"{HUB}@abc", (10, 12), samples=True)
    (lines,) = re.findall(r"^(base\.resize.+?)\nmodel = ", text, flags=re.MULTILINE | re.DOTALL)
    base = llama(10, tied=tied)
    tables = [base.get_input_embeddings(), base.get_output_embeddings()]
    before = [table.weight.detach().clone() for table in tables]

    exec(lines, {"base": base})

    tables = [base.get_input_embeddings(), base.get_output_embeddings()]
    for table, old in zip(tables, before, strict=True):
        assert table.weight.shape == (12, 8)
        assert table.weight[:10].equal(old)
        assert table.weight[10:].allclose(old.mean(dim=0).expand(2, 8))


def test_the_card_of_a_base_that_the_hub_does_not_have_names_no_base(tmp_path: Path) -> None:
    text = card(tmp_path, ["recipe=yoda"], "my-folder (sha256 1234)", (10, 10), samples=False)
    assert "base_model" not in text
    assert "Fine-tuned from `my-folder (sha256 1234)` with sftpipe." in text
    assert 'from_pretrained("PATH/OF/THE/BASE")\nmodel = PeftModel' in text  # nothing to resize
    assert "## Answers" not in text


def test_the_card_of_a_model_from_scratch_loads_the_whole_model(tmp_path: Path) -> None:
    text = card(tmp_path, ["recipe=char_gpt_ko"], "random gpt2 (seed 42)", (9, 9), samples=False)
    assert text.startswith("---\nlibrary_name: transformers\n")
    assert "\n# char_gpt_ko\n\nTrained from scratch, from `random gpt2 (seed 42)` with" in text
    assert text.endswith(f"\nor without sftpipe:\n\n{plain_use('PATH/OF/THIS/FOLDER')}")


def test_a_run_without_a_recipe_is_named_after_its_folder(tmp_path: Path) -> None:
    text = card(tmp_path, [], "w", (9, 9), samples=False)
    assert f"\n# {tmp_path.name}\n" in text
