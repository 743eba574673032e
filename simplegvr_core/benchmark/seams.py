"""Seams of one clip sampled whole, in segments and in tiles, against chunks that are sampled apart and cross-faded."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from tqdm import tqdm

from ..checks import check_folder
from ..evaluation import seams
from ..evaluation.seams import pixel_borders
from ..evaluation.versions import versions
from ..files import CLIPS, GVR_TINY, GVR_TINY_UPSAMPLER, GVR_TINY_VAE, write_text
from ..flow import shifted_sigmas
from ..latent_space import scaled_size, video_frames
from ..networks.checkpoint import parse_config
from ..networks.dit import load_dit
from ..networks.tiny_vae import TinyVAE, load_tiny_vae
from ..networks.upsampler import load_upsampler
from ..sampling.latent_file import TensorFrames
from ..sampling.refine import Refinement, TiledVelocity, refine
from ..sampling.super_resolve import UPSAMPLER_FRAMES, SamplingConfig, augment_condition, guided_network, weighed
from ..tiling import WHOLE, Tiling, aligned_tiling, blend_weights
from ..video.frames import to_video
from ..video.read import read_video

SEED, NOISE_SEED, SCALE = 0, 1, 3
WAYS = {  # segment in latent frames, tile width in latent pixels
    "segments of 10": (10, None),
    "segments of 20": (20, None),
    "segments of 40": (40, None),
    "tiles": (None, 36),
    "segments of 10, tiles": (10, 36),
}


@dataclass(frozen=True)
class Row:
    """One way to sample the clip.

    Attributes:
        name: Of WAYS, and how its boxes are joined.
        difference: Root mean square of the latent's difference from the clip sampled whole, over that of the whole.
        segment_borders: Jumps at the borders of segments over those nearby, None without segments.
        segment_borders_of_whole: The same of the clip sampled whole, at the same places.
        tile_borders: Jumps at the borders of tiles over those nearby, None without tiles.
        tile_borders_of_whole: The same of the clip sampled whole, at the same places.
    """

    name: str
    difference: float
    segment_borders: float | None
    segment_borders_of_whole: float | None
    tile_borders: float | None
    tile_borders_of_whole: float | None


@dataclass(frozen=True)
class SeamBenchmark:
    """Measures seams of the bundled gvr_tiny, cut and blended at every step, and of chunks sampled apart and cross-faded."""

    video: Path = CLIPS / "demo.mp4"
    """A small video; it is played forwards and backwards until it is long enough."""
    latent_frames: int = 41
    """Length of the clip; 41 latent frames are 161 video frames."""
    steps: int | None = None
    """Sampling steps; by default the checkpoint's."""
    denoise: float | None = None
    """Noise level in (0, 1] to start from; by default the checkpoint's. At 1 nothing of the upsampled latent is left."""
    out: Path = Path("out/benchmark")
    """Folder for seams.md and seams.json; files of an earlier run are replaced."""

    @torch.inference_mode()
    def run(self) -> dict:
        """Returns the seams of each way, and whether the noise was the same in every box."""
        check_folder(self.out)
        path = GVR_TINY
        dit, config = load_dit(path)
        chosen = {key: value for key, value in (("steps", self.steps), ("denoise", self.denoise)) if value is not None}
        sampling = replace(parse_config(SamplingConfig, config, "sampling", path), **chosen)
        vae = load_tiny_vae(GVR_TINY_VAE)
        upsampler = load_upsampler(GVR_TINY_UPSAMPLER)
        z_lr = vae.encode(self.clip())
        height, width = z_lr.shape[3:]
        size = scaled_size((height, width), SCALE)
        z_up = torch.cat(list(upsampler.stream(z_lr.split(UPSAMPLER_FRAMES, dim=2), size)), dim=2)
        network = guided_network(dit, sampling.cfg, like=z_lr)
        velocity = TiledVelocity(network, WHOLE, dit.attention.alignment)

        whole = sample(velocity, z_up, sampling, WHOLE)
        whole_frames = list(decoded(whole, vae))
        rows, noise_identical = [], True
        for name, (segment, tile_width) in tqdm(WAYS.items()):
            tiling = aligned_tiling((segment, None, tile_width), dit.attention.alignment)
            noise_identical &= noise_is_identical(velocity, z_up, sampling, tiling)
            for how, way in (("fused at every step", sample), ("apart, cross-faded", sample_apart)):
                z = way(velocity, z_up, sampling, tiling)
                difference = ((z - whole).square().mean() / whole.square().mean()).sqrt().item()
                rows.append(compare(f"{name}: {how}", difference, decoded(z, vae), whole=whole_frames, tiling=tiling))
        fused, apart = (
            max(max(row.segment_borders or 0, row.tile_borders or 0) for row in rows if how in row.name) for how in ("fused", "apart")
        )
        results = {
            "noise_identical": noise_identical,
            "largest_difference": max(row.difference for row in rows if "fused" in row.name),
            "largest_border_over_interior": fused,
            "largest_border_over_interior_apart": apart,
            "steps": sampling.steps,
            "denoise": sampling.denoise,
            **versions(),
            "rows": [vars(row) for row in rows],
        }
        for suffix, text in (("json", json.dumps(results, indent=1)), ("md", table(rows))):
            write_text(self.out / f"seams.{suffix}", text)
        print(table(rows))
        return results

    def clip(self) -> Tensor:
        """Returns the video, played forwards and backwards, (1, 3, 4 latent_frames - 3, H, W)."""
        images, _ = read_video(self.video)
        there_and_back = torch.cat((images, images[1:-1].flip(0)))
        return to_video(torch.stack(list(islice(cycle(there_and_back), video_frames(self.latent_frames)))))


