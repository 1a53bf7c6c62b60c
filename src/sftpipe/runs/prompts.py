"""prompts.json: prompts of train rows and the ids that training gave them.

Every verb on a run makes them again and compares: a model is only as good as it was trained if its
prompts are those of training, token for token.
"""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

from sftpipe.data.encode import Encoder
from sftpipe.data.prepare import PreparedData
from sftpipe.data.prompts import prompt_of
from sftpipe.data.samples import Conversation, Prompt
from sftpipe.errors import Problem, RunError
from sftpipe.runs.folder import RunFolder, damaged
from sftpipe.storage import write_json

KEPT = 5


def write_prompts(folder: RunFolder, data: PreparedData) -> None:
    """Keep the prompts of the first train rows that have one."""
    prompts = (prompt_of(sample, data.encoder.loss) for sample in data.samples("train"))
    kept = islice((prompt for prompt in prompts if prompt is not None), KEPT)
    entries = [
        {"prompt": _plain(prompt), "input_ids": data.encoder.prompt_ids(prompt)} for prompt in kept
    ]
    write_json(folder.prompts, entries)


def read_prompts(folder: RunFolder) -> list[tuple[Prompt, list[int]]]:
    """Each prompt that was kept, and its ids; none in a folder of sftpipe 0.1.

    Raises:
        RunError: the file is damaged.
    """
    if not folder.prompts.is_file():
        return []
    try:
        entries = json.loads(folder.prompts.read_text(encoding="utf-8"))
        return [(_prompt(entry["prompt"]), list(entry["input_ids"])) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError):
        raise damaged(folder.prompts) from None


def check_prompts(folder: RunFolder, encoder: Encoder) -> None:
    """Make the prompts of training again.

    Raises:
        RunError: they have other ids now.
    """
    for number, (prompt, trained) in enumerate(read_prompts(folder)):
        ids = encoder.prompt_ids(prompt)
        if ids != trained:
            pairs = enumerate(zip(ids, trained, strict=False))
            shorter = min(len(ids), len(trained))
            at = next((at for at, (now, then) in pairs if now != then), shorter)
            found = (
                f"prompt {number} has other tokens than in training, from token {at} on: the "
                "tokenizer or the chat template of the folder was changed, or a library reads "
                "them in another way"
            )
            fix = f"the versions in {folder.manifest.name}, and the folder's files as written"
            raise RunError(Problem(str(folder.prompts), found, fix=fix))


def _plain(prompt: Prompt) -> Any:
    if isinstance(prompt, str):
        return prompt
    return {
        "messages": [dict(message) for message in prompt.messages],
        "tools": [dict(tool) for tool in prompt.tools],
        "template_kwargs": dict(prompt.template_kwargs),
    }


def _prompt(plain: Any) -> Prompt:
    if isinstance(plain, str):
        return plain
    return Conversation(
        tuple(plain["messages"]), tuple(plain["tools"]), dict(plain["template_kwargs"])
    )
