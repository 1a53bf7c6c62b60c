"""What a file that no one knows holds, told from its first rows, and what to type to have it read.

Only for messages: a layout is recognised where a user is stuck, and nothing is ever read by it.
Pure Python. To add a layout: a function `Head -> Layout | None`, and its place in `_RECOGNISERS`,
of which the first match wins.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from string import Template
from typing import Any

from sftpipe.config.schema import ROLES, TrainConfig
from sftpipe.data.messages import is_nothing
from sftpipe.data.samples import Row
from sftpipe.errors import in_shell

FIRST_ROWS = 100  # that a layout is told from
MODULE = "my_rows"  # of functions to paste
_PLAIN = re.compile(r"[A-Za-z_][\w./-]*", re.ASCII)  # Hydra needs no quotes
_WORDS_OF_HYDRA = ("null", "true", "false", "nan", "inf")


@dataclass(frozen=True)
class Layout:
    """What rows look like, and what has them read.

    name: for people.
    settings: {key: value} of the config; of a group such as `format` the name of an option.
    code: of the module `MODULE`, where no format reads such rows; without an empty line.
    note: what to do where no setting helps.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    code: str = ""
    note: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        """The overrides, each as a program is given it."""
        return tuple(f"{key}={_in_hydra(value)}" for key, value in self.settings.items())

    @property
    def typed(self) -> str:
        """The overrides as a shell takes them."""
        return " ".join(map(in_shell, self.words))

    def fix(self, *, alone: bool = True) -> str:
        """For `Problem.fix`. What is to be pasted stands between empty lines.

        Args:
            alone: it is the only data set; overrides reach no source of a mixture.
        """
        if not self.settings:
            return f"it looks like {self.name}: {self.note}"
        typed = f"`{self.typed}`" if alone else f"(of a data set alone) {self.typed}"
        if "`" in self.typed:  # no mark of what can be typed, but safe to type
            typed = self.typed
        if self.code:
            told = f"it looks like {self.name}, which no format reads; write {MODULE}.py:"
            return f"{told}\n\n{self.code}\n\n    and type {typed}"
        if "\n" in typed:  # of a template, and no indent may come into it
            return f"it looks like {self.name}; type\n\n{typed}\n"
        return f"it looks like {self.name}: {typed}"

    def is_in_use(self, cfg: TrainConfig) -> bool:
        """True if a config has these settings already."""
        return all(_value_of(cfg, key) == value for key, value in self.settings.items())


def recognise(rows: Sequence[Row]) -> Layout | None:
    """The layout of some rows, or None where they look like nothing that is known.

    Args:
        rows: the first rows of a file, by its own names of columns.
    """
    head = Head([{name: _nested(value) for name, value in row.items()} for row in rows], rows)
    return next((found for one in _RECOGNISERS if (found := one(head))), None)


