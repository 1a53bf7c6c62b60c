"""The config groups that are ours, as dataclasses: what each key means, its type, and its default.

`quantization`, `lora` and `sft` are plain mappings of upstream fields (`upstream.py` knows their
names). A field without a default must come from the group's YAML file, a recipe or the command
line. `choices` in a field's metadata lists the allowed values.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Optional

_SEEDS = 2**32 - 1  # numpy takes no larger one


def _choice(*choices: str) -> Any:
    """A string field that takes one of `choices`; the first is the default."""
    return field(default=choices[0], metadata={"choices": choices})


def _at_least(least: float, most: float | None = None, **default: Any) -> Any:
    """A number field with a lower limit, perhaps an upper one, and `default=...` or none."""
    return field(metadata={"at_least": least, "at_most": most}, **default)


def _above(least: float, most: float | None = None, **default: Any) -> Any:
    """A number field above a limit, and perhaps with an upper one."""
    return field(metadata={"above": least, "at_most": most}, **default)


# --- the facts of each choice: the one place that names the choices -------------------------------


@dataclass(frozen=True)
class FormatFacts:
    """The facts of a format; `data/formats.py` holds the function that reads a row.

    makes: kind of sample: `conversation`, `prompt_completion` or `text`; `any` where rows decide.
    columns: columns that a row must have; of text and template those that the config names.
    optional: further columns that it reads where a row has them.
    reads: keys of the `format` group that it reads, beside `type`.
    needs: those of them that it cannot do without.
    """

    makes: str
    columns: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


# columns of conversations: a system turn, earlier turns, and what a chat template is given beside
_CHAT = ("system", "history", "tools", "functions", "chat_template_kwargs")
_TURNS = ("system", "fields", "roles")
FORMATS = {
    "instruction": FormatFacts(
        "conversation",
        columns=("instruction", "output"),
        optional=("input", *_CHAT),
        reads=_TURNS,  # of the turns of `history`
    ),
    "messages": FormatFacts("conversation", columns=("messages",), optional=_CHAT, reads=_TURNS),
    "sharegpt": FormatFacts(
        "conversation", columns=("conversations",), optional=_CHAT, reads=_TURNS
    ),
    "prompt_completion": FormatFacts(
        "any", columns=("prompt", "completion"), optional=_CHAT, reads=_TURNS
    ),
    "text": FormatFacts("text", reads=("text_field",)),
    "template": FormatFacts(
        "prompt_completion",
        reads=("prompt", "prompt_no_input", "completion"),
        needs=("prompt", "completion"),
    ),
    "function": FormatFacts(
        "any", reads=(*_TURNS, "text_field", "function", "batched"), needs=("function",)
    ),
}

# keys of a turn that have a meaning of their own; a chat template may read any other as well
ROLES = ("system", "developer", "user", "assistant", "tool")
TURN_FIELDS = (
    "role",
    "content",
    "train",
    "name",
    "tool_calls",
    "tool_call_id",
    "reasoning_content",
)


@dataclass(frozen=True)
class PackingFacts:
    """The facts of a packing strategy; `data/packing.py` does the packing.

    isolated: the rows that share a sequence must not see each other; else they are joined by
        design.
    splits: it splits rows; for the others `over_length` acts on long rows first.
    needs_length: it fills sequences of `sft.max_length` tokens.
    windows: it draws windows of `packing.block_size` tokens from one stream of all tokens, each of
        which is trained; keys about rows have nothing to act on.
    """

    isolated: bool
    splits: bool
    needs_length: bool
    windows: bool = False


PACKING = {
    "bfd": PackingFacts(isolated=True, splits=False, needs_length=True),
    "bfd_split": PackingFacts(isolated=True, splits=True, needs_length=True),
    "wrapped": PackingFacts(isolated=False, splits=True, needs_length=True),
    "padding_free": PackingFacts(isolated=True, splits=False, needs_length=False),
    "blocks": PackingFacts(isolated=False, splits=True, needs_length=False, windows=True),
}


@dataclass(frozen=True)
class LossFacts:
    """The facts of a loss; `data/encode.py` finds the tokens that it trains.

    takes: kinds of sample that it can train (see `FormatFacts.makes`).
    reads: keys of the `loss` group that it reads, beside `type`.
    """

    takes: tuple[str, ...]
    reads: tuple[str, ...] = ()


_EVERY_KIND = ("conversation", "prompt_completion", "text")
_TEMPLATES = ("response_template", "instruction_template")
LOSSES = {
    "completion_only": LossFacts(("conversation", "prompt_completion"), reads=("boundary",)),
    "assistant_only": LossFacts(("conversation",), reads=("unroll",)),
    "full": LossFacts(_EVERY_KIND, reads=("boundary",)),
    "response_template": LossFacts(_EVERY_KIND, reads=("boundary", *_TEMPLATES)),
}


@dataclass(frozen=True)
class DatasetFacts:
    """The facts of a kind of data set, which `dataset.path` names; `data/readers.py` reads it.

    reads: those keys of the `dataset` group that not every kind reads.
    needs: the one of them that it cannot do without, or "".
    example: a value for that key.
    """

    reads: tuple[str, ...]
    needs: str = ""
    example: str = ""


DATASETS = {
    "embedded": DatasetFacts(("name",)),
    "json": DatasetFacts(("data_files", "encoding", "field"), "data_files", "my_rows.jsonl"),
    "csv": DatasetFacts(("data_files", "encoding", "delimiter"), "data_files", "my_rows.csv"),
    "parquet": DatasetFacts(("data_files",), "data_files", "my_rows.parquet"),
    "text": DatasetFacts(("data_files", "encoding", "sample_by"), "data_files", "my_text.txt"),
    "arrow": DatasetFacts(("data_files",), "data_files", "my_folder"),
    "function": DatasetFacts(("function",), "function", "my_module.my_function"),
    "mixture": DatasetFacts(("sources",), "sources", "[{path: json, data_files: a.jsonl}]"),
}
HUB_DATASET = DatasetFacts(("name", "revision", "data_files"))  # of any other path


# --- the groups -----------------------------------------------------------------------------------


@dataclass
class ModelConfig:
    """The base weights, or the model without any, and the precision in which it computes."""

    # hub id or local folder; with init=random its config and tokenizer are used, not its weights
    name_or_path: Optional[str] = None
    # hub branch, tag or commit
    revision: Optional[str] = None
    # auto: the hub when it can be reached, else the package
    source: str = _choice("auto", "hub", "package")
    # auto: bfloat16 where CUDA has it, else float32
    dtype: str = _choice("auto", "float32", "bfloat16", "float16")
    # of all trained parameters; auto: float32
    adapter_dtype: str = _choice("auto", "float32", "bfloat16")
    # auto: what transformers picks
    attn_implementation: str = _choice("auto", "sdpa", "eager", "flash_attention_2")
    # on a CPU: rows without padding, one function for a linear layer and its LoRA
    fast: bool = True
    # of quantization in 4 bits with model.fast; auto: dequantized weights are kept where memory
    # has room; off: never
    nf4_cache: str = _choice("auto", "off")
    # random: from scratch, with weights drawn from `seed`
    init: str = _choice("pretrained", "random")
    # of init=random: `model_type`, and fields of its transformers config
    config: dict[str, Any] = field(default_factory=dict)


@dataclass
class TokenizerConfig:
    """Where the tokenizer comes from, its special tokens, and how a conversation becomes text."""

    # char, bpe: trained on the run's own texts
    type: str = _choice("pretrained", "char", "bpe")
    # of type=pretrained; default: the model's own
    name_or_path: Optional[str] = None
    # of type=bpe: 256 bytes, EOS, PAD, and the rest merges
    vocab_size: Optional[int] = _at_least(258, default=None)
    # keep | auto | a token of the vocabulary; never the EOS token
    pad_token: str = "auto"
    # keep | auto (the tokenizer's own, else </s>) | a token of the vocabulary
    eos_token: str = "keep"
    # keep | auto (the tokenizer's own, else <s>) | a token of the vocabulary
    bos_token: str = "keep"
    # keep | auto (the tokenizer's own, else <unk>) | a token of the vocabulary
    unk_token: str = "keep"
    # new tokens that decoding leaves out, such as turn markers
    special_tokens: list[str] = field(default_factory=list)
    # new tokens that are text
    tokens: list[str] = field(default_factory=list)
    # embedding rows; default: as even as they were, at most 64
    pad_to_multiple_of: Optional[int] = _at_least(1, default=None)
    # default: the tokenizer's own; a name in conf/chat_template or a .jinja file
    chat_template: Optional[str] = None


@dataclass
class DatasetConfig:
    """What to load and how to split it; the names are those of `datasets.load_dataset`."""

    # one of DATASETS, or a hub id
    path: str
    # the embedded set, or the hub set's configuration
    name: Optional[str] = None
    revision: Optional[str] = None
    # a file, a list of files, or {train: ..., validation: ..., test: ...}; several validation sets
    # are {train: ..., validation: {news: ..., code: ...}}
    data_files: Any = None
    # of json, csv and text files: an encoding that Python knows, such as cp949 or utf-16
    encoding: str = "utf-8"
    # of csv files: one character, or tab; default: the comma, in .tsv files the tab, and another
    # one where only that gives the columns that the format needs
    delimiter: Optional[str] = None
    # of text files: what makes a row
    sample_by: str = _choice("line", "paragraph", "document")
    # dotted path of a function that returns rows, or {split: rows}
    function: Optional[str] = None
    # of a mixture: `MixtureSource`s
    sources: list[Any] = field(default_factory=list)
    # one split of the source, from which the others are made; or {our name: the source's name}
    split: Any = None
    # {our name: the data set's name, or a dotted path into its nested columns}; a name with null
    # is not read
    columns: dict[str, Optional[str]] = field(default_factory=dict)
    # below 1 a share of the rows, else a number of rows; 0: none
    validation_size: float = _at_least(0, default=0.0)
    test_size: float = _at_least(0, default=0.0)
    # the order of the splits in the file; the last takes the rest
    split_order: list[str] = field(default_factory=lambda: ["train", "validation", "test"])
    # shuffle before splitting; default: keep the order of the file
    shuffle_seed: Optional[int] = _at_least(0, _SEEDS, default=None)
    # at most so many rows of each split
    limit: Optional[int] = _at_least(1, default=None)
    # read the source row by row and stop at `limit`
    streaming: bool = False
    # what becomes of the `marker_tokens` in the texts
    markers: str = _choice("keep", "special", "strip")
    marker_tokens: list[str] = field(default_factory=list)
    # processes that format and encode
    num_proc: Optional[int] = _at_least(1, default=None)
    # of json files: the key of the list of rows in one object; dotted where it lies deeper
    field: Optional[str] = None


@dataclass
class FormatConfig:
    """How a row becomes a conversation, a prompt and its completion, or a text."""

    type: str = _choice(*FORMATS)
    # the system turn at the start of each conversation that has none
    system: Optional[str] = None
    # {one of TURN_FIELDS: the data set's name for it}
    fields: dict[str, str] = field(default_factory=dict)
    # {the data set's name of a role: system, user, assistant, tool or developer}
    roles: dict[str, str] = field(default_factory=dict)
    # of format=text: the column that holds the text
    text_field: str = "text"
    # of format=template: text with {column} fields
    prompt: Optional[str] = None
    # of format=template: the prompt of rows whose column `input` is empty
    prompt_no_input: Optional[str] = None
    # of format=template
    completion: Optional[str] = None
    # dotted path: row -> text, {prompt, completion} or {messages}
    function: Optional[str] = None
    # the function takes {column: [values]} and returns a list
    batched: bool = False


@dataclass
class MixtureSource(DatasetConfig):
    """One source of a mixture: a data set, its share, and a format other than the run's."""

    # share of the mixture, against the other weights; no row is repeated
    weight: Optional[float] = _at_least(0, default=None)
    # or a number of train rows
    count: Optional[int] = _at_least(1, default=None)
    format: Optional[FormatConfig] = None


