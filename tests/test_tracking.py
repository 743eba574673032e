"""What a run reports while it trains: losses, rates, validation on held-out pairs, samples; in tensorboard's files."""

import io
from dataclasses import replace
from importlib.util import find_spec
from math import isnan
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import REPO
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from simplegvr_core.training.build_pairs import BuildPairs
from simplegvr_core.training.distil import Distil
from simplegvr_core.training.draws import READING
from simplegvr_core.training.loop import LoopConfig, fit
from simplegvr_core.training.losses import read_losses
from simplegvr_core.training.presets import PRESETS
from simplegvr_core.training.rates import H100_FLOPS, Work, peak_flops
from simplegvr_core.training.tracking import (
    SHOWN_FRAMES,
    SHOWN_ROWS,
    Reported,
    Tracker,
    animated,
    chosen_tracker,
    loss_by_level,
    tracker_settings,
)
from simplegvr_core.video.read import read_video

pytestmark = pytest.mark.usefixtures("one_thread")
RATES = ("samples_per_second", "tokens_per_second", "tflops_per_device", "memory_gb")


def reported(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard")).Reload()


def values(events: EventAccumulator, name: str) -> dict[int, float]:
    return {event.step: event.value for event in events.Scalars(name)}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Folder of a run of the smoke preset that is validated on held-out pairs."""
    folder = tmp_path_factory.mktemp("tracked")
    build = BuildPairs(REPO / "assets", PRESETS["smoke"].vae, folder / "pairs", "area", num_frames=9, spacing=9, scales=(2,))
    build.run()
    replace(build, out=folder / "held_out", spacing=40).run()
    loop = LoopConfig(steps=4, warmup=2, schedule="constant", save_every=2, report_every=2, cpu=True)
    smoke = replace(PRESETS["smoke"], pairs=(folder / "pairs",), held_out=(folder / "held_out",), out=folder / "run", loop=loop)
    smoke.run()
    return smoke.out


def test_means_of_the_steps_are_in_tensorboard(run):
    events, losses = reported(run), read_losses(run / "losses.jsonl")
    assert values(events, "train/loss") == pytest.approx({2: sum(losses[:2]) / 2, 4: sum(losses[2:]) / 2})
    assert values(events, "train/learning_rate") == pytest.approx({2: 1e-3, 4: 1e-3})
    assert all(min(values(events, f"train/{name}").values()) > 0 for name in (*RATES, "gradient_norm"))
    assert all(0 <= share <= 1 for share in values(events, "train/waiting_share").values())
    ratio = values(events, "train/tokens_per_second")[4] / values(events, "train/samples_per_second")[4]
    assert ratio == pytest.approx(3 * 6 * 6, rel=1e-4)  # tokens of a crop of 9 frames and 12 x 12 latent pixels


def test_losses_are_told_apart_by_noise_level(run):
    """Their errors are the velocity's, of which the loss is the mean when nothing else is added."""
    names = {name for name in reported(run).Tags()["scalars"] if name.startswith("loss_by_level/")}
    assert names and names <= {f"loss_by_level/{i / 4:.2f}_{(i + 1) / 4:.2f}" for i in range(4)}
    levels = torch.tensor([[0.1, 3.0], [0.2, 5.0], [0.6, 7.0], [1.0, 9.0]])
    assert loss_by_level(levels) == {"loss_by_level/0.00_0.25": 4.0, "loss_by_level/0.50_0.75": 7.0, "loss_by_level/0.75_1.00": 9.0}


def test_held_out_pairs_are_validated_with_every_saved_state(run):
    events = reported(run)
    for name in ("validation/loss", "validation/st_lpips"):
        assert set(values(events, name)) == {2, 4}
        assert values(events, name)[2] != values(events, name)[4]
    assert 0 < values(events, "validation/st_lpips")[4] < 2


def test_the_sample_is_a_video_of_low_resolution_result_and_target(run):
    samples = reported(run).Images("sample")
    assert [sample.step for sample in samples] == [2, 4]
    picture = Image.open(io.BytesIO(samples[-1].encoded_image_string))
    assert (picture.size, picture.n_frames) == ((3 * 96, 96), 9)
    video = read_video(run / "preview_000004.mp4", 1)[0][0]
    difference = torch.from_numpy(np.array(picture.convert("RGB"))) / 255 - video / 255
    assert difference.abs().mean() < 0.05  # beside the losses of both formats


def test_a_sample_of_a_long_clip_is_shrunk_for_the_tracker(tmp_path):
    """Stage 3's is 77 frames of 1056 x 5760; here the same share of rows is averaged, and the speed stays."""
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path)
    tracker = Tracker(accelerator, "tensorboard", Work(samples=1), every=1, finished=0)
    stripes = torch.tensor([0, 200], dtype=torch.uint8).repeat(264)[:, None, None].expand(528, 600, 3)
    tracker.show("sample", torch.stack([stripes + 2 * (frame % 2) for frame in range(77)]), 1)
    tracker.close()
    (sample,) = reported(tmp_path).Images("sample")
    picture = Image.open(io.BytesIO(sample.encoded_image_string))
    assert (sample.width, sample.height) == picture.size == (round(600 * 256 / 528), SHOWN_ROWS)
    assert picture.n_frames == 26 <= SHOWN_FRAMES
    assert picture.info["duration"] == pytest.approx(3 * 1000 / 12, abs=10)
    assert picture.convert("L").getextrema() == pytest.approx((100, 100), abs=40)


