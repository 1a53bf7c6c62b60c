"""The config groups that are ours, as dataclasses: what each key means, its type, and its default.

`quantization`, `lora` and `sft` are plain mappings of upstream fields (`fields.py` checks their
names). A field without a default must come from the group's YAML file, a recipe or the command
line. `choices` in a field's metadata lists the allowed values.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Optional


def _choice(*choices: str) -> Any:
    """A string field that takes one of `choices`; the first is the default."""
    return field(default=choices[0], metadata={"choices": choices})


def _at_least(least: int, **default: Any) -> Any:
    """A number field with a lower limit, and `default=...` or none."""
    return field(metadata={"at_least": least}, **default)


# --- what there is to say about each choice: the one place that names them ----------------------------


@dataclass(frozen=True)
class FormatFacts:
    """What the rest of sftpipe asks about a format; `data/formats.py` holds the function itself.

    makes: kind of sample: `conversation`, `prompt_completion` or `text`; `any` where rows decide.
    columns: columns that a row must have; of text and template those that the config names.
    reads: keys of the `format` group that it reads, beside `type`.
    needs: those of them that it cannot do without.
    """

    makes: str
    columns: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


FORMATS = {
    "instruction": FormatFacts("conversation", columns=("instruction", "output"), reads=("system",)),
    "messages": FormatFacts("conversation", columns=("messages",), reads=("system",)),
    "sharegpt": FormatFacts("conversation", columns=("conversations",), reads=("system",)),
    "prompt_completion": FormatFacts("any", columns=("prompt", "completion"), reads=("system",)),
    "text": FormatFacts("text", reads=("text_field",)),
    "template": FormatFacts(
        "prompt_completion",
        reads=("prompt", "prompt_no_input", "completion"),
        needs=("prompt", "completion"),
    ),
    "function": FormatFacts(
        "any", reads=("system", "text_field", "function", "batched"), needs=("function",)
    ),
}


@dataclass(frozen=True)
class PackingFacts:
    """What the rest of sftpipe asks about a packing strategy; `data/packing.py` does the packing.

    isolated: whether the rows that share a sequence must not see each other; else they are joined
        by design.
    splits: whether it splits rows; for the others `over_length` acts on long rows first.
    needs_length: whether it fills sequences of `sft.max_length` tokens.
    """

    isolated: bool
    splits: bool
    needs_length: bool


PACKING = {
    "bfd": PackingFacts(isolated=True, splits=False, needs_length=True),
    "bfd_split": PackingFacts(isolated=True, splits=True, needs_length=True),
    "wrapped": PackingFacts(isolated=False, splits=True, needs_length=True),
    "padding_free": PackingFacts(isolated=True, splits=False, needs_length=False),
    "blocks": PackingFacts(isolated=False, splits=True, needs_length=False),
}


# --- the groups -----------------------------------------------------------------------------------


@dataclass
class ModelConfig:
    """Which base weights, or which model without any, and in which precision it computes."""

    name_or_path: Optional[str] = (
        # hub id or local folder; with init=random its config and tokenizer are used, not its
        # weights
        None
    )
    revision: Optional[str] = None  # hub branch, tag or commit
    source: str = _choice(
        "auto", "hub", "package"
    )  # auto: the hub when it can be reached, else the package
    dtype: str = _choice(
        "auto", "float32", "bfloat16", "float16"
    )  # auto: bfloat16 where CUDA has it, else float32
    adapter_dtype: str = _choice(
        "auto", "float32", "bfloat16"
    )  # of all trained parameters; auto: float32
    attn_implementation: str = _choice(
        "auto", "sdpa", "eager", "flash_attention_2"
    )  # auto: what transformers picks
    init: str = _choice(
        "pretrained", "random"
    )  # random: from scratch, with weights drawn from `seed`
    config: dict[str, Any] = field(
        default_factory=dict
    )  # of init=random: `model_type`, and fields of its transformers config


@dataclass
class TokenizerConfig:
    """Where the tokenizer comes from, which tokens have a meaning, and how a conversation becomes text."""

    type: str = _choice("pretrained", "char", "bpe")  # char, bpe: trained on the run's own texts
    name_or_path: Optional[str] = None  # of type=pretrained; default: the model's own
    vocab_size: Optional[int] = _at_least(
        258, default=None
    )  # of type=bpe: 256 bytes, EOS, PAD, and the rest merges
    pad_token: str = "auto"  # keep | auto | a token of the vocabulary; never the EOS token
    eos_token: str = (
        "keep"  # keep | auto (the tokenizer's own, else </s>) | a token of the vocabulary
    )
    bos_token: str = (
        "keep"  # keep | auto (the tokenizer's own, else <s>) | a token of the vocabulary
    )
    unk_token: str = (
        "keep"  # keep | auto (the tokenizer's own, else <unk>) | a token of the vocabulary
    )
    special_tokens: list[str] = field(
        default_factory=list
    )  # new tokens that decoding leaves out, such as turn markers
    tokens: list[str] = field(default_factory=list)  # new tokens that are text
    pad_to_multiple_of: Optional[int] = _at_least(
        1, default=None
    )  # embedding rows; default: as even as they were, at most 64
    chat_template: Optional[str] = (
        None  # default: the tokenizer's own; a name in conf/chat_template or a .jinja file
    )


@dataclass
class DatasetConfig:
    """What to load and how to split it; the names are those of `datasets.load_dataset`."""

    path: str  # embedded | json | csv | parquet | text | arrow | mixture | function | a hub id
    name: Optional[str] = None  # the embedded set, or the hub set's configuration
    revision: Optional[str] = None
    data_files: Any = None  # a file, a list of files, or {train: ..., validation: ..., test: ...}
    sample_by: str = _choice("line", "paragraph", "document")  # of text files: what makes a row
    function: Optional[str] = None  # dotted path of a function that returns rows, or {split: rows}
    sources: list[Any] = field(default_factory=list)  # of a mixture: `MixtureSource`s
    # take only this split of the source and make the others from it; or {our name: the source's
    # name}
    split: Any = None
    columns: dict[str, str] = field(default_factory=dict)  # {our name: the data set's name}
    validation_size: float = _at_least(
        0, default=0.0
    )  # below 1 a share of the rows, else a number of rows; 0: none is cut off
    test_size: float = _at_least(0, default=0.0)
    split_order: list[str] = field(
        default_factory=lambda: ["train", "validation", "test"]
    )  # where each lies; the last takes the rest
    shuffle_seed: Optional[int] = (
        None  # shuffle before splitting; default: keep the order of the file
    )
    limit: Optional[int] = _at_least(1, default=None)  # at most so many rows of each split
    streaming: bool = False  # read the source row by row and stop at `limit`
    markers: str = _choice(
        "keep", "special", "strip"
    )  # what becomes of the `marker_tokens` in the texts
    marker_tokens: list[str] = field(default_factory=list)
    num_proc: Optional[int] = _at_least(1, default=None)  # processes that format and encode


@dataclass
class FormatConfig:
    """How a row becomes a conversation, a prompt and its completion, or a text."""

    type: str = _choice(*FORMATS)
    system: Optional[str] = None  # system turn put in front of each conversation that has none
    text_field: str = "text"  # of format=text: the column that holds the text
    prompt: Optional[str] = None  # of format=template: text with {column} fields
    prompt_no_input: Optional[str] = (
        None  # of format=template: the prompt of rows whose column `input` is empty
    )
    completion: Optional[str] = None  # of format=template
    function: Optional[str] = None  # dotted path: row -> text, {prompt, completion} or {messages}
    batched: bool = False  # the function takes {column: [values]} and returns a list


@dataclass
class MixtureSource(DatasetConfig):
    """One source of a mixture: a data set, its share, and its format where that differs from the run's."""

    weight: Optional[float] = _at_least(
        0, default=None
    )  # share of the mixture, against the other weights; no row is repeated
    count: Optional[int] = _at_least(1, default=None)  # or a number of train rows
    format: Optional[FormatConfig] = None


