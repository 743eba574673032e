"""Memory of tensors, counted while they live: what a network needs at any size, without the device that has it.

A run on PyTorch's "meta" device allocates nothing and computes nothing, but makes all the tensors that a real run makes.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


def peak_bytes(run: Callable[[], Any], device: str | None = None) -> int:
    """Returns the most bytes of tensors that are alive at once while run() runs, above what was alive before.

    Counted by the lifetime of storages, so a view costs nothing; exact, and the same on every device. device: the type
    of device ("meta", "cpu", "cuda", ...) whose tensors count, all by default. run is called in inference mode. Not seen:
    what one kernel takes and frees for itself (cuDNN's workspaces), what an allocator keeps or rounds up, memory that
    others than PyTorch allocate (NumPy, memory maps), other threads. On "meta" attention is a fused kernel, which keeps
    no scores, as it is on every real device, and a value that the run asks for is 1, as it is of fake
    tensors.
    """
    with torch.inference_mode(), StorageCount(device) as count:
        run()
    return count.peak


class StorageCount(TorchDispatchMode):
    """While open, counts the bytes of the storages that operations allocate. peak: the most that were alive at once."""

    def __init__(self, device: str | None):
        super().__init__()
        self.device, self.known, self.alive, self.peak = device, set(), 0, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operation is aten.scaled_dot_product_attention.default and args[0].is_meta:
            out = fused_attention(*args, **kwargs)
            self.note(out, new=True)
            return out[0]
        if operation is aten._to_copy.default and args[0].is_meta and kwargs.get("device", args[0].device).type != "meta":
            return torch.ones((), dtype=kwargs.get("dtype") or args[0].dtype).expand(args[0].shape)
        if operation.namespace == "prim":  # a fake tensor's device
            return operation(*args, **kwargs)
        if operation is aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1.0 if args[0].dtype.is_floating_point else 1
        with self:  # its parts come here by themselves
            out = operation.decompose(*args, **kwargs)
        if out is NotImplemented:
            self.note((args, kwargs), new=operation is aten.lift_fresh.default)  # which torch.tensor ends with
            out = operation(*args, **kwargs)
            self.note(out, new=True)
        return out

    def note(self, values: Any, new: bool) -> None:
        """Counts the storages in values that were never seen; those that are not new were there before."""
        for value in tree_leaves(values):
            if isinstance(value, Tensor) and self.device in (None, value.device.type):
                storage = value.untyped_storage()
                if storage._cdata not in self.known:
                    self.add(storage, storage.nbytes() if new else 0)

    def add(self, storage: torch.UntypedStorage, size: int) -> None:
        self.known.add(storage._cdata)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self.remove, storage._cdata, size)

    def remove(self, storage: int, size: int) -> None:
        self.known.discard(storage)
        self.alive -= size


def fused_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *_, **__) -> list[Tensor]:
    """Returns what PyTorch's fused attention allocates: its result, each query's log-sum in float32, the mask as numbers.

    q, k, v: (B, n, L, d). The result lies in memory as (B, L, n, d).
    """
    batch, heads, length, _ = q.shape
    out = [q.new_empty(batch, length, heads, v.shape[-1]).transpose(1, 2), q.new_empty(batch, heads, length, dtype=torch.float32)]
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        out.append(q.new_empty(attn_mask.shape))
    return out
