"""Memory of a training step, counted by running it with fake tensors: they compute nothing, but are made and freed as on a device.

B batch, L tokens, n heads, d head dim
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

from ..latent_space import token_grid
from ..networks import kernels
from ..networks.attention import attend
from ..networks.block_causal_config import BlockCausalConfig
from ..networks.dit import SimpleGVRDiT
from ..networks.windows import TokenLayout, Windows
from ..planning.network_memory import TritonShapes
from ..planning.tensor_memory import StorageCount, fused_attention
from .moments import Moments, moment_bytes
from .sharding import GATHERED, blocks


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step on one device.

    Attributes:
        weights: Of all networks, trained or frozen.
        gradients: Of the trained weights.
        moments: AdamW's.
        average: Moving average of the trained weights; 0 without one.
        activations: The most that is alive at once beside these, with the batch.
    """

    weights: float
    gradients: float
    moments: float
    average: float
    activations: float

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Step:
    """A training step.

    Attributes:
        model: The trained network, whose call with the batch is the loss.
        batch: Its arguments, tensors but for numbers that it asks for.
        frozen: Networks beside it that are not trained.
    """

    model: nn.Module
    batch: dict[str, Any]
    frozen: tuple[nn.Module, ...] = ()

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return self.model, *self.frozen

    @property
    def weights(self) -> list[nn.Parameter]:
        """All weights; networks may share some."""
        return list({id(weight): weight for network in self.networks for weight in network.parameters()}.values())

    @property
    def trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


@dataclass(frozen=True)
class SplitWeights:
    """Bytes of a step's weights as sharding.shard splits them among processes.

    Attributes:
        shared: Of the model, of which each process has its part. A weight that networks share is counted for each, as each is split.
        whole: Of the networks beside the model, which every process has whole.
        gathered: Of what a process gathers at once, with its gradients: GATHERED blocks, and a network's weights outside of blocks.
    """

    shared: float
    whole: float
    gathered: float

    def device_bytes(self, step: StepMemory, processes: int) -> float:
        """Returns the bytes of a step on each device.

        Args:
            step: The step's on one device that shares nothing.
            processes: Number of devices that share the model.
        """
        of_weights = step.gradients + step.moments + step.average
        return self.whole + self.gathered + step.activations + (self.shared + of_weights) / processes


def split_weights(step: Step) -> SplitWeights:
    """Returns the bytes of a step's weights as they are split among processes."""
    inside = {id(weight) for block in blocks(step.model) for weight in block.parameters()}
    networks = [list(network.parameters()) for network in step.model.children()]
    outside = [[weight for weight in network if id(weight) not in inside] for network in networks]
    block = max((with_gradients(block.parameters()) for block in blocks(step.model)), default=0)
    return SplitWeights(
        shared=sum(weight.nbytes for network in networks for weight in network),
        whole=sum(weight.nbytes for weight in {id(weight): weight for network in step.frozen for weight in network.parameters()}.values()),
        gathered=GATHERED * block + max(map(with_gradients, outside), default=0),
    )


def with_gradients(weights: Iterable[nn.Parameter]) -> int:
    """Returns the bytes of weights and of their gradients."""
    return sum(weight.nbytes * (1 + weight.requires_grad) for weight in weights)


