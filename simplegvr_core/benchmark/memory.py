"""Memory over the length of a clip: the sampler, the upsampler and decoding to a file, each in a process of its own.

`simplegvr benchmark memory --latent-frames 20 200`. A streamed part takes as much memory for a long clip as for a short one;
the same parts with the whole clip at once are measured for comparison.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Protocol, cast

import psutil
import torch
from torch import Tensor
from tqdm import tqdm

from ..checks import check_folder
from ..evaluation.versions import versions
from ..files import GVR_TINY, GVR_TINY_UPSAMPLER, GVR_TINY_VAE, write_text
from ..latent_space import SPATIAL_FACTOR, first_frame
from ..networks.checkpoint import parse_config, read_config
from ..networks.dit import load_dit, parse_dit_config
from ..networks.layers import default_device
from ..networks.tiny_vae import TinyVAEConfig, load_tiny_vae
from ..networks.upsampler import LatentUpsampler, UpsamplerConfig, load_upsampler
from ..planning.network_memory import coding_bytes, dit_bytes
from ..planning.tensor_memory import peak_bytes
from ..sampling.latent_file import LatentFile, write_latent
from ..sampling.super_resolve import UPSAMPLER_FRAMES, SamplingConfig
from ..sampling.super_resolve_to_file import super_resolve_to_file, torch_runtime
from ..tiling import WHOLE, Box, aligned_tiling, is_out_of_memory
from ..video.decode import StatefulTile, StreamDecoder, decode_to_parts
from ..video.frames import to_images
from ..video.write import Encoding, write_frames

RATE = 24


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        part: Of PARTS.
        latent_frames: Latent frames of the clip.
        streamed: Whether the clip is streamed; otherwise it is processed whole.
        size: Height and width of the result in latent pixels, three times the source's.
        segment: Latent frames that the sampler's model sees at a time.
        device: cpu or cuda.
    """

    part: str
    latent_frames: int
    streamed: bool
    size: tuple[int, int]
    segment: int
    device: str

    @property
    def source(self) -> tuple[int, int]:
        height, width = self.size
        return -(-height // 3), -(-width // 3)

    @torch.inference_mode()
    def measure(self) -> dict:
        """Returns the bytes at the peak, those above what the loaded networks take, and the seconds, of one run in this process."""
        with TemporaryDirectory(prefix="simplegvr_") as folder:
            run = PARTS[self.part](self, Path(folder))
            before, start = self.taken(), perf_counter()
            run()
            seconds = perf_counter() - start
            peak = self.peak()
        return {"peak": peak, "above": peak - before, "seconds": seconds}

    def taken(self) -> int:
        """Returns the bytes in use now, resident or allocated on the GPU."""
        if self.device == "cpu":
            return psutil.Process().memory_info().rss
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)

    def peak(self) -> int:
        return peak_resident() if self.device == "cpu" else torch.cuda.max_memory_allocated(self.device)

    def latent(self, folder: Path, size: tuple[int, int]) -> LatentFile:
        """Returns a file of noise, (1, 16, latent_frames, *size)."""
        path, generator = folder / "given.safetensors", torch.Generator().manual_seed(0)
        with write_latent(path, (1, 16, self.latent_frames, *size), {}) as append:
            for _ in range(self.latent_frames):
                append(torch.randn(1, 16, 1, *size, generator=generator))
        return LatentFile(path)


def sampler(case: Case, folder: Path) -> Callable[[], LatentFile]:
    """Returns a run of super_resolve_to_file, with the steps that gvr_tiny recommends."""
    dit, config = load_dit(GVR_TINY)
    upsampler = load_upsampler(GVR_TINY_UPSAMPLER).to(case.device)
    sampling = parse_config(SamplingConfig, config, "sampling", GVR_TINY)
    z_lr = case.latent(folder, case.source)
    tiling = aligned_tiling((case.segment, None, None), dit.attention.alignment) if case.streamed else WHOLE

    def run() -> LatentFile:
        like = torch.empty(0, device=case.device)
        runtime = torch_runtime(dit.to(case.device), upsampler, like=like, sampling=sampling, tiling=tiling)
        return super_resolve_to_file(folder, z_lr, case.size, runtime, sampling=sampling, noise_seed=1)

    return run


