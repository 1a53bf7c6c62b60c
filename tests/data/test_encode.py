"""Samples to ids and labels: the rules L1 to L8 of docs/rules.md, on the embedded tokenizer and on
small ones of other kinds; the golden values are of the published ones.
"""

from __future__ import annotations

import copy
import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from sftpipe.config.schema import LossConfig
from sftpipe.data.chat_template import ChatTemplate, trained_turns, unrolled
from sftpipe.data.encode import Encoded, Encoder
from sftpipe.data.labels import IGNORED, OUT_OF_TURN
from sftpipe.data.preflight.preview import spans
from sftpipe.data.prompts import split_answer
from sftpipe.data.samples import (
    Conversation,
    PromptCompletion,
    Sample,
    Text,
    without_answer,
)
from sftpipe.data.truncation import truncate
from sftpipe.errors import DataError, RowError
from support.byte_model import CHATML
from support.errors import Pin, named, refused, told
from support.tokenizers import PUBLISHED, tokenizer_at

Templated = Callable[[str | None], Any]
COMPLETION, FULL, ASSISTANT = (
    LossConfig("completion_only"),
    LossConfig("full"),
    LossConfig("assistant_only"),
)
ROLES = ("user", "assistant")
SYSTEM = (
    "<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
)


def talk(*contents: str, system: str | None = None) -> Conversation:
    """A conversation of the given user and assistant turns."""
    turns = [{"role": ROLES[at % 2], "content": content} for at, content in enumerate(contents)]
    return Conversation(
        (*([{"role": "system", "content": system}] if system is not None else []), *turns)
    )


def encode(tokenizer: Any, sample: Sample, loss: LossConfig = COMPLETION) -> Encoded:
    (row,) = Encoder(tokenizer, loss).encode([sample], ["train[0]"])
    assert isinstance(row, Encoded), row
    return row


def row_error(tokenizer: Any, sample: Sample, loss: LossConfig = COMPLETION) -> RowError:
    (row,) = Encoder(tokenizer, loss).encode([sample], ["train[3]"])
    assert isinstance(row, RowError), row
    return row


def trained_ids(row: Encoded) -> list[int]:
    return [label for label in row.labels if label != IGNORED]


def trained_text(tokenizer: Any, sample: Sample, loss: LossConfig = COMPLETION) -> str:
    return str(tokenizer.decode(trained_ids(encode(tokenizer, sample, loss))))


# --- conversations --------------------------------------------------------------------------------


def test_a_row_is_the_conversation_as_the_template_writes_it(tokenizer: Any) -> None:
    row = encode(tokenizer, talk("Hi.", "Hello there."))
    assert tokenizer.decode(row.input_ids) == (
        f"{SYSTEM}<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\nHello there.<|im_end|>\n"
    )


@pytest.mark.parametrize(
    "answer",
    [
        "Hello there.",
        " spaces ",
        "two\nlines\n",
        "안녕하세요 \U0001f44b",
        "1234",
        "user",
        "\n",
        "<|im_start",
    ],
)
def test_the_answer_and_the_token_that_ends_it_are_trained(tokenizer: Any, answer: str) -> None:
    assert trained_text(tokenizer, talk("Hi.", answer)) == f"{answer}<|im_end|>"


def test_only_the_last_answer_is_trained(tokenizer: Any) -> None:
    assert (
        trained_text(tokenizer, talk("a", "first", "b", "second", "c", "third"))
        == "third<|im_end|>"
    )


def test_an_answer_that_also_stands_in_the_prompt_is_trained_once(tokenizer: Any) -> None:
    row = encode(tokenizer, talk("yes", "yes", "yes", "yes", system="yes"))
    assert tokenizer.decode(trained_ids(row)) == "yes<|im_end|>"
    assert row.labels.index(tokenizer.eos_token_id) == len(row.labels) - 2


def test_the_newline_behind_the_last_turn_is_masked(tokenizer: Any) -> None:
    row = encode(tokenizer, talk("Hi.", "Hello."))
    assert tokenizer.decode(row.input_ids[-2:]) == "<|im_end|>\n"
    assert row.labels[-2:] == [tokenizer.eos_token_id, IGNORED]


def test_a_full_loss_trains_the_prompt_too(tokenizer: Any) -> None:
    row = encode(tokenizer, talk("Hi.", "Hello."), FULL)
    assert row.labels == [*row.input_ids[:-1], IGNORED]


def test_the_loss_changes_labels_and_not_ids(tokenizer: Any) -> None:
    sample = talk("a", "b", "c", "d", system="e")
    assert encode(tokenizer, sample).input_ids == encode(tokenizer, sample, FULL).input_ids


def test_a_batch_gives_the_rows_that_its_samples_give_alone(tokenizer: Any) -> None:
    samples = [talk("a", "b"), PromptCompletion("c", " d"), talk("long " * 50, "e", "f", "g")]
    rows = Encoder(tokenizer, COMPLETION).encode(samples, [f"train[{at}]" for at in range(3)])
    assert rows == [encode(tokenizer, sample) for sample in samples]


# --- a prompt and its completion ------------------------------------------------------------------


def test_a_completion_gets_eos_and_no_template(tokenizer: Any) -> None:
    row = encode(tokenizer, PromptCompletion("1 + 1 =", " 2"))
    assert tokenizer.decode(row.input_ids) == "1 + 1 = 2<|im_end|>"
    assert tokenizer.decode(trained_ids(row)) == " 2<|im_end|>"


