"""A folder of plain weights to one GGUF file, as llama.cpp reads it.

The tensors are read, turned and written one at a time, so the memory is that of the largest one
(with its float32 copy), whatever the size of the model.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sftpipe.errors import ExportError, Problem
from sftpipe.export.gguf_tokenizer import GgufTokenizer, read_tokenizer
from sftpipe.storage import writing

if TYPE_CHECKING:
    import numpy as np
    import torch
    from gguf import GGMLQuantizationType, GGUFWriter
    from transformers import PretrainedConfig

Kind = Literal["f16", "bf16", "q8_0"]
_WAY_OUT = "`export=merged` writes plain weights instead"
_BUFFERS = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$")  # made again when loaded
_QUERY_OR_KEY = re.compile(r"blk\.\d+\.attn_([qk])\.(weight|bias)$")
_TRANSPOSED = re.compile(r"(attn_qkv|attn_output|ffn_up|ffn_down)\.weight$")


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp calls a class of transformers, and how its weights are turned.

    name: of GGUF.
    act: the activation that llama.cpp computes for it.
    permuted: rows of q and k change places within each head, for another form of rotation.
    transposed: the weights of layers stand the other way round (Conv1D).
    proved_ids: token ids and answers of llama.cpp were compared with those of the class's real
        tokenizer; where False, they have to be compared at every export.
    """

    name: str
    act: str = "silu"
    permuted: bool = False
    transposed: bool = False
    proved_ids: bool = False


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture("llama", permuted=True, proved_ids=True),
    "GPT2LMHeadModel": Architecture("gpt2", "gelu_new", transposed=True, proved_ids=True),
    "Phi3ForCausalLM": Architecture("phi3", proved_ids=True),
    "MistralForCausalLM": Architecture("llama", permuted=True),
    "Qwen2ForCausalLM": Architecture("qwen2"),
    "Qwen3ForCausalLM": Architecture("qwen3"),
}


def architecture_of(folder: Path) -> Architecture:
    """The row of `ARCHITECTURES` of a folder.

    Raises:
        ExportError: its class is none of them, or one that llama.cpp would compute otherwise.
    """
    return _architecture(_config(folder))


def write_gguf(folder: Path, file: Path, kind: Kind) -> None:
    """Write a GGUF file; it appears under its name when it is whole.

    Vectors and GPT-2's table of positions stay float32. A matrix whose rows are no multiple of 32
    is float16 in a `q8_0` file, because a block holds 32 numbers.

    Args:
        folder: config.json, safetensors in one or more files, and a fast tokenizer.
        file: where to; its stem is the name of the model.
        kind: how matrices are stored.

    Raises:
        ExportError: the class, the tokenizer or a weight cannot be held.
        StorageError: the file cannot be written.
    """
    import gguf

    config = _config(folder)
    architecture, tokenizer = _architecture(config), read_tokenizer(folder)
    with _replacing(file) as partial, writing(file):
        writer = gguf.GGUFWriter(partial, architecture.name)
        try:
            tensors = _plan(folder, config, architecture, kind)
            _write_metadata(writer, config, architecture, _name(file.stem, tokenizer), kind)
            tokenizer.write(writer, tensors["token_embd.weight"].shape[0])
            for name, tensor in tensors.items():
                writer.add_tensor_info(
                    name, tensor.shape, tensor.dtype, tensor.nbytes, raw_dtype=tensor.type
                )
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for tensor in tensors.values():
                writer.write_tensor_data(tensor.read())
        finally:
            writer.close()


@contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """A path beside a file, which takes its place where the block succeeds."""
    partial = file.with_name(f".{file.name}.part")
    try:
        yield partial
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _config(folder: Path) -> PretrainedConfig:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)


def _refuse(where: str, found: str, allowed: str = "", fix: str = _WAY_OUT) -> ExportError:
    return ExportError(Problem(where, found, allowed=allowed, fix=fix))


def _architecture(config: PretrainedConfig) -> Architecture:
    name = (getattr(config, "architectures", None) or ["none"])[0]
    if name not in ARCHITECTURES:
        found = f"the class {name}, whose GGUF file was never compared with it"
        raise _refuse("export.target", found, ", ".join(ARCHITECTURES))
    if getattr(config, "quantization_config", None):
        found = "weights that are quantized already; GGUF is written of plain ones"
        raise _refuse("export.target", found)
    act = getattr(config, "hidden_act", None) or getattr(config, "activation_function", None)
    wanted = ARCHITECTURES[name]
    wrong = {
        f"the activation {act}": act != wanted.act,
        "use_sliding_window": getattr(config, "use_sliding_window", False),
        "scale_attn_by_inverse_layer_idx": getattr(
            config, "scale_attn_by_inverse_layer_idx", False
        ),
        "unscaled attention": not getattr(config, "scale_attn_weights", True),
        # YaRN and longrope change with the length of the text, and only Llama's file holds others
        f"the scaled rotation {_rope_type(config)}": _rope_type(config)
        not in ("default", *(("linear", "llama3") if wanted.name == "llama" else ())),
    }
    for found, is_so in wrong.items():
        if is_so:
            raise _refuse("export.target", f"a {name} with {found}, which is not proved here")
    return wanted


def _rope(config: PretrainedConfig) -> dict[str, Any]:
    return dict(getattr(config, "rope_parameters", None) or {})


def _rope_type(config: PretrainedConfig) -> str:
    return str(_rope(config).get("rope_type", "default"))


