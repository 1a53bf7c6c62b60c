"""A Modelfile holds the prompts of training: Go's text/template renders it, as Ollama does."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftpipe.config.options import conf_dir
from sftpipe.errors import ExportError
from sftpipe.export.modelfile import (
    _SPACES,
    CONVERSATIONS,
    ChatFormat,
    known_templates,
    matching_format,
    write_modelfile,
)
from support.errors import Pin, named, places, refused

# As Ollama's server does it: SYSTEM before a conversation that does not begin with a system
# message, messages of one role in a row joined, and the template on what is left.
GO = r"""
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type job struct {
	Template      string      `json:"template"`
	System        string      `json:"system"`
	Conversations [][]message `json:"conversations"`
}

func collate(given []message) (string, []*message) {
	var system []string
	var collated []*message
	for i := range given {
		if given[i].Role == "system" {
			system = append(system, given[i].Content)
		}
		if n := len(collated); n > 0 && collated[n-1].Role == given[i].Role {
			collated[n-1].Content += "\n\n" + given[i].Content
		} else {
			collated = append(collated, &given[i])
		}
	}
	return strings.Join(system, "\n\n"), collated
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	var jobs []job
	check(json.NewDecoder(os.Stdin).Decode(&jobs))
	rendered := [][]string{}
	for _, one := range jobs {
		parsed, err := template.New("").Option("missingkey=zero").Parse(one.Template)
		check(err)
		texts := []string{}
		for _, messages := range one.Conversations {
			if one.System != "" && messages[0].Role != "system" {
				messages = append([]message{{"system", one.System}}, messages...)
			}
			system, collated := collate(messages)
			var text strings.Builder
			check(parsed.Execute(&text, map[string]any{
				"System": system, "Messages": collated, "Prompt": "", "Response": "",
			}))
			texts = append(texts, text.String())
		}
		rendered = append(rendered, texts)
	}
	check(json.NewEncoder(os.Stdout).Encode(rendered))
}
"""

Chat = Sequence[Mapping[str, str]]
GoRender = Callable[[Sequence[tuple[str, str, Sequence[Chat]]]], list[list[str]]]

FORMATS = {one.name: one for one in known_templates()}
CHATS = list(CONVERSATIONS.values())
# what `str.strip` takes away
SPACES = {chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()}


@pytest.fixture(scope="session")
def go(tmp_path_factory: pytest.TempPathFactory) -> GoRender:
    """Render (template, system, conversations) with Go's text/template."""
    if shutil.which("go") is None:
        pytest.skip("no go on the PATH: apt-get install golang-go")
    folder = tmp_path_factory.mktemp("go")
    (folder / "main.go").write_text(GO, encoding="utf-8")
    command = ["go", "build", "-o", "render", "main.go"]
    subprocess.run(command, cwd=folder, check=True, timeout=300)

    def render(jobs: Sequence[tuple[str, str, Sequence[Chat]]]) -> list[list[str]]:
        keys = ("template", "system", "conversations")
        given = json.dumps([dict(zip(keys, job, strict=True)) for job in jobs])
        done = subprocess.run(
            [folder / "render"], input=given, capture_output=True, encoding="utf-8", timeout=60
        )
        assert done.returncode == 0, done.stderr
        texts: list[list[str]] = json.loads(done.stdout)
        return texts

    return render


@pytest.fixture
def other() -> Callable[[Any, str], Any]:
    """A tokenizer with another chat template."""

    def make(tokenizer: Any, source: str) -> Any:
        changed = copy.copy(tokenizer)
        changed.chat_template = source
        return changed

    return make


def read_modelfile(text: str) -> dict[str, list[str]]:
    """{instruction: its values}, as Ollama's parser finds them: a value goes on to the end of the
    first line with which its quotes are closed, and what cannot be printed is dropped.
    """
    found: dict[str, list[str]] = {}
    value = ""
    for line in re.findall(r"[^\r\n]*[\r\n]", text):
        value += "".join(one for one in line if one.isprintable() or one in "\t\r\n")
        name, _, rest = value.partition(" ")
        if name == "PARAMETER":
            parameter, _, rest = rest.partition(" ")
            name = f"{name} {parameter}"
        bare = rest.strip()
        quotes = '"""' if bare.startswith('"""') else '"' if bare.startswith('"') else ""
        if len(bare) >= 2 * len(quotes) and bare.endswith(quotes):
            found.setdefault(name, []).append(bare[len(quotes) : len(bare) - len(quotes)])
            value = ""
    assert value.strip() == "", "the last value does not end"
    return found


