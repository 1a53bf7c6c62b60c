"""A model to numbers and answers.

Each module, with what goes in and what comes out:

losses.py   a trainer, rows -> loss and perplexity; the numbers of metrics.json
questions.py   rows, a user's words -> Question: the ids that a model is fed
asked_rows.py  a user's rows, files  -> Question
answers.py     a model, prompts      -> Answer
row_losses.py  a model, rows         -> the loss of each row
metrics.py     answers, references   -> Metric
compare.py     two Metrics           -> Difference, and whether it is chance
"""
