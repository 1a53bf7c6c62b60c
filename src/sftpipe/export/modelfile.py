"""An Ollama `Modelfile` for a GGUF file: the prompts of training, in Go's template language.

Ollama reads no Jinja. A `ChatFormat` of the table states how a kind of chat template writes a
conversation; the Go template and a rendering in Python are both made of it. At export the chat
template of the run must render equal to one of the table on `CONVERSATIONS`, or no Modelfile is
written. That Go's text/template renders as the Python does is what tests/export/test_modelfile.py
proves.

What is relied on, of Ollama:

- A template that reads `.Messages` gets all of them, with `.Role` and `.Content`, the system
  message among them; nothing is added to what it writes. `.System`, `.Prompt` and `.Response`
  belong to templates without `.Messages` and are not used.
- Messages of one role in a row have become one before, joined by an empty line; here they come
  to the template as they are, so no conversation of the proof has any.
- `SYSTEM` becomes the first message where a conversation does not begin with a system message; an
  empty one counts as one. That is what a default system text of a chat template means, too.
- The tokenizer of llama.cpp puts BOS before the text where the GGUF file says `add_bos`.
- Templates cannot refuse a conversation. A chat template that does (Gemma 1 and 2 and Mistral, a
  system message) is held by no entry.
- Its parser of Modelfiles drops what Go's `strconv.IsPrint` calls unprintable, in quotes too.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sftpipe.data.chat_template import ChatTemplate
from sftpipe.errors import ExportError, Problem, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Message = Mapping[str, str]

_KEY = "tokenizer.chat_template"
_NONE_WRITTEN = (
    "no Modelfile is written; llama.cpp needs none, it reads the chat template in the GGUF file"
)
# what `str.strip` takes away, and so Jinja's trim; by the number of bytes in UTF-8
_SPACES = {
    1: "\t\n\v\f\r\x1c\x1d\x1e\x1f ",
    2: "\x85\xa0",
    3: "\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000",
}


@dataclass(frozen=True)
class ChatFormat:
    """How a kind of chat template writes a conversation.

    In every text `{bos}` and `{eos}` stand for the tokenizer's tokens until `for_tokens`.

    name: as messages call it.
    system, user, assistant: a turn of each role; `{content}` is its content. Other roles are
        written by none.
    prompt: what opens the answer, at the end.
    stops: what ends an answer, besides what generation stops at.
    begin: what stands before the first turn.
    trims: white space around contents is taken away.
    folds: a system message at the beginning has no turn; `system` is written in the turn after
        it, before the content, and untrimmed.
    default_system: what the template says where a conversation begins without a system message.
    unwritten: what the first turn lacks of its beginning, since llama.cpp has put it there.
    """

    name: str
    system: str
    user: str
    assistant: str
    prompt: str
    stops: tuple[str, ...]
    begin: str = ""
    trims: bool = False
    folds: bool = False
    default_system: str = ""
    unwritten: str = ""

    def for_tokens(self, bos: str, eos: str, *, add_bos: bool) -> ChatFormat:
        """The format for a tokenizer.

        Args:
            bos: its BOS token, "" where it has none.
            eos: its EOS token, "" where it has none.
            add_bos: llama.cpp puts BOS before the text, so the format leaves its own out.
        """

        def filled(text: str) -> str:
            return text.replace("{bos}", bos).replace("{eos}", eos)

        begin = filled(self.begin)
        return replace(
            self,
            system=filled(self.system),
            user=filled(self.user),
            assistant=filled(self.assistant),
            prompt=filled(self.prompt),
            stops=tuple(map(filled, self.stops)),
            begin=begin.removeprefix(bos) if add_bos else begin,
            unwritten=bos if add_bos and not begin else "",
        )

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt of a conversation, as Ollama makes it of `go_template` and SYSTEM."""
        if self.default_system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.default_system}, *messages]
        text = self.begin
        for index, message in enumerate(messages):
            content, role = message["content"], message["role"]
            turn = self._turns.get(role)
            if turn is None:
                continue
            before, after = turn
            if index == 0:
                before = before.removeprefix(self.unwritten)
            if self.folds and index == 1 and messages[0]["role"] == "system":
                before += self.system.replace("{content}", messages[0]["content"])
            text += before + (content.strip() if self.trims else content) + after
        return text + self.prompt

    def go_template(self) -> str:
        """The text of TEMPLATE."""
        content = '{{ template "trim" .Content }}' if self.trims else "{{ .Content }}"
        text = _go_trim() if self.trims else ""
        text += _literal(self.begin) + "{{ range $i, $_ := .Messages }}"
        word = "if"
        for role, (before, after) in self._turns.items():
            text += f'{{{{ {word} eq .Role "{role}" }}}}'
            if self.unwritten and before.startswith(self.unwritten):
                text += f"{{{{ if $i }}}}{_literal(self.unwritten)}{{{{ end }}}}"
                before = before.removeprefix(self.unwritten)
            text += _literal(before) + self._go_fold() + content + _literal(after)
            word = "else if"
        return text + "{{ end }}{{ end }}" + _literal(self.prompt)

    @property
    def _turns(self) -> dict[str, tuple[str, str]]:
        """{role: what stands before and after the content of its turn}."""
        formats = {"user": self.user, "assistant": self.assistant}
        if not self.folds:
            formats = {"system": self.system, **formats}
        parts = {role: turn.partition("{content}") for role, turn in formats.items()}
        return {role: (before, after) for role, (before, _, after) in parts.items()}

    def _go_fold(self) -> str:
        """The system message within the turn after it."""
        if not self.folds:
            return ""
        before, _, after = self.system.partition("{content}")
        return (
            '{{ if eq $i 1 }}{{ $first := index $.Messages 0 }}{{ if eq $first.Role "system" }}'
            f"{_literal(before)}{{{{ $first.Content }}}}{_literal(after)}{{{{ end }}}}{{{{ end }}}}"
        )


