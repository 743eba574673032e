"""The recipes of runs/, whole, at toy size: gvr_tiny's autoencoder and text-to-video model in place of Wan's, a tiny umT5."""

import json
import os
import subprocess
import time
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from conftest import REPO
from einops import rearrange
from safetensors import safe_open
from test_contexts import save_umt5

from simplegvr_core.files import CLIPS, GVR_TINY, GVR_TINY_T2V, GVR_TINY_UPSAMPLER, GVR_TINY_VAE
from simplegvr_core.video.read import read_video
from simplegvr_core.video.write import write_video

pytestmark = pytest.mark.slow  # minutes: each command starts a process
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
LOOP = "--loop.steps 3 --loop.warmup 1 --loop.cpu --crop.batch 2 --loop.accumulate 1 --crop.size 12 12 --no-bf16"


@pytest.fixture
def videos(tmp_path) -> Path:
    """A folder of two short captioned videos of the bundled clip."""
    images, rate = read_video(CLIPS / "demo_original.mp4", 27)
    for number, part in enumerate(rearrange(images[:26, :192, :256], "(n F) H W C -> n F H W C", n=2)):
        write_video(tmp_path / "videos" / f"{number}.mp4", part, rate)
        (tmp_path / "videos" / f"{number}.txt").write_text("a cat runs in the snow")
    return tmp_path / "videos"


def run(script: str, *arguments: Path | str) -> float:
    """Returns the seconds that a recipe takes."""
    start = time.monotonic()
    done = subprocess.run([REPO / "runs" / script, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return time.monotonic() - start


def kind(file: Path) -> dict:
    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["simplegvr_config"])


def test_the_paper_s_stages(videos, tmp_path):
    save_umt5(tmp_path / "umt5", d_model=4096)
    write_video(tmp_path / "clips" / "clip.mp4", torch.randint(0, 255, (5, 144, 192, 3), dtype=torch.uint8), Fraction(24))
    settings = tmp_path / "toy.sh"
    settings.write_text(
        f"""vae={GVR_TINY_VAE} t2v={GVR_TINY_T2V} text_encoder={tmp_path / "umt5"} negative="the dog sleeps"
        short=(--num-frames 5) long=(--num-frames 9)
        pairs=(--scales 2 --device cpu) curve=(--clips 2 --steps 3 --device cpu)
        train=({LOOP} --upsampler.width 16 --upsampler.latents tiny_vae --vae {GVR_TINY_VAE} --sampling.steps 2)
        stage1=(--crop.num-frames 5) stage2=(--crop.num-frames 5) stage3=(--crop.num-frames 9)
        distil=({LOOP} --crop.num-frames 5 --sampling.steps 2)
        evaluate=(--num-frames 5 --height 96 --scale 2 --metrics psnr --device cpu --steps 2)
        captions=(--device cpu)
        """
    )
    out = tmp_path / "out"
    print(f"paper_stages.sh: {run('paper_stages.sh', videos, tmp_path / 'clips', out, 'mit', settings):.0f} s")
    assert kind(out / "hub" / "stage3" / "gvr_wan21_1.3b.safetensors")["attention"]["kind"] == "sparse_local"
    assert kind(out / "hub" / "distil" / "gvr_wan21_1.3b_distil.safetensors")["sampling"]["steps"] == 2
    assert kind(out / "stage2" / "dit.safetensors")["trained"]["curve"] is not None
    for model in ("stage3", "distil"):
        assert json.loads((out / "evaluated" / model / "results.json").read_text())["mean"]["gvr"]["psnr"] > 0
        assert (
            subprocess.run(["sha256sum", "-c", "sha256sums.txt"], cwd=out / "hub" / model, check=False, capture_output=True).returncode == 0
        )
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors") if "hub" not in path.parts}
    run("paper_stages.sh", videos, tmp_path / "clips", out, "mit", settings)
    assert stamps == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors") if "hub" not in path.parts}


def test_a_lora_on_one_card(videos, tmp_path):
    settings, out = tmp_path / "toy.sh", tmp_path / "out"
    settings.write_text(
        f"""vae={GVR_TINY_VAE}
        pairs=(--recipe area --num-frames 5 --scales 2 --device cpu)
        train=(--loop.steps 3 --loop.cpu --crop.batch 1 --loop.accumulate 2 --crop.size 12 12 --crop.num-frames 5)
        """
    )
    print(f"lora_24gb.sh: {run('lora_24gb.sh', videos, GVR_TINY, GVR_TINY_UPSAMPLER, out, 'mit', settings):.0f} s")
    assert kind(out / "hub" / "gvr_lora_lora.safetensors")["kind"] == "lora"
    card = (out / "hub" / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n") and "## Training\n" in card and "| optimizer.learning_rate | `5e-05` |" in card
    plan = json.loads((out / "plan.json").read_text())
    assert plan["card_24gb"]["fits"] and plan["trained_parameters"] < plan["parameters"] / 2
    assert "LoraLoaderModelOnly" in (out / "hub" / "workflow.json").read_text()