def of_jinja(tokenizer: Any) -> list[str]:
    """What the chat template of a tokenizer makes of the conversations."""
    return [
        tokenizer.apply_chat_template(
            [dict(message) for message in chat], tokenize=False, add_generation_prompt=True
        )
        for chat in CHATS
    ]


def settled(entry: ChatFormat, *, add_bos: bool = False, system: str = "") -> ChatFormat:
    return replace(entry.for_tokens("<s>", "</s>", add_bos=add_bos), default_system=system)


# --- what is compared -----------------------------------------------------------------------------


def test_the_conversations_are_twenty_and_take_turns() -> None:
    assert len(CONVERSATIONS) == 20
    assert len({json.dumps(chat) for chat in CHATS}) == 20
    for chat in CHATS:
        roles = [message["role"] for message in chat]
        rest = roles[1:] if roles[0] == "system" else roles
        assert rest == [("user", "assistant")[at % 2] for at in range(len(rest))]
    begins = [chat[0]["role"] for chat in CHATS]
    assert min(begins.count("system"), begins.count("user")) >= 5
    everything = "".join(message["content"] for chat in CHATS for message in chat)
    for part in ("{{", "}}", "{%", "`", '"""', "'", "\n", "\r", "\t", "\u3000", "하늘", "</think>"):
        assert part in everything


def test_the_white_space_that_is_trimmed_is_that_of_python() -> None:
    assert {*"".join(_SPACES.values())} == SPACES
    for size, spaces in _SPACES.items():
        assert {len(space.encode()) for space in spaces} == {size}


# --- Go and Python --------------------------------------------------------------------------------


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("system", ["", 'Be "{{ .brief }}"'])
@pytest.mark.parametrize("name", FORMATS)
def test_go_renders_each_entry_of_the_table_as_python_does(
    go: GoRender, name: str, system: str, add_bos: bool
) -> None:
    entry = settled(FORMATS[name], add_bos=add_bos, system=system)
    (rendered,) = go([(entry.go_template(), system, CHATS)])
    assert rendered == [entry.render(chat) for chat in CHATS]


SYNTAX = [
    "{{",
    "}}",
    "{{ .Content }}",
    "{%",
    "{bos}",
    "{content}",
    '"',
    "'",
    "`",
    "\\",
    "<|im_end|>",
]
SYNTAX += ["{", "$i", "</s>", "\n", " ", "\t", "\u3000", "\x85", "é", "한"]
CONTENTS = st.lists(
    st.sampled_from(SYNTAX) | st.characters(exclude_categories=["Cs"]), max_size=12
).map("".join)


@st.composite
def chats(draw: st.DrawFn) -> Chat:
    """Any roles, as long as no two in a row are the same, which Ollama would join."""
    roles = draw(st.lists(st.sampled_from(["system", "user", "assistant"]), min_size=1, max_size=6))
    taken = [role for at, role in enumerate(roles) if at == 0 or roles[at - 1] != role]
    return [{"role": role, "content": draw(CONTENTS)} for role in taken]


@given(given_chats=st.lists(chats(), min_size=1, max_size=20), bos=CONTENTS, eos=CONTENTS)
def test_go_renders_any_contents_and_tokens_as_python_does(
    go: GoRender, given_chats: list[Chat], bos: str, eos: str
) -> None:
    entries = [
        one.for_tokens(bos, eos, add_bos=add_bos)
        for one in known_templates()
        for add_bos in (False, True)
    ]
    rendered = go([(one.go_template(), "", given_chats) for one in entries])
    assert rendered == [[one.render(chat) for chat in given_chats] for one in entries]


@given(
    texts=st.lists(st.text(st.sampled_from([*sorted(SPACES), "a", "\u00e0", "\u2080"])), min_size=1)
)
def test_go_trims_as_python_does(go: GoRender, texts: list[str]) -> None:
    one = settled(FORMATS["llama3"])
    (rendered,) = go([(one.go_template(), "", [[{"role": "user", "content": t}] for t in texts])])
    before, _, after = one.render([{"role": "user", "content": "|here|"}]).partition("|here|")
    assert rendered == [before + text.strip() + after for text in texts]


# --- the Modelfile of a tokenizer -----------------------------------------------------------------

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def test_the_modelfile_of_the_embedded_model(tokenizer: Any) -> None:
    text = write_modelfile(
        tokenizer, "yoda-f16.gguf", ["<|im_end|>", "<|endoftext|>"], {"temperature": 0.7}
    )
    turns = "".join(
        f'{{{{ {word} eq .Role "{role}" }}}}<|im_start|>{role}\n{{{{ .Content }}}}<|im_end|>\n'
        for word, role in (("if", "system"), ("else if", "user"), ("else if", "assistant"))
    )
    assert text == (
        "FROM ./yoda-f16.gguf\n"
        f'TEMPLATE """{{{{ range $i, $_ := .Messages }}}}{turns}{{{{ end }}}}{{{{ end }}}}'
        '<|im_start|>assistant\n"""\n'
        f'SYSTEM """{SYSTEM}"""\n'
        'PARAMETER stop "<|im_end|>"\n'
        'PARAMETER stop "<|endoftext|>"\n'
        "PARAMETER temperature 0.7\n"
    )


