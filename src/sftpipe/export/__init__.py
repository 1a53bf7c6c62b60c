"""A finished model to the forms in which it leaves: plain weights, a GGUF file, the hub.

Each module, with what goes in and what comes out:

gguf_tokenizer.py  a tokenizer       -> what GGUF holds of it, or why llama.cpp cannot have it
gguf.py        a folder of weights   -> one GGUF file
gguf_proof.py  a GGUF file, prompts  -> its logits; llama.cpp's token ids and answers
"""