@dataclass(frozen=True)
class Head:
    """The first rows of a file.

    rows: with the values of what is nested as JSON.
    raw: as the file has them.
    """

    rows: Sequence[Row]
    raw: Sequence[Row]

    @property
    def columns(self) -> list[str]:
        """Names, in the order of the file."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def values(self, path: str) -> list[Any]:
        """What a column holds, or a part of one (`data.turns`), where it holds something."""
        name, _, key = path.partition(".") if path not in self.columns else (path, "", "")
        found = [row.get(name) for row in self.rows]
        if key:
            found = [one.get(key) for one in found if isinstance(one, Mapping)]
        return [one for one in found if not is_nothing(one)]

    def paths(self) -> Iterator[str]:
        """The columns, then the parts of those that are nested."""
        yield from self.columns
        for name in self.columns:
            inner = [one for one in self.values(name) if isinstance(one, Mapping)]
            yield from dict.fromkeys(f"{name}.{key}" for one in inner for key in one)

    def texts(self) -> list[str]:
        """The columns of text."""
        return [name for name in self.columns if _most(self.values(name), _is_text)]

    def of_names(self, names: Sequence[str]) -> str | None:
        """The text column that has one of the names, in any case; the first name wins."""
        texts = {name.strip().casefold(): name for name in reversed(self.texts())}
        return next((texts[name] for name in names if name in texts), None)

    def read(self, path: str) -> str:
        """The Python that takes a value from `row`."""
        name, _, key = path.partition(".") if path not in self.columns else (path, "", "")
        is_json = _most([row.get(name) for row in self.raw], _is_text)
        value = f"row[{_python(name)}]"
        value = f"json.loads({value})" if is_json else value
        return f"{value}[{_python(key)}]" if key else value


# --- trees, pairs of answers ----------------------------------------------------------------------


def _oasst_tree(head: Head) -> Layout | None:
    """{"prompt": {"text": ..., "role": ..., "replies": [{...}]}}: a tree in each row."""
    trees = head.values("prompt")
    if not _most(trees, lambda one: isinstance(one, Mapping) and {"text", "replies"} <= {*one}):
        return None
    roles = _roles(["prompter", "assistant"], "messages")
    name = "trees of replies (OpenAssistant)"
    return _by_function(head, name, _OASST_TREE, roles, turns=head.read("prompt"))


def _oasst_messages(head: Head) -> Layout | None:
    """{"message_id", "parent_id", "text", "role"}: a message in each row."""
    if not {"message_id", "parent_id", "text", "role"} <= {*head.columns}:
        return None
    settings = {
        "dataset": "function",
        "dataset.function": f"{MODULE}.rows",
        "format": "messages",
        **_roles(dict.fromkeys(map(str, head.values("role"))), "messages"),
        "allowed_targets": [MODULE],
    }
    name = "messages of trees, one a row (OpenAssistant)"
    return Layout(name, settings, _OASST_MESSAGES)


def _preference(head: Head) -> Layout | None:
    """{"chosen", "rejected"}, with or without a prompt: the chosen answer is trained."""
    if not {"chosen", "rejected"} <= {*head.columns}:
        return None
    chosen, name = head.values("chosen"), "pairs of a chosen and a rejected answer"
    question = head.of_names(_QUESTIONS)
    if _most(chosen, _is_text):
        if question:
            return Layout(name, _pair_settings(head, question, "chosen"))
        return _marked(head, ["chosen"])
    is_one_turn = _most(chosen, lambda one: isinstance(one, Mapping))
    answers = chosen if is_one_turn else _turns_in(head, "chosen")
    keys = _keys_of(answers)
    if keys is None:
        return None
    if not is_one_turn and not _most(chosen, lambda one: _begins_with_answer(one, keys[0])):
        return Layout(name, _turn_settings(head, "chosen"))
    others = [path for path in head.paths() if path not in ("chosen", "rejected")]
    before = next((path for path in others if _is_chat(head, path)), None)
    if before == "prompt" and keys == ("role", "content") and not is_one_turn:
        return Layout(name, {"format": "prompt_completion", "dataset.columns.completion": "chosen"})
    if before is None and question is None:
        return None
    first = f"*{head.read(before)}" if before else _turn(keys, "user", str(question))
    last = f"{'' if is_one_turn else '*'}{head.read('chosen')}"
    said = _said([*(_turns_in(head, before) if before else ()), *answers], keys[0])
    settings = {**_fields(keys), **_roles(said, "messages")}
    return _by_function(head, name, _TURNS, settings, turns=f"[{first}, {last}]")


def _begins_with_answer(turns: Any, key: str) -> bool:
    first = turns[0].get(key) if _is_list_of(turns, Mapping) else None
    return _ROLE_NAMES.get(str(first).casefold()) == "assistant"


# --- conversations --------------------------------------------------------------------------------


def _prompt_completion(head: Head) -> Layout | None:
    """{"prompt", "completion"}: two strings, or two lists of messages."""
    values = [head.values(name) for name in ("prompt", "completion")]
    if all(_most(one, _is_text) for one in values) or all(_most(one, _are_turns) for one in values):
        return Layout("prompts and completions", {"format": "prompt_completion"})
    return None


def _turns(head: Head) -> Layout | None:
    """Lists of turns under any name, one step down too."""
    paths = sorted(head.paths(), key=lambda path: _rank(path.rpartition(".")[2], _CHATS))
    path = next((one for one in paths if one not in _NO_TURNS and _is_chat(head, one)), None)
    if path is None:
        return None
    turns = _turns_in(head, path)
    keys = _keys_of(turns) or ("role", "content")
    said = list(_said(turns, keys[0]))
    name = "ShareGPT turns" if keys == ("from", "value") else f"turns of {keys[0]} and {keys[1]}"
    settings = {**_fields(keys), **_roles(said, "messages")}
    parts = {"turns": head.read(path), "role": _python(keys[0])}
    if _most(head.values(path), _ends_with_question, keys[0]):
        return _answered(head, path, keys, settings)
    free = [_has_free_tools(one, keys[0]) for one in head.values(path)]
    if 2 * sum(free) >= len(free):
        parts |= {
            "content": _python(keys[1]),
            "users": _python([one for one in said if _asks(one)]),
        }
        name += " with results of tools that no turn calls"
        return _by_function(head, name, _FREE_TOOLS, settings, **parts)
    if any(_role_of(one, said) and not _plain_key(one) for one in said):  # no override names it
        parts["roles"] = _python({one: role for one in said if (role := _role_of(one, said))})
        return _by_function(head, name, _OTHER_ROLES, _fields(keys), **parts)
    return Layout(name, _turn_settings(head, path))


def _answered(
    head: Head, path: str, keys: tuple[str, str], settings: Mapping[str, Any]
) -> Layout | None:
    """Turns that end with the user's, whose answer is in a column of its own."""
    answer = head.of_names(_ANSWERS)
    if answer is None:
        return None
    last = _turn(keys, "assistant", answer)
    turns = f"[*{head.read(path)}, {last}]"
    name = f"turns of {keys[0]} and {keys[1]} with their answer in {answer!r}"
    return _by_function(head, name, _TURNS, settings, turns=turns)


