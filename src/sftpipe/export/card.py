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