def test_a_completion_with_a_full_loss_is_trained_from_its_first_token(tokenizer: Any) -> None:
    row = encode(tokenizer, PromptCompletion("1 + 1 =", " 2"), FULL)
    assert row.labels == row.input_ids


def test_a_completion_is_not_merged_with_the_end_of_its_prompt(tokenizer: Any) -> None:
    prompt, completion = "Answer:", "-) yes"  # ":-" is one token where both are tokenised together
    row = encode(tokenizer, PromptCompletion(prompt, completion))
    assert tokenizer.decode(trained_ids(row)) == "-) yes<|im_end|>"
    assert row.input_ids[: row.labels.index(trained_ids(row)[0])] == tokenizer(prompt).input_ids


def test_a_completion_needs_no_chat_template(templated: Templated) -> None:
    assert trained_text(templated(None), PromptCompletion("a", " b")) == " b<|im_end|>"


# --- ids of other kinds of tokenizers -------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "sample", "boundary", "prompt", "answer", "behind"),
    [
        (
            "phi3",
            talk("one", "yes two"),
            "split",
            "<|user|> \u2581one <|end|> <|assistant|>",
            "\u2581yes \u2581two <|end|>",
            "<|endoftext|>",
        ),
        (
            "opt",
            talk("one", "yes two"),
            "split",
            "</s> user \u010a one </s> \u010a </s> assistant \u010a",
            "yes \u0120two </s>",
            "\u010a",
        ),
        (
            "phi3",
            PromptCompletion("Hi:", "- yes"),
            "split",
            "\u2581Hi :",
            "- \u2581yes <|endoftext|>",
            "",
        ),
        (
            "opt",
            PromptCompletion("Hi:", "- yes"),
            "split",
            "</s> Hi :",
            "- \u0120yes </s>",
            "",
        ),
        # ":-" is one token, and hides the answer's first character
        (
            "phi3",
            PromptCompletion("Hi:", "- yes"),
            "joint",
            "\u2581Hi :-",
            "\u2581yes <|endoftext|>",
            "",
        ),
        ("opt", PromptCompletion("Hi:", "- yes"), "joint", "</s> Hi :-", "\u0120yes </s>", ""),
    ],
)
def test_a_row_has_the_tokens_of_its_parts(
    kind: str,
    sample: Sample,
    boundary: str,
    prompt: str,
    answer: str,
    behind: str,
    request: pytest.FixtureRequest,
) -> None:
    tokenizer = request.getfixturevalue(kind)
    row = encode(tokenizer, sample, LossConfig("completion_only", boundary=boundary))
    vocabulary = tokenizer.get_vocab()
    before, trained, after = (
        [vocabulary[token] for token in part.split()] for part in (prompt, answer, behind)
    )
    assert row.input_ids == before + trained + after
    assert row.labels == [IGNORED] * len(before) + trained + [IGNORED] * len(after)


# --- the rules, over random samples ---------------------------------------------------------------

# no "<|", so that no text spells one of the tokenizers' turn tokens; no control, private or
# unassigned characters, because SmolLM2's vocabulary lacks some of their bytes (0x04, 0x06, 0x13,
# 0x14, 0x16, 0x1d, 0xf1, 0xf2) and leaves them out
TEXT = st.one_of(
    st.text(
        st.characters(exclude_categories=["Cc", "Cn", "Co", "Cs"], exclude_characters="\u2581"),
        min_size=1,
        max_size=30,
    ),
    st.text(
        st.sampled_from(" \n\t.,:-'012abcABC가나다안녕é\U0001f600\U0001f468\u200d\u3000<|>"),
        min_size=1,
        max_size=30,
    ),
    st.sampled_from(
        [
            "assistant",
            "user\n",
            " yes ",
            "\n\nanswer\n",
            "안녕하세요.\n",
            "\U0001f468\u200d\U0001f469\u200d\U0001f467",
            ":-)",
        ]
    ),
).filter(lambda text: text.strip() and "<|" not in text)
TALKS = st.builds(
    lambda pairs, system: talk(*(text for pair in pairs for text in pair), system=system),
    st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3),
    st.none() | TEXT,
)
PAIRS = st.builds(PromptCompletion, TEXT, TEXT)


def start_of(row: Encoded) -> int:
    """Position of the first trained token."""
    return next(at for at, label in enumerate(row.labels) if label != IGNORED)


@pytest.fixture(scope="module", params=["tokenizer", "phi3", "opt"])
def each(request: pytest.FixtureRequest) -> Any:
    """Each kind of tokenizer: byte-level with turn tokens, SentencePiece, byte-level with BOS and
    without turn tokens.
    """
    return request.getfixturevalue(request.param)


@given(sample=TALKS)
def test_l2_prompt_and_answer_decode_to_their_texts(tokenizer: Any, sample: Conversation) -> None:
    row, start = encode(tokenizer, sample), start_of(encode(tokenizer, sample))
    template = ChatTemplate(tokenizer)
    prompt = template.text(without_answer(sample), "train[0]", prompt=True)
    assert tokenizer.decode(row.input_ids[:start]) == prompt
    assert tokenizer.decode(row.input_ids[start:]) == template.text(
        sample, "train[0]", prompt=False
    ).removeprefix(prompt)
    assert tokenizer.decode(trained_ids(row)) == sample.messages[-1]["content"] + "<|im_end|>"