def _turn(keys: tuple[str, str], role: str, column: str) -> str:
    """The Python of a turn whose text is in a column."""
    return f"{{{_python(keys[0])}: {_python(role)}, {_python(keys[1])}: row[{_python(column)}]}}"


def _lists(head: Head) -> Layout | None:
    """Lists of texts that user and assistant say in turn (LIMA), or of pairs of them."""
    paths = sorted(head.paths(), key=lambda path: _rank(path.rpartition(".")[2], _CHATS))
    for path in (one for one in paths if one not in _NO_TURNS):
        values = head.values(path)
        is_lima = path.rpartition(".")[2] in _CHATS  # elsewhere they are answers or tags
        if is_lima and _most(values, lambda one: _is_list_of(one, str) and len(one) > 1):
            name = "lists of texts, said in turn (LIMA)"
            return _by_function(head, name, _LIMA, {}, turns=head.read(path))
        items = [item for one in values if isinstance(one, list) for item in one]
        pair = next((one for one in _PAIRS if _most(items, _has, one)), None)
        if pair is not None:
            parts = {
                "turns": head.read(path),
                "question": _python(pair[0]),
                "answer": _python(pair[1]),
            }
            name = "lists of questions with their answers"
            return _by_function(head, name, _LIST_OF_PAIRS, {}, **parts)
    return None


# --- a question and an answer ---------------------------------------------------------------------


def _squad(head: Head) -> Layout | None:
    """{"context", "question", "answers": {"text": [...]}}, or a list of answers."""
    question, answers = head.of_names(_QUESTIONS), head.values("answers")
    in_lists = _most(answers, lambda one: _is_list_of(one, str))
    in_texts = _most(answers, lambda one: isinstance(one, Mapping) and "text" in one)
    if question is None or not (in_lists or in_texts):
        return None
    answer = head.read("answers" if in_lists else "answers.text") + "[0]"
    context = head.of_names(_INPUTS)
    asked = f"row[{_python(question)}]"
    context = head.of_names([name for name in _INPUTS if name != question.casefold()])
    if context is not None:
        asked = f'row[{_python(context)}] + "\\n\\n" + {asked}'
    name = "questions with lists of answers (SQuAD)"
    return _by_function(head, name, _SQUAD, {}, question=asked, answer=answer)


