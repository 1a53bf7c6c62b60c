"""The run folder.

Each module, with what goes in and what comes out:

folder.py  a path           -> RunFolder: its files, and the small ones read and written
plan.py    TrainConfig      -> RunPlan: which folder, and from which checkpoint
write.py   plan, data       -> config.yaml, preflight.json, manifest.json
record.py  a trainer, data  -> Record: metrics.json and samples.jsonl
report.py  RunFolder        -> loss.png, the model card, rows for tables
load.py    a path           -> Run: config, metrics, tokenizer, model, answers; BaseModel
prompts.py data, Encoder    -> prompts.json: are the prompts still those of training?
answer.py  Question         -> Answer, for many, kept as they are finished
generate.py a RunCommand's requests -> answers.jsonl, or the answer to one prompt
chat.py    lines of a person -> streamed answers, with a history
evaluate.py Run             -> evaluation.json and responses.json: did the training help?
unfinished.py a folder      -> the finished rows of work that a kill interrupted
"""