GEMMA3 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {{- message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}
"""
GEMMA2 = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{- raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}{{ message['content'] }}{% endfor %}"""
ALPACA = """{% for message in messages %}{% if message['role'] == 'system' %}
{{- message['content'] }}
{%- elif message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'] }}
{%- else %}{{ '### Response:\n' + message['content'] + END }}{% endif %}{{ '\n\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"""
QWEN2 = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{
 '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' +
 message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if
 add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


def shipped(name: str) -> str:
    return (conf_dir() / "chat_template" / f"{name}.jinja").read_text(encoding="utf-8")


# what a template is, its text, the entry that it is, its default system text
TEMPLATES = [
    *[(f"{name}, as shipped", shipped(name), name, "") for name in (
        "chatml_bos_eos", "llama3", "phi3", "zephyr"
    )],
    ("chatml, as shipped", shipped("chatml"), "chatml", ""),
    ("Qwen 2", QWEN2, "chatml", "You are a helpful assistant."),
    ("Gemma 3", GEMMA3, "gemma3", ""),
    ("Alpaca", ALPACA.replace("END", "''"), "alpaca", ""),
    ("Alpaca with EOS", ALPACA.replace("END", "eos_token"), "alpaca_eos", ""),
    ("Alpaca with its preamble", "{% if messages[0]['role'] != 'system' %}{{ 'Below is an "
     "instruction.\n\n' }}{% endif %}" + ALPACA.replace("END", "eos_token"), "alpaca_eos",
     "Below is an instruction."),
]  # fmt: skip


def proved(go: GoRender, tokenizer: Any, bos: str, **keys: Any) -> dict[str, list[str]]:
    """The Modelfile as it is read; Go makes of it what the chat template does, less the BOS."""
    found = read_modelfile(write_modelfile(tokenizer, "x.gguf", [], {}, **keys))
    (system,) = found.get("SYSTEM", [""])
    (rendered,) = go([(found["TEMPLATE"][0], system, CHATS)])
    assert [bos + text for text in rendered] == of_jinja(tokenizer)
    return found


def test_every_entry_of_the_table_has_a_template_that_it_holds() -> None:
    assert {name for _, _, name, _ in TEMPLATES} == set(FORMATS)


@pytest.mark.parametrize(("source", "name", "system"), named(TEMPLATES))
def test_go_makes_of_a_modelfile_what_the_chat_template_makes(
    go: GoRender, phi3: Any, other: Callable[[Any, str], Any], source: str, name: str, system: str
) -> None:
    tokenizer = other(phi3, source)
    assert matching_format(tokenizer).name == name
    found = proved(go, tokenizer, "")
    assert found.get("SYSTEM", [""]) == [system]


@pytest.mark.parametrize("name", ["chatml_bos_eos", "llama3"])
def test_the_bos_that_llama_cpp_adds_is_left_out_once(
    go: GoRender, phi3: Any, other: Callable[[Any, str], Any], name: str
) -> None:
    proved(go, other(phi3, shipped(name)), phi3.bos_token, add_bos=True)


def test_a_tokenizer_that_adds_its_bos_says_that_llama_cpp_does(go: GoRender, opt: Any) -> None:
    assert opt("a").input_ids[0] == opt.bos_token_id
    proved(go, opt, opt.bos_token)


def test_the_embedded_tokenizer_is_proved(go: GoRender, tokenizer: Any) -> None:
    found = proved(go, tokenizer, "")  # its BOS begins every turn, and it adds none
    assert found["SYSTEM"] == [SYSTEM]


@pytest.mark.parametrize(
    ("folder", "template", "name"),
    [
        ("phi-3-mini-4k-instruct", None, "phi3"),
        ("gpt2", "chatml_bos_eos", "chatml_bos_eos"),
        ("opt-350m", "chatml_bos_eos", "chatml_bos_eos"),
    ],
)
def test_published_tokenizers_are_proved(
    go: GoRender, golden: Path, folder: str, template: str | None, name: str
) -> None:
    from support.tokenizers import tokenizer_at

    tokenizer = tokenizer_at(golden / "tokenizers" / folder, chat_template=template or "")
    adds = tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    proved(go, tokenizer, tokenizer.bos_token if adds else "")
    assert matching_format(tokenizer).name == name


# --- what stands in the file ----------------------------------------------------------------------


def test_stops_are_each_said_once_and_texts_are_quoted(tokenizer: Any) -> None:
    stops = ["<|endoftext|>", "<|im_end|>", "\n\n", 'say "no"', "<|endoftext|>", '"']
    parameters = {"num_ctx": 2048, "stop": ["끝"], "penalize_newline": False}
    found = read_modelfile(write_modelfile(tokenizer, "my model.gguf", stops, parameters))
    assert found["FROM"] == ["./my model.gguf"]
    assert found["PARAMETER stop"] == [*stops[:4], '"', "끝"]
    assert found["PARAMETER num_ctx"] == ["2048"]
    assert found["PARAMETER penalize_newline"] == ["false"]


def test_the_stops_of_the_template_are_added(phi3: Any, other: Callable[[Any, str], Any]) -> None:
    for source, stops in ((shipped("zephyr"), ["."]), (ALPACA.replace("END", "''"), ["."])):
        found = read_modelfile(write_modelfile(other(phi3, source), "x.gguf", stops, {}))
        assert found["PARAMETER stop"][:2] == [".", "<|endoftext|>"]
    assert found["PARAMETER stop"][2:] == ["### Instruction:"]


@given(stops=st.lists(st.text(st.sampled_from('" \t\r\nab{<\\#한'), max_size=8), max_size=20))
def test_a_stop_is_read_as_it_was_written(chatml: Any, stops: list[str]) -> None:
    written = [stop for stop in stops if '"""' not in stop]
    found = read_modelfile(write_modelfile(chatml, "x.gguf", written, {}))
    assert found["PARAMETER stop"] == list(dict.fromkeys([*filter(None, written), "<|im_end|>"]))


@pytest.mark.parametrize(
    ("stop", "where"),
    [
        pytest.param('""" ends', "Modelfile, PARAMETER stop", id="three quotes"),
        pytest.param("no\u00a0break", "Modelfile, PARAMETER stop", id="unprintable"),
    ],
)
def test_a_text_that_ollama_would_read_otherwise_is_refused(
    tokenizer: Any, golden_error: Pin, stop: str, where: str
) -> None:
    error = refused(ExportError, lambda: write_modelfile(tokenizer, "x.gguf", [stop], {}))
    assert places(error) == [where]
    golden_error(error)


def test_a_system_text_with_three_quotes_is_refused(
    tokenizer: Any, templated: Callable[[str], Any], golden_error: Pin
) -> None:
    source = tokenizer.chat_template.replace("named SmolLM", 'named """SmolLM"""')
    error = refused(ExportError, lambda: write_modelfile(templated(source), "x.gguf", [], {}))
    assert places(error) == ["Modelfile, SYSTEM"]
    golden_error(error)


# --- no Modelfile ---------------------------------------------------------------------------------

MISTRAL = "{{ bos_token }}{% for m in messages %}{{ '[INST] ' + m['content'] }}{% endfor %}"
# what is wrong, the template
REFUSED = [
    ("one character", shipped("chatml").replace("assistant\\n", "assistant \\n")),
    ("trims the answers", shipped("chatml").replace(
        "message['content']", "(message['content'] | trim)")),
    ("no default for an empty one", QWEN2.replace(
        "messages[0]['role'] != 'system'", "(messages[0]['role'] != 'system' or not "
        "messages[0]['content'])")),
    ("drops thoughts", shipped("chatml").replace(
        "message['content']", "message['content'].split('</think>')[-1]")),
    ("another format", MISTRAL),
    ("refuses a system message", GEMMA2),
    ("no valid Jinja", "{% for %}"),
    ("the date", shipped("chatml") + "{# strftime_now #}"),
    ("none", None),
]  # fmt: skip


@pytest.mark.parametrize("source", named(REFUSED))
def test_a_template_that_no_entry_holds_is_refused_with_the_reason(
    templated: Callable[[str | None], Any], golden_error: Pin, source: str | None
) -> None:
    error = refused(ExportError, lambda: write_modelfile(templated(source), "x.gguf", [], {}))
    assert places(error) == ["tokenizer.chat_template"]
    golden_error(error)


def test_a_bos_that_the_template_does_not_write_is_refused(phi3: Any, golden_error: Pin) -> None:
    error = refused(ExportError, lambda: write_modelfile(phi3, "x.gguf", [], {}, add_bos=True))
    assert places(error) == ["tokenizer.chat_template"]
    golden_error(error)
