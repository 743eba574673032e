"""Degradations to look at: what training does to a video, and to a latent, before it asks for the original back."""

from dataclasses import replace

import comfy.model_sampling
import comfy.sample
import comfy.samplers
import latent_preview
import torch
from comfy_api.latest import io
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from ..simplegvr_core.degradations.classical import ClassicalConfig, NoiseConfig, PassConfig, degrade_classical
from ..simplegvr_core.degradations.flow_based import FlowBasedConfig, degrade_flow_based
from ..simplegvr_core.degradations.motion import ClipMotion, MotionConfig, estimate_motion, optical_flow_picture
from ..simplegvr_core.degradations.randomness import Drift
from ..simplegvr_core.flow import positional_noise, shifted_sigmas
from ..simplegvr_core.sampling.solvers import integrate
from ..simplegvr_core.video.frames import area_downscale
from .host.bridge import CATEGORY, null_prompt, refuse, rgb_frames, to_latent
from .host.comparison import comparison
from .host.inputs import seed_input

PLAYED = 12.0  # frames a second, before and after


class SimpleGVRFlowDegrade(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SimpleGVRFlowDegrade",
            display_name="SimpleGVR Flow Degrade",
            category=CATEGORY,
            description="Adds the faults of text-to-video models to a video: in moving regions, colors of the previous frame bleed in "
            "and the picture is blurred along its motion. Static regions are bit-identical. The preview shows before and "
            "after.",
            search_aliases=["motion blur", "degrade video", "training pairs", "AIGC degradation", "optical flow"],
            is_output_node=True,
            inputs=[
                io.Image.Input(
                    "images", tooltip="The video. The faults look most realistic at the size of text-to-video output, about 480 lines."
                ),
                seed_input(),
                io.Float.Input(
                    "color_bleeding",
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Largest weight of the previous frame's color at the center of an ellipse; the smallest is half of it. 0 is "
                    "none.",
                ),
                io.Int.Input(
                    "ellipses", default=32, min=1, max=256, tooltip="Largest number of ellipses per frame; the smallest is half of it."
                ),
                io.Float.Input(
                    "motion_blur",
                    default=1.5,
                    min=0.0,
                    max=8.0,
                    step=0.1,
                    tooltip="Longest blur, as a multiple of the motion between frames; the shortest is half of it. 0 is none.",
                ),
                io.Float.Input(
                    "min_motion",
                    default=1.0,
                    min=0.1,
                    max=64.0,
                    step=0.1,
                    tooltip="Motion between frames, in pixels, above which a region counts as moving. Raise it for a shaking camera.",
                ),
            ],
            outputs=picture_outputs(),
        )

    @classmethod
    def execute(cls, images, seed, color_bleeding, ellipses, motion_blur, min_motion) -> io.NodeOutput:
        config = FlowBasedConfig(
            motion=MotionConfig(pixels=min_motion),
            ellipses=(-(-ellipses // 2), ellipses),
            blend=(color_bleeding / 2, color_bleeding),
            blur_gain=(motion_blur / 2, motion_blur),
        )
        colors = rgb_frames(images, cls, "images").cpu().float()
        video = video_of(colors)
        motion = estimate_motion(video, config.motion)
        degraded = degrade_flow_based(video, motion, config, torch.Generator().manual_seed(seed))
        moving = torch.from_numpy(motion.moving)
        out = torch.where(moving[..., None], images_of(degraded), colors)  # bit-identical where nothing moves
        return pictures(video, degraded, motion, out)


class SimpleGVRClassicalDegrade(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SimpleGVRClassicalDegrade",
            display_name="SimpleGVR Classical Degrade",
            category=CATEGORY,
            description="Degrades a video as RealBasicVSR does: blur, resize, noise, JPEG and a real video codec, twice, with random "
            "parameters from the seed. The defaults are the published ranges. The preview shows before and after.",
            search_aliases=["RealBasicVSR", "degrade video", "compress", "add noise", "training pairs"],
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The video."),
                io.Int.Input("scale", default=1, min=1, max=8, tooltip="Factor by which the result is smaller; 1 keeps the size."),
                seed_input(),
                io.Float.Input(
                    "blur",
                    default=1.0,
                    min=0.1,
                    max=8.0,
                    step=0.1,
                    tooltip="Factor on the published blur widths: up to 3 pixels in the first pass, 1.5 in the second.",
                ),
                io.Float.Input(
                    "smallest",
                    default=0.15,
                    min=0.05,
                    max=0.5,
                    step=0.01,
                    tooltip="Smallest factor of the first resize; that of the second is twice as large. Small factors remove detail.",
                ),
                io.Float.Input(
                    "noise",
                    default=1.0,
                    min=0.0,
                    max=8.0,
                    step=0.1,
                    tooltip="Factor on the published noise strengths: up to 30 of 255 levels in the first pass, 25 in the second.",
                ),
                io.Int.Input("jpeg_quality", default=30, min=1, max=95, tooltip="Lowest JPEG quality; the highest is 95."),
                io.Float.Input(
                    "kilobits",
                    default=10.0,
                    min=0.5,
                    max=1000.0,
                    step=0.5,
                    tooltip="Fewest kilobits for the video codec per frame of 256 x 256 pixels, before downscaling; the most are ten times "
                    "as many. A larger frame has more, in proportion to its area.",
                ),
            ],
            outputs=picture_outputs(),
        )

    @classmethod
    def execute(cls, images, scale, seed, blur, smallest, noise, jpeg_quality, kilobits) -> io.NodeOutput:
        video, config = (
            video_of(rgb_frames(images, cls, "images").cpu().float()),
            classical_config(blur, smallest, noise, jpeg_quality, kilobits),
        )
        if min(video.shape[3:]) < scale:
            height, width = video.shape[3:]
            raise refuse(cls, f"nothing is left of {width} x {height} pixels at scale {scale}: choose a smaller scale")
        degraded = degrade_classical(video, scale, config, torch.Generator().manual_seed(seed))
        video = area_downscale(video, scale)
        return pictures(video, degraded, estimate_motion(video, MotionConfig()), images_of(degraded))


class SimpleGVRModelDegrade(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SimpleGVRModelDegrade",
            display_name="SimpleGVR Model Degrade",
            category=CATEGORY,
            description="Lets a text-to-video model regenerate a latent from noise level alpha, which adds the model's own faults. "
            "SimpleGVR is trained to remove them.",
            search_aliases=["SDEdit", "degrade latent", "training pairs", "model-guided degradation"],
            inputs=[
                io.Model.Input("model", tooltip="Text-to-video model whose faults are added: Wan 2.1, or any other rectified flow."),
                io.Latent.Input("latent", tooltip="Video latent in the latent space of the model."),
                io.Float.Input(
                    "alpha",
                    default=0.35,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Noise level to start from. Higher is closer to the model and further from the video. The paper samples 0.3 "
                    "to 0.4.",
                ),
                io.Int.Input("steps", default=10, min=1, max=1000, tooltip="Number of model evaluations from alpha to 0."),
                seed_input(),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="Prompt of the video. Not connected: the null prompt, with which stock models are worse.",
                ),
            ],
            outputs=[io.Latent.Output(tooltip="The regenerated latent, of the same size.")],
        )

    @classmethod
    def execute(cls, model, latent, alpha, steps, seed, positive=None) -> io.NodeOutput:
        samples, model_sampling = latent["samples"], model.get_model_object("model_sampling")
        latent_format = model.model.latent_format
        wanted = (latent_format.latent_channels, latent_format.latent_dimensions)
        if (samples.shape[1], samples.ndim - 2) != wanted:
            raise refuse(
                cls,
                f"the latent has shape {tuple(samples.shape)}, the model works on {wanted[0]} channels and "
                f"{wanted[1]} axes: encode the video with the model's own VAE",
            )
        shift = getattr(model_sampling, "shift", None)
        if not isinstance(model_sampling, comfy.model_sampling.CONST) or shift is None or latent_format.latent_dimensions != 3:
            raise refuse(cls, f"the model is a {type(model.model).__name__}, wanted a rectified flow of videos with a shift, as Wan 2.1")
        prompt = positive or null_prompt()
        out = comfy.sample.sample_custom(
            model,
            positional_noise(samples.shape, seed),
            1.0,
            comfy.samplers.KSAMPLER(euler),
            shifted_sigmas(steps, shift, alpha),
            prompt,
            prompt,
            samples,
            callback=latent_preview.prepare_callback(model, steps),
            seed=seed,
        )
        return io.NodeOutput(to_latent(out))


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
        return integrate(velocity, z, sigmas, on_step)


