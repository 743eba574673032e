"""Learned metrics of other people's packages, which run only where the package and its weights are on the machine already.

Nothing is downloaded: what a package would fetch is looked for before the package is asked, and where it is missing a sentence
says what, under which licence, and how to get it. F frames; video (1, 3, F, H, W) in [-1, 1], values outside are clamped.

MUSIQ, CLIP-IQA and MANIQA come from pyiqa; VBench's temporal flickering, and all that leads there, was run with vbench 0.1.5. DOVER
and VBench's other dimensions are called as their own scripts call them and were not run by us: there were no weights.
"""

import json
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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
    """Returns where the transformer lies that pyiqa starts MANIQA from."""
    from huggingface_hub import try_to_load_from_cache
    from timm.models import get_pretrained_cfg

    found = try_to_load_from_cache(get_pretrained_cfg("vit_base_patch8_224").hf_hub_id, "model.safetensors")
    return Path(found) if isinstance(found, str) else Path("the cache of huggingface_hub: vit_base_patch8_224")


@dataclass(frozen=True)
class Iqa:
    """A metric of pyiqa. weights: returns the file that it loads. path: whether it takes the file's path. others: further files."""

    weights: Callable[[], Path]
    path: bool = True
    others: tuple[Callable[[], Path], ...] = ()


IQA = {
    "musiq": Iqa(lambda: hub() / "pyiqa" / "musiq_koniq_ckpt-e95806b9.pth"),
    "clipiqa": Iqa(lambda: hub() / "clip" / "RN50.pt", path=False),
    "maniqa": Iqa(lambda: hub() / "pyiqa" / "ckpt_koniq10k.pt", path=False, others=(vit,)),
}


def iqa_absent(name: str) -> str | None:
    """Returns what a metric of pyiqa wants that is not here, as a sentence, or None."""
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
    """Returns a metric of pyiqa, images (n, 3, H, W) in [0, 1] -> scores (n, 1). Call it only where iqa_absent is None.

    Raises ValueError when its weights hold more than tensors: pyiqa itself would run what a crafted file says.
    """
    from pyiqa import create_metric

    weights = IQA[name].weights()
    if name != "clipiqa":  # a TorchScript archive, whose checksum is known
        load_tensors(weights)
    return create_metric(name, device=device, **({"pretrained_model_path": str(weights)} if IQA[name].path else {}))


def iqa(name: str, video: Tensor) -> Tensor:
    """Returns the score of each frame, (F,), higher is better: MUSIQ (Ke et al., ICCV 2021; 0 to 100), CLIP-IQA (Wang et al.,
    AAAI 2023; 0 to 1) or MANIQA (Yang et al., CVPRW 2022; 0 to 1), the first and the last trained on KonIQ-10k."""
    network = iqa_network(name, video.device)
    frames = rearrange(video.clamp(-1, 1) + 1, "1 C F H W -> F C H W") / 2
    with torch.inference_mode():
        return torch.cat([network(frame[None]).flatten() for frame in frames]).cpu()


def load_tensors(path: Path) -> Any:
    """Returns what a .pth file holds. Raises ValueError that names it when that is more than tensors and plain values."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is not a file of weights alone ({error}): get it anew from its authors") from error


def dover_home() -> Path | None:
    """Returns the clone that the package dover is installed from, None when there is none. PyPI's dover is something else."""
    spec = find_spec("dover")
    homes = [Path(folder).parent for folder in (spec.submodule_search_locations or [])] if spec else []
    return next((home for home in homes if (home / "dover" / "datasets").is_dir()), None)


def dover_absent() -> str | None:
    """Returns what DOVER wants that is not here, as a sentence, or None."""
    home = dover_home()
    if home is None:
        return "DOVER is not installed: git clone https://github.com/VQAssessment/DOVER, then python -m pip install -e DOVER"
    missing = [str(path) for path in (home / "dover.yml", home / "pretrained_weights" / "DOVER.pth") if not path.is_file()]
    return f"DOVER lacks {', '.join(missing)}: its README says where to get it" if missing else None


def dover(video: Tensor, rate: Fraction) -> float:
    """Returns DOVER (Wu et al., ICCV 2023), technical and aesthetic quality fused as its evaluate_one_video.py does, times 100; higher
    is better. Call it only where dover_absent is None."""
    from dover.datasets import UnifiedFrameSampler, spatial_temporal_view_decomposition

    network, sample_types = dover_network(dover_home(), video.device)
    samplers = {}
    for name, options in sample_types.items():
        length, interval, clips, parts = (options.get(key, 1) for key in ("clip_len", "frame_interval", "num_clips", "t_frag"))
        samplers[name] = (
            UnifiedFrameSampler(length // parts, parts, interval, clips)
            if "t_frag" in options
            else UnifiedFrameSampler(length, clips, interval)
        )
    with written(video, rate) as path:
        views, _ = spatial_temporal_view_decomposition(str(path), sample_types, samplers)
    mean, deviation = (torch.tensor(values).view(3, 1, 1, 1) for values in IMAGENET)
    clips = {name: sample_types[name].get("num_clips", 1) for name in views}
    views = {
        name: rearrange((view - mean) / deviation, "C (clips F) H W -> clips C F H W", clips=clips[name]).to(video.device)
        for name, view in views.items()
    }
    with torch.inference_mode():
        scores = {name: score.mean().item() for name, score in zip(views, network(views), strict=True)}  # in the order of its views
    fused = sum((scores[name] - mean) / deviation * weight for name, (mean, deviation, weight) in FUSION.items())
    return 100 * torch.sigmoid(torch.tensor(fused)).item()


@cache
def dover_network(home: Path, device: torch.device) -> tuple[nn.Module, dict]:
    """Returns DOVER with its weights, and how it samples a video."""
    import yaml  # DOVER needs it too
    from dover.models import DOVER

    config = yaml.safe_load((home / "dover.yml").read_text(encoding="utf-8"))
    network = DOVER(**config["model"]["args"])
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
    """Returns what a dimension of VBench wants that is not here, as a sentence, or None."""
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
    """Returns a dimension of VBench (Huang et al., CVPR 2024) for one video without a prompt, 0 to 1, higher is better. Call it only
    where vbench_absent is None."""
    from vbench import VBench

    with written(video, rate) as path:
        meter = VBench(video.device, None, str(path.parent))
        meter.evaluate(str(path), "video", dimension_list=[dimension], local=True, mode="custom_input")
        mean, _ = json.loads((path.parent / "video_eval_results.json").read_text())[dimension]
    return float(mean)


@contextmanager
def written(video: Tensor, rate: Fraction):
    """Yields the path of a lossless file of video, for packages that read files themselves."""
    with TemporaryDirectory(prefix="simplegvr_") as folder:
        path = Path(folder) / "video.mp4"
        write_video(path, to_images(video.cpu()), rate, lossless=True)
        yield path
