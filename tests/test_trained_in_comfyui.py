"""What training leaves, in ComfyUI: a LoRA in the stock loader, the curve of a checkpoint on its node."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ATTENTION, DIT, REPO, random_weights
from safetensors.torch import load_file, save_file

from simplegvr_core.networks import checkpoint
from simplegvr_core.networks.dit import SimpleGVRDiT, load_dit
from simplegvr_core.sampling.super_resolve import SamplingConfig
from simplegvr_core.sampling.timesteps import Curve
from simplegvr_core.training.batches import Crop
from simplegvr_core.training.build_pairs import BuildPairs
from simplegvr_core.training.distil import Distil
from simplegvr_core.training.loop import LoopConfig
from simplegvr_core.training.one_step import STUDENT
from simplegvr_core.training.presets import PRESETS

pytestmark = pytest.mark.usefixtures("one_thread")


def merged(dit: dict, lora: dict) -> dict:
    """The weights that a LoRA stands for."""
    weights = dict(dit)
    for name, weight in dit.items():
        down, up = (lora.get(f"diffusion_model.{name.removesuffix('.weight')}.lora_{side}.weight") for side in "AB")
        if down is not None:
            weights[name] = weight.float() + up.float() @ down.float()
    return weights


def lora_run(checkpoints, folder) -> dict:
    """Returns options of a short training of a LoRA, with the pairs in the folder that it needs."""
    BuildPairs(REPO / "assets", PRESETS["smoke"].vae, folder / "pairs", "area", num_frames=5, spacing=9, height=108, scales=(2,)).run()
    return {
        "pairs": (folder / "pairs",),
        "out": folder / "run",
        "init_dit": checkpoints / "diffusion_models" / "gvr_test.safetensors",
        "init_upsampler": checkpoints / "latent_upscale_models" / "upsampler_test.safetensors",
        "attention": ATTENTION,
        "lora_rank": 2,
        "loop": LoopConfig(steps=3, learning_rate=3e-2, warmup=1, ema=0.1, cpu=True),
    }


def test_a_lora_works_in_the_stock_loader(comfy, checkpoints, tmp_path):
    import folder_paths

    folder_paths.add_model_folder_path("loras", str(tmp_path))
    train = replace(
        PRESETS["smoke"],
        **lora_run(checkpoints, tmp_path),
        crop=replace(PRESETS["smoke"].crop, num_frames=5, size=(4, 6), batch=2),
    )
    lora = load_file(train.run()["lora"])
    save_file(lora, tmp_path / "gvr_lora.safetensors")
    dit = load_file(train.init_dit)
    checkpoint.save(
        tmp_path / "merged.safetensors", "dit", merged(dit, lora), model=DIT, attention=ATTENTION, sampling=SamplingConfig(shift=3)
    )
    folder_paths.add_model_folder_path("diffusion_models", str(tmp_path))
    model = comfy.run("SimpleGVRLoadModel", model_name="gvr_test.safetensors", weight_dtype="default")[0]
    patched = comfy.run("LoraLoaderModelOnly", model=model, lora_name="gvr_lora.safetensors", strength_model=1.0)[0]
    expected, plain = (
        sample(comfy, comfy.run("SimpleGVRLoadModel", model_name=name, weight_dtype="default")[0])
        for name in ("merged.safetensors", "gvr_test.safetensors")
    )
    assert (expected - plain).abs().max() > 1e-2
    torch.testing.assert_close(sample(comfy, patched), expected, atol=1e-3, rtol=0)


def sample(comfy, model):
    """One step of the stock KSampler."""
    null = comfy.run("SimpleGVRNullPrompt")[0]
    upscaled = {"samples": torch.randn(1, 16, 2, 6, 8, generator=torch.Generator().manual_seed(0))}
    inputs = dict(positive=null, negative=null, upscaled=upscaled, noise_augmentation=0.4, noise_seed=2)
    positive, negative, empty = comfy.run("SimpleGVRConditioning", **inputs)
    inputs = dict(model=model, seed=1, steps=1, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0, latent_image=empty)
    return comfy.run("KSampler", positive=positive, negative=negative, **inputs)[0]["samples"]


def test_a_lora_student_works_in_the_stock_loader_and_the_sampler_takes_its_settings(comfy, checkpoints, tmp_path):
    import folder_paths

    folder_paths.add_model_folder_path("loras", str(tmp_path))
    folder_paths.add_model_folder_path("diffusion_models", str(tmp_path))
    distil = Distil(
        **lora_run(checkpoints, tmp_path),
        bf16=False,
        crop=Crop(num_frames=5, size=(4, 6), batch=2),
    )
    file = Path(distil.run()["lora"])
    (tmp_path / "student_lora.safetensors").write_bytes(file.read_bytes())
    dit, lora = load_file(distil.init_dit), load_file(file)
    checkpoint.save(tmp_path / "student.safetensors", "dit", merged(dit, lora), model=DIT, attention=ATTENTION, sampling=STUDENT)
    teacher, student = (
        comfy.run("SimpleGVRLoadModel", model_name=name, weight_dtype="default")[0]
        for name in ("gvr_test.safetensors", "student.safetensors")
    )
    patched = comfy.run("LoraLoaderModelOnly", model=teacher, lora_name="student_lora.safetensors", strength_model=1.0)[0]
    upsampler = comfy.run("SimpleGVRLoadUpsampler", model_name="upsampler_test.safetensors")[0]

    def resolve(model, **options):
        inputs = {"size": {"size": "scale", "scale": 2.0}, "settings": {"settings": "recommended"}, "seed": 1, "noise_seed": 2}
        latent = {"samples": torch.randn(1, 16, 2, 4, 6, generator=torch.Generator().manual_seed(0))}
        z, report = comfy.run("SimpleGVRSampler", model=model, upsampler=upsampler, latent=latent, **inputs, **options)
        return z["samples"], report

    z, report = resolve(patched)
    expected, _ = resolve(student)
    assert "1 steps, cfg 1, shift 1." in report and "from the upsampled latent" in report
    torch.testing.assert_close(z, expected, atol=1e-3, rtol=0)
    for text in ("{", "7"):
        save_file(lora, tmp_path / "damaged_lora.safetensors", {checkpoint.METADATA_KEY: text})
        damaged = comfy.run("LoraLoaderModelOnly", model=teacher, lora_name="damaged_lora.safetensors", strength_model=1.0)[0]
        with pytest.raises(ValueError, match=r"the LoRA has (a damaged|no 'sampling' in its configuration)"):
            resolve(damaged)
    z_teacher, report = resolve(teacher)
    assert "1 steps, cfg 1, shift 1." not in report and not torch.allclose(z, z_teacher, atol=1e-2)
    _, report = resolve(teacher, solver="ab2")
    assert " of solver ab2" in report


@pytest.fixture
def curved(tmp_path):
    """A checkpoint that was trained with a curve."""
    import folder_paths

    folder_paths.add_model_folder_path("diffusion_models", str(tmp_path))
    curve = {"sigma": [1.0, 0.75, 0.5, 0.25], "energy": [0.0, 3.0, 4.0, 4.0], "clips": 2}
    weights = random_weights(SimpleGVRDiT(DIT, ATTENTION)).state_dict()
    configs = {"model": DIT, "attention": ATTENTION, "sampling": SamplingConfig()}
    checkpoint.save(tmp_path / "curved.safetensors", "dit", weights, **configs, trained={"curve": curve})
    return Path(tmp_path / "curved.safetensors")


def test_the_curve_of_a_checkpoint_is_shown(comfy, curved):
    assert load_dit(curved)[1]["trained"]["curve"]["clips"] == 2
    image = comfy.run("SimpleGVRTimestepCurve", model_name=curved.name)[0]
    assert image.shape == (1, 480, 960, 3)
    bars = (image[0] - torch.tensor([0x9E, 0xCA, 0xE1]) / 255).abs().amax(-1) < 0.01
    heights = [int(bars[:, x].sum()) for x in (162, 374, 586, 798)]  # the middles of the four intervals, noise first
    _, share = Curve((1.0, 0.75, 0.5, 0.25), (0.0, 3.0, 4.0, 4.0), 2).density()
    torch.testing.assert_close(torch.tensor(heights) / heights[0], torch.tensor(share[::-1] / share[-1]).float(), atol=0.05, rtol=0)


def test_a_checkpoint_without_a_curve_is_named(comfy, checkpoints):
    with pytest.raises(ValueError, match=r"SimpleGVR Timestep Curve: gvr_test\.safetensors was trained with even noise levels"):
        comfy.run("SimpleGVRTimestepCurve", model_name="gvr_test.safetensors")
