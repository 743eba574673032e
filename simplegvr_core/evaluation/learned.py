"""Learned metrics of other packages. They run only where the package and its weights are on the machine.

Nothing is downloaded: files that a package would fetch are looked for first, and a sentence names what is missing, its licence and
how to get it. F frames; video (1, 3, F, H, W) in [-1, 1], values outside are clamped.

MUSIQ, CLIP-IQA and MANIQA come from pyiqa. VBench's temporal flickering was run with vbench 0.1.5. DOVER and VBench's other
dimensions are called as their own scripts call them and were not run by us, for want of weights.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ..files import sha256
from ..video.frames import to_images
from ..video.write import write_video

CLIP_RN50 = "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"  # sha256; pyiqa fetches it anew where it is another
FUSION = {"technical": (0.1107, 0.07355, 0.6104), "aesthetic": (-0.08285, 0.03774, 0.3896)}  # DOVER's: mean, deviation, weight
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))  # mean and deviation of red, green, blue


def hub() -> Path:
    return Path(torch.hub.get_dir())


def vit() -> Path:
    """Returns the file of the transformer that pyiqa initialises MANIQA with."""
    from huggingface_hub import try_to_load_from_cache

    pretrained = import_module("timm.models").get_pretrained_cfg("vit_base_patch8_224")
    found = try_to_load_from_cache(pretrained.hf_hub_id, "model.safetensors")
    return Path(found) if isinstance(found, str) else Path("the cache of huggingface_hub: vit_base_patch8_224")


@dataclass(frozen=True)
class Iqa:
    """A metric of pyiqa.

    Attributes:
        weights: Returns the file of its weights.
        path: Whether it accepts the path of that file.
        others: Return further files that it loads.
    """

    weights: Callable[[], Path]
    path: bool = True
    others: tuple[Callable[[], Path], ...] = ()


IQA = {
    "musiq": Iqa(lambda: hub() / "pyiqa" / "musiq_koniq_ckpt-e95806b9.pth"),
    "clipiqa": Iqa(lambda: hub() / "clip" / "RN50.pt", path=False),
    "maniqa": Iqa(lambda: hub() / "pyiqa" / "ckpt_koniq10k.pt", path=False, others=(vit,)),
}


def iqa_absent(name: str) -> str | None:
    """Returns in a sentence what a metric of pyiqa lacks on this machine, or None."""
    if find_spec("pyiqa") is None:
        return "pyiqa is not installed: python -m pip install pyiqa (PolyForm Noncommercial licence: not for commercial use)"
    try:
        import_module("pyiqa")
        missing = [str(path) for path in (file() for file in (IQA[name].weights, *IQA[name].others)) if not path.is_file()]
    except ImportError as error:
        return f"pyiqa cannot be imported ({error}): install it anew"
    if missing:
        get = f"""python -c "import pyiqa; pyiqa.create_metric('{name}')" """.strip()
        return f"its weights are not at {', '.join(missing)}; fetch them once, if you accept their licences: {get}"
    if name == "clipiqa" and sha256(IQA[name].weights()) != CLIP_RN50:
        return f"{IQA[name].weights()} is not the file that pyiqa wants: delete it and fetch it anew"
    return None


@cache
def iqa_network(name: str, device: torch.device | str) -> nn.Module:
    """Returns a metric of pyiqa, which maps images (n, 3, H, W) in [0, 1] to scores (n, 1).

    Args:
        name: A key of IQA for which `iqa_absent` is None.
        device: Device of the network.

    Raises:
        ValueError: The file of its weights contains more than tensors; pyiqa itself would run code in it.
    """
    weights = IQA[name].weights()
    if name != "clipiqa":  # a TorchScript archive, whose checksum is known
        load_tensors(weights)
    return import_module("pyiqa").create_metric(name, device=device, **({"pretrained_model_path": str(weights)} if IQA[name].path else {}))


def iqa(name: str, video: Tensor) -> Tensor:
    """Returns a quality score of each frame; higher is better.

    MUSIQ (Ke et al., ICCV 2021), 0 to 100; CLIP-IQA (Wang et al., AAAI 2023), 0 to 1; MANIQA (Yang et al., CVPRW 2022), 0 to 1. MUSIQ
    and MANIQA are trained on KonIQ-10k.

    Args:
        name: A key of IQA for which `iqa_absent` is None.
        video: (1, 3, F, H, W) in [-1, 1].

    Returns:
        (F,).
    """
    network = iqa_network(name, video.device)
    frames = rearrange(video.clamp(-1, 1) + 1, "1 C F H W -> F C H W") / 2
    with torch.inference_mode():
        return torch.cat([network(frame[None]).flatten() for frame in frames]).cpu()


def load_tensors(path: Path) -> Any:
    """Returns the content of a .pth file. Raises ValueError that names it where that is more than tensors and plain values."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is not a file of weights alone ({error}): get it anew from its authors") from error


def dover_home() -> Path | None:
    """Returns the clone that the package dover is installed from, or None. PyPI's dover is another package."""
    spec = find_spec("dover")
    homes = [Path(folder).parent for folder in (spec.submodule_search_locations or [])] if spec else []
    return next((home for home in homes if (home / "dover" / "datasets").is_dir()), None)


def dover_absent() -> str | None:
    """Returns in a sentence what DOVER lacks on this machine, or None."""
    home = dover_home()
    if home is None:
        return "DOVER is not installed: git clone https://github.com/VQAssessment/DOVER, then python -m pip install -e DOVER"
    missing = [str(path) for path in (home / "dover.yml", home / "pretrained_weights" / "DOVER.pth") if not path.is_file()]
    return f"DOVER lacks {', '.join(missing)}: its README says where to get it" if missing else None