def _name(stem: str, tokenizer: GgufTokenizer) -> str:
    """The name of the model, by which llama.cpp knows how Phi-3's special tokens take spaces."""
    plain = re.sub("phi-?3", "phi 3", stem, flags=re.IGNORECASE)
    return f"Phi-3 {stem}" if tokenizer.takes_space else plain


# --- metadata -------------------------------------------------------------------------------------


def _write_metadata(
    writer: GGUFWriter, config: PretrainedConfig, architecture: Architecture, name: str, kind: Kind
) -> None:
    import gguf

    heads, width = config.num_attention_heads, config.hidden_size
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(
        {
            "f16": gguf.LlamaFileType.MOSTLY_F16,
            "bf16": gguf.LlamaFileType.MOSTLY_BF16,
            "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
        }[kind]
    )
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    window = getattr(config, "sliding_window", None)
    length = config.max_position_embeddings
    # llama.cpp's Llama looks back without a limit: within the window that is the same
    writer.add_context_length(min(length, window or length) if architecture.permuted else length)
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(width)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(heads)
    if architecture.name == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * width)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if architecture.name == "phi3":
        writer.add_sliding_window(window or 0)
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    head = _head_size(config)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(int(head * _rope(config).get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(_rope(config)["rope_theta"])
    if _rope_type(config) == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(_rope(config)["factor"])


def _head_size(config: PretrainedConfig) -> int:
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


# --- tensors --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the file. `read` gives the bytes as they are stored."""

    shape: tuple[int, ...]
    type: GGMLQuantizationType
    load: Callable[[], torch.Tensor]
    where: str

    @property
    def dtype(self) -> np.dtype[Any]:
        import numpy as np

        return np.dtype(np.float32)  # not that of the file, which `type` is

    @property
    def nbytes(self) -> int:
        import gguf

        return math.prod(gguf.quant_shape_to_byte_shape(self.shape, self.type))

    def read(self) -> np.ndarray[Any, Any]:
        """The tensor as it is written.

        Raises:
            ExportError: a number is none, or is none any more in float16.
        """
        import gguf
        import numpy as np

        values = self.load().float().contiguous().numpy()
        assert values.shape == self.shape
        with np.errstate(over="ignore"):
            stored: np.ndarray[Any, Any] = gguf.quants.quantize(values, self.type)
        if not np.isfinite(values).all():
            raise _refuse(self.where, "holds numbers that are not finite", fix="train it again")
        if stored.dtype == np.float16 and not np.isfinite(stored).all():
            found = f"{np.abs(values).max():.4g}, beyond the largest number of float16, 65504"
            raise _refuse(self.where, found, fix="`export.type=bf16`")
        return stored


def _plan(
    folder: Path, config: PretrainedConfig, architecture: Architecture, kind: Kind
) -> dict[str, _Tensor]:
    """{name in GGUF: tensor}, in the order of the files."""
    import gguf
    from safetensors import safe_open

    (arch,) = (key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    plan: dict[str, _Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            shapes = {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
        for key, shape in shapes.items():
            if _BUFFERS.search(key) or (key == "lm_head.weight" and config.tie_word_embeddings):
                continue
            name = names.get_name(key, try_suffixes=(".weight", ".bias"))
            if name is None:
                raise _refuse(f"{file.name}: {key}", f"no tensor of {architecture.name} in GGUF")
            if architecture.transposed and _TRANSPOSED.search(name):
                shape = shape[::-1]
            plan[name] = _Tensor(
                shape, _type(name, shape, kind), _loader(file, key, name, config), str(file.name)
            )
    if _rope_type(config) == "llama3":
        factors = _llama3_factors(config)
        plan["rope_freqs.weight"] = _Tensor(
            tuple(factors.shape), gguf.GGMLQuantizationType.F32, lambda: factors, "config.json"
        )
    # llama.cpp would take the input embedding for a missing output one
    for name in ("token_embd.weight", *(() if config.tie_word_embeddings else ("output.weight",))):
        if name not in plan:
            raise _refuse(str(folder), f"no tensor for {name}", fix="export the run itself again")
    return plan


def _type(name: str, shape: tuple[int, ...], kind: Kind) -> GGMLQuantizationType:
    import gguf

    types = gguf.GGMLQuantizationType
    if len(shape) == 1 or name == "position_embd.weight":
        return types.F32
    whole = kind != "q8_0" or shape[-1] % gguf.GGML_QUANT_SIZES[types.Q8_0][0] == 0
    return types[kind.upper()] if whole else types.F16


def _loader(
    file: Path, key: str, name: str, config: PretrainedConfig
) -> Callable[[], torch.Tensor]:
    """A function that reads one tensor, turned as llama.cpp has it."""
    from safetensors import safe_open

    architecture = _architecture(config)
    query_or_key = _QUERY_OR_KEY.match(name) if architecture.permuted else None

    def load() -> torch.Tensor:
        with safe_open(file, "pt") as opened:
            tensor: torch.Tensor = opened.get_tensor(key)
        if architecture.transposed and _TRANSPOSED.search(name):
            return tensor.T
        if query_or_key:
            query = query_or_key[1] == "q"
            heads = config.num_attention_heads if query else config.num_key_value_heads
            return _permuted(tensor, heads)
        return tensor

    return load


def _permuted(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows of each head in another order: llama.cpp turns neighbours, transformers halves."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def _llama3_factors(config: PretrainedConfig) -> torch.Tensor:
    """What each frequency of Llama 3's long rotation is divided by."""
    import torch

    rope, size = _rope(config), _head_size(config)
    base, low, high = rope["rope_theta"], rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] / (
        2 * math.pi * base ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
    )
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).float()
