"""Quality of a video against its original.

F frames; video, original: (1, 3, F, H, W) in [-1, 1], one shape. Values of video outside are clamped. Every metric returns
one number per frame, (F,).
"""

import logging
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..video.frames import to_images
from ..video.write import write_video

CHUNK = 4  # frames at a time: some hundred MB of memory for a clip of any length
PERCEIVED = 192  # pixels a side of the four parts of a large frame that ST-LPIPS sees
EQUAL = 100.0  # dB, of frames without a difference
FLAT_WINDOW, FLAT_LEVELS, FLAT_AREA = 9, 1.5, 0.005  # pixels; levels of 255; of a frame
VMAF_MODEL = "vmaf_v0.6.1.json"  # comes with ffmpeg-quality-metrics


def psnr(video: Tensor, original: Tensor) -> Tensor:
    """Returns the peak signal-to-noise ratio over the pixels and channels of each frame.

    Args:
        video: (1, 3, F, H, W) in [-1, 1].
        original: (1, 3, F, H, W) in [-1, 1].

    Returns:
        (F,) dB, at most EQUAL.
    """
    square = torch.cat([(a - b).square().mean((1, 2, 3)) for a, b in chunks(video, original)])
    return decibels(square / 4)


def decibels(mean_square: Tensor) -> Tensor:
    """Returns -10 log10 of a mean square error of values in [0, 1]."""
    return (-10 * mean_square.log10()).clamp(max=EQUAL)


def mean_decibels(curve: Tensor) -> float:
    """Returns the PSNR of a clip, that of its mean square error.

    Args:
        curve: (F,) PSNR of each frame in dB.
    """
    return decibels((10 ** (-curve / 10)).mean()).item()


def ssim(video: Tensor, original: Tensor) -> Tensor:
    """Returns the structural similarity (Wang et al., 2004) of values in [0, 1]; 1 is equal.

    The mean over channels and the Gaussian windows (11 x 11, sigma 1.5) that lie inside the frame.

    Args:
        video: (1, 3, F, H, W) in [-1, 1].
        original: (1, 3, F, H, W) in [-1, 1].

    Returns:
        (F,).
    """
    from kornia.metrics import ssim

    return frame_by_frame(lambda *frames: ssim(*frames, window_size=11, padding="valid").mean((1, 2, 3)), video, original)


