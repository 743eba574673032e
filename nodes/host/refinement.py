"""Refinement inside ComfyUI: its guider, memory management, patches and previews, one box of the latent at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import node_helpers
import torch
from torch import Tensor
from tqdm import tqdm

from ...simplegvr_core.latent_space import pixels
from ...simplegvr_core.sampling.latent_file import LatentFile
from ...simplegvr_core.sampling.refine import STATE, TiledVelocity, finished_steps, refine
from ...simplegvr_core.tiling import Box, Tiling, padded
from .bridge import is_out_of_memory
from .preview import ClipPreview


@dataclass
class Run:
    """One refinement. upsampled: what it starts from. condition: None for a model without one.

    events: what the user should know afterwards; it grows.
    """

    upsampled: LatentFile
    condition: LatentFile | None
    sigmas: Tensor
    cfg: float
    seed: int
    tiling: Tiling
    alignment: tuple[int, int, int]
    folder: Path
    finish: Callable[[Tensor, int], Tensor]
    events: list[str] = field(default_factory=list)

    def sample(self, model, prompts: tuple) -> LatentFile:
        """Returns the refined latent, normalised. prompts: positive and negative CONDITIONING.

        ComfyUI is given an empty latent of one box, for which it prepares itself; the clip stays in files.
        """
        empty = torch.zeros(*self.upsampled.shape[:2], *self.largest)
        if self.condition is not None:
            prompts = tuple(node_helpers.conditioning_set_values(prompt, {"concat_latent_image": empty}) for prompt in prompts)
        done = finished_steps(self.folder)
        if done:
            self.events.append(f"Went on after step {done}, where an earlier run had stopped.")
        preview = ClipPreview(model, self.upsampled.shape[2])
        progress = Progress(preview, len(self.sigmas) - 1, done, [box.size for box in self.boxes])

        def euler(denoise, x: Tensor, sigmas: Tensor, extra_args: dict, callback, disable) -> Tensor:
            with progress.shown(disable):
                self.refine(denoise, x.device, extra_args, progress)
            return x

        sampler = comfy.samplers.KSAMPLER(euler)
        comfy.sample.sample_custom(model, empty, self.cfg, sampler, self.sigmas, *prompts, empty, seed=self.seed)
        return LatentFile(self.folder / STATE)

    @property
    def boxes(self) -> list[Box]:
        """Returns the boxes of a step. Odd sides are made even."""
        return self.tiling.boxes(padded(self.upsampled.shape[2:]))

    @property
    def largest(self) -> tuple[int, int, int]:
        return self.tiling.tile_size(padded(self.upsampled.shape[2:]))

    def describe(self) -> str:
        """Returns in words how much the model sees at a time."""
        return f"{len(self.boxes)} boxes a step, of {describe_box(self.largest)}." if len(self.boxes) > 1 else "The whole video at a time."

    def refine(self, denoise, device: torch.device, extra_args: dict, progress: "Progress") -> None:
        """Integrates to sigma 0. denoise: ComfyUI's (z_t, sigma (B,)) -> predicted clean latent, around its guider."""

        def network(z: Tensor, condition: Tensor | None, sigma: Tensor) -> Tensor:
            if condition is not None:
                set_condition(denoise.inner_model, condition.to(device))
            z, sigma = z.to(device), sigma.to(device)
            return ((z - denoise(z, sigma.expand(len(z)), **extra_args)) / sigma).float().cpu()

        velocity = TiledVelocity(network, self.tiling, self.alignment, progress.add, self.out_of_memory, is_out_of_memory)
        refine(velocity, self.upsampled, self.condition, self.sigmas, self.seed, self.folder, progress.preview, self.finish)

    def out_of_memory(self, size: tuple[int, int, int], tiling: Tiling) -> None:
        """Frees what ComfyUI caches, and notes what happened."""
        comfy.model_management.soft_empty_cache()
        self.events.append(f"Out of memory with {describe_box(size)}: went on with {describe_box(tiling.tile_size(size))} at a time.")


def set_condition(guider: comfy.samplers.CFGGuider, condition: Tensor) -> None:
    """Gives the guider's prompts the condition of the box that comes next, normalised."""
    for prompts in guider.conds.values():
        for prompt in prompts:
            held = prompt["model_conds"]["c_concat"]
            prompt["model_conds"]["c_concat"] = held._copy_with(condition)


class Progress:
    """ComfyUI's progress bar and previews, and a bar on the console, in boxes."""

    def __init__(self, preview: ClipPreview, steps: int, done: int, sizes: list[tuple[int, int, int]]):
        """steps, done: all of them, and those of an earlier run. sizes: of a step's boxes."""
        cells = sum(t * h * w for t, h, w in sizes)
        self.cells, self.cells_per_box = done * cells, cells / len(sizes)
        self.clip = preview
        self.bar = comfy.utils.ProgressBar(steps * len(sizes))

    @contextmanager
    def shown(self, disable: bool) -> Iterator[None]:
        """While open, the console's bar is there."""
        with tqdm(total=self.bar.total, disable=disable) as self.console:
            yield

    def add(self, cells: int) -> None:
        """Counts a box of so many cells. Boxes that were cut for want of memory overlap, so they are a little more."""
        self.cells += cells
        self.update(min(round(self.cells / self.cells_per_box), self.bar.total))

    def preview(self, step: int, first: int, z_0: Tensor) -> None:
        """Shows the clip as it stands, with the frames of the predicted clean latent from first on."""
        self.clip.add(first, z_0)
        if picture := self.clip.image(last=self.console.n == self.bar.total):
            self.update(self.console.n, picture)

    def update(self, done: int, picture=None) -> None:
        self.console.update(done - self.console.n)
        self.bar.update_absolute(done, self.bar.total, picture)


def describe_box(size: tuple[int, int, int]) -> str:
    return f"{size[0]} latent frames of {pixels(size[1:])}"


def ancestry(get_node: Callable[[str], dict], node_id: str) -> dict:
    """Returns the node and all that it depends on, {id: node}, as they stand in the prompt.

    get_node: id -> node. The node's own tiling is left out: a run that was too large for the memory goes on in smaller
    boxes.
    """
    wanted, needed = [node_id], {}
    while wanted:
        name = wanted.pop()
        if name not in needed:
            node = get_node(name)
            inputs = {key: value for key, value in node["inputs"].items() if name != node_id or key.split(".")[0] != "tiling"}
            needed[name] = {"class_type": node["class_type"], "inputs": inputs}
            wanted += [value[0] for value in inputs.values() if isinstance(value, list)]
    return needed
