"""What generation is given in place of the answers of a sample."""

from __future__ import annotations

from dataclasses import replace

from sftpipe.config.schema import LossConfig
from sftpipe.data.chat_template import trained_turns
from sftpipe.data.samples import Conversation, Prompt, Sample, Text, split_prompt


def split_answer(sample: Sample, loss: LossConfig) -> tuple[Prompt, str]:
    """What generation is given for a sample, and the answer that the data set holds."""
    response = loss.response_template
    by_text = loss.type == "response_template" and isinstance(response, str)
    if not by_text or isinstance(sample, Conversation):
        return split_prompt(sample)
    text = sample.text if isinstance(sample, Text) else sample.prompt + sample.completion
    prompt, found, answer = text.rpartition(response)
    return prompt + found, answer


def prompt_of(sample: Sample, loss: LossConfig) -> Prompt | None:
    """What generation is given in place of the last trained answer.

    None for a text that has no prompt.
    """
    if isinstance(sample, Conversation):
        by_turn = loss.type in ("completion_only", "assistant_only")
        last = trained_turns(sample, loss.type)[-1] if by_turn else len(sample.messages) - 1
        return replace(sample, messages=sample.messages[:last], train=())
    if isinstance(sample, Text) and not isinstance(loss.response_template, str):
        return None
    return split_answer(sample, loss)[0]
