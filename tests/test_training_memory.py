"""Memory of a training step: the plan's fake tensors against real ones by part, and what is recomputed changes no loss."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ATTENTION, DIT

from simplegvr_core.latent_space import token_grid
from simplegvr_core.networks import dit as dit_module
from simplegvr_core.networks import kernels
from simplegvr_core.networks.attention import AttentionConfig
from simplegvr_core.networks.block_causal_config import BlockCausalConfig
from simplegvr_core.networks.dit import SimpleGVRDiT
from simplegvr_core.networks.ultra_upsampler import UltraUpsamplerConfig
from simplegvr_core.networks.upsampler import UpsamplerConfig, make_upsampler
from simplegvr_core.planning.flops import dit_flops
from simplegvr_core.training.batches import Crop
from simplegvr_core.training.cost import line, memory_model, upsampler_flops
from simplegvr_core.training.distil import Distil
from simplegvr_core.training.loop import LoopConfig
from simplegvr_core.training.optimizer_step import adamw
from simplegvr_core.training.presets import PRESETS
from simplegvr_core.training.rates import Work
from simplegvr_core.training.sharding import blocks
from simplegvr_core.training.state import Progress
from simplegvr_core.training.step_memory import Step, StepMemory, activation_bytes, gpu_kernels, split_weights, step_memory
from simplegvr_core.training.train import Train

FULL = AttentionConfig(kind="full", unit=None)
STAGE1 = Train((), Path("out"), dit=DIT, attention=FULL, upsampler=UpsamplerConfig(width=16), gradient_checkpointing=True)
WIDE = replace(DIT, dim=256, ffn_dim=512, num_heads=2)
LORA = replace(STAGE1, lora_rank=4, frozen="bfloat16")
DISTIL = Distil((), Path("out"), Path("none"), Path("none"), objective="dmd2", attention=FULL, gradient_checkpointing=True)
RUNS = {
    "stage 1": STAGE1,
    "without recomputing": replace(STAGE1, gradient_checkpointing=False),
    "stage 3": replace(STAGE1, attention=ATTENTION),
    "LoRA": LORA,
    "LoRA beside float8": replace(LORA, frozen="float8"),
    "moments of 8 bits, no average": replace(STAGE1, dit=WIDE, loop=replace(STAGE1.loop, moments="8bit", ema=0.0)),
    "LoRA in float32": replace(LORA, frozen="float32", gradient_checkpointing=False),
}


@pytest.fixture(autouse=True)
def fed_in_chunks(monkeypatch, one_thread):
    monkeypatch.setattr(dit_module, "CHUNK", 64)


def real_memory(step, kernel=None, loop=STAGE1.loop) -> StepMemory:
    """Returns what real tensors of the CPU take, counted by live storages, and AdamW's own."""
    real = {
        id(weight): torch.nn.Parameter((0.02 * torch.randn(weight.shape)).to(weight.dtype), weight.requires_grad) for weight in step.weights
    }
    for module in (module for network in step.networks for module in network.modules()):
        module._parameters.update({name: None if weight is None else real[id(weight)] for name, weight in module._parameters.items()})
    batch = {name: torch.rand(x.shape) if isinstance(x, torch.Tensor) else x for name, x in step.batch.items()}
    with gpu_kernels(step.networks, kernel):
        activations = activation_bytes(replace(step, batch=batch))
    gradients = sum(parameter.grad.nbytes for parameter in step.trained)
    optimizer = adamw(step.trained, loop.moments, lr=1e-3)
    optimizer.step()
    moments = sum(moment_nbytes(x) for state in optimizer.state.values() for name, x in state.items() if name.startswith("exp_avg"))
    average = sum(tensor.nbytes for tensor in Progress(step.trained, loop.ema).average)
    return StepMemory(sum(weight.nbytes for weight in step.weights), gradients, moments, average, activations)


def moment_nbytes(moment: torch.Tensor) -> int:
    """Returns the bytes of a moment's storages; torchao's tensor claims those of float32."""
    return sum(part.nbytes for part in (moment.codes, moment.scale, moment.qmap)) if hasattr(moment, "codes") else moment.nbytes