def ms_ssim(video: Tensor, original: Tensor) -> Tensor:
    """Returns the structural similarity over five scales (Wang et al., 2003) of values in [0, 1]; 1 is equal.

    Args:
        video: (1, 3, F, H, W) in [-1, 1]; H, W at least 161.
        original: (1, 3, F, H, W) in [-1, 1].

    Returns:
        (F,).
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as multiscale

    return frame_by_frame(lambda *frames: multiscale(*frames, data_range=1.0, reduction="none").flatten(), video, original)


def frame_by_frame(similarity: Callable[[Tensor, Tensor], Tensor], video: Tensor, original: Tensor) -> Tensor:
    """Returns the similarity of each frame, (F,).

    Args:
        similarity: Maps some frames (n, 3, H, W) in [0, 1] and their originals to (n,).
        video: (1, 3, F, H, W) in [-1, 1].
        original: (1, 3, F, H, W) in [-1, 1].
    """
    return torch.cat([similarity((x + 1) / 2, (y + 1) / 2) for x, y in chunks(video, original)])


def st_lpips(video: Tensor, original: Tensor) -> Tensor:
    """Returns the shift-tolerant learned perceptual distance; 0 is equal, lower is better.

    ST-LPIPS (Ghildyal and Liu, ECCV 2022), AlexNet, weights of its package. A frame of more pixels than four squares of PERCEIVED is
    measured on these, the middle of each of its quarters: the whole of a 1080p frame takes a CPU minutes.

    Args:
        video: (1, 3, F, H, W) in [-1, 1]; H, W at least 32.
        original: (1, 3, F, H, W) in [-1, 1].

    Returns:
        (F,).
    """
    network = st_lpips_network("alex", video.device)
    with torch.inference_mode():
        return torch.cat([network(*map(perceived_parts, frames)).view(-1, len(frames[0])).mean(0) for frames in chunks(video, original)])


def perceived_parts(frames: Tensor) -> Tensor:
    """Returns the parts of frames (n, 3, H, W) that ST-LPIPS sees: the frames, or (4 n, 3, PERCEIVED, PERCEIVED), part by part."""
    height, width = frames.shape[2:]
    if height * width <= 4 * PERCEIVED**2 or min(height, width) < PERCEIVED:
        return frames
    rows, columns = (
        [min(max(0, (2 * quarter + 1) * extent // 4 - PERCEIVED // 2), extent - PERCEIVED) for quarter in range(2)]
        for extent in (height, width)
    )
    return torch.cat([frames[:, :, y : y + PERCEIVED, x : x + PERCEIVED] for y in rows for x in columns])


def flat_noise(video: Tensor, original: Tensor) -> Tensor:
    """Returns the visible noise of flat areas: the deviation of the mean of R, G, B from its mean over FLAT_WINDOW x FLAT_WINDOW pixels.

    Measured where that deviation of the original is below FLAT_LEVELS. TinyVAE's copy of the original gives the autoencoder's own noise.

    Args:
        video: (1, 3, F, H, W) in [-1, 1].
        original: (1, 3, F, H, W) in [-1, 1].

    Returns:
        (F,) levels of 255, NaN for a frame of which less than FLAT_AREA is flat.
    """

    def of_frames(frames: Tensor, originals: Tensor) -> Tensor:
        is_flat = local_variance(originals)[1] < FLAT_LEVELS**2
        square = (local_variance(frames)[0].square() * is_flat).sum((1, 2, 3)) / is_flat.sum((1, 2, 3))
        return square.sqrt().where(is_flat.float().mean((1, 2, 3)) >= FLAT_AREA, torch.nan)

    return torch.cat([of_frames(*frames) for frames in chunks(video, original)])


def local_variance(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Returns each pixel's difference from the mean brightness around it, and the variance there, (n, 1, H, W), in levels of 255."""
    luma = 127.5 * frames.mean(1, keepdim=True)

    def local_mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x, (FLAT_WINDOW // 2,) * 4, mode="replicate"), FLAT_WINDOW, 1)

    difference = luma - local_mean(luma)
    return difference, local_mean(luma.square()) - local_mean(luma).square()


def vmaf(video: Tensor, original: Tensor, rate: Fraction = Fraction(25)) -> Tensor:
    """Returns Netflix's VMAF by ffmpeg's libvmaf: model v0.6.1, made for 1080p seen from three screen heights. It sees luma alone.

    Args:
        video: (1, 3, F, H, W) in [-1, 1].
        original: (1, 3, F, H, W) in [-1, 1].
        rate: Frames per second; this model does not depend on it.

    Returns:
        (F,) from 0 to 100.

    Raises:
        OSError: ffmpeg cannot run.
    """
    from ffmpeg_quality_metrics import FfmpegQualityMetrics, FfmpegQualityMetricsError
    from imageio_ffmpeg import get_ffmpeg_exe

    logging.getLogger("ffmpeg-quality-metrics").setLevel(logging.ERROR)  # it warns that there is no ffprobe, each time
    with TemporaryDirectory(prefix="simplegvr_") as folder:
        original_path, video_path = Path(folder) / "original.mkv", Path(folder) / "video.mkv"
        write_video(original_path, to_images(original.cpu()), rate, lossless=True)
        write_video(video_path, to_images(video.cpu()), rate, lossless=True)
        threads = torch.get_num_threads()
        options: Any = {"model_path": VMAF_MODEL, "n_threads": threads}  # other keys of VmafOptions have defaults
        try:
            meter = FfmpegQualityMetrics(str(original_path), str(video_path), threads=threads, tmp_dir=folder, ffmpeg_path=get_ffmpeg_exe())
            frames = meter.calculate(["vmaf"], options)["vmaf"]
        except (FfmpegQualityMetricsError, RuntimeError) as error:
            raise OSError(
                f"VMAF cannot be measured: {' '.join(str(error).split())}. It needs an ffmpeg with libvmaf, as imageio-ffmpeg brings "
                "along: unset IMAGEIO_FFMPEG_EXE or let it name such a one, or leave VMAF out"
            ) from error
    return torch.tensor([frame["vmaf"] for frame in frames])


def chunks(video: Tensor, original: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields some frames of both at a time, each (n, 3, H, W) in [-1, 1]."""
    frames, originals = (rearrange(x, "B C F H W -> (B F) C H W").split(CHUNK) for x in (video.clamp(-1, 1), original))
    return zip(frames, originals, strict=True)


@cache
def st_lpips_network(trunk: str, device: torch.device | str) -> nn.Module:
    """Returns the network of ST-LPIPS, which maps two (n, 3, H, W) in [-1, 1] to (n, 1, 1, 1).

    Args:
        trunk: "alex", which measures, or "vgg", which trains.
        device: Device of the network.
    """
    from stlpips_pytorch.stlpips import LPIPS  # imports IPython, which takes seconds

    return LPIPS(net=trunk, variant="shift_tolerant", pnet_rand=True, verbose=False).to(device).requires_grad_(False)
