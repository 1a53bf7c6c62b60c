"""What can be asked: a run, the base of a run, a base model alone."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sftpipe.config.schema import EvaluationConfig, GenerateConfig, RunConfig, TrainConfig
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


class Answering(ABC):
    """What a run, its base and a base model alone have in common: they can be asked.

    config: the config that their tokenizer and format come from.
    """

    config: TrainConfig

    @property
    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """With its PAD and chat template."""

    @property
    @abstractmethod
    def encoder(self) -> Encoder:
        """Makes prompts, as training does."""

    @abstractmethod
    def load_model(self) -> PreTrainedModel | PeftModel:
        """The model, ready for generation."""

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
        check_lengths(questions, self.model.config, sampling.max_new_tokens)
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
        check_lengths([question], self.model.config, sampling.max_new_tokens)
        return stream_answer(self.model, self.tokenizer, question.input_ids, sampling)

    @abstractmethod
    def identity(self) -> str:
        """Of the model: the same where it answers the same."""

    def precision(self) -> Precision:
        """Where and in which numbers the config has its models compute on this machine."""
        from sftpipe.model.precision import choose_precision

        cfg = self.config
        return choose_precision(cfg.model, use_cpu=bool(cfg.sft.get("use_cpu", False)))


def generate_config(keys: Mapping[str, Any]) -> GenerateConfig:
    """The group `generate` from Python values; errors as of `requests_of`."""
    return requests_of("generate", keys).generate


def requests_of(group: str, keys: Mapping[str, Any]) -> RunConfig:
    """A group of conf/run.yaml from Python values, over its defaults.

    Raises:
        ConfigError: a key that does not exist, or a value that is not allowed.
    """
    from sftpipe.config.check import Origin, check_requests
    from sftpipe.config.hydra import compose_requests

    tree = asdict(compose_requests())
    tree[group] |= keys
    return check_requests(tree, Origin({}, default=group))
