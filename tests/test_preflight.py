"""What cannot succeed is refused before the work; what can be converted is."""

import math
import shutil
from argparse import Namespace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import psutil
import pytest
import torch
from conftest import latent, scale
from demo import check_needs
from safetensors.torch import save_file
from test_decode import frames_seen, module, output, save, tiny  # noqa: F401 (fixtures)
from test_decode import latent as smooth

from simplegvr_core.benchmark.seams import SeamBenchmark
from simplegvr_core.checks import check_folder
from simplegvr_core.evaluation.evaluate import Evaluate
from simplegvr_core.evaluation.measure_seams import MeasureSeams
from simplegvr_core.files import GVR_TINY_VAE
from simplegvr_core.networks.attention import AttentionConfig
from simplegvr_core.networks.convert import Convert
from simplegvr_core.networks.dit import DiTConfig, SimpleGVRDiT
from simplegvr_core.paper.ablate import Ablate
from simplegvr_core.paper.command import Paper
from simplegvr_core.planning.preflight import check_encoding
from simplegvr_core.sampling.comfyui_latent import write_latent_of_comfyui
from simplegvr_core.super_resolve_command import SuperResolve
from simplegvr_core.training.build_pairs import BuildPairs
from simplegvr_core.training.distil import Distil
from simplegvr_core.training.measure_curve import MeasureCurve
from simplegvr_core.training.train import Train
from simplegvr_core.video.sound import checked_sound
from simplegvr_core.video.write import Encoding, write_video


def tone(rate: float, seconds: float = 1, channels: int = 2, dtype=torch.float32) -> dict:
    """Returns an AUDIO of 440 Hz."""
    times = torch.arange(round(seconds * rate)) / rate
    return {"waveform": (0.5 * (2 * math.pi * 440 * times).sin()).expand(1, channels, -1).to(dtype), "sample_rate": rate}


def sound_of(path: Path) -> tuple[torch.Tensor, int]:
    """Returns samples (C, N) and rate of a file's sound."""
    with av.open(path) as container:
        frames = list(container.decode(audio=0))
        return torch.cat([torch.from_numpy(frame.to_ndarray()) for frame in frames], dim=1), frames[0].sample_rate


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("rate", "encoded"), [(40000, 44100), (192000, 96000), (6000, 7350), (22050.0, 22050), (48000, 48000)])
def test_a_sound_of_any_rate_becomes_one_that_aac_has(tiny, save, rate, encoded, dtype):  # noqa: F811
    (path,), report = save(tiny, smooth(5), fps=17.0, audio=tone(rate, 2, dtype=dtype))
    samples, found = sound_of(path)
    assert found == encoded
    assert (f"AAC has no {rate} Hz: the sound became {encoded} Hz." in report) == (rate != encoded)
    assert encoded <= samples.shape[1] < encoded + 3000  # of 17 frames at 17 a second
    spectrum = torch.fft.rfft(samples[0, :encoded]).abs()
    assert abs(int(spectrum.argmax()) - 440) <= 1


