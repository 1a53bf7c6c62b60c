"""A model to numbers and answers.

Each module, with what goes in and what comes out:

questions.py   rows, a user's words  -> Question: the ids that a model is fed
asked_rows.py  a user's rows, files  -> Question, with or without a reference
answers.py     a model, prompt ids   -> Answer, in batches or piece by piece
losses.py      a trainer, rows       -> loss and perplexity; the numbers of metrics.json
row_losses.py  a model, rows         -> the loss of each row
metrics.py     answers, references   -> Metric
compare.py     two Metrics           -> Difference, and whether it is chance
harness.py     a model, tasks        -> scores of lm-eval's tasks
judge.py    JudgeConfig, replies     -> what a judge is asked, scores and verdicts
"""