def _pair(head: Head) -> Layout | None:
    """A question, perhaps an input, and an answer, under any names (Alpaca, Dolly, GSM8K, ...)."""
    pairs = [(_QUESTIONS, _ANSWERS), *(([one], [other]) for one, other in _COUPLES)]
    named = ((head.of_names(one), head.of_names(other)) for one, other in pairs)
    question, answer = next((both for both in named if all(both)), (None, None))
    if question is None or answer is None:
        return None
    settings = _pair_settings(head, question, answer)
    if (question, answer) == ("instruction", "output"):
        return Layout("Alpaca's instructions and outputs", settings)
    extra = settings.get("dataset.columns.input")
    columns = [question, *([extra] if extra else []), answer]
    return Layout(f"questions and answers in the columns {', '.join(columns)}", settings)


def _pair_settings(head: Head, question: str, answer: str) -> dict[str, Any]:
    """What reads a question and an answer; a system text under another name goes with them."""
    taken = (question.casefold(), answer.casefold())
    names = {
        "instruction": question,
        "input": head.of_names([name for name in _INPUTS if name not in taken]),
        "output": answer,
        "system": head.of_names(_SYSTEMS),
    }
    columns = {ours: theirs for ours, theirs in names.items() if theirs not in (None, ours)}
    return {"format": "instruction"} | {f"dataset.columns.{one}": columns[one] for one in columns}


# --- finished texts -------------------------------------------------------------------------------


def _marked(head: Head, names: Sequence[str] = ()) -> Layout | None:
    """Finished texts with markers of turns in them (guanaco, ChatML, ...)."""
    for name in names or sorted(head.texts(), key=lambda one: _rank(one, _TEXTS)):
        for asked, answered in _MARKERS:
            if _most(head.values(name), _holds, asked, answered):
                return Layout(
                    f"finished texts with {answered.strip()!r} before each answer",
                    {
                        **_text_settings(name),
                        "loss": "response_template",
                        "loss.response_template": answered,
                        "loss.instruction_template": asked,
                    },
                )
    return None


def _text(head: Head) -> Layout | None:
    """Finished texts, in a column of a known name or in the only one that holds text."""
    name, texts = head.of_names(_TEXTS), head.texts()
    if name is None and len(texts) == 1 and texts[0].casefold() not in (*_QUESTIONS, *_ANSWERS):
        # a name or an id is no text
        name = texts[0] if _most(head.values(texts[0]), _has_words) else None
    if name is None:
        return None
    return Layout("finished texts", {**_text_settings(name), "loss": "full"})


def _text_settings(name: str) -> dict[str, Any]:
    return {"format": "text", **({} if name == "text" else {"format.text_field": name})}


# --- one JSON object for a whole table ------------------------------------------------------------


def _rows_under_a_key(head: Head) -> Layout | None:
    """{"data": [{...}, {...}]}: one row, whose column holds the rows."""
    if len(head.rows) != 1:
        return None
    keys = (name for name in head.columns if _is_list_of(head.rows[0][name], Mapping))
    others = (*_CHATS, *_NO_TURNS)
    key = next((name for name in keys if name not in others and not _is_chat(head, name)), None)
    if key is None:
        return None
    name = f"one object with a list of rows under {key!r}"
    return Layout(name, note="write that list into a file of its own")


def _by_columns(head: Head) -> Layout | None:
    """{"question": {"0": ..., "1": ...}, "answer": {...}}: a table by its columns."""
    if len(head.rows) != 1:
        return None
    values = list(head.rows[0].values())
    numbered = all(
        isinstance(one, Mapping) and one and all(map(str.isdigit, one)) for one in values
    )
    listed = all(_is_list_of(one, str) and len(one) == len(values[0]) for one in values)
    if not values or not (numbered or (listed and len(values) > 1)):
        return None
    name = "a table by columns, {column: its values}"
    return Layout(name, note="write it as rows: orient='records', lines=True in pandas")