def _literal(text: str) -> str:
    """A text that Go's template writes as it is."""
    return text.replace("{", '{{ "{" }}')


def _go_trim() -> str:
    """Definitions that write a text without the white space around it; Go has no such function.

    They call themselves with a character less. `and` must stop at its first false argument, as it
    does since Go 1.18.
    """
    text = ""
    for name, cut, rest, then in (
        ("trim", "slice . 0 {n}", "slice . {n}", '{{ template "trimEnd" . }}'),
        ("trimEnd", "slice . {at}", "slice . 0 {at}", "{{ . }}"),
    ):
        text += f'{{{{ define "{name}" }}}}'
        word = "if"
        for size, spaces in _SPACES.items():
            at = {"n": size, "at": f"(len (slice . {size}))"}
            quoted = " ".join(f'"\\u{ord(space):04x}"' for space in spaces)
            has_room = f"ge (len .) {size}"
            text += (
                f"{{{{ {word} and ({has_room}) (eq ({cut.format(**at)}) {quoted}) }}}}"
                f'{{{{ template "{name}" ({rest.format(**at)}) }}}}'
            )
            word = "else if"
        text += f"{{{{ else }}}}{then}{{{{ end }}}}{{{{ end }}}}"
    return text


def _of_roles(turn: str, **others: Any) -> ChatFormat:
    """A format whose turns differ in the name of their role alone."""
    system, user, assistant = (
        turn.replace("{role}", role) for role in ("system", "user", "assistant")
    )
    return ChatFormat(system=system, user=user, assistant=assistant, **others)


