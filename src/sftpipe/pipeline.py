"""The spine: every step of a run, in order.

    config -> data -> tokenizer -> format -> encode + labels -> pack -> preflight
           -> model + adapter -> trainer -> artifacts

`prepare` makes and checks the rows, `train` makes the model of them. Data comes before the model on
purpose: bad data fails before gigabytes are loaded. Imports of trl and peft, which cost seconds,
wait in `check` and `train`, so that `preview`, which needs neither, is quick.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from functools import partial

import sftpipe.ranks as ranks
from sftpipe.config.options import conf_dir
from sftpipe.config.schema import TrainConfig
from sftpipe.data.packing import Collator
from sftpipe.data.preflight.report import check_data
from sftpipe.data.prepare import (
    PreparedData,
    corpus_key,
    encode_sources,
    make_encoder,
    named_validation,
    pack_splits,
    sample_readers,
    tokenizer_corpus,
)
from sftpipe.data.row_function import call_row_functions
from sftpipe.data.source import load_sources, sources_sha256
from sftpipe.launch import check_launched_once, launch, processes_here
from sftpipe.model.weights import Weights, find_weights
from sftpipe.runs.facts import check_ranks, compute_as_begun, say_what_differs
from sftpipe.runs.folder import RunFolder
from sftpipe.runs.load import Run, load_run
from sftpipe.runs.lock import held
from sftpipe.runs.plan import RunPlan, check_still_true, plan_run
from sftpipe.runs.write import open_run, write_hydra
from sftpipe.tables import adapter_line, parameter_line, preflight_summary, run_lines
from sftpipe.terminal import console, quiet, quiet_libraries
from sftpipe.tokenizer.make import make_tokenizer


def prepare(
    cfg: TrainConfig, weights: Weights | None = None, day: datetime.date | None = None
) -> PreparedData:
    """Finished, checked rows, without a model: what `preview` and `check` show.

    Args:
        cfg: from `sftpipe.compose`.
        weights: the base weights, where they are known; by default looked for.
        day: the date that chat templates may write; by default today.

    Raises:
        SftpipeError: the weights, the data set, the tokenizer, or everything that the preflight
            found.
    """
    # longer than most: a line a step, so that one read shows all of them
    with quiet(), quiet_libraries():
        from sftpipe.model import further
        from sftpipe.model.architecture import check_windows
        from sftpipe.model.isolation import find_isolation
        from sftpipe.model.targets import check_targets

        weights = weights or find_weights(cfg.model, cfg.seed)
        check_windows(cfg, weights)
        check_targets(cfg, weights)
        further.check_base(cfg.lora, weights)
        sources = load_sources(cfg.dataset, cfg.format, cfg.allowed_targets)
        sources = call_row_functions(sources, cfg)
        tokenizer, new_tokens = make_tokenizer(
            cfg.tokenizer,
            path=weights.path,
            revision=weights.revision,
            markers=cfg.dataset.marker_tokens if cfg.dataset.markers == "special" else (),
            templates=conf_dir() / "chat_template",
            corpus=partial(tokenizer_corpus, sources, cfg=cfg),
            corpus_key=corpus_key(sources, cfg),
        )
        further.check_tokens(cfg.lora, tokenizer, new_tokens)
        encoder = make_encoder(tokenizer, cfg, day)
        readers = sample_readers(sources, tokenizer, cfg)
        parts = encode_sources(sources, readers, encoder, cfg)
        isolation = find_isolation(cfg, weights)
        rows, packing = pack_splits(parts, cfg, isolation)
        preflight = check_data(parts, rows, encoder, cfg, packing)
        return PreparedData(
            train=rows["train"],
            validation=rows.get("validation"),
            test=rows.get("test"),
            tokenizer=tokenizer,
            preflight=preflight,
            collate=Collator(
                int(tokenizer.pad_token_id),
                cfg.sft.get("pad_to_multiple_of"),
                isolation.method if isolation else None,
            ),
            isolation=isolation,
            encoder=encoder,
            readers=readers,
            new_tokens=new_tokens,
            sha256=sources_sha256(sources, cfg.dataset),
            named_validation=named_validation(rows),
        )


def check(cfg: TrainConfig) -> PreparedData:
    """What `sftpipe check` does: the run in miniature, then finished, checked rows.

    Raises:
        SftpipeError: what `train` would end in before its first step, as far as that can be known
            without the model.
    """
    with quiet(), quiet_libraries():
        from sftpipe.model.precision import choose_precision
        from sftpipe.training.rehearsal import rehearse

        precision = choose_precision(cfg.model, use_cpu=bool(cfg.sft.get("use_cpu", False)))
        if cfg.distributed is not None:
            processes_here(cfg)
        weights = find_weights(cfg.model, cfg.seed)
        rehearse(cfg, weights, precision)
        return prepare(cfg, weights)


def train(
    cfg: TrainConfig, plan: RunPlan | None = None, hydra: Mapping[str, str] | None = None
) -> Run:
    """Train as `cfg` says and write the run folder.

    Args:
        cfg: from `sftpipe.compose`.
        plan: where to write and where to begin; by default what `cfg` asks for.
        hydra: {name: text} of Hydra's records, for the run folder.

    Raises:
        SftpipeError: whatever a user can fix; `Interrupted` after a signal and a checkpoint.
    """
    plan = plan or plan_run(cfg)
    if ranks.notes() is None:
        check_launched_once()
        if cfg.distributed is not None and not plan.complete:
            launch(cfg, plan, hydra or {})
            return load_run(plan.folder)
    for line in plan.said.splitlines():
        console.print(f"resume    {line}", markup=False)
    if plan.complete:
        return load_run(plan.folder)
    # longer than most: see `prepare`
    with ranks.only_first(held(plan.folder)), quiet(), quiet_libraries():
        from sftpipe.evaluation.questions import sample_questions
        from sftpipe.model import adapters, embedding, fast, further, isolation, load
        from sftpipe.runs.card import write_card
        from sftpipe.runs.record import Record
        from sftpipe.runs.report.loss_png import plot_loss
        from sftpipe.runs.report.page import write_page
        from sftpipe.training.callbacks import watch
        from sftpipe.training.rehearsal import rehearse
        from sftpipe.training.tracking import check_tracking, track
        from sftpipe.training.trainer import build_arguments, build_trainer

        check_tracking(cfg.tracking)
        folder = RunFolder(plan.folder)
        if ranks.is_first():
            check_still_true(plan)
            write_hydra(plan, hydra or {})
        precision = compute_as_begun(plan, cfg)
        arguments = build_arguments(cfg.sft, seed=cfg.seed, folder=plan.folder, precision=precision)
        with ranks.first_goes_first():
            weights = find_weights(cfg.model, cfg.seed)
        console.print(run_lines(weights.identity, precision.reason, plan.folder))

        if ranks.is_first():
            rehearse(cfg, weights, precision)
        with ranks.first_goes_first():
            data = prepare(cfg, weights, plan.day)
        check_ranks(cfg, weights, precision, data)
        say_what_differs(plan, cfg, weights, precision, data)
        console.print(f"data      {preflight_summary(data.preflight)}", markup=False)
        with console.status("Loading the model ..."):
            model = load.make_base(cfg, weights, data.tokenizer, precision)
        embedding_rows = embedding.fit_to_tokenizer(
            model, data.tokenizer, data.end_ids(), data.new_tokens, cfg.tokenizer.pad_to_multiple_of
        )
        divided = load.is_divided(cfg)
        if not divided:
            isolation.verify(model, data.isolation)
        if ranks.is_first():
            open_run(plan, cfg, weights, precision, data)

        adapter = adapters.make_adapter(cfg.lora, model, weights, data.trained_tokens())
        trainer = build_trainer(
            arguments, model, adapter, data, precision, folder.log, divided=divided
        )
        further.take_weights(trainer.model, cfg.lora)
        if precision.fast and not divided:
            joins_rows = fast.speed_up(trainer.model, cfg.model, weights)
            trainer.joins_rows = all(ranks.gathered(joins_rows))
        if adapter is not None:
            modules = adapters.adapted_modules(trainer.model)
            console.print(adapter_line(modules, adapter.r), markup=False)
        console.print(parameter_line(*adapters.count_parameters(trainer.model)))
        if divided:
            trainer.divide()
            isolation.verify(trainer.model, data.isolation)
        questions = sample_questions(cfg, data, trainer.model.config)
        record = Record(folder, trainer, data, cfg.evaluation, questions, plan.checkpoint)
        with track(cfg, plan.folder, trainer) as tracker:
            record.before()
            early_stopping = cfg.evaluation.early_stopping if cfg.evaluation else None
            with watch(trainer, plan.folder, record.epoch, record.step, early_stopping):
                trainer.train(plan.checkpoint)
            record.after()
            tracker.finish(record.metrics, record.samples)

        trainer.save_final()
        if ranks.is_first():
            plot_loss(folder)
            write_card(folder, cfg, weights.identity, embedding_rows)
            write_page(plan.folder, "complete")
            folder.close()
        ranks.meet()
    return load_run(plan.folder)
