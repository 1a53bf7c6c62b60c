"""The spine: the steps of a run, in order.

    config -> tokenizer -> data -> format -> encode + labels + pack -> model + adapter -> trainer ->
    artifacts

A tokenizer that is trained by the run (tokenizer=char, bpe) waits for the data and is made of its
texts. Data comes before the model on purpose: bad data fails before gigabytes are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sftpipe.config.options import conf_dir
from sftpipe.config.schema import TrainConfig
from sftpipe.data.packing import ISOLATED, Collator, Isolation
from sftpipe.data.prepare import PreparedData, prepare_data, texts
from sftpipe.data.source import Source, load_sources
from sftpipe.errors import DataError, Problem, one_line
from sftpipe.model.weights import Weights, find_weights
from sftpipe.runs.folder import RunPlan, close_run, open_run, plan_run, write_metrics, write_samples
from sftpipe.runs.load import Run, load_run, read_metrics, samples_until
from sftpipe.terminal import console, quiet, quiet_libraries
from sftpipe.tokenizer.load import load_tokenizer, settle_tokenizer

if TYPE_CHECKING:
    from sftpipe.training.trainer import Trainer


def prepare(cfg: TrainConfig) -> PreparedData:
    """Tokenizer, data, format, encoding, without a model: what `preview` and `check` show.

    Raises:
        SftpipeError: the tokenizer, the data or the preflight.
    """
    with quiet(), quiet_libraries():
        return _prepare(cfg, find_weights(cfg.model, cfg.seed))


def _prepare(cfg: TrainConfig, weights: Weights) -> PreparedData:
    _check_blocks(cfg, weights)
    tokenizer, new_tokens, sources = _tokenizer(cfg, weights)
    kept = _keep_apart(cfg, weights)
    collate = Collator(
        int(tokenizer.pad_token_id), cfg.sft.get("pad_to_multiple_of"), kept.apart if kept else None
    )
    data = replace(prepare_data(cfg, tokenizer, collate, kept, sources), new_tokens=new_tokens)
    _check_prompts(cfg, data)
    if data.validation is None and cfg.sft.get("eval_strategy", "no") != "no":
        raise DataError(
            Problem(
                "sft.eval_strategy",
                f"{cfg.sft['eval_strategy']!r}, but the data set has no validation split",
                fix="dataset.validation_size=0.1, or sft.eval_strategy=no",
            )
        )
    return data


def _tokenizer(
    cfg: TrainConfig, weights: Weights
) -> tuple[Any, Sequence[int], list[Source] | None]:
    """The tokenizer of a run, the ids of its new tokens, and the data that it was trained on; None for a loaded one, which needs none."""
    templates, markers = (
        conf_dir() / "chat_template",
        cfg.dataset.marker_tokens if cfg.dataset.markers == "special" else (),
    )
    if cfg.tokenizer.type == "pretrained":
        tokenizer = load_tokenizer(cfg.tokenizer, weights)
        return tokenizer, settle_tokenizer(tokenizer, cfg.tokenizer, templates, markers), None
    from sftpipe.tokenizer.train import blank_tokenizer, train_tokenizer

    sources = load_sources(cfg.dataset, cfg.format, cfg.allowed_targets)
    blank = blank_tokenizer(cfg.tokenizer)
    settle_tokenizer(blank, cfg.tokenizer, templates, markers)
    tokenizer = train_tokenizer(cfg.tokenizer, texts(cfg, sources, blank))
    settle_tokenizer(tokenizer, cfg.tokenizer, templates, markers)
    return tokenizer, (), sources


def _check_blocks(cfg: TrainConfig, weights: Weights) -> None:
    """The windows of packing=blocks must fit the model's positions."""
    if cfg.packing is None or cfg.packing.block_size is None:
        return
    from sftpipe.model.architecture import check_room, model_config

    size = cfg.packing.block_size
    check_room(model_config(cfg.model, weights), size + 1, "packing.block_size", size, "windows")


def _check_prompts(cfg: TrainConfig, data: PreparedData) -> None:
    """A character that a prompt of the config holds and the tokenizer does not would be lost without a word."""
    for index, prompt in enumerate((cfg.evaluation and cfg.evaluation.sample_prompts) or ()):
        error = data.encoder.lost_character([prompt], f"evaluation.sample_prompts[{index}]")
        if error:
            fix = "another prompt" + (
                ", or tokenizer.unk_token='[UNK]' to read it as that"
                if cfg.tokenizer.type == "char"
                else ""
            )
            raise DataError(replace(error.problem, fix=fix))


def _keep_apart(cfg: TrainConfig, weights: Weights) -> Isolation | None:
    """How this run keeps packed sequences apart; None where none are packed, or where they are joined on purpose (wrapped)."""
    if cfg.packing is None or cfg.packing.strategy not in ISOLATED:
        return None
    if cfg.packing.isolation == "trust":
        return Isolation("positions")
    from sftpipe.model.isolation import small_isolation

    return small_isolation(cfg.model, weights)


