"""SimpleGVR Sampler: low-resolution LATENT in, super-resolved LATENT out."""

from dataclasses import replace

from comfy_api.latest import io, ui
from torch import Tensor

from ..simplegvr_core.latent_space import LATENT_CHANNELS, SPATIAL_FACTOR, pixels
from ..simplegvr_core.networks.attention import AttentionConfig
from ..simplegvr_core.sampling.super_resolve import SamplingConfig
from ..simplegvr_core.sampling.super_resolve_to_file import super_resolve_to_file
from ..simplegvr_core.tiling import Tiling, aligned_tiling
from .host.bridge import (
    CATEGORY,
    NormalizedFrames,
    latent_samples,
    seed_input,
    size_input,
    target_size,
    to_latent,
    upsampler_network,
)
from .host.planning import run_tiling
from .host.refinement import ComfyRun, ancestry
from .host.working_files import fingerprint, working_folder
from .latent import noise_augmentation_input, noise_seed_input, null_prompt
from .sparse_attention import attention_of

TRAINING_FREE = SamplingConfig(steps=20, cfg=6.0, denoise=0.4)  # cfg: Wan 2.1's own


class SimpleGVRSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SimpleGVRSampler",
            display_name="SimpleGVR Sampler",
            category=CATEGORY,
            description="Super-resolves the latent of a text-to-video sampler, or an encoded video: upsamples it in latent "
            "space and refines it at the target size. With a stock 16-channel Wan model it works training-free.",
            search_aliases=["video super resolution", "upscale video", "hires fix", "Wan 1080p", "latent upscale"],
            inputs=[
                io.Model.Input("model", tooltip="From Load SimpleGVR Model; or a stock Wan 2.1 model for training-free mode."),
                io.LatentUpscaleModel.Input("upsampler", tooltip="From Load SimpleGVR Upsampler."),
                io.Latent.Input("latent", tooltip="Low-resolution video latent, for example of a Wan 2.1 KSampler."),
                size_input(),
                seed_input("Draws the starting noise. The same seed gives the same video."),
                settings_input(),
                noise_seed_input(),
                io.Conditioning.Input(
                    "positive", optional=True, tooltip="The video's prompt. Left open: the null prompt; training-free mode needs a prompt."
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="Negative prompt, used when cfg is not 1. Left open: the null prompt; training-free mode needs a prompt.",
                ),
                tiling_input(),
                io.Float.Input(
                    "color_match",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="How far colors of large areas are held to the source's, frame by frame: 1 exactly, 0 not at all.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "resume",
                    default=False,
                    optional=True,
                    tooltip="Keep each step's result in ComfyUI's output folder until the video is done. The same run, queued again after "
                    "a cancel or a crash, goes on from its last step.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Latent.Output(tooltip="The super-resolved latent: decode it with the VAE of the source."),
                io.String.Output(display_name="report", tooltip="What was done: mode, sizes, noise levels, and what happened on the way."),
            ],
            hidden=[io.Hidden.dynprompt, io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        upsampler,
        latent,
        size,
        seed,
        settings,
        noise_seed,
        positive=None,
        negative=None,
        tiling=None,
        color_match=1.0,
        resume=False,
    ) -> io.NodeOutput:
        samples = latent_samples(latent, cls)
        target = target_size(size, samples, cls)
        condition_free = takes_no_condition(model, cls)
        sampling = sampling_config(model, settings, condition_free)
        if condition_free and sampling.denoise == 1:
            raise ValueError(
                "SimpleGVR Sampler: denoise is 1 with a stock Wan model, which would ignore the source: "
                "set denoise to 0.3-0.6 for training-free mode, or load a SimpleGVR model"
            )
        if condition_free and (positive is None or (negative is None and sampling.cfg != 1)):
            raise ValueError(
                "SimpleGVR Sampler: a stock Wan model is not trained with the null prompt: "
                "connect the positive and negative prompt of the video's own sampler"
            )
        if "context_handler" in model.model_options:
            raise ValueError(
                "SimpleGVR Sampler: the model has context windows, but the sampler cuts long videos itself: "
                "remove the context windows node, and choose segments in tiling"
            )
        upsampler_network(upsampler, cls)
        attention, extent = attention_of(model), (samples.shape[2], *target)
        boxes = chosen_tiling(tiling, attention) or planned_tiling(model, samples, target)
        prompts = positive or null_prompt(), negative or null_prompt()
        run = ComfyRun(cls, model, upsampler, prompts, sampling.cfg, boxes, attention.alignment, not condition_free)
        name = None
        if resume:
            run_of = ancestry(cls.hidden.dynprompt.get_node, cls.hidden.unique_id)
            name = fingerprint(run_of, samples, model, upsampler)
        with working_folder(name) as folder:
            options = {"sampling": sampling, "seed": seed, "noise_seed": noise_seed, "color_match": color_match}
            out = super_resolve_to_file(folder, NormalizedFrames(samples), target, run.runtime(), **options)[:]
        mode = (
            f"Training-free: a stock 16-channel Wan model refined the upsampled latent from noise level {sampling.denoise:.2f}."
            if condition_free
            else f"SimpleGVR: condition with noise share {sampling.noise_augmentation:.2f}, from noise level {sampling.denoise:.2f}."
        )
        lines = [
            mode,
            f"{pixels(samples.shape[3:])} -> {pixels(target)}, {samples.shape[2]} latent frames, "
            f"{sampling.steps} steps, cfg {sampling.cfg:g}, shift {sampling.shift:g}.",
            run.describe(extent),
            *run.events,
        ]
        report = "\n".join(lines)
        return io.NodeOutput(to_latent(out), report, ui=ui.PreviewText(report))


def tiling_input() -> io.DynamicCombo.Input:
    """Returns the `tiling` input: how much of the video the model sees at a time."""
    return io.DynamicCombo.Input(
        "tiling",
        optional=True,
        tooltip="How much of the video the model sees at a time. auto: as much as fits the memory. whole: all of it. custom: "
        "your own; SimpleGVR Plan shows what fits. Neighbours overlap and are blended at every step, so there are no seams.",
        options=[
            io.DynamicCombo.Option("auto", []),
            io.DynamicCombo.Option("whole", []),
            io.DynamicCombo.Option(
                "custom",
                [
                    io.Int.Input(
                        "segment",
                        default=20,
                        min=0,
                        max=4096,
                        tooltip="Latent frames at a time; 0 is the whole video. 20 are 77 frames. Rounded up to whole temporal units, "
                        "at least 2.",
                    ),
                    io.Int.Input(
                        "tile_width",
                        default=0,
                        min=0,
                        max=16384,
                        step=8,
                        tooltip="Pixels at a time; 0 is the whole width. Rounded up to whole windows.",
                    ),
                    io.Int.Input(
                        "tile_height",
                        default=0,
                        min=0,
                        max=16384,
                        step=8,
                        tooltip="Pixels at a time; 0 is the whole height. Rounded up to whole windows.",
                    ),
                ],
            ),
        ],
    )


def chosen_tiling(tiling: dict | None, attention: AttentionConfig) -> Tiling | None:
    """Returns the boxes that a `tiling` value asks for, None when the plan decides."""
    if tiling is None or tiling["tiling"] == "auto":
        return None
    if tiling["tiling"] == "whole":
        return aligned_tiling((None, None, None), attention.alignment)
    cells = tiling["segment"], -(-tiling["tile_height"] // SPATIAL_FACTOR), -(-tiling["tile_width"] // SPATIAL_FACTOR)
    return aligned_tiling(tuple(side or None for side in cells), attention.alignment)


def planned_tiling(model, samples: Tensor, size: tuple[int, int]) -> Tiling:
    """Returns the boxes that fit the memory with the least work. Raises ValueError when not even the smallest do."""
    try:
        return run_tiling(model, samples.shape, size)
    except ValueError as error:
        raise ValueError(f"SimpleGVR Sampler: {error}; or choose tiling custom, to try all the same") from error


def settings_input() -> io.DynamicCombo.Input:
    """Returns the `settings` input: what the checkpoint recommends, or one's own."""
    return io.DynamicCombo.Input(
        "settings",
        tooltip="recommended: what the model's checkpoint says; for a stock Wan model, training-free values. custom: your own.",
        options=[
            io.DynamicCombo.Option("recommended", []),
            io.DynamicCombo.Option(
                "custom",
                [
                    io.Int.Input("steps", default=50, min=1, max=1000, tooltip="Model evaluations. The paper uses 50; gvr_tiny 2."),
                    io.Float.Input(
                        "cfg", default=1.0, min=0.0, max=30.0, step=0.1, tooltip="Guidance by the prompts; 1 is none, in half the time."
                    ),
                    noise_augmentation_input(),
                    io.Float.Input(
                        "denoise",
                        default=1.0,
                        min=0.01,
                        max=1.0,
                        step=0.01,
                        tooltip="Noise level to start from. 1 is pure noise, as in the paper; below 1 starts from the noised upsampled "
                        "latent: gvr_tiny 0.15, a stock Wan model 0.3 to 0.6.",
                    ),
                ],
            ),
        ],
    )


def sampling_config(model, settings: dict, condition_free: bool) -> SamplingConfig:
    """Returns how to sample: the recommended settings or the custom ones, always at the model's own shift."""
    shift = model.get_model_object("model_sampling").shift
    if settings["settings"] == "custom":
        custom = {key: value for key, value in settings.items() if key != "settings"}
        return SamplingConfig(**custom, shift=shift)
    if condition_free:
        return replace(TRAINING_FREE, shift=shift)
    return replace(getattr(model.model, "sampling", SamplingConfig()), shift=shift)


def takes_no_condition(model, node: type[io.ComfyNode]) -> bool:
    """Returns whether model is a plain text-to-video Wan (16 channels) rather than a SimpleGVR model (32).

    Raises ValueError for any other model.
    """
    embedding = getattr(model.model.diffusion_model, "patch_embedding", None)
    channels = None if embedding is None else embedding.in_channels
    if channels not in (LATENT_CHANNELS, 2 * LATENT_CHANNELS):
        raise ValueError(
            f"{node.define_schema().display_name}: the model is a {type(model.model).__name__} with {channels} input channels, wanted a "
            "SimpleGVR model (32) or a text-to-video Wan 2.1 or 2.2 14B model (16)"
        )
    return channels == LATENT_CHANNELS