@dataclass
class LossConfig:
    """Which tokens are trained."""

    type: str = _choice(*LOSSES)
    # the text, or the token ids, after which an answer begins
    response_template: Any = None
    # the text or ids that end an answer; without it only the last answer of a row is trained
    instruction_template: Any = None
    # joint: prompt and answer tokenised together, and the prompt's length masked
    boundary: str = _choice("split", "joint")
    # a row for each trained turn, which ends after that turn
    unroll: bool = False


@dataclass
class PackingConfig:
    """How rows share a sequence."""

    strategy: str = _choice(*PACKING)
    # of blocks: predicted tokens of a window
    block_size: Optional[int] = _at_least(1, default=None)
    # measure that packed rows do not see each other, or take it for granted
    isolation: str = _choice("verify", "trust")
    # pack validation and test too
    pack_eval: bool = False


@dataclass
class PreflightConfig:
    """Limits that the data must keep before the first step."""

    # share of rows that teach nothing: unreadable, or without a trained token
    max_empty_rows: float = _at_least(0, 1)
    # share of rows that are dropped for their length (over_length=drop, truncate)
    max_over_length_rows: float = _at_least(0, 1)
    # rows that are in two splits
    duplicates: str = _choice("error", "warn")
    # texts that hold special tokens of the chat template
    forged_turns: str = _choice("error", "escape")
    # columns and fields that nothing reads, and that other tools act on
    unread: str = _choice("warn", "error")
    # a system text that the chat template adds to rows without one
    default_system: str = _choice("warn", "allow")
    # rows that `check` and `preview` print
    show_rows: int = _at_least(0, default=3)


