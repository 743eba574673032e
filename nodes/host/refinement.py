"""Refinement inside ComfyUI: its guider, memory management, patches and previews, one box of the latent at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import node_helpers
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor
from tqdm import tqdm

from ...simplegvr_core.checks import amount
from ...simplegvr_core.latent_space import pixels, token_grid
from ...simplegvr_core.networks.slab_memory import slab_memory
from ...simplegvr_core.sampling.latent_file import LatentFile, LatentFrames
from ...simplegvr_core.sampling.refine import Refinement, TiledVelocity, refine
from ...simplegvr_core.sampling.super_resolve_to_file import Append, Runtime
from ...simplegvr_core.tiling import Tiling, padded
from .boxes import BoxedGuider, with_option
from .bridge import LATENT_FORMAT, is_out_of_memory, upsample, upsampler_network
from .networks import MEMORY_OPTION
from .override import attention_of
from .planning import box_bytes, describe_attention
from .preview import ClipPreview
from .prompts import Prompts, obstacles_to_boxes
from .sampling import takes_condition


@dataclass
class ComfyRun:
    """ComfyUI's side of one super-resolution: its memory management, guider, patches, progress, interrupt and previews.

    Attributes:
        node: The node that errors name.
        model: The MODEL.
        upsampler: The LATENT_UPSCALE_MODEL.
        prompts: The prompts, fitted to the target.
        cfg: Guidance scale.
        tiling: Boxes that the model is given one at a time.
        events: What happened on the way, for the report; it grows.
    """

    node: type[io.ComfyNode]
    model: ModelPatcher
    upsampler: ModelPatcher
    prompts: Prompts
    cfg: float
    tiling: Tiling
    events: list[str] = field(default_factory=list)

    @property
    def takes_condition(self) -> bool:
        return takes_condition(self.model, self.node)

    def runtime(self) -> Runtime:
        """Returns what super_resolve_to_file needs of ComfyUI. The result is in VAE space."""
        latents = upsampler_network(self.upsampler, self.node).config.latents
        return Runtime(self.upsample, self.integrate, self.takes_condition, latents, LATENT_FORMAT.process_out, self.events.append)

    def upsample(self, z_lr: LatentFrames, size: tuple[int, int], append: Append) -> None:
        upsample(self.upsampler, z_lr, size, append, self.node)

    def integrate(self, refinement: Refinement) -> LatentFile:
        """Returns the refined latent's file. ComfyUI prepares itself for one empty box; the clip stays in files."""
        B, C, T, H, W = refinement.upsampled.shape
        extent = padded((T, H, W))
        boxes = [box.size for box in self.tiling.boxes(extent)]
        empty = torch.zeros(B, C, *self.largest_box((T, H, W)))
        positive, negative = self.prompts.positive, self.prompts.negative
        attention = attention_of(self.model)
        if self.takes_condition:
            with_empty = partial(node_helpers.conditioning_set_values, values={"concat_latent_image": empty})
            positive, negative = with_empty(positive), with_empty(negative)
        if refinement.finished_steps:
            self.events.append(f"Resumed after step {refinement.finished_steps} of an earlier run.")
        refined = []
        progress = Progress(ClipPreview(self.model, T), refinement.steps, refinement.finished_steps, boxes)

        def euler(denoise, x: Tensor, sigmas: Tensor, extra_args: dict, callback, disable) -> Tensor:
            memory = slab_memory(attention, T)
            if memory is not None:
                extra_args = with_option(extra_args, MEMORY_OPTION, memory)
            guider = BoxedGuider(
                denoise,
                extra_args,
                extent=extent,
                device=x.device,
                uncuttable=obstacles_to_boxes(self.model, self.prompts),
                causal=memory is not None,
                node=self.node,
            )
            velocity = TiledVelocity(
                guider,
                self.tiling,
                attention.alignment,
                progress.add,
                self.out_of_memory,
                is_out_of_memory,
                memory,
                before_box=guider.enter,
            )
            with progress.shown(disable):
                refined.append(refine(velocity, refinement, progress.preview))
            guider.close()
            self.events.extend(guider.report())
            return x

        sampler = comfy.samplers.KSAMPLER(euler)
        comfy.sample.sample_custom(self.model, empty, self.cfg, sampler, refinement.sigmas, positive, negative, empty, seed=refinement.seed)
        return refined[0]

    def largest_box(self, extent: tuple[int, int, int]) -> tuple[int, int, int]:
        return self.tiling.tile_size(padded(extent))

    def describe(self, shape: tuple[int, int, int, int]) -> list[str]:
        """Returns what runs on a latent of shape (B, T, H, W), as sentences: the attention, the counted memory, the boxes."""
        batch, T, H, W = shape
        largest, count = self.largest_box((T, H, W)), len(self.tiling.boxes(padded((T, H, W))))
        return [
            f"Attention: {describe_attention(self.model, token_grid(largest))}.",
            f"Memory: {amount(box_bytes(self.model, batch, largest))} for the model's largest box, counted, beside "
            f"{amount(self.model.model_size())} of weights.",
            f"{count} boxes a step, of {describe_box(largest)}." if count > 1 else "The whole video at a time.",
        ]

    def out_of_memory(self, size: tuple[int, int, int], tiling: Tiling) -> None:
        """Frees what ComfyUI caches, and notes what happened."""
        comfy.model_management.soft_empty_cache()
        self.events.append(f"Out of memory with {describe_box(size)}: continued with {describe_box(tiling.tile_size(size))} at a time.")


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