@given(sample=PAIRS)
def test_l2_a_completion_decodes_to_its_text(tokenizer: Any, sample: PromptCompletion) -> None:
    row = encode(tokenizer, sample)
    assert tokenizer.decode(row.input_ids) == f"{sample.prompt}{sample.completion}<|im_end|>"
    assert tokenizer.decode(trained_ids(row)) == f"{sample.completion}<|im_end|>"


@given(sample=st.one_of(TALKS, PAIRS))
def test_l3_the_last_trained_token_is_eos_and_pad_is_never_trained(
    tokenizer: Any, sample: Sample
) -> None:
    trained = trained_ids(encode(tokenizer, sample))
    assert trained.count(tokenizer.eos_token_id) == 1
    assert trained[-1] == tokenizer.eos_token_id
    assert tokenizer.pad_token_id not in trained


@given(sample=st.one_of(TALKS, PAIRS), loss=st.sampled_from([COMPLETION, FULL]))
def test_labels_are_the_ids_where_trained_in_one_piece(
    tokenizer: Any, sample: Sample, loss: LossConfig
) -> None:
    row = encode(tokenizer, sample, loss)
    trained = trained_ids(row)
    start = start_of(row)
    assert row.labels == [IGNORED] * start + trained + [IGNORED] * (
        len(row.input_ids) - start - len(trained)
    )
    assert row.input_ids[start : start + len(trained)] == trained


def test_padding_is_never_trained(tokenizer: Any) -> None:
    from sftpipe.data.packing import Collator

    rows = [
        encode(tokenizer, sample)
        for sample in (talk("Hi.", "A long answer, much longer."), PromptCompletion("a", " b"))
    ]
    batch = Collator(tokenizer.pad_token_id)(
        [{"input_ids": row.input_ids, "labels": row.labels} for row in rows]
    )
    width = len(rows[0].input_ids) - len(rows[1].input_ids)
    assert batch["input_ids"][1, -width:].tolist() == [tokenizer.pad_token_id] * width
    assert batch["labels"][1].tolist() == rows[1].labels + [IGNORED] * width


# --- L4: one BOS ----------------------------------------------------------------------------------


def test_l4_a_tokenizer_that_adds_no_bos_gets_none(tokenizer: Any) -> None:
    assert tokenizer.bos_token_id not in encode(tokenizer, PromptCompletion("a", " b")).input_ids


def test_l4_a_tokenizer_that_adds_bos_gets_one_in_training_and_generation(opt: Any) -> None:
    row = encode(opt, PromptCompletion("Hello", " world"))
    assert opt.decode(row.input_ids) == "</s>Hello world</s>"
    assert opt.decode(Encoder(opt, COMPLETION).prompt_ids("Hello")) == "</s>Hello"


def test_l4_a_template_that_writes_bos_gets_no_second_one(opt: Any) -> None:
    row = encode(opt, talk("Hi.", "Hello."))
    assert opt.decode(row.input_ids) == "</s>user\nHi.</s>\n</s>assistant\nHello.</s>\n"


def test_l4_a_tokenizer_that_adds_bos_and_eos_keeps_its_bos(tokenizer: Any) -> None:
    both = copy.deepcopy(tokenizer)
    marks = [("<|im_start|>", 1), ("<|im_end|>", 2)]
    both.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=marks
    )
    assert (
        both.decode(encode(both, PromptCompletion("a", " b")).input_ids)
        == "<|im_start|>a b<|im_end|>"
    )


# --- templates ------------------------------------------------------------------------------------


def test_a_template_that_strips_the_answer_trains_what_it_wrote(templated: Templated) -> None:
    stripping = templated(CHATML.replace("m.content", "m.content | trim"))
    assert trained_text(stripping, talk("Hi.", "  Hello. \n")) == "Hello.<|im_end|>"


def test_a_template_that_ends_a_turn_in_another_special_token_trains_that_one(
    templated: Templated,
) -> None:
    other = templated(CHATML.replace("<|im_end|>", "<file_sep>"))
    assert trained_text(other, talk("Hi.", "Hello.")) == "Hello.<file_sep>"


def test_a_template_that_writes_a_mark_in_front_of_the_answer_trains_to_its_end(
    templated: Templated, golden_error: Pin
) -> None:
    marking = templated(
        CHATML.replace(
            "{{ m.content }}",
            "{% if m.role == 'assistant' %}<empty_output>{% endif %}{{ m.content }}",
        )
    )
    assert trained_text(marking, talk("Hi.", "empty")) == "<empty_output>empty<|im_end|>"


@pytest.mark.parametrize(
    ("template", "where", "commands"),
    named(
        [
            [
                "none",
                None,
                "tokenizer.chat_template",
                ("tokenizer.chat_template=chatml_bos_eos", "format=prompt_completion"),
            ],
            [
                "no-end-token",
                CHATML.replace("<|im_end|>", ""),
                "train[3], tokenizer.chat_template",
                (),
            ],
            ["syntax", "{% for message in messages %}", "tokenizer.chat_template", ()],
        ]
    ),
)
def test_a_template_that_serves_no_row_is_an_error_of_the_whole(
    templated: Templated,
    template: str | None,
    where: str,
    commands: tuple[str, ...],
    golden_error: Pin,
) -> None:
    encoder = Encoder(templated(template), COMPLETION)
    error = refused(DataError, lambda: encoder.encode([talk("hi", "yo")], ["train[3]"]))
    assert told(error) == {where: commands}
    if template is None:
        golden_error(error)