@dataclass
class EarlyStoppingConfig:
    """The arguments of transformers' `EarlyStoppingCallback`."""

    # evaluations without an improvement, after which training ends
    patience: int = _at_least(1)
    # a change of the loss that is no larger is no improvement
    threshold: float = _at_least(0, default=0.0)


@dataclass
class EvaluationConfig:
    """Validation and sample answers around the training."""

    # default: the first five prompts of the test (or validation) split
    sample_prompts: Optional[list[str]]
    max_new_tokens: int = _at_least(1)
    # answer the sample prompts after each epoch too, or after each `sample_steps` steps; before and
    # after training is always done
    sample_strategy: str = _choice("no", "epoch", "steps")
    # of sample_strategy=steps: optimizer steps
    sample_steps: Optional[int] = _at_least(1, default=None)
    # draw each token of an answer, by `seed`, instead of taking the most likely one
    do_sample: bool = False
    # of do_sample: below 1 likely tokens get likelier
    temperature: float = _at_least(0, default=1.0)
    # of do_sample: draw among so many; 0: among all
    top_k: int = _at_least(0, default=50)
    # prompts that are answered together
    batch_size: int = _at_least(1, default=16)
    # of `sftpipe evaluate`: the metric that its verdict is about
    verdict: str = "loss"
    # dotted paths of further metrics: (answer, reference, row) -> number
    metrics: list[str] = field(default_factory=list)
    # tasks of the package lm-eval, or YAML files of such, for `sftpipe evaluate`
    lm_eval: list[str] = field(default_factory=list)
    # rows that are evaluated in place of the test split
    data_files: Any = None
    # another run folder to compare with; default: the base model
    base: Optional[str] = None
    # end when the validation loss rises, and keep the best checkpoint; null: never
    early_stopping: Optional[EarlyStoppingConfig] = None


