"""SimpleGVR Sampler: low-resolution LATENT in, super-resolved LATENT out."""

import logging

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui
from torch import Tensor

from ..simplegvr_core.latent_space import pixels
from ..simplegvr_core.sampling.super_resolve import SamplingConfig
from ..simplegvr_core.sampling.super_resolve_to_file import super_resolve_to_file
from .host.bridge import CATEGORY, NormalizedFrames, latent_samples, null_prompt, refuse, target_size, to_latent
from .host.family import describe_weights, origin_of, pair_warnings
from .host.inputs import noise_seed_input, seed_input, settings_input, size_input, tiling_input
from .host.planning import chosen_tiling
from .host.refinement import ComfyRun, ancestry
from .host.sampling import check_prompts, has_lora, sampling_config, takes_condition
from .host.working_files import fingerprint, working_folder

UNDISTILLED = (
    "The settings are distilled, but no LoRA is on the model: the result is right only for a checkpoint that is distilled to few steps. "
    "Put LoraLoaderModelOnly with a few-step LoRA before this node."
)


class SimpleGVRSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SimpleGVRSampler",
            display_name="SimpleGVR Sampler",
            category=CATEGORY,
            description="Super-resolves the latent of a text-to-video sampler, or an encoded video: upsamples it in latent space and "
            "refines it at the target size. A stock 16-channel Wan model works training-free.",
            search_aliases=["video super resolution", "upscale video", "hires fix", "Wan 1080p", "latent upscale"],
            inputs=[
                io.Model.Input("model", tooltip="Model from Load SimpleGVR Model, or a stock Wan 2.1 model for training-free mode."),
                io.LatentUpscaleModel.Input("upsampler", tooltip="Upsampler from Load SimpleGVR Upsampler."),
                io.Latent.Input("latent", tooltip="Low-resolution video latent, for example from a Wan 2.1 KSampler."),
                size_input(),
                seed_input("Seed of the starting noise. The same seed gives the same video."),
                settings_input(),
                noise_seed_input(),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="Prompt of the video. Not connected: the null prompt; training-free mode needs a prompt.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="Negative prompt, used when cfg is not 1. Not connected: the null prompt; training-free mode needs a prompt.",
                ),
                tiling_input(),
                io.Float.Input(
                    "color_match",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="Strength of the removal of low-frequency color drift, frame by frame: 1 matches the source's colors exactly, "
                    "0 leaves them.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "resume",
                    default=False,
                    optional=True,
                    tooltip="Saves the result of each step in ComfyUI's output folder until the video is complete. After a cancel or a "
                    "crash, the same run continues from its last step.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Latent.Output(tooltip="The super-resolved latent: decode it with the VAE of the source."),
                io.String.Output(display_name="report", tooltip="Report: mode, sizes, noise levels and events."),
            ],
            hidden=[io.Hidden.dynprompt, io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        upsampler: ModelPatcher,
        latent: dict,
        size: dict,
        seed: int,
        settings: dict,
        noise_seed: int,
        positive: list | None = None,
        negative: list | None = None,
        tiling: dict | None = None,
        color_match: float = 1.0,
        resume: bool = False,
    ) -> io.NodeOutput:
        samples = latent_samples(latent, cls)
        H, W = target_size(size, samples, cls, upsampler)
        sampling = sampling_config(model, settings, cls)
        check(model, sampling, positive, negative)
        warnings = pair_warnings(model, upsampler, positive)
        for warning in warnings:
            logging.warning(f"SimpleGVR Sampler: {warning}")
        target = samples.shape[0], samples.shape[2], H, W
        try:
            boxes = chosen_tiling(tiling, model, target)
        except ValueError as error:
            raise refuse(cls, f"{error}; or choose tiling custom, which is not checked beforehand") from error
        run = ComfyRun(cls, model, upsampler, (positive or null_prompt(), negative or null_prompt()), sampling.cfg, boxes)
        prompt = ancestry(cls.hidden.dynprompt.get_node, cls.hidden.unique_id) if resume else None
        with working_folder(fingerprint(prompt, samples, model, upsampler) if resume else None) as folder:
            options = {"sampling": sampling, "seed": seed, "noise_seed": noise_seed, "color_match": color_match}
            out = super_resolve_to_file(folder, NormalizedFrames(samples), (H, W), run.runtime(), **options)[:]
        hints = [UNDISTILLED] if settings["settings"] == "distilled" and not has_lora(model) else []
        hints += warnings
        report = "\n".join([*describe(samples, (H, W), sampling, run), *hints, *run.events])
        return io.NodeOutput(to_latent(out), report, ui=ui.PreviewText(report))


def check(model: ModelPatcher, sampling: SamplingConfig, positive: list | None, negative: list | None) -> None:
    """Raises ValueError unless the model can run with these settings and prompts."""
    node = SimpleGVRSampler
    if not takes_condition(model, node):
        if sampling.denoise == 1:
            raise refuse(
                node,
                "denoise is 1 with a stock Wan model, which would ignore the source: "
                "set denoise to 0.3-0.6 for training-free mode, or load a SimpleGVR model",
            )
        if positive is None or (negative is None and sampling.cfg != 1):
            raise refuse(
                node,
                "a stock Wan model is not trained with the null prompt: "
                "connect the positive and negative prompt of the video's own sampler",
            )
        check_prompts(model, [positive, negative], node)
    if "context_handler" in model.model_options:
        raise refuse(
            node,
            "the model has context windows, but the sampler cuts long videos itself: "
            "remove the context windows node, and choose segments in tiling",
        )


def describe(samples: Tensor, size: tuple[int, int], sampling: SamplingConfig, run: ComfyRun) -> list[str]:
    """Returns the lines of the report: mode, sizes, settings, weights, attention, memory and boxes."""
    start = "the upsampled latent" if sampling.start == "condition" else f"noise level {sampling.denoise:.2f}"
    family = (origin_of(run.model) or {"family": "SimpleGVR"})["family"]
    return [
        f"{family}: condition at noise augmentation level {sampling.noise_augmentation:.2f}, from {start}."
        if run.takes_condition
        else f"Training-free: a stock 16-channel Wan model refined the upsampled latent from noise level {sampling.denoise:.2f}.",
        f"{pixels((samples.shape[3], samples.shape[4]))} -> {pixels(size)}, {samples.shape[2]} latent frames, "
        f"{sampling.steps} steps, cfg {sampling.cfg:g}, shift {sampling.shift:g}.",
        describe_weights(run.model, run.upsampler),
        *run.describe((samples.shape[0], samples.shape[2], *size)),
    ]
