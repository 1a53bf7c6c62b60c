"""Every fix works as typed: each text of the sources that holds something to type, in backticks,
and each call that makes such a text, is filled with the samples below and tried.

A new text or call whose parts have no sample here fails. What is tried: overrides compose in one of
`BASES` without an error, `sftpipe VERB ...` is taken by the command line, other programs are named
in `PROGRAMS` and their words are what a shell reads as one line.
"""

from __future__ import annotations

import ast
import functools
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

import sftpipe
from sftpipe import cli, errors
from sftpipe.bench import PARTS
from sftpipe.config.check import _all_keys
from sftpipe.config.hydra import compose_requests
from sftpipe.config.options import groups, run_groups
from sftpipe.config.schema import ExportConfig, GenerateConfig, JudgeConfig
from sftpipe.config.synonyms import SYNONYMS
from sftpipe.config.upstream import MOVED
from sftpipe.errors import ConfigError
from sftpipe.tokenizer import special_tokens
from sftpipe.verbs import VERBS
from support.configs import compose

SOURCES = Path(sftpipe.__file__).parent
_OLD = Path(__file__).parent / "fixtures" / "run_0_1_0"
ADAPTER = str(_OLD / "interrupted" / "checkpoint-18")

# --- what may stand in the place of a part that is only known at run time -------------------------

