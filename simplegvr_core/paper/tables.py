"""The paper's tables, measured with the weights given. Each is a function (bench, folder) -> Here.

video (1, 3, F, H, W) in [-1, 1]
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean

import torch

from ..evaluation.evaluate import finite, mean_of
from ..evaluation.metrics import METRICS, measure
from ..evaluation.result import EvaluationClip, Result
from ..latent_space import token_grid
from ..planning import flops
from ..video.frames import to_video
from ..video.read import read_video
from .bench import Bench, timed
from .page import PAPER, Here

VBENCH = ("background_consistency", "subject_consistency", "aesthetic_quality", "imaging_quality", "motion_smoothness")
# Metric -> the paper's column, and what its value is multiplied with to be on the paper's scale.
PAPER_COLUMNS = {
    "musiq": ("MUSIQ", 1),
    "clipiqa": ("CLIPIQA", 1),
    "maniqa": ("MANIQA", 1),
    "dover_technical": ("DOVER technical", 1),
    "dover_aesthetic": ("DOVER aesthetic", 1),
    "dover": ("DOVER overall", 1),
    **{f"vbench_{name}": (f"VBench {name.replace('_', ' ')}", 100) for name in VBENCH},
}
QUALITIES = PAPER["items"]["table-1"]["columns"]  # the paper's metrics, of whatever table
ALONE = ("niqe", "warping_error", *PAPER_COLUMNS)  # metrics of a video that has neither an original nor a source


def unmeasured(column: str) -> str:
    """Returns why a column of the paper's qualities has no value of ours."""
    for name, (theirs, _) in PAPER_COLUMNS.items():
        if theirs == column:
            return METRICS[name].absent() or "only tables 1 and 3 measure it"
    return "it is the mean of the five before it"


def table_1(bench: Bench, folder: Path) -> Here:
    """The methods that run on this machine, on low-resolution clips without an original."""
    results = bench.evaluation()
    rows = {method: averaged(dict(map(shown, values.items()))) for method, values in results["mean"].items()}
    clips = "--clips" if bench.options.clips else "the bundled ones, made small, with the flow-based degradation"
    return Here(
        f"{len(results['clips'])} clips ({clips}), the first {bench.options.num_frames} frames of each, made {bench.options.scale} times "
        f"as large on {bench.options.device}. gvr is {bench.options.model.name}, {bench.sampling.steps} steps from noise level "
        f"{bench.sampling.denoise:g}; upsampler its latent upsampler alone; latent_bilinear a bilinear resize of the latent. bicubic, "
        "basicvsr and span see pixels and never the autoencoder.",
        rows,
        missing=bench.absent_baselines()
        | {"the paper's other methods": "their weights are not among those that `simplegvr baselines` can fetch"},
    )


def table_2(bench: Bench, folder: Path) -> Here:
    """Attention operators: operations at the paper's size, time and result at ours."""
    z_lr = bench.vae.encode(bench.first(bench.inputs))
    height, width = bench.scaled_size(z_lr)
    own, counted = bench.dit.attention, flops.table_2()
    operators = {kind: own if kind == own.kind else replace(paper, unit=own.unit) for kind, paper in flops.PAPER_ATTENTION.items()}
    grid = token_grid((z_lr.shape[2], height, width))
    z = torch.randn(1, bench.dit.config.in_dim, z_lr.shape[2], height, width, generator=torch.Generator().manual_seed(bench.options.seed))
    inputs = z.to(z_lr), torch.tensor([500.0]).to(z_lr), torch.zeros(1, 1, bench.dit.config.text_dim).to(z_lr)
    as_trained, rows = bench.decoded(bench.super_resolve(z_lr)), {}
    try:
        for kind, bench.dit.attention in operators.items():
            result = bench.decoded(bench.super_resolve(z_lr))
            _, seconds = min((timed(partial(bench.dit, *inputs)) for _ in range(3)), key=lambda run: run[1])
            rows[kind.replace("_", " ")] = {
                "GFLOPS": counted[kind]["with_rest_gmac"],
                "pairs of dense attention, %": 100 * flops.share_of_dense(bench.dit.attention, grid),
                "seconds a step": seconds,
                "PSNR to the result as trained, dB": bench.likeness(result, as_trained),
            }
    finally:
        bench.dit.attention = own
    return Here(
        "GFLOPS: our count from the configurations, at the size that the paper seems to have used, with one constant read off its first "
        f"row (`benchmark table-2`). The rest: the first clip, {' x '.join(map(str, grid))} tokens, on {bench.options.device}, by weights "
        f"trained with {own.kind.replace('_', ' ')} attention, whose operator is exchanged without training; the paper trains each.",
        rows,
    )


def table_3(bench: Bench, folder: Path) -> Here:
    """Text to video, end to end against cascaded."""
    videos = bench.cascade()["videos"]
    seconds = {
        "end to end": mean(row["seconds"]["text to video, end to end"] for row in videos.values()),
        "cascaded": mean(row["seconds"]["text to video, low"] + row["seconds"]["SimpleGVR"] for row in videos.values()),
    }
    rows = {}
    for title, took in seconds.items():
        files = [bench.cascade_folder / name / f"{title.replace(' ', '_')}.mp4" for name in videos]
        values = [alone(to_video(read_video(file)[0])) for file in files]
        rows[title] = {"DiT seconds": took} | averaged(dict(shown((name, mean_of(each[name] for each in values))) for name in values[0]))
    height, width = (side * bench.options.scale for side in bench.options.t2v_size)
    return Here(
        f"{len(videos)} videos of {bench.options.num_frames} frames, {width} x {height}, sampled by {bench.options.t2v.name} in "
        f"{bench.options.t2v_sampling.steps} steps from the same prompt and seed both ways, on {bench.options.device}. The warping error "
        f"is along the video's own motion.{bench.toy_t2v}",
        rows,
    )


TABLES = {"table-1": table_1, "table-2": table_2, "table-3": table_3}


def alone(video: torch.Tensor) -> dict[str, float | None]:
    """Returns the metrics of a video that is its own guide, those that this machine has; None where a video has no value."""
    clip = EvaluationClip((video.shape[3], video.shape[4]), original=video)
    names = [name for name in ALONE if METRICS[name].obstacle(clip) is None]
    return {name: finite(measure(name, Result(video, clip)).value) for name in names}


def shown(named: tuple[str, float | None]) -> tuple[str, float | None]:
    """Returns heading and value of a metric's name and value, under the paper's name and on its scale where the paper has it."""
    name, value = named
    if name in PAPER_COLUMNS:
        title, factor = PAPER_COLUMNS[name]
        return title, None if value is None else factor * value
    metric = METRICS[name]
    return f"{metric.label}, {metric.unit}" if metric.unit else metric.label, value


def averaged(row: dict[str, float | None]) -> dict[str, float | None]:
    """Returns the row with the mean of VBench's five dimensions, if all of them are there."""
    found = [value for name in VBENCH if (value := row.get(PAPER_COLUMNS[f"vbench_{name}"][0])) is not None]
    return row if len(found) < len(VBENCH) else row | {"VBench average": mean(found)}