def sample(velocity: TiledVelocity, z_up: Tensor, sampling: SamplingConfig, tiling: Tiling) -> Tensor:
    """Returns z_up (1, 16, T, H, W) refined in boxes that are blended at every step, with positional noise."""
    with TemporaryDirectory() as folder:
        condition = TensorFrames(augment_condition(z_up, sampling.noise_augmentation, NOISE_SEED))
        sigmas = shifted_sigmas(sampling.steps, sampling.shift, sampling.denoise)
        z = refine(replace(velocity, tiling=tiling), Refinement(TensorFrames(z_up), condition, sigmas, SEED, Path(folder)))[:]
    return weighed(z, z_up, sampling)


def sample_apart(velocity: TiledVelocity, z_up: Tensor, sampling: SamplingConfig, tiling: Tiling) -> Tensor:
    """Returns z_up (1, 16, T, H, W) refined box by box, each as a clip of its own, and cross-faded at the end: the naive way."""
    total, extent = torch.zeros_like(z_up), extent_of(z_up)
    for box in tiling.boxes(extent):
        total[box.slices] += blend_weights(box, extent, tiling.overlap) * sample(velocity, z_up[box.slices], sampling, WHOLE)
    return total


def noise_is_identical(velocity: TiledVelocity, z_up: Tensor, sampling: SamplingConfig, tiling: Tiling) -> bool:
    """Returns whether the network's inputs in every box of the first step are, bit for bit, those of the whole clip there.

    Args:
        velocity: The model's velocity; its network is not called.
        z_up: Upsampled latent (1, 16, T, H, W).
        sampling: Noise levels.
        tiling: The boxes.
    """
    (whole,) = network_inputs(velocity, z_up, sampling, WHOLE)
    boxes = zip(tiling.boxes(extent_of(whole[0])), network_inputs(velocity, z_up, sampling, tiling), strict=True)
    return all(torch.equal(part, of[box.slices]) for box, parts in boxes for part, of in zip(parts, whole, strict=True))


def network_inputs(velocity: TiledVelocity, z_up: Tensor, sampling: SamplingConfig, tiling: Tiling) -> list[tuple[Tensor, Tensor]]:
    """Returns the noised latent and the condition that the network gets in the first step, box by box."""
    inputs: list[tuple[Tensor, Tensor]] = []

    def network(z: Tensor, condition: Tensor | None, sigma: Tensor) -> Tensor:
        assert condition is not None
        inputs.append((z.clone(), condition.clone()))
        return torch.zeros_like(z)

    sample(replace(velocity, network=network), z_up, replace(sampling, steps=1), tiling)
    return inputs


def extent_of(z: Tensor) -> tuple[int, int, int]:
    """Returns T, H, W of a latent (B, C, T, H, W)."""
    frames, height, width = z.shape[2:]
    return frames, height, width


def compare(name: str, difference: float, frames: Iterable[Tensor], *, whole: list[Tensor], tiling: Tiling) -> Row:
    """Returns a way's row.

    Args:
        name: Its name.
        difference: As of Row.
        frames: Frames (1, 3, H, W) in [0, 1] of its clip.
        whole: Frames of the clip sampled whole.
        tiling: Boxes of the way.
    """
    borders = pixel_borders(tiling)
    found, of_whole = (seams.measure(clip, borders, seams.VIDEO)[0] for clip in (frames, whole))
    ratios = (seam and seam.ratio for seam in (found.segments, of_whole.segments, found.columns, of_whole.columns))
    return Row(name, difference, *ratios)


def decoded(z: Tensor, vae: TinyVAE) -> Iterator[Tensor]:
    """Yields the frames (1, 3, H, W) in [0, 1] of a latent."""
    for video in vae.decode_stream(z.split(2, dim=2)):
        yield from ((video + 1) / 2).clamp(0, 1).unbind(2)


def table(rows: list[Row]) -> str:
    """Returns the rows as a table in Markdown."""
    lines = ["| | difference from whole | segment borders (whole there) | tile borders (whole there) |", "|---|---|---|---|"]

    def pair(own: float | None, whole_there: float | None) -> str:
        return "-" if own is None else f"{own:.3f} ({whole_there:.3f})"

    for row in rows:
        segments = pair(row.segment_borders, row.segment_borders_of_whole)
        tiles = pair(row.tile_borders, row.tile_borders_of_whole)
        lines.append(f"| {row.name} | {row.difference:.4f} | {segments} | {tiles} |")
    return "\n".join(lines)
