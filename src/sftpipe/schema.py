"""The config groups that are ours, as dataclasses: what each key means, its type, and its default.

`quantization`, `lora` and `sft` are plain mappings of upstream fields (`fields.py` checks their names). A field without a default must
come from the group's YAML file, a recipe or the command line. `choices` in a field's metadata lists the allowed values.
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


@dataclass
class ModelConfig:
    """Which base weights, and in which precision they compute."""

    name_or_path: str  # hub id or local folder
    revision: Optional[str] = None  # hub branch, tag or commit
    source: str = _choice("auto", "hub", "package")  # auto: the hub when it can be reached, else the package
    dtype: str = _choice("auto", "float32", "bfloat16", "float16")  # auto: bfloat16 where CUDA has it, else float32
    adapter_dtype: str = _choice("auto", "float32", "bfloat16")  # of all trained parameters; auto: float32
    attn_implementation: str = _choice("auto", "sdpa", "eager", "flash_attention_2")  # auto: what transformers picks


@dataclass
class TokenizerConfig:
    """Where the tokenizer comes from and how a conversation becomes text."""

    name_or_path: Optional[str] = None  # default: the model's own
    pad_token: str = "auto"  # `auto`, or a token of the vocabulary; never the EOS token
    chat_template: Optional[str] = None  # default: the tokenizer's own; a name in conf/chat_template or a .jinja file


@dataclass
class DatasetConfig:
    """What to load and how to split it; the names are those of `datasets.load_dataset`."""

    path: str  # embedded | json | csv | parquet | a hub id
    name: Optional[str] = None  # the embedded set, or the hub set's configuration
    revision: Optional[str] = None
    data_files: Any = None  # a file, a list of files, or {train: ..., validation: ..., test: ...}
    split: Optional[str] = None  # take only this split of the source and make the others from it
    columns: dict[str, str] = field(default_factory=dict)  # {our name: the data set's name}
    validation_size: float = _at_least(0, default=0.0)  # below 1 a share of the rows, else a number of rows; 0: none is cut off
    test_size: float = _at_least(0, default=0.0)
    shuffle_seed: Optional[int] = None  # shuffle before splitting; default: keep the order of the file
    limit: Optional[int] = _at_least(1, default=None)  # at most so many rows of each split
    num_proc: Optional[int] = _at_least(1, default=None)  # processes that format and encode


@dataclass
class FormatConfig:
    """How a row becomes a conversation or a prompt and its completion."""

    type: str = _choice("instruction", "messages", "prompt_completion")
    system: Optional[str] = None  # system turn put in front of each conversation that has none


@dataclass
class LossConfig:
    """Which tokens are trained."""

    type: str = _choice("completion_only", "full")


@dataclass
class PreflightConfig:
    """Limits that the data must keep before the first step."""

    max_empty_rows: float  # share of rows without a trained token
    show_rows: int = _at_least(0)  # rows that `check` and `preview` print


@dataclass
class EvaluationConfig:
    """Validation and sample answers around the training."""

    sample_prompts: Optional[list[str]]  # default: the first five prompts of the test (or validation) split
    max_new_tokens: int = _at_least(1)


@dataclass
class TrackingConfig:
    """A Weights & Biases run that mirrors config, metrics and samples."""

    project: str = "sftpipe"
    entity: Optional[str] = None
    mode: str = _choice("auto", "offline", "online")  # auto: online when an API key is set, else offline
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
    packing: dict[str, Any]
    sft: dict[str, Any]
    preflight: PreflightConfig
    evaluation: Optional[EvaluationConfig]
    tracking: Optional[TrackingConfig]
    recipe: Optional[str] = None  # name of the recipe, for the run folder
    seed: int = _at_least(0, default=42)
    over_length: str = _choice("error", "drop")  # rows longer than sft.max_length
    output_dir: str = "outputs"
    run: Optional[str] = None  # the run folder; default: a new one below output_dir


def to_plain(cfg: TrainConfig) -> dict[str, Any]:
    """The config as a run folder records it: plain values, without the folder's own path."""
    plain = asdict(cfg)
    plain.pop("run")
    return plain
