"""Ultra Flash: its block-causal attention against float64 and dense, and its chain at 960 x 1664, with random weights."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ...files import GVR_TINY_VAE
from ...networks import kernels
from ...networks.block_causal import choose_blocks
from ...networks.block_causal_config import BlockCausalConfig
from ...networks.dit import DiTConfig
from ...networks.tiny_vae import load_tiny_vae
from ...networks.ultra_upsampler import UltraUpsampler, UltraUpsamplerConfig
from ...networks.windows import TokenLayout
from ...planning.network_memory import dit_bytes, fastest_kernel, weight_bytes
from ...sampling.super_resolve import SamplingConfig, super_resolve
from ..machine import Grid
from ..network import random_model
from .chain import decoded, upsampled
from .items import Bench, Item, NotRun, Sizes, Stopwatch, against_plan
from .kernels import ALLOWED, WHAT, error
from .operator import dense_whole, item, timed

ATTENTION = BlockCausalConfig()
ONE_STEP = SamplingConfig(steps=1, noise_augmentation=0.0)


def block_kernel_items(sizes: Sizes) -> Iterator[Item]:
    """Yields a comparison for each kernel and dtype."""
    for name, dtype in product(("triton", "sdpa"), (torch.bfloat16, torch.float16)):
        half = str(dtype).removeprefix("torch.")
        yield Item("kernels", f"block causal, {name}, {half}", 3 if name == "triton" else 1, partial(compare, name, dtype))


def block_operator_items(sizes: Sizes) -> Iterator[Item]:
    """Yields the operator, whole and in parts, and dense attention of as many tokens."""
    grid = sizes.ultra_low  # a token is two latent pixels of the target, and the scale is 2
    yield item(grid, "block causal, whole and in parts", 7, block_causal)
    yield item(grid, "dense: sdpa flash", 3, partial(dense_whole, "sdpa flash"))


def ultra_flash_items(sizes: Sizes) -> Iterator[Item]:
    """Yields the stages of its chain."""
    yield Item("ultra flash", "upsample", 3, upsample)
    yield Item("ultra flash", "one step", 5, one_step)
    yield Item("ultra flash", "decode by its decoder", 3, decode)
    yield Item("ultra flash", "decode by TinyVAE", 3, tiny_decode)


def compare(name: str, dtype: torch.dtype, bench: Bench) -> dict[str, Any]:
    """Returns relative errors (L2) against float64, of the same selected blocks; gradients of kernels that have them."""
    if name == "triton" and not bench.is_gpu and dtype == torch.bfloat16:
        raise NotRun("Triton's interpreter, which takes the place of a GPU, computes bfloat16 wrongly")
    T, H, W = bench.sizes.checked_grid
    layout, generator = TokenLayout((3 * T, H, W), ordered=True), torch.Generator(bench.device).manual_seed(0)
    shape = 1, layout.num_grid_tokens, 2, bench.sizes.head_dim
    q, k, v, grad = (torch.randn(shape, generator=generator, device=bench.device).to(dtype) for _ in range(4))
    _, blocks, selection = choose_blocks(q, k, layout, ATTENTION, kernels.load_block("sdpa"))
    with_gradients = name != "triton"

    def run(kernel: kernels.BlockKernel, dtype: torch.dtype) -> tuple[Tensor, ...]:
        q_, k_, v_ = (x.to(dtype).requires_grad_(with_gradients) for x in (q, k, v))
        out = kernel.block_attention(q_, k_, v_, blocks, selection)
        return (out, *torch.autograd.grad(out, (q_, k_, v_), grad.to(dtype))) if with_gradients else (out,)

    plain = kernels.load_block("reference")
    exact, same_dtype, ours = run(plain, torch.float64), run(plain, dtype), run(kernels.load_block(name), dtype)
    errors, allowed = ({what: error(x, y) for what, x, y in zip(WHAT, result, exact, strict=False)} for result in (ours, same_dtype))
    _, _, chosen = choose_blocks(q, k, layout, ATTENTION, kernels.load_block(name))
    return {
        "error": errors,
        "reference_error": allowed,
        "same_windows": torch.equal(chosen.block, selection.block) and torch.equal(chosen.count, selection.count),
        "passed": all(errors[what] <= ALLOWED * allowed[what] for what in errors),
    }


def block_causal(grid: Grid, bench: Bench) -> dict[str, Any]:
    """Returns the timings of AttentionBenchmark.block_causal by name."""
    return {row.name: timed(row) for row in bench.operators.block_causal(bench.machine, bench.tokens(grid))}


def upsample(bench: Bench) -> dict[str, Any]:
    """Returns what upsampled returns, of its upsampler."""
    (T, h, w), model = bench.sizes.ultra_low, upsampler(bench)
    return upsampled(model, (T, h, w), (model.config.scale * h, model.config.scale * w), bench)


def upsampler(bench: Bench) -> UltraUpsampler:
    """Returns its upsampler with random weights."""
    with torch.device(bench.device):
        return UltraUpsampler(UltraUpsamplerConfig()).to(bench.dtype).eval()


def one_step(bench: Bench) -> dict[str, Any]:
    """Returns seconds and peak of super_resolve in one step, the upsampler within: the second run."""
    dit, (T, h, w) = ultra_dit(bench.sizes), bench.sizes.ultra_low
    bench.release()
    model = random_model(dit, bench.machine).eval()
    model.attention = ATTENTION
    up = upsampler(bench)
    context = bench.noise(1, 512, dit.text_dim)

    def run() -> Tensor:
        return super_resolve(model, up, bench.noise(1, 16, T, h, w), (2 * h, 2 * w), sampling=ONE_STEP, context=context)

    watch = Stopwatch(bench.machine)
    run()
    first = watch.lap()
    with bench.peak() as measured:
        finite = bool(run().isfinite().all())
    counted = dit_bytes(dit, ATTENTION, 1, (T, 2 * h, 2 * w), bench.dtype, fastest_kernel(dit, ATTENTION, bench.device, bench.dtype))
    return against_plan(measured, counted, weight_bytes(model)) | {"first_seconds": first, "finite": finite}


def ultra_dit(sizes: Sizes) -> DiTConfig:
    """Returns the sizes of its network, whose time path is float32."""
    return replace(sizes.dit, exact_time=True)


def decode(bench: Bench) -> dict[str, Any]:
    """Returns what decoded returns, of its decoder."""
    try:
        module = import_module("...networks.video_decoder", __package__)
    except ModuleNotFoundError as error:
        raise NotRun("this version has no networks/video_decoder.py") from error
    with torch.device(bench.device):
        decoder = module.VideoDecoder(module.VideoDecoderConfig(layout="ultra_flash", encoder=False)).to(bench.dtype).eval()

    def decode_stream(chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        past: Any = {}
        for z in chunks:
            video, past = decoder.decode_chunk(z, past)
            yield video

    return decoded(decode_stream, target(bench.sizes), bench)


def tiny_decode(bench: Bench) -> dict[str, Any]:
    """Returns the same of TinyVAE, which decodes no latent of Wan's."""
    return decoded(load_tiny_vae(GVR_TINY_VAE).to(bench.device, bench.dtype).decode_stream, target(bench.sizes), bench)


def target(sizes: Sizes) -> Grid:
    """Returns (T, H, W) of its result."""
    T, h, w = sizes.ultra_low
    return T, 2 * h, 2 * w
