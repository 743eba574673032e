"""Takes the pictures of the help pages: nodes in ComfyUI's own front end, after a run. Writes web/docs/*.webp.

`python3 scripts/run.py tools/author_help.py [NAME ...]`, after a change to a node's looks.
"""

import io
import json
import shutil
import sys

from comfyui import HOME, REPO, say, server

DOCS = REPO / "web" / "docs"
STOCK = {  # SimpleGVR by stock nodes, and its helpers
    "1": ("LoadVideo", {"file": "demo.mp4"}),
    "2": ("GetVideoComponents", {"video": ["1", 0]}),
    "3": ("SimpleGVRLoadTinyVAE", {"vae_name": "gvr_tiny_vae.safetensors"}),
    "4": ("VAEEncode", {"pixels": ["2", 0], "vae": ["3", 0]}),
    "5": ("SimpleGVRLoadModel", {"model_name": "gvr_tiny.safetensors", "weight_dtype": "default"}),
    "6": ("SimpleGVRLoadUpsampler", {"model_name": "gvr_tiny_upsampler.safetensors"}),
    "7": ("SimpleGVRLatentUpscale", {"upsampler": ["6", 0], "latent": ["4", 0], "size": "scale", "size.scale": 3.0}),
    "8": ("SimpleGVRNullPrompt", {}),
    "9": ("SimpleGVRConditioning", {
        "positive": ["8", 0], "negative": ["8", 0], "upscaled": ["7", 0], "noise_augmentation": 0.0, "noise_seed": 0,
    }),
    "10": ("SimpleGVRSparseAttention", {"model": ["5", 0], "preset": "balanced"}),
    "11": ("KSampler", {
        "model": ["10", 0], "positive": ["9", 0], "negative": ["9", 1], "latent_image": ["7", 0], "seed": 0, "steps": 2, "cfg": 1.0,
        "sampler_name": "euler", "scheduler": "simple", "denoise": 0.15,
    }),
    "12": ("VAEDecode", {"samples": ["11", 0], "vae": ["3", 0]}),
    "13": ("SimpleGVRTrim", {"images": ["12", 0], "source": ["2", 0], "scale": 3.0, "even": True}),
    "14": ("SimpleGVRColorMatch", {"images": ["13", 0], "reference": ["2", 0], "strength": 1.0, "levels": 5}),
    "16": ("ImageFromBatch", {"image": ["13", 0], "batch_index": 0, "length": 16}),
    "17": ("ImageFromBatch", {"image": ["14", 0], "batch_index": 16, "length": 17}),
    "18": ("ImageBatch", {"image1": ["16", 0], "image2": ["17", 0]}),
    "19": ("SimpleGVRSeamMeter", {
        "video": ["18", 0], "period": 16, "tile_width": 0, "tile_height": 0, "first_border": 16, "overlap": 0, "tile_overlap_width": 0,
        "tile_overlap_height": 0,
    }),
    "20": ("SimpleGVRTimestepCurve", {"model_name": "gvr_tiny.safetensors"}),
    "21": ("SimpleGVRAttentionMap", {
        "model": ["10", 0], "latent": ["11", 0], "x": 330, "y": 90, "frame": 16, "block": 2, "head": 0, "sigma": 0.15, "seed": 0,
        "images": ["13", 0],
    }),
    "22": ("SimpleGVRCompare", {"before": ["2", 0], "after": ["13", 0], "fps": 24.0}),
    "23": ("LoadVideo", {"file": "demo_original.mp4"}),
    "24": ("GetVideoComponents", {"video": ["23", 0]}),
    "25": ("SimpleGVREvaluate", {"result": ["13", 0], "original": ["24", 0], "source": ["2", 0], "metrics": "quick"}),
}  # fmt: skip
PICTURES = {  # name: the nodes that it shows, by type
    "long_video": {
        "plan": ["SimpleGVRPlan"],
        "sampler": ["SimpleGVRLoadModel", "SimpleGVRLoadUpsampler", "SimpleGVRSampler"],
        "decode": ["SimpleGVRDecodeSave"],
        "load_tiny_vae": ["SimpleGVRLoadTinyVAE", "VAEEncode"],
    },
    "degradation_preview": {
        "flow_degrade": ["SimpleGVRFlowDegrade"],
        "classical_degrade": ["SimpleGVRClassicalDegrade"],
        "model_degrade": ["SimpleGVRModelDegrade"],
    },
    "stock": {
        "conditioning": ["SimpleGVRLatentUpscale", "SimpleGVRNullPrompt", "SimpleGVRConditioning", "KSampler"],
        "sparse_attention": ["SimpleGVRLoadModel", "SimpleGVRSparseAttention"],
        "latent_upscale": ["SimpleGVRLoadUpsampler", "SimpleGVRLatentUpscale"],
        "trim": ["GetVideoComponents", "VAEDecode", "SimpleGVRTrim"],
        "color_match": ["SimpleGVRTrim", "SimpleGVRColorMatch"],
        "seam_meter": ["SimpleGVRSeamMeter"],
        "timestep_curve": ["SimpleGVRTimestepCurve"],
        "attention_map": ["SimpleGVRAttentionMap"],
        "compare": ["SimpleGVRCompare"],
        "evaluate": ["SimpleGVREvaluate"],
    },
}
SIZES = {  # pixels of nodes that show a picture
    "SimpleGVRPlan": (640, 720),
    "SimpleGVRFlowDegrade": (560, 600),
    "SimpleGVRClassicalDegrade": (560, 640),
    "SimpleGVRModelDegrade": (420, 460),
    "SimpleGVRDecodeSave": (480, 520),
    "SimpleGVRSeamMeter": (560, 700),
    "SimpleGVRTimestepCurve": (640, 400),
    "SimpleGVRAttentionMap": (560, 720),
    "SimpleGVRCompare": (640, 520),
    "SimpleGVREvaluate": (640, 720),
}
ASSETS = {"result": "side_by_side.jpg", "degradations": "degradations.png"}