def upsampler(case: Case, folder: Path) -> Callable[[], None]:
    """Returns a run of the upsampler, from file to file."""
    model, z_lr = load_upsampler(GVR_TINY_UPSAMPLER).to(case.device), case.latent(folder, case.source)
    frames = UPSAMPLER_FRAMES if case.streamed else case.latent_frames

    def run() -> None:
        chunks = (z_lr[start : start + frames].to(case.device) for start in range(0, case.latent_frames, frames))
        with write_latent(folder / "upsampled.safetensors", (1, 16, case.latent_frames, *case.size), {}) as append:
            for z in model.stream(chunks, case.size):
                append(z)

    return run


class Frames:
    """A latent in a file, sliced as a tensor is: z[:, :, a:b]."""

    def __init__(self, file: LatentFile):
        self.file = file

    def __getitem__(self, index: tuple[slice, slice, slice]) -> Tensor:
        return self.file[index[2]]


def decode(case: Case, folder: Path) -> Callable[[], None]:
    """Returns a run of TinyVAE, from a latent's file to a video's."""
    vae, z = load_tiny_vae(GVR_TINY_VAE).to(case.device), case.latent(folder, case.size)
    encoding = Encoding(SPATIAL_FACTOR * case.size[1], SPATIAL_FACTOR * case.size[0], Fraction(RATE), crf=18)

    def stream() -> None:
        decoder = StreamDecoder(
            lambda z, state: vae.decode_chunk(z.to(case.device), state), [StatefulTile(Box((0, 0, 0), (1, *case.size)))], is_out_of_memory
        )
        decode_to_parts(cast("Tensor", Frames(z)), decoder, frames=first_frame(case.latent_frames), encoding=encoding, folder=folder)

    def whole() -> None:
        with write_frames(folder / "video.mp4", encoding) as add:
            add(to_images(vae.decode(z[:].to(case.device))))

    return stream if case.streamed else whole


PARTS = {"sampler": sampler, "upsampler": upsampler, "decode to file": decode}


def counted(case: Case) -> int:
    """Returns the bytes of tensors that a part needs at its peak with the whole clip at once, above the weights, counted."""
    dtype = torch.float32
    if case.part == "sampler":
        dit, attention = parse_dit_config(read_config(GVR_TINY, "dit"), GVR_TINY)
        return dit_bytes(dit, attention, 1, (case.latent_frames, *case.size), dtype, "sdpa")
    if case.part == "upsampler":
        config = parse_config(UpsamplerConfig, read_config(GVR_TINY_UPSAMPLER, "upsampler"), "model", GVR_TINY_UPSAMPLER)
        model = LatentUpsampler(config, device="meta")
        return peak_bytes(lambda: model(torch.zeros(1, 16, case.latent_frames, *case.source, device="meta"), case.size), "meta")
    config = parse_config(TinyVAEConfig, read_config(GVR_TINY_VAE, "tiny_vae"), "model", GVR_TINY_VAE)
    return coding_bytes(config, "decode", (1, 16, case.latent_frames, *case.size), dtype)


