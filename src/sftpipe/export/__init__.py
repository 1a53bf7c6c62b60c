"""A finished model to the forms in which it leaves: plain weights, a GGUF file, the hub.

Each module, with what goes in and what comes out:

upload.py   a folder, a card  -> Uploaded: a repository on the hub with the files of a list
"""
