"""SimpleGVR Evaluate: the core's numbers, block by block; what is missing is named; what does not fit has its cure; the real server."""

import asyncio
import json
import math
import shutil
import sys

import pytest
import torch
from client import WorkflowError, run_workflow
from conftest import REPO

from simplegvr_core.evaluation.metrics import METRICS, measure
from simplegvr_core.evaluation.result import EvaluationClip, Result
from simplegvr_core.planning.tensor_memory import peak_bytes
from simplegvr_core.video.frames import area_downscale, to_images
from simplegvr_core.video.read import read_video

pytestmark = pytest.mark.usefixtures("one_thread")
FRAMES = 11  # more than a block of the node, and no whole number of them
WORST = 9
QUICK = ["psnr", "ssim", "lr_consistency", "flicker"]


@pytest.fixture(scope="module")
def original():
    return read_video(REPO / "tests" / "clips" / "held_out_12s.mp4", FRAMES)[0][:, :192, :288] / 255


@pytest.fixture(scope="module")
def source(original):
    return to_images(area_downscale(2 * original.permute(3, 0, 1, 2)[None] - 1, 3)) / 255


@pytest.fixture(scope="module")
def result(original):
    """The original with noise, four times as strong in the lower right of frame WORST."""
    noise = 0.02 * torch.randn(original.shape, generator=torch.Generator().manual_seed(0))
    noise[WORST, 128:, 192:] *= 8
    return (original + noise).clamp(0, 1)


def run(comfy, result, metrics="quick", **inputs):
    report, picture, values, *numbers = comfy.run("SimpleGVREvaluate", result=result, metrics=metrics, **inputs)
    return report, picture, json.loads(values), *numbers


def test_blocks_of_frames_give_what_the_whole_clip_gives(comfy, result, original, source):
    report, _, values, psnr, ssim = run(comfy, result, "all", original=original, source=source)
    videos = [2 * images.permute(3, 0, 1, 2)[None] - 1 for images in (result, original, source)]
    whole = Result(videos[0], EvaluationClip((192, 288), *videos[1:]))
    assert values["skipped"] == {}
    quality = {"psnr", "ssim", "ms_ssim", "st_lpips", "flat_noise", "vmaf", "niqe", "lr_consistency"}
    assert values["metrics"].keys() == quality | {"warping_error", "tof", "flicker"}
    for name, found in values["metrics"].items():
        expected = measure(name, whole)
        assert found["value"] == pytest.approx(expected.value, rel=1e-4), name
        curve = [math.nan if value is None else value for value in found["curve"]]
        assert curve == pytest.approx(list(expected.curve), rel=1e-4, nan_ok=True), name
        assert f"{METRICS[name].label}: {expected.value:.{METRICS[name].decimals}f}" in report
    assert (psnr, ssim) == (values["metrics"]["psnr"]["value"], values["metrics"]["ssim"]["value"])


def test_the_worst_frame_s_worst_place_is_shown(comfy, result, original, source):
    report, picture, *_ = run(comfy, result, original=original, source=source)
    assert f"worst {measure('psnr', Result(*worst_of(result, original))).value:.2f} in frame {WORST}" in report
    crop = picture[0, 36 : 36 + 192, 288 : 2 * 288]  # above the curves, right of the whole frame: label, then 3 x the pixels
    assert torch.equal((crop[::3, ::3] * 255).round(), (result[WORST, 128:, 192:] * 255).round())
    red = (picture[0] * 255).round() == torch.tensor([214.0, 39, 40])
    assert red.all(2).sum() > 300  # the worst frames in the curves


def worst_of(result, original):
    video, truth = (2 * images[WORST : WORST + 1].permute(3, 0, 1, 2)[None] - 1 for images in (result, original))
    return video, EvaluationClip((192, 288), truth)


