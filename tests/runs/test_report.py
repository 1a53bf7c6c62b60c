"""The picture of the losses, the model card, and the numbers and answers that people see."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from sftpipe.export.card import plain_use
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.report import (
    SHOWN,
    answer_lines,
    answers_side_by_side,
    metric_rows,
    plot_loss,
    short_prompts,
    token_ticks,
    write_card,
)
from support.configs import compose
from support.models import llama

HISTORY = [
    {"step": 0, "epoch": 0, "eval_loss": 3.0},
    {"step": 5, "epoch": 0.5, "loss": 2.5, "num_tokens": 1000.0},
    {"step": 10, "epoch": 1.0, "loss": 2.0, "num_tokens": 3000.0},
    {"step": 10, "epoch": 1.0, "eval_loss": 2.125, "eval_num_tokens": 3000.0},
    {"step": 1200, "epoch": 2.0, "loss": 1.5, "num_tokens": 6000.0},
]
LATER = {"step": 2000, "epoch": 3.0, "eval_loss": 1.875, "eval_num_tokens": 9000.0}


# --- the picture ----------------------------------------------------------------------------------


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Draw a log; returns the figure that was written."""
    figures: list[Figure] = []
    save = Figure.savefig

    def kept(figure: Figure, *words: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *words, **options)

    monkeypatch.setattr(Figure, "savefig", kept)

    def draw(history: Sequence[dict[str, Any]]) -> Figure:
        (tmp_path / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in history))
        plot_loss(RunFolder(tmp_path))
        return figures[-1]

    return draw


def test_the_picture_shows_the_losses_of_the_log_over_epochs(drawn: Any) -> None:
    (axes,) = drawn(HISTORY).axes
    lines = {str(line.get_label()): line.get_xydata().tolist() for line in axes.lines}
    assert lines == {
        "training": [[0.5, 2.5], [1.0, 2.0], [2.0, 1.5]],
        "validation": [[0.0, 3.0], [1.0, 2.125]],
    }
    assert [(text.get_text(), text.xy) for text in axes.texts] == [
        ("3.00", (0, 3.0)),
        ("2.12", (1.0, 2.125)),
    ]
    assert axes.get_xlabel() == "epoch (1,200 optimizer steps)"
    assert axes.get_ylabel() == "loss per trained token"
    assert axes.get_ylim()[0] == 0
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["training", "validation"]

    (top,) = axes.child_axes
    assert top.get_xlabel() == "training tokens seen"
    assert top.get_xticks().tolist() == pytest.approx([0, 0.5, 0.75, 1, 4 / 3, 5 / 3, 2])
    assert [label.get_text() for label in top.get_xticklabels()] == token_ticks(HISTORY)[1]


def test_each_named_validation_set_has_its_curve(drawn: Any) -> None:
    both = [{"eval_news_loss": 3.0}, {"eval_code_loss": 2.0}, {"eval_news_loss": 1.0}]
    (axes,) = drawn([{"step": n, "epoch": n, **one} for n, one in enumerate(both)]).axes
    lines = {str(line.get_label()): line.get_xydata().tolist() for line in axes.lines}
    assert lines == {
        "validation news": [[0, 3.0], [2, 1.0]],
        "validation code": [[1, 2.0]],
    }
    assert len({line.get_color() for line in axes.lines}) == 2


def test_each_named_validation_set_has_its_lines() -> None:
    """Also sets that are called as the phases are."""
    phases = {phase: {"loss": 2.0, "perplexity": 7.5} for phase in ("before", "after")}
    train = {"loss": 1, "steps": 2, "runtime_s": 3, "tokens_per_s": 4, "peak_memory_bytes": 5}
    metrics = {"train": train, "validation": {"before": phases, "code": phases}}
    assert metric_rows(metrics)[:4] == [
        ("validation before loss", "2.000 -> 2.000"),
        ("validation before perplexity", "7.50 -> 7.50"),
        ("validation code loss", "2.000 -> 2.000"),
        ("validation code perplexity", "7.50 -> 7.50"),
    ]


def test_the_first_and_the_last_validation_loss_are_written_beside_their_points(drawn: Any) -> None:
    (axes,) = drawn([*HISTORY, LATER]).axes
    assert [(text.get_text(), text.xy) for text in axes.texts] == [
        ("3.00", (0, 3.0)),
        ("1.88", (3.0, 1.875)),
    ]
    training, validation = axes.lines
    assert validation.get_xydata().tolist() == [[0, 3.0], [1.0, 2.125], [3.0, 1.875]]
    # two points show what training did; a line between them would say too much
    assert (training.get_linestyle(), validation.get_linestyle()) == ("-", "--")
    assert drawn(HISTORY).axes[0].lines[1].get_linestyle() == "None"


