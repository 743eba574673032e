"""The ways from a low-resolution latent to a saved video of the target size, cut into stages that are measured one by one.

T latent frames, h, w low-resolution latent pixels, H, W those of the target; z normalised latent (1, 16, T, H, W); video
(1, 3, F, H, W) in [-1, 1]
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ..evaluation import baselines as upscalers
from ..files import CLIPS, GVR_TINY, GVR_TINY_T2V, GVR_TINY_UPSAMPLER, GVR_TINY_VAE
from ..latent_space import SPATIAL_FACTOR, token_grid, video_frames
from ..networks.attention import AttentionConfig
from ..networks.checkpoint import parse_config
from ..networks.dit import DiTConfig, SimpleGVRDiT, load_dit, read_dit
from ..networks.tiny_vae import load_tiny_vae
from ..networks.upsampler import LatentUpsampler, Upsampler, UpsamplerConfig, load_upsampler
from ..sampling.super_resolve import UPSAMPLER_FRAMES, SamplingConfig, super_resolve
from ..video.frames import resize_frames, to_images
from ..video.read import read_video
from ..video.write import Encoding, write_frames
from . import baselines
from .attention import ATTENTIONS
from .chain_stages import Grid, Meter, Scene, by_flops, by_latent

WAN_VAE = {"dim": 96, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True]}
TEXT_TOKENS, T2V_STEPS = 512, 50
SEEDVR2_BLOCKS = 32  # of the 3B
DECODER_FRAMES = 2


@dataclass(frozen=True)
class Stack:
    """The networks of a chain.

    Attributes:
        decode: z of any size -> video, float32 on the CPU.
        encode: video -> z.
        upsampler: Latent upsampler.
        dit: Transformer that refines.
        sampling: How it is sampled, as often as it is run.
        t2v: Makes the text-to-video model. It is not in memory beside the others.
        z_lr: Low-resolution latent (1, 16, T, h, w).
        steps: Of the refiner in a chain; where sampling has fewer, the time is multiplied.
        layers: How many times as many layers the transformers have as those that are run.
    """

    decode: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor], Tensor]
    upsampler: Upsampler
    dit: SimpleGVRDiT
    sampling: SamplingConfig
    t2v: Callable[[], SimpleGVRDiT]
    z_lr: Tensor
    steps: int
    layers: float = 1.0

    @property
    def repeats(self) -> float:
        return self.layers * self.steps / self.sampling.steps


@dataclass(frozen=True)
class Upsampled:
    """An upsampler whose result is there already: super_resolve then does the rest."""

    z_up: Tensor
    config: Any

    def stream(self, chunks: object, size: tuple[int, int]) -> Iterator[Tensor]:
        yield self.z_up


def refine(stack: Stack, z_up: Tensor, meter: Meter) -> Tensor:
    """Returns the refined latent (1, 16, T, H, W), as super_resolve makes it of an upsampled one."""
    size, given = (z_up.shape[3], z_up.shape[4]), cast("Upsampler", Upsampled(z_up, stack.upsampler.config))

    def run() -> Tensor:
        return super_resolve(stack.dit, given, stack.z_lr, size, sampling=stack.sampling)

    return meter("refine", run, by_flops(stack.dit.config, stack.dit.attention), stack.repeats)


def decode_and_save(stack: Stack, z: Tensor, meter: Meter) -> None:
    save(meter("decode", lambda: to_images(stack.decode(z))), meter)


def save(images: Tensor, meter: Meter) -> None:
    """Writes images (F, H, W, 3) uint8 to an H.264 file."""

    def write() -> None:
        with TemporaryDirectory(prefix="simplegvr_") as folder:
            height, width = images.shape[1:3]
            with write_frames(Path(folder) / "video.mp4", Encoding(width, height, Fraction(16))) as add:
                add(images)

    meter("save", write)


def ours(stack: Stack, scene: Scene, meter: Meter) -> None:
    """Upsample the latent, refine, decode."""
    size = scene.high[1], scene.high[2]

    def upsample() -> Tensor:
        return torch.cat(list(stack.upsampler.stream(stack.z_lr.split(UPSAMPLER_FRAMES, dim=2), size)), dim=2)

    z_up = meter("upsample the latent", upsample, by_latent)
    decode_and_save(stack, refine(stack, z_up, meter), meter)


def pixels(stack: Stack, scene: Scene, meter: Meter) -> None:
    """Decode, resize the pixels, encode, refine with the same refiner, decode."""
    video = meter("decode the low resolution", lambda: stack.decode(stack.z_lr))
    video = meter("resize the pixels", lambda: bicubic(video, scene))
    z_up = meter("encode", lambda: stack.encode(video))
    decode_and_save(stack, refine(stack, z_up, meter), meter)


def bicubic_only(stack: Stack, scene: Scene, meter: Meter) -> None:
    """Decode, resize the pixels: no refiner."""
    video = meter("decode the low resolution", lambda: stack.decode(stack.z_lr))
    save(meter("resize the pixels", lambda: to_images(bicubic(video, scene))), meter)


def pixel_upscaler(name: str, stack: Stack, scene: Scene, meter: Meter) -> None:
    """Decode, upscale the frames by one of evaluation's baselines. Raises Unavailable where it is not fetched or cannot run."""
    try:
        upscalers.find(name)
        import_module("ncnn") if name == "span" else None
    except (FileNotFoundError, ImportError) as error:
        raise baselines.Unavailable(str(error)) from error
    video = meter("decode the low resolution", lambda: stack.decode(stack.z_lr))
    save(meter(name, lambda: to_images(upscalers.BASELINES[name](video, in_pixels(scene.high), None))), meter)


