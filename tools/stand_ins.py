"""gvr_tiny in place of the large files that the Wan workflows name, so that they run on any machine: to test them, to show a result."""

import shutil
from pathlib import Path

from comfyui import REPO

FILES = {
    "diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors": "diffusion_models/gvr_tiny_t2v.safetensors",
    "diffusion_models/gvr_wan21_1.3b.safetensors": "diffusion_models/gvr_tiny.safetensors",
    "latent_upscale_models/gvr_wan21_upsampler.safetensors": "latent_upscale_models/gvr_tiny_upsampler.safetensors",
    "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors": None,  # listed, never read: see use_stand_ins
    "vae/wan_2.1_vae.safetensors": None,
}


def place_stand_ins(models: Path) -> None:
    """Puts files of gvr_tiny under the names of the large ones into a models folder."""
    for name, own in FILES.items():
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / "models" / own, models / name) if own else (models / name).touch()


def use_stand_ins(page) -> None:
    """Exchanges, in the open workflow, what no small file can take the place of.

    ComfyUI knows Wan's text encoder in one size only, 11 GB, and its VAE by layers that TinyVAE has not: text prompts become null
    prompts (which gvr_tiny was trained with), Load VAE becomes Load SimpleGVR Tiny VAE.
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
        for (const node of app.graph._nodes.filter(node => node.type === 'CLIPLoader')) app.graph.remove(node)
    }""")
