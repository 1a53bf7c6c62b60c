"""The cards of what leaves: where it comes from, what was measured, and how it is used."""

from __future__ import annotations

from collections.abc import Mapping
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
    body.append("## Use\n\n" + _PLAIN_USE)
    return front_matter(facts, "transformers") + "\n".join(body)


def gguf_card(facts: Mapping[str, Any]) -> str:
    """README.md beside a GGUF file; facts as of `merged_card`."""
    file, said = facts["file"], facts["llama_cpp"]
    back = facts["readback"]
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
    body = [
        f"# {facts['run']}\n",
        f"`{file}` ({facts['type']}), fine-tuned from `{facts['trained_on']}` with sftpipe.\n",
        "## The file and the weights that it was made of\n\n| | | |\n|---|---|---|\n"
        + "".join(rows),
    ]
    if "drift" in facts:
        body.append("## Merged and unmerged\n\n" + drift_lines(facts))
    without = facts["modelfile"]
    ollama = (
        f"Ollama:\n\n```bash\nollama create {facts['run'].lower()} -f Modelfile\n```\n"
        if without is None
        else f"There is no Modelfile for Ollama: {without}.\n"
    )
    body.append(f"## Use\n\n```bash\nllama-server -m {file} --jinja\n```\n\n{ollama}")
    return front_matter(facts, "gguf") + "\n".join(body)


def front_matter(facts: Mapping[str, Any], library: str) -> str:
    """The metadata that the hub reads."""
    head = {
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": ["sftpipe", "sft"],
        RUN_KEY: facts["id"],
    }
    name, _, commit = str(facts["trained_on"]).rpartition("@")
    if name and " " not in commit:
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


_PLAIN_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH/OF/THIS/FOLDER", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("PATH/OF/THIS/FOLDER")
```

An OpenAI-compatible server:

```bash
transformers serve --force-model PATH/OF/THIS/FOLDER
vllm serve PATH/OF/THIS/FOLDER
```
"""