def test_without_an_original_what_needs_none_is_measured_and_the_rest_named(comfy, result, source):
    report, picture, values, psnr, _ = run(comfy, result, "all", source=source)
    assert values["metrics"].keys() == {"niqe", "lr_consistency", "warping_error", "tof", "flicker"}
    assert values["skipped"] == dict.fromkeys(("psnr", "ssim", "ms_ssim", "st_lpips", "flat_noise", "vmaf"), "connect original")
    assert "VMAF was not measured: connect original" in report
    assert math.isnan(psnr) and picture.shape[3] == 3
    _, _, values, *_ = run(comfy, result, "all")
    assert values["metrics"].keys() == {"niqe"}
    assert values["skipped"]["tof"] == "connect original or source"
    with pytest.raises(ValueError, match=r"(?s)SimpleGVR Evaluate: none of steadiness can be measured:.*flicker: connect source"):
        run(comfy, result, "steadiness")


def test_a_single_picture_has_no_motion(comfy, result, original, source):
    _, _, values, *_ = run(comfy, result[:1], "all", original=original[:1], source=source[:1])
    assert values["skipped"] == dict.fromkeys(("warping_error", "tof", "flicker"), "a single frame does not move")
    assert len(values["metrics"]["psnr"]["curve"]) == 1


def test_equal_videos_are_perfect_and_their_curves_drawn(comfy, original, source):
    _, picture, values, psnr, ssim = run(comfy, original, original=original, source=source)
    assert (psnr, ssim) == (100.0, pytest.approx(1))
    assert values["metrics"]["lr_consistency"]["value"] > 45 and torch.isfinite(picture).all()


def test_comfyui_s_own_packages_are_enough_for_quick_and_what_is_missing_is_named_with_its_command(
    comfy, result, original, source, monkeypatch
):
    for package in (
        "torchmetrics",
        "stlpips_pytorch",
        "IPython",
        "torchsummary",
        "ffmpeg_quality_metrics",
        "imageio_ffmpeg",
        "cv2",
        "matplotlib",
    ):
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)
    absent = {"torchmetrics", "stlpips_pytorch", "IPython", "torchsummary", "ffmpeg_quality_metrics", "imageio_ffmpeg", "cv2"}
    found = sys.modules[comfy.nodes["SimpleGVREvaluate"].__module__].METRICS["tof"].absent.__globals__
    spec = found["find_spec"]
    monkeypatch.setitem(found, "find_spec", lambda name: None if name in absent else spec(name))
    _, _, values, *_ = run(comfy, result, original=original, source=source)
    assert list(values["metrics"]) == QUICK and values["skipped"] == {}
    report, _, values, *_ = run(comfy, result, "all", original=original, source=source)
    assert list(values["metrics"]) == ["psnr", "ssim", "flat_noise", "niqe", "lr_consistency", "flicker"]
    assert values["skipped"]["tof"] == "cv2 is not installed: python -m pip install opencv-python-headless"
    assert "MS-SSIM was not measured: torchmetrics is not installed: python -m pip install torchmetrics" in report


@pytest.mark.parametrize("changes, message", [
    (dict(original=torch.rand(3, 64, 96, 3)), r"result has 5 frames of 96 x 64 and original 3 frames of 96 x 64.*SimpleGVR Trim"),
    (dict(original=torch.rand(5, 58, 90, 3)), r"original 5 frames of 90 x 58, wanted the same: cut the result with SimpleGVR Trim"),
    (dict(source=torch.rand(4, 32, 48, 3)), r"source 4 frames of 48 x 32, wanted as many frames.*SimpleGVR Trim"),
    (dict(source=torch.rand(5, 128, 192, 3)), r"source has 5 frames of 192 x 128, more than the result's .* the truth to original"),
])  # fmt: skip
def test_what_does_not_fit_is_named_with_its_cure(comfy, changes, message):
    with pytest.raises(ValueError, match=f"SimpleGVR Evaluate: .*{message}"):
        run(comfy, torch.rand(5, 64, 96, 3), **changes)


