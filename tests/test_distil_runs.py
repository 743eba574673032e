"""Runs of `simplegvr distil`: killed and resumed, on two processes, as a LoRA, and their cost before they begin."""

import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import REPO, launcher, random_weights
from safetensors.torch import load_file, save_file

from simplegvr_core.evaluation.evaluate import Evaluate
from simplegvr_core.files import GVR_TINY_VAE
from simplegvr_core.networks import checkpoint
from simplegvr_core.networks.attention import AttentionConfig
from simplegvr_core.networks.dit import DiTConfig, SimpleGVRDiT, load_dit
from simplegvr_core.networks.lora_merge import add_lora_file
from simplegvr_core.networks.upsampler import VARIANTS, LatentUpsampler
from simplegvr_core.sampling.super_resolve import SamplingConfig
from simplegvr_core.training.batches import Crop
from simplegvr_core.training.build_pairs import BuildPairs
from simplegvr_core.training.distil import PRESETS, Distil
from simplegvr_core.training.dmd2 import DMD2
from simplegvr_core.training.draws import Draws
from simplegvr_core.training.loop import LoopConfig
from simplegvr_core.training.lora import lora_parameters
from simplegvr_core.training.losses import read_losses
from simplegvr_core.training.one_step import STUDENT
from simplegvr_core.training.online_pairs import chosen_pairs
from simplegvr_core.training.pairs import Pairs

pytestmark = pytest.mark.usefixtures("one_thread")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
SIZES = DiTConfig(dim=128, ffn_dim=160, num_heads=1, num_layers=2)
TWO_STEPS = SamplingConfig(steps=2, denoise=0.5)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Distil:
    """A run with pairs of the bundled clips and a teacher of random weights."""
    folder = tmp_path_factory.mktemp("data")
    BuildPairs(REPO / "assets", GVR_TINY_VAE, folder / "pairs", "area", num_frames=5, spacing=9, height=108, scales=(2,)).run()
    teacher = random_weights(SimpleGVRDiT(SIZES, AttentionConfig(window=(1, 3, 3))))
    configs = {"model": SIZES, "attention": teacher.attention, "sampling": SamplingConfig()}
    checkpoint.save(folder / "teacher.safetensors", "dit", teacher.state_dict(), **configs)
    upsampler = LatentUpsampler(replace(VARIANTS["channel_expansion"], width=8, latents="tiny_vae"))
    upsampler.init_weights(torch.Generator().manual_seed(0))
    checkpoint.save(folder / "upsampler.safetensors", "upsampler", upsampler.state_dict(), model=upsampler.config)
    return Distil(
        pairs=(folder / "pairs",),
        out=folder / "unused",
        init_dit=folder / "teacher.safetensors",
        init_upsampler=folder / "upsampler.safetensors",
        attention=teacher.attention,
        bf16=False,
        crop=Crop(num_frames=5, size=(4, 6), batch=2),
        loop=LoopConfig(steps=4, learning_rate=3e-3, warmup=1, schedule="constant", ema=0.5, save_every=2, cpu=True),
    )


def command(base: Distil, out: Path, *arguments, processes: int = 1) -> list[str]:
    """Returns the command line of the distribution matching of two steps."""
    files = ["--pairs", base.pairs[0], "--init-dit", base.init_dit, "--init-upsampler", base.init_upsampler, "--out", out]
    sizes = ["--no-bf16", "--no-gradient-checkpointing", "--crop.num-frames", 5, "--crop.size", 4, 6, "--crop.batch", 2]
    options = ["--attention.window", 1, 3, 3, "--fake-updates", 2, "--sampling.steps", 2, "--sampling.denoise", 0.5, "--loop.cpu"]
    loop = ["--loop.learning-rate", 3e-3, "--loop.warmup", 1, "--loop.ema", 0.5]
    return list(map(str, [*launcher(processes), "-m", "simplegvr_core", "distil", *files, *sizes, *options, *loop, *arguments]))


