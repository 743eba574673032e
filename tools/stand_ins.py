"""gvr_tiny in place of the large files that the Wan workflows name, so that they run on any machine: to test them, to show a result."""

import shutil
from pathlib import Path

from comfyui import REPO

FILES = {
    "diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors": "diffusion_models/gvr_tiny_t2v.safetensors",
    "diffusion_models/wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors": "diffusion_models/gvr_tiny_t2v.safetensors",
    "diffusion_models/wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors": "diffusion_models/gvr_tiny_t2v.safetensors",
    "diffusion_models/gvr_wan21_1.3b.safetensors": "diffusion_models/gvr_tiny.safetensors",
    "latent_upscale_models/gvr_wan21_upsampler.safetensors": "latent_upscale_models/gvr_tiny_upsampler.safetensors",
    "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors": None,  # listed, never read: see use_stand_ins
    "vae/wan_2.1_vae.safetensors": None,
    "vae_approx/taew2_1.safetensors": None,
    "diffusion_models/1K-Causal-Sparse-SR-Dit-fidelity-step_12800.pth": None,
    "diffusion_models/2K-Causal-Sparse-SR-Dit-fidelity-step_12800.pth": None,
    "latent_upscale_models/1K-ultraLatentUpsampler-step_19900.pth": None,
    "latent_upscale_models/2K-ultraLatentUpsampler-step_28100.pth": None,
}
LORAS = tuple(f"wan2.2_t2v_lightx2v_4steps_lora_v1.1_{noise}_noise.safetensors" for noise in ("high", "low"))  # that change nothing


def place_stand_ins(models: Path) -> None:
    """Puts files of gvr_tiny under the names of the large ones into a models folder."""
    for name, own in FILES.items():
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / "models" / own, models / name) if own else (models / name).touch()
    place_loras(models / "loras")


def place_loras(folder: Path) -> None:
    """Writes LoRAs of gvr_tiny's text-to-video model that change nothing."""
    import torch
    from safetensors.torch import load_file, save_file

    folder.mkdir(exist_ok=True)
    layer = "blocks.0.self_attn.q"
    width = len(load_file(REPO / "models" / "diffusion_models" / "gvr_tiny_t2v.safetensors")[f"{layer}.weight"])
    for name in LORAS:
        pair = {"lora_down": torch.zeros(1, width), "lora_up": torch.zeros(width, 1)}
        save_file({f"diffusion_model.{layer}.{part}.weight": matrix for part, matrix in pair.items()}, folder / name)


def use_stand_ins(page) -> None:
    """Exchanges, in the open workflow, what no small file can take the place of.

    ComfyUI knows Wan's text encoder in one size only, 11 GB, and its VAE by layers that TinyVAE has not: text prompts become null
    prompts (which gvr_tiny was trained with), Load VAE and Load SimpleGVR Video Decoder become Load TinyVAE, Ultra Flash's pair gvr_tiny.
    """
    page.evaluate("""() => {
        const exchange = (type, name) => {
            for (const node of app.graph._nodes.filter(node => node.type === type)) {
                const other = LiteGraph.createNode(name)
                app.graph.add(other)
                other.pos = node.pos
                for (const link of [...node.outputs[0].links ?? []].map(id => app.graph.links.get(id))) {
                    other.connect(0, app.graph.getNodeById(link.target_id), link.target_slot)
                }
                app.graph.remove(node)
            }
        }
        exchange('CLIPTextEncode', 'SimpleGVRNullPrompt')
        exchange('VAELoader', 'SimpleGVRLoadTinyVAE')
        exchange('SimpleGVRLoadVideoDecoder', 'SimpleGVRLoadTinyVAE')
        const own = { SimpleGVRLoadModel: 'gvr_tiny.safetensors', SimpleGVRLoadUpsampler: 'gvr_tiny_upsampler.safetensors' }
        for (const node of app.graph._nodes.filter(node => own[node.type])) {
            const widget = node.widgets.find(widget => widget.name === 'model_name')
            if (widget.value.endsWith('.pth')) widget.value = own[node.type]
        }
        for (const node of app.graph._nodes.filter(node => node.type === 'CLIPLoader')) app.graph.remove(node)
    }""")