_TABLE = (
    # also SmolLM2, Qwen 2 and 2.5, Yi, whose default system text is found in their template
    _of_roles(
        "<|im_start|>{role}\n{content}<|im_end|>\n",
        name="chatml",
        prompt="<|im_start|>assistant\n",
        stops=("<|im_end|>",),
    ),
    _of_roles(
        "{bos}{role}\n{content}{eos}\n",
        name="chatml_bos_eos",
        prompt="{bos}assistant\n",
        stops=("{eos}",),
    ),
    _of_roles(
        "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>",
        name="llama3",
        prompt="<|start_header_id|>assistant<|end_header_id|>\n\n",
        stops=("<|eot_id|>",),
        begin="{bos}",
        trims=True,
    ),
    _of_roles(
        "<|{role}|>\n{content}<|end|>\n",
        name="phi3",
        prompt="<|assistant|>\n",
        stops=("<|end|>",),
    ),
    _of_roles(
        "<|{role}|>\n{content}{eos}\n",
        name="zephyr",
        prompt="<|assistant|>\n",
        stops=("{eos}",),
    ),
    ChatFormat(
        name="gemma3",
        system="{content}\n\n",
        user="<start_of_turn>user\n{content}<end_of_turn>\n",
        assistant="<start_of_turn>model\n{content}<end_of_turn>\n",
        prompt="<start_of_turn>model\n",
        stops=("<end_of_turn>",),
        begin="{bos}",
        trims=True,
        folds=True,
    ),
    # nothing ends an answer of it but EOS, which the template does not write, and the next turn
    ChatFormat(
        name="alpaca",
        system="{content}\n\n",
        user="### Instruction:\n{content}\n\n",
        assistant="### Response:\n{content}\n\n",
        prompt="### Response:\n",
        stops=("{eos}", "### Instruction:"),
    ),
    ChatFormat(
        name="alpaca_eos",
        system="{content}\n\n",
        user="### Instruction:\n{content}\n\n",
        assistant="### Response:\n{content}{eos}\n\n",
        prompt="### Response:\n",
        stops=("{eos}",),
    ),
)


def known_templates() -> tuple[ChatFormat, ...]:
    """The table: every kind of chat template that a Modelfile is written for."""
    return _TABLE


def _chat(text: str) -> tuple[Message, ...]:
    """A conversation of turns that each begin with a role's letter and a bar."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    turns = (turn.split("|", 1) for turn in text.split("¦"))
    return tuple({"role": roles[letter], "content": content} for letter, content in turns)


# What is compared, {what it shows: conversation}. Roles alternate after a system message, as all
# templates of the table take them.
CONVERSATIONS: Mapping[str, tuple[Message, ...]] = {
    "a question": _chat("u|What is the sky?"),
    "a system message": _chat("s|Answer in one word.¦u|What is the sky?"),
    "two questions": _chat("u|Hello¦a|Hi! How are you?¦u|Fine."),
    "a system message and two questions": _chat("s|Be kind.¦u|Hello¦a|Hi!¦u|Bye"),
    "five questions": _chat("u|1¦a|one¦u|2¦a|two¦u|3¦a|three¦u|4¦a|four¦u|5"),
    "an answer at the end": _chat("s|Count.¦u|1¦a|one"),
    "an empty system message": _chat("s|¦u|Hello"),
    "a system message of spaces": _chat("s|  \n ¦u|Hello"),
    "an empty question": _chat("u|"),
    "an empty answer": _chat("u|Say nothing.¦a|¦u|Thanks"),
    "Korean": _chat("s|짧게 답하세요.¦u|하늘은 무슨 색인가요?¦a|파란색입니다.¦u|고마워요"),
    "emoji and accents": _chat("u|Héllo 👩‍🚀 — «e\u0301»¦a|✅ ok…¦u|日本語"),
    "braces of templates": _chat(
        "s|{{ .System }} {bos}{eos}{content}¦u|{{ range .Messages }}{% if x %}{# no #}}}"
        "¦a|{{- .Content -}} {{{¦u|}} {{ end }}"
    ),
    "code": _chat('u|```python\ndef f(x):\n\treturn {"a": x}\n```¦a|`f(1)`\n\n    {}\n¦u|and \\n?'),
    "quotes": _chat('s|Say "no".¦u|"""it\'s"""¦a|\'"\'¦u|“yes”'),
    "spaces around": _chat("s| system  ¦u|  question ¦a|\tanswer \t¦u| again  "),
    "line breaks around": _chat("s|\n\nsystem\n¦u|\nquestion\n\n¦a|\n\nanswer\r\n¦u|again\n"),
    "other white space around": _chat(
        "u|\u3000question\u00a0¦a|\u2003answer\u2028¦u|\x0bagain\x85"
    ),
    "markup": _chat("u|<b>a & b</b> &amp; <|user|> [INST]¦a|### Response:\n<s></s>¦u|<|im_end|>"),
    "thoughts": _chat("u|2+2?¦a|<think>\nfour\n</think>\n\n4¦u|<think>Why?</think>"),
}


