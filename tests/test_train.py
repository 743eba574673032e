"""Training of SimpleGVR: every preset and variant, from pairs of real video to files that load."""

import json
import os
import subprocess
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import torch
from conftest import REPO, launcher, random_weights
from safetensors.torch import load_file, save_file

from simplegvr_core.networks import checkpoint
from simplegvr_core.networks.attention import AttentionConfig
from simplegvr_core.networks.block_causal_config import BlockCausalConfig
from simplegvr_core.networks.dit import DiTConfig, SimpleGVRDiT, load_dit
from simplegvr_core.networks.tiny_vae import TinyVAEConfig, load_tiny_vae
from simplegvr_core.networks.upsampler import VARIANTS, load_upsampler
from simplegvr_core.training.batches import Crop, PairSampler, bucket_of_step
from simplegvr_core.training.build_pairs import BuildPairs
from simplegvr_core.training.draws import Draws
from simplegvr_core.training.loop import LoopConfig
from simplegvr_core.training.loss import FlowMatching, FlowNoise, LossConfig, Pictures
from simplegvr_core.training.pairs import Pairs
from simplegvr_core.training.presets import PRESETS
from simplegvr_core.training.train_vae import Crops, TrainVAE
from simplegvr_core.video.read import read_video

pytestmark = pytest.mark.usefixtures("one_thread")
LOOP = LoopConfig(steps=4, warmup=2, save_every=2, cpu=True)
SIZES = DiTConfig(dim=128, ffn_dim=160, num_heads=1, num_layers=2)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Pairs of the bundled clips, as the smoke preset makes them."""
    out = tmp_path_factory.mktemp("data") / "pairs"
    BuildPairs(REPO / "assets", PRESETS["smoke"].vae, out, "area", num_frames=9, spacing=9, scales=(2,)).run()
    return out


@pytest.fixture
def smoke(pairs, tmp_path):
    return replace(PRESETS["smoke"], pairs=(pairs,), out=tmp_path / "run", loop=LOOP)


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "losses.jsonl").read_text().splitlines()]


def command(*arguments, processes=1):
    return [*launcher(processes), "-m", "simplegvr_core", "train", "--preset", "smoke", *map(str, arguments)]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}


def test_block_causal_attention_trains_and_its_file_runs_with_it(smoke):
    attention = BlockCausalConfig(window=(2, 3, 3), local_range=3, budget=20)
    assert PRESETS["stage3_block_causal"].attention == BlockCausalConfig()
    result = replace(smoke, attention=attention).run()
    assert load_dit(Path(result["dit"]))[0].attention == attention


def test_files_load_and_carry_what_they_were_trained_with(smoke):
    result = smoke.run()
    model, config = load_dit(Path(result["dit"]))
    assert model.attention == smoke.attention
    assert config["trained"]["noise_range"] == [0.0, 0.3]
    assert config["trained"]["optimizer"]["betas"] == [0.9, 0.99]
    assert config["sampling"]["denoise"] == smoke.sampling.denoise
    assert load_upsampler(Path(result["upsampler"])).out.conv.weight.any()
    assert result["steps"] == 4
    assert result["loss_first"] == losses(smoke.out)[0]


def test_previews_show_low_resolution_result_and_target(smoke):
    smoke.run()
    images, _ = read_video(smoke.out / "preview_000004.mp4")
    assert images.shape == (9, 96, 3 * 96, 3)


def test_previews_without_an_autoencoder_show_colors(smoke):
    replace(smoke, vae=None).run()
    images, _ = read_video(smoke.out / "preview_000004.mp4")
    assert images.shape == (3, 12, 3 * 12, 3)


@pytest.mark.slow  # workers of three runs start; test_fit resumes a stopped run in each test run
def test_a_killed_run_ends_with_the_same_loss(pairs, tmp_path):
    arguments = ["--pairs", pairs, "--loop.steps", 12, "--loop.save-every", 4, "--loop.accumulate", 2, "--loop.workers", 2, "--loop.cpu"]
    whole = subprocess.run(command(*arguments, "--out", tmp_path / "whole"), env=ENVIRONMENT, capture_output=True, text=True, check=True)
    process = subprocess.Popen(command(*arguments, "--out", tmp_path / "killed"), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    while not (tmp_path / "killed" / "state.pt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    assert process.wait() != 0
    assert len(workers) >= 2 and not psutil.wait_procs(workers, timeout=60)[1]  # they end, too
    again = subprocess.run(command(*arguments, "--out", tmp_path / "killed"), env=ENVIRONMENT, capture_output=True, text=True, check=True)
    results = [json.loads(run.stdout.splitlines()[-1]) for run in (whole, again)]
    assert results[0]["loss_last"] == results[1]["loss_last"]
    assert (tmp_path / "whole" / "losses.jsonl").read_text() == (tmp_path / "killed" / "losses.jsonl").read_text()


@pytest.mark.slow  # sharded ones run in each test run
def test_two_processes_have_the_losses_of_one_when_resumed_too(pairs, smoke, tmp_path):
    arguments = ["--pairs", pairs, "--loop.warmup", 2, "--loop.schedule", "constant", "--loop.cpu", "--out", tmp_path / "two"]
    for steps in (2, 4):
        ran = subprocess.run(
            command(*arguments, "--loop.steps", steps, "--loop.workers", 1, processes=2),
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
    replace(smoke, loop=replace(PRESETS["smoke"].loop, steps=4, warmup=2, schedule="constant", cpu=True)).run()
    torch.testing.assert_close(losses(tmp_path / "two"), losses(smoke.out), atol=1e-5, rtol=0)
    weights = [load_file(folder / "dit.safetensors") for folder in (tmp_path / "two", smoke.out)]
    torch.testing.assert_close(weights[0], weights[1], atol=1e-3, rtol=0)
    assert json.loads(ran.stdout)["steps"] == 4  # one process speaks


@pytest.mark.parametrize(
    "change",
    [
        {"upsampler": replace(VARIANTS["channel_expansion"], width=16)},
        {"upsampler": VARIANTS["bilinear"]},
        {"upsampler": replace(VARIANTS["pixels"], width=16, blocks=1)},
        {"dit": replace(SIZES, condition="token")},
        {"dit": replace(SIZES, in_dim=16), "upsampler": VARIANTS["bilinear"], "upsampler_loss": 0.0},
        {"attention": AttentionConfig(kind="swin", window=(1, 3, 3))},
        {"noise_range": (0.6, 0.9), "bf16": True, "gradient_checkpointing": True},
        {"perceptual_loss": 0.5},
    ],
    ids=["channel_expansion", "bilinear", "pixels", "token", "t2v", "swin", "memory", "perceptual"],
)
def test_variants_train(smoke, change):
    if change.get("dit", SIZES).in_dim == 16:
        change = {**change, "sampling": replace(smoke.sampling, denoise=0.5)}
    result = replace(smoke, **change).run()
    model, _ = load_dit(Path(result["dit"]))
    assert model.config.condition == change.get("dit", SIZES).condition
    assert all(torch.isfinite(torch.tensor(losses(smoke.out))))


def test_gradient_checkpointing_changes_no_loss(smoke, tmp_path):
    smoke.run()
    replace(smoke, gradient_checkpointing=True, out=tmp_path / "recomputed").run()
    torch.testing.assert_close(losses(tmp_path / "recomputed"), losses(smoke.out), atol=1e-6, rtol=0)


@pytest.mark.slow  # a compiler runs
def test_compiled_blocks_have_the_same_losses(smoke, tmp_path):
    smoke.run()
    replace(smoke, loop=replace(LOOP, compile=True), out=tmp_path / "compiled").run()
    torch.testing.assert_close(losses(tmp_path / "compiled"), losses(smoke.out), atol=1e-4, rtol=0)
    assert load_dit(tmp_path / "compiled" / "dit.safetensors")


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."], ids=["stock", "prefixed"])
def test_it_starts_from_a_stock_text_to_video_model(smoke, tmp_path, prefix):
    t2v = random_weights(SimpleGVRDiT(replace(SIZES, in_dim=16), smoke.attention))
    save_file({prefix + name: tensor for name, tensor in t2v.state_dict().items()}, tmp_path / "t2v.safetensors")
    start = replace(smoke, init_dit=tmp_path / "t2v.safetensors", dit=SIZES)
    upsampler, dit = start.networks()
    assert start.plan()["parameters"] == sum(parameter.numel() for parameter in [*upsampler.parameters(), *dit.parameters()])
    z = torch.randn(1, 32, 2, 6, 8)
    with torch.no_grad():
        expected = t2v(z[:, :16], torch.tensor([500.0]), torch.zeros(1, 1, 4096))
        assert torch.equal(dit(z, torch.tensor([500.0]), torch.zeros(1, 1, 4096)), expected)
    weights = load_dit(Path(start.run()["dit"]))[0].state_dict()
    assert weights["patch_embedding.weight"][:, 16:].any()


def test_it_starts_from_a_text_to_video_model_of_ours(smoke, tmp_path):
    t2v = random_weights(SimpleGVRDiT(replace(SIZES, in_dim=16), smoke.attention))
    configs = {"model": t2v.config, "attention": t2v.attention, "sampling": smoke.sampling}
    checkpoint.save(tmp_path / "t2v.safetensors", "dit", t2v.state_dict(), **configs)
    _, dit = replace(smoke, init_dit=tmp_path / "t2v.safetensors").networks()
    assert dit.config.in_dim == 32
    assert torch.equal(dit.patch_embedding.weight[:, :16], t2v.patch_embedding.weight)
    assert not dit.patch_embedding.weight[:, 16:].any()


def test_the_next_stage_goes_on_from_the_files_of_the_last(smoke, tmp_path):
    first = smoke.run()
    second = replace(smoke, init_dit=Path(first["dit"]), init_upsampler=Path(first["upsampler"]), out=tmp_path / "second")
    upsampler, dit = second.networks()
    assert torch.equal(dit.state_dict()["head.head.weight"].half(), load_file(first["dit"])["head.head.weight"])
    assert torch.equal(upsampler.out.conv.weight.half(), load_file(first["upsampler"])["out.conv.weight"])


def test_a_lora_trains_beside_frozen_weights(smoke, tmp_path):
    first = smoke.run()
    files = {"init_dit": Path(first["dit"]), "init_upsampler": Path(first["upsampler"])}
    path = Path(replace(smoke, lora_rank=3, out=tmp_path / "lora", **files).run()["lora"])
    lora, trained = load_file(path), checkpoint.read_config(path, "lora")["trained"]
    assert trained["optimizer"]["betas"] == [0.9, 0.99] and trained["pairs"] == ["pairs"] and trained["noise_range"] == [0.0, 0.3]
    assert lora["diffusion_model.blocks.1.self_attn.q.lora_A.weight"].shape == (3, 128)
    assert lora["diffusion_model.blocks.1.ffn.2.lora_B.weight"].any()
    assert len(lora) == 2 * 2 * 10  # down and up, 2 blocks, 4 + 4 + 2 weights each
    assert all(name.startswith("diffusion_model.blocks.") for name in lora)


def test_it_trains_with_captions(pairs, smoke, tmp_path):
    for video in {entry["video"] for entry in Pairs(pairs).entries}:
        save_file({"context": torch.randn(3, 4096)}, tmp_path / Path(video).with_suffix(".safetensors").name)
    smoke.run()
    replace(smoke, contexts=tmp_path, null_prompt=0.0, out=tmp_path / "captions").run()
    assert losses(tmp_path / "captions")[1:] != losses(smoke.out)[1:]


def test_captions_are_used_and_sometimes_left_out(pairs, tmp_path):
    for video in {entry["video"] for entry in Pairs(pairs).entries}:
        save_file({"context": torch.ones(3, 7)}, tmp_path / Path(video).with_suffix(".safetensors").name)
    context = PairSampler((pairs,), Crop(9, (12, 12)), tmp_path, null_prompt=0.1).read(draws(samples=400), text_dim=7)["context"]
    null = (context == 0).all(dim=2).all(dim=1)
    assert context.shape == (400, 512, 7)  # as ComfyUI pads them
    assert (context[~null] == 1).all(dim=2).sum(dim=1).unique().tolist() == [3]
    assert 0.05 < null.float().mean() < 0.15


def test_captions_of_too_many_tokens_are_refused(pairs, tmp_path):
    for video in {entry["video"] for entry in Pairs(pairs).entries}:
        save_file({"context": torch.ones(513, 7)}, tmp_path / Path(video).with_suffix(".safetensors").name)
    with pytest.raises(ValueError, match="text features of 513 tokens, wanted at most 512"):
        PairSampler((pairs,), Crop(9, (12, 12)), tmp_path, null_prompt=0.0).read(draws(), text_dim=7)


def draws(step=0, samples=4, first=0, total=4):
    return Draws(0, step, range(first, first + samples), total)


@pytest.fixture
def mixed(tmp_path):
    """A folder of pairs of two scales, whose large latent repeats the latent pixels of the small one."""
    entries, tensors = [], {}
    for i, scale in enumerate((2, 3, 2)):
        z_lr = torch.randn(16, 3, 7, 11)
        tensors |= {f"{i:05d}.z_lr": z_lr.half(), f"{i:05d}.z_hr": repeat_cells(z_lr, scale).half()}
        entries.append({"id": i, "shard": "x.safetensors", "video": "x.mp4", "frame": i, "scale": scale})
    save_file(tensors, tmp_path / "x.safetensors")
    (tmp_path / "pairs.json").write_text(json.dumps({"pairs": entries}))
    return tmp_path


def test_crops_of_both_latents_show_the_same_place(mixed):
    sampler, scales = PairSampler((mixed,), Crop(5, (12, 6), 4)), set()
    for step in range(8):
        batch = sampler.read(draws(step), text_dim=7)
        assert batch["z_hr"].shape == (4, 16, 2, 12, 6)
        scale = 12 // batch["z_lr"].shape[3]
        assert torch.equal(batch["z_hr"], repeat_cells(batch["z_lr"], scale))
        scales.add(scale)
    assert scales == {2, 3}


def test_a_sample_depends_on_its_numbers_alone(mixed):
    sampler, noise = PairSampler((mixed,), Crop(5, (12, 6), 4)), FlowNoise((0.3, 0.6), None)
    whole, part = sampler.read(draws(3), 7), sampler.read(draws(3, samples=1, first=2), 7)
    assert torch.equal(whole["z_hr"][2:3], part["z_hr"])
    noises = noise(whole["z_hr"], draws(3)), noise(part["z_hr"], draws(3, samples=1, first=2))
    assert all(torch.equal(noises[0][name][2:3], noises[1][name]) for name in noises[0])
    assert not torch.equal(noises[0]["noise"][0], noises[0]["noise"][1])
    assert not torch.equal(noises[0]["noise"], noise(whole["z_hr"], draws(4))["noise"])


def test_an_epoch_takes_each_pair_once(mixed):
    """Over many steps across blocks of the order too, the samples of a scale are its pairs, each once in an epoch."""
    sampler, seen = PairSampler((mixed,), Crop(5, (12, 6), 1)), []
    for step in (*range(4000, 4020), *range(4096, 4110)):
        bucket, turn = bucket_of_step((2, 1), 0, step)
        _, i = sampler.pair(0, bucket, turn)
        if bucket == 0:
            seen.append((turn, i))
    turns = [turn for turn, _ in seen]
    assert turns[:3] == list(range(turns[0], turns[0] + 3))
    for (turn, i), (next_turn, following) in pairwise(seen):
        if turn % 2 == 0 and next_turn == turn + 1:
            assert {i, following} == {0, 2}


def test_a_pair_that_is_not_finite_is_skipped_and_named(mixed, smoke):
    tensors = load_file(mixed / "x.safetensors")
    tensors["00001.z_lr"][:] = torch.nan
    with pytest.raises(ValueError, match="no pair of scale 3 is finite"):
        save_file(tensors, mixed / "x.safetensors")
        sampler = PairSampler((mixed,), Crop(5, (12, 6), 4))
        [sampler.read(draws(step), 7) for step in range(8)]
    tensors["00001.z_lr"], tensors["00002.z_hr"] = torch.zeros(16, 3, 7, 11).half(), torch.full((16, 3, 14, 22), torch.inf).half()
    save_file(tensors, mixed / "x.safetensors")
    run = replace(smoke, pairs=(mixed,), crop=Crop(5, (12, 6), 4), loop=replace(LOOP, workers=1))
    assert run.run()["skipped"] > 0
    skipped = [json.loads(line) for line in (smoke.out / "skipped.jsonl").read_text().splitlines()]
    assert {line["pair"] for line in skipped} == {f"{mixed / 'x.safetensors'} pair 2"}
    assert {line["step"] for line in skipped} == {step for step in range(4) if bucket_of_step((2, 1), 0, step)[0] == 0}
    assert all(torch.isfinite(torch.tensor(losses(smoke.out))))


def repeat_cells(z, scale):
    return z.repeat_interleave(scale, -1).repeat_interleave(scale, -2)


def test_noise_levels_are_uniform_and_augmentation_levels_in_their_range():
    noise = FlowNoise((0.3, 0.6), None)(torch.zeros(4000, 1, 1, 1, 1), draws(samples=4000))
    assert torch.histc(noise["sigma"], 4, 0, 1).min() > 850
    assert noise["noise_augmentation"].min() >= 0.3
    assert noise["noise_augmentation"].max() <= 0.6
    assert not torch.equal(noise["noise"], noise["condition_noise"])


@pytest.mark.parametrize("order", ["after_upsampler", "before_upsampler"])
def test_training_noises_the_condition_on_the_side_of_the_upsampler_that_is_asked_for(smoke, order):
    """It is the order of the trained model's sampling, and the model learns from such conditions."""
    sampling = replace(smoke.sampling, noise_order=order)
    upsampler, dit = replace(smoke, sampling=sampling).networks()
    random_weights(upsampler)
    generator = torch.Generator().manual_seed(0)
    z_lr, z_hr = torch.randn(2, 16, 3, 4, 5, generator=generator), torch.randn(2, 16, 3, 6, 8, generator=generator)
    sample = FlowNoise((0.3, 0.6), None)(z_hr, draws(samples=2))
    level, noise = sample["noise_augmentation"], sample["condition_noise"]
    formulas = {
        "after_upsampler": (1 - level) * upsampler(z_lr, (6, 8)) + level * noise,
        "before_upsampler": upsampler((1 - level) * z_lr + level * noise[..., :4, :5], (6, 8)),
    }
    assert (formulas["after_upsampler"] - formulas["before_upsampler"]).std() > 0.1
    conditions = []
    dit.register_forward_pre_hook(lambda module, inputs: conditions.append(inputs[0][:, 16:]))
    model = FlowMatching(upsampler, dit, Pictures(None, perceptual=False), LossConfig(bf16=False, noise_order=order))
    model(z_lr=z_lr, z_hr=z_hr, context=torch.zeros(2, 1, 4096), **sample).backward()
    torch.testing.assert_close(conditions[0], formulas[order], atol=1e-5, rtol=0)
    assert upsampler.stem.weight.grad.any()


