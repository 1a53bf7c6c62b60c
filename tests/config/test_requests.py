"""What is asked of a finished run: choices of `export` that do not go together."""

from __future__ import annotations

import pytest

from sftpipe.config.hydra import compose_requests
from sftpipe.errors import ConfigError
from support.errors import Pin, places, refused, told

HUB = ["export=hub", "export.repo_id=me/model"]


@pytest.mark.parametrize(
    ("words", "key", "typed"),
    [
        (["export.type=q8_0"], "export.type", ("export=gguf",)),
        (["export.private=false"], "export.private", ("export=hub",)),
        (["export=gguf", "export.dtype=float16"], "export.dtype", ("export=merged",)),
        ([*HUB, "export.output=x"], "export.output", ("export=merged",)),
        ([*HUB, "export.base=dequantized"], "export.base", ("export.what=merged",)),
        ([*HUB, "export.dtype=float32"], "export.dtype", ("export.what=merged",)),
    ],
)
def test_a_key_of_another_target_is_refused_with_the_one_that_reads_it(
    words: list[str], key: str, typed: tuple[str, ...]
) -> None:
    error = refused(ConfigError, lambda: compose_requests(words))
    assert told(error) == {key: typed}
    assert "nothing reads it with export=" in str(error)


@pytest.mark.parametrize("name", [[], ["export.repo_id=model"], ["export.repo_id='a/b/c'"]])
def test_a_repository_has_an_owner_and_a_name(name: list[str]) -> None:
    error = refused(ConfigError, lambda: compose_requests(["export=hub", *name]))
    assert places(error) == ["export.repo_id"]
    assert "OWNER/NAME" in str(error)


def test_what_goes_together_is_taken() -> None:
    cfg = compose_requests([*HUB, "export.what=merged", "export.dtype=bfloat16"]).export
    assert (cfg.target, cfg.repo_id, cfg.private, cfg.samples) == ("hub", "me/model", True, False)
    cfg = compose_requests(["export=gguf", "export.type=q4_k_m", "export.llama_cpp=x"]).export
    assert (cfg.target, cfg.type, cfg.base) == ("gguf", "q4_k_m", "original")
    assert compose_requests([]).export.target == "merged"


def test_a_type_that_does_not_exist_is_told(golden_error: Pin) -> None:
    golden_error(refused(ConfigError, lambda: compose_requests(["export=gguf", "export.type=q8"])))
