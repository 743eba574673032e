"""SimpleGVR Sampler: low-resolution LATENT in, super-resolved LATENT out."""

from dataclasses import replace

import comfy.sample
import comfy.samplers
import latent_preview
from comfy_api.latest import io, ui
from torch import Tensor
from tqdm import tqdm

from ..simplegvr_core.flow import shifted_sigmas
from ..simplegvr_core.layers import LATENT_CHANNELS
from ..simplegvr_core.sampling import SamplingConfig, draw_noise, sample_euler
from .bridge import CATEGORY, LATENT_FORMAT, latent_samples, pixels, size_input, target_size, to_latent, upsample
from .latent import add_condition, noise_augmentation_input, noise_seed_input, null_prompt

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
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Draws the starting noise. The same seed gives the same video.",
                ),
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
            ],
            outputs=[
                io.Latent.Output(tooltip="The super-resolved latent: decode it with the VAE of the source."),
                io.String.Output(display_name="report", tooltip="What was done: mode, sizes, noise levels."),
            ],
        )

    @classmethod
    def execute(cls, model, upsampler, latent, size, seed, settings, noise_seed, positive=None, negative=None) -> io.NodeOutput:
        samples = latent_samples(latent, cls)
        target = target_size(size, samples, cls)
        condition_free = takes_no_condition(model)
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
        prompts = (positive or null_prompt(), negative or null_prompt())
        z = upsample(upsampler, samples, target, cls)
        if not condition_free:
            prompts = add_condition(prompts, z, sampling.noise_augmentation, noise_seed)
        sigmas = shifted_sigmas(sampling.steps, sampling.shift, sampling.denoise)
        out = comfy.sample.sample_custom(
            model,
            draw_noise(z.shape, seed),
            sampling.cfg,
            comfy.samplers.KSAMPLER(euler),
            sigmas,
            *prompts,
            LATENT_FORMAT.process_out(z),
            callback=latent_preview.prepare_callback(model, sampling.steps),
            seed=seed,
        )
        mode = (
            f"Training-free: a stock 16-channel Wan model refined the upsampled latent from noise level {sampling.denoise:.2f}."
            if condition_free
            else f"SimpleGVR: condition with noise share {sampling.noise_augmentation:.2f}, from noise level {sampling.denoise:.2f}."
        )
        report = (
            f"{mode}\n{pixels(samples.shape[3:])} -> {pixels(target)}, {samples.shape[2]} latent frames, "
            f"{sampling.steps} steps, cfg {sampling.cfg:g}, shift {sampling.shift:g}."
        )
        return io.NodeOutput(to_latent(out), report, ui=ui.PreviewText(report))


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
                    io.Int.Input("steps", default=50, min=1, max=1000, tooltip="Model evaluations. The paper uses 50; gvr_tiny 4."),
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
                        "latent: gvr_tiny 0.3, a stock Wan model 0.3 to 0.6.",
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


def takes_no_condition(model) -> bool:
    """Returns whether model is a plain text-to-video Wan (16 channels) rather than a SimpleGVR model (32).

    Raises ValueError for any other model.
    """
    embedding = getattr(model.model.diffusion_model, "patch_embedding", None)
    channels = None if embedding is None else embedding.in_channels
    if channels not in (LATENT_CHANNELS, 2 * LATENT_CHANNELS):
        raise ValueError(
            f"SimpleGVR Sampler: the model is a {type(model.model).__name__} with {channels} input channels, wanted a "
            "SimpleGVR model (32) or a text-to-video Wan 2.1 or 2.2 14B model (16)"
        )
    return channels == LATENT_CHANNELS


def euler(model, z: Tensor, sigmas: Tensor, extra_args: dict, callback, disable) -> Tensor:
    """Returns z integrated to sigma 0 by the core's Euler sampler, in the form ComfyUI calls samplers.

    model: (z, sigma (B,)) -> predicted clean latent; callback, disable: ComfyUI's progress, and no bar on the console.
    """

    def velocity(z: Tensor, sigma: Tensor) -> Tensor:
        return (z - model(z, sigma.expand(len(z)), **extra_args)) / sigma

    def on_step(step: int, z: Tensor, z_0: Tensor) -> None:
        callback({"i": step, "denoised": z_0, "x": z, "sigma": sigmas[step]})
        bar.update()

    with tqdm(total=len(sigmas) - 1, disable=disable) as bar:
        return sample_euler(velocity, z, sigmas, on_step)