# the groups of a finished run, and the verb that reads each
RUN_VERBS = {"generate": "generate", "judge": "judge", "export": "export"}


@dataclass
class GenerateConfig:
    """What a finished run is asked, and how it draws its answers.

    The second half are fields of transformers' `GenerationConfig`; null is the run's
    `evaluation.*`, or off.
    """

    # a question, asked as the run's format would ask it
    prompt: Optional[str] = None
    # a conversation whose last turn is the user's: [{role: user, content: ...}]
    messages: Optional[list[Any]] = None
    # rows of the run's format, as in dataset.data_files; default: the test split
    data_files: Any = None
    # JSON Lines; default: answers.jsonl in the run folder
    output: Optional[str] = None
    # the base model answers too
    base: bool = False
    # prompts that are answered together
    batch_size: Optional[int] = _at_least(1, default=None)
    # of do_sample; null: the run's seed
    seed: Optional[int] = _at_least(0, _SEEDS, default=None)
    max_new_tokens: Optional[int] = _at_least(1, default=None)
    # an answer does not end before it has so many
    min_new_tokens: Optional[int] = _at_least(0, default=None)
    do_sample: Optional[bool] = None
    temperature: Optional[float] = _above(0, default=None)
    top_k: Optional[int] = _at_least(0, default=None)
    # draw among the likeliest tokens that have so much probability together
    top_p: Optional[float] = _above(0, 1, default=None)
    # draw among tokens with so much of the likeliest token's probability
    min_p: Optional[float] = _at_least(0, 1, default=None)
    # draw among tokens whose information is near the expected one (Meister et al. 2022)
    typical_p: Optional[float] = _above(0, 1, default=None)
    # above 1 tokens that are in the text already get less likely
    repetition_penalty: Optional[float] = _above(0, default=None)
    # no sequence of so many tokens comes twice
    no_repeat_ngram_size: Optional[int] = _at_least(0, default=None)
    # above 1: beam search
    num_beams: Optional[int] = _at_least(1, default=None)
    # of num_beams: above 0 favours longer answers
    length_penalty: Optional[float] = _at_least(-100, 100, default=None)


@dataclass
class JudgeConfig:
    """An LLM behind an OpenAI-compatible endpoint that judges answers; null is not sent."""

    base_url: str
    model: str
    # score: 0 to 100 for each answer; pairwise: against the base or another run, in both orders
    mode: str = _choice("score", "pairwise")
    # name of the environment variable that holds the key; null: the endpoint needs none
    api_key_env: Optional[str] = None
    # of the prompt
    language: str = _choice("en", "ko")
    # your own, with the fields {input}, {reference} and {answer}; pairwise {answer_a}, {answer_b}
    prompt: Optional[str] = None
    # of pairwise: the run folder to compare with; null: the run's base model
    against: Optional[str] = None
    temperature: Optional[float] = _at_least(0, default=0.0)
    seed: Optional[int] = _at_least(0, default=123)
    max_tokens: Optional[int] = _at_least(1, default=None)
    # requests that are under way together
    concurrency: int = _at_least(1, default=4)
    # seconds that a reply may take
    timeout_s: float = _above(0, default=120.0)
    # further tries after a bad reply, a closed connection, 429 or 5xx
    retries: int = _at_least(0, default=3)