class DoverScores(NamedTuple):
    """DOVER's qualities of a video, 0 to 100; higher is better."""

    technical: float
    aesthetic: float
    overall: float


def fuse_dover(technical: float, aesthetic: float) -> DoverScores:
    """Returns DOVER's qualities of its network's two numbers, fused as in its evaluate_one_video.py.

    Each number is standardized by its mean and deviation over DOVER's training videos; the overall quality is their weighted sum. All three
    are mapped to 0 to 100 by the logistic function. The paper's columns are these three.
    """
    standardized = {
        name: (score - FUSION[name][0]) / FUSION[name][1] for name, score in {"technical": technical, "aesthetic": aesthetic}.items()
    }
    overall = sum(FUSION[name][2] * score for name, score in standardized.items())
    return DoverScores(*(100 / (1 + math.exp(-score)) for score in (standardized["technical"], standardized["aesthetic"], overall)))


def dover(video: Tensor, rate: Fraction) -> DoverScores:
    """Returns DOVER (Wu et al., ICCV 2023): technical, aesthetic and overall quality.

    Args:
        video: (1, 3, F, H, W) in [-1, 1].
        rate: Frames per second.

    Returns:
        Each 0 to 100. `dover_absent` must be None.
    """
    datasets = import_module("dover.datasets")
    home = dover_home()
    assert home is not None  # checked by dover_absent
    network, sample_types = dover_network(home, video.device)
    samplers = {}
    for name, options in sample_types.items():
        length, interval, clips, parts = (options.get(key, 1) for key in ("clip_len", "frame_interval", "num_clips", "t_frag"))
        samplers[name] = (
            datasets.UnifiedFrameSampler(length // parts, parts, interval, clips)
            if "t_frag" in options
            else datasets.UnifiedFrameSampler(length, clips, interval)
        )
    with written(video, rate) as path:
        views, _ = datasets.spatial_temporal_view_decomposition(str(path), sample_types, samplers)
    mean, deviation = (torch.tensor(values).view(3, 1, 1, 1) for values in IMAGENET)
    clips = {name: sample_types[name].get("num_clips", 1) for name in views}
    views = {
        name: rearrange((view - mean) / deviation, "C (clips F) H W -> clips C F H W", clips=clips[name]).to(video.device)
        for name, view in views.items()
    }
    with torch.inference_mode():
        scores = {name: score.mean().item() for name, score in zip(views, network(views), strict=True)}  # in the order of its views
    return fuse_dover(scores["technical"], scores["aesthetic"])


@cache
def dover_network(home: Path, device: torch.device) -> tuple[nn.Module, dict]:
    """Returns DOVER with its weights, and how it samples a video."""
    import yaml  # DOVER needs it too

    config = yaml.safe_load((home / "dover.yml").read_text(encoding="utf-8"))
    network = import_module("dover.models").DOVER(**config["model"]["args"])
    network.load_state_dict(load_tensors(home / "pretrained_weights" / "DOVER.pth"))
    return network.to(device).eval(), config["data"]["val-l1080p"]["args"]["sample_types"]


VBENCH = {  # dimensions that need no prompt, and the files that each loads, of vbench's cache
    "subject_consistency": ("dino_model/facebookresearch_dino_main", "dino_model/dino_vitbase16_pretrain.pth"),
    "background_consistency": ("clip_model/ViT-B-32.pt",),
    "temporal_flickering": (),
    "motion_smoothness": ("amt_model/amt-s.pth",),
    "aesthetic_quality": ("clip_model/ViT-L-14.pt", "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth"),
    "imaging_quality": ("pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",),
}


def vbench_absent(dimension: str) -> str | None:
    """Returns in a sentence what a dimension of VBench lacks on this machine, or None."""
    if find_spec("vbench") is None:
        return "vbench is not installed: python -m pip install vbench (it pins old packages: an environment of its own is better)"
    try:
        cached = Path(import_module("vbench.utils").CACHE_DIR)
    except ImportError as error:
        return f"vbench cannot be imported ({error}): install it anew"
    files = [cached / name for name in VBENCH[dimension]]
    if dimension == "subject_consistency":
        files.append(hub() / "checkpoints" / "dino_vitbase16_pretrain.pth")  # which DINO's own loader takes, path or not
    if missing := [str(path) for path in files if not path.exists()]:
        return f"its weights are not at {', '.join(missing)}; vbench evaluate --dimension {dimension} fetches them"
    return None


def vbench(dimension: str, video: Tensor, rate: Fraction) -> float:
    """Returns a dimension of VBench (Huang et al., CVPR 2024) for one video without a prompt; higher is better.

    Args:
        dimension: A key of VBENCH for which `vbench_absent` is None.
        video: (1, 3, F, H, W) in [-1, 1].
        rate: Frames per second.

    Returns:
        0 to 1.
    """
    with written(video, rate) as path:
        meter = import_module("vbench").VBench(video.device, None, str(path.parent))
        meter.evaluate(str(path), "video", dimension_list=[dimension], local=True, mode="custom_input")
        mean, _ = json.loads((path.parent / "video_eval_results.json").read_text())[dimension]
    return float(mean)


@contextmanager
def written(video: Tensor, rate: Fraction) -> Iterator[Path]:
    """Yields the path of a lossless file of a video, for packages that read files themselves."""
    with TemporaryDirectory(prefix="simplegvr_") as folder:
        path = Path(folder) / "video.mp4"
        write_video(path, to_images(video.cpu()), rate, lossless=True)
        yield path
