"""Nodes that load networks: SimpleGVR's model, upsampler and bundled TinyVAE, and small video decoders for Wan 2.1."""

import folder_paths
import torch
from comfy_api.latest import io

from ..simplegvr_core.networks.video_decoder import FAMILIES
from .host.bridge import CATEGORY, TINY_VAE_FOLDER, refuse
from .host.inputs import family_input
from .host.networks import TinyVAESocket, load_model, load_upsampler
from .host.video_decoder import FOLDERS, VideoDecoderSocket

WEIGHT_DTYPES = {
    "default": {},
    "bf16": {"dtype": torch.bfloat16},
    "fp16": {"dtype": torch.float16},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}


class SimpleGVRLoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SimpleGVRLoadModel",
            display_name="Load SimpleGVR Model",
            category=CATEGORY,
            description="Loads a SimpleGVR or Ultra Flash super-resolution model with its attention and sampling settings. "
            "The MODEL works with stock samplers, LoRA, compile and context window nodes.",
            search_aliases=["video super resolution", "upscale video", "GVR", "Wan upscaler"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=folder_paths.get_filename_list("diffusion_models"),
                    tooltip="Checkpoint in models/diffusion_models: SimpleGVR's (.safetensors) or Ultra Flash's (.pth or .safetensors). "
                    "gvr_tiny comes with the pack.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    tooltip="Data type of the weights. default lets ComfyUI choose; fp8 needs the least memory.",
                    advanced=True,
                ),
                family_input(),
            ],
            outputs=[io.Model.Output(tooltip="For SimpleGVR Sampler or any stock sampler.")],
        )

    @classmethod
    def execute(cls, model_name: str, weight_dtype: str, family: str = "auto") -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("diffusion_models", model_name)
        return io.NodeOutput(load_model(path, WEIGHT_DTYPES[weight_dtype], family))


class SimpleGVRLoadUpsampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SimpleGVRLoadUpsampler",
            display_name="Load SimpleGVR Upsampler",
            category=CATEGORY,
            description="Loads a SimpleGVR or Ultra Flash latent upsampler.",
            search_aliases=["latent upscale model", "latent upsampler"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=folder_paths.get_filename_list("latent_upscale_models"),
                    tooltip="Upsampler checkpoint in models/latent_upscale_models: SimpleGVR's (.safetensors) or Ultra Flash's "
                    "(.pth or .safetensors). gvr_tiny_upsampler comes with the pack.",
                ),
                family_input(),
            ],
            outputs=[io.LatentUpscaleModel.Output(tooltip="For SimpleGVR Sampler or SimpleGVR Latent Upscale.")],
        )

    @classmethod
    def execute(cls, model_name: str, family: str = "auto") -> io.NodeOutput:
        return io.NodeOutput(load_upsampler(folder_paths.get_full_path_or_raise("latent_upscale_models", model_name), family))


class SimpleGVRLoadTinyVAE(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SimpleGVRLoadTinyVAE",
            display_name="Load TinyVAE (SimpleGVR)",
            category=CATEGORY,
            description="Loads the small video autoencoder of gvr_tiny. Its latents have the shape of Wan 2.1's but are not "
            "interchangeable with them: use it with gvr_tiny only.",
            search_aliases=["tiny vae", "video vae"],
            inputs=[
                io.Combo.Input(
                    "vae_name",
                    options=folder_paths.get_filename_list(TINY_VAE_FOLDER),
                    tooltip=f"TinyVAE checkpoint in models/{TINY_VAE_FOLDER}. gvr_tiny_vae comes with the pack.",
                )
            ],
            outputs=[io.Vae.Output(tooltip="For stock VAE Encode and VAE Decode.")],
        )

    @classmethod
    def execute(cls, vae_name: str) -> io.NodeOutput:
        return io.NodeOutput(TinyVAESocket(folder_paths.get_full_path_or_raise(TINY_VAE_FOLDER, vae_name)))


class SimpleGVRLoadVideoDecoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SimpleGVRLoadVideoDecoder",
            display_name="Load SimpleGVR Video Decoder",
            category=CATEGORY,
            description="Loads a small video decoder for Wan 2.1 latents: taew2_1, lighttaew2_1 or a decoder of Ultra Flash. It needs far "
            "less time and memory than Wan's own VAE and is less exact. Load VAE scales the latents of taew2_1 wrongly.",
            search_aliases=["taew2_1", "taehv", "tiny autoencoder", "lighttaew2_1", "fast VAE decode", "Ultra Flash decoder"],
            inputs=[
                io.Combo.Input(
                    "decoder_name",
                    options=sorted({name for folder in FOLDERS for name in folder_paths.get_filename_list(folder)}),
                    tooltip="File in models/vae or models/vae_approx, safetensors or pth.",
                ),
                io.Combo.Input(
                    "family",
                    options=list(FAMILIES),
                    default="auto",
                    optional=True,
                    tooltip="auto: recognised by its layout; a file with TAEHV's layout is read as taew2_1 or Ultra Flash's. "
                    "lighttaew2_1: that file, which has the same layout and takes other latents.",
                    advanced=True,
                ),
            ],
            outputs=[io.Vae.Output(tooltip="For SimpleGVR Decode and Save, or stock VAE Decode. taew2_1 and lighttaew2_1 also encode.")],
        )

    @classmethod
    def execute(cls, decoder_name: str, family: str = "auto") -> io.NodeOutput:
        path = next(filter(None, (folder_paths.get_full_path(folder, decoder_name) for folder in FOLDERS)), None)
        if path is None:
            raise refuse(cls, f"{decoder_name} is in neither models/vae nor models/vae_approx: refresh the list, or download it again")
        return io.NodeOutput(VideoDecoderSocket(path, family))
