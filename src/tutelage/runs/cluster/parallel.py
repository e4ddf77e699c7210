"""Data parallel (DDP) and fully sharded (FSDP2) training, as strategies and plug-ins of Lightning."""

from collections.abc import Mapping
from inspect import signature
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from tutelage.errors import UserError
from tutelage.process_group import ProcessGroup

T = TypeVar("T")


def cluster_environment(group: ProcessGroup) -> ClusterEnvironment:
    """Return the plug-in that gives Lightning its ranks, so that it neither detects nor starts processes itself."""
    return TorchElasticEnvironment() if group.size > 1 else LightningEnvironment()


def lightning_strategy(group: ProcessGroup, module: nn.Module, parallel: str) -> Strategy | str:
    """Return Lightning's strategy for a module that the processes of a group train.

    Parameters may have no gradient (an averaged teacher, layers above a hint): DDP must not wait for them. Buffers are
    the same in all processes, except those of batch norms, of which rank 0's are taken.
    """
    if group.size == 1:
        return "auto"
    if parallel == "fsdp":
        return FullyShardedStrategy()
    has_norms = any(isinstance(part, _BatchNorm) for part in module.modules())
    parameters = signature(DistributedDataParallel).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"  # torch renames it
    options: dict[str, Any] = {"find_unused_parameters": True, sync: has_norms}
    return DDPStrategy(**options)


def check_shardable(name: str, network: nn.Module) -> None:
    """Raise a UserError unless each parameter of a network can be sharded: torch cuts along their first dimension."""
    single = [parameter for parameter, value in network.named_parameters() if not value.ndim]
    if single:
        raise UserError(
            f"trainer.parallel=fsdp: {single[0]} of model {name} is a single number, not even a list of one, which "
            "torch cannot spread over devices; use trainer.parallel=ddp"
        )


class FullyShardedStrategy(DDPStrategy):
    """Shards weights, averaged weights, gradients and the optimizer's state over the devices (torch's FSDP2).

    It stands beside Lightning's ``ModelParallelStrategy``, whose checkpoints are folders of shards: here files hold
    whole tensors, so that a run goes on with another number of processes, or with one. The module is one unit, because
    strategies call parts of networks by methods of their own, for which torch would not gather the weights. A device
    needs room for all weights during a step, and for its part of everything else.
    """

    def configure_ddp(self) -> None:
        """Shard the module, whose steps gather its weights, and its averaged copy, whose weights are never gathered."""
        module = _connected(self.lightning_module)
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        fully_shard(module, mesh=mesh)
        for step in ("training_step", "validation_step"):
            register_fsdp_forward_method(module, step)
        for callback in module.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging) and callback._average_model is not None:
                fully_shard(callback._average_model.module, mesh=mesh)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Validate a batch with rank 0's batch norms; shard the weights again, as averaged ones take their place."""
        if args[1] == 0:
            self._broadcast_norms()
        outputs = super().validation_step(*args, **kwargs)
        cast("FSDPModule", self.lightning_module).reshard()
        return outputs

    def _broadcast_norms(self) -> None:
        """Copy rank 0's statistics of batch norms, which are the ones that files keep."""
        for part in _connected(self.lightning_module).modules():
            if isinstance(part, _BatchNorm):
                for statistic in part.buffers(recurse=False):
                    dist.broadcast(statistic, 0)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Save the checkpoint with whole tensors; in lockstep."""
        super().save_checkpoint(gather_state(checkpoint), filepath, storage_options)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this process's shards of a whole state; in lockstep."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            shards = {number: _shard(values, parameters[number]) for number, values in state["state"].items()}
            optimizer.load_state_dict({**state, "state": shards})

    def teardown(self) -> None:
        """End without moving the weights off their devices: elsewhere they could not be gathered any more."""
        _connected(self.cluster_environment).teardown()
        self.precision_plugin.teardown()
        _connected(self.accelerator).teardown()


def _connected(part: T | None) -> T:
    """Return a part of a strategy that Lightning connects before training."""
    if part is None:
        raise RuntimeError("Lightning has not connected the strategy")
    return part


def gather_state(state: Any) -> Any:
    """Return a state of dicts and lists with its sharded tensors gathered on the CPU; in lockstep if there are any."""
    if isinstance(state, DTensor):
        return state.full_tensor().cpu()
    if isinstance(state, dict):
        return {name: gather_state(value) for name, value in state.items()}
    return [gather_state(value) for value in state] if isinstance(state, list) else state


def _shard(values: Mapping[str, Any], parameter: DTensor) -> dict[str, Any]:
    """Return an optimizer's state of a parameter, sharded as the parameter is."""
    return {
        name: distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape
        else value
        for name, value in values.items()
    }
