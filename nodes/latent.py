"""Nodes on latents and what surrounds them: upscale, conditioning for stock samplers, null prompt, trimming."""

import node_helpers
import torch
from comfy_api.latest import io
from torch import Tensor

from ..simplegvr_core.sampling.super_resolve import augment_condition
from .host.bridge import CATEGORY, LATENT_FORMAT, NormalizedFrames, latent_samples, size_input, target_size, to_core, to_latent, upsample

TEXT_DIM = 4096  # of Wan's text encoder


class SimpleGVRLatentUpscale(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SimpleGVRLatentUpscale",
            display_name="SimpleGVR Latent Upscale",
            category=CATEGORY,
            description="Upsamples a Wan 2.1 video latent to any larger size without decoding it. "
            "Follow it with SimpleGVR Conditioning, or decode it to see the upsampler's work alone.",
            search_aliases=["upscale latent", "latent upsampler", "resize latent"],
            inputs=[
                io.LatentUpscaleModel.Input("upsampler", tooltip="From Load SimpleGVR Upsampler."),
                io.Latent.Input("latent", tooltip="Low-resolution video latent, for example of a Wan 2.1 KSampler."),
                size_input(),
            ],
            outputs=[io.Latent.Output(display_name="upscaled", tooltip="The latent at the target size.")],
        )

    @classmethod
    def execute(cls, upsampler, latent: dict, size: dict) -> io.NodeOutput:
        samples = latent_samples(latent, cls)
        frames = []
        upsample(upsampler, NormalizedFrames(samples), target_size(size, samples, cls), frames.append, cls)
        return io.NodeOutput(to_latent(LATENT_FORMAT.process_out(torch.cat(frames, dim=2))))


class SimpleGVRConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SimpleGVRConditioning",
            display_name="SimpleGVR Conditioning",
            category=CATEGORY,
            description="Prepares stock samplers for a SimpleGVR model: the upscaled latent becomes the condition, "
            "and an empty latent of its size the place to sample in.",
            search_aliases=["super resolution conditioning", "concat latent"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="Prompt, or SimpleGVR Null Prompt."),
                io.Conditioning.Input("negative", tooltip="Negative prompt, or SimpleGVR Null Prompt."),
                io.Latent.Input("upscaled", tooltip="From SimpleGVR Latent Upscale, already at the target size."),
                noise_augmentation_input(),
                noise_seed_input(),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with the condition."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt with the condition."),
                io.Latent.Output(display_name="latent", tooltip="Empty latent at the target size; sample with denoise 1."),
            ],
        )

    @classmethod
    def execute(cls, positive, negative, upscaled: dict, noise_augmentation: float, noise_seed: int) -> io.NodeOutput:
        samples = latent_samples(upscaled, cls)
        positive, negative = add_condition((positive, negative), to_core(samples), noise_augmentation, noise_seed)
        return io.NodeOutput(positive, negative, to_latent(torch.zeros_like(samples)))


class SimpleGVRNullPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SimpleGVRNullPrompt",
            display_name="SimpleGVR Null Prompt",
            category=CATEGORY,
            description="A conditioning that says nothing, without loading a text encoder. SimpleGVR models are trained with it.",
            search_aliases=["empty prompt", "no prompt", "unconditional"],
            inputs=[],
            outputs=[io.Conditioning.Output(tooltip="The null prompt, for positive and negative alike.")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(null_prompt())


class SimpleGVRTrim(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SimpleGVRTrim",
            display_name="SimpleGVR Trim",
            category=CATEGORY,
            description="Cuts a decoded video to scale times its source. Latents hold whole 8x8 pixel cells and 4n + 1 frames, "
            "so a source of another size comes out with a repeated edge. (At a fractional scale the picture is stretched by "
            "less than one cell.)",
            search_aliases=["crop to source", "exact size"],
            inputs=[
                io.Image.Input("images", tooltip="The decoded, super-resolved video."),
                io.Image.Input("source", tooltip="The video that was encoded."),
                io.Float.Input("scale", default=3.0, min=1.0, max=8.0, step=0.01, tooltip="The scale given to SimpleGVR Sampler."),
                io.Boolean.Input(
                    "even",
                    default=True,
                    tooltip="Round odd sizes down to even, as Save Video's H.264 needs. Off: exactly scale times the source.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="As many frames as the source, each scale times its size.")],
        )

    @classmethod
    def execute(cls, images: Tensor, source: Tensor, scale: float, even: bool) -> io.NodeOutput:
        wanted = (source.shape[0], round(source.shape[1] * scale), round(source.shape[2] * scale))
        if any(have < want for have, want in zip(images.shape, wanted, strict=False)):
            raise ValueError(
                f"SimpleGVR Trim: the images are {tuple(images.shape[:3])} frames, height, width, less than the {wanted} "
                "that source and scale ask for: give it the scale of SimpleGVR Sampler and the video that was encoded"
            )
        frames, height, width = wanted
        if even:
            height, width = height - height % 2, width - width % 2
        return io.NodeOutput(images[:frames, :height, :width])


def null_prompt() -> list:
    """Returns a CONDITIONING of one zero token, what SimpleGVR models are trained with. Any number of them says the same."""
    return [[torch.zeros(1, 1, TEXT_DIM), {}]]


def add_condition(conditionings: tuple, upsampled: Tensor, noise_augmentation: float, noise_seed: int) -> tuple:
    """Returns the CONDITIONINGs with the noised condition, in VAE space, where ComfyUI's Wan models look for it.

    upsampled: (B, 16, T, H, W) normalised.
    """
    condition = LATENT_FORMAT.process_out(augment_condition(upsampled, noise_augmentation, noise_seed))
    return tuple(node_helpers.conditioning_set_values(c, {"concat_latent_image": condition}) for c in conditionings)


def noise_augmentation_input() -> io.Float.Input:
    """Returns the `noise_augmentation` input."""
    return io.Float.Input(
        "noise_augmentation",
        default=0.4,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="Noise share of the condition. Low keeps to the source, high lets the model correct and invent. "
        "The paper trains with 0.3 to 0.6; gvr_tiny does best at 0.",
    )


def noise_seed_input() -> io.Int.Input:
    """Returns the `noise_seed` input."""
    return io.Int.Input(
        "noise_seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=io.ControlAfterGenerate.fixed,
        tooltip="Draws the condition's noise, once for all steps.",
        advanced=True,
    )