def train(cfg: TrainConfig, plan: RunPlan | None = None) -> Run:
    """Train as `cfg` says and write the run folder.

    Args:
        cfg: from `sftpipe.compose`.
        plan: where to write and where to begin; by default what `cfg` asks for.

    Raises: SftpipeError: whatever a user can mend; `Interrupted` after SIGINT or SIGTERM, with a
        checkpoint written.
    """
    plan = plan or plan_run(cfg)
    if plan.complete:
        console.print(f"{plan.folder} is complete; there is nothing to do.")
        return load_run(plan.folder)
    with quiet(), quiet_libraries():
        from sftpipe.model import load as models
        from sftpipe.model.isolation import verify
        from sftpipe.training.trainer import build_arguments, build_trainer

        precision = models.choose_precision(cfg.model, use_cpu=bool(cfg.sft.get("use_cpu", False)))
        arguments = build_arguments(cfg.sft, seed=cfg.seed, folder=plan.folder, precision=precision)
        weights = find_weights(cfg.model, cfg.seed)
        console.print(
            f"weights   {weights.identity}\ndevice    {precision.reason}\nfolder    {plan.folder}"
        )

        data = _prepare(cfg, weights)
        console.print(
            f"data      {data.preflight.summary()}", markup=False
        )  # a text may hold [/INST]
        with console.status("Loading the model ..."):
            if cfg.model.init == "random":
                model = models.random_base(cfg.model, weights, data.tokenizer, cfg.seed, precision)
            else:
                model = models.load_base(
                    cfg.model, cfg.quantization, weights, precision, frozen=bool(cfg.lora)
                )
            rows = models.fit_to_tokenizer(
                model,
                data.tokenizer,
                data.end_ids(),
                data.new_tokens,
                cfg.tokenizer.pad_to_multiple_of,
            )
            if cfg.packing and cfg.packing.isolation == "verify" and data.isolation:
                verify(model, data.isolation)
        open_run(plan, cfg, weights.identity, precision.reason, data)

        adapter = (
            models.lora_config(cfg.lora, weights, models.token_rows(model, data.trained_tokens()))
            if cfg.lora
            else None
        )
        trainer = build_trainer(arguments, model, adapter, data, precision)
        trained, total = models.count_parameters(trainer.model)
        console.print(f"training  {trained:,} of {total:,} parameters ({trained / total:.2%})")
        _train_and_measure(cfg, plan, data, trainer)
        _save(cfg, plan, weights, rows, trainer)
    return load_run(plan.folder)


def _train_and_measure(
    cfg: TrainConfig, plan: RunPlan, data: PreparedData, trainer: Trainer
) -> None:
    """Measure, train, measure. A run that goes on from a checkpoint finds its first measurement in the run folder."""
    from sftpipe.evaluation.answers import sample_prompts
    from sftpipe.evaluation.losses import sample_answers, split_loss, train_metrics
    from sftpipe.model.architecture import check_room
    from sftpipe.runs.report import short_prompts
    from sftpipe.training.callbacks import EpochSamples, watch
    from sftpipe.training.tracking import track

    metrics: dict[str, Any] = read_metrics(plan.folder) if plan.checkpoint else {}
    samples = samples_until(plan.checkpoint) if plan.checkpoint else []
    prompts = sample_prompts(cfg.evaluation, cfg.format, data) if cfg.evaluation else []
    if cfg.evaluation and prompts:
        new = cfg.evaluation.max_new_tokens
        longest = max(len(prompt.input_ids) for prompt in prompts) + new
        otherwise = "short prompts of your own: evaluation.sample_prompts=[...]"
        check_room(
            trainer.model.config,
            longest,
            "evaluation.max_new_tokens",
            new,
            "prompts and answers",
            otherwise,
        )
    validates = cfg.evaluation is not None and data.validation is not None

    def answer(phase: str) -> None:
        if cfg.evaluation:
            samples.extend(sample_answers(trainer, prompts, phase, cfg.evaluation))
        write_samples(plan.folder, samples)

    def measure(phase: str) -> None:
        with console.status(f"Measuring {phase} training ..."):
            if validates:
                metrics.setdefault("validation", {})[phase] = split_loss(
                    trainer, data.validation, "validation"
                )
            if cfg.evaluation and data.test is not None and phase == "after":
                metrics["test"] = split_loss(trainer, data.test, "test")
            write_metrics(plan.folder, metrics)
            answer(phase)

    def answer_behind_epoch(number: int) -> None:
        answer(f"epoch {number}")
        asked, answered = (
            short_prompts([prompt.text for prompt in prompts])[0],
            samples[-len(prompts)]["completion"],
        )
        console.print(f"epoch {number}   {asked}\n     ->   {one_line(answered)}", markup=False)

    with track(cfg, plan.folder, trainer) as tracker:
        if plan.checkpoint is None:
            measure("before")
        if prompts and cfg.evaluation and cfg.evaluation.sample_strategy == "epoch":
            trainer.add_callback(EpochSamples(answer_behind_epoch))
        with watch(trainer, plan.folder):
            trainer.train(resume_from_checkpoint=str(plan.checkpoint) if plan.checkpoint else None)
        metrics = {"train": train_metrics(trainer), **metrics}
        measure("after")
        tracker.finish(metrics, samples)


def _save(
    cfg: TrainConfig, plan: RunPlan, weights: Weights, rows: tuple[int, int], trainer: Trainer
) -> None:
    """Model, tokenizer, curves and card into the run folder; COMPLETE comes last."""
    from sftpipe.runs.report import plot_loss, write_card

    trainer.save_final()
    plot_loss(plan.folder)
    write_card(plan.folder, cfg, weights.identity, rows)
    close_run(plan.folder)