def load(page, workflow: str) -> None:
    """Opens a workflow of the repository, or STOCK, in the page."""
    if workflow == "stock":
        api = {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in STOCK.items()}
        page.evaluate("async (api) => { await app.loadApiJson(api, 'stock'); app.graph.arrange() }", api)
    else:
        graph = json.loads((REPO / "workflows" / f"{workflow}.json").read_text())
        page.evaluate("(graph) => app.loadGraphData(graph)", graph)


def run(page) -> None:
    """Runs the open workflow. Returns when it is done; raises RuntimeError with what the server says when it fails."""
    page.evaluate("""() => {
        window.ended = null
        app.api.addEventListener('execution_success', () => { window.ended = '' }, {once: true})
        app.api.addEventListener('execution_error', ({detail}) => { window.ended = detail.exception_message }, {once: true})
        app.queuePrompt(0)
    }""")
    page.wait_for_function("window.ended !== null", timeout=1_200_000)
    if error := page.evaluate("window.ended"):
        raise RuntimeError(error)
    page.wait_for_timeout(3000)


def take(page, kinds: list[str], row: int):
    """Returns a PIL picture of the first nodes of these types, put in a row of their own."""
    from PIL import Image

    clip = page.evaluate(
        """([kinds, sizes, top]) => {
            const nodes = kinds.map(kind => app.graph._nodes.find(n => n.type === kind)), canvas = app.canvas
            let right = 0
            for (const node of nodes) {
                node.pos = [right, top]
                if (sizes[node.type]) node.setSize(sizes[node.type])
                right += node.size[0] + 60
            }
            const width = right - 36, height = Math.max(...nodes.map(n => n.size[1])) + 70
            const scale = Math.min(1200 / width, 700 / height, 1)
            canvas.min_font_size_for_lod = 0
            canvas.ds.scale = scale
            canvas.ds.offset = [120 / scale + 12, 120 / scale + 58 - top]
            canvas.deselectAll()
            canvas.draw(true, true)
            const {x, y} = canvas.canvas.getBoundingClientRect()
            return {x: x + 120, y: y + 120, width: width * scale, height: height * scale}
        }""",
        [kinds, SIZES, 10_000 * row],
    )
    page.mouse.move(900, 880)
    page.wait_for_timeout(2500)
    return Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")


def main() -> None:
    from browser import comfyui_page, install_chromium
    from PIL import Image

    install_chromium()
    for name, asset in ASSETS.items():
        picture = Image.open(REPO / "assets" / asset)
        picture.thumbnail((1200, 1200))
        picture.save(DOCS / f"{name}.webp", quality=85)
    base = HOME / "authoring"
    (base / "input").mkdir(parents=True, exist_ok=True)
    for video in ("demo.mp4", "demo_original.mp4"):
        shutil.copy(REPO / "assets" / video, base / "input")
    with server(base) as (address, _), comfyui_page(address) as page:
        for workflow, pictures in PICTURES.items():
            wanted = {name: kinds for name, kinds in pictures.items() if not sys.argv[1:] or name in sys.argv[1:]}
            if not wanted:
                continue
            say(f"running {workflow}")
            load(page, workflow)
            run(page)
            for row, (name, kinds) in enumerate(wanted.items(), 1):
                take(page, kinds, row).save(DOCS / f"{name}.webp", quality=85)


if __name__ == "__main__":
    main()
