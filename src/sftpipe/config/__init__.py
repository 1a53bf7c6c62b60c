"""YAML and the command line in, a checked `TrainConfig` out; imports nothing heavy.

on_run.py      the words of a verb on a run        -> RunCommand; a recorded config, changed
hydra.py       overrides (list[str])                 -> TrainConfig, ComposedRun; the user of Hydra
multirun.py    the words of a sweep                  -> Multirun, its jobs, Hydra's own multirun
check.py       a composed tree (dict), its Origin    -> TrainConfig, or ConfigError
conflicts.py   TrainConfig                           -> list[Problem] of choices that do not fit
requests.py    RunConfig                             -> the same of what a finished run is asked
lora.py        `lora.init_lora_weights`, a config -> list[Problem]; what each one does to a base
distributed.py  TrainConfig                          -> list[Problem] of several processes
early_stopping.py  TrainConfig                       -> keys of `sft` that early stopping needs
schema.py      the dataclasses of our groups, and the facts of each choice: FORMATS, LOSSES, ...
validation_sets.py  dataset.data_files, a split       -> names of validation sets
init_from.py   a folder, the `lora` group            -> AdapterFiles; the group of that adapter
upstream.py    a class's name, such as "SFTConfig"   -> {field: annotation}, from its source
recorded.py    the mapping of a config.yaml          -> the same with the keys that were added since
values.py      a field of `sft`, `lora`, ..., a value  -> list[Problem]: ranges, choices, packages
upstream_conflicts.py  TrainConfig                    -> list[Problem] among those three groups
options.py     conf/, recipes/                       -> {group: [option]}, {recipe: Path}
patterns.py    a pattern, such as "{question}"       -> list[str] of columns
synonyms.py    a key of another tool                 -> our key
"""
