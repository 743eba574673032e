"""The bundled models do what their card says, on clips they never saw; what an evaluation leaves behind."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import cv2
import pytest
import torch
from conftest import REPO
from safetensors import safe_open
from safetensors.torch import save_file

from simplegvr_core.evaluation import report
from simplegvr_core.evaluation.clips import Reading, find_clips, read_clip
from simplegvr_core.evaluation.evaluate import Evaluate
from simplegvr_core.evaluation.full_reference import psnr
from simplegvr_core.evaluation.methods import bicubic
from simplegvr_core.evaluation.metrics import METRICS, measure
from simplegvr_core.evaluation.result import Result
from simplegvr_core.files import sha256
from simplegvr_core.latent_space import WAN_MEAN, WAN_STD
from simplegvr_core.networks.tiny_vae import load_tiny_vae
from simplegvr_core.networks.upsampler import load_upsampler
from simplegvr_core.video.frames import area_downscale, resize_frames, to_images, to_video
from simplegvr_core.video.read import read_video
from simplegvr_core.video.write import write_video

CLIP = REPO / "tests" / "clips" / "held_out_12s.mp4"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    clips = tmp_path_factory.mktemp("clips")
    for path in [*(REPO / "tests" / "clips").glob("*.mp4"), REPO / "assets" / "demo_original.mp4"]:
        shutil.copy(path, clips)
    return Evaluate(
        clips, tmp_path_factory.mktemp("out"), ("gvr", "upsampler", "latent_bilinear"), num_frames=9, height=216, metrics=("psnr",)
    ).run()


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """What the command prints, and its folder: two clips of one name."""
    base = tmp_path_factory.mktemp("command")
    for folder in ("here", "there"):
        (base / "clips" / folder).mkdir(parents=True)
        shutil.copy(CLIP, base / "clips" / folder / "one.mp4")
    methods = ["vae", "vae_linear", "decoded_bicubic", "encoded_bicubic", "bicubic"]
    arguments = ["--clips", base / "clips", "--out", base / "out", "--methods", *methods]
    arguments += ["--num-frames", "5", "--height", "96"]
    ran = subprocess.run(
        [sys.executable, "-m", "simplegvr_core", "evaluate", *arguments], cwd=REPO, capture_output=True, text=True, check=True
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
    results = json.loads(lines[-1])
    values = results["mean"]["bicubic"]
    assert f"| bicubic | {values['psnr']:.2f} | {values['ssim']:.3f} | {values['st_lpips']:.3f} |" in document


def test_results_hold_what_reports_are_made_of(command):
    lines, out = command
    results = json.loads(lines[-1])
    parts = {"suite", "run", "reconstructions", "metrics", "skipped", "clips", "curves", "mean", "original", "files", "prompts"}
    assert results.keys() == parts
    assert results["reconstructions"] == ["vae", "vae_linear"]
    assert results["suite"] == "pairs" and results["run"]["files"]["gvr_tiny.safetensors"] == sha256(Evaluate.model)
    skipped = {"ms_ssim", "niqe", "segment_seams", "tile_seams"}  # 96 lines, in one piece
    skipped |= {name for name, metric in METRICS.items() if metric.absent()}
    assert results["skipped"].keys() == skipped and "161 pixels a side" in results["skipped"]["ms_ssim"]
    assert results["metrics"].keys() == METRICS.keys() - skipped == results["mean"]["vae"].keys()
    psnr = {"label": "PSNR", "unit": "dB", "better": "higher", "decimals": 2}
    assert results["metrics"]["psnr"] == {**psnr, "meaning": METRICS["psnr"].meaning}
    for clip in ("here/one", "there/one"):
        assert results["original"][clip].keys() == {"warping_error", "tof", "flicker", "lr_consistency"}
        assert all((out / file).is_file() for file in results["files"][clip].values())
        curves = results["curves"][clip]["bicubic"]
        assert all(len(curve) == 5 for curve in curves.values()) and curves["tof"][0] is None and None not in curves["psnr"]
        assert results["clips"][clip]["bicubic"]["vmaf"] == pytest.approx(sum(curves["vmaf"]) / 5)


def test_every_clip_has_its_own_videos_and_picture_and_nothing_is_left_half_written(command):
    _, out = command
    names = {
        "measured.json",
        "source.mp4",
        "original.mp4",
        "vae.mp4",
        "vae_linear.mp4",
        "decoded_bicubic.mp4",
        "encoded_bicubic.mp4",
        "bicubic.mp4",
        "side_by_side.png",
    }
    crops = ("the_whole_frame", "source", "original", "vae", "vae_linear", "decoded_bicubic", "encoded_bicubic", "bicubic")
    names |= {f"frames/{kind}_{crop}.png" for kind in ("worst", "best") for crop in crops}
    there = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    documents = {"results.json", "results.md", "report.html"}
    assert there == documents | {f"{folder}/one/{name}" for folder in ("here", "there") for name in names}


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
    assert values["encoded_bicubic"]["psnr"] == pytest.approx(values["decoded_bicubic"]["psnr"], abs=0.5)  # a picture that soft survives
    assert values["encoded_bicubic"] != values["decoded_bicubic"]


def test_bicubic_is_measured_on_what_area_averaging_left(command):
    lines, _ = command
    clip = read_clip((CLIP,), Reading("pairs", 3, 5, 96), None)
    expected = measure("psnr", Result(bicubic(area_downscale(clip.original, 3), clip.size, None), clip)).value
    assert json.loads(lines[-1])["clips"]["there/one"]["bicubic"]["psnr"] == pytest.approx(expected, abs=1e-3)


def test_clips_of_one_name_in_different_formats_keep_apart(tmp_path):
    for name in ("a/b.mp4", "b.mp4", "b.mov"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(find_clips(tmp_path, "pairs")) == ["a/b.mp4", "b.mov", "b.mp4"]
    (tmp_path / "b.mov").unlink()
    assert list(find_clips(tmp_path, "pairs")) == ["a/b", "b"]


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 64, 96), (5, 24, 96)])
def test_a_clip_too_short_or_small_to_be_measured_is_named(tmp_path, frames, height, width):
    path = tmp_path / "clips" / "odd.mp4"
    write_video(path, torch.zeros(frames, height, width, 3, dtype=torch.uint8), Fraction(25))
    with pytest.raises(ValueError, match=rf"odd.mp4 has {frames} frames of {width} x {height}, wanted at least 2 of 32 x 32"):
        Evaluate(tmp_path / "clips", tmp_path / "out", ("bicubic",), scale=2).run()


@pytest.mark.parametrize(("option", "value", "least"), [("scale", 0, 1), ("num_frames", 0, 2), ("height", 0, 32), ("steps", 0, 1)])
def test_a_number_of_no_use_is_named(tmp_path, option, value, least):
    with pytest.raises(ValueError, match=f"--{option.replace('_', '-')} is {value}, wanted at least {least}"):
        Evaluate(tmp_path / "clips", tmp_path / "out", ("bicubic",), **{option: value}).run()


def test_a_metric_that_one_clip_is_too_small_for_is_null_there(tmp_path):
    for name, side in (("large", 192), ("small", 96)):
        images = torch.randint(256, (2, side, 2 * side, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        write_video(tmp_path / "clips" / f"{name}.mp4", images, Fraction(25))
    run = Evaluate(tmp_path / "clips", tmp_path / "out", ("bicubic", "bilinear"), scale=2, metrics=("psnr", "niqe")).run()
    assert (
        run["clips"]["small"]["bicubic"]["niqe"] is None and run["mean"]["bicubic"]["niqe"] == run["clips"]["large"]["bicubic"]["niqe"] > 0
    )
    assert run["skipped"] == {"niqe": "it needs 192 pixels a side, and a clip has 192 x 96 (small)"}
    assert (tmp_path / "out" / "report.html").stat().st_size > 0


def test_its_own_videos_are_never_taken_for_clips(tmp_path):
    with pytest.raises(ValueError, match="is inside --clips"):
        Evaluate(tmp_path, tmp_path / "out", ("bicubic",)).run()


def test_an_unknown_method_is_named(tmp_path):
    with pytest.raises(ValueError, match="unknown lanczos; known are gvr"):
        Evaluate(tmp_path, tmp_path, ("gvr", "lanczos")).run()


def test_a_clip_that_is_done_is_not_measured_again(tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    shutil.copy(CLIP, clips / "first.mp4")
    evaluate = Evaluate(clips, tmp_path / "out", ("bicubic",), num_frames=3, height=96, metrics=("psnr", "seconds_per_frame"))
    before = evaluate.run()
    shutil.copy(CLIP, clips / "second.mp4")
    after = evaluate.run()
    assert after["clips"]["first"] == before["clips"]["first"]  # its seconds too
    assert after["clips"].keys() == {"first", "second"}
    other = replace(evaluate, methods=("bilinear",)).run()
    assert other["clips"]["first"].keys() == {"bilinear"}
    shutil.copy(REPO / "assets" / "demo_original.mp4", clips / "first.mp4")
    assert replace(evaluate, methods=("bilinear",)).run()["clips"]["first"] != other["clips"]["first"]


def test_pairs_that_come_with_their_low_resolution_are_measured_on_it(tmp_path):
    original = to_video(read_video(CLIP, 3)[0])[..., :96, :144]
    source = 0.5 * area_downscale(original, 2)
    for folder, video in (("hr", original), ("lr", source)):
        write_video(tmp_path / "pairs" / folder / "set" / "one.mp4", to_images(video), Fraction(25))
    run = Evaluate(tmp_path / "pairs", tmp_path / "out", ("bicubic",), scale=2, metrics=("psnr", "lr_consistency")).run()
    values = run["clips"]["set/one"]["bicubic"]
    assert values["psnr"] < 20 and values["lr_consistency"] > 35  # of the given low resolution, of half the contrast
    assert read_video(tmp_path / "out" / "set" / "one" / "source.mp4")[0].shape == (3, 48, 72, 3)
    with pytest.raises(ValueError, match=r"one.mp4 has 3 frames of 144 x 96 and .*one.mp4 3 frames of 72 x 48: wanted .* 3 times"):
        Evaluate(tmp_path / "pairs", tmp_path / "out", ("bicubic",), scale=3).run()
    write_video(tmp_path / "pairs" / "lr" / "set" / "one.mp4", to_images(source[:, :, :2]), Fraction(25))
    with pytest.raises(ValueError, match=r"3 frames of 144 x 96 and .* 2 frames of 72 x 48"):
        Evaluate(tmp_path / "pairs", tmp_path / "out", ("bicubic",), scale=2).run()
    (tmp_path / "pairs" / "lr" / "set" / "one.mp4").rename(tmp_path / "pairs" / "lr" / "set" / "other.mp4")
    with pytest.raises(ValueError, match="no low resolution"):
        Evaluate(tmp_path / "pairs", tmp_path / "out", ("bicubic",), scale=2).run()


def save_latent(path, key: str, shape: tuple[int, ...] = (1, 16, 3, 6, 8)) -> torch.Tensor:
    """Returns z, normalised, after writing it as ComfyUI's Save Latent does."""
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (WAN_MEAN, WAN_STD))
    save_file({key: z * std + mean, "latent_format_version_0": torch.tensor([])}, path)
    return z


