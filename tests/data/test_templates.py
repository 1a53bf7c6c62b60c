"""Chat templates of real models, as TRL ships them: what is trained, what is refused and why, and
what it costs.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import datasets
import pytest
import trl
from trl import SFTTrainer

from sftpipe.config.schema import FormatConfig, LossConfig
from sftpipe.data import chat_template
from sftpipe.data.chat_template import LEFT_OUT, ChatTemplate, trained_turns, unrolled
from sftpipe.data.encode import Encoded, Encoder
from sftpipe.data.labels import IGNORED
from sftpipe.data.messages import UNREAD_FIELD
from sftpipe.data.samples import Conversation, Remark, Sample
from sftpipe.errors import DataError, RowError
from support.errors import refused
from support.samples import to_sample

FOLDER = Path(trl.__file__).parent / "chat_templates"
SOURCES = {file.stem: file.read_text(encoding="utf-8") for file in sorted(FOLDER.glob("*.jinja"))}
BLOCKS = [
    name for name, source in SOURCES.items() if re.search(r"\{%-?\s*generation\s*-?%\}", source)
]
PLAIN = [name for name in SOURCES if name not in BLOCKS]
PAIRED = [name for name in PLAIN if f"{name}_training" in SOURCES]
TURN_TOKENS = re.compile(
    r"<\|[^<>|\s]+\|>|<｜[^<>｜]+｜>|<(?:start|end)_of_\w+>|<\|[a-z_]+>|<[a-z_]+\|>|\[/?INST\]|\[gMASK\]|<image>"
)
# none ends in a character of several tokens: where a block ends in one, TRL masks all of its tokens
# but the first
ANSWERS = (
    'It\'s "fine", thanks.',
    "안녕하세요, 반갑습니다 \U0001f600.",
    "First line.\n\n- a list\n- of two",
    "1, 2 and 3.",
)

# of the others, tests that ask the same of every template are slow ones
DAILY = (
    "cohere",
    "deepseekv3",
    "gemma4",
    "gptoss",
    "llama3_1",
    "lfm2_2_5",
    "phi3",
    "qwen2_5",
    "qwen3",
    "smolvlm",
)


def published(names: Iterable[str]) -> list[Any]:
    """Cases of templates: those of families that differ, and as slow ones the rest."""
    return [
        name
        if name.removesuffix("_training") in DAILY
        else pytest.param(name, marks=pytest.mark.slow)
        for name in names
    ]


# --- what is refused ------------------------------------------------------------------------------

HISTORY = "history written otherwise than in generation"
THINKS = (
    "the prompt of generation opens <think>, which the template leaves out of turns that "
    "hold no reasoning"
)
NO_STRINGS = "its contents are lists of parts for images, and no strings"
REFUSED = {  # template without _training: (its error, why), whatever the loss
    "deepseek_r1_distill": (HISTORY, THINKS),
    "deepseekv3": (HISTORY, THINKS),
    "nemotron_3_nano": (HISTORY, THINKS),
    "nemotron_3_super": (HISTORY, THINKS),
    "nemotron_3_ultra": (HISTORY, THINKS),
    "nemotron_3_5_lightning": (HISTORY, THINKS),
    "idefics3": ("left out by the chat template", NO_STRINGS),
    "smolvlm": ("left out by the chat template", NO_STRINGS),
    "llava_next": ("refused by the chat template", NO_STRINGS),
}
NO_END = {"glm4moe": "the role of the next turn ends an answer, and nothing the last one"}
# templates that write an answer otherwise once turns follow it: assistant_only is refused, the last
# turn trains
REWRITES = {
    "qwen3": "writes <think> in the last turn only",
    "qwen3_5_think": "writes <think> in the last turn only",
    "qwen3_5_nothink": "writes <think> in the last turn only",
    "qwen3_6": "writes <think> in the last turn only",
    "gptoss": "ends the last turn in <|return|> and the others in <|end|>",
}
NO_SYSTEM = {"gemma": "System role not supported", "gemma_training": "System role not supported"}
IN_PROMPT = {  # blocks that begin inside of the prompt of generation: what stands there
    "qwen2_5_training": "\n",
    "qwen3_5_nothink_training": "<think>\n\n</think>\n\n",
    "qwen3_5_think_training": "<think>\n",
    "qwen3_6_training": "<think>\n",
    "qwen3_8_training": "<think>\n",
    "gptoss_training": "<|start|>assistant",
    "muse_glimmer_training": "<|start|>assistant",
}
MERGES = {
    "llama3_training": "the line break before an answer is another token where TRL tokenises "
    "prompt and answer together"
}
GOOD = [name for name in PLAIN if name not in REFUSED and name not in NO_END]
GOOD_BLOCKS = [name for name in BLOCKS if name.removesuffix("_training") not in REFUSED]


@pytest.fixture(scope="module")
def dressed(tokenizer: Any) -> Any:
    """name -> the embedded tokenizer with that template and, as special tokens, the turn tokens of
    all templates.
    """
    tokens = sorted({token for source in SOURCES.values() for token in TURN_TOKENS.findall(source)})
    made = {}
    for eos in ("<|im_end|>", "<|END_OF_TURN_TOKEN|>"):
        made[eos] = copy.deepcopy(tokenizer)
        made[eos].add_tokens(tokens, special_tokens=True)
        made[eos].eos_token = eos

    def dress(name: str) -> Any:
        changed = copy.copy(
            made["<|END_OF_TURN_TOKEN|>" if name.startswith("cohere") else "<|im_end|>"]
        )
        changed.chat_template = SOURCES[name]
        return changed

    return dress


def talk(turns: int, system: bool) -> Conversation:
    messages = [{"role": "system", "content": "You are terse."}] if system else []
    for at in range(turns):
        messages += [
            {"role": "user", "content": f"Question {at}?"},
            {"role": "assistant", "content": ANSWERS[at % len(ANSWERS)]},
        ]
    return Conversation(tuple(messages))


def talks(name: str) -> list[Conversation]:
    return [
        talk(turns, system)
        for turns in (1, 2, 4)
        for system in (False, True)
        if not (system and name in NO_SYSTEM)
    ]


def encode(tokenizer: Any, sample: Sample, loss: str) -> Encoded:
    (row,) = Encoder(tokenizer, LossConfig(loss)).encode([sample], ["train[0]"])
    if isinstance(row, RowError):
        raise row
    return row


def segments(labels: Sequence[int]) -> list[list[int]]:
    """The runs of trained tokens."""
    runs: list[list[int]] = [[]]
    for label in labels:
        if label != IGNORED:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def trained_texts(tokenizer: Any, sample: Sample, loss: str) -> list[str]:
    return [str(tokenizer.decode(ids)) for ids in segments(encode(tokenizer, sample, loss).labels)]


def assert_l1(tokenizer: Any, chat: Conversation, loss: str) -> None:
    """The ids in front of every trained turn are those that generation is fed."""
    row, turns = encode(tokenizer, chat, loss), trained_turns(chat, loss)
    starts = [
        at
        for at, label in enumerate(row.labels)
        if label != IGNORED and (at == 0 or row.labels[at - 1] == IGNORED)
    ]
    assert len(starts) == len(turns)
    for index, start in zip(turns, starts, strict=True):
        prompt = replace(chat, messages=chat.messages[:index], train=())
        assert row.input_ids[:start] == Encoder(tokenizer, LossConfig(loss)).prompt_ids(prompt)


# --- (a) templates with generation blocks, against TRL --------------------------------------------


def trl_rows(tokenizer: Any, chats: Sequence[Conversation]) -> list[dict[str, list[int]]]:
    """`input_ids` and `labels` as TRL's own trainer prepares them with assistant_only_loss=True."""
    rows = [
        {"messages": list(chat.messages), "chat_template_kwargs": dict(chat.template_kwargs)}
        for chat in chats
    ]
    trainer = SimpleNamespace(chat_template=None, completion_only_loss=False, _tokenizer=tokenizer)
    arguments = SimpleNamespace(
        assistant_only_loss=True,
        max_length=None,
        dataset_text_field="text",
        dataset_num_proc=None,
        shuffle_dataset=False,
    )
    made = datasets.IterableDataset.from_generator(lambda: iter(rows))
    return list(
        SFTTrainer._prepare_dataset(trainer, made, tokenizer, arguments, False, None, "train")
    )