def test_the_order_of_the_noise_is_that_of_the_checkpoint(smoke):
    done = replace(smoke, sampling=replace(smoke.sampling, noise_order="before_upsampler"), loop=replace(smoke.loop, steps=1)).run()
    assert checkpoint.read_config(Path(done["dit"]), "dit")["sampling"]["noise_order"] == "before_upsampler"
    with pytest.raises(ValueError, match="was begun with sampling"):
        smoke.run()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"noise_range": (0.3, 1.2)}, r"--noise-range is 0\.3 1\.2, wanted two levels in \[0, 1\]"),
        ({"noise_range": (0.6, 0.3)}, "--noise-range"),
        ({"null_prompt": -0.1}, r"--null-prompt is -0\.1"),
        ({"perceptual_loss": 0.5, "vae": None}, r"--perceptual-loss is 0\.5.*only with --vae"),
        ({"lora_rank": 4}, "give its two files with --init-dit and --init-upsampler"),
        ({"crop": Crop(9, (13, 12), 2)}, r"--crop\.size is \(13, 12\) latent pixels, wanted multiples of 2"),
        ({"crop": Crop(8, (12, 12), 2)}, r"--crop\.num-frames is 8, wanted 4 times"),
        ({"crop": Crop(17, (12, 12), 2)}, "has a pair of .* crops want"),
        ({"pairs": (Path("nowhere"),)}, "nowhere holds no pairs.json"),
        ({"pairs": (), "footage": (Path("film"),), "contexts": Path("captions")}, "--contexts is captions, but pairs of --footage"),
    ],
)
def test_bad_options_are_named(smoke, change, message):
    with pytest.raises(ValueError, match=message):
        replace(smoke, **change).run()


