"""What a run reports while it trains, by accelerate's trackers: losses, rates, memory, the share of time waiting for data, samples."""

import io
import secrets
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from ..files import write_text
from .rates import Work, peak_flops

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TrackerName = Literal["tensorboard", "wandb", "none"]
LEVELS = 4  # equal parts of [0, 1], in which the losses of noise levels are averaged
SHOWN_ROWS, SHOWN_FRAMES, FRAMES_A_SECOND = 256, 33, 12  # of a video in the tracker, at most; of the whole video


@dataclass(frozen=True)
class Reported:
    """A finished step.

    Attributes:
        step: Its number.
        loss: Mean loss.
        norm: Norm of the gradient before it is clipped.
        rate: Learning rate.
        waited: Seconds from the begin of the run in which the main process waited for data.
        levels: (B, 2): noise level and error of each sample; None where the objective has none.
    """

    step: int
    loss: float
    norm: float
    rate: float
    waited: float
    levels: Tensor | None


class Tracker:
    """Averages what steps report and hands it to one of accelerate's trackers, on the main process."""

    def __init__(self, accelerator: Accelerator, name: TrackerName, work: Work, *, every: int, finished: int):
        """Starts the tracker.

        Args:
            accelerator: Its project_dir is the folder of the run, log_with the tracker.
            name: Name of the tracker.
            work: What a step computes.
            every: Steps from one report to the next.
            finished: Number of finished steps; what a killed run reported of later ones is dropped.
        """
        self.accelerator, self.name, self.work, self.every = accelerator, name, work, every
        self.peak = peak_tflops(accelerator.device)
        self.start, self.waited = time.monotonic(), 0.0
        self.steps: list[Reported] = []
        if name != "none":
            settings = tracker_settings(name, Path(accelerator.project_dir), finished) if accelerator.is_main_process else {}
            accelerator.init_trackers(name if name == "tensorboard" else "simplegvr", init_kwargs={name: settings})

    def report(self, reported: Reported) -> None:
        """Takes a finished step; after every so many steps, logs their means."""
        self.steps.append(replace(reported, levels=None if reported.levels is None else reported.levels.cpu()))
        if (reported.step + 1) % self.every == 0:
            self.log(self.summary(), reported.step + 1)

    def summary(self) -> dict[str, float]:
        """Returns the means of the steps since the last call, by name."""
        steps, self.steps = self.steps, []
        now = time.monotonic()
        seconds, self.start = now - self.start, now
        waited, self.waited = steps[-1].waited - self.waited, steps[-1].waited
        a_second = len(steps) / seconds
        tflops = a_second * self.work.flops / 1e12 / self.accelerator.num_processes
        values = {
            "loss": sum(step.loss for step in steps) / len(steps),
            "gradient_norm": sum(step.norm for step in steps) / len(steps),
            "learning_rate": steps[-1].rate,
            "samples_per_second": a_second * self.work.samples,
            "tokens_per_second": a_second * self.work.tokens,
            "tflops_per_device": tflops,
            "mfu": tflops / self.peak,
            "memory_gb": memory_gb(self.accelerator.device),
            "waiting_share": waited / seconds,
        }
        levels = [step.levels for step in steps if step.levels is not None]
        values |= loss_by_level(torch.cat(levels)) if levels else {}
        return {name: value for name, value in values.items() if not isnan(value)}

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Logs values at a number of finished steps."""
        if self.name != "none" and values:
            self.accelerator.log({f"train/{name}" if "/" not in name else name: value for name, value in values.items()}, step=step)

    def show(self, name: str, images: Tensor, step: int) -> None:
        """Logs a video, which the tracker repeats. It gets at most SHOWN_ROWS rows, averaged by area, and of more than SHOWN_FRAMES
        frames every second, third and so on, at the video's speed.

        Args:
            name: Its name.
            images: (F, H, W, 3) uint8.
            step: Number of finished steps.
        """
        if self.name == "none" or not self.accelerator.is_main_process:
            return
        from ..video.frames import limit_height  # which needs packages for video

        step_of_frames = -(-len(images) // SHOWN_FRAMES)
        images = torch.stack([limit_height(image, SHOWN_ROWS) for image in images[::step_of_frames]])
        gif = animated(images, FRAMES_A_SECOND / step_of_frames)
        if self.name == "tensorboard":
            from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

            _, height, width, _ = images.shape
            picture = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
            writer = cast("SummaryWriter", self.accelerator.get_tracker("tensorboard", unwrap=True))
            writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=picture)]), step)
        else:
            import wandb  # pyright: ignore[reportMissingImports]

            self.accelerator.log({name: wandb.Video(io.BytesIO(gif), format="gif")}, step=step)

    def close(self) -> None:
        """Writes what is left and ends the tracker."""
        for tracker in self.accelerator.trackers:
            tracker.finish()


def chosen_tracker(name: TrackerName) -> TrackerName:
    """Returns the name of the tracker to use. Raises ImportError when its package is missing."""
    if name != "none" and find_spec(name) is None:
        raise ImportError(
            f"--loop.tracker is {name}, which is not installed: run `python -m pip install {name}`, or give --loop.tracker none"
        )
    return name


def tracker_settings(name: TrackerName, folder: Path, finished: int) -> dict[str, str | int]:
    """Returns what accelerate passes to a tracker's start, so that a resumed run reports into the same run.

    wandb's id of the run is random and in the folder's wandb_id.txt; its steps only rise, and what a killed run reported of later steps
    than the saved one stays.

    Args:
        name: Name of the tracker.
        folder: Folder of the run.
        finished: Number of finished steps; tensorboard drops later ones.
    """
    if name == "tensorboard":
        return {"purge_step": finished + 1}
    path = folder / "wandb_id.txt"
    if not path.exists():
        write_text(path, secrets.token_hex(8))
    return {"id": path.read_text(encoding="utf-8"), "resume": "allow"}


def loss_by_level(levels: Tensor) -> dict[str, float]:
    """Returns the mean loss of each of LEVELS equal parts of the noise levels that has samples.

    Args:
        levels: (B, 2), noise level in [0, 1] and error of each sample.
    """
    parts = defaultdict(list)
    for sigma, error in levels.tolist():
        parts[min(int(sigma * LEVELS), LEVELS - 1)].append(error)
    return {f"loss_by_level/{i / LEVELS:.2f}_{(i + 1) / LEVELS:.2f}": sum(errors) / len(errors) for i, errors in sorted(parts.items())}


def peak_tflops(device: torch.device) -> float:
    """Returns the peak rate of a device, NaN for an unknown one."""
    return peak_flops(torch.cuda.get_device_name(device)) / 1e12 if device.type == "cuda" else float("nan")


def memory_gb(device: torch.device) -> float:
    """Returns the most memory that this process has had, in GB: the device's, else the host's; NaN where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []  # on Linux
    return next((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM")), float("nan"))


def animated(images: Tensor, frames_a_second: float = FRAMES_A_SECOND) -> bytes:
    """Returns images (F, H, W, 3) uint8 as an endless GIF."""
    frames = [Image.fromarray(frame) for frame in images.numpy()]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=round(1000 / frames_a_second), loop=0)
    return file.getvalue()
