"""Sharding of a network among processes by PyTorch's FSDP2: each has a part of every weight, gradient and moment.

Accelerate's launcher offers FSDP2 for accelerators alone; `fully_shard` itself runs on CPUs, too, and wraps what it is told to.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

GATHERED = 2  # blocks at once: the one that is computed, and the next, gathered meanwhile; of gradients the last one, reduced meanwhile


def blocks(model: nn.Module) -> list[nn.Module]:
    """Returns the blocks of a model's networks: the members of its module lists."""
    return [block for part in model.modules() if isinstance(part, nn.ModuleList) for block in part]


def shard(model: nn.Module, device: torch.device, processes: int) -> None:
    """Shards a model in place; each block, each network and the rest are gathered apart.

    A process has the whole weights of GATHERED blocks, and of the network that it computes what is outside of blocks. Frozen weights of the
    model are sharded, too; networks that are no part of it (DMD2's teacher) are not.

    Args:
        model: The model, whose children are networks.
        device: Device of this process.
        processes: Number of all processes.
    """
    mesh = init_device_mesh(device.type, (processes,))
    for part in (*blocks(model), *model.children(), model):
        fully_shard(part, mesh=mesh)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Gathers what a sharded model has outside of blocks, so that methods other than forward can be called; on all processes."""
    networks = [part for part in model.children() if isinstance(part, FSDPModule)]
    with ExitStack() as stack:
        for network in networks:
            network.unshard()
            stack.callback(network.reshard)
        yield
