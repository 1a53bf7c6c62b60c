"""A finished model to the forms in which it leaves: plain weights, a GGUF file, the hub.

Each module, with what goes in and what comes out:

"""