def seedvr2(stack: Stack, scene: Scene, meter: Meter) -> None:
    """One step of ComfyUI's SeedVR2 3B with random weights: its transformer alone, neither its autoencoder nor ours."""
    run = baselines.seedvr2_block(token_grid(scene.high), stack.z_lr.device, stack.z_lr.dtype)
    run()
    meter("32 blocks of SeedVR2 3B", run, by_latent, SEEDVR2_BLOCKS)


def end_to_end(stack: Stack, scene: Scene, meter: Meter) -> None:
    """Text-to-video at the target's size, dense attention: one of its steps is run."""
    text_to_video(stack, scene.high, meter, low=False)
    decode_and_save(stack, torch.randn(1, 16, *scene.high).to(stack.z_lr), meter)


def first_stage(stack: Stack, scene: Scene, meter: Meter) -> None:
    """Text-to-video at the low resolution, which all routes but the one above begin with."""
    text_to_video(stack, scene.low, meter, low=True)


def text_to_video(stack: Stack, extent: Grid, meter: Meter, low: bool) -> None:
    """Runs one step of the text-to-video model at a size (T, H, W)."""
    model = stack.t2v()
    z = torch.randn(1, 16, *extent).to(stack.z_lr)
    context, timestep = torch.zeros(1, TEXT_TOKENS, model.config.text_dim).to(z), torch.tensor([500.0], device=z.device)
    growth = by_flops(model.config, model.attention, low)
    meter("text-to-video", lambda: model(z, timestep, context), growth, T2V_STEPS * stack.layers)


ROUTES = {
    "ours: upsample the latent, refine, decode": ours,
    "pixels: decode, resize, encode, the same refiner, decode": pixels,
    "decode, bicubic": bicubic_only,
    "decode, SPAN": partial(pixel_upscaler, "span"),
    "decode, BasicVSR": partial(pixel_upscaler, "basicvsr"),
    "SeedVR2 3B, its transformer alone": seedvr2,
    "text-to-video at the target's size": end_to_end,
    "text-to-video at the low resolution, before all but the last": first_stage,
}


def bicubic(video: Tensor, scene: Scene) -> Tensor:
    return resize_frames(video, in_pixels(scene.high), "bicubic")


def in_pixels(extent: Grid) -> tuple[int, int]:
    return SPATIAL_FACTOR * extent[1], SPATIAL_FACTOR * extent[2]


