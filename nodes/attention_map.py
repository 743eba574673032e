"""SimpleGVR Attention Map: which windows of a video a window attends to, to look at."""

from dataclasses import dataclass, field

import comfy.sample
import comfy.samplers
import latent_preview
import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ..simplegvr_core.flow import positional_noise
from ..simplegvr_core.latent_space import SPATIAL_FACTOR, first_frame, latent_frames
from ..simplegvr_core.networks.attention import AttentionConfig, DenseAttention
from ..simplegvr_core.networks.attention_map import TOKEN, AttentionMap, draw_map, map_attention
from ..simplegvr_core.networks.windows import TokenLayout
from .host.attention import RunAttention
from .host.bridge import CATEGORY, add_condition, latent_samples, null_prompt, refuse, rgb_frames, to_core, to_image
from .host.inputs import seed_input
from .host.override import attention_of, with_attention
from .host.sampling import recommended, takes_condition

PREVIEW_SIDE = 512  # pixels
PREVIEW_RATE = 4  # frames a second: the numbers are to be read


class SimpleGVRAttentionMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SimpleGVRAttentionMap",
            display_name="SimpleGVR Attention Map",
            category=CATEGORY,
            description="Shows the attention of a model with sparse local attention: for one window of the video, the other windows "
            "that a block selects for it, over all frames. The model runs once, at one noise level.",
            search_aliases=["attention map", "visualise attention", "window selection", "sparse attention"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="A SimpleGVR model, or a stock Wan model behind SimpleGVR Sparse Attention."),
                io.Latent.Input(
                    "latent",
                    tooltip="Video latent at full size, from a sampler or SimpleGVR Latent Upscale. It is the clean latent and, for a "
                    "SimpleGVR model, also the condition.",
                ),
                io.Int.Input(
                    "x",
                    default=0,
                    min=0,
                    max=16384,
                    tooltip="Horizontal position of a pixel in the window, from the left edge of the video.",
                ),
                io.Int.Input(
                    "y", default=0, min=0, max=16384, tooltip="Vertical position of a pixel in the window, from the top edge of the video."
                ),
                io.Int.Input("frame", default=0, min=0, max=1 << 20, tooltip="Video frame in the window, counted from 0."),
                io.Int.Input(
                    "block",
                    default=0,
                    min=0,
                    max=255,
                    tooltip="Block of the model, counted from 0. Odd blocks have shifted temporal units.",
                ),
                io.Int.Input("head", default=0, min=0, max=255, tooltip="Attention head, counted from 1; 0 shows all heads together."),
                io.Float.Input(
                    "sigma",
                    default=0.3,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Noise level of the video that the model is given; 1 is pure noise. The selected windows change with it.",
                ),
                seed_input("Seed of the noise."),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="Prompt of the video. Not connected: the null prompt, which stock Wan models are not trained with.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Decoded video to draw on. Not connected: a preview of the latent, one picture per latent frame.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="map",
                    tooltip="The video with the window in white and the windows that it attends to in orange, numbered. The orange is "
                    "stronger where more heads select a window.",
                ),
                io.String.Output(display_name="report", tooltip="The selected windows as text, with heads, ranks and scores."),
                io.Mask.Output(display_name="mask", tooltip="Share of the heads that select each pixel's window."),
            ],
        )

    @classmethod
    def execute(cls, model, latent, x, y, frame, block, head, sigma, seed, positive=None, images=None) -> io.NodeOutput:
        samples, config = latent_samples(latent, cls)[:1], attention_of(model)
        images = None if images is None else rgb_frames(images, cls, "images")
        check(model, config, samples.shape, (x, y, frame), (block, head), images)
        token = latent_frames(frame + 1) - 1, y // TOKEN, x // TOKEN
        attention = MappedAttention(config, block=block, token=token, head=head - 1 if head else None)
        run_once(with_attention(model, attention), samples, sigma, seed, positive or null_prompt(), cls)
        if not attention.maps:
            raise refuse(cls, "the model ran with dense attention; ComfyUI's log says why")
        found = attention.maps[-1]
        pictures = latent_pictures(model, samples) if images is None else [to_picture(image) for image in images]
        numbers = range(len(pictures)) if images is None else [latent_frames(i + 1) - 1 for i in range(len(pictures))]
        width, height = pictures[0].size
        side = TOKEN / SPATIAL_FACTOR * height / samples.shape[3], TOKEN / SPATIAL_FACTOR * width / samples.shape[4]
        drawn = [draw_map(found, picture, number, side) for picture, number in zip(pictures, numbers, strict=True)]
        mask = torch.stack([share_map(found, number, (height, width), side) for number in numbers])
        size = SPATIAL_FACTOR * samples.shape[3], SPATIAL_FACTOR * samples.shape[4]
        report = f"Block {block}, noise level {sigma:.2f}.\n{found.describe(size)}"
        shown = {**ui.PreviewText(report).as_dict(), **preview(drawn, cls).as_dict()}
        return io.NodeOutput(torch.stack([to_image(picture) for picture in drawn]), report, mask, ui=shown)