def classical_config(blur: float, smallest: float, noise: float, jpeg_quality: int, kilobits: float) -> ClassicalConfig:
    """Returns RealBasicVSR's ranges with blur and noise times as strong, and with other limits for the rest."""
    default = ClassicalConfig()

    def changed(step: PassConfig, smallest: float) -> PassConfig:
        levels = NoiseConfig(scaled(step.noise.gaussian, noise), scaled(step.noise.poisson, noise))
        return PassConfig(replace(step.blur, sigma=scaled(step.blur.sigma, blur)), replace(step.resize, smallest=smallest), levels)

    return replace(
        default,
        first=changed(default.first, smallest),
        second=default.second and changed(default.second, 2 * smallest),
        quality=replace(default.quality, low=jpeg_quality),
        bits=(1e3 * kilobits, 1e4 * kilobits),
    )


def scaled(drift: Drift, factor: float) -> Drift:
    return replace(drift, low=factor * drift.low, high=factor * drift.high)


def picture_outputs() -> list:
    """Returns the outputs of the nodes that degrade pictures."""
    return [
        io.Image.Output(display_name="degraded", tooltip="The degraded video."),
        io.Image.Output(
            display_name="optical_flow",
            tooltip="Optical flow to the previous frame: hue is direction, brightness is distance, black is no motion.",
        ),
        io.Mask.Output(display_name="motion_mask", tooltip="White where something moves."),
    ]


def pictures(before: Tensor, after: Tensor, motion: ClipMotion, degraded: Tensor) -> io.NodeOutput:
    """Returns the outputs, with before and after to compare in the node.

    before, after: video (1, 3, F, H, W) in [-1, 1]. degraded: the IMAGE to give out.
    """
    return io.NodeOutput(
        degraded,
        optical_flow_picture(motion.optical_flow) / 255,
        torch.from_numpy(motion.moving).float(),
        ui=comparison(images_of(before), images_of(after), PLAYED),
    )


def video_of(images: Tensor) -> Tensor:
    """Returns video (1, 3, F, H, W) in [-1, 1] of images (F, H, W, 3) in [0, 1]."""
    return rearrange(images, "F H W C -> 1 C F H W") * 2 - 1


def images_of(video: Tensor) -> Tensor:
    """Returns the IMAGE (F, H, W, 3) in [0, 1] of video (1, 3, F, H, W) in [-1, 1]."""
    return rearrange(video[0], "C F H W -> F H W C") / 2 + 0.5