# {source of the part: a sample}; where a name means something else in another text, see TEXTS
SAMPLES = {
    "_DEFAULT": "lora.init_lora_weights=true",
    "_OFF": "evaluation.early_stopping=null",
    "FIX_ROW": "fix or remove the row",
    "example": "sftpipe train recipe=yoda",
    "group": "lora",
    "options[0]": "default",
    "windows[0]": "blocks",
    "rows[0]": "bfd",
    "kind": "full",
    "strategy": "steps",
    "saves": "epoch",
    "evaluates or 100": "20",
    "str(wanted).lower()": "true",
    "ours": "lora.r=8",
    "column": "note",
    "name": "note",
    "longest": "300",
    "tokens": "300",
    "tokens - 1": "63",
    "lengths.max()": "300",
    "row['length']": "300",
    "fix": "more text",
    "others": "",
    "off": "sft.eval_strategy=no",
    "self.typed": "format=sharegpt",
    "word": "dataset.columns.output=answer",
    "files": "dataset.data_files=rows.jsonl",
    "line": "pandas.read_json('a').to_json('rows.jsonl', orient='records', lines=True)",
    "least": "2",
    "reached": "300",
    "package": "smollm2-weights",
    "wanted": "'sftpipe[wandb]'",
    "match": "chatml",
    "2 * self._cfg.timeout_s": "240.0",
    "self._cfg.model": "a model",
    "verb": "generate",
    "folder": "outputs/yoda/1",
}
# {the text: {part: sample}}, before SAMPLES
TEXTS: dict[str, dict[str, str]] = {
    "`{command}`": {"command": "sftpipe report run=a,b"},
    "`{group}={options[0]}`": {"group": "tracking", "options[0]": "wandb"},
    "`sftpipe list {key}`": {"key": "dataset"},
    "`sftpipe train -m --continue {shlex.quote(str(self.path))}`": {
        "shlex.quote(str(self.path))": "outputs/sweep"
    },
    "`sft.optim={_DIVIDED[0]}`": {"_DIVIDED[0]": "adamw_torch"},
    "`sftpipe list {match}`": {"match": "dataset"},
    "`sftpipe bench {next(iter(PARTS))}`": {"next(iter(PARTS))": "step"},
    "`sftpipe bench {part}`": {"part": "data"},
    "`{group}.{other}={example}`, or leave it out": {
        "group": "sft",
        "other": "eval_strategy",
        "example": "steps",
    },
    "`{key}=gpt2`, or model.name_or_path=...": {"key": "model.config.model_type"},
    "`{key}=4096`": {"key": "tokenizer.vocab_size"},
    "`{key}=100`": {"key": "evaluation.sample_steps"},
    "`{key}=0.7`; without do_sample and temperature the most likely token is taken": {
        "key": "evaluation.temperature"
    },
    "`sft.{name}={str(wanted).lower()}`, or {_OFF}": {"name": "load_best_model_at_end"},
    "`sft.save_strategy={strategy}`": {"strategy": "epoch"},
    "`sft.eval_strategy={strategy}`, or {_OFF}": {},
    "`sft.eval_steps={saves}`": {"saves": "20"},
    "`sftpipe train -m {shlex.join(overrides)}`": {
        "shlex.join(overrides)": "recipe=yoda lora.r=8,16"
    },
    "`dataset={kind}` {override('dataset.data_files', value)}": {
        "kind": "json",
        "override('dataset.data_files', value)": "`dataset.data_files=rows.jsonl`",
    },
    "`dataset={kind}` {files}": {"kind": "json"},
    "`dataset.data_files='{name}/*.jsonl'`": {"name": "folder"},
    "`chmod +r {shlex.quote(one)}`": {"shlex.quote(one)": "'my file'"},
    "`~dataset.columns.{names[0]}`": {"names[0]": "output"},
    "`dataset.name={nearest(str(name), known) or known[0]}`": {
        "nearest(str(name), known) or known[0]": "instruct"
    },
    "`dataset.split_order=[{','.join(['train', *asked])}]`": {
        "','.join(['train', *asked])": "train,test"
    },
    "`dataset.{name}_size=0` keeps it; `dataset.split=train` makes all splits from train": {
        "name": "test"
    },
    "`dataset.{name}_size={least}` or more, or a number of rows": {"name": "validation"},
    "`allowed_targets=[{','.join((*allowed, root))}]`": {
        "','.join((*allowed, root))": "mine,my_module"
    },
    "`{key}={module_name}.{match}`": {
        "key": "format.function",
        "module_name": "my_module",
        "match": "rows",
    },
    "`{word}`": {"word": "lora.r=8"},
    "`{key}={text}`": {"key": "dataset.split", "text": "train"},
    "`{shlex.quote(word)}`": {"shlex.quote(word)": "'lora.target_modules=\"a$b\"'"},
    '`"{word}"`': {"word": "dataset.data_files=[a, b]"},
    "`generate.max_new_tokens={least}` or less": {},
    "`{key}={most}` or less": {"key": "sft.max_length", "most": "512"},
    "`model.config.model_type={match or 'gpt2'}`": {"match or 'gpt2'": "gpt2"},
    "`curl {shlex.quote(url.rstrip('/') + '/models')}` lists those that it has": {
        "shlex.quote(url.rstrip('/') + '/models')": "http://localhost:11434/v1/models"
    },
    "`ollama pull {shlex.quote(model)}`": {"shlex.quote(model)": "qwen3:8b"},
    "`evaluation.verdict={nearest(name, able) or able[0]}`": {
        "nearest(name, able) or able[0]": "chrf"
    },
    "`sftpipe evaluate {word}`": {"word": "run=outputs/yoda/1"},
    "`{where}=auto` begins such a run at its first step": {"where": "sft.resume_from_checkpoint"},
    "`{shlex.quote(typed)}`": {"shlex.quote(typed)": "'dataset.columns={a: \"b\"}'"},
    '`"{typed}"`': {"typed": "tokenizer.special_tokens=['<a>']"},
    "`model.revision=null`": {},
    "`sft.learning_rate={args.learning_rate / 10}`": {"args.learning_rate / 10": "2e-05"},
    "`pip install {needed[1]}`, or `sft.optim=adamw_torch`": {"needed[1]": "galore-torch"},
    "`quantization={other}`, or leave it out": {"other": "int8"},
    "`{key}=null`": {"key": "sft.lr_scheduler_kwargs"},
    "`sft.dataloader_drop_last=false`, or `sft.per_device_train_batch_size={rows}`": {"rows": "4"},
    "`{key}={ALL}`": {"key": "lora.target_modules", "ALL": "all-linear"},
    "`sft.save_strategy={evaluates}`, or `sft.load_best_model_at_end=false`": {
        "evaluates": "epoch"
    },
    "{fix}, or `{key}={off}`": {"key": "sft.load_best_model_at_end", "off": "false"},
    "`sft.save_steps={evaluates}`, or `sft.load_best_model_at_end=false`": {"evaluates": "20"},
    "`{words}` begins it at its first step": {
        "words": "run=outputs/yoda/1 sft.resume_from_checkpoint=auto"
    },
    "`{typed}` as it was": {"typed": "lora.r=16 seed=42"},
    "`{_AUTO}` goes on with it; or name a new folder": {"_AUTO": "sft.resume_from_checkpoint=auto"},
    "{fix}; `{key}=false` there": {"key": "sft.save_only_model"},
    "{_reader_of(name, find)}`dataset.columns.{name}=null` if it is to be left out": {
        "_reader_of(name, find)": "format.system reads it; "
    },
    "`export={target}`": {"target": "gguf"},
    "`export.type={near}`, or export.llama_cpp=DIR beside it": {"near": "bf16"},
    "`hf auth login` with a token that may write, or {override(_KEY, 'OWNER/NAME')}": {
        "override(_KEY, 'OWNER/NAME')": "`export.repo_id=OWNER/NAME`"
    },
    "`hf repos settings {repo_id} --{'private' if private else 'public'}`": {
        "repo_id": "me/model",
        "'private' if private else 'public'": "private",
    },
    "`export.dtype=float32`, or {override('export.max_kl', f'{2 * drift.kl:.1g}')}": {
        "override('export.max_kl', f'{2 * drift.kl:.1g}')": "`export.max_kl=0.02`"
    },
    "`{_command(jobs[0])}`": {"_command(jobs[0])": "sftpipe train --from outputs/sweep/0"},
    "`{_command(path.parent)}`": {"_command(path.parent)": "sftpipe train --from outputs/yoda/1"},
    "leave it out: `{_command(path)}`, a command for each value of a key": {
        "_command(path)": "sftpipe train --from 'a run'"
    },
    "`sftpipe config {name}={value}` shows those of the option": {"name": "lora", "value": "dora"},
    "leave it out; without {FLAG}, `{_goes_on(named)}` goes on with that run": {
        "FLAG": "--from",
        "_goes_on(named)": "sftpipe train run=outputs/yoda/1 sft.resume_from_checkpoint=auto",
    },
    "`sftpipe train {run} sft.resume_from_checkpoint=auto` goes on from its last checkpoint": {
        "run": "run='outputs/a run'"
    },
    "leave that out, and let sftpipe start them: `sftpipe train recipe=yoda {words}`": {
        "words": "distributed=ddp distributed.num_processes=2"
    },
    "`distributed.strategy=ddp`, or {_ALONE}": {"_ALONE": "`distributed=none`"},
    "`{_goes_on(where)}` goes on with it; or name a new folder": {
        "_goes_on(where)": "sftpipe train run=outputs/yoda/1 sft.resume_from_checkpoint=auto"
    },
}
# {call: {argument: sample}}
CALLS: dict[str, tuple[tuple[str, str], ...]] = {
    "override(key, match or 'train.loss')": (("hydra.launcher.metric", "test.loss"),),
    "override(f'{parent}.{match}', value)": (("hydra.launcher.partition", "gpu"),),
    "override(where, str(max(1, least)))": (("hydra.launcher.timeout_min", "1"),),
    "override(where, str(most // 2))": (("hydra.launcher.signal_delay_s", "60"),),
    "override(group, nearest(name, known) or known[-1])": (("hydra/sweeper", "optuna"),),
    "override(f'{key}.delimiter', 'tab' if mark.lower() in ('tabs', 'tsv') else \"';'\")": (
        ("dataset.delimiter", "tab"),
        ("dataset.delimiter", "';'"),
    ),
    "override(f'quantization.{key}', needed)": (
        ("quantization.bnb_4bit_quant_storage", "bfloat16"),
    ),
    "override(f'{key}.marker_tokens', \"['|SOUND|>']\")": (
        ("dataset.marker_tokens", "['|SOUND|>']"),
    ),
    "override(f'{key}.{needed}', facts.example)": tuple(
        (f"dataset.{facts.needs}", facts.example)
        for facts in sftpipe.config.schema.DATASETS.values()
        if facts.needs
    ),
    "override(key if key == 'dataset' else f'{key}.path', reader)": (
        ("dataset", "function"),
        ("dataset", "mixture"),
    ),
    "override('loss', readers[0])": (("loss", "response_template"),),
    "override(f'{key}.{name}', _EXAMPLES[name])": (
        ("format.prompt", "'{prompt} ##>'"),
        ("format.completion", "' {completion}'"),
        ("format.function", "my_module.my_function"),
    ),
    "override(key, f\"'### {role.title()}:'\")": (
        ("loss.response_template", "'### Answer:'"),
        ("loss.instruction_template", "'### Question:'"),
    ),
    "override(f'{key}.encoding', match)": (("dataset.encoding", "cp949"),),
    "override(where, f\"'{theirs}'\")": (("dataset.columns.output", "'3'"),),
    "override(f'{key}.fields', f'{{{match}: {theirs}}}')": (("format.fields", "{role: from}"),),
    "override(f'sft.{key}', nearest(str(metric), known) or known[0])": (
        ("sft.metric_for_best_model", "eval_loss"),
    ),
    "override(key, f'\"{escaped}\"')": (
        ("format.prompt", '"a: {b}"'),
        ("output_dir", '"it\'s; $HOME, {a: b}"'),
    ),
    "override('recipe', recipe)": (("recipe", "yoda"),),
    "override(str(one.key_or_group), '[a,b]')": (("judge.model", "'[a,b]'"),),
    "override(group, match)": (("lora", "dora"), ("dataset", "yoda")),
    "override('dataset.delimiter', _TYPED.get(mark, f\"'{mark}'\"))": (
        ("dataset.delimiter", "';'"),
        ("dataset.delimiter", "'|'"),
        ("dataset.delimiter", "tab"),
    ),
    "override('dataset.data_files', value)": (
        ("dataset.data_files", "rows.jsonl"),
        ("dataset.data_files", "[a.jsonl, b.jsonl]"),
        ("dataset.data_files", "{train: a.jsonl, test: b.jsonl}"),
    ),
    "override('dataset.field', f'{path}.{match}'.strip('.'))": (("dataset.field", "data.rows"),),
    "override('dataset.field', self.field)": (("dataset.field", "data"),),
    "override(f'format.roles.{said}', 'user')": (("format.roles.Human", "user"),),
    "override(key, f\"'{quoted}'\")": (("loss.response_template", "'### Answer:'"),),
    "override('tokenizer.unk_token', \"'[UNK]'\")": (("tokenizer.unk_token", "'[UNK]'"),),
    "override(f'format.fields.{ours}', field)": (("format.fields.content", "value"),),
    "override_text('dataset.data_files', path)": (
        ("dataset.data_files", "rows.jsonl"),
        ("dataset.data_files", "it's (1), $HOME.jsonl"),
        ("dataset.data_files", "나의 자료.jsonl"),
    ),
    "override_text('dataset.data_files', str(path.parent / near))": (
        ("dataset.data_files", "a folder/rows.jsonl"),
    ),
    "override_text(where, match)": (("dataset.split", "validation"),),
    "override_text('dataset.split', unread[0])": (("dataset.split", "train"),),
    "override_text(key, match)": (("dataset.columns.output", "an answer"),),
    "override_text('format.text_field', match)": (("format.text_field", "text;a (b)"),),
    "override_text(f'dataset.columns.{name}', match)": (
        ("dataset.columns.output", "the output, it's $5"),
    ),
    "override('dataset.encoding', one.encoding)": (("dataset.encoding", "utf-16"),),
    "override(key, match)": (("packing.strategy", "bfd"), ("model.dtype", "bfloat16")),
    "override(key, value)": (("lora.r", "8"), ("loss.response_template", "'a b'")),
    "override('model.name_or_path', str(folder))": (("model.name_or_path", "outputs/yoda_full/1"),),
    "override(key, f'{{{name}: {rule.example}}}')": (("sft.lr_scheduler_kwargs", "{power: 1.0}"),),
    "override(key, f'{{{examples}}}')": (("sft.lr_scheduler_kwargs", "{min_lr_rate: 0.1}"),),
    "override(key, f'{{{match}: {given[name]}}}')": (
        ("sft.lr_scheduler_kwargs", "{num_cycles: 2}"),
    ),
    "override(key, example)": (("sft.optim_args", "null"),),
    "override(f'{group}.{name}', example)": (
        ("sft.learning_rate", "2e-4"),
        ("lora.rank_pattern", "{q_proj: 8}"),
    ),
    "override('lora.target_modules', '[q_proj,v_proj]')": (
        ("lora.target_modules", "[q_proj,v_proj]"),
    ),
    "override('lora.layers_to_transform', '[0,1]')": (("lora.layers_to_transform", "[0,1]"),),
    "override('run', str(folder))": (("run", "outputs/yoda/1"),),
    "override('run', str(named))": (("run", "outputs/sweep/1"),),
    "override(key, _list(kept))": (("lora.layers_to_transform", "[0,1]"),),
    "override(key, str(rank + 1))": (("lora.r", "8"),),
    "override(key, f\"[{','.join(kept)}]\" if kept else empty)": (
        ("lora.target_modules", "[q_proj,v_proj]"),
        ("lora.target_modules", "all-linear"),
        ("lora.modules_to_save", "null"),
    ),
    "override(self.key, value)": (
        ("lora.r", "16"),
        ("sft.max_length", "null"),
        ("loss.type", "'completion_only'"),
    ),
    "override(where, str(folder))": (("sft.resume_from_checkpoint", "outputs/yoda/1"),),
    "_override('tokenizer.special_tokens', f\"[{','.join(map(_quoted, tokens))}]\")": (
        ("tokenizer.special_tokens", "['<a>','<|b|>']"),
        ("tokenizer.special_tokens", f"[{special_tokens._quoted('$a')},'\\\\']"),
    ),
    "_override(key, _quoted(match))": (("tokenizer.pad_token", "'<pad>'"),),
    "override(key, str(folder))": (
        ("model.name_or_path", "outputs/yoda_full/1"),
        ("lora.init_from", ADAPTER),
    ),
    "override('lora.init_from', str(folder))": (("lora.init_from", ADAPTER),),
    "override('tokenizer.name_or_path', str(files.path))": (
        ("tokenizer.name_or_path", "outputs/yoda/1"),
    ),
    "override(key, typed)": (
        ("lora.r", "16"),
        ("lora.use_dora", "false"),
        ("lora.bias", "'none'"),
        ("lora.target_modules", "[q_proj,v_proj]"),
    ),
    "override(_KEY, 'OWNER/NAME')": (("export.repo_id", "OWNER/NAME"),),
    "override(_KEY, f\"{repo_id.partition('/')[0]}/OTHER\")": (("export.repo_id", "me/OTHER"),),
    "override('export.private', str(bool(info.private)).lower())": (("export.private", "false"),),
    "override('export.output', str(free))": (("export.output", "runs/a run/export/merged-2"),),
    "override('export.max_kl', f'{2 * drift.kl:.1g}')": (
        ("export.max_kl", "0.02"),
        ("export.max_kl", "5e-05"),
    ),
    "override(key, str(machines * max(1, processes // machines)))": (
        ("distributed.num_processes", "4"),
    ),
    "override('distributed.num_machines', str(asked.machine_rank + 1))": (
        ("distributed.num_machines", "2"),
    ),
    "override(key, 'node0:29500')": (("distributed.rendezvous", "node0:29500"),),
    "override(key, str(devices * asked.num_machines))": (("distributed.num_processes", "4"),),
    "override(key, str(devices * machines))": (("distributed.num_processes", "4"),),
    "override('distributed.rendezvous_timeout', str(2 * asked.rendezvous_timeout))": (
        ("distributed.rendezvous_timeout", "1200"),
    ),
    "override('distributed.num_processes', str(processes))": (("distributed.num_processes", "4"),),
    "override(key, 'false')": (("sft.activation_offloading", "false"),),
}
# beginnings of texts with backticks that are no fix: what they are
NOT_TYPED = {
    "`package`, but no PyPI package is known to carry {name}": "the value of a key",
    "`env` takes no words": "what was found",
    "let an LLM score the answers": "help",
    "Fine-tuned from `{base}`": "a card",
    "u|```python": "a test conversation",
    "PART is step: loss and gradients": "help",
    "a list of entries such as `- override /lora: default`": "YAML",
    "\n\ngroups and their options, the default first (`sftpipe list` says": "help",
}
# files with texts for people that are no fix: Markdown, and what the verbs say of themselves
PROSE = ("runs/card.py", "tables.py", "export/card.py")

