"""Nodes on latents and what surrounds them: upscale, conditioning for stock samplers, null prompt, trimming."""

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from .host.bridge import (
    CATEGORY,
    LATENT_FORMAT,
    NormalizedFrames,
    add_condition,
    latent_samples,
    named_choices,
    null_prompt,
    refuse,
    rgb_frames,
    target_size,
    to_core,
    to_latent,
    upsample,
)
from .host.inputs import noise_augmentation_input, noise_seed_input, size_input


class SimpleGVRLatentUpscale(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SimpleGVRLatentUpscale",
            display_name="SimpleGVR Latent Upscale",
            category=CATEGORY,
            description="Upsamples a Wan 2.1 video latent to any larger size without decoding it. Connect SimpleGVR Conditioning "
            "after it, or decode it to see the result of the upsampler alone.",
            search_aliases=["upscale latent", "latent upsampler", "resize latent"],
            inputs=[
                io.LatentUpscaleModel.Input("upsampler", tooltip="Upsampler from Load SimpleGVR Upsampler."),
                io.Latent.Input("latent", tooltip="Low-resolution video latent, for example from a Wan 2.1 KSampler."),
                size_input(),
            ],
            outputs=[io.Latent.Output(display_name="upscaled", tooltip="The latent at the target size.")],
        )

    @classmethod
    @named_choices
    def execute(cls, upsampler: ModelPatcher, latent: dict, size: dict) -> io.NodeOutput:
        samples = latent_samples(latent, cls)
        frames = []
        upsample(upsampler, NormalizedFrames(samples), target_size(size, samples, cls, upsampler), frames.append, cls)
        return io.NodeOutput(to_latent(LATENT_FORMAT.process_out(torch.cat(frames, dim=2))))


class SimpleGVRConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SimpleGVRConditioning",
            display_name="SimpleGVR Conditioning",
            category=CATEGORY,
            description="Prepares a SimpleGVR model for stock samplers: adds the upscaled latent to the prompts as the condition, and "
            "gives an empty latent of the same size to sample.",
            search_aliases=["super resolution conditioning", "concat latent"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="Prompt, or SimpleGVR Null Prompt."),
                io.Conditioning.Input("negative", tooltip="Negative prompt, or SimpleGVR Null Prompt."),
                io.Latent.Input("upscaled", tooltip="Upscaled latent from SimpleGVR Latent Upscale, at the target size."),
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
    def execute(cls, positive: list, negative: list, upscaled: dict, noise_augmentation: float, noise_seed: int) -> io.NodeOutput:
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
            description="Gives the null prompt without a text encoder. SimpleGVR models are trained with it.",
            search_aliases=["empty prompt", "no prompt", "unconditional"],
            inputs=[],
            outputs=[io.Conditioning.Output(tooltip="The null prompt, for positive and negative.")],
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
            description="Cuts a decoded video to scale times the size of its source. A latent has sides in multiples of 8 pixels and "
            "4n + 1 frames, so a source of another size comes out with a repeated edge. (At a fractional scale the "
            "picture is stretched by less than 8 pixels.)",
            search_aliases=["crop to source", "exact size"],
            inputs=[
                io.Image.Input("images", tooltip="The decoded, super-resolved video."),
                io.Image.Input("source", tooltip="Video that was encoded."),
                io.Float.Input("scale", default=3.0, min=1.0, max=8.0, step=0.01, tooltip="The scale of SimpleGVR Sampler."),
                io.Boolean.Input(
                    "even",
                    default=True,
                    tooltip="Rounds odd sizes down to even, which H.264 in Save Video needs. Off: exactly scale times the source.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="The video with the frames of the source, at scale times its size.")],
        )

    @classmethod
    def execute(cls, images: Tensor, source: Tensor, scale: float, even: bool) -> io.NodeOutput:
        rgb_frames(images, cls, "images")  # checks it; the channels are left
        rgb_frames(source, cls, "source")
        wanted = (source.shape[0], round(source.shape[1] * scale), round(source.shape[2] * scale))
        if any(have < want for have, want in zip(images.shape, wanted, strict=False)):
            raise refuse(
                cls,
                f"the images are {tuple(images.shape[:3])} frames, height, width, less than the {wanted} "
                "that source and scale ask for: give it the scale of SimpleGVR Sampler and the video that was encoded",
            )
        frames, height, width = wanted
        if even:
            height, width = height - height % 2, width - width % 2
        return io.NodeOutput(images[:frames, :height, :width])
