"""Rows to finished training examples; prepare.py runs the steps in this order.

read.py       files, functions and the hub -> tables on disk, with errors that name file and line
source.py     config -> `Rows` of each split of each source, with our column names
guard.py      strings of a row: markers stripped, special tokens kept from opening or ending turns
formats.py    row -> `Conversation`, `PromptCompletion` or `Text` (knows the data set, not the model)
chat.py       conversation -> text, and where the answers lie in it
encode.py     sample -> text -> ids and labels (knows the tokenizer, not the data set)
labels.py     ids and spans -> labels (-100 where not trained)
cache.py      finished rows by content
measure.py    finished rows in numbers; compare.py holds a sample of them against the prompts of generation
preflight.py  what must hold before the first step; preview.py shows it
"""