def test_generated_clips_are_latents_or_videos_and_get_metrics_without_an_original(tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    z = save_latent(clips / "made_00001_.latent", "latent_tensor")
    save_latent(clips / "same.safetensors", "samples")
    write_video(clips / "video.mp4", read_video(CLIP, 5)[0][:, :72, :96], Fraction(25))
    chosen = {"methods": ("upsampler", "latent_bilinear", "bicubic"), "metrics": ("psnr", "tof", "lr_consistency")}
    run = Evaluate(clips, tmp_path / "out", scale=2, num_frames=7, suite="aigc", **chosen).run()
    assert run["suite"] == "aigc" and run["metrics"].keys() == {"tof", "lr_consistency"} and "original" in run["skipped"]["psnr"]
    assert run["original"] == {name: {} for name in ("made_00001_", "same", "video")}
    assert run["clips"]["made_00001_"] == run["clips"]["same"]
    assert all(value is not None for clip in run["clips"].values() for values in clip.values() for value in values.values())
    vae, upsampler = load_tiny_vae(Evaluate.vae), load_upsampler(Evaluate.upsampler)
    expected = to_images(vae.decode(upsampler(z[:, :, :2], (12, 16))))  # what whole latent frames hold of seven
    found, rate = read_video(tmp_path / "out" / "same" / "upsampler.mp4")
    assert rate == 16 and found.shape == expected.shape == (5, 96, 128, 3)
    assert (found.float() - expected.float()).abs().mean() < 4  # H.264 in between
    assert cv2.imread(str(tmp_path / "out" / "video" / "side_by_side.png")) is not None


def test_latents_are_those_of_wan_as_comfyui_normalises_them(comfy):
    from comfy.latent_formats import Wan21

    latent = Wan21()
    assert latent.latents_mean.flatten().tolist() == pytest.approx(WAN_MEAN) and latent.latents_std.flatten().tolist() == pytest.approx(
        WAN_STD
    )


@pytest.mark.parametrize(
    ("name", "key", "shape"), [("odd.safetensors", "weight", (1, 16, 2, 6, 8)), ("ODD.LATENT", "samples", (1, 4, 6, 8))]
)
def test_a_file_without_a_latent_of_wan_is_named(tmp_path, name, key, shape):
    save_file({key: torch.zeros(shape)}, tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name} contains no latent of Wan 2.1"):
        read_clip((tmp_path / name,), Reading("aigc", 2, 5, 96), None)


def test_methods_that_need_an_original_are_named_where_there_is_none(tmp_path):
    with pytest.raises(ValueError, match="vae_linear, which need an original"):
        Evaluate(tmp_path / "clips", tmp_path / "out", ("bicubic", "vae_linear"), suite="aigc").run()


def test_boxes_that_gvr_refines_are_measured_at_their_borders(tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    shutil.copy(CLIP, clips / "one.mp4")
    evaluate = Evaluate(
        clips, tmp_path / "out", ("gvr", "bicubic"), num_frames=5, height=216, tile=(288, 216), metrics=("psnr", "tile_seams")
    )
    values = evaluate.run()["clips"]["one"]
    whole = replace(evaluate, tile=None, out=tmp_path / "whole").run()
    assert "--tile" in whole["skipped"]["tile_seams"]
    assert 0 < abs(whole["clips"]["one"]["gvr"]["psnr"] - values["gvr"]["psnr"]) < 0.2  # boxes cost little
    assert whole["clips"]["one"]["bicubic"]["psnr"] == values["bicubic"]["psnr"]
    assert 0.5 < values["gvr"]["tile_seams"] < 2 and 0.5 < values["bicubic"]["tile_seams"] < 2


def measured(metric: str, better: str) -> dict:
    return {"label": metric.upper(), "unit": "", "better": better, "decimals": 2}


def test_document_counts_wins_and_losses_alike():
    def values(**changed) -> dict:
        return {"psnr": 30, "st_lpips": 0.2, "warping_error": 1, "seconds_per_frame": 1} | changed

    clips = {
        "first": {"gvr": values(), "bicubic": values(psnr=29, st_lpips=0.1)},
        "second": {"gvr": values(), "bicubic": values(psnr=31, st_lpips=0.3, warping_error=2)},
        "third": {"gvr": values(), "bicubic": values(psnr=None, st_lpips=0.4)},
    }
    better = {"psnr": "higher", "st_lpips": "lower", "warping_error": "lower", "seconds_per_frame": "lower"}
    run = {"command": "evaluate", "num_frames": 9, "height": 96, "seed": 0, "sampling": {"steps": 2}, "device": "cpu"}
    results = {
        "suite": "pairs",
        "run": run,
        "metrics": {name: measured(name, direction) for name, direction in better.items()},
        "skipped": {"vmaf": "ffmpeg is not here (first)"},
        "clips": clips,
        "mean": clips["first"],
        "original": {name: {"warping_error": 0.25} for name in clips},
    }
    document = report.markdown(results)
    assert "| bicubic | 1 of 2 | 2 of 3 | 1 of 3 |" in document
    assert "| second | 1.00 | 2.00 | 0.25 |" in document and "| third | 30.00 | - |" in document
    assert "- vmaf: ffmpeg is not here (first)." in document


def copy_at(path, source, size, frames):
    """Writes a video's first frames at another size, (height, width), as another system would."""
    images, rate = read_video(source, frames)
    write_video(path, to_images(resize_frames(to_video(images), size, "bicubic")), rate)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Low-resolution clips with the manifest of their prompts, and another system's videos of them."""
    base = tmp_path_factory.mktemp("finished")
    copy_at(base / "aigc" / "videos" / "one.mp4", CLIP, (60, 104), 9)  # 832 x 480, eight times smaller
    copy_at(base / "other" / "one.mp4", CLIP, (136, 240), 9)
    copy_at(base / "larger" / "one.mp4", CLIP, (272, 480), 13)
    manifest = {"clips": {"one": {"prompt": "a cat on a wall"}, "two": {"prompt": "rain"}}}
    (base / "aigc" / "manifest.json").write_text(json.dumps(manifest))
    save_file({"context": torch.ones(3, 4096)}, base / "one.safetensors")
    return base


def test_finished_videos_of_other_systems_are_scored_beside_ours_at_any_size(finished, tmp_path):
    """832 x 480 to 1920 x 1080, all eight times smaller: the ratio is no whole number and another along each side."""
    videos = (f"OTHER={finished / 'other'}", f"LARGER={finished / 'larger'}")
    chosen = {"metrics": ("lr_consistency", "flicker", "seconds_per_frame"), "num_frames": 9, "suite": "aigc"}
    run = Evaluate(finished / "aigc" / "videos", tmp_path / "out", ("gvr", "bicubic"), size="240x136", videos=videos, **chosen)
    results = run.run()
    assert list(results["mean"]) == ["gvr", "bicubic", "OTHER", "LARGER"]
    shown = {name: to_video(read_video(tmp_path / "out" / results["files"]["one"][name])[0]) for name in results["mean"]}
    assert {video.shape for video in shown.values()} == {(1, 3, 9, 136, 240)}
    own = to_video(read_video(finished / "other" / "one.mp4")[0])
    assert psnr(shown["OTHER"], own).min() > 30  # written once more, not changed
    mean = results["mean"]
    assert mean["OTHER"]["lr_consistency"] > mean["gvr"]["lr_consistency"] and mean["OTHER"]["seconds_per_frame"] is None
    assert results["prompts"] == {"one": "a cat on a wall"} and results["run"]["text"] == "the null prompt"
    for document in ("results.md", "report.html"):
        assert "OTHER" in (tmp_path / "out" / document).read_text() and "LARGER" in (tmp_path / "out" / document).read_text()
    assert "a cat on a wall" in (tmp_path / "out" / "report.html").read_text()
    before = (tmp_path / "out" / "one" / "measured.json").stat().st_mtime_ns
    run.run()
    assert (tmp_path / "out" / "one" / "measured.json").stat().st_mtime_ns == before  # nothing changed, nothing is measured again


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"videos": ("OTHER",)}, "--videos has OTHER, wanted NAME=DIR"),
        ({"videos": ("gvr={other}",)}, "--videos has gvr, names that"),
        ({"videos": ("A={other}", "A={other}")}, "--videos has A twice"),
        ({"videos": ("A={aigc}",)}, "has no video of the clip one"),
        ({"videos": ("A={other}",), "size": "480x272"}, r"one\.mp4 has 240 x 136 pixels, wanted 480 x 272 or more"),
        ({"size": "1080p"}, "--size is 1080p, wanted WIDTHxHEIGHT"),
        ({"size": "9x9"}, "--size is 9x9, wanted at least 32"),
    ],
)
def test_finished_videos_and_sizes_that_do_not_fit_are_named(finished, tmp_path, change, message):
    places = {"other": finished / "other", "aigc": finished / "aigc"}
    change = {**change, "videos": tuple(each.format(**places) for each in change.get("videos", ()))}
    chosen = {"metrics": ("lr_consistency",), "num_frames": 9, "suite": "aigc", "size": "240x136"}
    with pytest.raises(ValueError, match=message):
        Evaluate(finished / "aigc" / "videos", tmp_path / "out", ("bicubic",), **{**chosen, **change}).run()