# first match wins: what is told by names that nothing else has, then turns, then pairs, then texts
_RECOGNISERS: tuple[Callable[[Head], Layout | None], ...] = (
    _by_columns,
    _oasst_tree,
    _oasst_messages,
    _preference,
    _prompt_completion,
    _turns,
    _rows_under_a_key,
    _squad,
    _pair,
    _lists,
    _marked,
    _text,
)


# --- names ----------------------------------------------------------------------------------------

_CHATS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
_NO_TURNS = ("tools", "functions", "history", "rejected")  # lists that are no conversation
_ROLE_KEYS = ("role", "from", "speaker", "user", "author", "sender")
_TEXT_KEYS = ("content", "value", "text", "utterance", "message", "body", "parts")
_PAIRS: tuple[tuple[Any, Any], ...] = (  # of one item of a list
    *(("human", "assistant"), ("user", "assistant"), ("user", "bot")),
    *(("question", "answer"), ("input", "output"), (0, 1)),
)
_QUESTIONS = (
    *("instruction", "question", "query", "prompt", "problem", "input"),
    *("질문", "질의", "지시", "지시문", "명령", "명령어", "문제", "입력", "質問", "指示", "问题"),
)
_ANSWERS = (
    *("output", "response", "completion", "solution", "answer", "target", "reply"),
    *("답변", "출력", "응답", "대답", "정답", "해답", "풀이", "답", "回答", "出力", "答案"),
)
_COUPLES = (  # names that mean a question and an answer only beside each other
    *(("user", "assistant"), ("human", "assistant"), ("user", "bot"), ("q", "a")),
    *(("source", "target"), ("dialogue", "summary"), ("document", "summary")),
    *(("article", "summary"), ("article", "highlights"), ("text", "summary")),
)
_INPUTS = ("input", "context", "passage", "맥락", "문맥", "본문", "입력")
_SYSTEMS = ("system", "system_prompt", "system_message", "시스템")
_TEXTS = ("text", "content", "document", "article", "story", "passage", "body", "raw", "본문")
_ROLE_NAMES = {
    **dict.fromkeys(("human", "prompter", "customer", "questioner", "사용자", "질문자"), "user"),
    **dict.fromkeys(
        ("gpt", "chatgpt", "bing", "bard", "model", "bot", "ai", "claude"), "assistant"
    ),
    **dict.fromkeys(("agent", "chatbot", "도우미", "챗봇", "답변자"), "assistant"),
    **dict.fromkeys(("observation", "function", "function_response", "ipython"), "tool"),
    **{role: role for role in ROLES},
}
# roles that a format knows by itself
_KNOWN = {
    "messages": {*ROLES, "function"},
    "sharegpt": {*ROLES, "function", "human", "gpt", "observation", "function_call"},
}
# what stands before a question and before an answer, in finished texts
_MARKERS = (
    ("<|im_start|>user\n", "<|im_start|>assistant\n"),
    ("<|user|>\n", "<|assistant|>\n"),
    ("<start_of_turn>user\n", "<start_of_turn>model\n"),
    ("[INST]", "[/INST]"),
    ("### Human:", "### Assistant:"),
    ("### User:", "### Assistant:"),
    ("### Instruction:", "### Response:"),
    ("### Question:", "### Answer:"),
    ("### 명령어:", "### 응답:"),
    ("### 질문:", "### 답변:"),
    ("### 指示:", "### 応答:"),
    ("USER:", "ASSISTANT:"),
    ("Human:", "Assistant:"),
)


# --- functions to paste ---------------------------------------------------------------------------

_TURNS = """\
def to_messages(row):
    turns = $turns
    return $returned"""
_LIMA = """\
def to_messages(row):
    texts = $turns
    roles = ["user", "assistant"] * len(texts)
    turns = [{"role": role, "content": text} for role, text in zip(roles, texts)]
    return $returned"""
_LIST_OF_PAIRS = """\
def to_messages(row):
    turns = []
    for pair in $turns:
        turns.append({"role": "user", "content": pair[$question]})
        turns.append({"role": "assistant", "content": pair[$answer]})
    return $returned"""
