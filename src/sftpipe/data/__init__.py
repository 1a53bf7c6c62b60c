"""Rows to finished training examples, in five steps, each one module.

source.py    config -> one `datasets.Dataset` a split, with our column names
formats.py   row -> `Conversation` or `PromptCompletion` (knows the data set, not the model)
encode.py    sample -> text -> ids and the span that is trained (knows the tokenizer, not the data set)
labels.py    ids and spans -> labels (-100 where not trained)
preflight.py what must hold before the first step; preview.py shows it
"""
