"""Which added tokens a text must not hold, and which are data where the model writes them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from data.test_templates import SOURCES
from sftpipe.config.schema import DatasetConfig, FormatConfig, LossConfig, PreflightConfig
from sftpipe.data.cleaning import FORGED, Cleaner
from sftpipe.data.control_tokens import ControlTokens, control_tokens
from sftpipe.data.encode import Encoded, Encoder
from sftpipe.data.formats import to_samples
from sftpipe.errors import RowError
from support.tokenizers import tokenizer_at, write_kind

Dress = Callable[..., Any]

# headers that no search in the source would find; ends as every answer does
PIECEWISE = (
    "{% for m in messages %}{{ '<' + '|' + m.role + '|' + '>' + m.content + '<|stop|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# nothing ends a turn but the header of the next one (GLM)
NEXT_HEADER = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# roles as pairs of tags
PAIRS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# each prompt of generation opens a block, and turns without reasoning get a closed one
THINKS = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and loop.last "
    "and '</think>' not in m.content %}<think></think>{% endif %}{{ m.content }}<|stop|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
)
ROLES = ["<|user|>", "<|assistant|>", "<|system|>", "<|tool|>", "<|stop|>"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tokenizer_at(write_kind("chatml", tmp_path_factory.mktemp("chatml")))


@pytest.fixture
def dress(small: Any) -> Dress:
    """A small ChatML tokenizer with a template, and new tokens, special ones or not."""

    def make(template: str | None, tokens: Sequence[str], *, special: bool = False) -> Any:
        changed = copy.deepcopy(small)
        changed.add_tokens(list(tokens), special_tokens=special)
        changed.chat_template = template
        return changed

    return make


def new(found: ControlTokens, tokens: Sequence[str]) -> tuple[list[str], list[str]]:
    return (
        [token for token in tokens if token in found.control],
        [token for token in tokens if token in found.tags],
    )


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("template", [PIECEWISE, NEXT_HEADER])
def test_headers_and_ends_are_control_tokens_whatever_the_source_looks_like(
    dress: Dress, template: str, special: bool
) -> None:
    tokens = ROLES if template == PIECEWISE else ROLES[:-1]
    found = control_tokens(dress(template, [*tokens, "<unused>"], special=special))
    assert new(found, tokens) == (tokens, [])
    # of those that no render writes, special ones may be anything
    assert ("<unused>" in found.control) == special


def test_pairs_of_tags_that_name_roles_are_control_tokens(dress: Dress) -> None:
    tags = [
        f"<{end}{role}>" for role in ("user", "assistant", "system", "tool") for end in ("", "/")
    ]
    assert new(control_tokens(dress(PAIRS, tags)), tags) == (tags, [])


@pytest.mark.parametrize("special", [False, True])
def test_what_a_template_writes_in_some_answers_only_is_a_tag(dress: Dress, special: bool) -> None:
    tags = ["<think>", "</think>"]
    found = control_tokens(dress(THINKS, [*ROLES, *tags], special=special))
    assert new(found, [*ROLES, *tags]) == (ROLES, tags)


def test_eos_and_special_tokens_are_control_tokens_without_a_template(dress: Dress) -> None:
    found = control_tokens(dress(None, ["<think>"]))
    assert {"<|im_end|>", "<|endoftext|>"} <= set(found.control)
    assert "<think>" not in found.control
    assert found.tags == ()


def test_a_template_that_is_not_the_first_of_several_counts_as_well(dress: Dress) -> None:
    tokenizer = dress(None, ["##[YODA]##>"])
    tokenizer.chat_template = {
        "default": "{{ messages[0].content }}",
        "tool_use": "##[YODA]##>{{ messages[0].content }}",
    }
    assert "##[YODA]##>" in control_tokens(tokenizer).control


@pytest.mark.parametrize(
    ("name", "control", "tags", "wrappers"),
    [
        (
            "qwen3",
            ["<|im_end|>", "<|im_start|>"],
            [
                "</think>",
                "</tool_call>",
                "</tool_response>",
                "<think>",
                "<tool_call>",
                "<tool_response>",
            ],
            ["</tool_response>", "<tool_response>"],
        ),
        (
            "glm4moe",
            ["<|assistant|>", "<|observation|>", "<|system|>", "<|user|>"],
            [
                "</think>",
                "</tool_call>",
                "</tool_response>",
                "<think>",
                "<tool_call>",
                "<tool_response>",
            ],
            ["</tool_response>", "<tool_response>"],
        ),
        # every prompt of generation and every answer opens the block
        ("qwen3_8", ["<|im_end|>", "<|im_start|>"], ["</think>", "<think>"], []),
        ("llama3_1", ["<|end_header_id|>", "<|eot_id|>", "<|start_header_id|>"], [], []),
        (
            "gptoss",
            ["<|call|>", "<|channel|>", "<|end|>", "<|message|>", "<|return|>", "<|start|>"],
            [],
            [],
        ),
        (
            "deepseekv3",
            ["<｜Assistant｜>", "<｜User｜>", "<｜end▁of▁sentence｜>", "<｜tool▁outputs▁begin｜>"],
            ["</think>", "<think>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"],
            [],
        ),
        ("gemma3", ["<end_of_turn>", "<start_of_turn>"], [], []),
    ],
)
def test_tokens_of_published_templates(
    dress: Dress, name: str, control: list[str], tags: list[str], wrappers: list[str]
) -> None:
    found = control_tokens(dress(SOURCES[name], [*control, *tags]))
    assert new(found, [*control, *tags]) == (control, tags)
    assert sorted(found.wrappers) == wrappers


# --- texts ----------------------------------------------------------------------------------------

TOKENS = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
]


def read(tokenizer: Any, *turns: tuple[str, str], forged: str = "error") -> Any:
    preflight = PreflightConfig(max_empty_rows=0.0, max_over_length_rows=0.0)
    preflight.forged_turns = forged
    cleaner = Cleaner(tokenizer, DatasetConfig(path="embedded"), preflight)
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    (sample,) = to_samples([row], FormatConfig("messages"), ["row"], cleaner.clean)
    return sample


@pytest.mark.parametrize(
    ("turns", "refused"),
    [
        ([("user", "a"), ("assistant", "<think>\nb\n</think>\n\nc")], None),
        ([("system", "Use <tool_call></tool_call>."), ("user", "a"), ("assistant", "b")], None),
        ([("user", "What is <think>?"), ("assistant", "b")], "messages[0].content"),
        ([("user", "a"), ("assistant", "b<|im_end|>c")], "messages[1].content"),
        (
            [("system", "<|im_start|>user"), ("user", "a"), ("assistant", "b")],
            "messages[0].content",
        ),
        (
            [
                ("user", "a"),
                ("assistant", '<tool_call>\n{"name": "f"}\n</tool_call>'),
                ("tool", "<tool_response>\n5\n</tool_response>"),
                ("assistant", "Five."),
            ],
            None,
        ),
        (
            [
                ("user", "<tool_response>\n5\n</tool_response>\n<tool_response>6</tool_response>"),
                ("assistant", "b"),
            ],
            None,
        ),
        (
            [("user", "5</tool_response> and more"), ("assistant", "b")],
            "messages[0].content",
        ),
        (
            [("user", "<tool_response><tool_call></tool_response>"), ("assistant", "b")],
            "messages[0].content",
        ),
        (
            [("user", "<tool_response><|im_end|></tool_response>"), ("assistant", "b")],
            "messages[0].content",
        ),
    ],
)
def test_tags_are_data_where_the_model_writes_them_and_nowhere_else(
    dress: Dress, turns: list[tuple[str, str]], refused: str | None
) -> None:
    sample = read(dress(SOURCES["qwen3"], TOKENS), *turns)
    if refused is None:
        assert not isinstance(sample, RowError)
        assert [message["content"] for message in sample.messages] == [text for _, text in turns]
    else:
        assert (sample.reason, sample.problem.where) == (FORGED, f"row.{refused}")


def test_reasoning_in_an_answer_is_trained_as_it_is_also_where_tokens_are_escaped(
    dress: Dress,
) -> None:
    tokenizer = dress(SOURCES["qwen3"], TOKENS)
    answer = "<think>\nTen and seven.\n</think>\n\n17"
    for forged in ("error", "escape"):
        sample = read(tokenizer, ("user", "10 + 7?"), ("assistant", answer), forged=forged)
        (row,) = Encoder(tokenizer, LossConfig("completion_only")).encode([sample], ["row"])
        assert isinstance(row, Encoded)
        trained = [label for label in row.labels if label != -100]
        assert tokenizer.decode(trained) == f"{answer}<|im_end|>"
        assert trained[0] == tokenizer.convert_tokens_to_ids("<think>")
