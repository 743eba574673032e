"""SimpleGVR Sampler: low-resolution LATENT in, super-resolved LATENT out."""

import logging

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui
from torch import Tensor

from ..simplegvr_core.latent_space import pixels
from ..simplegvr_core.sampling.super_resolve import SamplingConfig
from ..simplegvr_core.sampling.super_resolve_to_file import super_resolve_to_file
from .host.bridge import CATEGORY, NormalizedFrames, latent_samples, named_choices, target_size, to_latent
from .host.family import describe_weights, origin_of, pair_warnings
from .host.inputs import noise_seed_input, seed_input, settings_input, size_input, solver_input, tiling_input
from .host.preflight import Request, preflight
from .host.refinement import ComfyRun, ancestry
from .host.sampling import has_lora, sampling_config
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
                solver_input(),
            ],
            outputs=[
                io.Latent.Output(tooltip="The super-resolved latent: decode it with the VAE of the source."),
                io.String.Output(display_name="report", tooltip="Report: mode, sizes, noise levels and events."),
            ],
            hidden=[io.Hidden.dynprompt, io.Hidden.unique_id],
        )

    @classmethod
    @named_choices
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
        solver: str = "recommended",
    ) -> io.NodeOutput:
        samples = latent_samples(latent, cls)
        H, W = target_size(size, samples, cls, upsampler)
        sampling = sampling_config(model, settings, cls, solver)
        warnings = pair_warnings(model, upsampler, positive)
        for warning in warnings:
            logging.warning(f"SimpleGVR Sampler: {warning}")
        target = samples.shape[0], samples.shape[2], H, W
        prompts, boxes = preflight(Request(model, sampling, target, positive, negative, tiling), cls)
        run = ComfyRun(cls, model, upsampler, prompts, sampling.cfg, boxes)
        prompt = ancestry(cls.hidden.dynprompt.get_node, cls.hidden.unique_id) if resume else None
        with working_folder(fingerprint(prompt, samples, model, upsampler) if resume else None, run.events.append) as folder:
            options = {"sampling": sampling, "seed": seed, "noise_seed": noise_seed, "color_match": color_match}
            out = super_resolve_to_file(folder, NormalizedFrames(samples), (H, W), run.runtime(), **options)[:]
        hints = [UNDISTILLED] if settings["settings"] == "distilled" and not has_lora(model) else []
        hints += warnings
        report = "\n".join([*describe(samples, (H, W), sampling, run), *prompts.notes, *hints, *run.events])
        return io.NodeOutput(to_latent(out), report, ui=ui.PreviewText(report))


def describe(samples: Tensor, size: tuple[int, int], sampling: SamplingConfig, run: ComfyRun) -> list[str]:
    """Returns the lines of the report: mode, sizes, settings, weights, attention, memory and boxes."""
    start = "the upsampled latent" if sampling.start == "condition" else f"noise level {sampling.denoise:.2f}"
    of_solver = "" if sampling.solver == "euler" else f" of solver {sampling.solver}"
    family = (origin_of(run.model) or {"family": "SimpleGVR"})["family"]
    return [
        f"{family}: condition at noise augmentation level {sampling.noise_augmentation:.2f}, from {start}."
        if run.takes_condition
        else f"Training-free: a stock 16-channel Wan model refined the upsampled latent from noise level {sampling.denoise:.2f}.",
        f"{pixels((samples.shape[3], samples.shape[4]))} -> {pixels(size)}, {samples.shape[2]} latent frames, "
        f"{sampling.steps} steps{of_solver}, cfg {sampling.cfg:g}, shift {sampling.shift:g}{sampling.weighing}.",
        describe_weights(run.model, run.upsampler),
        *run.describe((samples.shape[0], samples.shape[2], *size)),
    ]