def test_wandb_resumes_the_run_of_the_folder(tmp_path):
    passed = []
    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        is_main_process=True,
        project_dir=tmp_path / "run",
        init_trackers=lambda project, init_kwargs: passed.append((project, init_kwargs)),
    )
    for finished in (0, 4):
        Tracker(accelerator, "wandb", Work(samples=1), every=1, finished=finished)
    (project, settings), again = passed
    assert again == (project, settings)
    assert project == "simplegvr" and set(settings) == {"wandb"} and settings["wandb"]["resume"] == "allow"
    assert len(settings["wandb"]["id"]) == 16
    assert tracker_settings("wandb", tmp_path / "another", 0)["id"] != settings["wandb"]["id"]
    assert tracker_settings("tensorboard", tmp_path, 4) == {"purge_step": 5}


def test_peaks_are_those_of_the_variant():
    assert peak_flops("NVIDIA H100 80GB HBM3") == H100_FLOPS == 989.5e12
    assert peak_flops("NVIDIA H100 PCIe") == 756.5e12
    assert peak_flops("NVIDIA H100 NVL") == peak_flops("NVIDIA H200 NVL") == 835.5e12
    for unknown in ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 3090 Ti"):
        assert isnan(peak_flops(unknown))


def test_a_distillation_reports_its_rates(run, tmp_path):
    """Its operations are those of its plan without recomputation."""
    distil = Distil(
        (run.parent / "pairs",),
        tmp_path,
        run / "dit.safetensors",
        run / "upsampler.safetensors",
        attention=PRESETS["smoke"].attention,
        crop=PRESETS["smoke"].crop,
        loop=LoopConfig(steps=1, report_every=1, cpu=True),
    )
    distil.run()
    (rates,) = ({name: values(reported(tmp_path), f"train/{name}")[1] for name in RATES},)
    assert rates["tokens_per_second"] / rates["samples_per_second"] == pytest.approx(3 * 6 * 6, rel=1e-4)
    flops = distil.workload().useful_flops
    assert rates["tflops_per_device"] / rates["samples_per_second"] == pytest.approx(flops / 1e12, rel=1e-4)


def test_an_animation_has_the_frames_it_was_given():
    images = torch.linspace(0, 255, 5).round().byte()[:, None, None, None].expand(5, 8, 12, 3)
    picture = Image.open(io.BytesIO(animated(images)))
    shades = []
    for frame in range(5):
        picture.seek(frame)
        shades.append(picture.convert("L").getpixel((3, 3)))
    assert shades == pytest.approx([0, 64, 128, 191, 255], abs=3)


class Line(nn.Module):
    """A slope that is learnt."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return (self.slope * x - x).square().mean()


class Points:
    """Random points, up to a step."""

    batch = 4

    def __init__(self, stop: int):
        self.stop = stop

    def read(self, draws):
        if draws.step == self.stop:
            raise KeyboardInterrupt
        return {"x": torch.cat([torch.rand(1, 1, generator=generator) for generator in draws.generators(READING)])}

    def finish(self, batch, draws):
        return batch


def test_a_resumed_run_reports_each_step_once(tmp_path):
    loop = LoopConfig(steps=6, warmup=1, save_every=2, report_every=1, cpu=True)
    with pytest.raises(KeyboardInterrupt):
        fit(Line(), Points(stop=5), loop, tmp_path)
    fit(Line(), Points(stop=-1), loop, tmp_path)
    events = reported(tmp_path)
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert values(events, "train/loss") == pytest.approx({i + 1: loss for i, loss in enumerate(read_losses(tmp_path / "losses.jsonl"))})


def test_the_share_of_the_peak_is_reported_where_the_peak_is_known():
    accelerator = SimpleNamespace(device=torch.device("cpu"), num_processes=2)
    tracker = Tracker(accelerator, "none", Work(samples=8, flops=4e12), every=10, finished=0)
    tracker.report(Reported(0, 1.0, 1.0, 1e-3, waited=0.0, levels=None))
    assert "mfu" not in tracker.summary()
    tracker.peak = 100.0
    tracker.report(Reported(1, 1.0, 1.0, 1e-3, waited=0.0, levels=None))
    summary = tracker.summary()
    assert summary["tflops_per_device"] == pytest.approx(summary["samples_per_second"] / 8 * 4 / 2)
    assert summary["mfu"] == pytest.approx(summary["tflops_per_device"] / 100)


def test_a_tracker_that_is_not_installed_is_named():
    assert chosen_tracker("none") == "none"
    if find_spec("wandb") is None:
        with pytest.raises(ImportError, match=r"--loop.tracker is wandb, which is not installed: run `python -m pip install wandb`"):
            chosen_tracker("wandb")
