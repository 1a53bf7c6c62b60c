"""A model folder without weights whose tokenizer knows bytes: it loads in milliseconds, and a
character of ASCII is one token.
"""

from __future__ import annotations

import json
from pathlib import Path

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_byte_model(folder: Path, *, pad: str = "<|pad|>", merges: int = 0) -> Path:
    """Write the tokenizer (ChatML, EOS `<|im_end|>`) and a config; with `merges`, some pairs of
    letters are tokens too.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [("a", letter) for letter in "bcdefghijklm"[:merges]]
    vocabulary = [*letters, *(a + b for a, b in pairs)]
    plain = Tokenizer(
        models.BPE(vocab={token: at for at, token in enumerate(vocabulary)}, merges=pairs)
    )
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token=pad,
        chat_template=CHATML,
    )
    tokenizer.save_pretrained(folder)
    config = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 2}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
