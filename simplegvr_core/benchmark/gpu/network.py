"""A forward pass of the network at its full size: time, share of the peak rate, and memory against the plan's."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from ...latent_space import token_grid
from ...networks import kernels
from ...networks.attention import AttentionConfig, attend
from ...networks.windows import TokenLayout
from ...planning.flops import dit_flops
from ...planning.network_memory import TEXT_TOKENS, dit_bytes, weight_bytes
from .items import Bench, Item, Sizes, Stopwatch, against_plan

LONG_S = 3  # a longer first call is not repeated


def attentions(sizes: Sizes) -> dict[str, AttentionConfig]:
    """Returns the self-attentions by name, the fastest first."""
    return {
        "sparse local": sizes.attention,
        "dense units": AttentionConfig(kind="full", unit=sizes.unit),
        "dense": AttentionConfig(kind="full", unit=None),
    }


def network_items(sizes: Sizes) -> Iterator[Item]:
    """Yields a forward pass for each attention, and one with the windows' attention by PyTorch, without Triton."""
    seconds = {"sparse local": 7, "dense units": 8, "dense": 15}
    for name in attentions(sizes):
        yield Item("network", f"forward pass, {name}", seconds[name], partial(forward, name, None))
    yield Item("network", "forward pass, sparse local, without Triton", 6, partial(forward, "sparse local", "sdpa"))


@torch.inference_mode()
def forward(name: str, kernel: str | None, bench: Bench) -> dict[str, Any]:
    """Returns a forward pass's milliseconds, TFLOP/s, share of the machine's matrix rate, and peak beside planning's count.

    Args:
        name: Of the attentions.
        kernel: Of window attention; None is the fastest.
        bench: The device.
    """
    sizes, model, attention = bench.sizes, bench.dit, attentions(bench.sizes)[name]
    kernel = kernel or fastest_kernel(attention, bench)
    self_attention = partial(attend, config=attention, kernel=kernels.load(kernel))
    timestep, dit = torch.tensor([500.0], device=bench.device), sizes.dit

    def run() -> torch.Tensor:
        z, context = bench.noise(1, dit.in_dim, *sizes.high), bench.noise(1, TEXT_TOKENS, dit.text_dim)
        return model(z, timestep, context, self_attention, token_order=attention.token_order)

    bench.tokens.cache_clear()
    with bench.peak() as measured:
        finite = bool(run().isfinite().all())
    seconds = first = measured.pop("seconds")
    if first < LONG_S:
        seconds = median_seconds(run, bench)
    flops = dit_flops(dit, attention, token_grid(sizes.high)).total
    counted = dit_bytes(dit, attention, 1, sizes.high, bench.dtype, kernel)
    return {
        "ms": 1e3 * seconds,
        "first_ms": 1e3 * first,
        "kernel": kernel,
        "tflops": flops / seconds / 1e12,
        "share_of_matrix_rate": flops / seconds / 1e3 / bench.machine.flops_per_ms,
        "finite": finite,
        **against_plan(measured, counted, weight_bytes(model)),
    }


def median_seconds(run: Callable[[], object], bench: Bench) -> float:
    """Returns the median of three calls."""
    watch, laps = Stopwatch(bench.machine), []
    for _ in range(3):
        run()
        laps.append(watch.lap())
    return sorted(laps)[1]


def fastest_kernel(attention: AttentionConfig, bench: Bench) -> str:
    """Returns the name of the kernel that runs the attention's windows on the device."""
    windows = attention.windows(TokenLayout(token_grid(bench.sizes.high), ordered=True), 0)
    dit = bench.sizes.dit
    return kernels.fastest(kernels.KernelCase(bench.device, bench.dtype, dit.dim // dit.num_heads, windows.size, windows.contiguous))
