"""Writes workflows/*.json from workflows/api/*.json, through ComfyUI's own front end.

`python3 scripts/run.py tools/author_workflows.py [NAME ...]`, after a change to an API workflow or to a node's inputs.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from comfyui import HOME, REPO, find_comfyui, say, server, version

HUB = "https://huggingface.co"
WAN, WAN22 = (f"{HUB}/Comfy-Org/{name}/resolve/main/split_files" for name in ("Wan_2.1_ComfyUI_repackaged", "Wan_2.2_ComfyUI_Repackaged"))
ULTRA_FLASH = f"{HUB}/xin1u/UltraFlash/resolve/main"
DOWNLOADS = {  # (folder, address) of each file that a workflow names
    "wan2.1_t2v_1.3B_fp16.safetensors": ("diffusion_models", f"{WAN}/diffusion_models"),
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": ("text_encoders", f"{WAN}/text_encoders"),
    "wan_2.1_vae.safetensors": ("vae", f"{WAN}/vae"),
    "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors": ("diffusion_models", f"{WAN22}/diffusion_models"),
    "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors": ("diffusion_models", f"{WAN22}/diffusion_models"),
    "wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors": ("loras", f"{WAN22}/loras"),
    "wan2.2_t2v_lightx2v_4steps_lora_v1.1_low_noise.safetensors": ("loras", f"{WAN22}/loras"),
    "1K-Causal-Sparse-SR-Dit-fidelity-step_12800.pth": ("diffusion_models", ULTRA_FLASH),
    "1K-ultraLatentUpsampler-step_19900.pth": ("latent_upscale_models", ULTRA_FLASH),
    "2K-Causal-Sparse-SR-Dit-fidelity-step_12800.pth": ("diffusion_models", ULTRA_FLASH),
    "2K-ultraLatentUpsampler-step_28100.pth": ("latent_upscale_models", ULTRA_FLASH),
    "taew2_1.safetensors": ("vae_approx", f"{HUB}/Kijai/WanVideo_comfy/resolve/main"),
}
NOTES = {
    "quickstart_video": """## SimpleGVR quickstart
Choose a video in **Load Video**, keep it small (about 384 x 216, 33 frames on a CPU), and run.

Everything it needs comes with the pack: gvr_tiny shows the whole chain and is a small model, not a
substitute for one trained on Wan. **scale** stands in SimpleGVR Sampler and in SimpleGVR Trim: give both the same.
**SimpleGVR Compare** plays before and after in one place: drag the line between them.""",
    "long_video": """## Long videos, large frames
**SimpleGVR Plan** says what the run will take: the segments and tiles that fit your memory. **SimpleGVR Sampler** takes
the same with tiling *auto*, blends neighbours at every step, and makes boxes smaller when memory runs out all the same.
**SimpleGVR Decode and Save** writes the file as it decodes: frames are never all in memory.

**resume** is on in both: after a cancel or a crash run the workflow again, and it goes on where it was.
The source itself is loaded whole by ComfyUI's Load Video. Set **trim** for sources whose size is no multiple of 8.""",
    "wiring_test_t2v": """## Wiring test: text-to-video and SimpleGVR, all bundled
This template shows how the nodes are connected behind a text-to-video sampler. Its pictures show nothing that you
would recognise: the text-to-video model is a toy that was trained on a CPU, without captions, so there is no prompt.

**SimpleGVR Sampler** takes the sampler's latent and makes it three times as large; TinyVAE decodes it. Nothing is
decoded in between. For videos of your own prompts take *wan21_t2v_to_1080p*, with Wan 2.1.""",
    "degradation_preview": """## What SimpleGVR learns to undo
**SimpleGVR Flow Degrade** gives a video the faults of text-to-video models: colors of the frame before bleed into
what moves, and it blurs along its motion. **SimpleGVR Classical Degrade** is RealBasicVSR's: blur, noise, compression.

**SimpleGVR Model Degrade** lets a text-to-video model redraw the latent. Here it is the bundled toy; use your own.

Two nodes compare before and after in a player. The saved video shows, from left to right: before, flow-based, classical,
optical flow (hue: direction, brightness: speed), what moves, and model-guided. Another **seed** draws anew.""",
    "wan21_t2v_to_1080p": """## Wan 2.1 to 1080p with SimpleGVR
The sampler's LATENT goes straight into **SimpleGVR Sampler**; nothing is decoded in between.

**There are no SimpleGVR weights for Wan 2.1 yet.** This workflow is ready for them (`gvr_wan21_1.3b` and
`gvr_wan21_upsampler` are example names). Until then use *wan21_training_free_1080p*.""",
    "wan21_training_free_1080p": """## Wan 2.1 to 1080p, training-free
Works today with stock Wan 2.1 1.3B: the upsampled latent is noised to **denoise** (0.3 to 0.6) and refined by the
same model with sparse attention. This is not the trained SimpleGVR; expect less detail and more change.""",
    "wan21_ultraflash_1k": """## Wan 2.1 to 1664 x 960 in one step
Wan 2.1 1.3B samples 832 x 480; [Ultra Flash](https://huggingface.co/xin1u/UltraFlash) (Apache-2.0, arXiv 2606.09150)
doubles the latent and refines it in one step. taew2_1 (MIT) decodes it: small and quick. For the exact decode connect
**Load VAE** with `wan_2.1_vae`.

Put the two 1K files into `models/diffusion_models` and `models/latent_upscale_models`, taew2_1 into
`models/vae_approx`. PyTorch 2.10 or newer reads .pth files; `python3 scripts/run.py convert FILE` makes a safetensors file of one.

The prompt stays connected: the model was distilled with prompts. *We have run none of these files: see
docs/weights.md.*""",
    "wan21_ultraflash_2k": """## Wan 2.1 to 2496 x 1440 in one step
As *wan21_ultraflash_1k*, three times as large: the 2K transformer and the 2K upsampler of [Ultra
Flash](https://huggingface.co/xin1u/UltraFlash) (Apache-2.0). They belong together: each pair knows one scale.

Put them into `models/diffusion_models` and `models/latent_upscale_models`. Wan's own VAE decodes a few frames at a
time, in tiles where a frame does not fit. **Load SimpleGVR Video Decoder** with taew2_1 is quicker.

*We have run none of these files: see docs/weights.md.*""",
    "wan22_training_free_4_steps": """## Wan 2.2 to 1080p, training-free in 4 steps
Both experts of Wan 2.2 14B with LightX2V's 4-step LoRAs sample 832 x 480. **SimpleGVR Sampler** then refines the
upsampled latent with the low-noise expert, its LoRA and sparse attention: `settings` *distilled* is 4 steps at cfg 1
from noise level 0.4, in place of 40 passes.

For another noise level take `settings` *custom* with steps 4, cfg 1 and your denoise. With Wan 2.1 1.3B or 14B use its
own few-step LoRA. This is not the trained SimpleGVR; expect change in detail. *We have run none of these files: see
docs/weights.md.*""",
}

