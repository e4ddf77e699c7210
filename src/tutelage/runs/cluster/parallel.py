"""How the processes of a run train one network together."""

from collections.abc import Mapping
from inspect import signature
from typing import Any, cast

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


def environment_of(group: ProcessGroup) -> ClusterEnvironment:
    """Return what tells Lightning of the processes, which it then does not find out, or start, by itself."""
    return TorchElasticEnvironment() if group.size > 1 else LightningEnvironment()


def strategy_of(group: ProcessGroup, module: nn.Module, parallel: str) -> Strategy | str:
    """Return Lightning's strategy for a module that the processes of a group train.

    Parameters may go without a gradient (a teacher that averages, layers above a hint): they must not be waited for.
    Buffers are the same in all processes but for a batch norm's, of which the first process's count.
    """
    if group.size == 1:
        return "auto"
    if parallel == "fsdp":
        return FullyShardedStrategy()
    has_norms = any(isinstance(part, _BatchNorm) for part in module.modules())
    known = signature(DistributedDataParallel).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # torch renames it
    options: dict[str, Any] = {"find_unused_parameters": True, sync: has_norms}
    return DDPStrategy(**options)


def check_spread(name: str, network: nn.Module) -> None:
    """Raise a UserError unless each of a network's parameters can be spread: torch cuts along their first dimension."""
    single = [parameter for parameter, value in network.named_parameters() if not value.ndim]
    if single:
        raise UserError(
            f"trainer.parallel=fsdp: {single[0]} of model {name} is a single number, not even a list of one, which "
            "torch cannot spread over devices; use trainer.parallel=ddp"
        )


class FullyShardedStrategy(DDPStrategy):
    """Weights, their averages, gradients and the optimizer's state are spread over the devices (torch's FSDP2).

    Files hold them whole, so that a run goes on by another number of processes, or by one. The module is one unit:
    strategies call parts of networks by methods of their own, which torch would not gather the weights for. A device
    has room for all weights during a step, and for its share of everything else.
    """

    def configure_ddp(self) -> None:
        """FullyShardedStrategy the module, whose steps gather its weights, and its averaged copy, whose weights never meet."""
        module = self.lightning_module
        assert module is not None  # noqa: S101 - Lightning has connected it
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        fully_shard(module, mesh=mesh)
        for step in ("training_step", "validation_step"):
            register_fsdp_forward_method(module, step)
        for callback in module.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging) and callback._average_model is not None:
                fully_shard(callback._average_model.module, mesh=mesh)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Validate a batch with the first process's batch norms, and leave the weights spread: averages take turns."""
        if args[1] == 0:
            self._share_norms()
        found = super().validation_step(*args, **kwargs)
        cast("FSDPModule", self.lightning_module).reshard()
        return found

    def _share_norms(self) -> None:
        """Take up the first process's statistics of batch norms: it is these that are kept."""
        assert self.lightning_module is not None  # noqa: S101 - Lightning has connected it
        for part in self.lightning_module.modules():
            if isinstance(part, _BatchNorm):
                for statistic in part.buffers(recurse=False):
                    dist.broadcast(statistic, 0)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Save it whole; in lockstep."""
        super().save_checkpoint(gathered(checkpoint), filepath, storage_options)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's part of a whole state; in lockstep."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            parts = {number: _part(values, parameters[number]) for number, values in state["state"].items()}
            optimizer.load_state_dict({**state, "state": parts})

    def teardown(self) -> None:
        """End, and leave the weights on their devices: elsewhere they could not be gathered any more."""
        assert self.cluster_environment is not None  # noqa: S101 - it was given
        assert self.accelerator is not None  # noqa: S101 - Lightning has chosen it
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()


def gathered(state: Any) -> Any:
    """Return a state of dicts and lists with what is spread in it whole, on the CPU; in lockstep where any is."""
    if isinstance(state, DTensor):
        return state.full_tensor().cpu()
    if isinstance(state, dict):
        return {name: gathered(value) for name, value in state.items()}
    return [gathered(value) for value in state] if isinstance(state, list) else state


def _part(values: Mapping[str, Any], parameter: DTensor) -> dict[str, Any]:
    """Return what an optimizer keeps of a parameter, spread as the parameter is."""
    return {
        name: distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape
        else value
        for name, value in values.items()
    }
