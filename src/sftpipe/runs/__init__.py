"""The run folder, and what is done with a finished run.

Each module, with what goes in and what comes out:

folder.py      a path                -> RunFolder: its files, and the small ones read and written
same_run.py    RunFolder, TrainConfig -> Differences: keys that decide a run, and its data
resumable.py   a checkpoint          -> can a run go on from it?
lock.py        a folder              -> one process in it at a time
recorded.py    words                 -> the config of a run that they name, to go on with it
plan.py        TrainConfig           -> RunPlan: which folder, and from which checkpoint
again.py       a run, words          -> TrainConfig, RunPlan: the same run in a new folder
facts.py       weights, data, machine -> what a manifest says of them; what differs from one
planned.py     config, RunPlan       -> .planned.json, from which a worker trains
prompts.py     prompts, Encoder      -> prompts.json: are the prompts still those of training?
write.py       plan, data            -> config.yaml, preflight.json, prompts.json, manifest.json
record.py      a trainer, data       -> Record: metrics.json and samples.jsonl
summary.py     metrics, samples      -> the figures that matter, answers side by side
card.py        RunFolder             -> the model card
report/        run folders           -> report.html and comparison.html, loss.png, a story
answering.py   what a person asks    -> Answering: what a run and a base model have in common
load.py        a path                -> Run: config, metrics, tokenizer, model; or a BaseModel
unfinished.py  a folder, a key       -> Unfinished: rows of work that a kill has interrupted
answer.py      Run, Question         -> Answer, for many, kept as they are finished
generate.py    Run, GenerateConfig   -> the answer to a prompt, or answers.jsonl
chat.py        Run, a person's lines -> streamed answers, with a history
evaluate.py    Run                   -> responses.json, evaluation.json: did the training help?
judge.py       Run, JudgeConfig      -> judge.json: what an LLM says of the answers
held.py        Run                   -> HeldRows: what an export is compared on
export.py      Run, ExportConfig     -> which of the three, into which folder
export_merged.py  Run, a folder      -> plain weights and export.json: what was measured
export_gguf.py Run, a folder         -> a GGUF file, a Modelfile, or why there is none
export_hub.py  Run, ExportConfig     -> a repository of the hub and its card
endpoint.py    JudgeConfig           -> replies of an OpenAI-compatible server
"""
