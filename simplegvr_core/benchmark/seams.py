"""Does cutting show? One clip whole, in segments and in tiles, against chunks that are sampled apart and cross-faded."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from tqdm import tqdm

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
from ..sampling.super_resolve import UPSAMPLER_FRAMES, SamplingConfig, augment_condition, guided_network
from ..tiling import WHOLE, Tiling, aligned_tiling, blend_weights
from ..video.frames import to_video
from ..video.read import read_video

SEED, NOISE_SEED, SCALE = 0, 1, 3
WAYS = {  # segment in latent frames, tile width in cells
    "segments of 10": (10, None),
    "segments of 20": (20, None),
    "segments of 40": (40, None),
    "tiles": (None, 36),
    "segments of 10, tiles": (10, 36),
}


@dataclass(frozen=True)
class Row:
    """One way to sample the clip. difference: root mean square of the latent's difference from the whole's over its own.

    At the borders of segments and tiles: jumps over those nearby, and of the clip sampled whole at the same places.
    """

    name: str
    difference: float
    segment_borders: float | None
    segment_borders_of_whole: float | None
    tile_borders: float | None
    tile_borders_of_whole: float | None


@dataclass(frozen=True)
class SeamBenchmark:
    """Seams of the bundled gvr_tiny, cut and blended at every step, beside chunks sampled apart and cross-faded."""

    video: Path = CLIPS / "demo.mp4"
    """A small video; it is played forwards and backwards until it is long enough."""
    latent_frames: int = 41
    """Length of the clip; 41 are 161 frames."""
    steps: int | None = None
    """Steps; by default the checkpoint's."""
    denoise: float | None = None
    """Noise level to start from; by default the checkpoint's. From 1 on, the model draws everything anew."""
    out: Path = Path("out/benchmark")
    """Folder for seams.md and seams.json."""

    @torch.inference_mode()
    def run(self) -> dict:
        path = GVR_TINY
        dit, config = load_dit(path)
        chosen = {key: value for key, value in (("steps", self.steps), ("denoise", self.denoise)) if value is not None}
        sampling = replace(parse_config(SamplingConfig, config, "sampling", path), **chosen)
        vae = load_tiny_vae(GVR_TINY_VAE)
        upsampler = load_upsampler(GVR_TINY_UPSAMPLER)
        z_lr = vae.encode(self.clip())
        size = scaled_size(z_lr.shape[3:], SCALE)
        z_up = torch.cat(list(upsampler.stream(z_lr.split(UPSAMPLER_FRAMES, dim=2), size)), dim=2)
        network = guided_network(dit, sampling.cfg, like=z_lr)
        velocity = TiledVelocity(network, WHOLE, dit.attention.alignment)

        reference = sample(velocity, z_up, sampling, WHOLE)
        reference_frames = list(decoded(reference, vae))
        rows, noise_identical = [], True
        for name, (segment, width) in tqdm(WAYS.items()):
            tiling = aligned_tiling((segment, None, width), dit.attention.alignment)
            noise_identical &= drawn_alike(velocity, z_up, sampling, tiling)
            for how, way in (("fused at every step", sample), ("apart, cross-faded", sample_apart)):
                z = way(velocity, z_up, sampling, tiling)
                difference = ((z - reference).square().mean() / reference.square().mean()).sqrt().item()
                rows.append(compare(f"{name}: {how}", difference, decoded(z, vae), reference_frames, tiling))
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
        """Returns the video, played to and fro, (1, 3, 4 latent_frames - 3, H, W)."""
        images, _ = read_video(self.video)
        to_and_fro = torch.cat((images, images[1:-1].flip(0)))
        return to_video(torch.stack(list(islice(cycle(to_and_fro), video_frames(self.latent_frames)))))


def sample(velocity: TiledVelocity, z_up: Tensor, sampling: SamplingConfig, tiling: Tiling) -> Tensor:
    """Returns z_up refined in boxes that are blended at every step, with noise by position."""
    with TemporaryDirectory() as folder:
        condition = TensorFrames(augment_condition(z_up, sampling.noise_augmentation, NOISE_SEED))
        sigmas = shifted_sigmas(sampling.steps, sampling.shift, sampling.denoise)
        return refine(replace(velocity, tiling=tiling), Refinement(TensorFrames(z_up), condition, sigmas, SEED, Path(folder)))[:]


def sample_apart(velocity: TiledVelocity, z_up: Tensor, sampling: SamplingConfig, tiling: Tiling) -> Tensor:
    """Returns z_up refined box by box, each as if it were a clip of its own, cross-faded afterwards: the naive way."""
    total, extent = torch.zeros_like(z_up), tuple(z_up.shape[2:])
    for box in tiling.boxes(extent):
        total[box.slices] += blend_weights(box, extent, tiling.overlap) * sample(velocity, z_up[box.slices], sampling, WHOLE)
    return total


def drawn_alike(velocity: TiledVelocity, z_up: Tensor, sampling: SamplingConfig, tiling: Tiling) -> bool:
    """Returns whether the network is given in every box of the first step, bit for bit, the noised latent and the condition
    that it is given for the whole clip."""
    (whole,) = given(velocity, z_up, sampling, WHOLE)
    boxes = zip(tiling.boxes(whole[0].shape[2:]), given(velocity, z_up, sampling, tiling), strict=True)
    return all(torch.equal(part, of[box.slices]) for box, parts in boxes for part, of in zip(parts, whole, strict=True))


def given(velocity: TiledVelocity, z_up: Tensor, sampling: SamplingConfig, tiling: Tiling) -> list[tuple[Tensor, Tensor]]:
    """Returns the noised latent and the condition that the network is given in the first step, box by box."""
    inputs = []

    def network(z: Tensor, condition: Tensor, sigma: Tensor) -> Tensor:
        inputs.append((z.clone(), condition.clone()))
        return torch.zeros_like(z)

    sample(replace(velocity, network=network), z_up, replace(sampling, steps=1), tiling)
    return inputs


def compare(name: str, difference: float, frames: Iterable[Tensor], reference: list[Tensor], tiling: Tiling) -> Row:
    """Returns the row of a clip's frames beside those of the clip that was sampled whole."""
    borders = pixel_borders(tiling)
    found, of_whole = (seams.measure(clip, borders, seams.VIDEO)[0] for clip in (frames, reference))
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