@dataclass
class LossConfig:
    """Which tokens are trained."""

    type: str = _choice("completion_only", "assistant_only", "full", "response_template")
    response_template: Any = None  # the text, or the token ids, behind which an answer begins
    # the text or ids that end an answer; without it only the last answer of a row is trained
    instruction_template: Any = None
    boundary: str = _choice(
        "split", "joint"
    )  # joint: prompt and answer tokenised together, and the prompt's length masked
    unroll: bool = False  # a row for each trained turn, cut behind it


@dataclass
class PackingConfig:
    """How rows share a sequence."""

    strategy: str = _choice(*PACKING)
    block_size: Optional[int] = _at_least(
        1, default=None
    )  # of blocks: predicted tokens of a window
    isolation: str = _choice(
        "verify", "trust"
    )  # measure that packed rows do not see each other, or take it for granted
    pack_eval: bool = False  # pack validation and test too


@dataclass
class PreflightConfig:
    """Limits that the data must keep before the first step."""

    max_empty_rows: (
        float  # share of rows that teach nothing: unreadable, or without a trained token
    )
    max_over_length_rows: (
        float  # share of rows that are dropped for their length (over_length=drop, truncate)
    )
    duplicates: str = _choice("error", "warn")  # rows that stand in two splits
    forged_turns: str = _choice(
        "error", "escape"
    )  # texts that hold special tokens of the chat template
    show_rows: int = _at_least(0, default=3)  # rows that `check` and `preview` print