@dataclass
class ExportConfig:
    """How a finished run leaves its folder."""

    # merged: plain weights; gguf: one file for llama.cpp; hub: an upload
    target: str = _choice("merged", "gguf", "hub")
    # a folder that is made; null: RUN/export/TARGET
    output: Optional[str] = None
    # what an adapter is merged into: the pristine base, or the quantized one that it was trained on
    base: str = _choice("original", "dequantized")
    # of the merged weights; auto: that of the base
    dtype: str = _choice("auto", "float32", "bfloat16", "float16")
    # mean KL of a token, in nats, above which the merged model is refused; null: 0.01, and no limit
    # where a run with a quantized base is merged into the original
    max_kl: Optional[float] = _at_least(0, default=None)
    # of gguf: f16, bf16, q8_0, or with llama_cpp any other type of llama.cpp, such as q4_k_m
    type: str = "f16"
    # of gguf: the folder of your own llama.cpp, with a built llama-quantize, for other types
    llama_cpp: Optional[str] = None
    # of hub: OWNER/NAME
    repo_id: Optional[str] = None
    private: bool = True
    # what is uploaded; a run that trained all weights has merged ones alone
    what: str = _choice("adapter", "merged")
    # true: answers to rows of the data, and the names of data files, leave with the card
    samples: bool = False


@dataclass
class RunConfig:
    """The second primary config (conf/run.yaml): what is asked of a finished run."""

    generate: GenerateConfig
    judge: JudgeConfig
    export: ExportConfig


@dataclass(frozen=True)
class TrackerFacts:
    """The facts of a tracker; `training/tracking.py` writes to it.

    package: what has to be installed.
    reads: keys of the `tracking` group that it reads, beside `type`.
    """

    package: str
    reads: tuple[str, ...] = ()


TRACKERS = {
    "wandb": TrackerFacts("wandb", ("project", "entity", "mode", "tags", "group")),
    "tensorboard": TrackerFacts("tensorboard"),
    "mlflow": TrackerFacts("mlflow", ("project",)),
    "trackio": TrackerFacts("trackio", ("project",)),
}


@dataclass
class TrackingConfig:
    """A mirror of a run elsewhere: its metrics, and in Weights & Biases config and samples too."""

    type: str = _choice(*TRACKERS)
    # of wandb and trackio; to mlflow it is the experiment
    project: str = "sftpipe"
    entity: Optional[str] = None
    # auto: online when an API key is set, else offline
    mode: str = _choice("auto", "offline", "online")
    tags: list[str] = field(default_factory=list)
    group: Optional[str] = None


@dataclass
class DistributedConfig:
    """Several processes that train one run, each on a device of its own."""

    # a copy of the model in each process, or a part of it
    strategy: str = _choice("ddp", "fsdp2")
    # in all; null: one for each GPU that is visible, on each machine
    num_processes: Optional[int] = _at_least(1, default=None)
    num_machines: int = _at_least(1, default=1)
    # of this machine; 0 writes the run folder
    machine_rank: int = _at_least(0, default=0)
    # of several machines: HOST:PORT of machine 0
    rendezvous: Optional[str] = None
    # seconds that the machines wait for each other
    rendezvous_timeout: int = _at_least(1, default=600)


@dataclass
class TrainConfig:
    """A whole run, as `sftpipe.compose` makes it; a group that is off is `{}` or None."""

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
    # null: one process on one device
    distributed: Optional[DistributedConfig] = None
    # name of the recipe, for the run folder
    recipe: Optional[str] = None
    seed: int = _at_least(0, _SEEDS, default=42)
    # rows longer than sft.max_length
    over_length: str = _choice("error", "drop", "truncate")
    # packages and modules that dotted paths may name, beside sftpipe
    allowed_targets: list[str] = field(default_factory=list)
    output_dir: str = "outputs"
    # the run folder; default: a new one below output_dir
    run: Optional[str] = None


def to_plain(cfg: TrainConfig) -> dict[str, Any]:
    """The config as a run folder records it: plain values, without the folder's own path."""
    plain = asdict(cfg)
    plain.pop("run")
    return plain
