"""A run that was written: its config, its numbers, its model, and what the model answers."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sftpipe.config.on_run import change_recorded
from sftpipe.config.schema import EvaluationConfig, GenerateConfig, TrainConfig
from sftpipe.errors import Problem, RunError
from sftpipe.runs.folder import RunFolder
from sftpipe.storage import digest
from sftpipe.terminal import quiet, quiet_libraries

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from sftpipe.data.encode import Encoder
    from sftpipe.data.row_chain import SampleReader
    from sftpipe.data.samples import Prompt
    from sftpipe.data.source import Source
    from sftpipe.evaluation.answers import Answer, Sampling
    from sftpipe.evaluation.questions import Question
    from sftpipe.model.precision import Precision
    from sftpipe.model.weights import Weights


class Answering:
    """What a run and a base model alone have in common: both can be asked.

    config: the config, with which both were made.
    """

    config: TrainConfig

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """With its PAD and chat template."""
        raise NotImplementedError

    @property
    def encoder(self) -> Encoder:
        """Makes prompts, as training does."""
        raise NotImplementedError

    def load_model(self) -> PreTrainedModel | PeftModel:
        """The model, ready for generation."""
        raise NotImplementedError

    @functools.cached_property
    def model(self) -> PreTrainedModel | PeftModel:
        """`load_model`, once."""
        return self.load_model()

    @property
    def evaluation(self) -> EvaluationConfig:
        """The `evaluation` group; its defaults where training went without (evaluation=none)."""
        return self.config.evaluation or EvaluationConfig(sample_prompts=None, max_new_tokens=48)

    def sampling(self, generate: GenerateConfig | None = None) -> Sampling:
        """How answers are drawn: by `generate`, else as the config says."""
        from sftpipe.evaluation.answers import Sampling

        return Sampling.of(self.evaluation, self.config.seed, generate)

    def sources(self) -> Sequence[Source]:
        """The data set of the config.

        Raises:
            DataError: it cannot be read.
        """
        from sftpipe.data.source import load_sources

        cfg = self.config
        return load_sources(cfg.dataset, cfg.format, cfg.allowed_targets)

    def readers(self, split: str, sources: Sequence[Source]) -> Sequence[SampleReader]:
        """The samples of a split, one reader for each source that has it."""
        from sftpipe.data.prepare import sample_readers
        from sftpipe.data.row_function import call_row_functions

        called = call_row_functions(sources, self.config)
        return sample_readers(called, self.tokenizer, self.config).get(split, ())

    def like(self) -> Prompt:
        """A prompt of the kind that the format makes."""
        from sftpipe.data.prompts import split_answer

        (reader, *_) = self.readers("train", self.sources())
        return split_answer(next(iter(reader)), self.config.loss)[0]

    def question(self, text: str) -> Question:
        """A user's own words, asked as the format of the run asks.

        Raises:
            DataError: the format takes more than one text, or the tokenizer loses a character.
        """
        from sftpipe.evaluation.questions import question_of

        return question_of(text, self.config, self.like(), self.encoder)

    def questions(self, asked: str | Sequence[Any]) -> list[Question]:
        """What a text, a conversation or rows of the run's format ask.

        Args:
            asked: a text; turns `{role, content}`, the last one the user's; or rows.

        Raises:
            DataError: they are none of the three, or one of them cannot be asked.
        """
        from sftpipe.evaluation.asked_rows import questions_of_rows
        from sftpipe.evaluation.questions import conversation_question

        if isinstance(asked, str):
            return [self.question(asked)]
        if asked and all(isinstance(turn, Mapping) and "role" in turn for turn in asked):
            return [conversation_question(asked, self.config, self.encoder)]
        return questions_of_rows(asked, self.config, self.encoder)

    def generate(
        self,
        asked: str | Sequence[Any],
        *,
        stream: bool = False,
        batch_size: int | None = None,
        **keys: Any,
    ) -> list[Answer] | Iterator[str]:
        """Answers to a text, a conversation, or rows of the run's format.

        Args:
            asked: a text; turns `{role, content}`, the last one the user's; or rows.
            stream: give the text of a single answer piece by piece, as it is made.
            batch_size: prompts that run together; default: `evaluation.batch_size`.
            keys: fields of `GenerateConfig`, such as `max_new_tokens=64, temperature=0.7`.

        Raises:
            DataError: it cannot be asked.
            ConfigError: a key that does not exist, or a value that is not allowed.
        """
        cfg = generate_config({**keys, "batch_size": batch_size})
        with quiet(), quiet_libraries():
            questions = self.questions(asked)
            if stream:
                (question,) = questions
                return self.stream(question, cfg)
            return self.answer(questions, cfg)

    def answer(self, questions: Sequence[Question], cfg: GenerateConfig) -> list[Answer]:
        """An answer to each question.

        Raises:
            DataError: one of them is too long for the model.
        """
        from sftpipe.evaluation.answers import generate
        from sftpipe.evaluation.questions import check_lengths

        sampling = self.sampling(cfg)
        check_lengths(questions, self.positions(), sampling.max_new_tokens)
        prompts = [question.input_ids for question in questions]
        size = cfg.batch_size or self.evaluation.batch_size
        found = generate(self.model, self.tokenizer, prompts, sampling, batch_size=size)
        answers = dict(found)
        return [answers[number] for number in range(len(questions))]

    def stream(self, question: Question, cfg: GenerateConfig) -> Iterator[str]:
        """The text of one answer, piece by piece; closing the iterator ends the generation.

        Raises:
            DataError: the question is too long for the model.
        """
        from sftpipe.evaluation.answers import stream_answer
        from sftpipe.evaluation.questions import check_lengths

        sampling = self.sampling(cfg)
        check_lengths([question], self.positions(), sampling.max_new_tokens)
        return stream_answer(self.model, self.tokenizer, question.input_ids, sampling)

    def files_source(self, files: Any, split: str) -> Source:
        """The rows of files in the run's format, as one split.

        Raises:
            DataError: a file is missing or cannot be read.
        """
        from sftpipe.evaluation.asked_rows import files_source

        return files_source(files, self.config, split)

    def identity(self) -> str:
        """Of the model: the same where it answers the same."""
        raise NotImplementedError

    def positions(self) -> int | None:
        """Tokens that the model has positions for; None where it has no limit."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def _precision(self) -> Precision:
        from sftpipe.model.precision import choose_precision

        cfg = self.config
        return choose_precision(cfg.model, use_cpu=bool(cfg.sft.get("use_cpu", False)))


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

        return AutoTokenizer.from_pretrained(self.dir)

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

        return evaluate(self)

    def load_base(self) -> PreTrainedModel:
        """The base model as it was before training, its embedding as the run made it.

        Raises:
            ModelError: the base weights cannot be had.
            RunError: they are not those that the run was trained on.
        """
        with quiet(), quiet_libraries():
            from sftpipe.model.load import make_base

            weights = self._base_weights()
            model = make_base(self.config, weights, self.tokenizer, self._precision())
            return self._fitted(model).eval()

    def load_model(self) -> PreTrainedModel | PeftModel:
        """The trained model, ready for generation.

        Its device and precision are those that the config asks for on this machine.

        Raises:
            ModelError: the base weights cannot be had.
            RunError: they are not those that the run was trained on.
        """
        with quiet(), quiet_libraries():
            from sftpipe.model.load import load_base
            from sftpipe.model.weights import Weights

            if self.config.lora:
                return self.add_adapter(self.load_base())
            weights = Weights(str(self.dir), None, self.dir.name)
            cfg = self.config
            model = load_base(cfg.model, cfg.quantization, weights, self._precision(), frozen=True)
            return self._fitted(model).eval()

    def add_adapter(self, base: PreTrainedModel) -> PeftModel:
        """The trained adapter on the model that `load_base` gave."""
        from sftpipe.model.adapters import load_adapter

        return load_adapter(base, str(self.dir))

    def _fitted(self, model: PreTrainedModel) -> PreTrainedModel:
        from sftpipe.model.embedding import fit_to_tokenizer

        preflight = json.loads(RunFolder(self.dir).preflight.read_text(encoding="utf-8"))
        ends = self.tokenizer.convert_tokens_to_ids(list(preflight["end_tokens"]))
        multiple = self.config.tokenizer.pad_to_multiple_of
        fit_to_tokenizer(model, self.tokenizer, ends, multiple=multiple)
        return model

    def _base_weights(self) -> Weights:
        """The weights that the run was trained on, of the hub at the commit of training."""
        from sftpipe.model.weights import find_weights

        trained_on = self.base_name()
        cfg = self.config.model
        name, _, commit = trained_on.rpartition("@")
        if cfg.revision is None and name and name == cfg.name_or_path:
            cfg = replace(cfg, revision=commit)
        weights = find_weights(cfg, self.config.seed)
        if weights.identity != trained_on:
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
            model = make_base(cfg, self._weights, tokenizer, self._precision())
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
    recorded = yaml.safe_load(files.config.read_text(encoding="utf-8"))
    cfg = change_recorded(recorded, str(files.config), overrides)
    return Run(files.path, cfg, files.read_metrics())


def generate_config(keys: Mapping[str, Any]) -> GenerateConfig:
    """The group `generate` from Python values.

    Raises:
        ConfigError: a key that does not exist, or a value that is not allowed.
    """
    from sftpipe.config.check import Origin, check_requests
    from sftpipe.config.hydra import compose_requests

    tree = asdict(compose_requests())
    tree["generate"] |= keys
    return check_requests(tree, Origin({}, default="generate")).generate
