"""Metrics have known answers; the bundled models do what their card says, on clips they never saw."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import REPO

from simplegvr_core import metrics
from simplegvr_core.evaluate import Evaluate


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    clips = tmp_path_factory.mktemp("clips")
    for path in [*(REPO / "tests" / "clips").glob("*.mp4"), REPO / "assets" / "demo_original.mp4"]:
        shutil.copy(path, clips)
    return Evaluate(clips, tmp_path_factory.mktemp("out"), "gvr,upsampler,latent_bilinear,bicubic", num_frames=9, height=216).run()


def test_psnr_of_a_constant_error_of_one_level_is_48_db():
    original = torch.zeros(1, 3, 2, 16, 16)
    assert metrics.psnr(original + 2 / 255, original) == pytest.approx(48.13, abs=0.01)


def test_ssim_of_equal_videos_is_one_and_falls_with_noise():
    original = torch.rand(1, 3, 2, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert metrics.ssim(original, original) == pytest.approx(1, abs=1e-5)
    assert metrics.ssim(original + 0.3 * torch.randn_like(original), original) < 0.95


def test_trained_upsampler_beats_latent_bilinear_on_every_unseen_clip(results):
    assert len(results["clips"]) == 3
    for name, clip in results["clips"].items():
        assert clip["upsampler"]["psnr"] > clip["latent_bilinear"]["psnr"] + 2, name


def test_simplegvr_beats_latent_bilinear_on_every_unseen_clip(results):
    for name, clip in results["clips"].items():
        assert clip["gvr"]["psnr"] > clip["latent_bilinear"]["psnr"] + 1, name


def test_command_prints_a_table_and_ends_with_json(tmp_path):
    (tmp_path / "clips").mkdir()
    shutil.copy(next((REPO / "tests" / "clips").glob("*.mp4")), tmp_path / "clips" / "one.mp4")
    command = [sys.executable, "-m", "simplegvr_core.evaluate", "--clips", tmp_path / "clips", "--out", tmp_path / "out"]
    command += ["--methods", "latent_bilinear,bicubic", "--num-frames", "5", "--height", "96"]
    lines = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0] == "| clip | latent_bilinear | bicubic |"
    assert json.loads(lines[-1])["clips"]["one"]["bicubic"]["psnr"] > 15
    assert (tmp_path / "out" / "one_bicubic.mp4").exists()


def test_its_own_videos_are_never_taken_for_clips(tmp_path):
    with pytest.raises(ValueError, match="is inside --clips"):
        Evaluate(tmp_path, tmp_path / "out", "bicubic").run()


def test_an_unknown_method_is_named(tmp_path):
    with pytest.raises(ValueError, match="unknown lanczos; known are gvr"):
        Evaluate(tmp_path, tmp_path, "gvr,lanczos").run()