_OTHER_ROLES = """\
ROLES = $roles
def to_messages(row):
    turns = [dict(turn) for turn in $turns]
    for turn in turns:
        turn[$role] = ROLES.get(turn[$role], turn[$role])
    return $returned"""
_FREE_TOOLS = """\
def to_messages(row):
    turns = []
    for turn in $turns:
        if turn[$role] in ("tool", "function", "observation") and turns[-1][$role] in $users:
            turns[-1][$content] += "\\n" + turn[$content]  # a part of what the user says
        else:
            turns.append(dict(turn))
    return $returned"""
_SQUAD = """\
def to_messages(row):
    question, answer = $question, $answer
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return $returned"""
_OASST_TREE = """\
def to_messages(row):
    turn, turns = $turns, []
    while turn:  # down the best reply to each turn
        turns.append({"role": turn["role"], "content": turn["text"]})
        turn = min(turn["replies"], key=lambda reply: reply.get("rank") or 0, default=None)
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    return $returned"""
_OASST_MESSAGES = """\
import json
FILE = "messages.jsonl"  # the name of your file
def rows():
    with open(FILE, encoding="utf-8") as lines:
        all_turns = {turn["message_id"]: turn for turn in map(json.loads, lines)}
    answers = [turn for turn in all_turns.values() if turn["role"] == "assistant"]
    asked = [all_turns.get(answer["parent_id"], {}) for answer in answers]
    answered = {question.get("parent_id") for question in asked}
    for turn in answers:
        if turn["message_id"] not in answered:  # the last answer on its way
            turns = []
            while turn:
                turns.insert(0, {"role": turn["role"], "content": turn["text"]})
                turn = all_turns.get(turn["parent_id"])
            yield {"messages": turns}"""


def _by_function(
    head: Head, name: str, code: str, settings: Mapping[str, Any], **parts: str
) -> Layout:
    """A layout that a function reads.

    Args:
        head: for the columns that go with the turns.
        name: of the layout.
        code: of the function, with `$part`s.
        settings: further keys of its format.
        parts: {part of the code: Python}.
    """
    columns = [f'"{name}": row.get("{name}")' for name in ("tools",) if name in head.columns]
    system = head.of_names(_SYSTEMS)
    columns += [f'"system": row.get({_python(system)})'] if system else []
    returned = "{" + ", ".join(['"messages": turns', *columns]) + "}"
    code = Template(code).substitute(parts, returned=returned)
    if "json.loads" in code:
        code = f"import json\n{code}"
    function = {"format": "function", "format.function": f"{MODULE}.to_messages"}
    return Layout(name, {**function, **settings, "allowed_targets": [MODULE]}, code)


# --- turns ----------------------------------------------------------------------------------------


def _turn_settings(head: Head, path: str) -> dict[str, Any]:
    """What reads a list of turns."""
    turns = _turns_in(head, path)
    keys = _keys_of(turns) or ("role", "content")
    said = _said(turns, keys[0])
    sharegpt = keys == ("from", "value") or "function_call" in said
    kind, column = ("sharegpt", "conversations") if sharegpt else ("messages", "messages")
    settings: dict[str, Any] = {"format": kind}
    if path != column:
        settings[f"dataset.columns.{column}"] = path
    system = head.of_names(_SYSTEMS)
    if system not in (None, "system"):
        settings["dataset.columns.system"] = system
    usual = ("from", "value") if sharegpt else ("role", "content")
    return {**settings, **_fields(keys, usual), **_roles(said, kind)}


def _fields(keys: tuple[str, str], usual: tuple[str, str] = ("role", "content")) -> dict[str, str]:
    """Keys of turns that a format does not know by itself."""
    named = zip(("role", "content"), keys, usual, strict=True)
    return {f"format.fields.{ours}": theirs for ours, theirs, known in named if theirs != known}


def _roles(said: Iterator[str] | Sequence[str] | Mapping[str, Any], kind: str) -> dict[str, str]:
    """Roles that a format does not know by itself."""
    names = list(said)
    found = {one: _role_of(one, names) for one in names if one not in _KNOWN[kind]}
    return {f"format.roles.{one}": role for one, role in found.items() if role and _plain_key(one)}


