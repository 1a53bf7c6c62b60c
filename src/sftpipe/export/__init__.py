"""A finished model to the forms in which it leaves: plain weights, a GGUF file, the hub.

Each module, with what goes in and what comes out:

modelfile.py   a tokenizer, stops    -> the text of Ollama's Modelfile, proved on 20 conversations
"""
