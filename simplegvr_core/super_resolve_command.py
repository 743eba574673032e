"""Super-resolves latents without ComfyUI: `simplegvr super-resolve --latents FILE_OR_FOLDER --out DIR [--workers N]`."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Literal

import torch
import tyro
from safetensors import safe_open
from tqdm import tqdm

from .checks import check_folder, check_host_memory
from .files import GVR_TINY, GVR_TINY_UPSAMPLER, sha256
from .latent_space import LATENT_CHANNELS, scaled_size
from .networks.checkpoint import parse_config
from .networks.dit import load_dit
from .networks.layers import default_device
from .networks.upsampler import load_upsampler
from .planning import boxes
from .planning.network_memory import dit_bytes, fastest_kernel, weight_bytes
from .sampling.cluster import Networks, Traffic, Worker, ray_runtime, worker_pool
from .sampling.comfyui_latent import LATENT_SUFFIXES, read_latent, read_latent_shape, write_latent_of_comfyui
from .sampling.context import read_context
from .sampling.latent_file import TensorFrames
from .sampling.refine import working_latents
from .sampling.super_resolve import SamplingConfig, takes_condition
from .sampling.super_resolve_to_file import Runtime, super_resolve_to_file, torch_runtime
from .tiling import WHOLE, padded

RUN = "simplegvr_run"  # metadata of a result: the checksum of what it was made of


@dataclass(frozen=True)
class SuperResolve:
    """Super-resolves a latent, or each latent of a folder, on this machine or on the workers of a ray cluster.

    A result is NAME.latent, which ComfyUI's Load Latent reads. A killed run is continued by the same command.
    """

    latents: Path
    """A latent of Wan 2.1 as ComfyUI's Save Latent writes it, or a folder of them."""
    out: Path
    """Folder for the results, another one than --latents."""
    model: Path = GVR_TINY
    """SimpleGVR checkpoint, or a text-to-video model of Wan 2.1."""
    upsampler: Path = GVR_TINY_UPSAMPLER
    """Upsampler of the same latents."""
    scale: float = 3.0
    """Width and height of the result over the input's."""
    context: Path | None = None
    """Safetensors file, tensor "context" (S, text_dim): the text encoder's features of the prompt. Without it, the null prompt."""
    negative: Path | None = None
    """Those of the negative prompt."""
    steps: int | None = None
    """Number of steps; by default as the checkpoint recommends."""
    denoise: float | None = None
    """First noise level, in (0, 1]; by default as the checkpoint recommends."""
    segment: int | None = None
    """Latent frames of a segment, of which each worker refines one at a time; by default the whole clip."""
    tile: tuple[int, int] | None = None
    """Height and width in latent pixels of the tiles of a frame; by default whole frames."""
    seed: int = 0
    """Seed of the starting noise; the condition's noise has the next one."""
    device: str = default_device()
    """Device of the networks: cpu, cuda, cuda:1 and so on; of a worker, cpu or cuda."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16" if default_device() == "cuda" else "float32"
    workers: int | None = None
    """Number of processes, by ray; without it and --ray, this process does all."""
    ray: str | None = None
    """Address of a ray cluster, or "local" to start one on this machine."""

    def run(self) -> dict:
        """Returns {"out", "latents", "made", "seconds", "sent_bytes", "received_bytes"}: the bytes are latents to and from workers.

        Raises:
            ValueError: There is no latent, options do not go together, or memory is missing.
            OSError: --out cannot be written, or has too little room.
            ImportError: --workers or --ray is given and ray is not installed.
        """
        if not self.latents.exists():
            raise ValueError(f"--latents is {self.latents}, which does not exist")
        if self.out.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"--out {self.out} is inside the folder of --latents {self.latents}: choose a folder elsewhere")
        found = [self.latents] if self.latents.is_file() else sorted(filter(is_latent, self.latents.rglob("*")))
        if not found:
            raise ValueError(f"--latents {self.latents} has no file {' or '.join(sorted(LATENT_SUFFIXES))}")
        check_folder(self.out)
        networks, start, traffic = self.networks(), perf_counter(), list[Traffic]()
        self.check_room(found, networks)
        with self.runtime(networks, traffic) as (runtime, at_once), ThreadPoolExecutor(at_once) as threads:
            made = threads.map(lambda path: self.resolve(path, networks, runtime), found)
            made = sum(tqdm(made, total=len(found), unit="latent", disable=len(found) == 1))
        moved = {"sent_bytes": sum(each.sent for each in traffic), "received_bytes": sum(each.received for each in traffic)}
        return {"out": str(self.out), "latents": len(found), "made": made, "seconds": perf_counter() - start, **moved}

    def check_room(self, found: list[Path], networks: Networks) -> None:
        """Raises OSError or ValueError unless the results and a run's working files fit --out, and the largest run the memory.

        The memory of workers is not known here. On a GPU, boxes that do not fit become smaller on the way.
        """
        shapes = {path: self.target_shape(path) for path in found}
        nbytes = {path: 4 * LATENT_CHANNELS * prod(shape) for path, shape in shapes.items()}
        working = working_latents(takes_condition(networks.model, networks.sampling), networks.sampling.solver) * max(nbytes.values())
        check_folder(self.out, working + sum(size for path, size in nbytes.items() if not self.target(path).exists()))
        if self.workers is not None or self.ray is not None:
            return
        largest = max(shapes, key=lambda path: prod(shapes[path]))
        check_host_memory(self.host_bytes(shapes[largest], networks), str(largest), "choose a smaller --segment or --tile, or --scale")

    def target_shape(self, path: Path) -> tuple[int, int, int]:
        """Returns (T, H, W) of the result of a latent."""
        _, _, frames, *size = read_latent_shape(path)
        return frames, *scaled_size((size[0], size[1]), self.scale)

    def host_bytes(self, shape: tuple[int, int, int], networks: Networks) -> int:
        """Returns the bytes that a result of (T, H, W) takes on the host while it is made: a segment, and on a CPU the largest box."""
        model, device = networks.model, torch.device(self.device)
        planned = boxes.Networks(model.config, model.attention)
        kernel = fastest_kernel(model.config, model.attention, device, networks.dtype)
        machine = boxes.Machine(0, networks.dtype, kernel, weight_bytes(model))
        box = (networks.tiling or WHOLE).tile_size(padded(shape))
        segment = boxes.host_bytes(planned, (1, *shape), box, machine)
        return segment + (dit_bytes(model.config, model.attention, 1, box, networks.dtype, kernel) if device.type == "cpu" else 0)

    @property
    def folder(self) -> Path:
        return self.latents if self.latents.is_dir() else self.latents.parent

    def networks(self) -> Networks:
        """Returns the networks of the files, with their settings and the command line's."""
        model, config = load_dit(self.model)
        chosen = {name: value for name in ("steps", "denoise") if (value := getattr(self, name)) is not None}
        sampling = replace(parse_config(SamplingConfig, config, "sampling", self.model), **chosen)
        context, negative = (path and read_context(path, model.config.text_dim)[None] for path in (self.context, self.negative))
        height, width = self.tile or (None, None)
        tiling, dtype = model.attention.tiling((self.segment, height, width)), getattr(torch, self.dtype)
        return Networks(model, load_upsampler(self.upsampler), sampling, tiling, context, negative, self.device, dtype)

    @contextmanager
    def runtime(self, networks: Networks, traffic: list[Traffic]) -> Iterator[tuple[Callable[[], Runtime], int]]:
        """Yields a function that makes the runtime of one clip, and the number of clips that are refined at once.

        Args:
            networks: What the runtime runs.
            traffic: Gets the traffic of each clip that workers refine.
        """
        if self.workers is None and self.ray is None:
            like = torch.zeros((), device=networks.device, dtype=networks.dtype)
            model, upsampler = networks.model.to(like), networks.upsampler.to(like)
            prompts = {"context": networks.context, "negative_context": networks.negative_context}
            prompts = {name: None if prompt is None else prompt.to(like) for name, prompt in prompts.items()}
            options = {"like": like, "sampling": networks.sampling, "tiling": networks.tiling, **prompts}
            yield lambda: torch_runtime(model, upsampler, **options), 1
            return
        with worker_pool(Worker, networks, device=self.device, workers=self.workers, address=self.ray or "local") as pool:

            def shared() -> Runtime:
                traffic.append(own := Traffic())
                return ray_runtime(pool, networks, own)

            yield shared, len(pool.actors)

    def resolve(self, path: Path, networks: Networks, runtime: Callable[[], Runtime]) -> bool:
        """Returns whether a latent was super-resolved; False where its result was there."""
        target, key = self.target(path), self.key(path)
        if run_of(target) == key:
            return False
        z_lr = read_latent(path).to(networks.dtype)
        working = target.with_suffix(f".{key[:12]}.working")
        working.mkdir(parents=True, exist_ok=True)
        size = scaled_size((z_lr.shape[3], z_lr.shape[4]), self.scale)
        options = {"sampling": networks.sampling, "seed": self.seed, "noise_seed": self.seed + 1}
        z = super_resolve_to_file(working, TensorFrames(z_lr), size, runtime(), **options)
        write_latent_of_comfyui(target, z[:], {RUN: key})
        shutil.rmtree(working)
        return True

    def target(self, path: Path) -> Path:
        return self.out / path.relative_to(self.folder).with_suffix(".latent")

    def key(self, path: Path) -> str:
        """Returns the checksum of all that a result depends on: options and files."""
        options = {key: str(value) for key, value in asdict(self).items() if key not in ("latents", "out", "device", "workers", "ray")}
        files = [path, *(file for file in (self.model, self.upsampler, self.context, self.negative) if file is not None)]
        return hashlib.sha256(json.dumps([options, [sha256(file) for file in files]]).encode()).hexdigest()


def is_latent(path: Path) -> bool:
    return path.suffix in LATENT_SUFFIXES


def run_of(path: Path) -> str | None:
    """Returns the checksum in the metadata of a result; None where there is none."""
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        return (file.metadata() or {}).get(RUN)


def main(arguments: Sequence[str]) -> dict:
    return tyro.cli(SuperResolve, prog="simplegvr super-resolve", args=arguments).run()
