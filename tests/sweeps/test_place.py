"""The names of job folders."""

from __future__ import annotations

import pytest

from sftpipe.sweeps.place import name_of, varying


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"lora.r": "8"}, "r-8"),
        ({"lora.r": "8", "sft.learning_rate": "0.00012345678"}, "r-8__learning_rate-0.000123457"),
        ({"sft.optim_args.a": "1", "lora.a": "2"}, "sft.optim_args.a-1__lora.a-2"),
        ({"recipe": "yoda"}, "recipe-yoda"),
        ({"model.name_or_path": "'../a b/c'"}, "name_or_path-..-a-b-c"),
        ({"format.system": "''"}, "system-empty"),
        ({}, "job"),
    ],
)
def test_a_job_is_named_by_what_varies(values: dict[str, str], name: str) -> None:
    assert name_of(values) == name


def test_long_names_are_cut_and_stay_different() -> None:
    names = {name_of({"format.system": f"{'x' * 300}{end}"}) for end in "ab"}
    assert len(names) == 2
    assert all(len(name) <= 110 for name in names)


def test_what_varies_are_the_words_that_not_all_jobs_have() -> None:
    words = ["recipe=yoda", "lora.r=8", "+sft.seed=1"]
    assert varying(words, {"recipe=yoda"}) == {"lora.r": "8", "sft.seed": "1"}