def write_modelfile(
    tokenizer: PreTrainedTokenizerFast,
    gguf_name: str,
    stops: Sequence[str],
    parameters: Mapping[str, Any],
    *,
    add_bos: bool | None = None,
) -> str:
    """The text of a Modelfile, which lies beside its GGUF file.

    Args:
        tokenizer: the run's, with its chat template.
        gguf_name: name of the GGUF file.
        stops: texts at which generation stops; those of the chat template are added.
        parameters: further parameters by Ollama's names, such as `temperature`; a list is a
            parameter for each of its values.
        add_bos: as the GGUF file says it; None for what the tokenizer does with a plain text.

    Raises:
        ExportError: no entry of the table renders as the chat template does, or a text cannot be
            written into a Modelfile.
    """
    found = matching_format(tokenizer, add_bos=add_bos)
    lines = [f"FROM {_written('FROM', f'./{gguf_name}')}"]
    lines.append(f"TEMPLATE {_quoted('TEMPLATE', found.go_template())}")
    if found.default_system:
        lines.append(f"SYSTEM {_quoted('SYSTEM', found.default_system)}")
    pairs = [("stop", stop) for stop in dict.fromkeys((*stops, *found.stops)) if stop]
    for name, value in parameters.items():
        pairs += [(name, one) for one in (value if isinstance(value, list | tuple) else [value])]
    lines += [f"PARAMETER {name} {_parameter(name, value)}" for name, value in pairs]
    return "\n".join(lines) + "\n"


def matching_format(
    tokenizer: PreTrainedTokenizerFast, *, add_bos: bool | None = None
) -> ChatFormat:
    """The entry of the table that renders as the chat template of a tokenizer does.

    Args:
        tokenizer: with its chat template.
        add_bos: as `write_modelfile` takes it.

    Raises:
        ExportError: none does; the nearest one is shown with the first place where they part.
    """
    bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
    if add_bos is None:
        add_bos = bos != "" and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    wanted = _rendered(tokenizer, bos if add_bos else "")
    formats = []
    for entry in _TABLE:
        plain = entry.for_tokens(bos, eos, add_bos=add_bos)
        formats.append(replace(plain, default_system=_default_system(plain, wanted)))
    scores = [_agreement(entry, wanted) for entry in formats]
    best = max(range(len(formats)), key=scores.__getitem__)
    if scores[best][0] < len(CONVERSATIONS):
        raise ExportError(_parting(formats[best], wanted))
    return formats[best]


