"""What an evaluation looks like: its tables, and its methods side by side.

H, W pixels; image uint8 (H, W, 3); results as Evaluate.run returns them.
"""

from pathlib import Path

import cv2
import numpy as np
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .files import whole

ZOOM = 3  # of the pictures' crops, which are 1 / ZOOM of the frame's sides
COLUMNS = 3
METHOD = """Each clip is the truth; area averaging makes the low-resolution input of it, from which every method makes a video of the
truth's size. `vae` and `vae_linear` are the truth itself, encoded and decoded: what a method in those latents can hardly exceed.
PSNR and SSIM over RGB; ST-LPIPS with AlexNet; the warping error moves the frame before along the optical flow of the
truth and takes the mean square of what differs where nothing is covered (`simplegvr_core/metrics.py`). Blur lowers the warping
error, so read it beside the truth's own. The learned peers (`simplegvr_core/peers.py`) get the pixels, not the latent, and are
made for x4: their result is area-averaged to the size wanted."""
LABEL = 36  # height of a label in pixels


def markdown(results: dict) -> str:
    """Returns the results as a document of tables: the means, every clip, and how often gvr is better than another method."""
    clips, mean, metrics = results["clips"], results["mean"], results["metrics"]
    headings = {name: f"{metric['label']}, {metric['unit']}" if metric["unit"] else metric["label"] for name, metric in metrics.items()}
    direction = {name: f" ({metric['better']} is better)" if metric["better"] else "" for name, metric in metrics.items()}

    def number(metric: str, values: dict) -> str:
        value = values.get(metric)
        return "-" if value is None else f"{value:.{metrics[metric]['decimals']}f}"

    lines = ["# Results", "", METHOD, "", describe(results["run"]), "", f"## Mean of {len(clips)} clips", ""]
    lines += table(
        ["method", *(headings[metric] + direction[metric] for metric in metrics)],
        [[method, *(number(metric, values) for metric in metrics)] for method, values in mean.items()],
    )
    for metric in (name for name in metrics if name != "seconds_per_frame"):
        truth = results["original"] if any(metric in values for values in results["original"].values()) else {}
        lines += ["", f"## {headings[metric]} of each clip{direction[metric]}", ""]
        lines += table(
            ["clip", *mean, *(["original"] if truth else [])],
            [
                [name, *(number(metric, clip[method]) for method in mean), *([number(metric, truth[name])] if truth else [])]
                for name, clip in clips.items()
            ],
        )
    if others := [method for method in mean if method != "gvr" and "gvr" in mean]:
        lines += ["", "## Clips on which gvr is better", ""]
        quality = [name for name, metric in metrics.items() if metric["better"] and name != "seconds_per_frame"]
        lines += table(
            ["than", *(headings[metric] for metric in quality)],
            [[method, *(wins(clips, method, metric, metrics[metric]["better"]) for metric in quality)] for method in others],
        )
    if results["skipped"]:
        lines += ["", "## Not measured", "", *(f"- {metric}: {why}." for metric, why in results["skipped"].items())]
    return "\n".join(lines) + "\n"


def describe(run: dict) -> str:
    """Returns the command and what it left to defaults."""
    frames = f"the first {run['num_frames']} frames of each clip, at most {run['height']} lines"
    return f"```\n{run['command']}\n```\nHere: {frames}, seed {run['seed']}, {run['sampling']['steps']} steps, on {run['device']}."


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Returns the lines of a markdown table."""
    return ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]]


def wins(clips: dict[str, dict], method: str, metric: str, better: str) -> str:
    """Returns on how many clips gvr is better than method, of those on which both have a value."""
    sign = 1 if better == "higher" else -1
    both = [(clip["gvr"].get(metric), clip[method].get(metric)) for clip in clips.values()]
    both = [(ours, theirs) for ours, theirs in both if ours is not None and theirs is not None]
    return f"{sum(sign * ours > sign * theirs for ours, theirs in both)} of {len(both)}"


def side_by_side(path: Path, images: dict[str, Tensor]) -> None:
    """Writes a PNG of labelled images, the first of them the original: where it has most detail, every pixel ZOOM times as large.

    The original whole, with that place marked, comes first. The file appears whole or not at all.
    """
    original = next(iter(images.values()))
    top, left, height, width = most_detailed(original)
    frame = original.numpy().copy()
    cv2.rectangle(frame, (left, top), (left + width - 1, top + height - 1), (255, 255, 0), 2)
    tiles = [labelled("the whole frame", cv2.resize(frame, (width * ZOOM, height * ZOOM), interpolation=cv2.INTER_AREA))]
    for label, image in images.items():
        crop = image[top : top + height, left : left + width].numpy()
        tiles.append(labelled(label, crop.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % COLUMNS)
    picture = rearrange(np.stack(tiles), "(row column) H W C -> (row H) (column W) C", column=COLUMNS)
    _, png = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    with whole(path) as partial:
        partial.write_bytes(png)


def most_detailed(image: Tensor) -> tuple[int, int, int, int]:
    """Returns top, left, height, width of the crop of 1 / ZOOM of the image's sides with the largest squared differences."""
    grey = image.float().mean(2)
    detail = (grey.diff(dim=0)[:, 1:].square() + grey.diff(dim=1)[1:].square())[None, None]
    height, width = (extent // ZOOM for extent in image.shape[:2])
    energy = F.avg_pool2d(detail, (height, width), stride=1)[0, 0]
    top, left = divmod(int(energy.argmax()), energy.shape[1])
    return top, left, height, width


def labelled(text: str, image: np.ndarray) -> np.ndarray:
    """Returns image under a white strip with text, which is made small enough for the width."""
    strip = np.full((LABEL, image.shape[1], 3), 255, np.uint8)
    (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.8, 2)
    size = 0.8 * min(1, (image.shape[1] - 12) / width)
    cv2.putText(strip, text, (6, 25), cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 2, cv2.LINE_AA)
    return np.concatenate((strip, image))
