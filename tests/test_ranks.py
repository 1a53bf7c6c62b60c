"""What the processes of one run tell each other; e2e/test_distributed.py has several of them."""

from __future__ import annotations

from pathlib import Path

import pytest

import sftpipe.ranks as ranks


def test_one_process_is_the_first_of_one_and_waits_for_nobody() -> None:
    assert (ranks.rank(), ranks.local_rank(), ranks.world_size()) == (0, 0, 1)
    assert ranks.is_first()
    assert ranks.total(1.5, 2) == [1.5, 2]
    assert ranks.gathered("a") == ["a"]
    ranks.meet()
    with ranks.first_goes_first():
        pass


def test_what_a_cluster_says_of_its_machines_makes_no_rank(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Kubernetes operators set RANK and WORLD_SIZE of each machine."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (ranks.rank(), ranks.local_rank(), ranks.world_size()) == (0, 0, 1)
    monkeypatch.setenv(ranks.NOTES, str(tmp_path))
    assert (ranks.rank(), ranks.local_rank(), ranks.world_size()) == (1, 1, 2)
    assert not ranks.is_first()


def test_what_differs_is_named_with_the_first_rank_that_has_it() -> None:
    facts = [
        {"versions": {"torch": "2.13.0", "trl": "1.16.0"}, "seed": 1},
        {"versions": {"torch": "2.13.0", "trl": "1.16.0"}, "seed": 1},
        {"versions": {"torch": "2.12.1", "trl": "1.16.0"}, "seed": 1, "adapter": "a"},
    ]
    assert list(ranks.differing(facts[:2])) == []
    assert list(ranks.differing(facts)) == [
        "versions.torch: 2.13.0, and 2.12.1 on rank 2",
        "adapter: None, and a on rank 2",
    ]