def _rendered(tokenizer: PreTrainedTokenizerFast, bos: str) -> dict[str, str]:
    """What the chat template makes of each conversation, less the BOS that llama.cpp adds.

    Raises:
        ExportError: there is no template, it refuses a conversation, it writes the date, or it
            does not write the BOS.
    """
    if tokenizer.chat_template is None:
        fix = "no Modelfile is written; one with FROM alone sends prompts as they are typed"
        raise ExportError(Problem(_KEY, "the tokenizer has none", fix=fix))
    if ChatTemplate(tokenizer).writes_date:
        found = "it writes the date of the day, which a template of Ollama cannot"
        raise ExportError(Problem(_KEY, found, fix=_NONE_WRITTEN))
    texts = {}
    for name, messages in CONVERSATIONS.items():
        try:
            text = str(
                tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tokenize=False,
                    add_generation_prompt=True,
                )
            )
        except Exception as error:  # a template is a program, and can raise anything
            found = (
                f"for the conversation {name!r} it gives an error, which a template of Ollama "
                f"cannot: {one_line(error)[:160]}"
            )
            raise ExportError(Problem(_KEY, found, fix=_NONE_WRITTEN)) from None
        if not text.startswith(bos):
            found = (
                f"llama.cpp puts {bos} before every text, as the GGUF file says, and the template "
                f"writes none: {text[:40]!r}"
            )
            raise ExportError(Problem(_KEY, found, fix=_NONE_WRITTEN))
        texts[name] = text.removeprefix(bos)
    return texts


def _default_system(entry: ChatFormat, wanted: Mapping[str, str]) -> str:
    """The system text that the chat template adds to "a question", if it writes turns so."""
    name, mark = "a question", "\0"
    question = CONVERSATIONS[name]
    with_mark = entry.render([{"role": "system", "content": mark}, *question])
    before, found, after = with_mark.partition(mark)
    text = wanted[name]
    if not found or text == entry.render(question):
        return ""
    if len(text) < len(before + after) or not (text.startswith(before) and text.endswith(after)):
        return ""
    return text[len(before) : len(text) - len(after)]


def _agreement(entry: ChatFormat, wanted: Mapping[str, str]) -> tuple[int, int]:
    """How many conversations are rendered equal, and how far the others, in characters."""
    equal = characters = 0
    for name, messages in CONVERSATIONS.items():
        text = entry.render(messages)
        equal += text == wanted[name]
        characters += _common(text, wanted[name])
    return equal, characters


def _parting(entry: ChatFormat, wanted: Mapping[str, str]) -> Problem:
    """Where the nearest entry and the chat template part first."""
    name = next(name for name, one in CONVERSATIONS.items() if entry.render(one) != wanted[name])
    ours, known = wanted[name], entry.render(CONVERSATIONS[name])
    at = _common(ours, known)
    after = f"after {ours[max(0, at - 24) : at]!r}" if at else "at the beginning"
    return Problem(
        _KEY,
        f"no known template of Ollama renders as it does; the nearest is {entry.name}, and for "
        f"the conversation {name!r} they part {after}: it writes {_piece(ours, at)}, "
        f"{entry.name} writes {_piece(known, at)}",
        allowed=", ".join(one.name for one in _TABLE),
        fix=_NONE_WRITTEN,
    )


def _common(a: str, b: str) -> int:
    """Characters that both begin with."""
    return sum(
        1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    )


def _piece(text: str, at: int) -> str:
    return repr(text[at : at + 24]) if at < len(text) else "no more"


# --- the file -------------------------------------------------------------------------------------


def _parameter(name: str, value: Any) -> str:
    """A value as `PARAMETER` takes it: texts in quotes."""
    if isinstance(value, str):
        where = f"PARAMETER {name}"
        return _quoted(where, value) if '"' in value else f'"{_written(where, value)}"'
    return str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(where: str, text: str) -> str:
    return f'"""{_written(where, text)}"""'


def _written(where: str, text: str) -> str:
    """A text that Ollama reads out of a Modelfile as it was.

    Raises:
        ExportError: it holds what ends a text there, or what is dropped there.
    """
    lost = next((one for one in text if not (one.isprintable() or one in "\t\n\r")), "")
    if lost:
        found = f"{text[:80]!r} holds {lost!r}, which Ollama drops when it reads a Modelfile"
    elif '"""' in text:
        found = f'{text[:80]!r} holds """, which ends a text in a Modelfile'
    else:
        return text
    raise ExportError(Problem(f"Modelfile, {where}", found, fix=_NONE_WRITTEN))
