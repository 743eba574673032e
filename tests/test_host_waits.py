"""Inside a training step the host waits for no value of the device: none is read as a number of Python."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from conftest import DIT, random_weights
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from simplegvr_core.files import GVR_TINY_VAE
from simplegvr_core.networks.attention import AttentionConfig
from simplegvr_core.networks.block_causal_config import BlockCausalConfig
from simplegvr_core.networks.dit import SimpleGVRDiT
from simplegvr_core.networks.tiny_vae import load_tiny_vae
from simplegvr_core.networks.ultra_upsampler import UltraUpsamplerConfig
from simplegvr_core.networks.upsampler import VARIANTS, UpsamplerConfig, make_upsampler
from simplegvr_core.sampling.super_resolve import SamplingConfig
from simplegvr_core.training.distil import PRESETS as DISTIL_PRESETS
from simplegvr_core.training.dmd2 import DMD2
from simplegvr_core.training.draws import Batch, Draws
from simplegvr_core.training.loss import FlowNoise
from simplegvr_core.training.one_step import STUDENT
from simplegvr_core.training.optimizer_step import train_step
from simplegvr_core.training.presets import PRESETS
from simplegvr_core.training.step_memory import gpu_kernels
from simplegvr_core.training.train import Train
from simplegvr_core.training.train_upsampler import TrainUpsampler
from simplegvr_core.training.train_vae import Crops, NoisedCrops, Reconstruction

pytestmark = pytest.mark.usefixtures("one_thread")
FULL, SPARSE = AttentionConfig(kind="full", unit=None), AttentionConfig(window=(1, 3, 3), top_k=1, unit=2)
BLOCK_CAUSAL = BlockCausalConfig(window=(2, 3, 3), local_range=3, budget=20)
TRAIN = replace(PRESETS["smoke"], gradient_checkpointing=True, bf16=True)
READS = {Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__}
Objective = tuple[nn.Module, Batch]


class NoReading(TorchFunctionMode):
    """While open, a function of tensors that gives the host their values raises AssertionError."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func not in READS, f"{func.__name__} makes the host wait"
        return func(*args, **(kwargs or {}))


class NoScalars(TorchDispatchMode):
    """While open, an operation that reads a value for itself, such as an index, raises AssertionError."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a value is read"
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting() -> Iterator[None]:
    with NoReading(), NoScalars():
        yield


def latents(text_dim: int = 4096) -> Batch:
    z = torch.randn(2, 16, 3, 6, 10, generator=torch.Generator().manual_seed(0))
    return {"z_lr": z[..., ::2, ::2].clone(), "z_hr": z, "context": torch.zeros(2, 1, text_dim)}


def draws(step: int = 0) -> Draws:
    return Draws(0, step, range(2), 2)


def flow(attention: AttentionConfig | BlockCausalConfig = FULL, train: Train = TRAIN, exact_time: bool = False) -> Objective:
    dit = random_weights(SimpleGVRDiT(replace(DIT, exact_time=exact_time), attention)).train()
    upsampler = make_upsampler(UltraUpsamplerConfig(width=8, blocks=2, factors=(2,)) if exact_time else UpsamplerConfig(width=8))
    for parameter in upsampler.parameters():
        nn.init.normal_(parameter, std=0.05)
    vae = load_tiny_vae(GVR_TINY_VAE) if train.perceptual_loss else None
    model = train.objective(*train.prepared(upsampler, dit, torch.Generator()), vae)
    return model, latents() | FlowNoise((0.3, 0.6), None)(latents()["z_hr"], draws())


def few_steps(objective: str, step: int = 0, exact_time: bool = False, **options) -> Objective:
    dit = random_weights(SimpleGVRDiT(replace(DIT, exact_time=exact_time), FULL)).train()
    distil = replace(DISTIL_PRESETS["wan"], objective=objective, attention=FULL, fake_updates=2, **options)
    vae = load_tiny_vae(GVR_TINY_VAE) if distil.perceptual_loss else None
    model, noise = distil.networks(make_upsampler(VARIANTS["bilinear"]), dit, vae)
    return model, latents() | noise(latents()["z_hr"], draws(step))


def turn(step: int, students: bool) -> Objective:
    model, batch = few_steps("dmd2", step, exact_time=True, sampling=SamplingConfig(steps=4, solver="ab2"), guidance=3.0)
    assert isinstance(model, DMD2) and (batch["turn"] < 0.5) == students and batch["turn"] % 0.5 > 0.25  # a later step, after others
    return model, batch


def upsampler_alone() -> Objective:
    train = TrainUpsampler(TRAIN.out, perceptual_loss=1.0)
    upsampler = make_upsampler(UpsamplerConfig(width=8))
    for parameter in upsampler.parameters():
        nn.init.normal_(parameter, std=0.05)
    return train.objective(upsampler, load_tiny_vae(GVR_TINY_VAE)), latents()


def autoencoder() -> Objective:
    vae = load_tiny_vae(GVR_TINY_VAE).requires_grad_(True)
    source = NoisedCrops([torch.zeros(9, 48, 48, 3, dtype=torch.uint8)], Crops(9, 48, 2), vae, 0.05)
    return Reconstruction(vae, 0.1), source.finish(source.read(draws()), draws())


OBJECTIVES = {
    "full attention": lambda: flow(FULL, replace(TRAIN, perceptual_loss=0.5, upsampler_loss=0.5)),
    "sparse attention": lambda: flow(SPARSE),
    "block-causal attention, Ultra Flash's networks": lambda: flow(BLOCK_CAUSAL, exact_time=True),
    "LoRA": lambda: flow(SPARSE, replace(TRAIN, lora_rank=3)),
    "one step": lambda: few_steps("regression", sampling=STUDENT, perceptual_loss=1.0, lora_rank=3),
    "DMD2, the student's turn": lambda: turn(step=1, students=True),
    "DMD2, the fake score's turn": lambda: turn(step=3, students=False),
    "upsampler alone": upsampler_alone,
    "autoencoder": autoencoder,
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_value_is_read_inside_a_step(name):
    """Attention is what a GPU's kernel allocates: without Triton, and for block-causal gradients, the selection itself is read."""
    model, batch = OBJECTIVES[name]()
    accelerator = Accelerator(cpu=True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = accelerator.prepare_optimizer(torch.optim.AdamW(trained, 1e-3, fused=True))
    networks = model, *getattr(model, "frozen", ())
    with gpu_kernels(networks):
        train_step(accelerator, model, optimizer, [batch], 1.0)  # caches what follows from sizes alone
        with no_waiting():
            outcome = train_step(accelerator, model, optimizer, [batch], 1.0)
    assert outcome.loss.shape == outcome.norm.shape == ()


@pytest.mark.parametrize("read", [lambda x: x.item(), lambda x: x.tolist(), lambda x: x.cpu(), bool, int, lambda x: torch.ones(3)[x]])
def test_every_way_of_reading_a_value_is_seen(read):
    with pytest.raises(AssertionError), no_waiting():
        read(torch.tensor(1))