REWRITES = CHATML.replace("m.content", "(m.content if loop.last else m.content | upper)")


REFUSED, LEFT_OUT = "refused by the chat template", "left out by the chat template"


@pytest.mark.parametrize(
    ("template", "place", "reason", "found"),
    named(
        [
            [
                "rewrites-history",
                REWRITES,
                ".messages[1]",
                "history written otherwise than in generation",
                "'<|im_start|>user\\nhi<|im_end|>\\n<|im_st' against "
                "'<|im_start|>user\\nHI<|im_end|>\\n<|im_st'",
            ],
            ["raises", "{{ raise_exception('one turn') }}", "", REFUSED, ": one turn"],
            ["undefined-name", "{{ nothing + bos_token }}", "", REFUSED, "'nothing' is undefined"],
            ["type-error", "{{ 1 + 'x' }}", "", REFUSED, "unsupported operand"],
            [
                "no-answer",
                CHATML.replace("{{ m.content }}", "{{ m.content if m.role == 'user' }}"),
                ".messages[1]",
                LEFT_OUT,
                "(assistant)",
            ],
            [
                "a-part-of-the-answer",
                CHATML.replace("m.content", "m.content | replace('o', '')"),
                ".messages[1]",
                LEFT_OUT,
                "a part of it",
            ],
        ]
    ),
)
def test_a_template_that_cannot_serve_a_row_is_the_error_of_that_row(
    templated: Templated, template: str, place: str, reason: str, found: str, golden_error: Pin
) -> None:
    error = row_error(templated(template), talk("hi", "yo"))
    assert (error.problem.where, error.reason) == (f"train[3]{place}", reason)
    assert found in error.problem.found
    if template == REWRITES:
        golden_error(error)


def test_only_the_row_that_a_template_refuses_is_named(templated: Templated) -> None:
    picky = templated(
        "{% if messages[0].content == 'b' %}{{ raise_exception('no b') }}{% endif %}" + CHATML
    )
    samples = [talk("a", "b"), talk("b", "c"), talk("c", "d")]
    first, error, last = Encoder(picky, COMPLETION).encode(
        samples, ["test[0]", "test[1]", "test[2]"]
    )
    assert [first, last] == [encode(picky, samples[0]), encode(picky, samples[2])]
    assert isinstance(error, RowError)
    assert (error.problem.where, error.reason) == ("test[1]", "refused by the chat template")
    assert error.problem.found.endswith(" no b")


def test_tools_and_variables_of_a_row_reach_the_template(templated: Templated) -> None:
    sample = Conversation(talk("a", "b").messages, ({"name": "add"},), {"mood": "calm"})
    row = encode(templated("{{ tools | tojson }} {{ mood }} " + CHATML), sample)
    assert (
        templated(None)
        .decode(row.input_ids)
        .startswith('[{"name": "add"}] calm <|im_start|>user\na<|im_end|>')
    )


# --- L8: which turns are trained ------------------------------------------------------------------


def marked(tokenizer: Any, sample: Sample, loss: LossConfig) -> str:
    """The text of a row, the trained parts in brackets."""
    row = encode(tokenizer, sample, loss)
    parts = spans({"input_ids": row.input_ids, "labels": row.labels}, tokenizer)
    return "".join(f"⟦{part}⟧" if trained else part for part, trained in parts)


def trained_parts(tokenizer: Any, sample: Sample, loss: LossConfig) -> list[str]:
    return re.findall("⟦(.*?)⟧", marked(tokenizer, sample, loss), re.DOTALL)


def test_assistant_only_trains_every_answer_with_its_end(each: Any) -> None:
    end = {"<unk>": "<|end|>", "<pad>": "</s>"}.get(each.pad_token, "<|im_end|>")
    space = " " if end == "<|end|>" else ""  # which Phi-3 writes behind <|assistant|>
    found = trained_parts(each, talk("a", "b", "c", "d"), ASSISTANT)
    assert found == [f"{space}b{end}", f"{space}d{end}"]


@pytest.mark.parametrize(
    ("loss", "train", "parts"),
    [
        (ASSISTANT, (None, False, None, None), ["d"]),
        (ASSISTANT, (None, True, None, False), ["b"]),
        (COMPLETION, (None, None, None, True), ["d"]),
        (COMPLETION, (None, True, None, None), ["b", "d"]),
        (COMPLETION, (None, True, None, False), ["b"]),
    ],
)
def test_a_flag_of_a_turn_wins_over_the_loss(
    tokenizer: Any, loss: LossConfig, train: tuple[bool | None, ...], parts: list[str]
) -> None:
    sample = replace(talk("a", "b", "c", "d"), train=train)
    assert trained_parts(tokenizer, sample, loss) == [f"{part}<|im_end|>" for part in parts]


def test_every_answer_behind_the_prompt_of_a_row_is_its_completion(tokenizer: Any) -> None:
    sample = replace(talk("a", "b", "c", "d", "e", "f"), prompt_length=3)
    for loss in (COMPLETION, ASSISTANT):
        assert trained_parts(tokenizer, sample, loss) == ["d<|im_end|>", "f<|im_end|>"]


