"""A model to numbers and answers.

Each module, with what goes in and what comes out:

losses.py   a trainer, rows -> loss and perplexity; the numbers of metrics.json
answers.py  a model, prompts -> answers; the prompts of a run
"""