def broken(value: float) -> dict:
    audio = tone(8000, 2)
    audio["waveform"] = audio["waveform"].clone()
    audio["waveform"][0, 1, 800] = value
    return audio


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio": broken(torch.nan)}, r"the audio has NaN or infinite values from 0\.10 seconds on: look for the cause"),
        ({"audio": broken(-torch.inf)}, r"the audio has NaN or infinite values from 0\.10 seconds on"),
        ({"audio": tone(8000, channels=5)}, "the audio has 5 channels, wanted one of 1, 2, 6, 8: mix it to stereo"),
        ({"audio": tone(8000) | {"sample_rate": 0}}, "the audio has 0 samples per second, wanted at least 1"),
        ({"audio": tone(8000) | {"waveform": torch.zeros(1, 2, 800, dtype=torch.int16)}}, r"the audio is torch\.int16 of shape"),
        ({"audio": tone(8000) | {"waveform": torch.zeros(2, 800)}}, r"the audio has shape \(2, 800\), wanted \(batch, channels, samples\)"),
        ({"filename_prefix": "video/" + 300 * "a"}, r"the file name a{40}\.\.\. has 311 bytes, wanted at most 247: shorten it"),
        ({"filename_prefix": "file/below"}, "is a file, wanted a folder|cannot be written"),
        ({"latent": smooth(1, (1, 2049))}, "the frames are 16392 x 8, H.264 takes sides of at most 16384 pixels: choose a smaller size"),
    ],
    ids=["nan", "inf", "5 channels", "no rate", "integers", "no batch", "long name", "file as folder", "too wide"],
)  # fmt: skip
def test_what_cannot_be_saved_is_refused_before_the_first_frame(tiny, save, output, frames_seen, changes, message):  # noqa: F811
    (output / "file").write_text("in the way")
    with pytest.raises(ValueError, match=f"SimpleGVR Decode and Save: .*({message})"):
        save(tiny, **({"latent": smooth(5)} | changes))
    assert not frames_seen
    assert not [path for path in output.parent.rglob("*.mp4") if path.is_file()]


def test_a_full_disk_is_found_before_the_first_frame(tiny, save, frames_seen, monkeypatch):  # noqa: F811
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 0))
    with pytest.raises(ValueError, match=r"SimpleGVR Decode and Save: .* has 0.* free, the run needs at least .*: free space there"):
        save(tiny, smooth(1))
    assert not frames_seen


def test_a_full_disk_is_found_before_the_first_step(sample, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(ValueError, match=r"SimpleGVR Sampler: .* has .* free, the run needs at least"):
        sample()


def test_the_plan_shows_what_stops_a_run(comfy, model, wan):
    inputs = {"latent": latent(), "size": scale(2), "memory": {"memory": "free"}, "trial": False}
    custom = {"settings": "custom", "steps": 2, "cfg": 1.0, "noise_augmentation": 0.4, "denoise": 1.0}
    report = comfy.run("SimpleGVRPlan", model=wan, settings=custom, **inputs)[3]
    assert "It cannot run yet. SimpleGVR Plan: denoise is 1 with a stock Wan model" in report
    assert "cannot run" not in comfy.run("SimpleGVRPlan", model=model, settings=custom, **inputs)[3]


@pytest.mark.parametrize("size", [(2, 2), (8, 16384), (16384, 8), (16, 16)])
@pytest.mark.parametrize("rate", [Fraction(1, 100), 24, 1000])
def test_what_the_encoder_takes_is_not_refused(size, rate):
    check_encoding(Encoding(*size, Fraction(rate)))


def test_a_frame_of_too_many_pixels_is_refused():
    with pytest.raises(ValueError, match=r"H\.264 does not take frames of 16384 x 16384 at 24 a second"):
        check_encoding(Encoding(16384, 16384, Fraction(24)))


def test_folders_are_named_with_the_cure(tmp_path):
    check_folder(tmp_path / "new" / "folder", 1)
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="a file, wanted a folder: choose another"):
            check_folder(folder)
    with pytest.raises(OSError, match="free, the run needs at least"):
        check_folder(tmp_path, 1e15)


def test_only_the_sound_of_the_video_counts():
    waveform = torch.zeros(1, 1000)
    waveform[0, 500] = torch.nan
    assert checked_sound(waveform, 1000, 0.5).waveform.shape == (1, 500)
    with pytest.raises(ValueError, match=r"from 0\.50 seconds on"):
        checked_sound(waveform, 1000, 0.6)