def test_a_row_without_a_turn_to_train_is_refused(tokenizer: Any) -> None:
    error = row_error(tokenizer, replace(talk("a", "b"), train=(None, False)))
    assert (
        str(error)
        == "train[3]: no turn of it is to be trained\n    remove the row, or its train: false"
    )
    assert error.reason == "nothing to train"


def test_a_turn_that_must_not_be_trained_clashes_with_a_full_loss(tokenizer: Any) -> None:
    error = row_error(tokenizer, replace(talk("a", "b"), train=(None, False)), FULL)
    assert str(error) == (
        "train[3]: loss=full trains every token, and a turn is marked train: false\n"
        "    loss=assistant_only"
    )


# --- generation blocks ----------------------------------------------------------------------------

BLOCKS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>\n"
    "{% endgeneration %}"
    "{% else %}{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_generation_block_says_what_is_trained_white_space_too(templated: Templated) -> None:
    assert trained_parts(templated(BLOCKS), talk("a", "b", "c", "d"), ASSISTANT) == [
        "b<|im_end|>\n",
        "d<|im_end|>\n",
    ]
    assert trained_parts(templated(BLOCKS), talk("a", "b", "c", "d"), COMPLETION) == [
        "d<|im_end|>\n"
    ]


def test_a_turn_without_a_generation_block_is_an_error(templated: Templated) -> None:
    some = BLOCKS.replace(
        "message.role == 'assistant'", "message.role == 'assistant' and loop.last"
    )
    error = row_error(templated(some), talk("a", "b", "c", "d"), ASSISTANT)
    assert error.reason == "refused by the chat template"
    assert "generation block" in str(error)


# --- templates that rewrite history ---------------------------------------------------------------

THINKING = CHATML.replace(
    "m.content",
    "(m.content.split('</think>')[-1] if m.role == 'assistant' and not loop.last else m.content)",
)
THOUGHTS = talk("a", "<think>x</think>b", "c", "<think>y</think>d")


def test_the_last_turn_is_trained_whatever_a_template_makes_of_the_history(
    templated: Templated,
) -> None:
    row = encode(templated(THINKING), THOUGHTS)
    assert templated(None).decode(row.input_ids) == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n<think>y</think>d<|im_end|>\n"
    )
    assert trained_text(templated(THINKING), THOUGHTS) == "<think>y</think>d<|im_end|>"


def test_training_every_turn_of_a_rewritten_history_is_an_error_with_two_ways_out(
    templated: Templated,
) -> None:
    error = row_error(templated(THINKING), THOUGHTS, ASSISTANT)
    assert told(error) == {"train[3].messages[1]": ("loss=completion_only", "loss.unroll=true")}
    assert error.problem.found.endswith(
        "'im_start|>assistant\\n<think>x</think>b<|i' against "
        "'im_start|>assistant\\nb<|im_end|>\\n<|im_sta'"
    )
    assert error.reason == "history written otherwise than in generation"


def test_unrolled_rows_train_each_turn_as_generation_gives_it(templated: Templated) -> None:
    rows = [
        trained_text(templated(THINKING), part, ASSISTANT)
        for part in unrolled(THOUGHTS, "assistant_only")
    ]
    assert rows == ["<think>x</think>b<|im_end|>", "<think>y</think>d<|im_end|>"]


@pytest.mark.parametrize(
    ("loss", "train", "lengths"),
    [
        ("assistant_only", (), [2, 4]),
        ("assistant_only", (None, False, None, None), [4]),
        ("completion_only", (), [4]),
    ],
)
def test_unrolling_makes_a_row_of_each_trained_turn(
    loss: str, train: tuple[bool | None, ...], lengths: list[int]
) -> None:
    parts = unrolled(replace(talk("a", "b", "c", "d"), train=train), loss)
    assert [len(part.messages) for part in parts] == lengths
    assert [trained_turns(part, loss) for part in parts] == [(length - 1,) for length in lengths]


# --- tool calls -----------------------------------------------------------------------------------

CALLING = CHATML.replace(
    "{{ m.content }}",
    "{{ m.content }}{% for call in m.tool_calls or [] %}<tool>{{ call.function | "
    "tojson }}<empty_output>{% endfor %}",
)


def test_a_tool_call_is_trained_to_the_end_of_its_turn_and_results_are_not(
    templated: Templated,
) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    asked, answered = talk("1 + 1?", "2.").messages
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    sample = Conversation((asked, called, {"role": "tool", "content": "2"}, answered))
    assert trained_parts(templated(CALLING), sample, ASSISTANT) == [
        '<tool>{"name": "add", "arguments": {"a": 1}}<empty_output><|im_end|>',
        "2.<|im_end|>",
    ]


# --- texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a b", "a b<|im_end|>"])
def test_a_text_ends_in_eos_once(tokenizer: Any, text: str) -> None:
    row = encode(tokenizer, Text(text), FULL)
    assert tokenizer.decode(row.input_ids) == "a b<|im_end|>"
    assert row.labels == row.input_ids


@pytest.mark.parametrize("behind", ["", "\n", " \n\n"])
@pytest.mark.parametrize("loss", [FULL, LossConfig("response_template", response_template="a")])
def test_l3_a_text_that_ends_in_an_end_token_and_white_space_gets_no_second_one(
    tokenizer: Any, loss: LossConfig, behind: str
) -> None:
    row = encode(tokenizer, Text(f"a b<|im_end|>{behind}"), loss)
    assert tokenizer.decode(row.input_ids) == f"a b<|im_end|>{behind}"
    assert trained_ids(row)[-1] == tokenizer.eos_token_id
    assert set(row.labels[row.input_ids.index(tokenizer.eos_token_id) + 1 :]) <= {IGNORED}


