"""Shards of a batch, the process group, the environment of torchrun and srun, and the trainer's options."""

from collections.abc import Sequence
from functools import partial
from threading import Thread, Timer
from typing import Any

import numpy as np
import pytest
import torch

from tutelage.config import MixConfig
from tutelage.data import UNKNOWN, BatchShard, StageData, Stream
from tutelage.data.loading.batches import WHOLE_BATCH, EvalDataset, PendingMix, TrainDataset, apply_mix
from tutelage.data.source import WholeImages
from tutelage.process_group import Ended, ProcessGroup
from tutelage.randomness import Key
from tutelage.world import World, read_world, tasks_on_node, torchrun_environment

CUTS = {"2 processes": (2, 1), "4 processes": (4, 1), "2 pieces": (1, 2), "2 processes, 2 pieces": (2, 2)}
VIEWS = {
    "one view": {},
    "two views": {"strong": [{"_target_": "albumentations.Rotate", "limit": (-30, 30)}]},
    "a twin beside": {"beside": "twin"},
    "the plain image beside": {"beside": "plain"},
}


def make_batches(shard: BatchShard, mix: MixConfig | None, strong: Sequence[dict[str, Any]] = (), beside: str = ""):
    """Return three steps' batches of two streams, labelled and pool, after mixing."""
    images = np.random.default_rng(0).integers(0, 256, (50, 12, 12, 1), dtype=np.uint8)
    labels = np.arange(50) % 3
    streams = [
        Stream("labelled", np.arange(30), labels[:30], 8, beside=beside),
        Stream("pool", np.arange(30, 50), np.eye(3, dtype=np.float32)[labels[30:]], 16, copies=np.arange(20) % 2),
    ]
    crop = {"_target_": "albumentations.RandomResizedCrop", "size": (12, 12), "scale": (0.3, 1.0)}
    noise = {"_target_": "tutelage.augmentation.RandAugment", "num_ops": 2, "magnitude": 9}
    training = StageData(streams, [crop, noise], partial(Key, 0, "stage"), 3, strong, mix)
    dataset = TrainDataset(WholeImages(images), training, (12, 12, 1), shard)
    return [
        {
            name: apply_mix(stream_batch, 3) if isinstance(stream_batch, PendingMix) else stream_batch
            for name, stream_batch in dataset[number].items()
        }
        for number in range(len(dataset))
    ]


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)
def test_the_shards_of_a_batch_make_the_whole_batch_byte_for_byte_also_when_mixed(cut, per, views):
    processes, pieces = cut
    mix = MixConfig(cutmix=1.0, mixup=0.5, per=per)
    whole = make_batches(WHOLE_BATCH, mix, **views)
    parts = [make_batches(BatchShard(rank, processes, pieces), mix, **views) for rank in range(processes)]
    assert all(len(part) == 3 * pieces for part in parts)
    for step, expected in enumerate(whole):
        for name, expected_batch in expected.items():
            stream_parts = [part[step * pieces + piece][name] for part in parts for piece in range(pieces)]
            count = len(expected_batch.images) // (8 if name == "labelled" else 16)  # views of each image
            for join, field in ((torch.cat, "images"), (torch.cat, "targets")):
                chunks = [getattr(part_, field).chunk(count) for part_ in stream_parts]
                joined = torch.cat([join([chunk[view] for chunk in chunks]) for view in range(count)])
                assert torch.equal(joined, getattr(expected_batch, field))
    unmixed = make_batches(WHOLE_BATCH, None, **views)
    assert not torch.equal(unmixed[0]["pool"].images, whole[0]["pool"].images)  # something was mixed


@pytest.mark.parametrize("count", [1, 2, 5, 8, 600])
@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_every_validation_image_counts_once_and_no_process_has_more_batches(count, processes):
    indices = np.random.default_rng(0).permutation(1000)[:count]
    shards = [BatchShard(rank, processes).split_indices(indices) for rank in range(processes)]
    assert len({len(shard_indices) for shard_indices, _ in shards}) == 1
    assert np.concatenate([shard_indices[:counted] for shard_indices, counted in shards]).tolist() == indices.tolist()
    images, labels = np.zeros((1000, 2, 2, 1), dtype=np.uint8), np.arange(1000) % 7
    datasets = [EvalDataset(WholeImages(images), labels, own, 512, counted) for own, counted in shards]
    assert len({len(make_batches) for make_batches in datasets}) == 1
    all_labels = torch.cat(
        [make_batches[number].labels for make_batches in datasets for number in range(len(make_batches))]
    )
    assert all_labels[all_labels != UNKNOWN].tolist() == labels[indices].tolist()


class StopRequested(Exception):  # noqa: N818 - a request, not an error
    """Raised by a process's signal check."""


def test_processes_that_have_met_stay_together_and_one_that_stops_before_stops_the_others():
    store = torch.distributed.HashStore()
    first, second = (ProcessGroup(World(rank, 2, rank, 2), store) for rank in range(2))

    def let_first_in_and_stop() -> None:
        first.barrier()
        raise StopRequested

    second.check_signals = let_first_in_and_stop
    second.barrier()  # the first process has already entered the barrier

    def stop() -> None:
        raise StopRequested

    first.check_signals = stop
    with pytest.raises(StopRequested):
        first.barrier()
    first.announce_end(143)
    second.check_signals = lambda: None
    with pytest.raises(Ended) as ended:
        second.barrier()
    assert (ended.value.rank, ended.value.code) == (0, 143)