def test_trim_is_the_cure(comfy, original):
    """A result as it comes out of a latent, with whole cells and frames: 4 n + 1 and multiples of 8."""
    decoded = torch.nn.functional.pad(original, (0, 0, 0, 8, 0, 8, 0, 2))
    trimmed = comfy.run("SimpleGVRTrim", images=decoded, source=original, scale=1.0, even=False)[0]
    assert run(comfy, trimmed, original=original)[3] == 100.0


def test_alpha_is_left_out_and_half_precision_taken(comfy, result, original):
    with_alpha = torch.cat((result, torch.rand_like(result[..., :1])), dim=3)
    assert run(comfy, with_alpha.half(), original=original)[3] == pytest.approx(run(comfy, result, original=original)[3], abs=0.05)


def test_memory_does_not_grow_with_the_clip(comfy):
    clip = torch.rand(80, 96, 144, 3).half()

    def peak(frames: int) -> int:
        return peak_bytes(lambda: run(comfy, clip[:frames], original=clip[:frames], source=clip[:frames, ::3, ::3]))

    assert peak(80) - peak(16) < 0.05 * clip[16:].nbytes


def test_it_can_be_interrupted_between_blocks(comfy, result, original, monkeypatch):
    import comfy.model_management as management

    calls = []

    def after_two():
        calls.append(None)
        if len(calls) > 1:
            management.interrupt_current_processing(True)
        return check()

    check = management.throw_exception_if_processing_interrupted
    monkeypatch.setattr(management, "throw_exception_if_processing_interrupted", after_two)
    with pytest.raises(management.InterruptProcessingException):
        run(comfy, result, original=original)


def test_a_real_server_evaluates_what_the_quickstart_made(server, tmp_path):
    """Low resolution -> SimpleGVR -> Trim -> Evaluate against the source, with progress; then against an original that does not fit."""
    workflow = json.loads((REPO / "workflows" / "api" / "quickstart_video.json").read_text())
    nodes = {node["class_type"]: (id, node["inputs"]) for id, node in workflow.items()}
    shutil.copy(REPO / "tests" / "clips" / "held_out_30s.mp4", server.base / "input" / "evaluated.mp4")
    nodes["LoadVideo"][1]["file"] = "evaluated.mp4"
    source = nodes["SimpleGVRTrim"][1]["source"]
    workflow["90"] = {"class_type": "ImageFromBatch", "inputs": {"image": source, "batch_index": 0, "length": 5}}
    workflow["91"] = {"class_type": "ImageScale", "inputs": {
        "image": ["90", 0], "upscale_method": "bicubic", "width": 640, "height": 368, "crop": "disabled"}}  # fmt: skip
    workflow["92"] = {"class_type": "SimpleGVREvaluate", "inputs": {"result": ["91", 0], "source": ["90", 0], "metrics": "all"}}
    workflow["93"] = {"class_type": "PreviewAny", "inputs": {"source": ["92", 0]}}
    kept = {id: workflow[id] for id in ("90", "91", "92", "93")}
    waiting = [source[0]]
    while waiting:
        id = waiting.pop()
        kept[id] = workflow[id]
        waiting += [value[0] for value in workflow[id]["inputs"].values() if isinstance(value, list)]
    events = []
    outputs = asyncio.run(run_workflow(server.address, kept, events.append))
    assert "LR-consistency" in outputs["93"]["text"][0] and outputs["92"]["text"] == outputs["93"]["text"]
    assert outputs["92"]["images"][0]["type"] == "temp"
    assert [(event.value, event.maximum) for event in events if event.kind == "progress" and event.node == "92"][-1] == (5, 5)
    kept["92"]["inputs"]["original"] = ["90", 0]
    with pytest.raises(WorkflowError, match=r"SimpleGVREvaluate: .*wanted the same: cut the result with SimpleGVR Trim"):
        asyncio.run(run_workflow(server.address, kept))