@pytest.mark.parametrize(
    "name",
    published(name for name in GOOD_BLOCKS if name not in IN_PROMPT and name not in MERGES),
)
def test_generation_blocks_train_what_trl_trains(dressed: Any, name: str) -> None:
    tokenizer, chats = dressed(name), talks(name)
    for chat, theirs in zip(chats, trl_rows(tokenizer, chats), strict=True):
        ours = encode(tokenizer, chat, "assistant_only")
        assert ours.input_ids == theirs["input_ids"]
        assert ours.labels == theirs["labels"]
        assert_l1(tokenizer, chat, "assistant_only")


@pytest.mark.parametrize("name", MERGES)
def test_generation_blocks_train_the_text_that_trl_trains_where_tokens_differ(
    dressed: Any, name: str
) -> None:
    tokenizer, chats = dressed(name), talks(name)
    for chat, theirs in zip(chats, trl_rows(tokenizer, chats), strict=True):
        ours = encode(tokenizer, chat, "assistant_only")
        assert tokenizer.decode(ours.input_ids) == tokenizer.decode(theirs["input_ids"])
        assert segments(ours.labels) == segments(theirs["labels"])
        assert_l1(tokenizer, chat, "assistant_only")


@pytest.mark.parametrize("name", IN_PROMPT)
def test_generation_blocks_train_nothing_that_the_prompt_of_generation_writes(
    dressed: Any, name: str
) -> None:
    tokenizer, chats = dressed(name), talks(name)
    for chat, theirs in zip(chats, trl_rows(tokenizer, chats), strict=True):
        ours = trained_texts(tokenizer, chat, "assistant_only")
        assert [IN_PROMPT[name] + text for text in ours] == [
            tokenizer.decode(ids) for ids in segments(theirs["labels"])
        ]
        assert_l1(tokenizer, chat, "assistant_only")


