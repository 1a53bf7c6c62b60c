"""The rules of docs/rules.md over random samples, on the embedded tokenizer, small ones of three
other kinds and every chat template that we ship; and in one test on the published tokenizers.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from sftpipe.config.options import conf_dir
from sftpipe.config.schema import DatasetConfig, LossConfig, PreflightConfig
from sftpipe.data import source
from sftpipe.data.chat_template import trained_turns, unrolled
from sftpipe.data.cleaning import Cleaner
from sftpipe.data.control_tokens import control_tokens
from sftpipe.data.encode import Encoded, Encoder
from sftpipe.data.labels import IGNORED
from sftpipe.data.packing import Collator
from sftpipe.data.preflight.parity import _reads_back
from sftpipe.data.samples import Conversation, PromptCompletion, Sample, Text
from sftpipe.data.segments import SegmentTokenizer
from sftpipe.data.source import SPLITS
from sftpipe.data.stored import numbered, store_by_content
from sftpipe.errors import DataError, RowError
from support.sources import load_splits
from support.tokenizers import PUBLISHED, metaspace, tokenizer_at, with_prefix_space

EACH_KIND = settings(max_examples=settings().max_examples * 2 // 3)  # of 13 kinds
LOSSES = ("completion_only", "assistant_only")

# --- random samples -------------------------------------------------------------------------------

ALPHABET = (
    " \n"
    "\t.,:;-_'\"`“”«»()[]{}<>|/\\#*=012abcXYZéüß가나다안녕하세요\U0001f600\U0001f44d\U0001f468\u200d\U0001f469"
)
SPECIAL = re.compile(r"<[^<>]*>")  # no text spells a special token of any of the tokenizers
TEXT = st.one_of(
    st.text(st.sampled_from(ALPHABET), min_size=1, max_size=25),
    st.sampled_from(
        [
            "assistant",
            "user\n",
            " yes ",
            "\n\nanswer\n",
            "안녕하세요.\n",
            "'quoted' \"twice\"",
            ":-)",
            "<|im_",
            "\n  indented",
            "a",
        ]
    ),
).filter(lambda text: bool(text.strip()) and not SPECIAL.search(text))


@st.composite
def talks(draw: Any, flags: bool = True) -> Conversation:
    """A conversation of 1 to 6 exchanges, with or without a system turn and `train` flags."""
    messages = [{"role": "system", "content": draw(TEXT)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 6))):
        messages += [
            {"role": "user", "content": draw(TEXT)},
            {"role": "assistant", "content": draw(TEXT)},
        ]
    if not flags or draw(st.booleans()):
        return Conversation(tuple(messages))
    choice = st.sampled_from([None, True, False])
    return Conversation(
        tuple(messages),
        train=tuple(
            draw(choice) if message["role"] == "assistant" else None for message in messages
        ),
    )


PAIRS = st.builds(PromptCompletion, TEXT, TEXT)

# --- tokenizers with templates --------------------------------------------------------------------

TURN_TOKENS = {
    "chatml": ["<|im_start|>", "<|im_end|>"],
    "phi3": ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
    "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
}
KINDS = [
    ("tokenizer", "own"),
    ("chatml", "chatml"),
    ("chatml", "chatml_bos_eos"),
    ("chatml", "phi3"),
    ("chatml", "zephyr"),
    ("chatml", "llama3"),
    ("phi3", "own"),
    ("phi3", "chatml"),
    ("phi3", "phi3"),
    ("phi3", "zephyr"),
    ("phi3", "llama3"),
    ("opt", "chatml_bos_eos"),
    ("opt", "llama3"),
]


@dataclass(frozen=True)
class Kind:
    """end: id of the token that ends a turn; bos: how often BOS stands in a row, None where it
    opens turns; trims: the template does.
    """

    tokenizer: Any
    encoders: dict[str, Encoder]
    end: int
    bos: int | None
    trims: bool

    def encode(self, sample: Sample, loss: str) -> Encoded:
        (row,) = self.encoders[loss].encode([sample], ["train[0]"])
        if isinstance(row, RowError):
            raise row
        return row


def with_template(tokenizer: Any, name: str) -> Kind:
    """A tokenizer, which is changed, with a chat template and the tokens that it writes."""
    phi3 = "<|user|>" in tokenizer.get_vocab()
    template = "phi3" if name == "own" and phi3 else name
    if name != "own":
        tokenizer.add_tokens(TURN_TOKENS.get(name, []), special_tokens=True)
        tokenizer.chat_template = (conf_dir() / "chat_template" / f"{name}.jinja").read_text(
            encoding="utf-8"
        )
    end = {
        "own": "<|im_end|>",
        "chatml": "<|im_end|>",
        "phi3": "<|end|>",
        "llama3": "<|eot_id|>",
    }.get(template, tokenizer.eos_token)
    return Kind(
        tokenizer,
        {loss: Encoder(tokenizer, LossConfig(loss)) for loss in LOSSES},
        tokenizer.convert_tokens_to_ids(end),
        bos=1 if template == "llama3" else 0 if phi3 else None,
        trims=template == "llama3",
    )


def with_bos(tokenizer: Any) -> Any:
    """Phi-3's tokenizer as Llama 2 has it, with BOS in front of a text."""
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def kind(request: pytest.FixtureRequest) -> Kind:
    """A tokenizer with a chat template and the tokens that it writes."""
    name, template = request.param
    return with_template(copy.deepcopy(request.getfixturevalue(name)), template)