@pytest.mark.slow  # the loop is that of train, whose runs are killed in each test run
def test_a_killed_run_ends_with_the_same_losses(base, tmp_path):
    steps = ("--loop.steps", 12, "--loop.save-every", 4)
    process = subprocess.Popen(command(base, tmp_path / "killed", *steps), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    while not (tmp_path / "killed" / "state.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    assert process.wait() != 0
    assert not (tmp_path / "killed" / "dit.safetensors").exists()
    subprocess.run(command(base, tmp_path / "killed", *steps), env=ENVIRONMENT, capture_output=True, check=True)
    loop = replace(base.loop, steps=12, save_every=4)
    replace(base, objective="dmd2", sampling=TWO_STEPS, fake_updates=2, out=tmp_path / "whole", loop=loop).run()
    assert read_losses(tmp_path / "killed" / "losses.jsonl") == read_losses(tmp_path / "whole" / "losses.jsonl")
    weights = [load_file(tmp_path / name / "dit.safetensors") for name in ("killed", "whole")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["--loop.no-shard", "--loop.shard"])
def test_two_processes_have_the_losses_of_one(base, tmp_path, shard):
    """In some steps the student has its turn, in others it has not: the fake score alone is trained."""
    arguments = ("--loop.steps", 6, shard)
    ran = subprocess.run(
        command(base, tmp_path / "two", *arguments, processes=2), env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    one = replace(base, objective="dmd2", sampling=TWO_STEPS, fake_updates=2, out=tmp_path / "one", loop=replace(base.loop, steps=6))
    one.run()
    losses = [torch.tensor(read_losses(tmp_path / name / "losses.jsonl")) for name in ("two", "one")]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    weights = [load_file(tmp_path / name / "dit.safetensors") for name in ("two", "one")]
    torch.testing.assert_close(*weights, atol=1e-3, rtol=0)


@pytest.fixture
def captions(base, tmp_path) -> Path:
    """A folder of text features, three tokens for each video of the pairs."""
    (tmp_path / "captions").mkdir()
    for video in {entry["video"] for entry in Pairs(base.pairs[0]).entries}:
        save_file({"context": torch.randn(3, 4096)}, tmp_path / "captions" / Path(video).with_suffix(".safetensors").name)
    return tmp_path / "captions"


@pytest.mark.parametrize(("objective", "sampling"), [("regression", STUDENT), ("dmd2", TWO_STEPS)])
def test_captions_reach_the_student(base, captions, tmp_path, objective, sampling):
    run = replace(base, objective=objective, sampling=sampling, fake_updates=1, contexts=captions, loop=replace(base.loop, steps=1))
    features = [load_file(path)["context"] for path in captions.iterdir()]
    context = chosen_pairs(run, None, run.contexts, null_prompt=0.0).read(Draws(0, 0, range(2), 2), 4096)["context"]
    assert context.shape == (2, 512, 4096) and not context[:, 3:].any()
    assert all(any(torch.equal(own[:3], each) for each in features) for own in context)
    results = {}
    for null_prompt in (0.0, 1.0):
        results[null_prompt] = replace(run, null_prompt=null_prompt, out=tmp_path / str(null_prompt)).run()["loss_first"]
    assert abs(results[0.0] - results[1.0]) > 1e-5
    null = replace(run, contexts=None)
    assert run.plan()["read_bytes_per_step"] - null.plan()["read_bytes_per_step"] == 2 * 2 * 512 * 4096  # float16, two samples


def test_captions_that_cannot_be_used_are_refused(base, captions):
    with pytest.raises(ValueError, match=r"--null-prompt is 1\.5, wanted a fraction in \[0, 1\]"):
        replace(base, contexts=captions, null_prompt=1.5).run()
    with pytest.raises(ValueError, match="but pairs of --footage have no captions: give --pairs"):
        replace(base, contexts=captions, pairs=(), footage=(REPO / "assets",), vae=GVR_TINY_VAE).run()


@pytest.mark.parametrize(("objective", "sampling"), [("regression", STUDENT), ("dmd2", TWO_STEPS)])
def test_a_lora_student_is_a_file_of_the_students_matrices_alone(base, tmp_path, objective, sampling):
    run = replace(base, objective=objective, sampling=sampling, fake_updates=1, lora_rank=2, out=tmp_path)
    result = run.run()
    lora = load_file(result["lora"])
    assert len(lora) == 2 * 2 * 10  # down and up, 2 blocks, 4 + 4 + 2 weights each
    assert all(name.startswith("diffusion_model.blocks.") for name in lora)
    assert sum(tensor.numel() for tensor in lora.values()) == lora_parameters(SIZES, 2)
    config = checkpoint.read_config(Path(result["lora"]), "lora")
    assert checkpoint.parse_config(SamplingConfig, config, "sampling", tmp_path) == sampling
    assert config["trained"]["objective"] == objective and config["trained"]["optimizer"]["learning_rate"] == 3e-3
    dit, teacher = load_dit(base.init_dit)[0], load_dit(base.init_dit)[0]
    add_lora_file(dit, Path(result["lora"]))
    assert not torch.equal(dit.blocks[0].self_attn.q.weight, teacher.blocks[0].self_attn.q.weight)
    assert torch.equal(dit.head.head.weight, teacher.head.head.weight)


def test_evaluation_samples_a_lora_student_as_its_file_has_it(base, tmp_path):
    weighed = replace(STUDENT, strength=1.5, patch_filter=3)
    result = replace(base, sampling=weighed, lora_rank=2, out=tmp_path).run()
    evaluate = Evaluate(Path("clips"), tmp_path / "evaluated", model=base.init_dit, upsampler=base.init_upsampler)
    sampling = replace(evaluate, lora=Path(result["lora"]), solver="ab2").load_models().sampling
    assert sampling == replace(weighed, solver="ab2")
    assert evaluate.load_models().sampling == SamplingConfig()


def test_student_and_fake_score_of_a_lora_share_the_teachers_weights(base):
    run = replace(base, objective="dmd2", sampling=TWO_STEPS, lora_rank=2)
    model, _ = run.model(None)
    assert isinstance(model, DMD2)
    shared = {parameter.data_ptr() for parameter in model.frozen[0].parameters()}
    for network in (model.dit, model.fake):
        named = dict(network.named_parameters())
        assert {name for name, p in named.items() if p.requires_grad} == {name for name in named if ".lora_" in name}
        assert all(p.data_ptr() in shared for p in named.values() if not p.requires_grad)


def test_strength_and_filter_of_a_finished_run_can_be_changed(base, tmp_path):
    first = replace(base, sampling=STUDENT, out=tmp_path).run()
    weights = load_file(first["dit"])
    weighed = replace(STUDENT, strength=1.5, patch_filter=3)
    again = replace(base, sampling=weighed, out=tmp_path).run()
    config = checkpoint.read_config(Path(again["dit"]), "dit")
    assert checkpoint.parse_config(SamplingConfig, config, "sampling", Path(again["dit"])) == weighed
    assert all(torch.equal(weights[name], tensor) for name, tensor in load_file(again["dit"]).items())
    with pytest.raises(ValueError, match="sampling"):
        replace(base, sampling=replace(STUDENT, denoise=0.3), out=tmp_path).run()


@pytest.mark.slow  # counts steps of Wan's width
def test_the_plan_counts_all_networks_of_wan():
    plan = PRESETS["wan"].plan()
    parameters = plan["trained_parameters"] / 2
    assert 1.41e9 < parameters < 1.43e9 and 3 * parameters < plan["parameters"] < 3.01 * parameters
    assert plan["networks"] == {"trained": ["student", "fake score"], "frozen": ["teacher", "upsampler"]}
    assert plan["memory_bytes"]["moments"] == 2 * 8 * parameters
    assert plan["per_gpu"][8]["fits"] and plan["per_gpu"][16]["fits"] and not plan["per_gpu"][1]["fits"]
    whole = replace(PRESETS["wan"], loop=replace(PRESETS["wan"].loop, shard=False)).plan()["per_gpu"]
    assert not any(row["fits"] for row in whole.values())


def test_the_plan_of_a_lora_has_smaller_states(base):
    full = replace(base, objective="dmd2", sampling=TWO_STEPS).plan()
    lora = replace(base, objective="dmd2", sampling=TWO_STEPS, lora_rank=2).plan()
    assert lora["trained_parameters"] == 2 * lora_parameters(SIZES, 2)
    assert lora["memory_bytes"]["moments"] < full["memory_bytes"]["moments"]
    regression = replace(base, sampling=STUDENT).plan()
    assert regression["networks"] == {"trained": ["student", "upsampler"], "frozen": []}
    assert regression["h100_hours"] < full["h100_hours"]
