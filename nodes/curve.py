"""The detail-aware timestep sampler that a checkpoint was trained with, to look at."""

from pathlib import Path

import folder_paths
import numpy as np
from comfy_api.latest import io, ui
from PIL import Image, ImageDraw

from ..simplegvr_core.networks import checkpoint
from ..simplegvr_core.sampling.timesteps import Curve
from .host.bridge import CATEGORY, refuse, to_image

WIDTH, HEIGHT, MARGIN = 960, 480, 56  # pixels


class SimpleGVRTimestepCurve(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SimpleGVRTimestepCurve",
            display_name="SimpleGVR Timestep Curve",
            category=CATEGORY,
            description="Shows at which noise levels fine detail appears while a model samples, and how often training sampled each "
            "noise level.",
            search_aliases=["detail-aware sampler", "timestep sampler", "noise level"],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=folder_paths.get_filename_list("diffusion_models"),
                    tooltip="SimpleGVR checkpoint in models/diffusion_models that was trained with a curve.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="The curve, from pure noise on the left to the clean latent on the right.")],
        )

    @classmethod
    def execute(cls, model_name: str) -> io.NodeOutput:
        path = Path(folder_paths.get_full_path_or_raise("diffusion_models", model_name))
        config = checkpoint.read_config(path, "dit")
        if not config.get("trained", {}).get("curve"):
            raise refuse(
                cls,
                f"{model_name} was trained with even noise levels, there is no curve in it: "
                "choose another checkpoint, or measure one with `python3 scripts/run.py curve`",
            )
        picture = draw_curve(checkpoint.parse_config(Curve, config["trained"], "curve", path))
        image = to_image(picture)[None]
        return io.NodeOutput(image, ui=ui.PreviewImage(image, cls=cls))


def draw_curve(curve: Curve) -> Image.Image:
    """Returns a picture: bars of the sampler's density over the noise level, and a line of the energy of high frequencies."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    sigma, share = curve.density()
    density = share / np.diff(sigma)

    def x(level: float) -> float:
        return MARGIN + (1 - level) * (WIDTH - 2 * MARGIN)

    def y(height: float) -> float:
        return HEIGHT - MARGIN - height * (HEIGHT - 2 * MARGIN)

    for low, high, value in zip(sigma, sigma[1:], density / density.max(), strict=False):
        draw.rectangle((x(high), y(value), x(low), y(0)), fill="#9ecae1", outline="white")
    energy = np.array(curve.energy) / max(curve.energy)
    draw.line([(x(level), y(value)) for level, value in zip(curve.sigma, energy, strict=True)], fill="#d62728", width=3)
    draw.rectangle((x(1), y(1), x(0), y(0)), outline="black")
    for level in (1.0, 0.75, 0.5, 0.25, 0.0):
        draw.text((x(level), y(0) + 8), f"{level:g}", fill="black", anchor="mt", font_size=16)
    draw.text((WIDTH / 2, HEIGHT - 8), "noise level, from noise to picture", fill="black", anchor="mb", font_size=16)
    draw.text((x(1) + 8, 8), "training draws each noise level this often", fill="#4292c6", font_size=16)
    draw.text((x(0) - 8, 8), "high-frequency energy of the predicted latent", fill="#d62728", anchor="ra", font_size=16)
    return picture