@pytest.mark.parametrize("name", [name for name in BLOCKS if name.startswith("nemotron")])
def test_a_template_that_opens_think_trains_as_trl_does_where_thinking_is_off(
    dressed: Any, name: str
) -> None:
    tokenizer = dressed(name)
    chats = [replace(chat, template_kwargs={"enable_thinking": False}) for chat in talks(name)]
    for chat, theirs in zip(chats, trl_rows(tokenizer, chats), strict=True):
        ours = trained_texts(tokenizer, chat, "assistant_only")
        assert [f"<think></think>{text}" for text in ours] == [
            tokenizer.decode(ids) for ids in segments(theirs["labels"])
        ]
        assert_l1(tokenizer, chat, "assistant_only")


def test_a_generation_block_without_the_end_token_is_an_error(dressed: Any) -> None:
    tokenizer = dressed("llama3_training")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(
        DataError, match="the generation block ends before the token that ends the turn"
    ):
        encode(tokenizer, talk(2, False), "assistant_only")


def test_a_generation_block_that_begins_behind_the_prompt_of_generation_is_an_error(
    dressed: Any,
) -> None:
    # once a tool has answered, the template opens no turn for generation, and one for the answer
    # that it trains
    tokenizer, chat = (
        dressed("diffusion_gemma_training"),
        asks_a_tool({"city": "Rome"}, "20 degrees"),
    )
    with pytest.raises(
        RowError, match=r"messages\[3\]: the generation block begins after .*'<\|turn>model\\n'"
    ):
        encode(tokenizer, chat, "assistant_only")


def test_a_generation_block_over_several_turns_is_an_error(dressed: Any) -> None:
    tokenizer = dressed("qwen2_5")
    tokenizer.chat_template = (
        "{% generation %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content }}<|im_end|>\n{% endfor %}{% endgeneration %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(
        RowError, match=r"messages\[1\]: no generation block of the chat template holds this turn"
    ):
        encode(tokenizer, talk(2, False), "assistant_only")


# --- (b) templates without ------------------------------------------------------------------------


@pytest.mark.parametrize("name", published(GOOD))
def test_marked_contents_find_every_answer_and_its_end(dressed: Any, name: str) -> None:
    tokenizer = dressed(name)
    for chat in talks(name):
        loss = "completion_only" if name in REWRITES else "assistant_only"
        assert_l1(tokenizer, chat, loss)
        texts = trained_texts(tokenizer, chat, loss)
        assert len(texts) == len(trained_turns(chat, loss))
        for index, text in zip(trained_turns(chat, loss), texts, strict=True):
            before, answer, end = text.rpartition(chat.messages[index]["content"])
            assert answer
            assert end in (
                "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
                *map(str, tokenizer.added_tokens_decoder.values()),
            )
            assert before == "" or before.endswith(
                ("</think>\n\n", "<|channel|>final<|message|>", " to=user<|message|>")
            )