@pytest.mark.parametrize(
    ("history", "labels", "steps"),
    [(HISTORY[:1], ["validation"], "0"), (HISTORY[1:3], ["training"], "10"), ([], [], "0")],
)
def test_a_log_without_one_kind_of_loss_is_drawn_without_it(
    history: list[dict[str, Any]], labels: list[str], steps: str, drawn: Any, tmp_path: Path
) -> None:
    (axes,) = drawn(history).axes
    assert [line.get_label() for line in axes.lines] == labels
    assert axes.get_xlabel() == f"epoch ({steps} optimizer steps)"
    assert (axes.get_legend() is not None) == bool(labels)

    content = (tmp_path / "loss.png").read_bytes()
    assert struct.unpack(">8x8xII", content[:24]) == (960, 540)  # 8 by 4.5 inches at 120 dpi
    assert {path.name for path in tmp_path.iterdir()} == {"log.jsonl", "loss.png"}


def test_the_upper_axis_tells_the_tokens_that_were_seen_at_an_epoch() -> None:
    places, texts = token_ticks(HISTORY)
    assert places == pytest.approx([0.0, 0.5, 0.75, 1.0, 4 / 3, 5 / 3, 2.0])
    assert texts == ["0", "1k", "2k", "3k", "4k", "5k", "6k"]

    places, _ = token_ticks(HISTORY[-1:])  # the first entry of a log counts from nothing
    assert places == pytest.approx([0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])


def test_a_run_without_a_logged_step_has_one_tick() -> None:
    assert token_ticks(HISTORY[:1]) == ([0.0], ["0"])


# --- numbers and answers --------------------------------------------------------------------------

TRAIN = {
    "loss": 2.875,
    "steps": 40,
    "runtime_s": 12.6,
    "tokens_per_s": 1234.4,
    "peak_memory_bytes": 3 * 2**29,
}
METRICS = {
    "train": TRAIN,
    "validation": {
        "before": {"loss": 3.25, "perplexity": 25.79},
        "after": {"loss": 2.5, "perplexity": 12.18},
    },
    "test": {"loss": 2.625, "perplexity": 13.8},
}
OF_TRAINING = [
    ("training loss", "2.875 over 40 steps"),
    ("training time", "13 s, 1234 tokens/s"),
    ("peak memory", "1.5 GiB"),
]


@pytest.mark.parametrize(
    ("metrics", "rows"),
    [
        (
            METRICS,
            [
                ("validation loss", "3.250 -> 2.500"),
                ("validation perplexity", "25.79 -> 12.18"),
                ("test loss", "2.625"),
                *OF_TRAINING,
            ],
        ),
        ({"train": TRAIN}, OF_TRAINING),
        ({"train": TRAIN, "validation": {"after": {"loss": 1.0}}}, OF_TRAINING),
    ],
)
def test_the_figures_that_matter_have_names_and_units(
    metrics: dict[str, Any], rows: list[tuple[str, str]]
) -> None:
    assert metric_rows(metrics) == rows


def sample(phase: str, prompt: str, completion: str) -> dict[str, str]:
    return {"phase": phase, "prompt": prompt, "completion": completion}


SAMPLES = [
    sample("before", "Sort\n3 1.", "a | b"),
    sample("before", "Who?", "Nobody."),
    sample("epoch 1", "Sort\n3 1.", "3"),
    sample("epoch 1", "Who?", "You."),
    sample("after", "Sort\n3 1.", "1\n3"),
    sample("after", "Who?", "x" * 300),
]


def test_answers_before_and_after_stand_beside_their_prompt() -> None:
    assert answers_side_by_side(SAMPLES) == [
        ("Sort 3 1.", "a | b", "1\n3"),
        ("Who?", "Nobody.", "x" * 300),
    ]


def test_after_an_epoch_the_first_answer_is_shown() -> None:
    assert answer_lines("epoch 3", SAMPLES[4:]) == "epoch 3   Sort 3 1.\n     ->   1 3"


@pytest.mark.parametrize(
    ("prompts", "shown"),
    [
        (["Sort 3 1 2.", "Sort 2 1."], ["Sort 3 1 2.", "Sort 2 1."]),
        # four words that all share may be the question; more are their format
        (["a b c d e", "a b c d f"], ["a b c d e", "a b c d f"]),
        (["a b c d e f", "a b c d e g"], ["... f", "... g"]),
        (
            [
                "Below is a task. Write a\nresponse. Swim?",
                "Below is a task. Write a\nresponse. Go\nhome?",
            ],
            ["... Swim?", "... Go home?"],
        ),
        (["Below is a task. Write a response."] * 2, ["Below is a task. Write a response."] * 2),
        (["Below is a task. Write a response."], ["Below is a task. Write a response."]),
        ([], []),
    ],
)
def test_prompts_are_shown_without_the_words_of_their_format(
    prompts: list[str], shown: list[str]
) -> None:
    assert short_prompts(prompts) == shown


def test_a_long_prompt_is_shown_by_its_last_words() -> None:
    words = [f"word{at:02}" for at in range(100)]  # 7 characters each with its space
    assert short_prompts([" ".join(words)]) == ["... " + " ".join(words[-28:])]
    assert 4 + 28 * 7 - 1 <= SHOWN < 4 + 29 * 7 - 1


# --- the card -------------------------------------------------------------------------------------

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