ADDRESS = re.search(r'^Repository = "(.*)"$', (REPO / "pyproject.toml").read_text(), re.MULTILINE)[1]
INSTALL = f"""

Nodes of [ComfyUI-SimpleGVR]({ADDRESS}). Missing nodes: install *SimpleGVR* in ComfyUI's manager, or clone {ADDRESS} into `custom_nodes`."""
FRONT_END_ONLY = {"MarkdownNote", "Note", "Reroute", "PrimitiveNode"}


def identify(graph: dict) -> dict:
    """Returns the UI workflow or blueprint with the pack that each node comes from, by which ComfyUI offers to install missing nodes.

    cnr_id: its name in the registry. ver: its version. aux_id: its repository.
    """
    pack = {"cnr_id": pack_setting("name"), "ver": pack_setting("version"), "aux_id": ADDRESS.removeprefix("https://github.com/")}
    major, minor = version(find_comfyui(HOME))
    core = {"cnr_id": "comfy-core", "ver": f"{major}.{minor}.0"}
    subgraphs = (graph["definitions"] or {}).get("subgraphs", [])
    for node in [node for part in (graph, *subgraphs) for node in part["nodes"]]:
        if node["type"] not in FRONT_END_ONLY | {subgraph["id"] for subgraph in subgraphs}:
            node.setdefault("properties", {}).update(pack if node["type"].startswith("SimpleGVR") else core)
    return graph


def pack_setting(name: str) -> str:
    """Returns a text of [project] in pyproject.toml."""
    return re.search(rf'^{name} = "(.*)"$', (REPO / "pyproject.toml").read_text(), re.MULTILINE)[1]


def author(page, name: str) -> dict:
    """Returns the UI workflow of one API workflow: arranged, seeds fixed, model links and a note added."""
    api = json.loads((REPO / "workflows" / "api" / f"{name}.json").read_text())
    downloads = {
        file: {"name": file, "url": f"{address}/{file}?download=true", "directory": folder} for file, (folder, address) in DOWNLOADS.items()
    }
    return page.evaluate(
        """async ([api, name, downloads, note]) => {
            await app.loadApiJson(api, name)
            app.graph.arrange()
            for (const node of app.graph._nodes) {
                const [width, height] = node.computeSize()
                const room = { // for what it shows when it has run
                    CLIPTextEncode: 160, LoadVideo: 320, SaveVideo: 420, SimpleGVRClassicalDegrade: 460, SimpleGVRCompare: 460,
                    SimpleGVRDecodeSave: 400, SimpleGVRFlowDegrade: 420, SimpleGVRPlan: 520, SimpleGVRSampler: 620,
                }[node.type]
                node.setSize([Math.max(width, 280), Math.max(height, room ?? 0)])
                for (const widget of node.widgets ?? []) {
                    if (widget.name === 'control_after_generate') widget.value = 'fixed'
                    if (downloads[widget.value]) node.properties.models = [downloads[widget.value]]
                }
            }
            app.graph.arrange()
            const top = Math.min(...app.graph._nodes.map(n => n.pos[1])), left = Math.min(...app.graph._nodes.map(n => n.pos[0]))
            const markdown = LiteGraph.createNode('MarkdownNote')
            app.graph.add(markdown)
            markdown.widgets[0].value = note
            markdown.setSize([640, 200])
            markdown.pos = [left, top - 300] // the page makes it 240 high, and a title is 30
            return app.graph.serialize()
        }""",
        [api, name, downloads, NOTES[name] + INSTALL],
    )


@contextmanager
def authoring() -> Iterator[tuple]:
    """Yields the front end's page on a server that lists every file that the workflows name, and the server's base folder."""
    from browser import comfyui_page, install_chromium
    from stand_ins import place_stand_ins

    install_chromium()
    with TemporaryDirectory() as folder:
        base = Path(folder)
        place_stand_ins(base / "models")
        (base / "input").mkdir()
        shutil.copy(REPO / "assets" / "demo.mp4", base / "input")
        with server(base) as (address, _), comfyui_page(address) as page:
            yield page, base


def main() -> None:
    with authoring() as (page, _):
        for name in sys.argv[1:] or NOTES:
            say(f"authoring {name}")
            graph = author(page, name)
            for key in ("id", "revision"):
                graph.pop(key, None)
            (REPO / "workflows" / f"{name}.json").write_text(json.dumps(identify(graph), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
