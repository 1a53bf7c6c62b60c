"""Our SFTTrainer: the loss, the evaluation, the checkpoints.

Shapes: B rows of a batch, T tokens of its longest row, N trained positions of the batch, H hidden
    size, V size of the vocabulary.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from accelerate.data_loader import SeedableRandomSampler
from peft import PeftConfig, PeftModel
from torch.utils.data import RandomSampler, SequentialSampler
from transformers import PreTrainedModel, set_seed
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_callback import ExportableState, PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTConfig, SFTTrainer

import sftpipe.ranks as ranks
from sftpipe.config.lora import INITIAL_ADAPTER
from sftpipe.data.labels import IGNORED
from sftpipe.data.packing import RandomWindows
from sftpipe.data.prepare import PreparedData
from sftpipe.errors import ConfigError, ModelError, Problem, one_line, override
from sftpipe.model.fast import joined, sequences
from sftpipe.model.initial import make_plain, start_from_base, takes_from_base
from sftpipe.model.precision import Precision
from sftpipe.storage import publish_files, publish_folder
from sftpipe.training import sharding
from sftpipe.training.callbacks import (
    Counter,
    EarlyStopping,
    EpochEnd,
    LogFile,
    Unlogged,
    peak_memory_bytes,
)
from sftpipe.training.divergence import Explosion, check_loss, check_weights
from sftpipe.training.order import (
    EpochLengthSampler,
    Filled,
    FilledSampler,
    WindowSampler,
    without_fill,
)

T = TypeVar("T")
# seconds that processes wait for each other: for data that the first prepares, for its answers; one
# that dies is noticed by torchrun
_PATIENCE_S = 6 * 3600


def build_arguments(
    sft: Mapping[str, Any], *, seed: int, folder: Path, precision: Precision
) -> SFTConfig:
    """The `SFTConfig` of the `sft` group, with what other keys own filled in.

    Raises:
        ConfigError: transformers or TRL rejects a value, or it needs a GPU.
    """
    fields = {
        # torch takes no whole number for a beta
        name: float(value) if name.startswith("adam_") else value
        for name, value in sft.items()
        if name not in ("resume_from_checkpoint", "max_length")
    }
    fields.setdefault("dataloader_pin_memory", precision.device == "cuda")
    if fields.get("activation_offloading") and precision.device == "cpu":
        key, found = "sft.activation_offloading", "true, and the run is on a CPU already"
        raise ConfigError(Problem(key, found, fix=override(key, "false")))
    fields["use_cpu"] = precision.device == "cpu"
    try:
        arguments = SFTConfig(
            **fields,
            output_dir=str(folder),
            seed=seed,
            data_seed=seed,
            report_to="none",
            disable_tqdm=True,
            restore_callback_states_from_checkpoint=True,
            bf16=precision.compute is torch.bfloat16,
            fp16=precision.compute is torch.float16,
            **_between_processes(precision),
            # the rows are finished: TRL must not truncate, drop, pack or shuffle them again
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            packing=False,
            shuffle_dataset=False,
        )
        arguments._n_gpu = min(1, arguments.n_gpu)  # transformers would take all by DataParallel
        return arguments
    except (TypeError, ValueError, ImportError, OSError) as error:
        raise ConfigError(
            Problem("sft", f"SFTConfig refuses it: {error}", fix="see SFTConfig in TRL's docs")
        ) from None


def _between_processes(precision: Precision) -> dict[str, Any]:
    """What `SFTConfig` needs to know of several processes; nothing for one."""
    if ranks.world_size() == 1:
        return {}
    return {
        "ddp_backend": "nccl" if precision.device == "cuda" else "gloo",
        "ddp_timeout": _PATIENCE_S,
        "ddp_broadcast_buffers": False,  # no model of ours changes one
        # every trained parameter has a gradient, of a batch without labels too; looking for others
        # does not go with checkpointing
        "ddp_find_unused_parameters": False,
    }


def build_trainer(
    arguments: SFTConfig,
    model: PreTrainedModel,
    adapter: PeftConfig | None,
    data: PreparedData,
    precision: Precision,
    log: Path,
    *,
    divided: bool = False,
) -> SFTPipeTrainer:
    """The trainer of a run, on finished rows; it attaches the adapter and writes its log.

    Args:
        arguments: of `build_arguments`.
        model: the base.
        adapter: None trains every weight.
        data: rows and tokenizer.
        precision: for the dtype of what is trained.
        log: gets a line each time the trainer logs.
        divided: `divide` comes next, so the model stays where it is.

    Raises:
        ModelError: PEFT or TRL rejects the model with this adapter.
    """
    # longer than most: the arguments of TRL's trainer take a line each
    init = _start_plain(adapter)
    collate = without_fill(data.collate) if ranks.world_size() > 1 else data.collate
    try:
        trainer = SFTPipeTrainer(
            adapter_dtype=precision.trained,
            divided=divided,
            model=model,
            args=arguments,
            train_dataset=data.train,
            eval_dataset=dict(data.named_validation) or data.validation,
            data_collator=collate,
            processing_class=data.tokenizer,
            peft_config=adapter,
        )
    except ValueError as error:
        found = f"TRL or PEFT refuses it with this model: {one_line(error)}"
        key = "lora.target_modules" if "target_modules" in str(error) else "sft"
        fix = "another value of the key that it names"
        raise ModelError(Problem(key, found, fix=fix)) from None
    if init:
        trainer.initial = Path(arguments.output_dir) / INITIAL_ADAPTER
        with ranks.first_goes_first():
            start_from_base(trainer.model, init, trainer.initial, arguments.seed)
    if data.preflight.packing and data.preflight.packing.strategy == "blocks":
        trainer.train_dataset = RandomWindows(data.train)
    if ranks.is_first():
        trainer.add_callback(LogFile(log))
    return trainer


def _start_plain(adapter: Any) -> str | None:
    """Let PEFT begin a plain adapter; returns the start that `start_from_base` gives it then."""
    if adapter is None or not takes_from_base(adapter):
        return None
    init, adapter.init_lora_weights = str(adapter.init_lora_weights), True
    return init


class SFTPipeTrainer(SFTTrainer):
    """TRL's trainer, with a loss at trained positions only and checkpoints whole or absent."""

    def __init__(self, *, adapter_dtype: torch.dtype, divided: bool = False, **kwargs: Any) -> None:
        # by fully_shard, see `divide`
        self.divided = divided
        super().__init__(**kwargs)
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        # TRL casts every trained parameter of a 4-bit model to bfloat16, also on a CPU; the
        # optimizer does not exist yet
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(adapter_dtype)
        self.add_callback(Counter())
        for callback in (Unlogged(), EpochEnd(), Explosion()):
            self.add_callback(callback)
        self._eval_sums = [0.0, 0, 0]  # nll, right tokens, tokens
        # transformers has these two from the first step on
        self._tr_loss, self._globalstep_last_logged = torch.tensor(0.0), 0
        # the folder in which transformers writes the checkpoint that is being made
        self._staging: Path | None = None
        # the model takes the rows of a batch joined, see `sftpipe.model.fast`
        self.joins_rows = False
        # of several processes: the order of the rows of an epoch
        self._order: FilledSampler | None = None
        # what an adapter that was taken out of the base weights began as
        self.initial: Path | None = None

    @property
    def counter(self) -> Counter:
        """Sums over what was trained so far; looked up, because resuming replaces the callback."""
        return self._callback(Counter)

    def _callback(self, kind: type[T]) -> T:
        return next(one for one in self.callback_handler.callbacks if isinstance(one, kind))

    def divide(self) -> None:
        """Divide the model among the processes (distributed=fsdp2); every process calls it.

        It comes before the first evaluation, and before there is an optimizer.
        """
        sharding.shard(self.model, self.args.device)
        # transformers' word for a model that accelerate must not wrap; it would not be checkpointed
        # if it had been so from the start
        self.is_distributed_loading_by_transformers = True

    def _move_model_to_device(self, model: torch.nn.Module, device: torch.device) -> None:
        if not self.divided:  # else `divide` does, a part at a time
            super()._move_model_to_device(model, device)

    def _defer_fsdp_gradient_reduction(self) -> AbstractContextManager[None]:
        """Exchange the gradients of every batch that is accumulated.

        Until the exchange each process would hold those of the whole model.
        """
        return nullcontext()

    def _send_telemetry(self) -> None:
        """TRL reports each run to the hub; sftpipe reports nothing."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The run folder gets sftpipe's own card."""

    def train(self, resume_from_checkpoint: Path | None = None, **kwargs: Any) -> Any:
        """Train from one random state, whatever was measured before.

        Dropout is then the same in a fresh and in a resumed process.
        """
        set_seed(self.args.seed + ranks.rank())  # each process drops out by itself
        checkpoint = str(resume_from_checkpoint) if resume_from_checkpoint else None
        if checkpoint:
            self.args.eval_on_start = False  # it was done at the start of the run
        if self.args.world_size > 1:  # accelerate takes a model that was evaluated for wrapped
            self.model._is_accelerate_prepared = False
        return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> Any:
        """The best checkpoint is the one in the run folder, also where the folder was moved."""
        trained = super()._init_training_state(max_steps, *args, **kwargs)
        best = Path(self.args.output_dir) / f"checkpoint-{self.state.best_global_step}"
        self.state.best_model_checkpoint = str(best) if best.is_dir() else None
        self.state.compute_steps(self.args, max_steps)  # those of the config, not the checkpoint's
        for callback in self.callback_handler.callbacks:  # those that an older version did not have
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks.setdefault(type(callback).__name__, callback.state())
        return trained

    def _run_epoch(self, **kwargs: Any) -> None:
        """No step of a run that had ended when its checkpoint was written.

        transformers looks for the last step, and at early stopping, after the next step only.
        """
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            return
        resumed = kwargs["resume_from_checkpoint"] is not None
        if resumed and kwargs["epoch"] == kwargs["epochs_trained"]:
            self._callback(Unlogged).give_back(self)
        if self._order is not None:
            # accelerate does not tell it where batches are skipped, and the order would be another
            self._order.set_epoch(kwargs["epoch"])
        super()._run_epoch(**kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if isinstance(self.train_dataset, RandomWindows):
            return WindowSampler(self.train_dataset, self.args.seed)
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            return EpochLengthSampler(self.args.seed, sampler)
        return sampler

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Callable[[Any], Any] | None = None,
        **keywords: Any,
    ) -> Any:
        """Batches of this process: its part of those that one process would take."""
        if self.args.world_size == 1:
            return super()._get_dataloader(
                dataset, description, batch_size, sampler_fn=sampler_fn, **keywords
            )
        order = sampler_fn(dataset) if sampler_fn is not None else None
        if isinstance(order, RandomSampler):  # what accelerate makes of it in one process
            order = SeedableRandomSampler(dataset, data_seed=self.args.data_seed)
        elif order is None:
            order = SequentialSampler(dataset)
        drops = self.args.dataloader_drop_last
        multiple = 1 if drops else batch_size * self.args.world_size
        filled = FilledSampler(order, len(dataset), multiple)
        if keywords.get("is_training"):
            self._order = filled
        return super()._get_dataloader(
            Filled(dataset), description, batch_size, sampler_fn=lambda _: filled, **keywords
        )

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """All rows: `sft.dataloader_drop_last` is about the batches of training."""
        drops = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = False
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last = drops

    # --- loss -------------------------------------------------------------------------------------

    def _project(
        self, model: torch.nn.Module, inputs: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Logits at the positions whose next token is trained.

        The positions are selected by a hook before the output embedding. The module itself still
        runs, so what wraps it (PEFT) and what follows it (soft-capping) stays in effect, and the
        product with its (V, H) weights is made for N positions instead of B * T.

        Returns:
            logits (N, V) in float32, targets (N,), and the model's outputs.
        """
        lengths = None
        if self.joins_rows and (row := joined(inputs)) is not None:
            inputs, lengths = row
        labels, mask = inputs["labels"], inputs.get("attention_mask")
        # a mask of packed rows is added to the attention scores, so it needs their dtype
        if mask is not None and mask.is_floating_point():
            inputs = {**inputs, "attention_mask": mask.to(self.model.dtype)}
        trained = torch.zeros_like(labels, dtype=torch.bool)
        trained[:, :-1] = labels[:, 1:] != IGNORED  # position t predicts token t + 1
        targets = labels[:, 1:][trained[:, :-1]]

        def select(_: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden = arguments[0]  # (B, T, H)
            return (hidden[trained.to(hidden.device)].unsqueeze(0), *arguments[1:])  # (1, N, H)

        unlabelled = {name: value for name, value in inputs.items() if name != "labels"}
        hook = self.model.get_output_embeddings().register_forward_pre_hook(select)
        try:
            with sequences(lengths):
                outputs = model(**unlabelled, use_cache=False)
        finally:
            hook.remove()
        logits = outputs.logits[0].float()
        return logits, targets.to(logits.device), outputs

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Mean loss per trained token of the whole optimizer step, whatever the accumulation.

        `sft.loss_type` is nll or dft.
        """
        if self.aux_loss_enabled:
            inputs = {**inputs, "output_router_logits": True}
        logits, targets, outputs = self._project(model, inputs)
        smoothing = self.args.label_smoothing_factor if self.args.loss_type == "nll" else 0.0
        # (N,)
        per_token = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
        if self.args.loss_type == "dft":  # https://arxiv.org/abs/2508.05629
            per_token = per_token * torch.exp(-per_token).detach()
        tokens = targets.numel() if num_items_in_batch is None else num_items_in_batch
        loss = per_token.sum() / torch.as_tensor(tokens, device=per_token.device).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # the count is of all ranks, and DDP averages over them
            loss = loss * self.accelerator.num_processes
        if self.aux_loss_enabled:
            whole_step = num_items_in_batch is not None
            steps = self.current_gradient_accumulation_steps if whole_step else 1
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / steps
        with torch.no_grad():
            right = (logits.argmax(-1) == targets).sum().item()
        loss_sum = per_token.sum().item()
        check_loss(self, loss_sum, inputs)
        if targets.numel():  # else a row that fills the last batch of several processes
            self.counter.add(inputs, trained=targets.numel(), loss_sum=loss_sum, right=right)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, None, None]:
        """Add a batch to the sums of an evaluation; always plain negative log-likelihood."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            logits, targets, _ = self._project(model, inputs)
            nll = F.cross_entropy(logits, targets, reduction="sum")
        check_loss(self, nll.item(), inputs)
        self._eval_sums[0] += nll.item()
        self._eval_sums[1] += (logits.argmax(-1) == targets).sum().item()
        self._eval_sums[2] += targets.numel()
        return nll / max(1, targets.numel()), None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """transformers averages over batches; this averages over trained tokens."""
        self._eval_sums = [0.0, 0, 0]
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        nll, right, tokens = ranks.total(*self._eval_sums)
        loss = nll / max(1, tokens)
        output.metrics[f"{metric_key_prefix}_loss"] = loss
        output.metrics[f"{metric_key_prefix}_perplexity"] = math.exp(min(loss, 700.0))
        output.metrics[f"{metric_key_prefix}_mean_token_accuracy"] = right / max(1, tokens)
        return output

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """transformers keeps the best checkpoint alone; a run that a signal stopped needs its last.

        It goes on from there, and the best may be far behind.
        """
        limit = self.args.save_total_limit
        if not self.has_ended:
            self.args.save_total_limit = None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    @property
    def has_ended(self) -> bool:
        """True after the last step, and where early stopping has ended the training."""
        callbacks = self.callback_handler.callbacks
        early = any(isinstance(one, EarlyStopping) and one.has_ended for one in callbacks)
        return early or bool(self.state.global_step >= self.state.max_steps)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what is the same in a run and in a resumed one, as JSON can say it.

        The last entry, of the whole training, has the loss of all attempts. A gradient that is no
        number is null.
        """
        if "train_runtime" in logs:
            self._metrics["train"].clear()
            logs["train_loss"] = self.counter.loss
            logs["num_tokens"] = self.counter.tokens
        elif "loss" in logs:
            logs["tokens_per_s"] = self.counter.rate()
            logs["mean_token_accuracy"] = self.counter.accuracy()
            logs["num_tokens"] = self.counter.tokens
            logs["peak_memory_bytes"] = peak_memory_bytes()
        for name in [name for name, value in logs.items() if not math.isfinite(value)]:
            logs[name] = None  # type: ignore[assignment]
        super().log(logs, start_time)

    # --- saving -----------------------------------------------------------------------------------

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """Write safetensors and tokenizer.

        No pickled training_args.bin, no copies of embeddings, no second README.
        """
        if self.divided and state_dict is None:
            state_dict = sharding.whole_weights(self.model)
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        extra = {"save_embedding_layers": False} if isinstance(self.model, PeftModel) else {}
        self.model.save_pretrained(folder, state_dict=state_dict, **extra)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's
        self.processing_class.save_pretrained(folder)

    def _bytes_trained(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)

    def save_final(self) -> None:
        """Write model, tokenizer and trainer_state.json to the run folder, each file whole.

        Every process calls it, and the first writes.
        """
        check_weights(self)
        whole = sharding.whole_weights(self.model) if self.divided else None
        if not ranks.is_first():
            return
        self._rotate()  # a kill right after the last checkpoint has left one too many
        with publish_files(Path(self.args.output_dir), self._bytes_trained()) as partial:
            self._save(str(partial), whole)
            if self.initial is not None:
                make_plain(partial, self.initial)
            self.state.save_to_json(str(partial / "trainer_state.json"))

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write a checkpoint beside its final name, hash, flush and rename it; remove old ones."""
        check_weights(self)
        self._callback(Unlogged).take(self)
        final = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(final)
        best = self.state.best_model_checkpoint
        if not ranks.is_first():
            super()._save_checkpoint(model, trial)  # its part in what the first one writes
            self.state.best_model_checkpoint = best
            ranks.meet()
            return
        # of each trained number: itself and, of AdamW, two moments
        with publish_folder(final, needs=3 * self._bytes_trained()) as partial:
            self._staging = partial
            try:
                super()._save_checkpoint(model, trial)  # into partial/checkpoint-N
            finally:
                self._staging = None
            for path in list((partial / final.name).iterdir()):
                path.rename(partial / path.name)
            (partial / final.name).rmdir()
            if self.state.best_model_checkpoint != best:  # transformers noted the staged path
                self.state.best_model_checkpoint = best
                self.state.save_to_json(str(partial / "trainer_state.json"))
        self._rotate()
        ranks.meet()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Of a divided model: whole, as one process has them, so that any number can go on."""
        if not self.divided:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = sharding.whole_optimizer(self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.divided or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif (file := Path(checkpoint) / OPTIMIZER_NAME).is_file():  # no: sft.save_only_model
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            sharding.take_optimizer(self.optimizer, state)
            schedule = torch.load(file.with_name(SCHEDULER_NAME), weights_only=True)
            self.lr_scheduler.load_state_dict(schedule)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.divided:
            sharding.take_weights(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self.divided:
            sharding.take_weights(self.model, Path(str(self.state.best_model_checkpoint)))
        else:
            super()._load_best_model()

    def _save_rng_state(self, output_dir: str) -> None:
        """The random states of all processes, written by the first."""
        if self.args.world_size == 1:
            super()._save_rng_state(output_dir)
            return
        with tempfile.TemporaryDirectory() as folder:
            super()._save_rng_state(folder)
            (mine,) = Path(folder).iterdir()
            files = ranks.gathered((mine.name, mine.read_bytes()))
        for name, content in files if ranks.is_first() else ():
            (Path(output_dir) / name).write_bytes(content)

    def _rotate(self) -> None:
        """Remove the checkpoints that `sft.save_total_limit` has no room for.

        The newest stays and the best; those of later steps, which a run left that goes on from an
        earlier one, go first. transformers takes the highest step for the newest.
        """
        limit, now = self.args.save_total_limit, self.state.global_step
        found = [
            (step <= now, step, path)
            for path in Path(self.args.output_dir).glob("checkpoint-*")
            if (step := _step_of(path)) is not None
        ]
        if limit is None or limit <= 0 or not found:
            return
        newest = max(found)[2]
        kept = {newest, Path(self.state.best_model_checkpoint or newest)}
        others = [one for one in found if one[2] not in kept]
        for _, _, path in sorted(others)[: max(0, len(others) + len(kept) - limit)]:
            shutil.rmtree(path)


def _step_of(checkpoint: Path) -> int | None:
    number = checkpoint.name.partition("-")[2]
    return int(number) if number.isdigit() else None