@dataclass(frozen=True)
class MemoryBenchmark:
    """Measures the peak memory of the sampler, the upsampler and decoding to a file, by the length of the clip."""

    latent_frames: tuple[int, ...] = (20, 200)
    """Two or more lengths of the clip, the shortest first. 200 latent frames are 797 video frames."""
    width: int = 256
    """Width of the video in pixels, a multiple of 8."""
    height: int = 192
    """Height of the video in pixels, a multiple of 8."""
    segment: int = 10
    """Latent frames that the sampler's model sees at a time."""
    device: str = default_device()
    """cpu or cuda."""
    out: Path = Path("out/benchmark")
    """Folder for memory.json and memory.md; files of an earlier run are replaced."""

    def run(self) -> dict:
        """Returns the measurements; peak_ratio is the largest of the parts' peaks with the longest clip over the shortest.

        Raises:
            ValueError: latent_frames are not two or more ascending lengths.
        """
        lengths = self.latent_frames
        if len(lengths) < 2 or list(lengths) != sorted(set(lengths)) or lengths[0] < 1:
            given = " ".join(map(str, lengths))
            raise ValueError(f"--latent-frames is {given}, wanted two or more lengths, the shortest first, such as 20 200")
        check_folder(self.out)
        size = self.height // SPATIAL_FACTOR, self.width // SPATIAL_FACTOR
        cases = [
            Case(part, frames, streamed, size, self.segment, self.device)
            for part in PARTS
            for frames, streamed in [*((frames, True) for frames in lengths), (lengths[0], False)]
        ]
        whole = [Case(part, frames, False, size, self.segment, self.device) for part in PARTS for frames in lengths]
        whole_counted = [{"part": case.part, "latent_frames": case.latent_frames, "bytes": counted(case)} for case in whole]
        rows = [asdict(case) | measure_apart(case) for case in tqdm(cases, unit="run")]
        ratios = {part: ratio([row["peak"] for row in rows if row["part"] == part and row["streamed"]]) for part in PARTS}
        above = {part: ratio([row["above"] for row in rows if row["part"] == part and row["streamed"]]) for part in PARTS}
        results = {
            "peak_ratio": max(ratios.values()),
            "ratio": ratios,
            "ratio_above_start": above,
            "whole_clip_counted": whole_counted,
            "threads": torch.get_num_threads(),
            **versions(),
            "rows": rows,
        }
        text = table(results)
        write_text(self.out / "memory.json", json.dumps(results, indent=1))
        write_text(self.out / "memory.md", f"{text}\n")
        print(f"{text}\n")
        return results


class Measurable(Protocol):
    """What measure_apart measures: it can be pickled."""

    def measure(self) -> dict: ...


def measure_apart(case: Measurable) -> dict:
    """Returns case.measure() of a fresh process. On Linux it returns freed memory at once: resident is what is alive."""
    with environment("MALLOC_MMAP_THRESHOLD_", str(2**20)), ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(case.measure).result()


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Sets an environment variable for the processes that the block starts."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def ratio(peaks: Sequence[int]) -> float:
    """Returns the largest of the peaks after the first over the first."""
    return max(peaks[1:]) / peaks[0]


def table(results: dict) -> str:
    """Returns the measurements as a table in Markdown."""
    lines = ["| part | latent frames | | peak MB | above the start MB | s |", "|---|---|---|---|---|---|"]
    for row in results["rows"]:
        how = "streamed" if row["streamed"] else "whole clip at once"
        numbers = f"{row['peak'] / 1e6:.0f} | {row['above'] / 1e6:.0f} | {row['seconds']:.1f}"
        lines.append(f"| {row['part']} | {row['latent_frames']} | {how} | {numbers} |")
    lines += [
        f"| {row['part']} | {row['latent_frames']} | whole clip at once, counted | - | {row['bytes'] / 1e6:.0f} | - |"
        for row in results["whole_clip_counted"]
    ]
    ratios = (f"{part} {value:.3f} ({results['ratio_above_start'][part]:.3f} above the start)" for part, value in results["ratio"].items())
    return "\n".join([*lines, "", f"Peaks of the longest clip over the shortest, streamed: {', '.join(ratios)}."])


def peak_resident() -> int:
    """Returns the most bytes that this process had resident."""
    if sys.platform == "linux":  # whose ru_maxrss begins with that of the process that started this one
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
