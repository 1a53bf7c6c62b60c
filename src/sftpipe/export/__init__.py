"""A finished model to the forms in which it leaves: plain weights, a GGUF file, the hub.

Each module, with what goes in and what comes out:

plain.py       a model, a tokenizer  -> safetensors, configs and tokenizer; read back
drift.py       two models, rows      -> Drift: how far apart their next tokens are
card.py        what was measured     -> README.md of what leaves
modelfile.py   a tokenizer, stops    -> the text of Ollama's Modelfile, proved on 20 conversations
gguf_tokenizer.py  a tokenizer       -> what GGUF holds of it, or why llama.cpp cannot have it
gguf.py        a folder of weights   -> one GGUF file
gguf_proof.py  a GGUF file, prompts  -> its logits; llama.cpp's token ids and answers
upload.py      a folder, a card      -> Uploaded: a repository of the hub with the files of a list
"""
