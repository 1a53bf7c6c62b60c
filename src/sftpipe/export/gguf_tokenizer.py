"""The tokenizer of a folder in the terms of GGUF, or the reason why llama.cpp cannot have it.

llama.cpp does not read a tokenizer.json: it has one program for bytes and merges ("gpt2") and one
for pieces with a space sign ("llama"), and takes texts apart by the name of a pre-tokenizer. So
everything that a tokenizer.json says is compared with what those programs do; what they would do
otherwise is refused here, because the file would load and give other ids.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sftpipe.errors import ExportError, Problem

if TYPE_CHECKING:
    from gguf import GGUFWriter

_WAY_OUT = "`export=merged` writes plain weights, which hold every tokenizer"
_SPACE = "\u2581"
# roles of tokenizer_config.json -> how the writer of GGUF calls them
_ROLES = {"bos_token": "bos", "eos_token": "eos", "pad_token": "pad", "unk_token": "unk"}
_STOPS = ("eos", "eot", "eom")  # the places that GGUF has for a token that ends an answer
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# of a tokenizer with tokens that take the white space after them, those that do not (llama.cpp
# knows it of the files whose name says Phi-3, and of no other)
_TAKE_NO_SPACE = ("<unk>", "<s>", "<|endoftext|>")


def _split(pattern: str) -> dict[str, Any]:
    regex = {"Regex": pattern}
    return {"type": "Split", "pattern": regex, "behavior": "Isolated", "invert": False}


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}


@dataclass(frozen=True)
class _Pre:
    """A way to take texts apart that llama.cpp has by name.

    steps: `pre_tokenizer` of tokenizer.json as a list, without what changes no id.
    normalizers: what `normalizer` may be. NFC is let pass where the published models have it:
        llama.cpp lacks it, so that text which is not NFC yet gets other ids there.
    ignore_merges: of the model, which llama.cpp decides by the name as well.
    """

    steps: list[dict[str, Any]]
    normalizers: tuple[Any, ...] = (None,)
    ignore_merges: bool = False


_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
PRE_TOKENIZERS = {
    "gpt-2": _Pre([_byte_level(True)]),
    "smollm": _Pre([{"type": "Digits", "individual_digits": True}, _byte_level(True)]),
    "llama-bpe": _Pre([_split(_LLAMA3), _byte_level(False)], ignore_merges=True),
    "qwen2": _Pre([_split(_QWEN2), _byte_level(False)], normalizers=(None, {"type": "NFC"})),
}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
# normalizer and pre_tokenizer of pieces -> whether a space is put in front of a text
_SPACE_PREFIX: list[tuple[list[dict[str, Any]], list[dict[str, Any]], bool]] = [
    ([{"type": "Prepend", "prepend": _SPACE}, _REPLACE], [], True),
    ([_REPLACE], [], False),
    *(
        (
            [],
            [
                {
                    "type": "Metaspace",
                    "replacement": _SPACE,
                    "prepend_scheme": scheme,
                    "split": False,
                }
            ],
            scheme == "always",
        )
        for scheme in ("always", "never")
    ),
]


@dataclass(frozen=True)
class GgufTokenizer:
    """What GGUF holds of a tokenizer.

    model: `gpt2` or `llama`, the program that llama.cpp runs.
    pre: the name of its pre-tokenizer.
    tokens: by id; the ids that no token has are filled up.
    types: of each token, a number of `gguf.TokenType`.
    merges: of `gpt2`, the earliest first.
    scores: of `llama`; the pair whose token has the highest is merged first.
    ids: {bos, eos, eot, eom, pad, unk: id}, of those that there are.
    add_bos: llama.cpp puts BOS in front of what it is given.
    add_space_prefix: of `llama`, a space goes in front of a text and after each special token.
    takes_space: special tokens take the white space after them, as those of Phi-3.
    chat_template: of the tokenizer, "" without one.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    ids: dict[str, int]
    add_bos: bool
    add_space_prefix: bool
    takes_space: bool
    chat_template: str

    def write(self, writer: GGUFWriter, rows: int) -> None:
        """Hand everything to a writer of GGUF.

        Args:
            writer: before its header is written.
            rows: of the embedding; those after the last token are named and never read.

        Raises:
            ExportError: there are fewer rows than tokens.
        """
        from gguf import TokenType

        spare = rows - len(self.tokens)
        if spare < 0:
            found = f"{len(self.tokens)} tokens, and {rows} rows of the embedding"
            raise ExportError(Problem("tokenizer", found, fix="export the run itself again"))
        names = _filler(self.tokens, range(len(self.tokens), rows))
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list([*self.tokens, *names])
        writer.add_token_types([*self.types, *[int(TokenType.UNUSED)] * spare])
        writer.add_token_merges(self.merges)
        if self.scores:
            writer.add_token_scores([*self.scores, *[self.scores[-1]] * spare])
            writer.add_add_space_prefix(self.add_space_prefix)
            writer.add_remove_extra_whitespaces(False)
        for role, number in self.ids.items():
            getattr(writer, f"add_{role}_token_id")(number)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(False)
        writer.add_chat_template(self.chat_template)


