"""YAML and the command line in, a checked `TrainConfig` out; imports nothing heavy.

    module        takes -> gives
    hydra         overrides (`list[str]`) -> `TrainConfig`, `ComposedRun`; the only user of Hydra
    check         a composed tree (`dict`) and its `Origin` -> `TrainConfig`, or a `ConfigError`
    conflicts     `TrainConfig` -> `Problem`s of choices that do not go together
    schema        the dataclasses of our groups, and the facts of each choice (`FORMATS`, `LOSSES`)
    upstream      a class name (`SFTConfig`) -> `{field: annotation}`; the fields other keys own
    options       conf/ and recipes/ -> `{group: [option]}`, files and their header lines
    patterns      a pattern (`"{question}"`) -> its column names (`list[str]`)
    synonyms      another tool's key (`lora_rank`) -> our key (`lora.r`)

Composition runs hydra -> check -> conflicts. To add a key, add a field in schema; to add a rule
between keys, add it to conflicts.
"""
