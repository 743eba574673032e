"""The runs that `simplegvr train --preset NAME` starts from: the paper's three stages, those of the bundled gvr_tiny, and a smoke test."""

from dataclasses import replace
from pathlib import Path

from ..files import GVR_TINY_VAE
from ..networks.attention import AttentionConfig
from ..networks.block_causal_config import BlockCausalConfig
from ..networks.dit import DiTConfig
from ..networks.upsampler import VARIANTS
from ..sampling.super_resolve import SamplingConfig
from .batches import Crop
from .loop import LoopConfig
from .train import Train

TINY_DIT = DiTConfig(dim=256, ffn_dim=1024, num_heads=2, num_layers=4)
TINY_SAMPLING = SamplingConfig(steps=2, shift=3.0, noise_augmentation=0.0, denoise=0.15)

CURVE = Path("runs/stage1/curve.json")  # of the model with a uniform density, which `simplegvr curve` measures after stage 1
STAGE = Train(pairs=(Path("pairs/classical"),), out=Path("runs/stage1"), gradient_checkpointing=True, loop=replace(Train.loop, workers=4))
TINY = replace(
    STAGE,
    dit=TINY_DIT,
    attention=AttentionConfig(),
    upsampler=replace(VARIANTS["simplegvr"], width=64, latents="tiny_vae"),
    sampling=TINY_SAMPLING,
    noise_range=(0.0, 0.3),
    upsampler_loss=0.5,
    perceptual_loss=0.5,
    gradient_checkpointing=False,
    vae=GVR_TINY_VAE,
    crop=Crop(size=(24, 24), batch=4),
    loop=LoopConfig(steps=2000, learning_rate=5e-4, warmup=100),
)
STAGE3 = replace(
    STAGE,
    pairs=(Path("pairs/classical_77"), Path("pairs/aigc_77")),
    out=Path("runs/stage3"),
    init_dit=Path("runs/stage2/dit.safetensors"),
    init_upsampler=Path("runs/stage2/upsampler.safetensors"),
    curve=CURVE,
    attention=AttentionConfig(scope="video"),
    crop=replace(STAGE.crop, num_frames=77, batch=16),  # with accumulate the paper's 32: a GPU of 80 GB computes one sample at once
    loop=replace(STAGE.loop, steps=5_000, accumulate=2),
)
# Stage 1 trains on RealBasicVSR's two passes (recipe "classical"), as the ICLR text has it. arXiv version 1 has one pass (recipe
# "one_order"), since two are too much for generated video: give its pairs with --pairs.
PRESETS = {
    "stage1": STAGE,
    "stage2": replace(
        STAGE,
        pairs=(Path("pairs/aigc"),),
        out=Path("runs/stage2"),
        init_dit=Path("runs/stage1/dit.safetensors"),
        init_upsampler=Path("runs/stage1/upsampler.safetensors"),
        curve=CURVE,
        loop=replace(STAGE.loop, steps=10_000),
    ),
    "stage3": STAGE3,
    "stage3_block_causal": replace(STAGE3, out=Path("runs/stage3_block_causal"), attention=BlockCausalConfig()),
    "tiny_t2v": replace(
        TINY,
        pairs=(Path("pairs/tiny_t2v"),),
        out=Path("runs/tiny_t2v"),
        dit=replace(TINY_DIT, in_dim=16),
        attention=AttentionConfig(kind="full", unit=None),
        upsampler=replace(VARIANTS["bilinear"], latents="tiny_vae"),
        sampling=SamplingConfig(steps=20, shift=3.0, denoise=0.6),
        upsampler_loss=0.0,
        perceptual_loss=0.0,
        crop=Crop(size=(16, 28), batch=8),
        loop=replace(TINY.loop, steps=10_000, learning_rate=1e-3),
    ),
    "tiny_teacher": replace(
        TINY,
        pairs=(),
        footage=(Path("footage"),),
        out=Path("runs/tiny_teacher"),
        upsampler=VARIANTS["pixels"],
        upsampler_loss=1.0,
        perceptual_loss=0.0,
        crop=Crop(num_frames=9, size=(24, 24), batch=32),
        loop=LoopConfig(steps=10_000, learning_rate=5e-4, warmup=100, ema=0.995),
    ),
    "smoke": replace(
        TINY,
        pairs=(Path("runs/smoke/pairs"),),
        out=Path("runs/smoke"),
        dit=DiTConfig(dim=128, ffn_dim=256, num_heads=1, num_layers=2),
        attention=AttentionConfig(window=(1, 3, 3)),
        upsampler=replace(TINY.upsampler, width=16),
        perceptual_loss=0.0,
        bf16=False,
        crop=Crop(num_frames=9, size=(12, 12), batch=4),
        loop=LoopConfig(steps=120, learning_rate=2e-3, warmup=10, ema=0.98, save_every=20),
    ),
}
