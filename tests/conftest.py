"""Fixtures. Nothing here or in any test needs a network."""

from __future__ import annotations

import copy
import functools
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of the libraries that read it
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = (
        "1"  # as many workers as cores: more threads would wait for each other
    )

from support import errors

# random rows: a few that are the same each time, and by `make test-all` many new ones
settings.register_profile(
    "default",
    derandomize=True,
    max_examples=8,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile(
    "thorough", settings.get_profile("default"), derandomize=False, max_examples=60
)
settings.load_profile("default")  # --hypothesis-profile=thorough comes later

REPOSITORY = Path(__file__).parents[1]
GOLDEN = Path(os.environ.get("SFTPIPE_GOLDEN", REPOSITORY.parent / "shared" / "golden"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-golden", action="store_true", help="write tests/golden anew instead of comparing"
    )


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of the person who runs the tests, and the same `os.environ` for the next one.

    datasets puts a copy in its place when it maps with several processes; undoing `setenv` on the
    old one would leave the copy as it is.
    """
    monkeypatch.setattr(os, "environ", os.environ)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "NETRC", "CI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the tests' own, so that rows are really made; the converted model is the one of
    the person who runs the tests.
    """
    from sftpipe.storage import cache_dir

    models, folder = cache_dir() / "models", tmp_path_factory.mktemp("cache")
    models.mkdir(parents=True, exist_ok=True)
    (folder / "models").symlink_to(models)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFTPIPE_CACHE", str(folder))
        yield folder


@pytest.fixture
def golden_text(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with tests/golden/NAME, or write it there (`make golden`)."""

    def compare(name: str, text: str) -> None:
        file = REPOSITORY / "tests" / "golden" / name
        if request.config.getoption("--write-golden"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        assert file.read_text(encoding="utf-8") == text, (
            f"{file} differs; if the change is meant: make golden"
        )

    return compare


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep the collector of garbage off the million objects of the libraries.

    They live until the end; looking through them again and again took a fifth of the tests' time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


WRITTEN = pytest.StashKey[dict[str, dict[str, str]]]()
COLLECTED = pytest.StashKey[dict[str, bool]]()
PASSED = pytest.StashKey[bool]()


@pytest.hookimpl(tryfirst=True)  # before -k and -m deselect any
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What pins the text of an error is found by `-k golden`, as `make golden` does."""
    pinning = {item.nodeid: "golden_error" in getattr(item, "fixturenames", ()) for item in items}
    for item in items:
        if pinning[item.nodeid]:
            item.extra_keyword_matches.add("golden")
    config.stash[COLLECTED] = {errors.section_of(test): pins for test, pins in pinning.items()}


@pytest.fixture
def golden_error(
    request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., None]]:
    """Pin how an error reads, in a section of tests/golden/errors.txt that has the test's name;
    a label tells the errors of one test apart. `make golden` writes the sections. What an error
    says to type is parsed as well.
    """
    write = request.config.getoption("--write-golden")
    test, texts = errors.section_of(request.node.nodeid), dict[str, str]()
    base = tmp_path_factory.getbasetemp()
    folders = {GOLDEN: "<golden>", REPOSITORY: "<repository>", tmp_path: "<tmp>", base: "<tests>"}

    def pin(error: object, label: str = "") -> None:
        errors.check_commands(error)
        name = f"{test}{errors.LABEL}{label}" if label else test
        assert name not in texts
        texts[name] = errors.neutral(str(error), folders)
        assert write or errors.sections().get(name) == texts[name], (
            f"{errors.FILE} has another text, or none; if the change is meant: make golden"
        )

    yield pin
    if not request.node.stash.get(PASSED, False):
        return
    if write:
        request.config.stash.setdefault(WRITTEN, {})[test] = texts
    else:
        pinned = {name for name in errors.sections() if name.partition(errors.LABEL)[0] == test}
        assert pinned == set(texts), "the test pins some of its sections no more; make golden"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let the fixtures of a test know how it went."""
    report = yield
    if call.when == "call":
        item.stash[PASSED] = report.passed
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the texts over that a worker has collected."""
    written, collected = getattr(node, "workeroutput", {}).get("golden_errors", ({}, {}))
    node.config.stash.setdefault(WRITTEN, {}).update(written)
    node.config.stash.setdefault(COLLECTED, {}).update(collected)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the texts of a worker on, or write those of all of them."""
    config = session.config
    if not config.getoption("--write-golden"):
        return
    written, collected = config.stash.get(WRITTEN, {}), config.stash.get(COLLECTED, {})
    if hasattr(config, "workeroutput"):
        config.workeroutput["golden_errors"] = (written, collected)
    elif written:
        stale = errors.gone(collected, config.args)
        texts = {
            name: text
            for name, text in errors.sections().items()
            if name not in stale and name.partition(errors.LABEL)[0] not in written
        }
        errors.write(texts | {name: text for new in written.values() for name, text in new.items()})


@pytest.fixture
def stale_sections(request: pytest.FixtureRequest) -> set[str]:
    """The sections of tests/golden/errors.txt that no test pins any more."""
    return errors.gone(request.config.stash[COLLECTED], request.config.args)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of values and tokenizers from outside, or a skip that says what is missing."""
    if not (GOLDEN / "cases.json").is_file():
        pytest.skip(f"no golden values in {GOLDEN} (SFTPIPE_GOLDEN)")
    return GOLDEN


@pytest.fixture(scope="session")
def smollm2() -> Any:
    """`Weights` of the embedded model, converted into the cache."""
    from sftpipe.config.schema import ModelConfig
    from sftpipe.model.weights import find_weights

    return find_weights(
        ModelConfig(name_or_path="HuggingFaceTB/SmolLM2-135M-Instruct", source="package")
    )


@pytest.fixture(scope="session")
def tokenizer(smollm2: Any) -> Any:
    """The embedded model's tokenizer, with its special tokens set."""
    from sftpipe.config.schema import TokenizerConfig
    from support.tokenizers import settled

    return settled(TokenizerConfig(), smollm2)


@pytest.fixture
def templated(tokenizer: Any) -> Callable[[str | None], Any]:
    """The embedded tokenizer with another chat template."""

    def make(template: str | None) -> Any:
        changed = copy.copy(tokenizer)
        changed.chat_template = template
        return changed

    return make


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a small tokenizer of a kind, and of the config of a small model for it."""
    from support.tokenizers import write_kind

    folder = tmp_path_factory.mktemp("made")
    return functools.cache(lambda kind: write_kind(kind, folder / kind))


@pytest.fixture(scope="session")
def chatml(made: Callable[[str], Path]) -> Any:
    """The embedded model's kind, small: tokens of turns, of which one is EOS."""
    from support.tokenizers import tokenizer_at

    return tokenizer_at(made("chatml"))


@pytest.fixture(scope="session")
def phi3(made: Callable[[str], Path]) -> Any:
    """Phi-3's kind: SentencePiece pieces, a turn token that is not EOS, a PAD that was EOS."""
    from support.tokenizers import tokenizer_at

    return tokenizer_at(made("phi3"))


@pytest.fixture(scope="session")
def gpt2(made: Callable[[str], Path]) -> Any:
    """GPT-2's kind, without a template."""
    from support.tokenizers import tokenizer_at

    return tokenizer_at(made("gpt2"))


@pytest.fixture(scope="session")
def opt(made: Callable[[str], Path]) -> Any:
    """OPT's kind with our template: it begins plain text with BOS, which is also its EOS."""
    from support.tokenizers import tokenizer_at

    return tokenizer_at(made("opt"), chat_template="chatml_bos_eos")


@pytest.fixture
def rows_file(tmp_path: Path) -> Callable[..., str]:
    """Write rows as JSON Lines; returns the path."""

    def write(rows: Sequence[Mapping[str, Any]], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        path.write_text("".join(lines), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture(scope="session")
def data(smollm2: Any) -> Any:
    """The rows of the recipe `yoda`, prepared."""
    from sftpipe import prepare
    from support.configs import compose

    return prepare(compose(["recipe=yoda", "dataset.limit=64"]))


def _write_llama(folder: Path, tokenizer: Any, *, tied: bool) -> Path:
    """A random 2-layer Llama and the embedded model's tokenizer: trains in seconds."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama, whose output embedding is the input one."""
    return _write_llama(tmp_path_factory.mktemp("tiny") / "tiny-llama", tokenizer, tied=True)


@pytest.fixture(scope="session")
def untied_model(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_model`, with an output embedding of its own."""
    return _write_llama(tmp_path_factory.mktemp("untied") / "untied-llama", tokenizer, tied=False)


@pytest.fixture(scope="session")
def tiny_opt(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random 2-layer OPT, whose attention does not follow positions, and the
    embedded model's tokenizer.
    """
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "tiny-opt"
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        ffn_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        word_embed_proj_dim=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    OPTForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Run the real command line in a process of its own, from an empty folder."""

    def run(
        *words: str, cwd: Path = tmp_path, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sftpipe", *words],
            cwd=cwd,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=800,
        )

    return run