MISSING = Path("missing.safetensors")
COMMANDS = {  # with weights that are not there: the folder is looked at before they are
    "pairs": lambda folder, out: BuildPairs(folder, MISSING, out, "area"),
    "train": lambda folder, out: Train(pairs=(folder,), out=out, init_dit=MISSING, vae=MISSING),
    "distil": lambda folder, out: Distil(pairs=(folder,), out=out, init_dit=MISSING, init_upsampler=MISSING),
    "curve": lambda folder, out: MeasureCurve(folder, out / "curve.json", model=MISSING),
    "evaluate": lambda folder, out: Evaluate(folder, out, model=MISSING),
    "seams": lambda folder, out: MeasureSeams(folder / "missing.mp4", out=out / "seams.png"),
    "ablate": lambda folder, out: Ablate(folder, folder, out, MISSING, MISSING),
    "paper": lambda folder, out: Paper(model=MISSING, out=out),
    "benchmark": lambda folder, out: SeamBenchmark(video=folder / "missing.mp4", out=out),
    "convert": lambda folder, out: Convert(MISSING, out / "converted.safetensors"),
    "super-resolve": lambda folder, out: SuperResolve(written_latent(folder, 1), out, model=MISSING),
}


def written_latent(folder: Path, frames: int) -> Path:
    """Returns a file with a latent of so many latent frames of 4 x 6."""
    write_latent_of_comfyui(folder / "clip.latent", torch.zeros(1, 16, frames, 4, 6), {})
    return folder / "clip.latent"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_refuses_an_output_that_cannot_be_written_before_it_reads_anything(tmp_path, command):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "inputs").mkdir()
    with pytest.raises(OSError, match=r"file is a file, wanted a folder|file is below a file, wanted a folder"):
        COMMANDS[command](tmp_path / "inputs", tmp_path / "file").run()
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.fixture
def clips(tmp_path):
    """A folder with a video of 17 frames of 48 x 48."""
    (tmp_path / "clips").mkdir()
    frames = torch.randint(256, (17, 48, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_video(tmp_path / "clips" / "noise.mp4", frames, Fraction(24))
    return tmp_path / "clips"


ROOM = {  # with 100 bytes free
    "pairs": (
        lambda folder, out: BuildPairs(folder, GVR_TINY_VAE, out, "area", scales=(2,)),
        r"a shard of 1 pairs of the size of noise\.mp4",
    ),
    "evaluate": (
        lambda folder, out: Evaluate(folder, out, ("bicubic", "bilinear"), scale=2, metrics=("psnr",), device="cpu"),
        "the videos of noise",
    ),
    "convert": (lambda folder, out: Convert(folder / "dit.safetensors", out / "converted.safetensors"), r"converted\.safetensors"),
    "super-resolve": (lambda folder, out: SuperResolve(written_latent(folder, 1), out, device="cpu"), "the run"),
}


@pytest.mark.parametrize("command", ROOM)
def test_a_command_refuses_a_full_disk_before_the_work(clips, tmp_path, command, monkeypatch):
    run, what = ROOM[command]
    if command == "convert":
        dit = SimpleGVRDiT(DiTConfig(dim=128, ffn_dim=64, num_heads=1, num_layers=1), AttentionConfig())
        save_file(dit.state_dict(), clips / "dit.safetensors")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 100))
    with pytest.raises(OSError, match=rf"out has 0.0001 MB free, {what} needs at least .*: free space there or choose another folder"):
        run(clips, tmp_path / "out").run()
    assert list((tmp_path / "out").rglob("*.*")) == []


def test_what_does_not_fit_the_memory_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**6))
    (tmp_path / "in").mkdir()
    command = SuperResolve(written_latent(tmp_path / "in", 41), tmp_path / "out", device="cpu", scale=2)
    message = r"clip\.latent needs .* MB of the host's memory, 1 MB are free: choose a smaller --segment or --tile, or --scale"
    with pytest.raises(ValueError, match=message):
        command.run()
    arguments = Namespace(out=tmp_path / "out", scale=3.0)
    message = r"33 frames of 480 x 360, decoded in one piece, needs 375 MB of the host's memory, 1 MB are free: give a shorter"
    with pytest.raises(ValueError, match=message):
        check_needs(33, (120, 160), arguments)
    monkeypatch.undo()
    check_needs(33, (120, 160), arguments)
    with pytest.raises(OSError, match="the result needs at least"):
        check_needs(10**9, (120, 160), arguments)