@dataclass(frozen=True)
class MappedAttention(RunAttention):
    """Attention that also notes, in maps, what the window that holds token selects in one block. head: from 0; None asks all."""

    block: int = 0
    token: tuple[int, int, int] = (0, 0, 0)
    head: int | None = None
    maps: list[AttentionMap] = field(default_factory=list)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, block: int, dense: DenseAttention) -> Tensor:
        if block == self.block:
            q_, k_ = q.to(v.dtype), k.to(v.dtype)
            self.maps.append(map_attention(q_, k_, layout, self.config, block, token=self.token, head=self.head))
        return super().__call__(q, k, v, layout, block, dense)


def check(model, config: AttentionConfig, shape: tuple[int, ...], place: tuple[int, int, int], asked: tuple[int, int], images) -> None:
    """Raises ValueError unless the model selects windows and there are such a place, block and head, and not too many images."""
    (x, y, frame), (block, head) = place, asked
    if config.kind not in ("sparse_local", "block_causal"):
        raise refuse(
            SimpleGVRAttentionMap,
            f"the model's attention is of kind {config.kind}, which selects no windows: put SimpleGVR Sparse Attention before it, "
            "with preset paper, balanced or custom",
        )
    frames, height, width = first_frame(shape[2]), SPATIAL_FACTOR * shape[3], SPATIAL_FACTOR * shape[4]
    if frame >= frames or y >= height or x >= width:
        raise refuse(
            SimpleGVRAttentionMap,
            f"x {x}, y {y}, frame {frame} is outside the video: the latent holds {frames} frames of {width} x {height} pixels, "
            "counted from 0",
        )
    blocks = model.model.diffusion_model.blocks
    heads = blocks[0].self_attn.num_heads
    if block >= len(blocks) or head > heads:
        raise refuse(
            SimpleGVRAttentionMap,
            f"block is {block} and head is {head}: the model has blocks 0 to {len(blocks) - 1}, heads 1 to {heads}; head 0 is all",
        )
    if images is not None and len(images) > frames:
        raise refuse(
            SimpleGVRAttentionMap, f"there are {len(images)} images, but the latent holds {frames} frames: connect the video of this latent"
        )


def run_once(model, samples: Tensor, sigma: float, seed: int, prompt: list, node: type[io.ComfyNode]) -> None:
    """Runs model on samples noised to sigma, which are its condition too if it takes one."""
    if takes_condition(model, node):
        (prompt,) = add_condition((prompt,), to_core(samples), recommended(model).noise_augmentation, seed)

    def once(denoise, z: Tensor, sigmas: Tensor, extra_args: dict, callback, disable) -> Tensor:
        return denoise(z, sigmas[0].expand(len(z)), **extra_args)

    sampler, sigmas = comfy.samplers.KSAMPLER(once), torch.tensor([sigma, 0.0])
    comfy.sample.sample_custom(
        model, positional_noise(samples.shape, seed), 1.0, sampler, sigmas, prompt, prompt, samples, disable_pbar=True, seed=seed
    )


def latent_pictures(model, samples: Tensor) -> list[Image.Image]:
    """Returns a picture of each latent frame at the video's size, in the colors of ComfyUI's previews."""
    z, latent_format = to_core(samples), model.model.latent_format
    previewer = latent_preview.Latent2RGBPreviewer(latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias)
    small = [previewer.decode_latent_to_preview(z[:, :, i : i + 1]) for i in range(z.shape[2])]
    return [
        picture.resize((SPATIAL_FACTOR * picture.width, SPATIAL_FACTOR * picture.height), Image.Resampling.BILINEAR) for picture in small
    ]


def share_map(found: AttentionMap, number: int, size: tuple[int, int], side: tuple[float, float]) -> Tensor:
    """Returns (H, W) the share of heads that select each pixel's window in a latent frame. side: of a token, in pixels."""
    mask = torch.zeros(size)
    for window in found.selected:
        (start, top, left), (stop, bottom, right) = window.box.start, window.box.stop
        if start <= number < stop:
            mask[round(top * side[0]) : round(bottom * side[0]), round(left * side[1]) : round(right * side[1])] = window.share
    return mask


def preview(pictures: list[Image.Image], node: type[io.ComfyNode]) -> ui.SavedImages:
    """Returns the pictures, animated and small, to show on the node."""
    for picture in (small := [picture.copy() for picture in pictures]):
        picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    saved = ui.ImageSaveHelper.save_animated_webp(
        [to_image(picture) for picture in small],
        filename_prefix="SimpleGVR_attention_map",
        folder_type=io.FolderType.temp,
        cls=node,
        fps=PREVIEW_RATE,
        lossless=False,
        quality=90,
        method=0,
    )
    return ui.SavedImages([saved], is_animated=len(small) > 1)


def to_picture(image: Tensor) -> Image.Image:
    """Returns the picture, RGB, of an image (H, W, 3) in [0, 1]."""
    return Image.fromarray((255 * image.float().cpu().clamp(0, 1)).round().byte().contiguous().numpy())
