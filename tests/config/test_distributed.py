"""What the group `distributed` refuses, before anything starts."""

from __future__ import annotations

import pytest

from sftpipe.errors import ConfigError
from support.configs import compose
from support.errors import Pin, places, refused

MANY = ("distributed=ddp", "distributed.num_machines=2", "distributed.rendezvous=node0:29500")


def test_a_run_is_one_process_unless_it_is_asked_for_several() -> None:
    assert compose(["recipe=yoda"]).distributed is None


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["distributed=ddp", "distributed.machine_rank=1"], "distributed.machine_rank"),
        (["distributed=ddp", "distributed.rendezvous=a:1"], "distributed.rendezvous"),
        ([*MANY, "run=many", "distributed.rendezvous=node0"], "distributed.rendezvous"),
        ([*MANY, "run=many", "distributed.rendezvous=node0:0"], "distributed.rendezvous"),
        ([*MANY, "run=many", "distributed.rendezvous=a:b:65536"], "distributed.rendezvous"),
        ([*MANY, "run=many", "distributed.rendezvous=null"], "distributed.rendezvous"),
        ([*MANY, "run=many", "distributed.num_processes=3"], "distributed.num_processes"),
        ([*MANY, "run=many", "distributed.num_processes=1"], "distributed.num_processes"),
    ],
)
def test_machines_that_cannot_meet_are_refused(
    words: list[str], where: str, golden_error: Pin
) -> None:
    error = refused(ConfigError, lambda: compose(["recipe=yoda", *words]))

    assert places(error) == [where]
    golden_error(error)


@pytest.mark.parametrize("endpoint", ["node0:29500", "10.0.0.1:1", "'[::1]:65535'"])
def test_machines_meet_at_a_host_and_a_port(endpoint: str) -> None:
    words = ["recipe=yoda", *MANY, "run=many", f"distributed.rendezvous={endpoint}"]
    distributed = compose(words).distributed
    assert distributed is not None
    assert distributed.rendezvous == endpoint.strip("'")


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["quantization=int8"], "distributed.strategy + quantization"),
        (["sft.use_cpu=true"], "distributed.strategy"),
    ],
)
def test_sharding_needs_gpus_and_weights_that_can_be_divided(
    words: list[str], where: str, golden_error: Pin
) -> None:
    sharded = ["recipe=yoda", "distributed=ddp", "distributed.strategy=fsdp2", *words]
    error = refused(ConfigError, lambda: compose(sharded))

    assert places(error) == [where]
    golden_error(error)
    compose([one.replace("fsdp2", "ddp") for one in sharded])  # copies need neither
