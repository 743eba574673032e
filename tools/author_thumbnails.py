"""Writes workflows/*.jpg, the pictures of the Templates browser, from real runs: what went in, enlarged, above what came out.

`python3 scripts/run.py tools/author_thumbnails.py [NAME ...]`, after a change to a workflow or to gvr_tiny.
The Wan workflows run with gvr_tiny and the bundled clip in place of Wan's files, and their pictures say so; or they show the graph.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from author_workflows import authoring
from comfyui import REPO, say

WIDTH = 720  # pixels
BEFORE = "thumbnail"  # how the files begin that hold what went in


@dataclass(frozen=True)
class Thumbnail:
    """captions: of what went in and what came out, or of the panels of a video that holds several side by side. widgets: by node type.

    clip: whether the bundled clip takes the place of the text-to-video model.
    """

    captions: tuple[str, ...]
    widgets: dict[str, dict] = field(default_factory=dict)
    clip: bool = False


THUMBNAILS = {
    "quickstart_video": Thumbnail(("192 x 108, its latent decoded", "SimpleGVR, 576 x 324")),
    "long_video": Thumbnail(("192 x 108, its latent decoded", "planned, in segments and tiles: 576 x 336")),
    "degradation_preview": Thumbnail(("before", "flow-based", "classical", "optical flow", "what moves", "model-guided")),
    "wan21_t2v_to_1080p": Thumbnail(
        ("low resolution   (shown: the bundled clip)", "SimpleGVR, three times the size   (shown: gvr_tiny)"),
        {"SimpleGVRSampler": {"size": "scale", "size.scale": 3.0}},
        clip=True,
    ),
    "wan21_ultraflash_1k": Thumbnail(
        ("low resolution   (shown: the bundled clip)", "one step, twice the size   (shown: gvr_tiny)"), clip=True
    ),
    "wan21_ultraflash_2k": Thumbnail(
        ("low resolution   (shown: the bundled clip)", "one step, three times the size   (shown: gvr_tiny)"), clip=True
    ),
}
GRAPHS = {  # whose pictures are their graphs, with these captions, where no small model draws what a person recognises
    "wan21_training_free_1080p": "Training-free: stock Wan 2.1",  # gvr_tiny_t2v draws only colors
    "wan22_training_free_4_steps": "Training-free: stock Wan 2.2 and a 4-step LoRA",  # no small model can take its place
    "wiring_test_t2v": "Wiring test: a toy text-to-video model, no prompt",
}


def run(page, base: Path, name: str, thumbnail: Thumbnail) -> tuple[list, list]:
    """Returns the frames, as pictures, of what went into SimpleGVR Sampler (none if it has no such node) and of the workflow's video."""
    from browser import drop_file, press_run, set_widgets, show_graph, shown_result
    from PIL import Image
    from stand_ins import use_stand_ins

    from simplegvr_core.video.read import read_video

    drop_file(page, REPO / "workflows" / f"{name}.json")
    use_stand_ins(page)
    if thumbnail.clip:
        use_clip(page)
    for node_type, values in thumbnail.widgets.items():
        set_widgets(page, node_type, values)
    saver = page.evaluate(
        """prefix => {
            const find = type => app.graph._nodes.find(node => node.type.startsWith(type))
            const sampler = find('SimpleGVRSampler'), decoder = find('VAEDecode') ?? find('SimpleGVRDecodeSave')
            if (sampler) {
                const decode = LiteGraph.createNode('VAEDecode'), save = LiteGraph.createNode('SaveImage')
                for (const node of [decode, save]) app.graph.add(node)
                const origin = (node, input) => app.graph.links.get(node.inputs.find(slot => slot.name === input).link)
                const latent = origin(sampler, 'latent'), vae = origin(decoder, 'vae')
                app.graph.getNodeById(latent.origin_id).connect(latent.origin_slot, decode, 'samples')
                app.graph.getNodeById(vae.origin_id).connect(vae.origin_slot, decode, 'vae')
                decode.connect(0, save, 'images')
                save.widgets.find(widget => widget.name === 'filename_prefix').value = prefix
            }
            return find('SimpleGVRDecodeSave') ? 'SimpleGVRDecodeSave' : 'SaveVideo'
        }""",
        f"{BEFORE}_{name}",
    )
    show_graph(page)
    press_run(page)
    video = base / "output" / shown_result(page, saver)["file"]
    while page.evaluate("fetch('api/prompt').then(answer => answer.json()).then(state => state.exec_info.queue_remaining)"):
        page.wait_for_timeout(200)  # the other output
    before = [Image.open(path) for path in sorted((base / "output").glob(f"{BEFORE}_{name}_*.png"))]
    return before, [Image.fromarray(image.numpy()) for image in read_video(video)[0]]


