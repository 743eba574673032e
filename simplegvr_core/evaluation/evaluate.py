"""`simplegvr evaluate --clips DIR --methods gvr latent_bilinear bicubic --scale 3 --out DIR`; finished videos of other systems are
scored beside them with `--videos NAME=DIR`.

Suites. pairs: originals, whose low resolution is made by area averaging; or originals DIR/hr/NAME.mp4 and their low resolution
DIR/lr/NAME.mp4. aigc: low-resolution videos or latents of a text-to-video model (ComfyUI's Save Latent, or safetensors with `samples`),
which have no original: only metrics that need none.

Resumes when rerun: each finished clip has its measured.json. At the end out/results.json is written::

    {
    "suite": "pairs" | "aigc",
    "run": {"command", "date", "commit", "device", "torch", "scale", "size", "num_frames", "height", "seed", "sampling": {...}, "segment",
            "tile", "bf16", "text", "files": {name: sha256 of the weights}},
    "reconstructions": [METHOD],   those that are given the original
    "metrics": {name: {"label", "unit", "better": "higher" | "lower", "decimals", "meaning"}},   those measured on some clip
    "skipped": {metric: sentence why it was not measured, or not on every clip},
    "clips": {clip: {method: {metric: float | null}}},
    "curves": {clip: {method: {metric: [one number per frame, null where a frame has none]}}},   metrics of single frames
    "mean": {method: {metric: float | null}},   over the clips that have one
    "original": {clip: {metric: float | null}},   of the original itself, metrics that need no other; {} for aigc
    "files": {clip: {"original", "source", METHOD, "picture": path relative to out}},   no "original" for aigc
    "prompts": {clip: its prompt, where manifest.json beside the clips' folder has one}
    }

and from it report.html and results.md, see report.py.
"""

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from ..checks import check_folder
from ..files import GVR_TINY, GVR_TINY_UPSAMPLER, GVR_TINY_VAE, atomic_write, read_result, sha256, write_text
from ..latent_space import SPATIAL_FACTOR
from ..networks.checkpoint import parse_config, read_config
from ..networks.dit import load_dit
from ..networks.layers import default_device
from ..networks.lora_merge import add_lora_file
from ..networks.upsampler import load_upsampler
from ..networks.wan_vae import load_vae
from ..planning.preflight import video_bytes
from ..sampling.context import Contexts
from ..sampling.solvers import Solver
from ..sampling.super_resolve import SamplingConfig
from ..tiling import WHOLE, aligned_tiling
from ..video.frames import resize_frames, to_images
from ..video.pictures import side_by_side
from ..video.write import Encoding, write_video
from . import baselines, metrics, report
from .clips import Reading, Suite, find_clips, read_clip
from .finished import check_lengths, find_finished, read_finished
from .methods import METHODS, Models
from .metrics import METRICS, finite
from .prompts import read_prompts
from .result import EvaluationClip, Result, required
from .seams import VIDEO, pixel_borders
from .versions import versions

WEIGHTS = ("vae", "upsampler", "model", "lora")
CHANGED = ("steps", "cfg", "solver", "strength", "patch_filter")  # options in place of the checkpoint's sampling
RUN_OPTIONS = ("device", "scale", "size", "num_frames", "height", "seed", "segment", "tile", "bf16")


