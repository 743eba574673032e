"""The bundled models do what their card says, on clips they never saw; what an evaluation leaves behind."""

import json
import shutil
import subprocess
import sys
from fractions import Fraction

import cv2
import pytest
import torch
from conftest import REPO

from simplegvr_core import metrics, report
from simplegvr_core.data import area_downscale, read_video, write_video
from simplegvr_core.evaluate import Evaluate, bicubic, name_clips

CLIP = REPO / "tests" / "clips" / "held_out_12s.mp4"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    clips = tmp_path_factory.mktemp("clips")
    for path in [*(REPO / "tests" / "clips").glob("*.mp4"), REPO / "assets" / "demo_original.mp4"]:
        shutil.copy(path, clips)
    return Evaluate(clips, tmp_path_factory.mktemp("out"), "gvr,upsampler,latent_bilinear", num_frames=9, height=216).run()


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """What the command prints, and its folder: two clips of one name."""
    base = tmp_path_factory.mktemp("command")
    for folder in ("here", "there"):
        (base / "clips" / folder).mkdir(parents=True)
        shutil.copy(CLIP, base / "clips" / folder / "one.mp4")
    arguments = ["--clips", base / "clips", "--out", base / "out", "--methods", "vae,vae_linear,decoded_bicubic,bicubic"]
    arguments += ["--num-frames", "5", "--height", "96"]
    ran = subprocess.run(
        [sys.executable, "-m", "simplegvr_core.evaluate", *arguments], cwd=REPO, capture_output=True, text=True, check=True
    )
    return ran.stdout.splitlines(), base / "out"


def test_trained_upsampler_beats_latent_bilinear_on_every_unseen_clip(results):
    assert len(results["clips"]) == 3
    for name, clip in results["clips"].items():
        assert clip["upsampler"]["psnr"] > clip["latent_bilinear"]["psnr"] + 1.5, name


def test_simplegvr_beats_latent_bilinear_on_every_unseen_clip(results):
    for name, clip in results["clips"].items():
        assert clip["gvr"]["psnr"] > clip["latent_bilinear"]["psnr"] + 1, name


def test_command_prints_the_tables_it_wrote_and_ends_with_json(command):
    lines, out = command
    document = (out / "results.md").read_text()
    assert "\n".join(lines).startswith(document)
    assert json.loads(lines[-1]) == json.loads((out / "results.json").read_text())
    values = json.loads(lines[-1])["mean"]["bicubic"]
    assert values.keys() == {"psnr", "ssim", "st_lpips", "warping_error", "seconds_per_frame"}
    assert f"| bicubic | {values['psnr']:.2f} | {values['ssim']:.3f} | {values['st_lpips']:.3f} |" in document


def test_every_clip_has_its_own_videos_and_picture_and_nothing_is_left_half_written(command):
    _, out = command
    names = {"original.mp4", "vae.mp4", "vae_linear.mp4", "decoded_bicubic.mp4", "bicubic.mp4", "side_by_side.png"}
    there = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert there == {"results.json", "results.md"} | {f"{folder}/one/{name}" for folder in ("here", "there") for name in names}


def test_figures_are_those_of_the_videos_written(command):
    lines, out = command
    original, video = (read_video(out / "here" / "one" / f"{name}.mp4")[0] for name in ("original", "bicubic"))
    assert original.shape == video.shape and original.shape[:2] == (5, 96)
    mean_square = (original.float() - video.float()).square().mean()
    expected = json.loads(lines[-1])["clips"]["here/one"]["bicubic"]["psnr"]
    assert float(10 * torch.log10(255**2 / mean_square)) == pytest.approx(expected, abs=0.5)  # H.264 in between


def test_reconstructions_are_of_the_original_and_methods_of_the_small_input(command):
    values = json.loads(command[0][-1])["clips"]["here/one"]
    assert values["vae"]["psnr"] > values["decoded_bicubic"]["psnr"] + 1
    assert values["vae"]["psnr"] >= values["vae_linear"]["psnr"] - 0.5
    assert values["bicubic"]["psnr"] > values["decoded_bicubic"]["psnr"] + 1