def read_tokenizer(folder: Path) -> GgufTokenizer:
    """The tokenizer of a transformers folder, in the terms of GGUF.

    BOS: with a chat template, a prompt is what the template writes, as in training, so BOS is added
    only where both the template and the tokenizer write it (llama.cpp then takes it off the text
    first); without one, where the tokenizer adds it. EOS is never added to a prompt.

    Args:
        folder: with tokenizer.json, tokenizer_config.json, and where they are there
            chat_template.jinja and generation_config.json.

    Raises:
        ExportError: llama.cpp has nothing that gives the same ids.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        _refuse("no tokenizer.json: it is no fast tokenizer")
    whole = json.loads(file.read_text(encoding="utf-8"))
    config = _json(folder / "tokenizer_config.json")
    kind = _kind(whole)
    merges = _merges(whole["model"])
    tokens, added = _tokens(whole)
    ids = _special_ids(config, tokens, stop_ids(folder))
    template = _template(folder, config)
    bos = next((text for text, number in tokens.items() if number == ids.get("bos")), "")
    _check_bos_of_template(template, bos)
    writes_bos = not template or "bos_token" in template or bos in template
    names, pieces = _by_id(tokens), kind == "llama"
    return GgufTokenizer(
        model=kind,
        pre="default" if pieces else _pre(whole),
        tokens=names,
        types=_types(names, tokens, added, ids if pieces else {}),
        merges=[] if pieces else [" ".join(pair) for pair in merges],
        scores=_scores(merges, tokens, added) if pieces else [],
        ids={"bos": ids["eos"], **ids},  # without its key, llama.cpp takes token 11 for BOS
        add_bos=_adds_bos(file, ids.get("bos")) and writes_bos,
        add_space_prefix=pieces and _space_prefix(whole),
        takes_space=_takes_space(added, tokens, _normalizes(whole)),
        chat_template=template,
    )


def _refuse(found: str, allowed: str = "") -> NoReturn:
    raise ExportError(Problem("tokenizer", found, allowed=allowed, fix=_WAY_OUT))


def _json(file: Path) -> dict[str, Any]:
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    assert isinstance(found, dict)
    return found


def _kind(whole: Mapping[str, Any]) -> str:
    """`llama` or `gpt2`."""
    model = whole["model"]
    allowed = "bytes and merges (byte-level BPE), or pieces and merges with byte fallback"
    if model.get("type") != "BPE":
        _refuse(f"a tokenizer of type {model.get('type')}, which GGUF does not hold", allowed)
    if model.get("byte_fallback"):
        return "llama"
    steps = _steps(whole.get("pre_tokenizer"), "pretokenizers")
    if not any(step["type"] == "ByteLevel" for step in steps):
        _refuse("one token a character, or merges of characters: GGUF has no such kind", allowed)
    return "gpt2"


def _steps(value: Any, name: str) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as a list of steps, without what changes no id."""
    if value is None:
        return []
    if value["type"] == "Sequence":
        return [step for part in value[name] for step in _steps(part, name)]
    step = {key: part for key, part in value.items() if key != "trim_offsets"}
    if step["type"] == "ByteLevel":
        step.setdefault("use_regex", True)
    if step["type"] == "Metaspace":
        step.pop("str_rep", None)
        step.pop("add_prefix_space", None)
    return [step]