def test_l3_the_end_of_a_turn_of_the_template_ends_a_string_too(phi3: Any) -> None:
    pair = PromptCompletion("<|user|>\none<|end|>\n<|assistant|>\n", "yes<|end|>\n")
    for sample, loss in ((pair, COMPLETION), (Text(pair.prompt + pair.completion), FULL)):
        row = encode(phi3, sample, loss)
        assert phi3.convert_ids_to_tokens(row.input_ids)[-2:] == ["\u2581yes", "<|end|>"]
        assert row.labels[-1] == row.input_ids[-1]


def test_l3_the_end_of_the_prompt_is_no_end_of_an_empty_completion(tokenizer: Any) -> None:
    for boundary in ("split", "joint"):
        loss = LossConfig("completion_only", boundary=boundary)
        row = encode(tokenizer, PromptCompletion("a<|im_end|>\n", "\n"), loss)
        assert trained_ids(row)[-1] == row.input_ids[-1] == tokenizer.eos_token_id


def test_l3_a_tokenizer_without_a_template_knows_eos_alone(templated: Templated) -> None:
    row = encode(templated(None), Text("a<|endoftext|>"), FULL)
    assert templated(None).decode(row.input_ids) == "a<|endoftext|><|im_end|>"


@pytest.mark.parametrize("text", ["a b", "</s>a b"])
def test_l4_a_text_begins_with_one_bos(opt: Any, text: str) -> None:
    assert opt.decode(encode(opt, Text(text), FULL).input_ids) == "</s>a b</s>"


@pytest.mark.parametrize("loss", ["completion_only", "assistant_only"])
def test_a_text_has_no_turns(tokenizer: Any, loss: str, golden_error: Pin) -> None:
    error = refused(DataError, lambda: encode(tokenizer, Text("a"), LossConfig(loss)))
    assert told(error) == {f"loss={loss} (train[0])": ("loss=full",)}
    golden_error(error)


@pytest.mark.parametrize(
    ("text", "character", "reason"),
    named(
        [
            ["half a character", "\ud800b", "U+D800", "broken text"],
            ["unknown character", "a\x04b", "U+0004", "character outside the vocabulary"],
        ]
    ),
)
def test_text_that_the_tokenizer_would_lose_is_refused(
    tokenizer: Any, text: str, character: str, reason: str, golden_error: Pin
) -> None:
    for sample in (PromptCompletion(text, "b"), PromptCompletion("a", text), talk(text, "b")):
        error = row_error(tokenizer, sample)
        assert (error.problem.where, error.reason) == ("train[3]", reason)
        assert character in error.problem.found
    golden_error(error)


@pytest.mark.parametrize(
    ("prompt", "completion", "tokens"),
    [
        ("one:", "yes", "\u2581one : yes"),
        ("one:", " yes", "\u2581one : \u2581yes"),
        ("one:", "  yes", "\u2581one : \u2581 \u2581yes"),
        ("one\n", "yes", "\u2581one <0x0A> yes"),
        ("one\n", " yes", "\u2581one <0x0A> \u2581yes"),
        ("one", "\nyes", "\u2581one <0x0A> yes"),
        ("one", "\n\tyes", "\u2581one <0x0A> <0x09> yes"),
        # at the start of a text as the tokenizer writes it
        (" one:", "yes", "\u2581 \u2581one : yes"),
        ("", "yes", "\u2581yes"),
        # behind an added token, as in the joint text of a template
        ("one<|endoftext|>", "yes", "\u2581one <|endoftext|> \u2581yes"),
        ("one<|assistant|>\n", "yes", "\u2581one <|assistant|> \u2581yes"),
        # which must not swallow white space of the answer
        ("one<|assistant|>\n", " yes", "\u2581one <|assistant|> \u2581yes"),
        ("one<|assistant|>", "\nyes", "\u2581one <|assistant|> <0x0A> yes"),
    ],
)
def test_l2_an_answer_begins_with_a_space_only_where_its_text_does(
    phi3: Any, prompt: str, completion: str, tokens: str
) -> None:
    row = encode(phi3, PromptCompletion(prompt, completion))
    assert row.input_ids == phi3.convert_tokens_to_ids([*tokens.split(), "<|endoftext|>"])
    assert row.input_ids[: start_of(row)] == phi3(prompt).input_ids


def test_where_an_answer_ends_is_found_behind_an_anchor(phi3: Any) -> None:
    text = "### Q: one\n### A: yes two\n### Q: six\n### A:yes"
    row = encode(phi3, Text(text), response("### A:", "### Q:"))
    trained = [" yes two\n", "yes<|endoftext|>"]
    assert trained_parts(phi3, Text(text), response("### A:", "### Q:")) == trained
    assert phi3.decode(row.input_ids) == text + "<|endoftext|>"


# --- boundary -------------------------------------------------------------------------------------