def _role_of(name: str, said: Sequence[str]) -> str | None:
    """The role that a name stands for.

    Names that say nothing are those of who is missing; of two such names the first one asks.
    """
    known = [one for one in said if one.casefold() in _ROLE_NAMES]
    others = [one for one in said if one not in known]
    if name in known:
        return _ROLE_NAMES[name.casefold()]
    roles = {_ROLE_NAMES[one.casefold()] for one in known}
    missing = [role for role in ("user", "assistant") if role not in roles]
    return missing[others.index(name)] if len(others) == len(missing) else None


def _plain_key(name: str) -> bool:
    """True if an override can name such a key."""
    return bool(re.fullmatch(r"[\w-]+", name, re.ASCII))


def _is_chat(head: Head, path: str) -> bool:
    return _most(head.values(path), _are_turns)


def _are_turns(value: Any) -> bool:
    return _is_list_of(value, Mapping) and _keys_of(value) is not None


def _turns_in(head: Head, path: str) -> list[Row]:
    lists = (one for one in head.values(path) if isinstance(one, list))
    return [turn for one in lists for turn in one if isinstance(turn, Mapping)]


def _keys_of(turns: Sequence[Any]) -> tuple[str, str] | None:
    """The keys of a turn that say its role and its text."""
    keys = {key for turn in turns if isinstance(turn, Mapping) for key in turn}
    role = next((one for one in _ROLE_KEYS if one in keys), None)
    text = next((one for one in _TEXT_KEYS if one in keys), None)
    return (role, text) if role and text else None


def _said(turns: Sequence[Row], key: str) -> dict[str, None]:
    """The names of roles, in the order of the file."""
    return dict.fromkeys(str(turn[key]) for turn in turns if not is_nothing(turn.get(key)))


def _has_free_tools(turns: Any, key: str) -> bool:
    """True if a tool speaks right after the user."""
    said = [str(one.get(key)).casefold() for one in turns if isinstance(one, Mapping)]
    roles = [_ROLE_NAMES.get(one, "") for one in said]
    return ("user", "tool") in pairwise(roles)


def _ends_with_question(turns: Any, key: str) -> bool:
    return _is_list_of(turns, Mapping) and _asks(str(turns[-1].get(key)))


def _asks(name: str) -> bool:
    return _ROLE_NAMES.get(name.casefold()) == "user"


# --- values ---------------------------------------------------------------------------------------


def _most(values: Sequence[Any], test: Callable[..., bool], *arguments: Any) -> bool:
    """True if three of four values pass: a file with bad rows is still what it is."""
    passed = sum(test(value, *arguments) for value in values)
    return bool(values) and 4 * passed >= 3 * len(values)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _has_words(value: Any) -> bool:
    return _is_text(value) and len(value.split()) > 2


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, kind) for one in value)


def _has(value: Any, pair: Sequence[Any]) -> bool:
    if pair == (0, 1):
        return _is_list_of(value, str) and len(value) == 2
    return isinstance(value, Mapping) and all(_is_text(value.get(key)) for key in pair)


def _holds(text: Any, asked: str, answered: str) -> bool:
    return isinstance(text, str) and -1 < text.find(asked) < text.rfind(answered)


def _rank(name: str, names: Sequence[str]) -> int:
    return names.index(name) if name in names else len(names)


def _nested(value: Any) -> Any:
    """A value, or that of the JSON of a list or mapping in a string."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _python(value: Any) -> str:
    """A text, a number, or a list or mapping of them, as Python with double quotes."""
    return json.dumps(value, ensure_ascii=False)


def _in_hydra(value: Any) -> str:
    """A value in Hydra's syntax."""
    if isinstance(value, list):
        return f"[{','.join(map(_in_hydra, value))}]"
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS_OF_HYDRA:
        return str(value)
    quoted = value.replace("'", r"\'")
    return f"'{quoted}'"


def _value_of(cfg: TrainConfig, key: str) -> Any:
    """What a config has under a key; of a group its type."""
    found: Any = cfg
    for name in key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else getattr(found, name, None)
    return getattr(found, "path" if key == "dataset" else "type", found)
