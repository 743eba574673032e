"""Facts of Wan 2.1's latent space: channels, pixels, frames, sizes, statistics and colors.

A latent is (B, 16, T, H, W). A latent pixel is 8 x 8 pixels. The first latent frame is one video frame, every other one is four.
"""

import math

LATENT_CHANNELS = 16
SPATIAL_FACTOR = 8  # pixels along each side of a latent pixel

# Of the autoencoder's own values, per channel; z = (values - mean) / std is the normalised latent.
WAN_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508)
WAN_MEAN += (0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
WAN_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743)
WAN_STD += (3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)

# What each channel of a normalised latent adds to (R, G, B): as ComfyUI previews Wan 2.1's; TinyVAE's are rotated to agree with it
PREVIEW_FACTORS = (
    (-0.1299, -0.1692, 0.2932), (0.0671, 0.0406, 0.0442), (0.3568, 0.2548, 0.1747), (0.0372, 0.2344, 0.1420),
    (0.0313, 0.0189, -0.0328), (0.0296, -0.0956, -0.0665), (-0.3477, -0.4059, -0.2925), (0.0166, 0.1902, 0.1975),
    (-0.0412, 0.0267, -0.1364), (-0.1293, 0.0740, 0.1636), (0.0680, 0.3019, 0.1128), (0.0032, 0.0581, 0.0639),
    (-0.1251, 0.0927, 0.1699), (0.0060, -0.0633, 0.0005), (0.3477, 0.2275, 0.2950), (0.1984, 0.0913, 0.1861),
)  # fmt: skip
# and as a linear decoder trained on Wan 2.1's autoencoder makes the mean of a latent pixel's pixels: `projections.2` of ComfyUI-VAE-Utils,
# (c) spacepxl, MIT, times the latent's standard deviations. The two estimates are 12 to 43 degrees apart.
DECODER_FACTORS = (
    (-0.0302, 0.0157, 0.2151), (-0.0208, -0.0138, -0.0063), (0.1288, 0.0647, 0.0387), (0.0703, 0.1914, 0.1113),
    (-0.0029, -0.0147, -0.0307), (0.0745, -0.0517, -0.0347), (-0.0579, -0.1254, -0.0967), (-0.0366, 0.0023, 0.0476),
    (-0.1330, -0.1493, -0.2103), (-0.0735, 0.0642, 0.1092), (-0.0697, 0.1040, 0.0573), (0.0131, 0.0497, 0.0193),
    (-0.0461, 0.0185, 0.0597), (0.0082, -0.0379, -0.0040), (0.1610, 0.0273, 0.0606), (0.0740, 0.0172, 0.0467),
)  # fmt: skip

COLOR_FACTORS = {"wan": (PREVIEW_FACTORS, DECODER_FACTORS), "tiny_vae": (PREVIEW_FACTORS,)}


def latent_frames(video_frames: int) -> int:
    """Returns the number of latent frames of a clip. The last one may have fewer than four video frames."""
    return -(-(video_frames - 1) // 4) + 1


def video_frames(latent_frames: int) -> int:
    """Returns the number of video frames that a latent decodes to: 4 (T - 1) + 1."""
    return 4 * (latent_frames - 1) + 1


def first_frame(latent_frame: int) -> int:
    """Returns the index of a latent frame's first video frame."""
    return max(0, 4 * latent_frame - 3)


def token_grid(extent: tuple[int, int, int]) -> tuple[int, int, int]:
    """Returns the tokens along T, H, W of a latent's extent. A token is 1 x 2 x 2 latent pixels; odd sides are padded."""
    frames, height, width = extent
    return frames, -(-height // 2), -(-width // 2)


def scaled_size(source: tuple[int, int], scale: float) -> tuple[int, int]:
    """Returns source, (h, w) latent pixels, times scale, rounded up to whole ones."""
    h, w = (math.ceil(round(extent * scale, 6)) for extent in source)
    return h, w


def pixel_size(width: int, height: int) -> tuple[int, int]:
    """Returns (H, W) latent pixels of a picture of width x height pixels.

    Raises:
        ValueError: a side is no multiple of 8.
    """
    if width % SPATIAL_FACTOR or height % SPATIAL_FACTOR:
        nearest = " x ".join(str(max(SPATIAL_FACTOR, round(side / SPATIAL_FACTOR) * SPATIAL_FACTOR)) for side in (width, height))
        raise ValueError(f"target is {width} x {height} pixels, wanted multiples of {SPATIAL_FACTOR}: the nearest is {nearest}")
    return height // SPATIAL_FACTOR, width // SPATIAL_FACTOR


def short_side_size(source: tuple[int, int], pixels: int) -> tuple[int, int]:
    """Returns the size in latent pixels whose short side is exactly pixels and whose ratio is source's, rounded."""
    h, w = (round(extent * pixels / SPATIAL_FACTOR / min(source)) for extent in source)
    return h, w


def pixels(size: tuple[int, int]) -> str:
    """Returns "width x height" in pixels of a size in latent pixels."""
    return f"{size[1] * SPATIAL_FACTOR} x {size[0] * SPATIAL_FACTOR}"
