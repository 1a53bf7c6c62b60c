"""The cards of what leaves: where it comes from, what was measured, and how it is used."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

RUN_KEY = "sftpipe_run"  # of the front matter: which run a card is of


def merged_card(facts: Mapping[str, Any]) -> str:
    """README.md of a folder of plain weights.

    Args:
        facts: the content of export.json.
    """
    body = [
        f"# {facts['run']}\n",
        f"Fine-tuned from `{facts['trained_on']}` with sftpipe, in {facts['dtype']}.\n",
    ]
    if "drift" in facts:
        body.append("## Merged and unmerged\n\n" + drift_lines(facts))
    body.append("## Use\n\n" + plain_use("PATH/OF/THIS/FOLDER"))
    return front_matter(facts, "transformers") + "\n".join(body)


def file_name(name: str) -> str:
    """The name of a run as a file and as a model of a server: letters, digits, `.`, `-` and `_`."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.") or "run"


def gguf_card(facts: Mapping[str, Any]) -> str:
    """README.md beside a GGUF file; facts as of `merged_card`."""
    file = facts["file"]
    body = [
        f"# {facts['run']}\n",
        f"`{file}` ({facts['type']}), fine-tuned from `{facts['trained_on']}` with sftpipe.\n",
        "## The file and the weights that it was made of\n\n" + _proof_lines(facts),
    ]
    if "drift" in facts:
        body.append("## Merged and unmerged\n\n" + drift_lines(facts))
    without = facts["modelfile"]
    ollama = (
        f"Ollama:\n\n```bash\nollama create {file_name(facts['run']).lower()} -f Modelfile\n```\n"
        if without is None
        else f"There is no Modelfile for Ollama: {without}.\n"
    )
    body.append(f"## Use\n\n```bash\nllama-server -m {file} --jinja\n```\n\n{ollama}")
    return front_matter(facts, "gguf") + "\n".join(body)


def _proof_lines(facts: Mapping[str, Any]) -> str:
    """What was measured of a file, as a table."""
    said, back = facts["llama_cpp"], facts["readback"]
    limits = back["limits"]
    kl, top1 = (
        ("no limit", "")
        if limits is None
        else (f"at most {limits['kl']:g}", f"at least {limits['top1']:.1%}")
    )
    rows = [
        f"| mean KL of a token | {back['kl']:.2e} nats | {kl} |\n",
        f"| same likeliest token | {back['top1']:.2%} | {top1} |\n",
    ]
    if said is None:
        rows.append("| token ids | unproved | llama.cpp was not there |\n")
    else:
        rows.append(f"| token ids of prompts | {said['prompts']} equal | by {said['package']} |\n")
        same = f"{said['same_answers']} of {said['answers']} equal"
        rows.append(f"| greedy answers | {same} | by {said['package']} |\n")
    return "| | | |\n|---|---|---|\n" + "".join(rows)


def front_matter(facts: Mapping[str, Any], library: str) -> str:
    """The metadata that the hub reads."""
    head = {
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": ["sftpipe", "sft"],
        RUN_KEY: facts["id"],
    }
    if name := hub_name(facts["trained_on"]):
        head["base_model"] = name
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n"


def drift_lines(facts: Mapping[str, Any]) -> str:
    """What merging changed, as a table."""
    drift = facts["drift"]
    how = f"into the {facts['base']} base" if facts["quantized"] else "into its base"
    limit = "no limit" if drift["limit"] is None else f"at most {drift['limit']}"
    return (
        f"The adapter was merged {how}, and the result compared with the adapter on its base, on "
        f"{drift['tokens']:,} tokens ({drift['rows']}).\n\n"
        "| | | |\n|---|---|---|\n"
        f"| mean KL of a token | {drift['kl']:.2e} nats | {limit} |\n"
        f"| same likeliest token | {drift['top1']:.2%} | |\n"
        f"| chrF of {drift['answers']} greedy answers | {drift['chrf']:.1f} | 100: all equal |\n"
    )


def plain_use(place: str) -> str:
    """How merged weights are loaded and served, with their folder or repository in place."""
    return f"""\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{place}", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("{place}")
```

An OpenAI-compatible server:

```bash
transformers serve {place}
vllm serve {place}
```
"""


def hub_name(weights: str) -> str | None:
    """The name on the hub in an identity `NAME@COMMIT`; None for weights from elsewhere."""
    name = weights.rpartition("@")[0]
    return name if name and " " not in weights else None


def adapter_use(place: str, weights: str, lora: Mapping[str, Any], resizing: Sequence[str]) -> str:
    """How an adapter is loaded and served.

    Args:
        place: its folder or repository.
        weights: identity of the base weights.
        lora: the fields of `LoraConfig`.
        resizing: lines of Python that fit the embedding of the base.
    """
    base = hub_name(weights) or "PATH/OF/THE/BASE"
    lines = [
        f'base = AutoModelForCausalLM.from_pretrained("{base}")',
        *resizing,
        f'model = PeftModel.from_pretrained(base, "{place}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{place}")',
    ]
    peft = (
        "```python\nfrom peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        + "\n".join(lines)
        + "\n```\n"
    )
    if why := _not_for_vllm(lora, resizing):
        there = "`export=merged` makes weights that it serves"
        return f"{peft}\nvLLM does not apply this adapter to its base ({why}); {there}.\n"
    rank = max([int(lora.get("r", 8)), *dict(lora.get("rank_pattern") or {}).values()])
    more = f" --max-lora-rank {_rank_of_vllm(rank)}" if rank > 16 else ""
    name = place.rpartition("/")[2]
    vllm = f"vllm serve {base} --enable-lora --lora-modules {name}={place}{more}"
    return f"{peft}\nAn OpenAI-compatible server:\n\n```bash\n{vllm}\n```\n"


def _rank_of_vllm(rank: int) -> int:
    """The least of the ranks that vLLM has kernels for."""
    return next((one for one in (8, 16, 32, 64, 128, 256, 320, 512) if one >= rank), rank)


def _not_for_vllm(lora: Mapping[str, Any], resizing: Sequence[str]) -> str:
    """What of an adapter vLLM does not apply beside a base; "" where it applies all of it."""
    if lora.get("use_dora"):
        return "DoRA"
    if lora.get("modules_to_save"):
        return "lora.modules_to_save"
    if lora.get("trainable_token_indices") or resizing:
        return "new tokens"
    if lora.get("lora_bias") or lora.get("bias", "none") != "none":
        return "biases"
    return ""
