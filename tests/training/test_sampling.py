"""The order of the rows of each epoch."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

from sftpipe.data.prepare import PreparedData
from sftpipe.training.trainer import SFTPipeTrainer
from support.trainers import few, tiny, trainer_of


def order(trainer: SFTPipeTrainer, epoch: int) -> list[int]:
    """The rows of an epoch, as the training gets them."""
    rows = list(trainer.train_dataset["input_ids"])
    loader = trainer.get_train_dataloader()
    loader.set_epoch(epoch)
    return [
        rows.index(ids[mask.bool()].tolist())
        for batch in loader
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def test_grouping_by_length_is_decided_by_seed_and_epoch_alone(
    data: PreparedData, tiny_model: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(
        tiny(tiny_model, "sft.per_device_train_batch_size=2"), few(data, 24), tmp_path
    )
    lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    fresh = {
        epoch: list(
            LengthGroupedSampler(
                2, lengths=lengths, generator=torch.Generator().manual_seed(42 + epoch)
            )
        )
        for epoch in (0, 1)
    }
    torch.rand(5)  # what an evaluation or dropout may have drawn
    assert order(trainer, 0) == fresh[0]
    assert order(trainer, 1) == fresh[1] != fresh[0]
    assert sorted(fresh[1]) == list(range(24))
    for again in order(trainer, 1), order(trainer, 1):
        assert again == fresh[1]
