"""The paper's figures, made with the weights given. Each is a function (bench, folder) -> Here that writes its pictures to folder.

F frames, H, W pixels; images uint8 (F, H, W, 3); video (1, 3, F, H, W) in [-1, 1]
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..degradations.flow_based import FlowBasedConfig, degrade_flow_based
from ..degradations.model_guided import ModelGuidedConfig, degrade_model_guided
from ..degradations.motion import estimate_motion, optical_flow_picture
from ..latent_space import SPATIAL_FACTOR
from ..training.measure_curve import measure_curve, write_curve
from ..video.frames import resize_frames, to_images, to_video
from ..video.pictures import busiest, most_detailed
from ..video.read import read_video
from .bench import Bench, timed
from .page import Here
from .pictures import draw_units, in_rows, part, picture_grid

ALPHAS = (0.1, 0.3, 0.4, 0.6, 0.9)
NOISE_AUGMENTATIONS = (0.0, 0.2, 0.3, 0.5, 0.6, 0.8)  # the test values in figure 7, of its three training ranges
CURVE_STEPS = 50
SHOWN = 3  # clips in a picture
PAPER_FRAMES = 20  # latent, of 77
SHARPNESS = "Sharpness: mean squared difference of neighbouring pixels, x 1000."


def figure_1(bench: Bench, folder: Path) -> Here:
    """Text to video: low resolution, end to end, cascaded."""
    rows = []
    for name in bench.cascade()["videos"]:
        files = {"low": "low", "end to end": "end_to_end", "cascaded": "cascaded"}
        videos = {title: read_video(bench.cascade_folder / name / f"{file}.mp4")[0] for title, file in files.items()}
        rows.append({f"{title}, {images.shape[2]} x {images.shape[1]}": images[len(images) // 2] for title, images in videos.items()})
    picture_grid(folder / "cascade.jpg", rows[:SHOWN])
    return Here(
        f"Sampled by {bench.options.t2v.name} from {' and '.join(bench.prompts)}, super-resolved by {bench.options.model.name}."
        f"{bench.toy_t2v}",
        pictures={"cascade.jpg": "The middle frame of each video, all enlarged to one size."},
        missing={"FlashVideo": "its weights are not among those that `simplegvr baselines` can fetch"},
    )


def figure_2(bench: Bench, folder: Path) -> Here:
    """The pipeline with its tensors and seconds, and the detour over pixels that it saves."""
    video = bench.first(bench.inputs)
    z_lr = bench.vae.encode(video)
    height, width = bench.scaled_size(z_lr)

    def detour() -> Tensor:
        return bench.vae.encode(resize_frames(bench.decoded(z_lr), (SPATIAL_FACTOR * height, SPATIAL_FACTOR * width), "bicubic"))

    def warmed(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
        timed(run)
        return timed(run)

    upsampled, upsampling = warmed(partial(bench.upsampler, z_lr, (height, width)))
    z, refining = warmed(partial(bench.super_resolve, z_lr))
    result, decoding = warmed(partial(bench.vae.decode, z))
    encoded, saved = warmed(detour)
    parts = {
        "low-resolution latent": (z_lr, None, None),
        "latent upsampler": (upsampled, bench.upsampler, upsampling),
        f"noise, condition, {bench.sampling.steps} steps of the DiT": (z, bench.dit, refining - upsampling),
        "decoding": (result, bench.vae, decoding),
        "not needed: decoding, bicubic, encoding": (encoded, None, saved),
    }
    rows = {}
    for name, (tensor, network, seconds) in parts.items():
        millions = sum(p.numel() for p in network.parameters()) / 1e6 if network else None
        rows[name] = {"tensor": " x ".join(map(str, tensor.shape)), "parameters, millions": millions, "seconds": seconds}
    return Here(
        f"The first clip, on {bench.options.device}. The last row is the detour over pixels that other cascades take instead of the "
        f"upsampler: here it takes {saved / upsampling:.2g} times as long as the upsampler. That depends on the autoencoder, here "
        f"{bench.options.vae.name}.",
        rows,
    )


def figure_3(bench: Bench, folder: Path) -> Here:
    """What moves in a video sampled from text, and what the flow-based degradation makes of a clip."""
    config, sampled, degraded, rows = FlowBasedConfig(), [], [], {}
    for name in bench.cascade()["videos"]:
        images, _ = read_video(bench.cascade_folder / name / "low.mp4")
        motion = estimate_motion(to_video(images), config.motion)
        frame = fastest(motion.moving)
        flow = optical_flow_picture(motion.optical_flow)[frame]
        sampled.append({f"sampled, {name}: frame before": images[frame - 1], "frame": images[frame], "its motion": flow})
        rows[f"sampled, {name}"] = blur_of_motion(to_video(images), motion.moving)
    for name, path in bench.sources.items():
        video = bench.read(path).cpu()
        motion = estimate_motion(video, config.motion)
        result = degrade_flow_based(video, motion, config, torch.Generator().manual_seed(bench.options.seed))
        frame, images = fastest(motion.moving), to_images(video)
        pictures = {f"{name}: frame before": images[frame - 1], "frame": images[frame]}
        degraded.append(pictures | {"flow-based degradation": to_images(result)[frame]})
        rows |= {name: blur_of_motion(video, motion.moving), f"{name}, degraded": blur_of_motion(result, motion.moving)}
    picture_grid(folder / "artefacts.jpg", sampled[:1] + degraded[:SHOWN])
    return Here(
        f"{SHARPNESS} The flow-based degradation imitates the paper's artefacts; compare a clip with itself degraded, since still parts "
        f"show other things than moving ones. Videos sampled by {bench.options.t2v.name}.{bench.toy_t2v}",
        rows,
        {"artefacts.jpg": "The frame in which most moves. Hue is the direction of motion; black stands still."},
    )


def figure_4(bench: Bench, folder: Path) -> Here:
    """The model-guided degradation over alpha."""
    video = bench.first(bench.sources)
    z_lr, middle = bench.vae.encode(video), video.shape[2] // 2
    source = bench.decoded(z_lr)
    pictures, likeness = {"source": to_images(source.cpu())[middle]}, {}
    for alpha in ALPHAS:
        generator = torch.Generator().manual_seed(bench.options.seed)
        z = degrade_model_guided(z_lr, bench.t2v_velocity(), ModelGuidedConfig(alpha=(alpha, alpha)), generator)
        resampled = bench.decoded(z)
        likeness[f"alpha {alpha}"] = bench.likeness(resampled, source)
        pictures[f"alpha {alpha}"] = to_images(resampled.cpu())[middle]
    picture_grid(folder / "alpha.jpg", in_rows(pictures))
    direction = "falls" if all(np.diff(list(likeness.values())) < 0) else "does not fall everywhere"
    return Here(
        f"The first clip, resampled by {bench.options.t2v.name}. Its likeness to the source {direction} with alpha; the paper says that it "
        "falls. How close it comes to the model's own output is not measured, only seen.",
        {alpha: {"PSNR to the source, dB": value} for alpha, value in likeness.items()},
        {"alpha.jpg": "The middle frame of the first clip, resampled."},
    )


def figure_5(bench: Bench, folder: Path) -> Here:
    """Where detail appears while the model samples."""
    latents = [bench.vae.encode(bench.read(path)) for path in bench.inputs.values()]
    sized = [(z_lr, bench.scaled_size(z_lr)) for z_lr in latents]
    sampling = replace(bench.sampling, steps=CURVE_STEPS)
    curve = measure_curve(bench.dit, bench.upsampler, sized, sampling=sampling, seed=bench.options.seed)
    write_curve(folder / "curve.json", curve)
    change, sigma = np.abs(np.diff(curve.energy, append=curve.energy[-1])), np.array(curve.sigma)
    regions = {"high noise, 2/3 to 1": (2 / 3, 1), "middle noise, 1/3 to 2/3": (1 / 3, 2 / 3), "low noise, 0 to 1/3": (0, 1 / 3)}
    rows = {}
    for name, (low, high) in regions.items():
        inside = (sigma > low) & (sigma <= high)
        rows[name] = {"share of the change, %": float(100 * change[inside].sum() / change.sum()), "steps": int(inside.sum())}
    trained = bench.checkpoint[1].get("trained", {}).get("curve")
    return Here(
        f"{CURVE_STEPS} steps from pure noise over {curve.clips} clips, not 200, by a model whose training noise was sampled "
        f"{'by such a curve' if trained else 'uniformly'}; the paper's was sampled uniformly. With a shift of {sampling.shift:g}, few "
        "steps are in low noise. The paper gives the curve without figures.",
        rows,
        {"curve.png": "Left: the energy of high frequencies; right: the timestep density from its changes."},
    )


def figure_7(bench: Bench, folder: Path) -> Here:
    """Noise augmentation at inference."""
    video = bench.first(bench.inputs)
    z_lr, middle, pictures, rows = bench.vae.encode(video), video.shape[2] // 2, {}, {}
    for level in NOISE_AUGMENTATIONS:
        z = bench.super_resolve(z_lr, replace(bench.sampling, noise_augmentation=level))
        result = bench.decoded(z)[:, :, : video.shape[2]]
        small = resize_frames(result, frame_size(video), "area")
        sharp = sharpness(result).mean().item()
        rows[f"test value {level}"] = {"PSNR to the input, made as small, dB": bench.likeness(small, video), "sharpness": sharp}
        pictures[f"test value {level}"] = to_images(result.cpu())[middle]
    box = most_detailed(pictures["test value 0.0"])
    picture_grid(folder / "noise.jpg", in_rows({title: part(image, box) for title, image in pictures.items()}))
    trained = bench.checkpoint[1].get("trained", {}).get("noise_range")
    known = "was trained with {:g} to {:g} and knows nothing above".format(*trained) if trained else "does not say what it was trained with"
    start = "pure noise" if bench.sampling.denoise == 1 else f"noise level {bench.sampling.denoise:g}, so the condition counts less"
    return Here(
        f"The paper trains one model for each range. With given weights only the test value can vary: {bench.options.model.name} "
        f"{known}. It starts from {start}. {SHARPNESS}",
        rows,
        {"noise.jpg": "Where the middle frame of the first clip has most detail."},
    )


def figure_8(bench: Bench, folder: Path) -> Here:
    """Temporal units of even and odd layers."""
    attention = bench.dit.attention
    units = {f"{parity} layers": attention.unit_lengths(PAPER_FRAMES, block) for block, parity in enumerate(("even", "odd"))}
    draw_units(folder / "units.png", units)
    rows = {}
    for name, lengths in units.items():
        pairs = 100 * sum(length**2 for length in lengths) / PAPER_FRAMES**2
        rows[name] = {"latent frames of each unit": " ".join(map(str, lengths)), "pairs of frames that see each other, %": pairs}
    return Here(
        f"Read from the configuration in {bench.options.model.name}: units of {attention.unit or PAPER_FRAMES} latent frames. "
        "Version 1's text tells of the shift without lengths; those of odd layers are in version 3's figure.",
        rows,
        {"units.png": "The 20 latent frames of 77 frames, a color for each unit."},
    )


def figure_9(bench: Bench, folder: Path) -> Here:
    """The methods of table 1 side by side."""
    rows = []
    for name, files in list(bench.evaluation()["files"].items())[:SHOWN]:
        frames = {method: read_video(bench.evaluation_folder / file)[0] for method, file in files.items()}
        middle = {method: images[len(images) // 2] for method, images in frames.items()}
        box = most_detailed(middle["gvr"])
        rows += in_rows({f"{name}: {method}": part(image, box) for method, image in middle.items()})
    picture_grid(folder / "methods.jpg", rows)
    return Here(
        "The methods that can run here, on the clips of table 1 above.",
        pictures={"methods.jpg": "Where the middle frame of each clip has most detail."},
        missing={"the paper's other methods": "their weights are not among those that `simplegvr baselines` can fetch"},
    )


def figure_10(bench: Bench, folder: Path) -> Here:
    """Three consecutive frames of what moves."""
    name, path = next(iter(bench.inputs.items()))
    video = bench.read(path)
    result = bench.decoded(bench.super_resolve(bench.vae.encode(video)))[:, :, : video.shape[2]].cpu()
    enlarged = resize_frames(video.cpu(), frame_size(result), "nearest-exact")
    moving = estimate_motion(enlarged, FlowBasedConfig().motion).moving
    frame = min(fastest(moving), video.shape[2] - 2)
    box, rows = busiest(torch.from_numpy(moving[frame]).float(), moving.shape[1:]), []
    for title, images in (("low resolution", to_images(enlarged)), (bench.options.model.stem, to_images(result))):
        rows.append({f"{title}, frame {i}": part(images[i], box) for i in (frame - 1, frame, frame + 1)})
    picture_grid(folder / "frames.jpg", rows)
    return Here(
        f"The clip {name}, by the weights given. Models trained with and without the two degradations are compared under Degradations.",
        pictures={"frames.jpg": "Three consecutive frames where most moves."},
        missing={"without the fine-tuning": "it takes the weights from before it"},
    )


FIGURES = {
    "figure-1": figure_1,
    "figure-2": figure_2,
    "figure-3": figure_3,
    "figure-4": figure_4,
    "figure-5": figure_5,
    "figure-7": figure_7,
    "figure-8": figure_8,
    "figure-9": figure_9,
    "figure-10": figure_10,
}


def fastest(moving: np.ndarray) -> int:
    """Returns the frame, from 1 on, with most moving pixels. moving: (F, H, W) bool."""
    return 1 + int(moving[1:].sum((1, 2)).argmax())


def frame_size(video: Tensor) -> tuple[int, int]:
    """Returns height and width of video (1, 3, F, H, W)."""
    height, width = video.shape[3:]
    return height, width


def sharpness(video: Tensor) -> Tensor:
    """Returns 1000 x the mean squared difference of neighbouring pixels of video (1, 3, F, H, W) in [-1, 1], (F, H - 1, W - 1)."""
    squared = video.diff(dim=4)[..., 1:, :].square() + video.diff(dim=3)[..., 1:].square()
    return 1000 * squared.mean((0, 1))


def blur_of_motion(video: Tensor, moving: np.ndarray) -> dict[str, float | None]:
    """Returns the percentage of moving pixels of a clip, and the sharpness of its moving and still parts.

    Args:
        video: (1, 3, F, H, W) in [-1, 1].
        moving: (F, H, W) bool.

    Returns:
        Values by name; the sharpness of a part without pixels is None.
    """
    where, sharp = torch.from_numpy(moving[:, 1:, 1:]), sharpness(video)
    values: dict[str, float | None] = {"moving pixels, %": 100 * where.float().mean().item()}
    for name, mask in (("moving", where), ("still", ~where)):
        values[f"sharpness, {name}"] = sharp[mask].mean().item() if mask.any() else None
    return values
