"""A run that was written: its config, its numbers, its model, and what the model answers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftpipe.config.on_run import change_recorded
from sftpipe.config.schema import TrainConfig
from sftpipe.errors import Problem, RunError
from sftpipe.runs.answering import Answering
from sftpipe.runs.folder import RunFolder
from sftpipe.storage import digest
from sftpipe.terminal import quiet, quiet_libraries

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from sftpipe.data.encode import Encoder
    from sftpipe.data.samples import Prompt
    from sftpipe.model.precision import Precision
    from sftpipe.model.weights import Weights


@dataclass(frozen=True)
class Run(Answering):
    """A run folder.

    dir: the folder.
    config: the config that it was trained with.
    metrics: the content of metrics.json.
    """

    dir: Path
    config: TrainConfig
    metrics: dict[str, Any]

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer as trained with, its PAD and chat template included."""
        from transformers import AutoTokenizer

        from sftpipe.tokenizer.load import without_place

        return without_place(AutoTokenizer.from_pretrained(self.dir))

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The encoder of training, on the day of training.

        Raises:
            RunError: it gives the prompts of training other tokens than training did.
        """
        from sftpipe.data.prepare import make_encoder
        from sftpipe.runs.prompts import check_prompts

        files = RunFolder(self.dir)
        encoder = make_encoder(self.tokenizer, self.config, files.began())
        check_prompts(files, encoder)
        return encoder

    def like(self) -> Prompt:
        from sftpipe.runs.prompts import read_prompts

        kept = read_prompts(RunFolder(self.dir))
        return kept[0][0] if kept else super().like()

    def identity(self) -> str:
        """A finished run never changes, and its manifest names it."""
        files = RunFolder(self.dir)
        finished = files.complete.read_text(encoding="utf-8")
        return digest(files.read_manifest(), finished, asdict(self.config.model))

    @functools.cached_property
    def base(self) -> Answering:
        """The base model of the run, asked with the run's own prompts."""
        return _BaseOfRun(self)

    def base_name(self) -> str:
        """The base weights that the run was trained on."""
        return str(RunFolder(self.dir).read_manifest()["weights"])

    def evaluate(self) -> dict[str, Any]:
        """Compare the run with its base on the test rows; see `sftpipe evaluate`.

        Returns:
            The content of evaluation.json.

        Raises:
            SftpipeError: whatever a user can fix.
        """
        from sftpipe.runs.evaluate import evaluate

        base = self.evaluation.base
        return evaluate(self, load_run(base) if base else None)

    def export(self, target: str = "merged", **keys: Any) -> dict[str, Any]:
        """Write the run as others read it; see `sftpipe export`.

        Args:
            target: merged, gguf or hub.
            keys: fields of `ExportConfig`, such as `type="q8_0"`.

        Returns:
            What was written and measured, and where it is.

        Raises:
            SftpipeError: whatever a user can fix.
        """
        from sftpipe.runs.answering import requests_of
        from sftpipe.runs.export import export

        return export(self, requests_of("export", {"target": target, **keys}).export)

    def load_base(self, precision: Precision | None = None) -> PreTrainedModel:
        """The base model as it was before training, its embedding as the run made it.

        Args:
            precision: default: what the config asks for on this machine.

        Raises:
            ModelError: the base weights cannot be had.
            RunError: they are not those that the run was trained on.
        """
        with quiet(), quiet_libraries():
            from sftpipe.model.load import make_base

            precision = precision or self.precision()
            model = make_base(self.config, self.weights, self.tokenizer, precision)
            return self._fitted(model).eval()

    def load_model(self, precision: Precision | None = None) -> PreTrainedModel | PeftModel:
        """The trained model, ready for generation.

        Args:
            precision: default: what the config asks for on this machine.

        Raises:
            ModelError: the base weights cannot be had.
            RunError: they are not those that the run was trained on.
        """
        with quiet(), quiet_libraries():
            from sftpipe.model.load import load_base
            from sftpipe.model.weights import Weights

            precision = precision or self.precision()
            if self.config.lora:
                return self.add_adapter(self.load_base(precision))
            weights = Weights(str(self.dir), None, self.dir.name)
            cfg = self.config
            model = load_base(cfg.model, cfg.quantization, weights, precision, frozen=True)
            return self._fitted(model).eval()

    def add_adapter(self, base: PreTrainedModel) -> PeftModel:
        """The trained adapter on the model that `load_base` gave."""
        from sftpipe.model.adapters import load_adapter

        return load_adapter(base, str(self.dir))

    def _fitted(self, model: PreTrainedModel) -> PreTrainedModel:
        from sftpipe.model.embedding import fit_to_tokenizer

        preflight = RunFolder(self.dir).read_preflight()
        ends = self.tokenizer.convert_tokens_to_ids(list(preflight["end_tokens"]))
        multiple = self.config.tokenizer.pad_to_multiple_of
        fit_to_tokenizer(model, self.tokenizer, ends, multiple=multiple)
        return model

    @functools.cached_property
    def weights(self) -> Weights:
        """The base weights that the run was trained on, of the hub at the commit of training.

        Raises:
            ModelError: they cannot be had.
            RunError: they have changed.
        """
        from sftpipe.model.weights import find_weights

        trained_on = self.base_name()
        cfg = self.config.model
        name, _, commit = trained_on.rpartition("@")
        if cfg.revision is None and name and name == cfg.name_or_path:
            cfg = replace(cfg, revision=commit)
        weights = find_weights(cfg, self.config.seed)
        if not weights.are(trained_on):
            found = f"it was trained on {trained_on}, and {cfg.name_or_path} is now"
            fix = "put the old weights back, or train on the new ones"
            raise RunError(Problem(str(self.dir), f"{found} {weights.identity}", fix=fix))
        return weights