@dataclass
class EvaluationConfig:
    """Validation and sample answers around the training."""

    sample_prompts: Optional[
        list[str]
    ]  # default: the first five prompts of the test (or validation) split
    max_new_tokens: int = _at_least(1)
    sample_strategy: str = _choice(
        "no", "epoch"
    )  # answer the sample prompts behind each epoch too; before and after it is always done
    do_sample: bool = (
        False  # draw each token of an answer, by `seed`, instead of taking the most likely one
    )
    temperature: float = 1.0  # of do_sample: below 1 likely tokens get likelier
    top_k: int = _at_least(0, default=50)  # of do_sample: draw among so many; 0: among all


@dataclass
class TrackingConfig:
    """A Weights & Biases run that mirrors config, metrics and samples."""

    project: str = "sftpipe"
    entity: Optional[str] = None
    mode: str = _choice(
        "auto", "offline", "online"
    )  # auto: online when an API key is set, else offline
    tags: list[str] = field(default_factory=list)
    group: Optional[str] = None


@dataclass
class TrainConfig:
    """A whole run. Built by `sftpipe.compose`; an empty group (`lora=none`) is `{}` or None: off."""

    model: ModelConfig
    tokenizer: TokenizerConfig
    quantization: dict[str, Any]
    lora: dict[str, Any]
    dataset: DatasetConfig
    format: FormatConfig
    loss: LossConfig
    packing: Optional[PackingConfig]
    sft: dict[str, Any]
    preflight: PreflightConfig
    evaluation: Optional[EvaluationConfig]
    tracking: Optional[TrackingConfig]
    recipe: Optional[str] = None  # name of the recipe, for the run folder
    seed: int = _at_least(0, default=42)
    over_length: str = _choice("error", "drop", "truncate")  # rows longer than sft.max_length
    allowed_targets: list[str] = field(
        default_factory=list
    )  # packages and modules that dotted paths may name, beside sftpipe
    output_dir: str = "outputs"
    run: Optional[str] = None  # the run folder; default: a new one below output_dir


def to_plain(cfg: TrainConfig) -> dict[str, Any]:
    """The config as a run folder records it: plain values, without the folder's own path."""
    plain = asdict(cfg)
    plain.pop("run")
    return plain