def _pre(whole: Mapping[str, Any]) -> str:
    """The name that llama.cpp has for how a byte-level tokenizer takes texts apart."""
    steps = _steps(whole.get("pre_tokenizer"), "pretokenizers")
    normalizer, ignore = whole.get("normalizer"), bool(whole["model"].get("ignore_merges"))
    for name, pre in PRE_TOKENIZERS.items():
        same = steps == pre.steps and normalizer in pre.normalizers
        if same and ignore == pre.ignore_merges:
            return name
    found = {"pre_tokenizer": steps, "normalizer": normalizer, "ignore_merges": ignore}
    _refuse(
        f"{json.dumps(found, ensure_ascii=False)}, for which no name of llama.cpp is known here",
        f"what these have: {', '.join(PRE_TOKENIZERS)}",
    )


def _space_prefix(whole: Mapping[str, Any]) -> bool:
    """Whether a tokenizer of pieces puts a space in front of a text, and after special tokens."""
    normalizer = _steps(whole.get("normalizer"), "normalizers")
    steps = _steps(whole.get("pre_tokenizer"), "pretokenizers")
    for normal, pre, prefix in _SPACE_PREFIX:
        if normalizer == normal and steps == pre:
            return prefix
    found = {"normalizer": normalizer, "pre_tokenizer": steps}
    _refuse(
        f"{json.dumps(found, ensure_ascii=False)}, which llama.cpp does not do",
        "a space in front of every text and after every special token (Prepend, or Metaspace with "
        "prepend_scheme always), or nowhere, with pieces that are not split at spaces",
    )


def _tokens(whole: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, dict[str, Any]]]:
    """{token: id} of all, and what tokenizer.json says of those that are added."""
    tokens = dict(whole["model"]["vocab"])
    added = {entry["content"]: entry for entry in whole.get("added_tokens", ())}
    tokens.update({text: entry["id"] for text, entry in added.items()})
    return tokens, added


def _by_id(tokens: Mapping[str, int]) -> list[str]:
    by_id = {number: text for text, number in tokens.items()}
    gaps = [number for number in range(max(by_id) + 1) if number not in by_id]
    by_id.update(zip(gaps, _filler(tokens, gaps), strict=True))
    return [by_id[number] for number in sorted(by_id)]


def _filler(tokens: Iterable[str], ids: Iterable[int]) -> list[str]:
    """Names for ids that no token has; llama.cpp wants each name once."""
    known = set(tokens)
    names = [f"[PAD{number}]" for number in ids]
    return [f"<{name}>" if name in known else name for name in names]


def _types(
    names: list[str],
    tokens: Mapping[str, int],
    added: Mapping[str, Mapping[str, Any]],
    pieces_ids: Mapping[str, int],
) -> list[int]:
    """A number of `gguf.TokenType` for each token; UNK and bytes are types of pieces alone."""
    from gguf import TokenType

    types = [TokenType.NORMAL if name in tokens else TokenType.UNUSED for name in names]
    if pieces_ids:
        if "unk" not in pieces_ids:
            _refuse("pieces without an UNK token")
        for name in _BYTES:
            if name not in tokens:
                _refuse(f"byte fallback without the token {name}")
            types[tokens[name]] = TokenType.BYTE
    for name, entry in added.items():
        special = TokenType.CONTROL if entry["special"] else TokenType.USER_DEFINED
        types[tokens[name]] = special
    if pieces_ids:
        types[pieces_ids["unk"]] = TokenType.UNKNOWN
    return [int(kind) for kind in types]


def _normalizes(whole: Mapping[str, Any]) -> bool:
    return any(step["type"] != "NFC" for step in _steps(whole.get("normalizer"), "normalizers"))