# --- configs in which a fix has a meaning ---------------------------------------------------------

ROWS = ["dataset=json", "dataset.data_files=a.jsonl"]
BASES: list[list[str]] = [
    [],
    ["hydra/sweeper=optuna"],
    ["hydra/launcher=slurm"],
    ["recipe=yoda"],
    ["recipe=yoda", *ROWS],
    ["recipe=yoda", "dataset=csv", "dataset.data_files=a.csv"],
    ["recipe=yoda", "dataset=text", "dataset.data_files=a.txt", "format=text", "loss=full"],
    ["recipe=yoda", "dataset=arrow"],
    ["recipe=yoda", "dataset=parquet"],
    ["dataset=function"],
    ["dataset=function", "dataset.function=a.b"],
    ["dataset=mixture"],
    ["recipe=yoda", *ROWS, "format=sharegpt"],
    ["format=function"],
    ["format=template", "format.completion='{b}'"],
    ["format=template", "format.prompt='{a}'"],
    ["loss=response_template", "loss.response_template=a"],
    ["loss=response_template"],
    ["recipe=char_gpt_ko"],
    ["packing=blocks", "loss=full"],
    ["packing=bfd_split"],
    ["loss=assistant_only"],
    ["evaluation.early_stopping={patience: 3}"],
    ["evaluation.early_stopping={patience: 3}", "sft.eval_steps=20"],
    ["evaluation.do_sample=true"],
    ["evaluation.sample_strategy=steps"],
    ["tracking=wandb"],
    ["distributed=ddp"],
    ["distributed=ddp", "distributed.num_machines=2", "distributed.rendezvous=a:1", "run=a"],
    ["distributed=ddp", "distributed.rendezvous=a:1", "run=a"],
    ["distributed=ddp", "distributed.num_machines=2", "run=a"],
    ["tokenizer=bpe", "model=custom", "model.init=random", "model.config.model_type=gpt2"],
    ["format=function", "format.function=a.b"],
    ["evaluation.sample_steps=5"],
    ["dataset=mixture", "dataset.sources=[{path: embedded, name: yoda}]"],
    ["quantization=int8", "lora=default"],
    ["model=custom", "model.name_or_path=null", "model.init=random", "tokenizer=char"],
    ["recipe=yoda", "dataset.columns={output: a}"],
    ["recipe=yoda", *ROWS, "format=text", "loss=full"],
    ["recipe=yoda", "sft.lr_scheduler_type=polynomial"],
    ["recipe=yoda", "sft.lr_scheduler_type=cosine_with_min_lr"],
    ["recipe=yoda", "sft.lr_scheduler_type=cosine_with_restarts"],
    ["recipe=yoda", "lora.target_modules=[q_proj]"],
]