@pytest.mark.parametrize("size", [(8, 12), pytest.param((14, 18), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("name", RUNS)
def test_each_part_is_what_real_tensors_take(name, size):
    train = replace(RUNS[name], crop=Crop(9, size, 2))
    work = train.workload()
    kernel = kernels.load("triton" if train.attention.kind == "sparse_local" else "sdpa")
    planned, real = step_memory(work.step(3, 2), work.moments, work.average), real_memory(work.step(3, 2), kernel, train.loop)
    for part, value in vars(planned).items():
        assert value == pytest.approx(getattr(real, part), rel=0.1), part


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_each_part_of_a_distillation_is_what_real_tensors_take(lora_rank, monkeypatch):
    monkeypatch.setattr("simplegvr_core.training.distil.DiTConfig", lambda: DIT)
    monkeypatch.setitem(
        __import__("simplegvr_core.training.distil", fromlist=["VARIANTS"]).VARIANTS, "simplegvr", UpsamplerConfig(width=16)
    )
    for size in ((8, 12), (14, 18)):
        work = replace(DISTIL, lora_rank=lora_rank, crop=Crop(9, size, 2)).workload()
        planned, real = step_memory(work.step(3, 2)), real_memory(work.step(3, 2))
        for part, value in vars(planned).items():
            assert value == pytest.approx(getattr(real, part), rel=0.1), part


def test_more_blocks_and_samples_are_extrapolated_to_what_they_take():
    work = replace(STAGE1, crop=Crop(9, (14, 18), 2), dit=replace(DIT, num_layers=7)).workload()
    planned, counted = memory_model(work)(3), step_memory(work.step(7, 3))
    for part, value in vars(planned).items():
        assert value == pytest.approx(getattr(counted, part), rel=0.05), part
    assert line(3, (1, counted), (2, counted)) == counted


@pytest.mark.parametrize("sizes", [UpsamplerConfig(width=16), UltraUpsamplerConfig(width=16, blocks=3, factors=(2,))])
def test_recomputing_changes_neither_loss_nor_gradient_and_takes_less(sizes):
    found, taken = [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        upsampler, dit = make_upsampler(sizes), SimpleGVRDiT(DIT, FULL)
        for parameter in (*upsampler.parameters(), *dit.parameters()):
            torch.nn.init.normal_(parameter, std=0.05)
        train = replace(STAGE1, bf16=False, gradient_checkpointing=recompute)
        model = train.objective(*train.prepared(upsampler, dit, torch.Generator()), None)
        batch = {name: torch.rand(1, 16, 3, 14, 18) for name in ("z_hr", "noise", "condition_noise")}
        batch |= {"z_lr": torch.rand(1, 16, 3, 7, 9), "context": torch.rand(1, 5, 4096), "sigma": torch.rand(1, 1, 1, 1, 1)}
        batch["noise_augmentation"] = torch.rand(1, 1, 1, 1, 1)
        loss = model(**batch)
        loss.backward()
        found.append((loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}))
        taken.append(activation_bytes(Step(Summed(upsampler), {"z_lr": batch["z_lr"], "size": (14, 18)})))
    (loss, gradients), (again, gradients_again) = found
    torch.testing.assert_close(again, loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_again[name], gradient, msg=name)
    assert taken[1] < taken[0]


class Summed(torch.nn.Module):
    """A network whose loss is its sum."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, z_lr, size):
        return self.network(z_lr, size).sum()


@pytest.mark.slow  # counts the steps of seven plans
def test_float8_halves_the_frozen_weights_and_8_bits_quarter_the_moments():
    crop = Crop(9, (8, 12), 1)
    plans = {
        name: replace(train, dit=replace(WIDE, num_layers=8), crop=crop).plan()["memory_bytes"]
        for name, train in {**RUNS, "stage 1 without average": replace(STAGE1, loop=replace(STAGE1.loop, ema=0.0))}.items()
        if train.attention == FULL
    }
    blocks = 8 * (8 * 256**2 + 2 * 256 * 512)  # numbers of matrices
    saved = plans["LoRA"]["weights"] - plans["LoRA beside float8"]["weights"]
    assert saved == pytest.approx(blocks, rel=0.02)
    coarse = plans["moments of 8 bits, no average"]
    outside = 4096 * 256 + 9 * 256**2  # of the text and of the timestep
    assert plans["stage 1"]["moments"] - coarse["moments"] == pytest.approx(6 * (blocks + outside), rel=0.03)
    assert coarse["average"] == plans["stage 1 without average"]["average"] == 0 < plans["stage 1"]["average"]


def test_block_causal_attention_is_planned():
    train = replace(STAGE1, attention=BlockCausalConfig(), crop=Crop(9, (14, 18), 2))
    full = step_memory(replace(train, attention=FULL).workload().step(2, 1))
    assert step_memory(train.workload().step(2, 1)).activations == pytest.approx(full.activations, rel=0.1)


def test_recomputing_takes_less():
    crop = Crop(9, (28, 36), 1)
    plain, recomputed = (step_memory(replace(RUNS[name], crop=crop).workload().step(3, 1)) for name in ("without recomputing", "stage 1"))
    assert recomputed.activations < 0.45 * plain.activations


def test_frozen_weights_in_half_precision_want_a_lora():
    with pytest.raises(ValueError, match="--frozen is bfloat16, but only a LoRA leaves weights frozen"):
        replace(STAGE1, frozen="bfloat16", pairs=(Path("pairs"),)).check()


@pytest.mark.slow  # counts steps of Wan's width
def test_the_plan_knows_wan():
    """Stage 3 computes a sample of 77 frames at once on 80 GB, with or without FSDP2; a LoRA of 17 frames fits 24 GB."""
    plan = PRESETS["stage3"].plan()
    assert plan["tokens"] == 20 * 66 * 120
    assert 1.41e9 < plan["parameters"] == plan["trained_parameters"] < 1.43e9
    assert plan["memory_bytes"]["weights"] == plan["memory_bytes"]["moments"] / 2 == 4 * plan["parameters"]
    shared = replace(PRESETS["stage3"], loop=replace(PRESETS["stage3"].loop, shard=True)).plan()["per_gpu"]
    for gpus in (8, 16):
        assert plan["per_gpu"][gpus]["memory_bytes"] == plan["per_gpu"][1]["memory_bytes"] > 1.3 * shared[gpus]["memory_bytes"]
    for gpus in (1, 8, 16):
        assert plan["per_gpu"][gpus]["fits"] and plan["per_gpu"][gpus]["crop_batch"] * plan["per_gpu"][gpus]["accumulate"] == 32
        assert plan["per_gpu"][gpus]["hours"] == pytest.approx(plan["h100_hours"] / gpus)
    assert plan["per_gpu"][16]["crop_batch"] == PRESETS["stage3"].crop.batch
    lora = replace(PRESETS["stage1"], lora_rank=32, frozen="bfloat16").plan()
    assert lora["card_24gb"]["fits"] and not plan["card_24gb"]["fits"]
    assert PRESETS["smoke"].plan()["h100_hours"] < lora["h100_hours"] < PRESETS["stage1"].workload().flops


def test_the_plan_of_a_step_follows_from_its_batch():
    train = replace(STAGE1, crop=Crop(9, (8, 12), 8), loop=LoopConfig(steps=10, accumulate=2))
    plan = train.plan()
    assert set(plan["per_gpu"]) == {1, 8, 16}
    assert plan["noise_per_step"] == 16 * 2 * 16 * 3 * 8 * 12
    assert plan["flops_per_step"] == 16 * train.workload().flops
    assert plan["per_gpu"][8]["read_mb_per_s"] == pytest.approx(8 * plan["per_gpu"][1]["read_mb_per_s"])


def shared(train: Train) -> Train:
    return replace(train, loop=replace(train.loop, shard=True))


@pytest.mark.parametrize("name", ["stage 1", "LoRA"])
def test_the_plan_of_several_gpus_follows_the_sharding(name):
    """By DDP each has all; by FSDP2 a part of all weights, frozen ones too, and gathers two blocks and what is outside of them."""
    train = replace(RUNS[name], crop=Crop(9, (8, 12), 1), loop=LoopConfig(accumulate=16))
    memory, in_parts = memory_model(train.workload()), split_weights(train.workload().step(3, 1))
    for gpus, row in train.plan()["per_gpu"].items():
        assert row["memory_bytes"] == memory(row["samples_at_once"]).total and row["crop_batch"] == 16 and not row["sharded"], gpus
    for gpus, row in shared(train).plan()["per_gpu"].items():
        parts = memory(row["samples_at_once"])
        assert row["sharded"] == (gpus > 1)
        sharded = parts.activations + (parts.total - parts.activations) / gpus + (in_parts.gathered if gpus > 1 else 0)
        assert row["memory_bytes"] == pytest.approx(sharded, abs=1), gpus
    step = train.workload().step(3, 1)
    assert in_parts.whole == 0 < in_parts.gathered
    largest = max(sum(weight.nbytes for weight in block.parameters()) for block in blocks(step.model))
    assert in_parts.gathered >= 2 * largest


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_teacher_is_whole_on_each_gpu(lora_rank, monkeypatch):
    """Student and fake score, which share the teacher's weights under a LoRA, have parts of them."""
    monkeypatch.setattr("simplegvr_core.training.distil.DiTConfig", lambda: DIT)
    step = replace(DISTIL, lora_rank=lora_rank, crop=Crop(9, (8, 12), 1)).workload().step(DIT.num_layers, 1)
    split, (teacher,) = split_weights(step), step.frozen
    assert split.whole == sum(weight.nbytes for weight in teacher.parameters())
    assert split.shared == sum(weight.nbytes for network in step.model.children() for weight in network.parameters())
    assert split.shared > 2 * split.whole
    memory = step_memory(step)
    assert memory.weights == pytest.approx(split.shared + (split.whole if lora_rank == 0 else -split.whole))


@pytest.mark.parametrize("name", RUNS)
def test_useful_operations_leave_out_what_is_recomputed(name):
    """A frozen matrix has no gradient: with a LoRA its backward pass is one forward pass, that of q, k and v two."""
    work = replace(RUNS[name], crop=Crop(9, (14, 18), 2)).workload()
    forward = dit_flops(work.dit, work.attention, token_grid(work.crop))
    upsampler = upsampler_flops(work.upsampler, work.crop)
    if "LoRA" in name:
        assert work.useful_flops == 3 * forward.self_attention + 2 * forward.linear + upsampler
    else:
        assert work.useful_flops == 3 * (forward.total + upsampler)
    assert work.work == Work(2, 2 * 3 * 7 * 9, 2 * work.useful_flops)
    assert (work.flops > work.useful_flops) == work.recompute
