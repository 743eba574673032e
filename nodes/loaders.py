"""Nodes that load SimpleGVR's networks: the model, the upsampler, the bundled TinyVAE."""

import folder_paths
import torch
from comfy_api.latest import io

from .host.bridge import CATEGORY, TINY_VAE_FOLDER
from .host.networks import TinyVAESocket, load_model, load_upsampler

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
            description="Loads a SimpleGVR super-resolution model with its attention and sampling shift. "
            "The MODEL works with stock samplers, LoRA, compile and context window nodes.",
            search_aliases=["video super resolution", "upscale video", "GVR", "Wan upscaler"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=folder_paths.get_filename_list("diffusion_models"),
                    tooltip="SimpleGVR checkpoint in models/diffusion_models. gvr_tiny comes with the pack.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    tooltip="Data type of the weights. default lets ComfyUI choose; fp8 needs the least memory.",
                    advanced=True,
                ),
            ],
            outputs=[io.Model.Output(tooltip="For SimpleGVR Sampler or any stock sampler.")],
        )

    @classmethod
    def execute(cls, model_name: str, weight_dtype: str) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("diffusion_models", model_name)
        return io.NodeOutput(load_model(path, WEIGHT_DTYPES[weight_dtype]))


class SimpleGVRLoadUpsampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SimpleGVRLoadUpsampler",
            display_name="Load SimpleGVR Upsampler",
            category=CATEGORY,
            description="Loads a SimpleGVR latent upsampler.",
            search_aliases=["latent upscale model", "latent upsampler"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=folder_paths.get_filename_list("latent_upscale_models"),
                    tooltip="Upsampler checkpoint in models/latent_upscale_models. gvr_tiny_upsampler comes with the pack.",
                )
            ],
            outputs=[io.LatentUpscaleModel.Output(tooltip="For SimpleGVR Sampler or SimpleGVR Latent Upscale.")],
        )

    @classmethod
    def execute(cls, model_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_upsampler(folder_paths.get_full_path_or_raise("latent_upscale_models", model_name)))


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