class _BaseOfRun(Answering):
    """The base model of a run, with the run's tokenizer and prompts."""

    def __init__(self, run: Run) -> None:
        self.config, self._run = run.config, run

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return self._run.tokenizer

    @property
    def encoder(self) -> Encoder:
        return self._run.encoder

    def load_model(self) -> PreTrainedModel:
        return self._run.load_base()

    def identity(self) -> str:
        return digest(self._run.identity(), "base")


@dataclass(frozen=True)
class BaseModel(Answering):
    """A base model alone (`run=null`), with the tokenizer and format of a config."""

    config: TrainConfig

    @functools.cached_property
    def _weights(self) -> Weights:
        from sftpipe.model.weights import find_weights

        return find_weights(self.config.model, self.config.seed)

    @functools.cached_property
    def _made(self) -> tuple[PreTrainedTokenizerFast, Sequence[int]]:
        from functools import partial

        from sftpipe.config.options import conf_dir
        from sftpipe.data.prepare import corpus_key, tokenizer_corpus
        from sftpipe.tokenizer.make import make_tokenizer

        cfg = self.config
        sources = () if cfg.tokenizer.type == "pretrained" else self.sources()
        return make_tokenizer(
            cfg.tokenizer,
            path=self._weights.path,
            revision=self._weights.revision,
            markers=cfg.dataset.marker_tokens if cfg.dataset.markers == "special" else (),
            templates=conf_dir() / "chat_template",
            corpus=partial(tokenizer_corpus, sources, cfg=cfg),
            corpus_key=corpus_key(sources, cfg),
        )

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """With its PAD and chat template, as the config says."""
        return self._made[0]

    def identity(self) -> str:
        """The weights, and the precision that they compute in."""
        return digest(self._weights.identity, asdict(self.config.model))

    @functools.cached_property
    def encoder(self) -> Encoder:
        """Makes prompts, as training would."""
        from sftpipe.data.prepare import make_encoder

        return make_encoder(self.tokenizer, self.config)

    def load_model(self) -> PreTrainedModel:
        """The base model, ready for generation.

        Raises:
            ModelError: the base weights cannot be had.
        """
        with quiet(), quiet_libraries():
            from sftpipe.model.embedding import fit_to_tokenizer
            from sftpipe.model.load import make_base

            cfg, (tokenizer, new) = self.config, self._made
            model = make_base(cfg, self._weights, tokenizer, self.precision())
            ends = self.encoder.turn_ends() if tokenizer.chat_template else ()
            multiple = cfg.tokenizer.pad_to_multiple_of
            fit_to_tokenizer(model, tokenizer, tuple(ends), new, multiple)
            return model.eval()


def load_run(folder: str | Path, overrides: Sequence[str] = ()) -> Run:
    """Open a run folder.

    Args:
        folder: the run folder.
        overrides: keys that a finished run may change for now, such as `["model.dtype=float32"]`.

    Raises:
        RunError: it is no finished run.
        ConfigError: a key that training has decided.
    """
    files = RunFolder(Path(folder))
    if not files.complete.is_file():
        unfinished = files.manifest.is_file()
        found = "an unfinished run" if unfinished else "no run of sftpipe"
        fix = "the command that began it, with `sft.resume_from_checkpoint=auto`, goes on with it"
        allowed = f"a run folder with a {files.complete.name} file"
        problem = Problem(str(files.path), found, allowed=allowed, fix=fix if unfinished else "")
        raise RunError(problem)
    cfg = change_recorded(files.read_config(), str(files.config), overrides)
    return Run(files.path, cfg, files.read_metrics())