@functools.cache
def composes(*words: str) -> str:
    """Nothing where the words compose over one of `BASES`, else what the last of them says."""
    tops = [word.split("=")[0].split(".")[0] for word in words]
    if set(tops) <= set(run_groups()):
        hub = ["export=hub", "export.repo_id=me/model"]
        bases: list[list[str]] = [[], ["generate.num_beams=4"], ["judge.mode=pairwise"]]
        bases += [["export=gguf"], ["export.repo_id=me/model"], hub, [*hub, "export.what=merged"]]
        run: Callable[..., object] = compose_requests
    else:  # those that speak of the same group first: it is one of them, mostly
        bases, run = sorted(BASES, key=lambda base: not _is_about(base, tops)), compose
    said = ""
    for base in bases:
        try:
            run([*base, *words])
        except ConfigError as error:
            said = str(error)
        else:
            return ""
    return said


def _is_about(base: Sequence[str], groups: Sequence[str]) -> bool:
    return any(word.startswith((f"{group}.", f"{group}=")) for word in base for group in groups)


PROGRAMS = ("pip", "hf", "wandb", "curl", "ollama", "chmod", "python", "lm-eval", "export", "trl")


def try_out(command: str) -> None:
    """Type a command, as far as it can be typed without a network."""
    words = shlex.split(command)
    assert "..." not in command, f"{command} is a pattern: no backticks"
    assert "DIR" not in command, f"{command} is a pattern: no backticks"
    if words[0] == "sftpipe":
        arguments = cli._parse(words[1:]) if words[1] in VERBS else None
        if arguments is None:
            assert words[1] in ("--help", "--version"), command
            return
        overrides = [word for word in arguments.overrides if not word.startswith("run=")]
        if arguments.verb == "bench":
            assert set(overrides) <= set(PARTS)
            return
        if arguments.verb == "list":
            assert set(overrides) <= set(groups()), command
        elif not arguments.multirun:
            assert not overrides or composes(*overrides) == "", command
    elif words[0] in PROGRAMS:
        assert len(words) > 1, command
    else:
        assert composes(*words) == "", (command, composes(*words))