def tiny_stack(scene: Scene, device: torch.device, dtype: torch.dtype) -> Stack:
    """Returns the bundled networks, with the settings of their files, and the latent of a bundled clip."""
    vae, upsampler = load_tiny_vae(GVR_TINY_VAE).to(device, dtype), load_upsampler(GVR_TINY_UPSAMPLER).to(device, dtype)
    assert isinstance(upsampler, LatentUpsampler)
    vae.fast = upsampler.fast = True  # as ComfyUI's nodes load them
    dit, config = load_dit(GVR_TINY)
    sampling = parse_config(SamplingConfig, config, "sampling", GVR_TINY)
    images, _ = read_video(CLIPS / "demo_original.mp4", video_frames(scene.low[0]))
    video = resize_frames(images.permute(3, 0, 1, 2)[None].float() / 127.5 - 1, in_pixels(scene.low), "area")

    def t2v() -> SimpleGVRDiT:
        config, weights = read_dit(GVR_TINY_T2V)
        model = SimpleGVRDiT(config, ATTENTIONS["dense"])
        model.load_state_dict(weights)
        return model.to(device, dtype)

    def decode(z: Tensor) -> Tensor:
        return torch.cat([part.float().cpu() for part in vae.decode_stream(z.split(DECODER_FRAMES, dim=2))], dim=2)

    def encode(video: Tensor) -> Tensor:
        return vae.encode(video.to(device, dtype))

    return Stack(decode, encode, upsampler, dit.to(device, dtype), sampling, t2v, encode(video), sampling.steps)


def wan_stack(scene: Scene, device: torch.device, dtype: torch.dtype, layers: int = 2, steps: int = 4) -> Stack:
    """Returns networks of Wan's sizes with random weights: ComfyUI's Wan VAE, the 1.3B transformer, the paper's upsampler.

    Args:
        scene: What is made.
        device: Of the networks.
        dtype: Of the networks.
        layers: Of the 30 that are run, for one step; the time of the others is added.
        steps: Of the refiner in a chain.

    Raises:
        Unavailable: COMFYUI_PATH is no folder of ComfyUI.
    """
    make_vae = baselines.comfyui_attribute("comfy.ldm.wan.vae", "WanVAE")
    factory = {"device": device, "dtype": dtype}
    with torch.device(device):
        vae, upsampler = make_vae(**WAN_VAE).to(dtype), LatentUpsampler(UpsamplerConfig()).to(dtype)
        dit = SimpleGVRDiT(replace(DiTConfig(), num_layers=layers), AttentionConfig(), dtype=dtype)
    for network in (vae, upsampler, dit):
        randomize(network)

    def t2v() -> SimpleGVRDiT:
        with torch.device(device):
            model = SimpleGVRDiT(replace(DiTConfig(), in_dim=16, num_layers=layers), ATTENTIONS["dense"], dtype=dtype)
        return randomize(model)

    sampling = SamplingConfig(steps=1)
    return Stack(
        lambda z: vae.decode(z).float().cpu(),
        lambda video: vae.encode(video.to(**factory)),
        upsampler,
        dit,
        sampling,
        t2v,
        torch.randn(1, 16, *scene.low).to(**factory),
        steps,
        DiTConfig().num_layers / layers,
    )


Network = TypeVar("Network", bound=torch.nn.Module)


def randomize(network: Network) -> Network:
    """Returns the network, its weights normal."""
    for parameter in network.eval().requires_grad_(False).parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return network


STACKS = {"gvr_tiny": tiny_stack, "wan": wan_stack}


@dataclass(frozen=True)
class Run:
    """One route of one stack, measured in a process of its own.

    Attributes:
        stack: Of STACKS.
        route: Of ROUTES.
        measured: What is run.
        wanted: What the seconds are forecast for.
        device: PyTorch's name of a device.
        dtype: PyTorch's name of a floating-point type.
    """

    stack: str
    route: str
    measured: Scene
    wanted: Scene
    device: str
    dtype: str

    @torch.inference_mode()
    def measure(self) -> dict[str, Any]:
        """Returns the route's stages, and "" or the reason why it did not run."""
        meter = Meter(torch.device(self.device), self.measured, self.wanted)
        torch.manual_seed(0)
        try:
            stack = STACKS[self.stack](self.measured, meter.device, getattr(torch, self.dtype))
            if meter.device.type != "cpu":  # kernels are compiled and chosen
                ROUTES[self.route](stack, self.measured, replace(meter, stages=[]))
            ROUTES[self.route](stack, self.measured, meter)
        except baselines.Unavailable as reason:
            return {"stages": [], "not_run": str(reason)}
        return {"stages": meter.stages, "not_run": ""}
