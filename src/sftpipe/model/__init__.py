"""The model: which weights, how it is built and loaded, and what is trained of it.

weights.py        ModelConfig                         -> Weights: a place and an identity
precision.py      ModelConfig                         -> Precision: device and dtypes
architecture.py   ModelConfig, Weights                -> PretrainedConfig; checks its positions
isolation.py      ModelConfig, Weights                -> Isolation of packed sequences, measured
load.py           ModelConfig, Weights, Precision     -> PreTrainedModel
embedding.py      PreTrainedModel, tokenizer          -> the same model, with a row for each token
targets.py        the `lora` group, a model           -> nothing, where it trains what it names
initial.py        PeftModel                           -> PiSSA and OLoRA taken out of the base
further.py        `lora.init_from`, a PeftModel       -> an adapter of this base, which goes on
merge.py          PeftModel, or a quantized base      -> PreTrainedModel of plain weights
adapters.py       the `lora` group, PreTrainedModel   -> LoraConfig, PeftModel
fast.py           a model with its adapter, a batch   -> the same step from fewer operations
"""
