"""Inputs that nodes share, and those that are long: each function returns one."""

from comfy_api.latest import io

from ...simplegvr_core.networks.foreign import FAMILIES
from ...simplegvr_core.sampling.solvers import SOLVERS

DEFAULT_SCALE = 3.0
SHORT_SIDES = {"720p": 720, "1080p": 1080, "1440p": 1440, "2160p": 2160}  # pixels


def seed_input(tooltip: str = "Seed of all randomness in this node. The same seed gives the same result.") -> io.Int.Input:
    """Returns the `seed` input."""
    return io.Int.Input(
        "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=io.ControlAfterGenerate.fixed, tooltip=tooltip
    )


def family_input() -> io.Combo.Input:
    """Returns the `family` input of the loaders."""
    return io.Combo.Input(
        "family",
        options=list(FAMILIES),
        default="auto",
        optional=True,
        tooltip="Whose weights a file is that does not say it. auto: recognised by names and shapes; a transformer with 32 input channels "
        "is taken as Ultra Flash's. Files that SimpleGVR wrote say what they are.",
        advanced=True,
    )


def size_input() -> io.DynamicCombo.Input:
    """Returns the `size` input: by the upsampler, by scale, by width and height, or by the short side."""
    return io.DynamicCombo.Input(
        "size",
        tooltip="Target size, exact in steps of 8 pixels (1080 is 135 rows of the latent). upsampler scale: the scale that the "
        "upsampler is made for, 2 or 3 for Ultra Flash's; 3 for one of any scale.",
        options=[
            io.DynamicCombo.Option("upsampler scale", []),
            io.DynamicCombo.Option(
                "scale",
                [
                    io.Float.Input(
                        "scale", default=DEFAULT_SCALE, min=1.0, max=8.0, step=0.01, tooltip="Factor on the width and height of the source."
                    )
                ],
            ),
            io.DynamicCombo.Option(
                "width x height",
                [
                    io.Int.Input("width", default=1920, min=16, max=16384, step=8, tooltip="Target width in pixels."),
                    io.Int.Input("height", default=1080, min=16, max=16384, step=8, tooltip="Target height in pixels."),
                ],
            ),
            io.DynamicCombo.Option(
                "short side",
                [
                    io.Combo.Input(
                        "preset",
                        options=list(SHORT_SIDES),
                        default="1080p",
                        tooltip="Short side of the target: the height of a landscape video, the width of a portrait one.",
                    )
                ],
            ),
        ],
    )


def settings_input() -> io.DynamicCombo.Input:
    """Returns the `settings` input: what the checkpoint recommends, one's own, or those of a few-step LoRA."""
    return io.DynamicCombo.Input(
        "settings",
        tooltip="recommended: the settings of the model's checkpoint; for a stock Wan model, those of training-free mode. "
        "custom: your own. distilled: 4 steps at cfg 1, for a stock Wan model with a LoRA that distills steps and guidance.",
        options=[
            io.DynamicCombo.Option("recommended", []),
            io.DynamicCombo.Option(
                "custom",
                [
                    io.Int.Input(
                        "steps", default=50, min=1, max=1000, tooltip="Number of model evaluations. The paper uses 50, gvr_tiny 1."
                    ),
                    io.Float.Input(
                        "cfg",
                        default=1.0,
                        min=0.0,
                        max=30.0,
                        step=0.1,
                        tooltip="Scale of classifier-free guidance; 1 is none, in half the time.",
                    ),
                    noise_augmentation_input(),
                    io.Float.Input(
                        "denoise",
                        default=1.0,
                        min=0.01,
                        max=1.0,
                        step=0.01,
                        tooltip="Noise level to start from. 1 is pure noise, as in the paper; below 1 starts from the noised upsampled "
                        "latent: 0.4 for gvr_tiny, 0.3 to 0.6 for a stock Wan model.",
                    ),
                ],
            ),
            io.DynamicCombo.Option("distilled", []),
        ],
    )


def solver_input() -> io.Combo.Input:
    """Returns the `solver` input."""
    return io.Combo.Input(
        "solver",
        options=["recommended", *SOLVERS],
        default="recommended",
        optional=True,
        tooltip="How a step follows the velocity. recommended: as the settings have it. euler: first order, as in the paper. ab2: "
        "Adams-Bashforth, second order in the same time, so that fewer steps are enough. Without effect at 1 step.",
        advanced=True,
    )


def noise_augmentation_input() -> io.Float.Input:
    """Returns the `noise_augmentation` input."""
    return io.Float.Input(
        "noise_augmentation",
        default=0.4,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="Noise augmentation level of the condition. Low stays close to the source, high lets the model correct and "
        "invent detail. The paper trains with 0.3 to 0.6; gvr_tiny is best at 0, Ultra Flash is sampled with 0, or 0.2.",
    )


def noise_seed_input() -> io.Int.Input:
    """Returns the `noise_seed` input."""
    return io.Int.Input(
        "noise_seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=io.ControlAfterGenerate.fixed,
        tooltip="Seed of the condition's noise, which is the same in all steps.",
        advanced=True,
    )


def tiling_input() -> io.DynamicCombo.Input:
    """Returns the `tiling` input: how much of the video the model sees at a time."""
    return io.DynamicCombo.Input(
        "tiling",
        optional=True,
        tooltip="Part of the video that the model is given at a time. auto: as much as fits the memory. whole: the whole "
        "video. custom: your own sizes; SimpleGVR Plan shows what fits. Overlaps are blended in every step, so that "
        "there are no seams.",
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
                        tooltip="Latent frames per segment; 0 is the whole video. 20 are 77 frames. Rounded up to whole temporal units, at "
                        "least 2.",
                    ),
                    io.Int.Input(
                        "tile_width",
                        default=0,
                        min=0,
                        max=16384,
                        step=8,
                        tooltip="Tile width in pixels; 0 is the whole width. Rounded up to whole windows.",
                    ),
                    io.Int.Input(
                        "tile_height",
                        default=0,
                        min=0,
                        max=16384,
                        step=8,
                        tooltip="Tile height in pixels; 0 is the whole height. Rounded up to whole windows.",
                    ),
                ],
            ),
        ],
    )


def trim_input() -> io.DynamicCombo.Input:
    """Returns the `trim` input: all that the latent holds, or as much as its source had."""
    side = "in pixels, cut at the {}; 0 is all of it. Odd numbers are rounded down to even, as H.264 needs."
    return io.DynamicCombo.Input(
        "trim",
        tooltip="none: the whole latent, 4n + 1 frames and sides in multiples of 8 pixels. custom: cut to the frames and size "
        "of a source that had others.",
        options=[
            io.DynamicCombo.Option("none", []),
            io.DynamicCombo.Option(
                "custom",
                [
                    io.Int.Input(
                        "frames", default=0, min=0, max=1_000_000, tooltip="Number of frames from the start of the video; 0 is all."
                    ),
                    io.Int.Input("width", default=0, min=0, max=32768, tooltip=f"Width {side.format('right')}"),
                    io.Int.Input("height", default=0, min=0, max=32768, tooltip=f"Height {side.format('bottom')}"),
                ],
            ),
        ],
    )
