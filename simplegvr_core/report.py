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

HEADINGS = {  # of a metric: its name, decimals, whether more is better
    "psnr": ("PSNR, dB", 2, True),
    "ssim": ("SSIM", 3, True),
    "st_lpips": ("ST-LPIPS", 3, False),
    "warping_error": ("warping error, 1e-3", 2, False),
    "seconds_per_frame": ("seconds a frame", 2, False),
}
ZOOM = 3  # of the pictures' crops, which are 1 / ZOOM of the frame's sides
COLUMNS = 3
METHOD = """Each clip is the truth; area averaging makes the low-resolution input of it, from which every method makes a video of the
truth's size. `vae` and `vae_linear` are the truth itself, encoded and decoded: what a method in those latents can hardly exceed.
PSNR and SSIM over RGB; ST-LPIPS with AlexNet; the warping error moves the frame before along the optical flow of the
truth and takes the mean square of what differs where nothing is covered (`simplegvr_core/metrics.py`). Blur lowers the warping
error, so read it beside the truth's own. The learned peers (`simplegvr_core/peers.py`) get the pixels, not the latent, and are
made for x4: their result is area-averaged to the size wanted."""
LABEL = 36  # height of a label in pixels


def markdown(results: dict, description: str) -> str:
    """Returns the results as a document of tables: the means, every clip, and how often gvr is better than another method."""
    clips, mean = results["clips"], results["mean"]
    direction = {metric: "higher is better" if more else "lower is better" for metric, (_, _, more) in HEADINGS.items()}
    lines = ["# Results", "", METHOD, "", description, "", f"## Mean of {len(clips)} clips", ""]
    lines += table(
        ["method", *(f"{heading} ({direction[metric]})" for metric, (heading, _, _) in HEADINGS.items())],
        [[method, *(number(metric, mean[method][metric]) for metric in HEADINGS)] for method in mean],
    )
    for metric in ("st_lpips", "psnr", "ssim", "warping_error"):
        truth = {"original": results["original"]} if metric == "warping_error" else {}
        lines += ["", f"## {HEADINGS[metric][0]} of each clip ({direction[metric]})", ""]
        lines += table(
            ["clip", *mean, *truth],
            [
                [
                    name,
                    *(number(metric, clip[method][metric]) for method in mean),
                    *(number(metric, x[name][metric]) for x in truth.values()),
                ]
                for name, clip in clips.items()
            ],
        )
    if others := [method for method in mean if method != "gvr" and "gvr" in mean]:
        lines += ["", "## Clips on which gvr is better", ""]
        quality = [metric for metric in HEADINGS if metric != "seconds_per_frame"]
        lines += table(
            ["than", *(HEADINGS[metric][0] for metric in quality)],
            [[method, *(f"{wins(clips, method, metric)} of {len(clips)}" for metric in quality)] for method in others],
        )
    return "\n".join(lines) + "\n"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Returns the lines of a markdown table."""
    return ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]]


def number(metric: str, value: float) -> str:
    return f"{value:.{HEADINGS[metric][1]}f}"


def wins(clips: dict[str, dict], method: str, metric: str) -> int:
    """Returns on how many clips gvr is better than method."""
    sign = 1 if HEADINGS[metric][2] else -1
    return sum(sign * clip["gvr"][metric] > sign * clip[method][metric] for clip in clips.values())


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