def test_in_lockstep_a_process_that_waits_is_not_stopped_by_itself():
    store = torch.distributed.HashStore()
    first, second = (ProcessGroup(World(rank, 2, rank, 2), store) for rank in range(2))
    thread = Thread(target=first.barrier)
    thread.start()
    with second.lockstep():
        thread.join()

        def stop() -> None:
            raise StopRequested

        second.check_signals = stop
        timer = Timer(0.1, lambda: first.broadcast_from_rank0(lambda: 7))
        timer.start()
        assert second.broadcast_from_rank0(lambda: 0) == 7


def torchrun_variables(rank: int, size: int) -> dict[str, str]:
    """Return the environment that torchrun sets for a process."""
    variables = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "GROUP_RANK": 0}
    return {name: str(value) for name, value in variables.items()}


def test_a_processs_rank_is_read_from_torchruns_or_sruns_environment():
    assert read_world({}) == World()
    assert read_world(torchrun_variables(1, 4)) == World(1, 4, 1, 4, 0, "torchrun")
    assert read_world(torchrun_variables(0, 1)) == World()
    srun = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_NUM_TASKS": "4"}
    srun["SLURM_STEP_TASKS_PER_NODE"] = "2(x2)"
    assert read_world(srun) == World(3, 4, 1, 2, 1, "srun")
    assert read_world({**srun, **torchrun_variables(0, 2)}).started_by == "torchrun"  # torchrun within srun
    batch = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "4"}
    assert read_world(batch) == World()  # a batch script knows of its tasks, but is none of them
    assert read_world({**srun, "SLURM_STEP_NUM_TASKS": "1"}) == World()


@pytest.mark.parametrize(
    ("text", "counts"), [("2", [2]), ("2(x3)", [2, 2, 2]), ("2(x2),1", [2, 2, 1]), ("1,3(x2)", [1, 3, 3])]
)
def test_slurms_tasks_per_node_are_parsed(text, counts):
    assert [tasks_on_node(text, node) for node in range(len(counts))] == counts


def test_processes_of_srun_get_the_environment_of_torchrun():
    job = {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "2", "SLURM_STEP_NODELIST": "gpu[03-05,7],big1"}
    environment = torchrun_environment(World(3, 4, 1, 2, 1, "srun"), job)
    assert environment | {"MASTER_PORT": ""} == {
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1",
        "MASTER_ADDR": "gpu03", "MASTER_PORT": "",
    }  # fmt: skip
    assert (
        environment["MASTER_PORT"]
        != torchrun_environment(World(3, 4, 1, 2, 1, "srun"), job | {"SLURM_STEP_ID": "3"})["MASTER_PORT"]
    )
    assert (
        torchrun_environment(World(3, 4, 1, 2, 1, "srun"), job | {"MASTER_ADDR": "127.0.0.1"})["MASTER_ADDR"]
        == "127.0.0.1"
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.devices=2"], "trainer.devices=2 needs trainer.parallel=ddp or fsdp"),
        (["trainer.nodes=2"], "trainer.nodes=2 needs trainer.parallel=ddp or fsdp"),
        (["trainer.devices=0"], "allowed are auto"),
        (["trainer.devices=many"], "allowed are auto"),
        (["trainer.sync_batchnorm=true"], "needs several processes"),
        (["trainer=ddp_cpu", "trainer.sync_batchnorm=true"], "needs GPUs"),
        (["trainer=ddp_cpu", "trainer.devices=auto"], "counts GPUs"),
    ],
)
def test_trainer_options_that_do_not_fit_together_are_refused(overrides, message):
    from tutelage.config.compose import compose
    from tutelage.errors import UserError

    with pytest.raises(UserError, match=message):
        compose(overrides)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    from tutelage.config.compose import compose
    from tutelage.errors import UserError
    from tutelage.runs.cluster.process_checks import count_processes

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    four = compose(["trainer=ddp", "trainer.devices=4"]).trainer
    for world in (World(), World(1, 4, 1, 4, 0, "srun")):
        with pytest.raises(UserError, match="trainer.devices=4: 2 GPUs are visible"):
            count_processes(four, world)
    assert count_processes(compose(["trainer=ddp"]).trainer, World()) == 2
    assert count_processes(compose(["trainer=ddp_cpu", "trainer.devices=4"]).trainer, World()) == 4


def test_a_process_that_checks_for_signals_learns_that_another_has_ended():
    store = torch.distributed.HashStore()
    first, second = (ProcessGroup(World(rank, 2, rank, 2), store) for rank in range(2))
    assert second.agree_on_request(0) == 0
    first.announce_end(2, "the disk is full")
    second._polled_at = 0.0
    with pytest.raises(Ended) as ended:
        second.agree_on_request(0)
    assert ended.value.message == "the disk is full"


def test_devices_and_parallel_mode_do_not_enter_the_identity():
    from tutelage.config.compose import compose
    from tutelage.runs import run_identity

    plain = run_identity(compose(["trainer=cpu"]), "")
    for overrides in (
        ["trainer=ddp"],
        ["trainer=ddp_cpu", "trainer.accumulate=4"],
        ["trainer=fsdp", "trainer.nodes=8"],
    ):
        assert run_identity(compose(overrides), "") == plain