def test_a_joint_boundary_masks_as_many_tokens_as_the_prompt_has(tokenizer: Any) -> None:
    sample = PromptCompletion("Answer:", "-) yes")
    row = encode(tokenizer, sample, LossConfig("completion_only", boundary="joint"))
    assert row.input_ids == [*tokenizer("Answer:-) yes").input_ids, tokenizer.eos_token_id]
    assert (
        tokenizer.decode(trained_ids(row)) == ") yes<|im_end|>"
    )  # ":-" is one token, and hides the answer's first character


def test_a_joint_boundary_counts_bos_with_the_prompt(opt: Any) -> None:
    assert (
        marked(opt, PromptCompletion("a", " b"), LossConfig("completion_only", boundary="joint"))
        == "</s>a⟦ b</s>⟧"
    )


def test_a_joint_conversation_is_trained_as_a_split_one_where_nothing_merges(
    tokenizer: Any,
) -> None:
    sample = talk("Hi.", "Hello.")
    assert encode(tokenizer, sample, LossConfig("completion_only", boundary="joint")) == encode(
        tokenizer, sample
    )


# --- L7: response templates -----------------------------------------------------------------------

QUESTIONS = Text("### Q: a\n### A: b\n### Q: c\n### A: d\n")


def response(template: Any, instruction: Any = None) -> LossConfig:
    return LossConfig(
        "response_template", response_template=template, instruction_template=instruction
    )


def test_a_response_template_alone_trains_the_last_answer(tokenizer: Any) -> None:
    assert (
        marked(tokenizer, QUESTIONS, response("### A:"))
        == "### Q: a\n### A: b\n### Q: c\n### A:⟦ d\n<|im_end|>⟧"
    )


def test_with_an_instruction_template_every_answer_is_trained_in_whatever_context_its_pieces_stand(
    each: Any,
) -> None:
    parts = trained_parts(each, QUESTIONS, response("### A:", "### Q:"))
    assert [part.strip() for part in parts] == ["b", f"d\n{each.eos_token}"]


def test_a_response_template_is_found_in_prompts_and_conversations_too(
    templated: Templated,
) -> None:
    pair = PromptCompletion("### Q: a\n### A:", " b")
    assert marked(templated(None), pair, response("### A:")) == "### Q: a\n### A:⟦ b<|im_end|>⟧"
    turns = ("<|im_start|>assistant\n", "<|im_start|>user\n")
    assert trained_parts(templated(CHATML), talk("a", "b", "c", "d"), response(*turns)) == [
        "b<|im_end|>\n",
        "d<|im_end|>\n",
    ]


def test_templates_may_be_ids(tokenizer: Any) -> None:
    ids = [tokenizer(text).input_ids for text in ("<|im_start|>assistant\n", "<|im_start|>user\n")]
    sample = talk("a", "b", "c", "d")
    assert trained_parts(tokenizer, sample, response(*ids)) == ["b<|im_end|>\n", "d<|im_end|>\n"]
    assert trained_parts(tokenizer, sample, response(ids[0])) == ["d<|im_end|>\n"]


@pytest.mark.parametrize("template", ["### B:", [4, 5, 6]])
def test_a_row_without_the_response_template_is_refused(tokenizer: Any, template: Any) -> None:
    error = row_error(tokenizer, Text("### Q: a\n### A: b"), response(template))
    assert error.problem.where == "train[3]"
    assert f"{template!r} is not in '### Q: a\\n### A: b'" in error.problem.found
    assert error.reason == "response template not found"


def test_an_empty_answer_trains_nothing_and_is_refused(tokenizer: Any) -> None:
    assert (
        row_error(tokenizer, Text("### Q: a\n### A:"), response("### A:")).reason
        == "no trained token"
    )


def test_the_answer_of_a_text_stands_behind_its_last_response_template(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, response("### A:"))
    assert split_answer(QUESTIONS, encoder.loss) == ("### Q: a\n### A: b\n### Q: c\n### A:", " d\n")
    assert split_answer(PromptCompletion("### Q: a", "\n### A: b"), encoder.loss) == (
        "### Q: a\n### A:",
        " b",
    )


QUESTION, ANSWER = "<|im_start|>user\n", "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("sample", "templates", "found"),
    [
        (QUESTIONS, ("### A:", "### Q:"), ""),
        (QUESTIONS, ("### A:",), "too many response templates"),
        (Text("### Q: why ### A: ?### A: a"), ("### A:", "### Q:"), "too many response templates"),
        (PromptCompletion("### Q: a\n### A:", " b"), ("### A:", "### Q:"), ""),
        (
            PromptCompletion("### Q: a\n### A:", " b\n### Q: c\n### A: d"),
            ("### A:", "### Q:"),
            "a template in the completion",
        ),
        (talk("a", "b", "c", "d"), (ANSWER, QUESTION), ""),
        (talk("a", "b", "c", "d"), (ANSWER,), ""),
        (talk("a", f"so: {ANSWER}b"), (ANSWER,), "too many response templates"),
        (talk("a", f"so: {QUESTION}b"), (ANSWER, QUESTION), "too many instruction templates"),
    ],
)
def test_l7_a_row_whose_templates_do_not_alternate_is_remarked(
    tokenizer: Any, sample: Sample, templates: tuple[str, ...], found: str
) -> None:
    losses = [response(*templates)]
    if isinstance(sample, Conversation):
        losses.append(response(*(tokenizer(template).input_ids for template in templates)))
    for loss in losses:
        remarks = encode(tokenizer, sample, loss).remarks
        said = [remark.what for remark in remarks if remark.kind == OUT_OF_TURN]
        assert said == ([found] if found else [])