def test_a_resumed_run_keeps_its_options(smoke):
    smoke.run()
    with pytest.raises(ValueError, match=r"state\.pt was begun with noise_range = \(0\.0, 0\.3\), now it is \(0\.3, 0\.6\)"):
        replace(smoke, noise_range=(0.3, 0.6)).run()


def test_a_resumed_run_may_divide_its_batch_otherwise(smoke, tmp_path):
    """As the message of a step without memory wants it: half the batch, twice accumulated, activations recomputed."""
    loop = replace(LOOP, schedule="constant")
    replace(smoke, loop=replace(loop, steps=2)).run()
    parted = replace(smoke.crop, batch=smoke.crop.batch // 2)
    replace(smoke, crop=parted, gradient_checkpointing=True, loop=replace(loop, accumulate=2)).run()
    resumed = losses(smoke.out)
    replace(smoke, loop=loop, out=tmp_path / "unbroken").run()
    torch.testing.assert_close(resumed, losses(tmp_path / "unbroken"), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match=r"was begun with crop\.batch \* loop\.accumulate = "):
        replace(smoke, crop=parted, loop=replace(loop, steps=9)).run()


def test_perceptual_training_repeats_bit_for_bit_and_saves_only_what_it_trains(smoke, tmp_path):
    replace(smoke, perceptual_loss=0.5).run()
    replace(smoke, perceptual_loss=0.5, out=tmp_path / "again").run()
    assert losses(tmp_path / "again") == losses(smoke.out)
    names = torch.load(smoke.out / "state.pt", weights_only=True)["model"]
    assert {name.split(".")[0] for name in names} == {"upsampler", "dit"}


def test_a_checkpoint_of_another_config_is_refused(smoke, tmp_path):
    checkpoint.save(tmp_path / "other.safetensors", "upsampler", {"x": torch.zeros(1)}, model={})
    with pytest.raises(ValueError, match="holds a 'upsampler', but a 'dit' is wanted"):
        replace(smoke, init_dit=tmp_path / "other.safetensors").run()


def test_the_paper_s_stages_are_presets():
    first, second, third = (PRESETS[f"stage{i}"] for i in (1, 2, 3))
    assert [stage.loop.steps for stage in (first, second, third)] == [20_000, 10_000, 5_000]
    assert [stage.crop.num_frames for stage in (first, second, third)] == [17, 17, 77]
    assert {stage.noise_range for stage in (first, second, third)} == {(0.3, 0.6)}
    assert third.attention.kind == "sparse_local"
    assert (first.loop.learning_rate, first.crop.batch, first.null_prompt) == (5e-5, 32, 0.1)


def test_tiny_vae_trains_on_top_of_its_closed_form(tmp_path):
    small = TinyVAEConfig(16, 1, 16, 1, 8)
    start = TrainVAE(REPO / "assets", tmp_path, small, crops=Crops(5, 48, 2, 108, 16), loop=LOOP)
    vae = load_tiny_vae(Path(start.run()["tiny_vae"]))
    video = torch.rand(1, 3, 5, 24, 40) * 2 - 1
    assert not torch.equal(vae.decode(vae.encode(video)), vae.linear_decode(vae.encode(video)))
    assert vae.encode(video).shape == vae.latent_shape(video.shape)
    again = replace(start, init=tmp_path / "tiny_vae.safetensors").initial_vae([])
    assert torch.equal(again.encoder.weight.half(), vae.encoder.weight.half())