def test_prompts_guide_gvr_and_bfloat16_is_what_it_computes_in(finished, tmp_path):
    with safe_open(Evaluate.model, "pt") as file:
        weights, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118 (not a dict)
    weights |= {key: 1 + value for key, value in weights.items() if "cross_attn.o" in key or "cross_attn.v" in key}
    save_file(weights, tmp_path / "hears.safetensors", metadata)  # its prompt changes its result
    chosen = {"metrics": ("lr_consistency",), "num_frames": 5, "suite": "aigc", "scale": 2.25, "steps": 1}
    chosen["model"] = tmp_path / "hears.safetensors"
    clips, outs = finished / "aigc" / "videos", {}
    variants = {"null": {}, "guided": {"contexts": finished, "cfg": 5.0}, "bf16": {"bf16": True}}
    for name, options in variants.items():
        Evaluate(clips, tmp_path / name, ("gvr",), **{"bf16": False, **chosen, **options}).run()
        outs[name] = to_video(read_video(tmp_path / name / "one" / "gvr.mp4")[0])
        assert outs[name].shape[3:] == (135, 234)
    assert not torch.equal(outs["null"], outs["guided"])
    assert 30 < psnr(outs["bf16"], outs["null"]).mean() < 80
    (tmp_path / "contexts").mkdir()
    with pytest.raises(ValueError, match=r"one\.safetensors has no tensor"):
        Evaluate(clips, tmp_path / "none", ("gvr",), contexts=tmp_path / "contexts", **chosen).run()