@pytest.mark.parametrize("name", REWRITES)
def test_a_template_that_rewrites_answers_is_an_error_that_names_two_ways_out(
    dressed: Any, name: str
) -> None:
    tokenizer, chat = dressed(name), talk(3, True)
    error = refused(RowError, lambda: encode(tokenizer, chat, "assistant_only"))
    assert error.reason == HISTORY
    assert error.problem.commands == ("loss=completion_only", "loss.unroll=true")
    rows = [encode(tokenizer, turn, "assistant_only") for turn in unrolled(chat, "assistant_only")]
    assert len(rows) == 3
    assert rows[-1] == encode(tokenizer, chat, "completion_only")
    assert encode(tokenizer, talk(1, True), "assistant_only") == encode(
        tokenizer, talk(1, True), "completion_only"
    )


def test_reasoning_that_a_template_drops_from_history_is_not_lost_in_silence(dressed: Any) -> None:
    chat = talk(2, False)
    thinking = tuple(
        {**m, "reasoning_content": f"Thought {at}."} if m["role"] == "assistant" else m
        for at, m in enumerate(chat.messages)
    )
    with pytest.raises(
        RowError,
        match=r"messages\[1\]: the chat template writes this "
        r"answer otherwise once turns follow it",
    ):
        encode(dressed("qwen3"), replace(chat, messages=thinking), "assistant_only")
    # a template that knows no such field is said not to
    row = encode(dressed("gptoss_training"), replace(chat, messages=thinking), "assistant_only")
    assert row.remarks == (
        Remark(UNREAD_FIELD, "reasoning_content"),
        Remark(LEFT_OUT, "reasoning_content"),
    )
    texts = [
        text
        for turn in unrolled(replace(chat, messages=thinking), "assistant_only")
        for text in trained_texts(dressed("qwen3"), turn, "assistant_only")
    ]
    assert texts == [
        f"<think>\nThought {at}.\n</think>\n\n{answer}<|im_end|>"
        for at, answer in ((1, ANSWERS[0]), (3, ANSWERS[1]))
    ]


def test_an_answer_whose_beginning_stands_in_the_prompt_is_trained_from_there(dressed: Any) -> None:
    answer = "<think>\nLet me see.\n</think>\n\nYes."
    chat = Conversation(
        ({"role": "user", "content": "Is it?"}, {"role": "assistant", "content": answer})
    )
    assert trained_texts(dressed("qwen3_5_think"), chat, "completion_only") == [
        answer.removeprefix("<think>\n") + "<|im_end|>"
    ]
    assert_l1(dressed("qwen3_5_think"), chat, "completion_only")


@pytest.mark.parametrize("content", ["\n  indented", " x ", "\n\nline\n\n", "\tx\n "])
def test_white_space_that_a_template_trims_in_part_is_followed(dressed: Any, content: str) -> None:
    chat = Conversation(
        tuple({**message, "content": content} for message in talk(2, False).messages)
    )
    for name in ("qwen3_training", "qwen3_8", "llama3", "gemma3"):
        assert_l1(dressed(name), chat, "assistant_only")
        for text in trained_texts(dressed(name), chat, "assistant_only"):
            assert content.strip() in text


@pytest.mark.parametrize("loss", ["completion_only", "assistant_only"])
@pytest.mark.parametrize(
    "name", published(name for name in SOURCES if name.removesuffix("_training") in REFUSED)
)
def test_a_template_that_cannot_serve_is_an_error_that_says_why(
    dressed: Any, name: str, loss: str
) -> None:
    reason, _ = REFUSED[name.removesuffix("_training")]
    for chat in talks(name):
        with pytest.raises(RowError) as error:
            encode(dressed(name), chat, loss)
        assert error.value.reason == reason
        if reason == HISTORY:
            assert "<think>" in error.value.problem.found


