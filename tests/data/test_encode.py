"""Samples to ids and labels: the rules L1 to L4 of DESIGN.md, on the embedded tokenizer and on real ones of other kinds."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from sftpipe.data.encode import Encoded, Encoder
from sftpipe.data.formats import Conversation, PromptCompletion, Sample
from sftpipe.data.labels import IGNORED
from sftpipe.errors import DataError
from sftpipe.schema import LossConfig

Templated = Callable[[str | None], Any]
COMPLETION, FULL = LossConfig("completion_only"), LossConfig("full")
ROLES = ("user", "assistant")
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def talk(*contents: str, system: str | None = None) -> Conversation:
    """A conversation of the given user and assistant turns."""
    turns = [{"role": ROLES[at % 2], "content": content} for at, content in enumerate(contents)]
    return Conversation((*([{"role": "system", "content": system}] if system is not None else []), *turns))


def encode(tokenizer: Any, sample: Sample, loss: LossConfig = COMPLETION) -> Encoded:
    return Encoder(tokenizer, loss).encode([sample], ["train[0]"])[0]


def trained_ids(row: Encoded) -> list[int]:
    return [label for label in row.labels if label != IGNORED]


def trained_text(tokenizer: Any, sample: Sample, loss: LossConfig = COMPLETION) -> str:
    return str(tokenizer.decode(trained_ids(encode(tokenizer, sample, loss))))


# --- conversations --------------------------------------------------------------------------------------------------------------------


def test_a_row_is_the_conversation_as_the_template_writes_it(tokenizer: Any) -> None:
    row = encode(tokenizer, talk("Hi.", "Hello there."))
    assert tokenizer.decode(row.input_ids) == (f"{SYSTEM}<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\nHello there.<|im_end|>\n")


@pytest.mark.parametrize(
    "answer", ["Hello there.", " spaces ", "two\nlines\n", "안녕하세요 \U0001f44b", "1234", "user", "\n", "<|im_start"]
)
def test_the_answer_and_the_token_that_ends_it_are_trained(tokenizer: Any, answer: str) -> None:
    assert trained_text(tokenizer, talk("Hi.", answer)) == f"{answer}<|im_end|>"


def test_only_the_last_answer_is_trained(tokenizer: Any) -> None:
    assert trained_text(tokenizer, talk("a", "first", "b", "second", "c", "third")) == "third<|im_end|>"


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


# --- a prompt and its completion ------------------------------------------------------------------------------------------------------


def test_a_completion_gets_eos_and_no_template(tokenizer: Any) -> None:
    row = encode(tokenizer, PromptCompletion("1 + 1 =", " 2"))
    assert tokenizer.decode(row.input_ids) == "1 + 1 = 2<|im_end|>"
    assert tokenizer.decode(trained_ids(row)) == " 2<|im_end|>"


def test_a_completion_with_a_full_loss_is_trained_from_its_first_token(tokenizer: Any) -> None:
    row = encode(tokenizer, PromptCompletion("1 + 1 =", " 2"), FULL)
    assert row.labels == row.input_ids


def test_a_completion_is_not_merged_with_the_end_of_its_prompt(tokenizer: Any) -> None:
    prompt, completion = "Answer :", "-) yes"  # ":-" is one token where both are tokenised together
    row = encode(tokenizer, PromptCompletion(prompt, completion))
    assert tokenizer.decode(trained_ids(row)) == "-) yes<|im_end|>"
    assert row.input_ids[: row.labels.index(trained_ids(row)[0])] == tokenizer(prompt).input_ids


def test_a_completion_needs_no_chat_template(templated: Templated) -> None:
    assert trained_text(templated(None), PromptCompletion("a", " b")) == " b<|im_end|>"


# --- the rules, over random samples ---------------------------------------------------------------------------------------------------

# no "<|", so that no text spells one of the tokenizers' turn tokens; no control, private or unassigned characters, because SmolLM2's
# vocabulary lacks some of their bytes (0x04, 0x06, 0x13, 0x14, 0x16, 0x1d, 0xf1, 0xf2) and leaves them out
TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cc", "Cn", "Co", "Cs"]), min_size=1, max_size=30),
    st.text(st.sampled_from(" \n\t.,:-'012abcABC가나다안녕é\U0001f600\U0001f468\u200d\u3000<|>"), min_size=1, max_size=30),
    st.sampled_from(["assistant", "user\n", " yes ", "\n\nanswer\n", "안녕하세요.\n", "\U0001f468\u200d\U0001f469\u200d\U0001f467", ":-)"]),
).filter(lambda text: text.strip() and "<|" not in text)
TALKS = st.builds(
    lambda pairs, system: talk(*(text for pair in pairs for text in pair), system=system),
    st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3),
    st.none() | TEXT,
)
PAIRS = st.builds(PromptCompletion, TEXT, TEXT)
QUICK = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def start_of(row: Encoded) -> int:
    """Position of the first trained token."""
    return next(at for at, label in enumerate(row.labels) if label != IGNORED)


@pytest.fixture(scope="module", params=["tokenizer", "phi3", "opt"])
def each(request: pytest.FixtureRequest) -> Any:
    """Each kind of tokenizer: byte-level with turn tokens, SentencePiece, byte-level with BOS and without turn tokens."""
    return request.getfixturevalue(request.param)


@QUICK
@given(sample=TALKS)
def test_l1_a_trained_answer_follows_exactly_the_ids_that_generation_is_fed(each: Any, sample: Conversation) -> None:
    row = encode(each, sample)
    assert row.input_ids[: start_of(row)] == Encoder(each, COMPLETION).prompt_ids(sample.messages[:-1])


@QUICK
@given(sample=PAIRS)
def test_l1_a_trained_completion_follows_exactly_the_ids_that_generation_is_fed(each: Any, sample: PromptCompletion) -> None:
    row = encode(each, sample)
    assert row.input_ids[: start_of(row)] == Encoder(each, COMPLETION).prompt_ids(sample.prompt)


@QUICK
@given(sample=TALKS)
def test_l2_prompt_and_answer_decode_to_their_texts(tokenizer: Any, sample: Conversation) -> None:
    row, start = encode(tokenizer, sample), start_of(encode(tokenizer, sample))
    rendered = Encoder(tokenizer, COMPLETION).render(sample, "train[0]")
    assert tokenizer.decode(row.input_ids[:start]) == rendered.prompt
    assert tokenizer.decode(row.input_ids[start:]) == rendered.completion
    assert tokenizer.decode(trained_ids(row)) == sample.messages[-1]["content"] + "<|im_end|>"


@QUICK
@given(sample=PAIRS)
def test_l2_a_completion_decodes_to_its_text(tokenizer: Any, sample: PromptCompletion) -> None:
    row = encode(tokenizer, sample)
    assert tokenizer.decode(row.input_ids) == f"{sample.prompt}{sample.completion}<|im_end|>"
    assert tokenizer.decode(trained_ids(row)) == f"{sample.completion}<|im_end|>"


@QUICK
@given(sample=st.one_of(TALKS, PAIRS))
def test_l3_the_last_trained_token_is_eos_and_pad_is_never_trained(tokenizer: Any, sample: Sample) -> None:
    trained = trained_ids(encode(tokenizer, sample))
    assert trained.count(tokenizer.eos_token_id) == 1
    assert trained[-1] == tokenizer.eos_token_id
    assert tokenizer.pad_token_id not in trained


@QUICK
@given(sample=TALKS)
def test_l3_the_answers_end_token_is_the_one_that_ends_the_earlier_turns(each: Any, sample: Conversation) -> None:
    row = encode(each, sample)
    ended = row.input_ids[: start_of(row)]
    assert trained_ids(row)[-1] == each.convert_tokens_to_ids({"<unk>": "<|end|>", "<pad>": "</s>"}.get(each.pad_token, "<|im_end|>"))
    assert trained_ids(row)[-1] in ended
    assert each.pad_token_id not in trained_ids(row)


@QUICK
@given(sample=st.one_of(TALKS, PAIRS), loss=st.sampled_from([COMPLETION, FULL]))
def test_labels_are_the_ids_where_trained_in_one_piece(tokenizer: Any, sample: Sample, loss: LossConfig) -> None:
    row = encode(tokenizer, sample, loss)
    trained = trained_ids(row)
    start = start_of(row)
    assert row.labels == [IGNORED] * start + trained + [IGNORED] * (len(row.input_ids) - start - len(trained))
    assert row.input_ids[start : start + len(trained)] == trained


def test_padding_is_never_trained(tokenizer: Any) -> None:
    from sftpipe.trainer import make_collator

    rows = [encode(tokenizer, sample) for sample in (talk("Hi.", "A long answer, much longer."), PromptCompletion("a", " b"))]
    batch = make_collator(tokenizer)([{"input_ids": row.input_ids, "labels": row.labels} for row in rows])
    width = len(rows[0].input_ids) - len(rows[1].input_ids)
    assert batch["input_ids"][1, -width:].tolist() == [tokenizer.pad_token_id] * width
    assert batch["labels"][1].tolist() == rows[1].labels + [IGNORED] * width


# --- L4: one BOS ----------------------------------------------------------------------------------------------------------------------


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
    both.backend_tokenizer.post_processor = TemplateProcessing(single="<|im_start|> $A <|im_end|>", special_tokens=marks)
    assert both.decode(encode(both, PromptCompletion("a", " b")).input_ids) == "<|im_start|>a b<|im_end|>"


# --- templates ------------------------------------------------------------------------------------------------------------------------


def test_a_template_that_strips_the_answer_trains_what_it_wrote(templated: Templated) -> None:
    stripping = templated(CHATML.replace("message.content", "message.content | trim"))
    assert trained_text(stripping, talk("Hi.", "  Hello. \n")) == "Hello.<|im_end|>"


def test_a_template_that_ends_a_turn_in_another_special_token_trains_that_one(templated: Templated) -> None:
    other = templated(CHATML.replace("<|im_end|>", "<file_sep>"))
    assert trained_text(other, talk("Hi.", "Hello.")) == "Hello.<file_sep>"


def test_a_template_that_writes_a_mark_in_front_of_the_answer_trains_to_its_end(templated: Templated) -> None:
    marking = templated(
        CHATML.replace("{{ message.content }}", "{% if message.role == 'assistant' %}<empty_output>{% endif %}{{ message.content }}")
    )
    assert trained_text(marking, talk("Hi.", "empty")) == "<empty_output>empty<|im_end|>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        pytest.param(
            None,
            "tokenizer.chat_template: the tokenizer has no chat template, and the format makes conversations\n"
            "    tokenizer.chat_template=chatml_bos_eos, or format=prompt_completion",
            id="none",
        ),
        pytest.param(
            CHATML.replace("<|im_end|>", ""),
            "train[3], tokenizer.chat_template: the template ends the answer with no special token, "
            "so the model could not learn to stop\n"
            "    a chat template that closes each turn with eos_token or another special token",
            id="no-end-token",
        ),
        pytest.param(
            CHATML.replace("message.content", "(message.content if loop.last else message.content | upper)"),
            "train[3]: the chat template renders the turns before the answer otherwise than the prompt of generation, "
            "so the mask has no place to begin: '<|im_start|>user\\nhi<|im_end|>\\n<|im_st' against "
            "'<|im_start|>user\\nHI<|im_end|>\\n<|im_st'\n"
            "    another tokenizer.chat_template",
            id="rewrites-history",
        ),
        pytest.param(
            "{{ raise_exception('one turn at most') }}",
            "train[3]: the chat template refuses the conversation: one turn at most\n    mend the row or the template",
            id="raises",
        ),
        pytest.param(
            "{{ nothing + bos_token }}",
            "train[3]: the chat template refuses the conversation: 'nothing' is undefined\n    mend the row or the template",
            id="undefined-name",
        ),
        pytest.param(
            "{% for message in messages %}",
            "tokenizer.chat_template: no valid Jinja: Unexpected end of template.",
            id="syntax",
        ),
        pytest.param(
            "{{ 1 + 'x' }}",
            "train[3]: the chat template refuses the conversation: ",
            id="type-error",
        ),
        pytest.param(
            CHATML.replace("{{ message.content }}", ""),
            "train[3]: the chat template leaves out the answer\n    another tokenizer.chat_template",
            id="no-answer",
        ),
    ],
)
def test_a_template_that_cannot_serve_is_an_error(templated: Templated, template: str | None, message: str) -> None:
    with pytest.raises(DataError) as error:
        Encoder(templated(template), COMPLETION).encode([talk("hi", "yo")], ["train[3]"])
    assert str(error.value).startswith(message)


def test_the_row_that_a_template_refuses_is_named(templated: Templated) -> None:
    picky = templated("{% if messages[0].content == 'b' %}{{ raise_exception('no b') }}{% endif %}" + CHATML)
    with pytest.raises(DataError, match=r"^test\[1\]: the chat template refuses the conversation: no b"):
        Encoder(picky, COMPLETION).encode([talk("a", "b"), talk("b", "c")], ["test[0]", "test[1]"])


# --- golden values --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cases(golden: Path) -> dict[str, Any]:
    """{id: case} of the golden values."""
    return {case["id"]: case for case in json.loads((golden / "cases.json").read_text(encoding="utf-8"))}


@pytest.fixture(scope="module")
def yoda(golden: Path) -> list[Conversation]:
    """The 720 Yoda sentences as conversations."""
    with (golden / "data" / "yoda" / "sentences.csv").open(encoding="utf-8", newline="") as file:
        return [talk(row["sentence"], row["translation_extra"]) for row in csv.DictReader(file)]


def test_golden_phi3_chat_is_rendered_to_the_letter(cases: dict[str, Any], phi3: Any) -> None:
    rendered = Encoder(phi3, COMPLETION).render(Conversation(tuple(cases["002-phi-chat"]["input"])), "train[0]")
    assert rendered.prompt + rendered.completion == cases["002-phi-chat"]["expected"]


def test_golden_phi3_prompt_of_generation_is_rendered_to_the_letter(cases: dict[str, Any], phi3: Any) -> None:
    prompt = Encoder(phi3, COMPLETION).render_prompt(cases["002-phi-chat-gen"]["input"], "prompt")
    assert prompt == cases["002-phi-chat-gen"]["expected"]


def test_golden_phi3_ids_of_a_sentence(cases: dict[str, Any], phi3: Any) -> None:
    assert Encoder(phi3, COMPLETION).prompt_ids(cases["002-phi-encode"]["input"]) == cases["002-phi-encode"]["expected"]["input_ids"]


def test_golden_phi3_pads_with_unk(cases: dict[str, Any], phi3: Any) -> None:
    expected = cases["002-phi-pad-unk"]["expected"]
    names = ("bos_token", "eos_token", "unk_token", "pad_token")  # cls, sep and mask were added by hand there
    assert {name: phi3.special_tokens_map[name] for name in names} == {name: expected[name] for name in names}


def test_golden_phi3_texts_of_yoda(cases: dict[str, Any], phi3: Any, yoda: list[Conversation]) -> None:
    assert len(yoda) == cases["002-yoda-len-row0"]["expected"][0]
    rendered = [Encoder(phi3, COMPLETION).render(sample, "train[0]") for sample in yoda[:2]]
    assert [text.prompt + text.completion for text in rendered] == cases["002-yoda-texts"]["expected"]


@pytest.mark.parametrize("at", [0, 1])
def test_golden_phi3_ids_and_labels_of_yoda(cases: dict[str, Any], phi3: Any, yoda: list[Conversation], at: int) -> None:
    expected = cases["002-completion-collator"]["expected"]
    real = [position for position, kept in enumerate(expected["attention_mask"][at]) if kept]  # padded on the left there
    row = encode(phi3, yoda[at])
    assert row.input_ids == [expected["input_ids"][at][position] for position in real]
    # the one deviation: the document also trains <|endoftext|>, which the template writes behind <|end|>. By rule L3 the end of a turn is
    # trained once, by the token that generation stops at, which is <|end|>; what follows it generation never reaches
    assert [*row.labels[:-1], row.input_ids[-1]] == [expected["labels"][at][position] for position in real]
    assert row.labels[-1] == IGNORED


def test_golden_phi3_trained_text_of_yoda(cases: dict[str, Any], phi3: Any, yoda: list[Conversation]) -> None:
    # without the <|endoftext|> behind it, as above
    assert trained_text(phi3, yoda[0]) == cases["002-completion-decode"]["expected"].removesuffix("<|endoftext|>")
    assert trained_text(phi3, yoda[0]) == "On the smooth planks, the birch canoe slid. Yes, hrrrm.<|end|>"


def test_golden_opt_trained_text_of_yoda(opt: Any, yoda: list[Conversation]) -> None:
    assert trained_text(opt, yoda[0]) == "On the smooth planks, the birch canoe slid. Yes, hrrrm.</s>"


@pytest.mark.parametrize(("name", "end"), [("phi3", "<|end|>"), ("opt", "</s>")])
def test_golden_yoda_answers_end_once_and_never_in_pad(
    request: pytest.FixtureRequest, yoda: list[Conversation], name: str, end: str
) -> None:
    tokenizer = request.getfixturevalue(name)
    rows = Encoder(tokenizer, COMPLETION).encode(yoda, [f"train[{at}]" for at in range(len(yoda))])
    for sample, row in zip(yoda, rows, strict=True):
        assert tokenizer.decode(trained_ids(row)) == sample.messages[-1]["content"] + end
        assert trained_ids(row).count(tokenizer.convert_tokens_to_ids(end)) == 1
        assert tokenizer.pad_token_id not in row.input_ids