def test_bicubic_is_measured_on_what_area_averaging_left(command):
    lines, _ = command
    evaluate = Evaluate(CLIP.parent, CLIP.parents[1] / "out", num_frames=5, height=96)
    original, _ = evaluate.read_original(CLIP)
    expected = metrics.psnr(bicubic(area_downscale(original, 3), 3, None), original)
    assert json.loads(lines[-1])["clips"]["there/one"]["bicubic"]["psnr"] == pytest.approx(expected, abs=1e-3)


def test_clips_of_one_name_in_different_formats_keep_apart(tmp_path):
    for name in ("a/b.mp4", "b.mp4", "b.mov"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(name_clips(tmp_path)) == ["a/b.mp4", "b.mov", "b.mp4"]
    (tmp_path / "b.mov").unlink()
    assert list(name_clips(tmp_path)) == ["a/b", "b"]


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 64, 96), (5, 24, 96)])
def test_a_clip_too_short_or_small_to_be_measured_is_named(tmp_path, frames, height, width):
    path = tmp_path / "clips" / "odd.mp4"
    write_video(path, torch.zeros(frames, height, width, 3, dtype=torch.uint8), Fraction(25))
    with pytest.raises(ValueError, match=rf"odd.mp4 has {frames} frames of {width} x {height}, wanted at least 2 of 32 x 32"):
        Evaluate(tmp_path / "clips", tmp_path / "out", "bicubic", scale=2).run()


def test_its_own_videos_are_never_taken_for_clips(tmp_path):
    with pytest.raises(ValueError, match="is inside --clips"):
        Evaluate(tmp_path, tmp_path / "out", "bicubic").run()


def test_an_unknown_method_is_named(tmp_path):
    with pytest.raises(ValueError, match="unknown lanczos; known are gvr"):
        Evaluate(tmp_path, tmp_path, "gvr,lanczos").run()


def test_document_counts_wins_and_losses_alike():
    def values(**changed) -> dict:
        return {"psnr": 30, "ssim": 0.9, "st_lpips": 0.2, "warping_error": 1, "seconds_per_frame": 1} | changed

    clips = {
        "first": {"gvr": values(), "bicubic": values(psnr=29, st_lpips=0.1)},
        "second": {"gvr": values(), "bicubic": values(psnr=31, st_lpips=0.3, warping_error=2)},
        "third": {"gvr": values(), "bicubic": values(psnr=32, ssim=0.8, st_lpips=0.4)},
    }
    original = {name: {"warping_error": 0.25} for name in clips}
    document = report.markdown({"clips": clips, "mean": clips["first"], "original": original}, "How.")
    assert "| bicubic | 1 of 3 | 1 of 3 | 2 of 3 | 1 of 3 |" in document
    assert "| second | 1.00 | 2.00 | 0.25 |" in document


def test_picture_enlarges_where_the_original_has_most_detail(tmp_path):
    original = torch.full((54, 72, 3), 100, dtype=torch.uint8)
    original[36:54:2, 2:26:2] = 255
    method = original.flip(2).clone()
    method[..., 0] = 7
    report.side_by_side(tmp_path / "new" / "picture.png", {"original": original, "a method": method})
    picture = torch.from_numpy(cv2.imread(str(tmp_path / "new" / "picture.png"))[..., ::-1].copy())
    assert picture.shape == (54 + report.LABEL, 3 * 72, 3)
    tile = picture[report.LABEL :, 72:144]
    top, left, *size = report.most_detailed(original)
    assert abs(top - 36) <= 1 and abs(left - 2) <= 1 and size == [18, 24]
    crop = original[top : top + 18, left : left + 24]
    assert crop.any() and torch.equal(tile[::3, ::3], crop) and torch.equal(tile[1::3, 2::3], crop)
    assert original.unique().tolist() == [100, 255]  # untouched
    assert (picture[report.LABEL :, 144:, 0] == 7).all()
    assert (picture[: report.LABEL, 144:] < 100).any()  # its label
