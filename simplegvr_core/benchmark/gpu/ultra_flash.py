"""Ultra Flash: its block-causal attention against float64 and dense, and its chain at 960 x 1664, with random weights."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ...files import GVR_TINY_VAE
from ...latent_space import video_frames
from ...networks import kernels
from ...networks.block_causal import choose_blocks
from ...networks.block_causal_config import BlockCausalConfig
from ...networks.dit import DiTConfig
from ...networks.tiny_vae import load_tiny_vae
from ...networks.ultra_upsampler import UltraUpsampler, UltraUpsamplerConfig
from ...networks.windows import TokenLayout
from ...planning.network_memory import dit_bytes, fastest_kernel, upsampler_bytes, weight_bytes
from ...planning.plan import DECODER_FRAMES
from ...sampling.super_resolve import UPSAMPLER_FRAMES, SamplingConfig, super_resolve
from ..machine import Grid
from ..network import random_model
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


@torch.inference_mode()
def upsample(bench: Bench) -> dict[str, Any]:
    """Returns seconds and peak of its upsampler, streamed: the second run."""
    config, (T, h, w) = UltraUpsamplerConfig(), bench.sizes.ultra_low
    with torch.device(bench.device):
        model = UltraUpsampler(config).to(bench.dtype).eval()
    bench.release()
    size = config.scale * h, config.scale * w

    def run() -> None:
        for z in model.stream(bench.noise(1, 16, T, h, w).split(UPSAMPLER_FRAMES, dim=2), size):
            z.cpu()

    watch = Stopwatch(bench.machine)
    run()
    first = watch.lap()
    with bench.peak() as measured:
        run()
    counted = upsampler_bytes(config, 1, UPSAMPLER_FRAMES, (h, w), size, None, bench.dtype)
    return against_plan(measured, counted, weight_bytes(model)) | {"first_seconds": first}


def one_step(bench: Bench) -> dict[str, Any]:
    """Returns seconds and peak of super_resolve in one step, the upsampler within: the second run."""
    dit, (T, h, w) = ultra_dit(bench.sizes), bench.sizes.ultra_low
    bench.release()
    model = random_model(dit, bench.machine).eval()
    model.attention = ATTENTION
    with torch.device(bench.device):
        up = UltraUpsampler(UltraUpsamplerConfig()).to(bench.dtype).eval()
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


@torch.inference_mode()
def decode(bench: Bench) -> dict[str, Any]:
    """Returns seconds and peak of its decoder, streamed: the second run."""
    try:
        module = import_module("...networks.video_decoder", __package__)
    except ModuleNotFoundError as error:
        raise NotRun("this version has no networks/video_decoder.py") from error
    with torch.device(bench.device):
        decoder = module.VideoDecoder(module.VideoDecoderConfig(layout="ultra_flash", encoder=False)).to(bench.dtype).eval()
    return decoded(decoder, bench)


@torch.inference_mode()
def tiny_decode(bench: Bench) -> dict[str, Any]:
    """Returns the same of TinyVAE, which decodes no latent of Wan's."""
    return decoded(load_tiny_vae(GVR_TINY_VAE).to(bench.device, bench.dtype), bench)


def decoded(decoder: Any, bench: Bench) -> dict[str, Any]:
    """Returns seconds and peak of a decoder with decode_chunk, frames to the host as bytes: the second run."""
    T, h, w = bench.sizes.ultra_low
    bench.release()
    z = bench.noise(1, 16, T, 2 * h, 2 * w)

    def run() -> None:
        past: Any = {}
        for chunk in z.split(DECODER_FRAMES, dim=2):
            video, past = decoder.decode_chunk(chunk, past)
            video.add(1).mul_(127.5).round_().clamp_(0, 255).byte().cpu()

    run()
    with bench.peak() as measured:
        run()
    frames = video_frames(T)
    return {**measured, "frames": frames, "frames_per_second": frames / measured["seconds"]}