@pytest.mark.parametrize("loss", ["completion_only", "assistant_only"])
@pytest.mark.parametrize("name", NO_END)
def test_a_template_without_an_end_token_is_an_error(dressed: Any, name: str, loss: str) -> None:
    for chat in (talk(2, False), replace(talk(2, False), train=(None, True, None, False))):
        with pytest.raises(DataError, match="the template ends the answer with no special token"):
            encode(dressed(name), chat, loss)


@pytest.mark.parametrize("name", NO_SYSTEM)
def test_a_template_that_refuses_a_system_turn_is_an_error_with_its_own_words(
    dressed: Any, name: str
) -> None:
    with pytest.raises(RowError, match=NO_SYSTEM[name]):
        encode(dressed(name), talk(1, True), "completion_only")


# --- (c) both -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", published(name for name in PAIRED if name in GOOD))
def test_a_template_with_blocks_trains_the_answers_that_it_trains_without(
    dressed: Any, name: str
) -> None:
    plain, blocks = dressed(name), dressed(f"{name}_training")
    for chat in talks(name):
        loss = "completion_only" if name in REWRITES else "assistant_only"
        ours = trained_texts(plain, chat, loss)
        # the blocks also train the white space behind the end token, and Phi-3's the EOS that
        # closes the conversation
        theirs = [
            text.rstrip().removesuffix("\n<|im_end|>") for text in trained_texts(blocks, chat, loss)
        ]
        assert ours == theirs


# --- (d) tools ------------------------------------------------------------------------------------

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
CALL_ENDS = {
    "qwen2_5": "<|im_end|>",
    "qwen3_instruct_2507": "<|im_end|>",
    "qwen3_vl": "<|im_end|>",
    "qwen3_8": "<|im_end|>",
    "llama3_1": "<|eot_id|>",
    "llama3_2": "<|eot_id|>",
    "lfm2_v2": "<|im_end|>",
    "muse_glimmer": "<|eot|>",
    "gemma4": "<|tool_response>",
    "qwen2_5_training": "<|im_end|>",
    "qwen3_training": "<|im_end|>",
    "qwen3_8_training": "<|im_end|>",
    "gptoss_training": "<|call|>",
    "diffusion_gemma": "<|tool_response>",
    "glm4moe_training": "<|observation|>",
    "lfm2_2_5": "<|im_end|>",
}
UNROLLED_ENDS = {
    "qwen3": "<|im_end|>",
    "qwen3_5_nothink": "<|im_end|>",
    "qwen3_6": "<|im_end|>",
    "gptoss": "<|call|>",
}