def use_clip(page) -> None:
    """Gives SimpleGVR Sampler the encoded bundled clip, in the open workflow."""
    page.evaluate("""() => {
        const add = type => { const node = LiteGraph.createNode(type); app.graph.add(node); return node }
        const [load, parts, encode] = ['LoadVideo', 'GetVideoComponents', 'VAEEncode'].map(add)
        load.widgets.find(widget => widget.name === 'file').value = 'demo.mp4'
        load.connect(0, parts, 'video')
        parts.connect(0, encode, 'pixels')
        app.graph._nodes.find(node => node.type === 'SimpleGVRLoadTinyVAE').connect(0, encode, 'vae')
        encode.connect(0, app.graph._nodes.find(node => node.type === 'SimpleGVRSampler'), 'latent')
        const unused = /KSampler|UNETLoader|ModelSampling|Empty/
        for (const node of app.graph._nodes.filter(node => unused.test(node.type))) app.graph.remove(node)
    }""")


def draw_graph(page, name: str, text: str):
    """Returns the picture of a workflow's graph, with a caption above the nodes."""
    from io import BytesIO

    from browser import drop_file, show_graph
    from PIL import Image, ImageDraw

    drop_file(page, REPO / "workflows" / f"{name}.json")
    show_graph(page)
    beside_buttons = {"x": 60, "y": 80, "width": 1376, "height": 800}
    picture = Image.open(BytesIO(page.screenshot(clip=beside_buttons))).convert("RGB")
    caption(ImageDraw.Draw(picture), text, (picture.width - 20, picture.height * 2 // 3), size=40, anchor="rm")
    return picture


def picture(panels: list, captions: tuple[str, ...], columns: int, size: tuple[int, int]):
    """Returns the panels in columns, each cut to the proportions of size (in pixels), enlarged to it, and captioned."""
    from PIL import Image, ImageDraw, ImageOps

    sheet = Image.new("RGB", (columns * size[0], -(-len(panels) // columns) * size[1]))
    for i, (panel, text) in enumerate(zip(panels, captions, strict=True)):
        tile = ImageOps.fit(panel.convert("RGB"), size, Image.Resampling.BICUBIC, centering=(0.5, 0.2))
        caption(ImageDraw.Draw(tile), text, (10, size[1] - 10), size=20, anchor="lb")
        sheet.paste(tile, (i % columns * size[0], i // columns * size[1]))
    return sheet


def caption(draw, text: str, place: tuple[int, int], *, size: int, anchor: str) -> None:
    """Draws white text on a black box.

    Args:
        draw: ImageDraw of the picture.
        text: The text.
        place: Its (x, y), in pixels.
        size: Of its font, in pixels.
        anchor: The text's point at that place, as Pillow names it.
    """
    from PIL import ImageFont

    font = ImageFont.load_default(size=size)
    left, top, right, bottom = draw.textbbox(place, text, font, anchor=anchor)
    draw.rectangle((left - 6, top - 5, right + 6, bottom + 5), fill="black")
    draw.text(place, text, "white", font, anchor=anchor)


def main() -> None:
    with authoring() as (page, base):
        for name in sys.argv[1:] or (*THUMBNAILS, *GRAPHS):
            say(f"running {name} for its picture")
            if name in GRAPHS:
                draw_graph(page, name, GRAPHS[name]).save(REPO / "workflows" / f"{name}.jpg", quality=80)
                continue
            thumbnail = THUMBNAILS[name]
            before, after = run(page, base, name, thumbnail)
            if before:
                middle = len(after) // 2
                sheet = picture([before[middle], after[middle]], thumbnail.captions, 1, (WIDTH, WIDTH // 2))
            else:
                strip = after[len(after) * 7 // 8]  # where the bundled clip moves most
                side = strip.width // len(thumbnail.captions)
                panels = [strip.crop((i * side, 0, (i + 1) * side, strip.height)) for i in range(len(thumbnail.captions))]
                sheet = picture(panels, thumbnail.captions, 2, (WIDTH // 2, WIDTH // 3))
            sheet.save(REPO / "workflows" / f"{name}.jpg", quality=88)


if __name__ == "__main__":
    main()