@pytest.mark.parametrize("scale", [1.5, 2.25, 3])
def test_a_fractional_scale_shrinks_originals_by_it(scale):
    clip = read_clip((CLIP,), Reading("pairs", scale, 5, 96), None)
    assert clip.original.shape[3:] == clip.size and clip.size[0] <= 96
    for large, small in zip(clip.size, clip.source.shape[3:], strict=True):
        assert abs(large - scale * small) <= 0.5
    assert bicubic(clip.source, clip.size, None).shape == clip.original.shape


@pytest.mark.parametrize("damage", [lambda text: "", lambda text: text[: len(text) // 2], lambda text: "\0" * len(text), lambda text: "[]"])
def test_a_damaged_measurement_is_made_again(tmp_path, damage, capsys):
    (tmp_path / "clips").mkdir()
    shutil.copy(CLIP, tmp_path / "clips" / "one.mp4")
    evaluate = Evaluate(tmp_path / "clips", tmp_path / "out", ("bicubic",), num_frames=2, height=96, metrics=("psnr",))
    whole, path = evaluate.run()["clips"], tmp_path / "out" / "one" / "measured.json"
    path.write_text(damage(path.read_text()))
    assert evaluate.run()["clips"] == whole
    assert json.loads(path.read_text())["methods"] == whole["one"]