def asks_a_tool(arguments: Any, result: str, name: str = "weather", **fields: Any) -> Conversation:
    call = {
        "id": "call00001",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
    messages = [
        {"role": "user", "content": "How warm is it in Rome?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "name": name, "content": result, "tool_call_id": "call00001"},
        {"role": "assistant", "content": "It is pleasant.", "tool_calls": None},
        {"role": "user", "content": "Thanks."},
        {"role": "assistant", "content": "You are welcome."},
    ]
    sample = to_sample(
        {"messages": messages, "tools": [WEATHER], **fields}, FormatConfig("messages"), "train[0]"
    )
    assert isinstance(sample, Conversation)
    return sample


@pytest.mark.parametrize(
    "arguments", [{"city": "Rome"}, '{"city": "Rome"}'], ids=["mapping", "json"]
)
@pytest.mark.parametrize(
    "result", ["20 degrees", '{"degrees":\n "20"}'], ids=["plain-result", "json-result"]
)
@pytest.mark.parametrize("name", published(CALL_ENDS))
def test_a_tool_call_is_trained_with_its_end_and_the_result_is_masked(
    dressed: Any, name: str, arguments: Any, result: str
) -> None:
    tokenizer, chat = dressed(name), asks_a_tool(arguments, result)
    call, answer, thanks = trained_texts(tokenizer, chat, "assistant_only")
    assert call.rstrip().endswith(CALL_ENDS[name])
    assert "weather" in call
    assert "Rome" in call
    assert "pleasant" in answer
    assert "welcome" in thanks
    assert not any("degrees" in text for text in (call, answer, thanks))
    assert "degrees" in tokenizer.decode(encode(tokenizer, chat, "assistant_only").input_ids)
    assert_l1(tokenizer, chat, "assistant_only")


@pytest.mark.parametrize("name", UNROLLED_ENDS)
def test_a_tool_call_of_a_template_that_rewrites_history_is_trained_in_a_row_of_its_own(
    dressed: Any, name: str
) -> None:
    tokenizer, chat = dressed(name), asks_a_tool({"city": "Rome"}, '{"degrees":\n "20"}')
    with pytest.raises(RowError, match="otherwise"):
        encode(tokenizer, chat, "assistant_only")
    turns = unrolled(chat, "assistant_only")
    ((call,), (answer,), (thanks,)) = [
        trained_texts(tokenizer, turn, "assistant_only") for turn in turns
    ]
    assert "Rome" in call
    assert call.endswith(UNROLLED_ENDS[name])
    assert "pleasant" in answer
    assert "welcome" in thanks
    assert not any("degrees" in text for text in (call, answer, thanks))
    for turn in turns:
        assert_l1(tokenizer, turn, "assistant_only")


def test_a_tool_call_that_ends_in_another_token_than_answers_do_ends_there(dressed: Any) -> None:
    tokenizer = dressed("llama3_1")
    chat = asks_a_tool(
        {"query": "Rome"},
        "20 degrees",
        "brave_search",
        chat_template_kwargs={"builtin_tools": ["brave_search"]},
    )
    call, answer, _ = trained_texts(tokenizer, chat, "assistant_only")
    assert call == '<|python_tag|>brave_search.call(query="Rome")<|eom_id|>'
    assert answer == "It is pleasant.<|eot_id|>"


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3_training", "llama3_1"])
def test_only_the_tool_call_is_trained_where_the_flags_say_so(dressed: Any, name: str) -> None:
    chat = replace(
        asks_a_tool({"city": "Rome"}, "20 degrees"), train=(None, True, None, False, None, False)
    )
    (call,) = trained_texts(dressed(name), chat, "completion_only")
    assert "Rome" in call
    assert "degrees" not in call


# --- (e) cost -------------------------------------------------------------------------------------


@contextmanager
def counted_renders() -> Iterator[list[int]]:
    """The number of messages of each render that happens inside."""
    renders: list[int] = []
    render = ChatTemplate._render

    def counting(template: ChatTemplate, chat: Conversation, *words: Any, **options: Any) -> Any:
        renders.append(len(chat.messages))
        return render(template, chat, *words, **options)

    with patch.object(ChatTemplate, "_render", counting):
        yield renders


@pytest.mark.parametrize("name", ["qwen2_5", "llama3", "phi3", "qwen3_training", "lfm2_2_5"])
def test_a_long_conversation_costs_as_many_renders_as_a_longer_one(dressed: Any, name: str) -> None:
    costs = []
    for turns in (100, 200, 400):
        template, chat = ChatTemplate(dressed(name)), talk(turns, False)
        with counted_renders() as renders:
            rendered = template.render(chat, trained_turns(chat, "assistant_only"), "train[0]")
        assert len(rendered.cuts) == turns
        costs.append(renders)
    assert len(costs[0]) == len(costs[1]) == len(costs[2]) < 100
    assert sum(costs[2]) - sum(costs[1]) == 2 * (sum(costs[1]) - sum(costs[0]))  # messages: linear


@pytest.mark.parametrize("name", ["qwen2_5", "llama3_1", "phi3", "qwen3_training", "lfm2_2_5"])
@pytest.mark.parametrize("turns", [1, 3, 200])
def test_the_second_conversation_of_a_shape_costs_one_render(
    dressed: Any, name: str, turns: int
) -> None:
    template, first = ChatTemplate(dressed(name)), talk(turns, True)
    second = replace(
        first,
        messages=tuple(
            {**message, "content": f"other {at}"} for at, message in enumerate(first.messages)
        ),
    )
    template.render(first, trained_turns(first, "assistant_only"), "train[0]")
    with counted_renders() as renders:
        rendered = template.render(second, trained_turns(second, "assistant_only"), "train[1]")
    assert renders == [len(second.messages)]
    assert rendered == ChatTemplate(dressed(name)).render(
        second, trained_turns(second, "assistant_only"), "train[1]"
    )


def test_the_shape_of_a_long_conversation_is_made_once_a_render(dressed: Any) -> None:
    made = []
    for turns in (100, 200, 400):
        template, chat = ChatTemplate(dressed("qwen2_5")), talk(turns, False)
        with patch.object(chat_template, "_shape", side_effect=chat_template._shape) as shapes:
            for _ in range(2):
                template.render(chat, trained_turns(chat, "assistant_only"), "train[0]")
        made.append(shapes.call_count)
    assert made[0] == made[1] == made[2] < 100


def test_a_prompt_that_a_template_refuses_is_the_error_of_every_row_of_the_shape(
    dressed: Any,
) -> None:
    tokenizer = dressed("qwen2_5")
    tokenizer.chat_template = (
        "{% if add_generation_prompt and messages|length > 2 %}"
        "{{ raise_exception('one question at most') }}{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    chat = replace(talk(2, False), train=(None, True, None, False))
    encoder = Encoder(tokenizer, LossConfig("assistant_only"))
    for row in encoder.encode([chat, chat], ["train[0]", "train[1]"]):
        assert isinstance(row, RowError)
        assert row.reason == "refused by the chat template"


def test_a_long_conversation_follows_the_rules_to_its_end(dressed: Any) -> None:
    for name in ("llama3", "qwen2_5_training"):
        tokenizer, chat = (
            dressed(name),
            replace(
                talk(60, True),
                train=tuple(None if at in (2, 60, 64, 100, 120) else False for at in range(121)),
            ),
        )
        assert len(trained_turns(chat, "assistant_only")) == 5
        assert_l1(tokenizer, chat, "assistant_only")


def test_a_tool_call_far_into_a_conversation_ends_where_its_turn_does(dressed: Any) -> None:
    tool = asks_a_tool({"city": "Rome"}, "20 degrees")
    chat = replace(tool, messages=(*talk(40, False).messages, *tool.messages))
    for name in ("qwen2_5", "llama3_1"):
        texts = trained_texts(dressed(name), chat, "assistant_only")
        assert texts == [
            *trained_texts(dressed(name), talk(40, False), "assistant_only"),
            *trained_texts(dressed(name), tool, "assistant_only"),
        ]
        assert_l1(dressed(name), chat, "assistant_only")


# --- (f) renders ----------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "qwen2_5",
        "qwen3",
        "qwen3_8_training",
        "llama3_1",
        "lfm2_v2",
        "gemma4_v5",
        "gptoss",
        "glm4moe",
    ],
)
def test_a_conversation_is_rendered_as_transformers_renders_it(
    dressed: Any, name: str, prompt: bool
) -> None:
    tokenizer = dressed(name)
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    messages = (
        {"role": "system", "content": "Be kind.", "name": None},
        {"role": "user", "content": " How warm?\n", "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "Ask."},
        {"role": "tool", "content": '{"degrees": 20}', "name": "weather"},
        *(
            (
                {
                    "role": "assistant",
                    "content": "Warm.",
                    "tool_calls": None,
                    "reasoning_content": None,
                },
            )
            if not prompt
            else ()
        ),
    )
    for tools in ((), (WEATHER,)):
        for kwargs in (
            {},
            {"enable_thinking": False},
            {"enable_thinking": True, "bos_token": "<s>"},
        ):
            ours = ChatTemplate(tokenizer).text(
                Conversation(messages, tools, kwargs), "train[0]", prompt=prompt
            )
            theirs = tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=prompt,
                **kwargs,
            )
            assert ours == theirs


def test_a_template_of_its_own_for_tools_is_taken_where_there_are_tools(dressed: Any) -> None:
    tokenizer = dressed("qwen2_5")
    tokenizer.chat_template = {"default": SOURCES["llama3"], "tool_use": SOURCES["qwen2_5"]}
    chat = asks_a_tool({"city": "Rome"}, "20 degrees")
    assert ChatTemplate(tokenizer).text(
        chat, "train[0]", prompt=False
    ) == tokenizer.apply_chat_template(list(chat.messages), tools=[WEATHER], tokenize=False)
    assert trained_texts(tokenizer, talk(1, False), "completion_only")[0].endswith("<|eot_id|>")
    assert all(
        text.endswith("<|im_end|>") for text in trained_texts(tokenizer, chat, "assistant_only")
    )