def step_memory(step: Step, moments: Moments = "float32", average: bool = True) -> StepMemory:
    """Returns the bytes of a training step, in which a kernel keeps what it keeps on a GPU.

    Not seen: what one kernel takes and frees for itself, and what an allocator rounds up or cannot join.

    Args:
        step: On the "meta" device; it is used up.
        moments: Data type of AdamW's moments.
        average: Whether there is a moving average, float32.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, gpu_kernels(step.networks):
        step = replace(step, batch=on_fake_cpu(step, mode))
        activations = activation_bytes(step)
    weights, gradients = (sum(parameter.nbytes for parameter in parameters) for parameters in (step.weights, step.trained))
    of_moments = sum(moment_bytes(parameter, moments) for parameter in step.trained)
    return StepMemory(weights, gradients, of_moments, gradients if average else 0, activations)


def activation_bytes(step: Step) -> int:
    """Returns the most bytes that are alive at once in a step beside weights and gradients, with the batch; real or fake tensors."""
    for parameter in step.trained:
        parameter.grad = torch.zeros_like(parameter)
    with StorageCount("cpu") as count:
        step.model(**step.batch).backward()
    return count.peak + sum(value.nbytes for value in step.batch.values() if isinstance(value, Tensor))


def on_fake_cpu(step: Step, mode: FakeTensorMode) -> dict[str, Any]:
    """Makes the weights of a step on "meta" fake ones of the CPU, for which mixed precision works, and returns its batch as such."""
    known: dict[int, nn.Parameter] = {}  # networks may share weights
    for module in (module for network in step.networks for module in network.modules()):
        for name, weight in module._parameters.items():
            if weight is not None:
                fake = FakeTensor(mode, weight.detach(), torch.device("cpu"))
                module._parameters[name] = known.setdefault(id(weight), nn.Parameter(fake, weight.requires_grad))
    return {name: FakeTensor(mode, x, torch.device("cpu")) if isinstance(x, Tensor) else x for name, x in step.batch.items()}


@contextmanager
def gpu_kernels(networks: tuple[nn.Module, ...], kernel: kernels.WindowKernel | None = None) -> Iterator[None]:
    """While open, window attention of the DiTs in some networks is computed by a kernel, also on the CPU.

    Args:
        networks: The networks.
        kernel: By default one that only allocates what the Triton kernel does, and keeps it for the gradient. Block-causal attention
            always allocates its result and what it keeps, without what its selection of blocks takes.
    """
    kernel = kernel or TrainedShapes()

    def chosen(dit: nn.Module, arguments: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        assert isinstance(dit, SimpleGVRDiT)
        attention = dit.attention
        if isinstance(attention, BlockCausalConfig):
            return arguments, {"self_attention": kept_attention} | options
        cut_windows(dit, arguments[0])
        return arguments, {
            "self_attention": partial(attend, config=attention, kernel=kernel),
            "token_order": attention.token_order,
        } | options

    dits = [module for network in networks for module in network.modules() if isinstance(module, SimpleGVRDiT)]
    hooks = [dit.register_forward_pre_hook(chosen, with_kwargs=True) for dit in dits]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def cut_windows(dit: SimpleGVRDiT, z: Tensor) -> None:
    """Cuts the windows of a forward pass with real tensors, as fake ones cannot be counted; they are cached.

    Args:
        dit: The network.
        z: Its input (B, C, T, H, W).
    """
    T, H, W = token_grid((z.shape[2], z.shape[3], z.shape[4]))
    conditions = z.shape[1] // dit.config.patch_channels - 1
    with unset_fake_temporarily():
        if dit.attention.kind != "full":
            order = dit.attention.token_order((T, H, W), torch.device("cpu"))
            for block in range(2):
                dit.attention.windows(TokenLayout((T, H, W), order is not None, conditions * T * H * W), block)


class KeptAttention(torch.autograd.Function):
    """What the Triton kernel of window attention allocates: result and log-sums, kept with q, k and v, and their three gradients."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, log_sum = fused_attention(*(x.transpose(1, 2) for x in (q, k, v)))
        ctx.save_for_backward(q, k, v, out, log_sum)
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def kept_attention(q: Tensor, k: Tensor, v: Tensor, *, layout: TokenLayout, block: int) -> Tensor:
    """Returns KeptAttention's result, a SelfAttention."""
    return cast("Tensor", KeptAttention.apply(q.to(v.dtype), k.to(v.dtype), v))


class TrainedShapes(TritonShapes):
    """TritonShapes with gradients."""

    def window_attention(self, q: Tensor, k: Tensor, v: Tensor, windows: Windows, selection: Tensor) -> Tensor:
        return cast("Tensor", KeptAttention.apply(q, k, v))
