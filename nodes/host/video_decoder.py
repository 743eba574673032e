"""Small video decoders inside ComfyUI: VAE sockets of taew2_1 and kin, and previews by them."""

import logging
from pathlib import Path

import comfy.latent_formats
import folder_paths
import latent_preview
import torch
from comfy.cli_args import LatentPreviewMethod, args
from PIL import Image
from torch import Tensor

from ...simplegvr_core.networks.video_decoder import VideoDecoder, read_video_decoder
from ...simplegvr_core.planning.network_memory import video_decoder_bytes
from .networks import VideoSocket

FOLDERS = ("vae", "vae_approx")
PREVIEW_FILE = "taew2_1"  # how the name of a file for previews begins, as ComfyUI finds its own: by name


class ComfyVideoDecoder(VideoDecoder):
    """A video decoder at ComfyUI's border: latents in VAE space instead of normalised."""

    latent_format = comfy.latent_formats.Wan21()

    def to_network(self, z: Tensor) -> Tensor:
        return self.latent_format.process_in(z) if self.config.normalized else z

    def from_network(self, values: Tensor) -> Tensor:
        return self.latent_format.process_out(values) if self.config.normalized else values


class VideoDecoderSocket(VideoSocket):
    """The VAE of a file. Raises what read_video_decoder raises."""

    def __init__(self, path: str, family: str):
        state_dict, config = read_video_decoder(Path(path), family)
        super().__init__(
            lambda **options: ComfyVideoDecoder(config, **options),
            state_dict,
            lambda method, shape, dtype: video_decoder_bytes(config, method, latent_extent(method, shape), dtype),
            (torch.float16, torch.bfloat16, torch.float32),
        )


def latent_extent(method: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Returns (T, H, W) of the latent that decode takes, or of that which encode makes of a video of a shape."""
    frames, height, width = shape[2:]
    return (frames, height, width) if method == "decode" else (-(-frames // 4), -(-height // 8), -(-width // 8))


class DecoderPreviewer(latent_preview.LatentPreviewer):
    """Previews by a video decoder."""

    def __init__(self, vae: VideoDecoderSocket):
        self.vae = vae

    def decode_latent_to_preview(self, x0: Tensor) -> Image.Image:
        """Returns the picture of the first frame of normalised latents (B, 16, T, H, W)."""
        frames = self.vae.decode(ComfyVideoDecoder.latent_format.process_out(x0[:1, :, :1]))
        return latent_preview.preview_to_image(frames[0, 0], do_scale=False)


def clip_previewer(device: torch.device, latent_format: comfy.latent_formats.LatentFormat) -> latent_preview.LatentPreviewer | None:
    """Returns ComfyUI's previewer of latents; that of taew2_1 where its settings ask for TAESD and it knows no file for them."""
    own = latent_format.taesd_decoder_name
    asked = args.preview_method == LatentPreviewMethod.TAESD
    if asked and own is not None and own == ComfyVideoDecoder.latent_format.taesd_decoder_name:
        names = folder_paths.get_filename_list("vae_approx")
        ours = next((name for name in names if Path(name).name.startswith(PREVIEW_FILE)), None)
        if ours is not None and not any(name.startswith(own) for name in names):
            try:
                return DecoderPreviewer(VideoDecoderSocket(folder_paths.get_full_path_or_raise("vae_approx", ours), "auto"))
            except (ValueError, OSError) as error:  # a preview is no reason to lose a run
                logging.warning(f"SimpleGVR: previews without {ours}: {error}")
    return latent_preview.get_previewer(device, latent_format)
