"""The command `simplegvr seams`: `python3 scripts/run.py seams --video FILE --period FRAMES --tile W H`."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from ..checks import check_file
from ..files import atomic_write
from ..sampling.latent_file import LatentFile
from ..video.read import VIDEO_SUFFIXES, read_frames
from .seam_plot import draw_panels
from .seams import LATENT, VIDEO, Borders, Seams, describe, measure


@dataclass(frozen=True)
class MeasureSeams:
    """Measures seams and flicker at the borders of segments and tiles; prints them and plots the curves."""

    video: Path
    """A video file, or a latent in the sampler's .safetensors."""
    period: int = 0
    """Frames from one segment's start to the next's (latent frames for a latent): 4 x (segment - overlap); 0 is none."""
    tile: tuple[int, int] = (0, 0)
    """Pixels (latent pixels of a latent) from one tile's start to the next's along width and height; 0 is none."""
    first: int | None = None
    """First frame of the second segment; by default period - 3, and period for a latent."""
    overlap: int = 0
    """Frames that segments share: 20 for the sampler's, 5 for a latent; 0 for hard cuts."""
    tile_overlap: tuple[int, int] = (0, 0)
    """Pixels (latent pixels of a latent) that tiles share along width and height: 144 192 for the sampler's, 18 24 for a latent."""
    out: Path = Path("seams.png")

    def run(self) -> Seams:
        """Returns the measurement after plotting it.

        Raises:
            ValueError: The file is neither a video nor a latent, or borders are too dense.
            OSError: --out cannot be written.
        """
        if self.video.suffix != ".safetensors" and self.video.suffix.lower() not in VIDEO_SUFFIXES:
            raise ValueError(f"--video is {self.video}, wanted {', '.join(sorted(VIDEO_SUFFIXES))} or a latent in .safetensors")
        check_file(self.out)
        is_latent = self.video.suffix == ".safetensors"
        frames = latent_frames(self.video) if is_latent else video_frames(self.video)
        borders = Borders(self.period, self.tile, self.first, self.overlap, self.tile_overlap)
        seams, panels = measure(frames, borders, LATENT if is_latent else VIDEO)
        with atomic_write(self.out) as partial:
            draw_panels(panels).save(partial)
        return seams


def video_frames(path: Path) -> Iterator[Tensor]:
    """Yields the frames of a video file, each (1, 3, H, W) in [0, 1]."""
    for image in tqdm(read_frames(path), unit="frame", mininterval=5):
        yield rearrange(image, "H W C -> 1 C H W").float() / 255


def latent_frames(path: Path) -> Iterator[Tensor]:
    """Yields the frames of a latent file, each (B, 16, H, W)."""
    latent = LatentFile(path)
    for frame in range(latent.shape[2]):
        yield latent[frame : frame + 1][:, :, 0]


def main(arguments: Sequence[str]) -> dict:
    seams = tyro.cli(MeasureSeams, prog="simplegvr seams", args=arguments).run()
    print(describe(seams))
    return asdict(seams)