def _takes_space(
    added: Mapping[str, Mapping[str, Any]], tokens: Mapping[str, int], normalizes: bool
) -> bool:
    """Whether the added tokens take the white space after them, in the one way of llama.cpp."""
    for text, entry in added.items():
        for key in ("lstrip", "single_word"):
            if entry.get(key):
                _refuse(f"the token {text!r} has {key}, which llama.cpp does not do")
        if entry.get("normalized") and normalizes:
            _refuse(f"the token {text!r} is looked for in normalized text; llama.cpp does not")
    takes = {text for text, entry in added.items() if entry.get("rstrip")}
    if not takes:
        return False
    wrong = sorted(
        {text for text in added if text not in takes and text not in _TAKE_NO_SPACE}
        | takes.intersection(_TAKE_NO_SPACE)
    )
    if wrong or not set(tokens).issuperset((*_TAKE_NO_SPACE, "</s>")):
        which = f"; {wrong[0]!r} is against it" if wrong else ""
        _refuse(
            "some added tokens take the white space after them (rstrip) and others do not, in "
            f"another way than Phi-3's, the only one of llama.cpp{which}"
        )
    return True


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs, the earliest first; old files hold them as one text with a space."""
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            _refuse(f"{key} = {model[key]!r} of tokenizer.json, which llama.cpp does not have")
    if not model["merges"]:
        _refuse("no merges, without which llama.cpp does not load it")
    pairs = (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"])
    return [(left, right) for left, right in pairs]


def _scores(
    merges: list[tuple[str, str]], tokens: Mapping[str, int], added: Mapping[str, Any]
) -> list[float]:
    """Scores with which llama.cpp merges in the order of the merges.

    It merges any two neighbours that make a token together, the token with the highest score first.
    That is what the merges do if each split of a token into two is among them, and those that make
    one token are neighbours in their order.
    """
    listed, ranks = set(merges), dict[str, int]()
    last = ""
    for rank, (left, right) in enumerate(merges):
        made = left + right
        if made in ranks and made != last:
            _refuse(
                f"the merges that make {made!r} stand apart from each other; a score cannot say "
                "that order"
            )
        ranks.setdefault(made, rank)
        last = made
    for text in tokens:
        if text in added:
            continue
        for end in range(1, len(text)):
            pair = text[:end], text[end:]
            if pair[0] in tokens and pair[1] in tokens and pair not in listed:
                _refuse(
                    f"llama.cpp would merge {pair[0]!r} and {pair[1]!r}, which the merges of "
                    "tokenizer.json do not"
                )
    names = _by_id(tokens)
    return [float(-ranks.get(name, len(merges))) for name in names]


def _special_ids(
    config: Mapping[str, Any], tokens: Mapping[str, int], stops: list[int]
) -> dict[str, int]:
    ids = {}
    for key, role in _ROLES.items():
        value = config.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        if text is not None and text in tokens:
            ids[role] = tokens[text]
    if "eos" not in ids:
        _refuse("no EOS token, and llama.cpp would stop at some other one")
    stops = [ids["eos"], *(number for number in dict.fromkeys(stops) if number != ids["eos"])]
    if len(stops) > len(_STOPS):
        _refuse(f"{len(stops)} tokens that end an answer, and GGUF has places for {len(_STOPS)}")
    return ids | dict(zip(_STOPS, stops, strict=False))


def stop_ids(folder: Path) -> list[int]:
    """The tokens at which generation stops, as a transformers folder says them."""
    for name in ("generation_config.json", "config.json"):
        found = _json(folder / name).get("eos_token_id")
        if found is not None:
            return list(found) if isinstance(found, list) else [found]
    return []


def _template(folder: Path, config: Mapping[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = config.get("chat_template") or ""
    if isinstance(found, list):  # several by name
        found = next((entry["template"] for entry in found if entry["name"] == "default"), "")
    return str(found)


def _check_bos_of_template(template: str, bos: str) -> None:
    if "bos_token" in template and not bos:
        _refuse("the chat template writes bos_token, and the tokenizer has none")


def _adds_bos(file: Path, bos: int | None) -> bool:
    """True if the tokenizer puts BOS in front of a text; asked of the tokenizer itself."""
    from tokenizers import Tokenizer

    encode: Callable[..., Any] = Tokenizer.from_file(str(file)).encode
    plain = encode("a", add_special_tokens=False).ids
    whole = encode("a", add_special_tokens=True).ids
    start = next(at for at in range(len(whole)) if whole[at : at + len(plain)] == plain)
    if whole[:start] not in ([], [bos]):
        _refuse("the tokenizer puts other tokens than BOS in front of a text, llama.cpp BOS alone")
    return start > 0