@pytest.fixture(scope="module", params=["tokenizer", "phi3", "opt", "phi3-with-bos"])
def plain(request: pytest.FixtureRequest) -> Any:
    """Tokenizers for text without a template; Phi-3's also as Llama 2 has it, with BOS in front."""
    if request.param != "phi3-with-bos":
        return request.getfixturevalue(request.param)
    return with_bos(copy.deepcopy(request.getfixturevalue("phi3")))


def segments(row: Encoded) -> list[tuple[int, list[int]]]:
    """(position, ids) of each run of trained tokens."""
    assert len(row.input_ids) == len(row.labels)
    assert all(
        label in (IGNORED, token) for token, label in zip(row.input_ids, row.labels, strict=True)
    )
    starts = [
        at
        for at, label in enumerate(row.labels)
        if label != IGNORED and (at == 0 or row.labels[at - 1] == IGNORED)
    ]
    return [(at, row.labels[at : [*row.labels, IGNORED].index(IGNORED, at)]) for at in starts]


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of ids that do not begin a text: a decoder drops a space there."""
    front = tokenizer.eos_token_id
    text = tokenizer.decode([front, *ids], clean_up_tokenization_spaces=False)
    return str(text.removeprefix(tokenizer.decode([front])))


# --- conversations --------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
@EACH_KIND
@given(chat=talks())
def test_l1_the_ids_in_front_of_every_trained_turn_are_those_that_generation_is_fed(
    kind: Kind, loss: str, chat: Conversation
) -> None:
    turns = trained_turns(chat, loss)
    assume(turns)
    row = kind.encode(chat, loss)
    found = segments(row)
    assert len(found) == len(turns)
    for index, (start, _) in zip(turns, found, strict=True):
        prompt = replace(chat, messages=chat.messages[:index], train=())
        assert row.input_ids[:start] == kind.encoders[loss].prompt_ids(prompt)


@pytest.mark.parametrize("loss", LOSSES)
@EACH_KIND
@given(chat=talks())
def test_l2_l3_every_trained_turn_is_its_text_and_one_end_token(
    kind: Kind, loss: str, chat: Conversation
) -> None:
    turns = trained_turns(chat, loss)
    assume(turns)
    for index, (_, ids) in zip(turns, segments(kind.encode(chat, loss)), strict=True):
        content = chat.messages[index]["content"]
        text = content.strip() if kind.trims else content
        assert decoded(kind.tokenizer, ids[:-1]) in (text, f" {text}")
        assert ids[-1] == kind.end
        assert ids.count(kind.end) == 1
        assert kind.tokenizer.pad_token_id not in ids


@EACH_KIND
@given(chat=talks())
def test_l4_bos_stands_where_the_template_writes_it_in_training_as_in_generation(
    kind: Kind, chat: Conversation
) -> None:
    assume(trained_turns(chat, "assistant_only"))
    encoder, bos = kind.encoders["assistant_only"], kind.tokenizer.bos_token_id
    prompt = replace(chat, messages=chat.messages[:-1], train=())
    for ids, sample, generates in (
        (kind.encode(chat, "assistant_only").input_ids, chat, False),
        (encoder.prompt_ids(prompt), prompt, True),
    ):
        assert ids.count(bos) == encoder.template.text(sample, "train[0]", prompt=generates).count(
            kind.tokenizer.bos_token
        )
        if kind.bos is not None:
            assert ids.count(bos) == kind.bos
            assert ids[: kind.bos] == [bos] * kind.bos


@EACH_KIND
@given(chat=talks())
def test_a_conversation_trains_what_its_unrolled_turns_train(
    kind: Kind, chat: Conversation
) -> None:
    turns = unrolled(chat, "assistant_only")
    assume(turns)
    row = kind.encode(chat, "assistant_only")
    rows = [kind.encode(turn, loss) for turn in turns for loss in LOSSES]
    assert rows[::2] == rows[1::2]  # the flags decide, whatever the loss
    alone = [segments(one) for one in rows[::2]]
    assert [ids for _, ids in segments(row)] == [ids for ((_, ids),) in alone]
    for (start, _), one, ((at, _),) in zip(segments(row), rows[::2], alone, strict=True):
        assert row.input_ids[:start] == one.input_ids[:at]


@EACH_KIND
@given(chat=talks())
def test_losses_change_labels_and_not_ids(kind: Kind, chat: Conversation) -> None:
    assume(all(trained_turns(chat, loss) for loss in LOSSES))
    assert (
        kind.encode(chat, "completion_only").input_ids
        == kind.encode(chat, "assistant_only").input_ids
    )


def test_a_conversation_without_a_trained_turn_is_an_error_and_no_row(kind: Kind) -> None:
    chat = Conversation(
        ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}),
        train=(None, False),
    )
    with pytest.raises(RowError, match="no turn of it is to be trained"):
        kind.encode(chat, "assistant_only")


# --- prompts with completions, and texts ----------------------------------------------------------


def encode(tokenizer: Any, sample: Sample, loss: LossConfig | None = None) -> Encoded:
    (row,) = Encoder(tokenizer, loss or LossConfig("completion_only")).encode(
        [sample], ["train[0]"]
    )
    assert isinstance(row, Encoded), row
    return row


def bos_of(tokenizer: Any) -> list[int]:
    """What the tokenizer puts in front of a text."""
    with_bos, without = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    return list(with_bos[: len(with_bos) - len(without)])


@given(pair=PAIRS)
def test_l1_a_completion_follows_the_ids_that_generation_is_fed(
    plain: Any, pair: PromptCompletion
) -> None:
    row = encode(plain, pair)
    ((start, _),) = segments(row)
    assert row.input_ids[:start] == Encoder(plain, LossConfig("completion_only")).prompt_ids(
        pair.prompt
    )


@given(pair=PAIRS)
def test_l2_l3_a_completion_is_its_text_and_one_eos(plain: Any, pair: PromptCompletion) -> None:
    ((_, ids),) = segments(encode(plain, pair))
    assert decoded(plain, ids[:-1]) == pair.completion
    assert ids[-1] == plain.eos_token_id
    assert ids.count(plain.eos_token_id) == 1
    assert plain.pad_token_id not in ids


@given(pair=PAIRS)
def test_l3_a_text_that_ends_in_eos_gets_no_second_one(plain: Any, pair: PromptCompletion) -> None:
    eos = plain.eos_token
    full = LossConfig("full")
    for sample in (Text(pair.prompt), Text(pair.prompt + eos)):
        row = encode(plain, sample, full)
        assert row.input_ids[len(bos_of(plain)) :].count(plain.eos_token_id) == 1
        assert row.input_ids[-1] == row.labels[-1] == plain.eos_token_id
    assert encode(plain, Text(pair.prompt), full) == encode(plain, Text(pair.prompt + eos), full)
    assert encode(plain, pair) == encode(plain, replace(pair, completion=pair.completion + eos))


@given(sample=st.one_of(PAIRS, st.builds(Text, TEXT)))
def test_l4_a_text_opens_with_the_tokenizers_bos_once(plain: Any, sample: Sample) -> None:
    row = encode(plain, sample, LossConfig("full"))
    bos = bos_of(plain)
    assert row.input_ids[: len(bos)] == bos
    inner = row.input_ids[len(bos) : -1]
    assert plain.bos_token_id not in inner
    assert row.labels in (row.input_ids, [IGNORED] * len(bos) + row.input_ids[len(bos) :])


@given(pair=PAIRS)
def test_l4_a_text_that_brings_its_bos_gets_no_second_one(
    plain: Any, pair: PromptCompletion
) -> None:
    bos = plain.bos_token if bos_of(plain) else ""
    for sample, brings in (
        (pair, replace(pair, prompt=bos + pair.prompt)),
        (Text(pair.prompt), Text(bos + pair.prompt)),
    ):
        rows = [encode(plain, one, LossConfig("full")).input_ids for one in (sample, brings)]
        assert [ids[: len(bos_of(plain)) + 1].count(plain.bos_token_id) for ids in rows] == [
            len(bos_of(plain))
        ] * 2


# --- white space where a segment begins -----------------------------------------------------------

SPACES = st.sampled_from(
    ["", "", " ", "  ", "\t", "\n", "\n\n", " \n", "\n ", "\n  \t", "\r\n", "\u3000"]
)
LETTERS = st.sampled_from(
    [
        "서울",
        "응답:",
        "富士山です。",
        "答：",
        "你好！",
        "\U0001f600",
        "\U0001f468\u200d\U0001f469",
        "Paris",
        "yes",
        ":",
        "-",
    ]
)
SPACED = st.lists(st.tuples(SPACES, LETTERS, SPACES), min_size=1, max_size=3).map(
    lambda parts: "".join(part for three in parts for part in three)
)
TOKENIZERS = ["phi3", "phi3-with-bos", "first", "always", "gpt2", "chatml", "prefix"]


def of_kind(name: str, get: Callable[[str], Any]) -> Any:
    """A tokenizer of `TOKENIZERS`: Prepend, Metaspace, bytes; some of each add a space."""
    if name == "phi3-with-bos":
        return with_bos(copy.deepcopy(get("phi3")))
    if name in ("first", "always"):
        return metaspace(get("phi3"), name)
    return with_prefix_space(get("opt")) if name == "prefix" else get(name)


@pytest.fixture(scope="module", params=TOKENIZERS)
def any_kind(request: pytest.FixtureRequest) -> Any:
    """A tokenizer that adds a space to a text in one of the ways there are, or that adds none."""
    return of_kind(request.param, request.getfixturevalue)


def reads_as(tokenizer: Any, ids: Sequence[int], text: str) -> bool:
    """True if ids decode to a text, to the byte, behind the tokenizer's BOS.

    But for a space at the very start: a byte-level tokenizer shows the one that it adds, and
    Metaspace adds none where one is, and leaves it out when it decodes.
    """
    bos = bos_of(tokenizer)
    read = tokenizer.decode(ids[len(bos) :], clean_up_tokenization_spaces=False)
    of_backend = str(tokenizer.backend_tokenizer.pre_tokenizer)
    if "add_prefix_space=True" in of_backend:
        text = f" {text.removeprefix(' ')}"
    elif "Metaspace" in of_backend:
        text = text.removeprefix(" ")
    return bool(ids[: len(bos)] == bos and read == text)


@st.composite
def strings(draw: Any) -> tuple[Sample, LossConfig, str]:
    """(sample, loss, prompt) of each format that makes strings."""
    prompt, answer = draw(SPACED), draw(SPACED)
    way = draw(st.sampled_from(["prompt_completion", "template", "text"]))
    if way == "prompt_completion":
        return PromptCompletion(prompt, answer), LossConfig("completion_only"), prompt
    if way == "template":
        prompt = f"### 질문:{prompt}\n\n### 응답:{draw(SPACES)}"
        return PromptCompletion(prompt, answer), LossConfig("completion_only"), prompt
    response = f"### 応答:{draw(SPACES)}"
    prompt = f"{prompt}\n{response}"
    loss = LossConfig("response_template", response_template=response)
    return Text(prompt + answer), loss, prompt


@given(drawn=strings())
def test_l1_l2_prompt_and_answer_read_as_their_text_to_the_byte(
    any_kind: Any, drawn: tuple[Sample, LossConfig, str]
) -> None:
    sample, loss, prompt = drawn
    encoder = Encoder(any_kind, loss)
    (row,) = encoder.encode([sample], ["train[0]"])
    assert isinstance(row, Encoded), row
    ((start, ids),) = segments(row)
    assert row.input_ids[:start] == any_kind(prompt).input_ids == encoder.prompt_ids(prompt)
    assert ids[-1] == any_kind.eos_token_id
    assert reads_as(any_kind, row.input_ids[:-1], encoder.text(sample))
    assert _reads_back(row.input_ids, sample, encoder)


def test_a_segment_that_merges_with_an_anchor_gets_another(opt: Any) -> None:
    # "\n\n" is no word of the small tokenizers; here it is one, as in most published ones
    of_bytes = json.loads(with_prefix_space(opt).backend_tokenizer.to_str())
    of_bytes["model"]["vocab"]["\u010a\u010a"] = 999
    of_bytes["model"]["merges"].append(["\u010a", "\u010a"])
    merging = copy.copy(opt)
    merging._tokenizer = Tokenizer.from_str(json.dumps(of_bytes))
    assert merging.tokenize("\n\n") == ["\u0120", "\u010a\u010a"]
    segments = SegmentTokenizer(merging)
    for text, tokens in (
        ("\nyes", ["\u010a", "yes"]),
        ("\n\nyes", ["\u010a", "\u010a", "yes"]),
        ("\n\n\nyes", ["\u010a\u010a", "\u010a", "yes"]),
    ):
        ((_, found),) = segments.tokenize([["one", text]])
        assert merging.convert_ids_to_tokens(found.ids) == tokens


def test_an_empty_segment_is_not_the_start_of_a_text(phi3: Any) -> None:
    segments = SegmentTokenizer(phi3)
    for texts, tokens in (
        (["one:", "", "yes"], [["\u2581one", ":"], [], ["yes"]]),
        (["", "yes", "two"], [[], ["\u2581yes"], ["two"]]),
    ):
        (found,) = segments.tokenize([texts])
        assert [phi3.convert_ids_to_tokens(one.ids) for one in found] == tokens


def test_ids_of_a_tokenizer_that_adds_no_space_are_those_of_its_segments_alone(
    gpt2: Any, chatml: Any
) -> None:
    for tokenizer in (gpt2, chatml):
        for pair in (PromptCompletion("one:\n", "\n yes"), PromptCompletion(" one ", "\t- yes")):
            ids = [tokenizer(text).input_ids for text in (pair.prompt, pair.completion)]
            row = encode(tokenizer, pair)
            assert row.input_ids == [*ids[0], *ids[1], tokenizer.eos_token_id]


@pytest.mark.parametrize("sample", [Text("a"), PromptCompletion("a", "b")], ids=["text", "pair"])
def test_a_loss_of_turns_on_what_has_none_is_an_error(plain: Any, sample: Sample) -> None:
    with pytest.raises(DataError, match="no turns to tell apart"):
        Encoder(plain, LossConfig("assistant_only")).encode([sample], ["train[0]"])


# --- response templates ---------------------------------------------------------------------------

HUMAN, ASSISTANT = "### Human:", "### Assistant:"
WORDS = TEXT.filter(lambda text: "#" not in text)


def dialogue(pairs: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"{HUMAN} {question}\n{ASSISTANT} {answer}" for question, answer in pairs)


@given(pairs=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_l7_without_an_instruction_template_the_last_answer_alone_is_trained(
    plain: Any, pairs: list[tuple[str, str]]
) -> None:
    loss = LossConfig("response_template", response_template=ASSISTANT)
    ((_, ids),) = segments(encode(plain, Text(dialogue(pairs)), loss))
    assert decoded(plain, ids[:-1]) == f" {pairs[-1][1]}"
    assert ids[-1] == plain.eos_token_id


@given(pairs=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_l7_with_both_templates_every_answer_is_trained_up_to_the_next_question(
    plain: Any, pairs: list[tuple[str, str]]
) -> None:
    loss = LossConfig("response_template", response_template=ASSISTANT, instruction_template=HUMAN)
    found = segments(encode(plain, Text(dialogue(pairs)), loss))
    assert len(found) == len(pairs)
    for at, ((_, ids), (_, answer)) in enumerate(zip(found, pairs, strict=True)):
        last = at == len(pairs) - 1
        text = decoded(plain, ids[:-1] if last else ids)
        # a token that holds the last character of the answer and the first of the next template
        # belongs to the answer
        assert text.startswith(f" {answer}")
        assert text.removeprefix(f" {answer}") in ("", "\n", "\n#", "\n###")


@given(chat=talks(flags=False))
def test_l7_ids_of_a_response_template_train_what_its_text_trains(
    tokenizer: Any, chat: Conversation
) -> None:
    assume(all(message["content"] == message["content"].strip() for message in chat.messages))
    response, instruction = "<|im_start|>assistant\n", "<|im_start|>user\n"
    by_text = LossConfig(
        "response_template", response_template=response, instruction_template=instruction
    )
    as_ids = [
        tokenizer(text, add_special_tokens=False).input_ids for text in (response, instruction)
    ]
    by_ids = LossConfig(
        "response_template", response_template=as_ids[0], instruction_template=as_ids[1]
    )
    assert encode(tokenizer, chat, by_ids) == encode(tokenizer, chat, by_text)
    assert len(segments(encode(tokenizer, chat, by_ids))) == len(
        trained_turns(chat, "assistant_only")
    )


def test_l7_a_response_template_that_stands_nowhere_is_an_error(plain: Any) -> None:
    for template in (ASSISTANT, [5, 6, 7]):
        (row,) = Encoder(plain, LossConfig("response_template", response_template=template)).encode(
            [Text("nothing")], ["train[0]"]
        )
        assert isinstance(row, RowError)
        assert row.reason == "response template not found"


# --- the published tokenizers ---------------------------------------------------------------------


@pytest.mark.slow
def test_golden_the_rules_hold_on_the_published_tokenizers(
    golden: Path, subtests: pytest.Subtests
) -> None:
    folders = {name: golden / "tokenizers" / folder for name, folder in PUBLISHED.items()}
    for name, template in (("phi3", "own"), ("phi3", "llama3"), ("opt", "chatml_bos_eos")):
        one = with_template(tokenizer_at(folders[name]), template)
        for loss in LOSSES:
            with subtests.test(name, template=template, loss=loss):
                test_l1_the_ids_in_front_of_every_trained_turn_are_those_that_generation_is_fed(
                    kind=one, loss=loss
                )
                test_l2_l3_every_trained_turn_is_its_text_and_one_end_token(kind=one, loss=loss)
        with subtests.test(name, template=template):
            test_l4_bos_stands_where_the_template_writes_it_in_training_as_in_generation(kind=one)
    for name, tokenizer in (
        ("phi3", tokenizer_at(folders["phi3"])),
        ("phi3 with BOS", with_bos(tokenizer_at(folders["phi3"]))),
        ("opt", tokenizer_at(folders["opt"])),
        ("gpt2", tokenizer_at(folders["gpt2"])),
    ):
        for rule in (
            test_l1_a_completion_follows_the_ids_that_generation_is_fed,
            test_l2_l3_a_completion_is_its_text_and_one_eos,
            test_l4_a_text_opens_with_the_tokenizers_bos_once,
            test_l7_with_both_templates_every_answer_is_trained_up_to_the_next_question,
        ):
            with subtests.test(name, rule=rule.__name__):
                rule(plain=tokenizer)
        with subtests.test(name, rule="to the byte"):
            test_l1_l2_prompt_and_answer_read_as_their_text_to_the_byte(any_kind=tokenizer)


# --- from rows to batches -------------------------------------------------------------------------

ROWS = st.lists(st.one_of(talks(), PAIRS), min_size=1, max_size=5)


def finished(tokenizer: Any, samples: Sequence[Sample]) -> list[dict[str, list[int]]]:
    rows = Encoder(tokenizer, LossConfig("completion_only")).encode(
        samples, ["train[0]"] * len(samples)
    )
    return [
        {"input_ids": row.input_ids, "labels": row.labels}
        for row in rows
        if isinstance(row, Encoded)
    ]


@given(samples=ROWS, multiple=st.sampled_from([None, 8]))
def test_a_padded_batch_gives_back_every_id_and_label(
    tokenizer: Any, samples: list[Sample], multiple: int | None
) -> None:
    rows = finished(tokenizer, samples)
    assume(rows)
    batch = Collator(tokenizer.pad_token_id, multiple)(rows)
    width = batch["input_ids"].shape[1]
    longest = max(len(row["input_ids"]) for row in rows)
    assert width == (longest if multiple is None else -(-longest // multiple) * multiple)
    for at, row in enumerate(rows):
        length = len(row["input_ids"])
        assert batch["input_ids"][at].tolist() == row["input_ids"] + [tokenizer.pad_token_id] * (
            width - length
        )
        assert batch["labels"][at].tolist() == row["labels"] + [IGNORED] * (width - length)
        assert batch["attention_mask"][at].tolist() == [1] * length + [0] * (width - length)


@given(samples=ROWS)
def test_a_padding_free_batch_gives_back_every_id_and_label_but_the_first_of_each_row(
    tokenizer: Any, samples: list[Sample]
) -> None:
    rows = finished(tokenizer, samples)
    assume(rows)
    batch = Collator(tokenizer.pad_token_id)(rows, padding_free=True)
    assert batch["input_ids"].tolist() == [[token for row in rows for token in row["input_ids"]]]
    assert batch["labels"].tolist() == [
        [label for row in rows for label in [IGNORED, *row["labels"][1:]]]
    ]
    assert batch["position_ids"].tolist() == [
        [at for row in rows for at in range(len(row["input_ids"]))]
    ]


@pytest.mark.parametrize("padding_free", [False, True])
def test_the_collate_of_prepared_data_loses_nothing(data: Any, padding_free: bool) -> None:
    rows = [data.train[at] for at in range(8)]
    batch = data.collate(rows, padding_free=padding_free)
    kept = batch["input_ids"] != data.tokenizer.pad_token_id
    assert batch["input_ids"][kept].tolist() == [
        token for row in rows for token in row["input_ids"]
    ]
    assert batch["labels"][kept].tolist() == [
        label for row in rows for label in row["labels"]
    ]  # no row trains its first token


# --- splits ---------------------------------------------------------------------------------------

SIZES = st.one_of(st.just(0.0), st.floats(0.01, 0.6), st.integers(1, 40).map(float))


@given(
    rows=st.integers(1, 120),
    validation=SIZES,
    test=SIZES,
    order=st.permutations(SPLITS),
    seed=st.none() | st.integers(0, 5),
)
def test_splits_take_every_row_once(
    rows: int, validation: float, test: float, order: list[str], seed: int | None
) -> None:
    table = store_by_content(numbered([{"row": at} for at in range(rows)], "rows"), "rows")
    cfg = DatasetConfig(
        path="hub/rows",
        validation_size=validation,
        test_size=test,
        split_order=list(order),
        shuffle_seed=seed,
    )
    with patch.object(source, "read_hub", return_value={"train": table}):
        asked = [
            int(size) if size >= 1 else int(rows * size + 1e-6)
            for size in (validation, test)
            if size
        ]
        left = (
            int(rows * (1 - validation - test) + 1e-6)
            if validation < 1 and test < 1
            else rows - sum(asked)
        )
        if 0 in asked or (asked and left <= 0):
            with pytest.raises(DataError, match=r"less than one|nothing is left to train on"):
                load_splits(cfg)
            return
        splits = load_splits(cfg)
    taken = {name: [row["row"] for row in split] for name, split in splits.items()}
    assert set(taken) == {"train"} | {
        name for name, size in (("validation", validation), ("test", test)) if size
    }
    assert all(taken.values())
    assert sorted(row for split in taken.values() for row in split) == list(range(rows))
    if seed is None:  # cut in the order of `split_order`
        assert [row for name in order if name in taken for row in taken[name]] == list(range(rows))
    for name, size in (("validation", validation), ("test", test)):
        if size >= 1:
            assert len(taken[name]) == int(size)
        elif size:
            assert rows * size - 1 < len(taken[name]) + 1e-6
            assert len(taken[name]) < rows * size + 2  # rounding of the others may end up here


# --- special tokens in texts ----------------------------------------------------------------------


def clean(tokenizer: Any, chat: Conversation, forged: str = "escape") -> Conversation:
    preflight = PreflightConfig(max_empty_rows=0.0, max_over_length_rows=0.0)
    preflight.forged_turns = forged
    cleaner = Cleaner(tokenizer, DatasetConfig(path="embedded"), preflight)
    return replace(
        chat,
        messages=tuple(cleaner.clean(list(chat.messages), "train[0].messages")),
        template_kwargs=cleaner.clean(chat.template_kwargs, "train[0].chat_template_kwargs"),
    )


@given(data=st.data())
def test_an_escaped_text_holds_no_special_token_and_looks_the_same(
    kind: Kind, data: st.DataObject
) -> None:
    tokens = control_tokens(kind.tokenizer).control
    pieces = st.one_of(
        st.sampled_from(tokens),
        st.sampled_from(tokens).map(lambda token: token[:-1]),
        st.sampled_from(list("<|a ")),
        TEXT,
    )
    text = "".join(data.draw(st.lists(pieces, min_size=1, max_size=6))) + "a"
    chat = Conversation(
        (
            {"role": "user", "content": text},
            {
                "role": "assistant",
                "content": text,
                "tool_calls": [{"name": "f", "arguments": {text: [text]}}],
            },
        ),
        template_kwargs={"note": text},
    )
    escaped = clean(kind.tokenizer, chat)
    written = [
        escaped.messages[0]["content"],
        escaped.template_kwargs["note"],
        *escaped.messages[1]["tool_calls"][0]["arguments"],
    ]
    assert written == [written[0]] * 3
    assert written[0].replace("\u200b", "") == text
    special = set(kind.tokenizer.convert_tokens_to_ids(tokens))
    assert not special & set(kind.tokenizer(written[0], add_special_tokens=False).input_ids)
    assert clean(kind.tokenizer, escaped) == escaped
    if written[0] == text:
        assert clean(kind.tokenizer, chat, "error") == chat
    else:
        with pytest.raises(RowError, match="the special token"):
            clean(kind.tokenizer, chat, "error")


def test_an_escape_that_sets_another_special_token_free_breaks_that_too(tokenizer: Any) -> None:
    changed = copy.deepcopy(tokenizer)
    changed.add_tokens(["<|a|>", "|a|>|"], special_tokens=True)
    chat = Conversation(
        ({"role": "user", "content": "x<|a|>|"}, {"role": "assistant", "content": "b"})
    )
    escaped = clean(changed, chat).messages[0]["content"]
    assert not any(token in escaped for token in ("<|a|>", "|a|>|"))


def test_a_special_token_of_one_character_cannot_be_escaped_and_is_an_error(tokenizer: Any) -> None:
    changed = copy.deepcopy(tokenizer)
    changed.add_tokens(["\u2404"], special_tokens=True)
    chat = Conversation(
        ({"role": "user", "content": "x\u2404"}, {"role": "assistant", "content": "b"})
    )
    with pytest.raises(RowError, match="special token"):
        clean(changed, chat)
