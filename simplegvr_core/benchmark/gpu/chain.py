"""The chain from a low-resolution latent to frames at 1080p, stage by stage, with random weights of Wan's sizes."""

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ...files import GVR_TINY_VAE
from ...latent_space import SPATIAL_FACTOR, video_frames
from ...networks.tiny_vae import TinyVAEConfig, load_tiny_vae
from ...networks.upsampler import LatentUpsampler, Upsampler
from ...planning.network_memory import decode_bytes, upsampler_bytes, weight_bytes
from ...planning.plan import DECODER_FRAMES
from ...sampling.super_resolve import UPSAMPLER_FRAMES, SamplingConfig, super_resolve
from ..machine import Grid
from .items import Bench, Item, NotRun, Sizes, Stopwatch, against_plan
from .network import attentions


def chain_items(sizes: Sizes) -> Iterator[Item]:
    """Yields the stages in their order, the whole sampler among them."""
    yield Item("chain", "upsample", 4, upsample)
    yield Item("chain", f"super_resolve, {sizes.steps} steps", 10, sampling)
    yield Item("chain", "decode by TinyVAE", 4, tiny_decode)
    yield Item("chain", "decode by Wan's autoencoder, random weights", 1, wan_decode)
    yield Item("chain", "encode frames to H.264", 1, encode)


def upsampler(bench: Bench) -> LatentUpsampler:
    """Returns the upsampler with random weights."""
    model = LatentUpsampler(bench.sizes.upsampler)
    model.init_weights(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.out.conv.weight, std=0.02)  # at first zero
    return model.to(bench.device, bench.dtype).eval()


def upsample(bench: Bench) -> dict[str, Any]:
    """Returns what upsampled returns, of our upsampler."""
    sizes = bench.sizes
    return upsampled(upsampler(bench), sizes.low, (sizes.high[1], sizes.high[2]), bench)


@torch.inference_mode()
def upsampled(model: Upsampler, low: Grid, size: tuple[int, int], bench: Bench) -> dict[str, Any]:
    """Returns seconds and peak of an upsampler, streamed as the sampler runs it: the second run, after one that warms up.

    Args:
        model: On the device.
        low: (T, h, w) of the low-resolution latent.
        size: (H, W) of the result.
        bench: The run.
    """
    bench.release()

    def run() -> None:
        for z in model.stream(bench.noise(1, 16, *low).split(UPSAMPLER_FRAMES, dim=2), size):
            z.cpu()

    watch = Stopwatch(bench.machine)
    run()
    first = watch.lap()
    with bench.peak() as measured:
        run()
    counted = upsampler_bytes(model.config, 1, UPSAMPLER_FRAMES, low[1:], size, None, bench.dtype)
    return against_plan(measured, counted, weight_bytes(model)) | {"first_seconds": first, "frames_at_a_time": UPSAMPLER_FRAMES}


def sampling(bench: Bench) -> dict[str, Any]:
    """Returns seconds and peak of super_resolve with sparse local attention, and the seconds of each step after the first."""
    sizes, model, up = bench.sizes, bench.dit, upsampler(bench)
    model.attention = attentions(sizes)["sparse local"]
    z_lr, context = bench.noise(1, 16, *sizes.low), bench.noise(1, 512, sizes.dit.text_dim)
    watch, steps = Stopwatch(bench.machine), []
    with bench.peak() as measured:
        z = super_resolve(
            model,
            up,
            z_lr,
            (sizes.high[1], sizes.high[2]),
            sampling=SamplingConfig(steps=sizes.steps),
            context=context,
            on_step=lambda *_: steps.append(watch.lap()),
        )
    return measured | {"seconds_per_step": sum(steps[1:]) / (len(steps) - 1), "steps": len(steps), "finite": bool(z.isfinite().all())}


def tiny_decode(bench: Bench) -> dict[str, Any]:
    """Returns what decoded returns, of the bundled TinyVAE, its memory beside the plan's."""
    sizes, vae = bench.sizes, load_tiny_vae(GVR_TINY_VAE).to(bench.device, bench.dtype)
    measured = decoded(vae.decode_stream, sizes.high, bench)
    counted = decode_bytes(TinyVAEConfig(), DECODER_FRAMES, (sizes.high[1], sizes.high[2]), bench.dtype)
    return against_plan(measured, counted, weight_bytes(vae))


@torch.inference_mode()
def decoded(decode_stream: Callable[[Iterable[Tensor]], Iterable[Tensor]], extent: Grid, bench: Bench) -> dict[str, Any]:
    """Returns seconds and peak of a decoder, frames to the host as bytes: the second run.

    Args:
        decode_stream: Yields the video of each chunk of a latent.
        extent: (T, H, W) of the latent.
        bench: The run.
    """
    bench.release()
    z = bench.noise(1, 16, *extent)

    def run() -> None:
        for video in decode_stream(z.split(DECODER_FRAMES, dim=2)):
            video.add_(1).mul_(127.5).round_().clamp_(0, 255).byte().cpu()

    run()
    with bench.peak() as measured:
        run()
    frames = video_frames(extent[0])
    return {**measured, "frames": frames, "frames_per_second": frames / measured["seconds"]}


@torch.inference_mode()
def wan_decode(bench: Bench) -> dict[str, Any]:
    """Returns seconds and peak of Wan 2.1's autoencoder of diffusers."""
    diffusers = optional("diffusers")
    sizes = bench.sizes
    with torch.device(bench.device):
        vae = diffusers.AutoencoderKLWan(**({"base_dim": 8} if sizes.name == "toy" else {})).to(bench.dtype).eval()
    bench.release()
    z = bench.noise(1, 16, *sizes.high)
    with bench.peak() as measured:
        vae.decode(z, return_dict=False)
    return {**measured}


def encode(bench: Bench) -> dict[str, Any]:
    """Returns the seconds of encoding as many frames of moving color to a file."""
    optional("av")
    from fractions import Fraction
    from pathlib import Path

    from ...video.write import Encoding, write_frames

    T, H, W = bench.sizes.high
    height, width, frames = SPATIAL_FACTOR * H, SPATIAL_FACTOR * W, video_frames(T)
    ramp = torch.linspace(0, 1, width).expand(height, -1)
    images = [torch.stack((ramp, ramp.flip(1), ramp.roll(8 * i, 1)), -1)[None] for i in range(4)]
    watch = Stopwatch(bench.machine)
    with TemporaryDirectory() as folder, write_frames(Path(folder) / "video.mp4", Encoding(width, height, Fraction(16), crf=18)) as add:
        for i in range(frames):
            add(images[i % len(images)])
    return {"seconds": watch.lap(), "frames": frames}


def optional(package: str) -> Any:
    """Returns an optional package. Raises NotRun when it is not installed."""
    try:
        return import_module(package)
    except ImportError as error:
        raise NotRun(f"{package} is not installed") from error