@dataclass(frozen=True)
class Comparison:
    """What every clip is measured with.

    Attributes:
        methods: Names of the methods.
        models: Their networks.
        run: The "run" of results.json.
        contexts: Text features of the clips' prompts; None is the null prompt for all.
        finished: Files of the clip that other systems made, by their names.
    """

    methods: list[str]
    models: Models
    run: dict
    contexts: Contexts | None
    finished: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluate:
    """Compares methods on a folder of clips: measures quality and time, writes videos, pictures, tables and a report."""

    clips: Path
    out: Path
    methods: tuple[str, ...] = ("gvr", "upsampler", "latent_bilinear", "bicubic")
    """Of: gvr, upsampler, latent_bilinear, decoded_bilinear, decoded_bicubic, encoded_bicubic, bilinear, bicubic; vae,
    vae_linear (the original encoded and decoded); basicvsr, animesr, span, animevideo (fetch them: `simplegvr baselines`)."""
    scale: float = 3
    """Ratio of the sizes, also fractional."""
    size: str | None = None
    """WIDTHxHEIGHT of the results in pixels, such as 1920x1080. By default --scale times the low resolution's."""
    videos: tuple[str, ...] = ()
    """NAME=DIR: finished videos of another system, DIR/CLIP.mp4 for each clip, scored beside the methods as NAME."""
    num_frames: int = 17
    """Number of frames of each clip, from its start."""
    height: int = 360
    """Taller originals are downscaled to this height by area averaging, unless they come with their low resolution."""
    steps: int | None = None
    """Sampling steps of gvr; by default those of its checkpoint."""
    cfg: float | None = None
    """Guidance scale of gvr; by default that of its checkpoint."""
    solver: Solver | None = None
    """Solver of gvr; by default that of its checkpoint."""
    strength: float | None = None
    """Factor of what gvr adds to the upsampled latent; by default that of its checkpoint."""
    patch_filter: int | None = None
    """Width in patches of gvr's filter of the mesh, 0 for none; by default that of its checkpoint."""
    contexts: Path | None = None
    """Folder of the clips' text features, as `simplegvr contexts` writes it, or with a file CLIP.safetensors for each clip, tensor
    "context" (S, text_dim). Without it gvr has the null prompt."""
    bf16: bool = default_device() != "cpu"
    """gvr computes in bfloat16, with the kernels of training and of ComfyUI. Without it in float32, which has no Triton kernel."""
    seed: int = 0
    device: str = default_device()
    """Device of the networks: cpu, cuda, cuda:1 and so on."""
    vae: Path = GVR_TINY_VAE
    """TinyVAE, or the stock wan_2.1_vae.safetensors (needs diffusers)."""
    upsampler: Path = GVR_TINY_UPSAMPLER
    model: Path = GVR_TINY
    lora: Path | None = None
    """Few-step LoRA of `simplegvr distil` on --model, whose sampling takes the place of the checkpoint's."""
    suite: Suite = "pairs"
    """pairs: originals. aigc: low-resolution videos or latents of a text-to-video model."""
    metrics: tuple[str, ...] = ("all",)
    """Names of docs/metrics.md; all is every metric that the suite and this machine allow."""
    segment: int | None = None
    """Latent frames that gvr refines at a time; by default all. Then seams are measured."""
    tile: tuple[int, int] | None = None
    """Width and height in pixels that gvr refines at a time; by default all. Then seams are measured."""

    def run(self) -> dict:
        """Returns the content of results.json after writing it, results.md and report.html.

        Raises:
            ValueError: An option or a clip cannot be used.
            FileNotFoundError: A baseline was not fetched.
        """
        methods = self.check()
        found = find_clips(self.clips, self.suite)
        finished = find_finished(self.videos, found)
        check_lengths(found, finished, self.num_frames)
        models = self.load_models()
        borders = None if models.tiling == WHOLE else pixel_borders(models.tiling)
        if borders:
            borders.check(VIDEO)
        self.warm_up(methods, models)
        contexts = Contexts(self.contexts) if self.contexts else None
        comparison = Comparison(methods, models, self.describe(models.sampling), contexts)
        reading = Reading(self.suite, self.scale, self.num_frames, self.height, self.result_size, borders)
        text_dim = models.dit.config.text_dim
        prompts = {name: contexts.read(name, text_dim) for name in found} if contexts else {}
        measured = {}
        for name, files in tqdm(found.items(), unit="clip"):
            models = replace(models, context=prompts[name][None].to(self.device) if prompts else None)
            clip = read_clip(files, reading, models.vae.decode)
            measured[name] = self.measured(name, clip, replace(comparison, models=models, finished=finished[name]))
        reconstructions = [method for method in methods if METHODS[method].sees == "original"]
        results = {"suite": self.suite, "run": comparison.run, "reconstructions": reconstructions}
        results |= gather([*methods, *(name.partition("=")[0] for name in self.videos)], measured)
        results["prompts"] = read_prompts(self.clips, list(found))
        write_text(self.out / "results.json", json.dumps(results, indent=1))
        report.write(self.out)
        return results

    def check(self) -> list[str]:
        """Returns the names of the methods. Raises ValueError or OSError for options that would fail later."""
        methods = list(self.methods)
        for option, names, known in (("methods", methods, METHODS), ("metrics", self.metric_names(), METRICS)):
            if unknown := set(names) - known.keys():
                raise ValueError(f"--{option} has unknown {', '.join(sorted(unknown))}; known are {', '.join(known)}")
        if clash := {name.partition("=")[0] for name in self.videos} & (METHODS.keys() | {"source", "original", "picture"}):
            raise ValueError(f"--videos has {', '.join(sorted(clash))}, names that --methods or files have: choose others")
        if self.result_size and min(self.result_size) < metrics.SMALLEST:
            raise ValueError(f"--size is {self.size}, wanted at least {metrics.SMALLEST} pixels a side")
        for name, least in (("scale", 1), ("num_frames", 2), ("height", metrics.SMALLEST), ("steps", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"--{name.replace('_', '-')} is {value}, wanted at least {least}")
        if self.out.resolve().is_relative_to(self.clips.resolve()):
            raise ValueError(f"--out {self.out} is inside --clips {self.clips}: its videos would be taken for clips")
        if self.suite == "aigc" and (blind := [method for method in methods if METHODS[method].sees == "original"]):
            raise ValueError(f"--methods has {', '.join(blind)}, which need an original, and clips of --suite aigc have none")
        for method in set(methods) & baselines.BASELINES.keys():
            baselines.find(method)
        check_folder(self.out)
        return methods

    @property
    def result_size(self) -> tuple[int, int] | None:
        """Height and width of --size in pixels. Raises ValueError when it is no size."""
        if self.size is None:
            return None
        if not (found := re.fullmatch(r"(\d+)x(\d+)", self.size)):
            raise ValueError(f"--size is {self.size}, wanted WIDTHxHEIGHT in pixels, such as 1920x1080")
        return int(found[2]), int(found[1])

    def metric_names(self) -> list[str]:
        return list(METRICS) if self.metrics == ("all",) else list(self.metrics)

    def load_models(self) -> Models:
        dit, config = load_dit(self.model)
        if self.lora:
            add_lora_file(dit, self.lora)
            config = read_config(self.lora, "lora")
        sampling = parse_config(SamplingConfig, config, "sampling", self.lora or self.model)
        width, height = (-(-side // SPATIAL_FACTOR) for side in self.tile) if self.tile else (None, None)
        whole = self.segment is None and self.tile is None
        return Models(
            load_vae(self.vae).to(self.device),
            load_upsampler(self.upsampler).to(self.device),
            dit.to(self.device),
            replace(sampling, **{name: value for name in CHANGED if (value := getattr(self, name)) is not None}),
            self.seed,
            WHOLE if whole else aligned_tiling((self.segment, height, width), dit.attention.alignment),
            bf16=self.bf16,
        )

    def warm_up(self, methods: list[str], models: Models) -> None:
        """Runs each method on a small clip, so that no measured time includes loading its network."""
        side = round(40 * self.scale)
        blank = torch.zeros(1, 3, 5, side, side)
        clip = EvaluationClip((side, side), blank, blank[..., :40, :40])
        for method in methods:
            self.apply(method, clip, models)

    def describe(self, sampling: SamplingConfig) -> dict:
        """Returns the "run" of results.json."""
        weights = {name: path for name in WEIGHTS if (path := getattr(self, name)) is not None}
        return {
            "command": self.command(),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **{name: version for name, version in versions().items() if name in ("commit", "torch")},
            **{name: getattr(self, name) for name in RUN_OPTIONS},
            "sampling": asdict(sampling),
            "files": {path.name: sha256(path) for path in weights.values()},
            "text": "features of each clip's prompt" if self.contexts else "the null prompt",
        }

    def command(self) -> str:
        """Returns the command line, with CLIPS and DIR for the folders."""
        given = {field.name: getattr(self, field.name) for field in fields(self)[2:] if getattr(self, field.name) != field.default}
        words = {name: " ".join(map(str, value)) if isinstance(value, tuple) else value for name, value in given.items()}
        options = "".join(f" --{name.replace('_', '-')} {getattr(value, 'name', value)}" for name, value in words.items())
        return f"python3 scripts/run.py evaluate --clips CLIPS --out DIR{options}"

    def measured(self, name: str, clip: EvaluationClip, comparison: Comparison) -> dict:
        """Returns the measurement of a clip: the stored one where the same was measured before by this version of the code."""
        path = self.out / name / "measured.json"
        skipped = {metric: why for metric in self.metric_names() if (why := METRICS[metric].obstacle(clip))}
        chosen = [metric for metric in self.metric_names() if metric not in skipped]
        settings = {key: value for key, value in comparison.run.items() if key not in ("command", "date", "torch")}
        clip_files = {file.name: sha256(file) for file in clip.files}
        clip_files |= {f"{Path(name).name}.safetensors": comparison.contexts.digest(name)} if comparison.contexts else {}
        clip_files |= {each: sha256(file) for each, file in comparison.finished.items()}
        task = json.loads(
            json.dumps({**settings, "clip": clip_files, "suite": self.suite, "methods": comparison.methods, "metrics": chosen})
        )
        if (before := read_result(path, tqdm.write)).get("task") == task:
            return {**before, "skipped": skipped}
        self.check_room(name, clip, len(comparison.methods))
        found = {"task": task, "skipped": skipped, **self.measure(name, clip, chosen, comparison)}
        write_text(path, json.dumps(found, indent=1))
        return found

    def check_room(self, name: str, clip: EvaluationClip, methods: int) -> None:
        """Raises OSError unless the videos that methods make of a clip fit --out."""
        encoding = Encoding(clip.size[1], clip.size[0], clip.rate)
        nbytes = methods * video_bytes(encoding, required(clip.source).shape[2]) / 2  # no parts are joined
        check_folder(self.out, nbytes, f"the videos of {name}")

    def measure(self, name: str, clip: EvaluationClip, chosen: list[str], comparison: Comparison) -> dict:
        """Returns the clip's "methods", "curves", "original" and "files", after writing its videos and its picture."""
        images = {"source": to_images(required(clip.source).cpu())}
        values, curves, original = {}, {}, {}
        if clip.original is not None:
            images["original"] = to_images(clip.original.cpu())
            alone = [metric for metric in chosen if "original" not in METRICS[metric].needs and metric != "seconds_per_frame"]
            original, _ = scores(alone, Result(clip.original, clip))
        for method in comparison.methods:
            video, seconds = self.apply(method, clip, comparison.models)
            values[method], curves[method] = scores(chosen, Result(video, clip, seconds))
            images[method] = to_images(video.cpu())
        for each, path in comparison.finished.items():
            video = read_finished(path, clip)
            values[each], curves[each] = scores(chosen, Result(video.to(self.device), clip))
            images[each] = to_images(video)
        files = {}
        for each, frames in images.items():
            write_video(self.out / name / f"{each}.mp4", frames, clip.rate)
            files[each] = f"{name}/{each}.mp4"
        self.draw(name, images, values, clip)
        return {"methods": values, "curves": curves, "original": original, "files": {**files, "picture": f"{name}/side_by_side.png"}}

    def apply(self, method: str, clip: EvaluationClip, models: Models) -> tuple[Tensor, float]:
        """Returns the video that a method makes of a clip, with the size and frames of the clip, and the seconds that it took."""
        run, sees = METHODS[method].run, METHODS[method].sees
        shown = required(clip.original if sees == "original" else clip.source)
        seen = (shown if clip.z_lr is None or sees != "latent" else clip.z_lr).to(self.device)
        start = time.perf_counter()
        with torch.inference_mode():
            if sees == "latent" and clip.z_lr is None:
                seen = models.vae.encode(seen)
            whole = tuple(side * (SPATIAL_FACTOR if sees == "latent" else 1) for side in seen.shape[3:])
            height, width = (round(side * want / have) for side, want, have in zip(whole, clip.size, shown.shape[3:], strict=True))
            video = run(seen, (height, width), models)
        video.sum().item()  # waits for the device
        seconds = time.perf_counter() - start
        height, width = clip.size
        return video[:, :, : shown.shape[2], :height, :width].clamp(-1, 1), seconds

    def draw(self, name: str, images: dict[str, Tensor], values: dict[str, dict], clip: EvaluationClip) -> None:
        """Writes the picture of the clip's middle frame: the original, or the source enlarged, and the methods beside it."""
        title = next((metric for metric in ("st_lpips", "niqe") if values and metric in next(iter(values.values()))), None)
        first = "original" if "original" in images else "source"
        enlarged = images | {"source": to_images(resize_frames(required(clip.source).cpu(), clip.size, "nearest-exact"))}
        middle = len(images["source"]) // 2
        labels = {method: f"{method}  {METRICS[title].label} {value[title]:.3f}" if title else method for method, value in values.items()}
        tiles = {labels.get(each, each): enlarged[each][middle] for each in (first, *values)}
        with atomic_write(self.out / name / "side_by_side.png") as partial:
            side_by_side(tiles).save(partial)


def scores(names: list[str], result: Result) -> tuple[dict, dict]:
    """Returns the value of each metric, and the curve of each metric that has one; None where there is no number."""
    measured = {name: metrics.measure(name, result) for name in names}
    curves = {name: [finite(number) for number in score.curve] for name, score in measured.items() if score.curve}
    return {name: finite(score.value) for name, score in measured.items()}, curves


def mean_of(values: Iterable[float | None]) -> float | None:
    """Returns the mean of the values that are numbers, None where there is none."""
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


def gather(methods: list[str], measured: dict[str, dict]) -> dict:
    """Returns the parts of results.json that the measurements of all clips make up."""
    names = [name for name in METRICS if any(name in clip["task"]["metrics"] for clip in measured.values())]
    clips = {
        name: {method: {metric: clip["methods"][method].get(metric) for metric in names} for method in methods}
        for name, clip in measured.items()
    }

    def mean(method: str, metric: str) -> float | None:
        return mean_of(clip[method][metric] for clip in clips.values())

    def described(metric: str) -> dict:
        return {key: getattr(METRICS[metric], key) for key in ("label", "unit", "better", "decimals", "meaning")}

    return {
        "metrics": {name: described(name) for name in names},
        "skipped": {
            metric: f"{why} ({clip})" if metric in names else why
            for clip, each in measured.items()
            for metric, why in each["skipped"].items()
        },
        "clips": clips,
        "curves": {name: clip["curves"] for name, clip in measured.items()},
        "mean": {method: {metric: mean(method, metric) for metric in names} for method in methods},
        "original": {name: clip["original"] for name, clip in measured.items()},
        "files": {name: clip["files"] for name, clip in measured.items()},
    }


def main(arguments: Sequence[str]) -> dict:
    run = tyro.cli(Evaluate, prog="simplegvr evaluate", args=arguments)
    results = run.run()
    print((run.out / "results.md").read_text(encoding="utf-8"))
    return results