# --- L6: rows that are cut to fit -----------------------------------------------------------------


def fit(
    tokenizer: Any, sample: Sample, limit: int, loss: LossConfig = COMPLETION
) -> Encoded | RowError:
    row = encode(tokenizer, sample, loss)
    return truncate(sample, row, limit, Encoder(tokenizer, loss), "train[3]")


LONG = talk("a a a a", "b", "c c c c", "d", "e", "f", system="S")


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        (51, LONG.messages),
        (50, LONG.messages[:1] + LONG.messages[3:]),
        (35, LONG.messages[:1] + LONG.messages[3:]),
        (34, LONG.messages[:1] + LONG.messages[5:]),
        (19, LONG.messages[:1] + LONG.messages[5:]),
    ],
)
def test_the_oldest_exchanges_are_cut_and_the_system_turn_stays(
    tokenizer: Any, limit: int, kept: tuple[Any, ...]
) -> None:
    whole, shorter = encode(tokenizer, LONG), encode(tokenizer, Conversation(kept))
    assert fit(tokenizer, LONG, limit) == replace(
        shorter, cut=len(whole.input_ids) - len(shorter.input_ids)
    )


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (8, "</s>one two three four⟦ five six</s>⟧"),
        (6, "</s> three four⟦ five six</s>⟧"),
        (5, "</s> four⟦ five six</s>⟧"),
    ],
)
def test_a_prompt_is_cut_from_the_left_behind_its_bos(opt: Any, limit: int, text: str) -> None:
    row = fit(opt, PromptCompletion("one two three four", " five six"), limit)
    assert isinstance(row, Encoded)
    parts = spans({"input_ids": row.input_ids, "labels": row.labels}, opt)
    assert "".join(f"⟦{part}⟧" if trained else part for part, trained in parts) == text


@pytest.mark.parametrize(
    ("sample", "limit", "length"), [(LONG, 18, 51), (PromptCompletion("a", " b c d"), 3, 5)]
)
def test_an_answer_is_never_cut(tokenizer: Any, sample: Sample, limit: int, length: int) -> None:
    error = fit(tokenizer, sample, limit)
    assert str(error) == (
        f"train[3]: {length} tokens, and no prompt that could be cut to fit "
        f"sft.max_length={limit}\n    sft.max_length={length}"
    )


def test_a_text_that_is_trained_in_full_is_never_cut(tokenizer: Any) -> None:
    error = fit(tokenizer, Text("a b c d"), 4, FULL)
    assert isinstance(error, RowError)
    assert error.reason == "longer than sft.max_length"


# --- golden values --------------------------------------------------------------------------------


@pytest.mark.slow
def test_golden_yoda_on_the_published_tokenizers(golden: Path, subtests: pytest.Subtests) -> None:
    cases = {
        case["id"]: case for case in json.loads((golden / "cases.json").read_text(encoding="utf-8"))
    }
    with (golden / "data" / "yoda" / "sentences.csv").open(encoding="utf-8", newline="") as file:
        yoda = [talk(row["sentence"], row["translation_extra"]) for row in csv.DictReader(file)]
    phi3 = tokenizer_at(golden / "tokenizers" / PUBLISHED["phi3"])
    opt = tokenizer_at(golden / "tokenizers" / PUBLISHED["opt"], chat_template="chatml_bos_eos")
    with subtests.test("002-phi-pad-unk"):
        expected = cases["002-phi-pad-unk"]["expected"]
        # cls, sep and mask were added by hand there
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        assert [phi3.special_tokens_map[name] for name in names] == [
            expected[name] for name in names
        ]
    expected = cases["002-completion-collator"]["expected"]
    for number in (0, 1):
        with subtests.test("002-completion-collator", row=number):
            # padded on the left there
            real = [
                position for position, kept in enumerate(expected["attention_mask"][number]) if kept
            ]
            row = encode(phi3, yoda[number])
            assert row.input_ids == [expected["input_ids"][number][position] for position in real]
            # the one deviation: the document also trains <|endoftext|>, which the template writes
            # behind <|end|>. By rule L3 the end of a turn is trained once, by the token that
            # generation stops at, which is <|end|>; what follows it generation never reaches
            assert [*row.labels[:-1], row.input_ids[-1]] == [
                expected["labels"][number][position] for position in real
            ]
            assert row.labels[-1] == IGNORED
    with subtests.test("002-completion-decode"):
        # without the <|endoftext|> behind it, as above
        whole = cases["002-completion-decode"]["expected"]
        assert trained_text(phi3, yoda[0]) == whole.removesuffix("<|endoftext|>")
    for tokenizer, end in ((phi3, "<|end|>"), (opt, "</s>")):
        with subtests.test("answers end once and never in PAD", end=end):
            assert len(yoda) == cases["002-yoda-len-row0"]["expected"][0]
            places = [f"train[{number}]" for number in range(len(yoda))]
            rows = Encoder(tokenizer, COMPLETION).encode(yoda, places)
            for sample, row in zip(yoda, rows, strict=True):
                assert isinstance(row, Encoded)
                assert tokenizer.decode(trained_ids(row)) == sample.messages[-1]["content"] + end
                assert trained_ids(row).count(tokenizer.convert_tokens_to_ids(end)) == 1
                assert tokenizer.pad_token_id not in row.input_ids