# --- where such texts and calls are ---------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """A text, or a call that makes one."""

    at: str
    text: str
    parts: tuple[str, ...] = ()


def trees() -> Iterator[tuple[str, ast.Module]]:
    for file in sorted(SOURCES.rglob("*.py")):
        yield str(file.relative_to(SOURCES)), ast.parse(file.read_text(encoding="utf-8"))


def spelled(node: ast.expr) -> tuple[str, tuple[str, ...]]:
    """A string as written, with {source} for each part of an f-string, and those sources."""
    if isinstance(node, ast.Constant):
        return str(node.value), ()
    assert isinstance(node, ast.JoinedStr)
    text, parts = "", []
    for one in node.values:
        if isinstance(one, ast.FormattedValue):
            parts.append(ast.unparse(one.value))
            text += f"{{{parts[-1]}}}"
        else:
            text += str(one.value) if isinstance(one, ast.Constant) else ""
    return text, tuple(parts)


def no_texts(tree: ast.Module) -> set[int]:
    """Docstrings, and the constants inside of f-strings."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            found |= {id(one) for one in node.values}
            found |= {id(two) for one in node.values for two in ast.walk(one) if two is not one}
    return found


@functools.cache
def texts() -> tuple[Site, ...]:
    """Every text of the sources with a part in backticks."""
    found = []
    for file, tree in trees():
        skipped = no_texts(tree)
        for node in ast.walk(tree):
            is_text = isinstance(node, ast.JoinedStr) or (
                isinstance(node, ast.Constant) and isinstance(node.value, str)
            )
            if not is_text or id(node) in skipped or file in PROSE:
                continue
            assert isinstance(node, ast.expr)
            text, parts = spelled(node)
            is_typed = bool(errors._TYPED.search(text)) and "[^`]" not in text
            if is_typed and not text.startswith(tuple(NOT_TYPED)):
                found.append(Site(f"{file}:{node.lineno}", text, parts))
    return tuple(found)


_MAKERS = ("override", "override_text", "_override")


@functools.cache
def calls() -> tuple[Site, ...]:
    """Every call of a function that makes an override to type."""
    return tuple(
        Site(f"{file}:{node.lineno}", ast.unparse(node), (file,))
        for file, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in _MAKERS
    )


def filled(site: Site) -> str:
    samples = {**SAMPLES, **TEXTS.get(site.text, {})}
    missing = [part for part in site.parts if part not in samples]
    assert not missing, f"{site.at}: no sample for {missing} of {site.text!r}"
    text = site.text
    for part in site.parts:
        text = text.replace(f"{{{part}}}", samples[part], 1)
    return text


@pytest.mark.parametrize("site", texts(), ids=lambda site: site.at)
def test_what_a_text_says_to_type_works_as_typed(site: Site) -> None:
    commands = errors._TYPED.findall(filled(site))
    assert commands, site
    for command in commands:
        try_out(command)


@pytest.mark.parametrize("site", calls(), ids=lambda site: site.at)
def test_an_override_that_is_made_works_as_typed(site: Site) -> None:
    assert site.text in CALLS, f"{site.at}: no samples for {site.text}"
    makers = {
        "override": errors.override,
        "override_text": errors.override_text,
        "_override": special_tokens._override,
    }
    maker = makers[site.text.partition("(")[0]]
    for key, value in CALLS[site.text]:
        (command,) = errors._TYPED.findall(maker(key, value))
        try_out(command)


# --- patterns, which are not typed as they are ----------------------------------------------------

_OURS = "model|tokenizer|dataset|format|loss|packing|preflight|evaluation|tracking"
_KEY = re.compile(
    rf"(?<![\w./])(?:{_OURS}|sft|lora|quantization|generate|judge|export)\.(?!json|png)[a-z_0-9]+"
)
# a field of GGUF files, and names of files
NO_KEYS = {"tokenizer.ggml", "tokenizer.model", "model.safetensors"}


@functools.cache
def known() -> set[str]:
    """All keys, by their group and the name after it."""
    of_runs = {"generate": GenerateConfig, "judge": JudgeConfig, "export": ExportConfig}
    keys = {f"{group}.{one.name}" for group, cls in of_runs.items() for one in fields(cls)}
    return keys | set(_all_keys())


def test_every_key_that_a_text_names_exists() -> None:
    wrong = []
    for file, tree in trees():
        if file == "config/synonyms.py":  # names of other tools; the next test looks at ours
            continue
        skipped = no_texts(tree)
        for node in ast.walk(tree):
            is_text = isinstance(node, ast.JoinedStr) or (
                isinstance(node, ast.Constant) and isinstance(node.value, str)
            )
            if not is_text or id(node) in skipped:
                continue
            assert isinstance(node, ast.expr)
            text, parts = spelled(node)
            for part in parts:
                text = text.replace(f"{{{part}}}", "\0")
            found = set(_KEY.findall(text)) - known() - NO_KEYS
            wrong += [f"{file}:{node.lineno}: {key}" for key in found]
    assert wrong == []


def test_what_stands_for_another_name_can_be_written() -> None:
    """The targets of other tools' names, and the keys that own a field."""
    named = [*SYNONYMS.values(), *MOVED.values()]
    for target in {target for table in named for target in table.values()}:
        if "=" in target:
            assert composes(target) == "", target
        else:
            assert target in known() | set(groups()), target
