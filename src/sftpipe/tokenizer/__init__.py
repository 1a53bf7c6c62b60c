"""The tokenizer of a run, and the one definition of its special tokens.

make.py             TokenizerConfig, texts of the run    -> PreTrainedTokenizerFast, new token ids
load.py             TokenizerConfig, the model's folder  -> PreTrainedTokenizerFast, as published
train.py            TokenizerConfig, Iterable[str]       -> PreTrainedTokenizerFast of these texts
special_tokens.py   PreTrainedTokenizerFast              -> SpecialTokens; sets those of the config
"""
