"""What people look at while and after it runs: previews in motion, videos compared, the attention map."""

import json
import shutil
import sys
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import pytest
import torch
from browser import comfyui_page, show_graph
from conftest import REPO
from PIL import Image, ImageSequence

from simplegvr_core.networks.attention import AttentionConfig
from simplegvr_core.networks.attention_map import AttentionMap, SelectedWindow, draw_map, map_attention
from simplegvr_core.networks.tiny_vae import load_tiny_vae
from simplegvr_core.networks.windows import TokenLayout
from simplegvr_core.tiling import Box
from simplegvr_core.video.read import read_frames
from simplegvr_core.video.write import Encoding, write_frames

GRID, CONFIG = (2, 8, 5), AttentionConfig(window=(1, 4, 3), top_k=2, unit=None)


@pytest.mark.parametrize("condition_tokens", [0, 7])
@pytest.mark.parametrize("ordered", [False, True])
def test_the_map_finds_the_windows_that_queries_point_to(ordered, condition_tokens):
    """Head 0 of the window at (1, :4, 3:) looks at (0, 4:, :3), then (0, :4, 3:), head 1 at the first of them alone."""
    q, k = torch.zeros(1, 80, 2, 4), torch.zeros(1, 80, 2, 4)
    frames_q, frames_k = (x.view(1, *GRID, 2, 4) for x in (q, k))
    frames_q[:, 1, :4, 3:, :, 0] = 3.0
    frames_k[:, 0, 4:, :3, :, 0] = 2.0
    frames_k[:, 0, :4, 3:, 0, 0] = 1.0
    frames_k[:, 1, 4:, 3:, 1, 0] = 0.5
    if ordered:
        q, k = (x[:, CONFIG.token_order(GRID)] for x in (q, k))
    q, k = (torch.cat((x, torch.ones(1, condition_tokens, 2, 4)), dim=1) for x in (q, k))
    layout = TokenLayout(GRID, ordered, condition_tokens)
    found = map_attention(q, k, layout, CONFIG, 0, token=(1, 3, 4))
    assert found.box == Box((1, 0, 3), (2, 4, 5))
    assert (found.heads, found.others, found.scope) == (2, 7, (0, 2))
    first, second, third = found.selected
    assert (first.box, first.share, first.rank, first.score) == (Box((0, 4, 0), (1, 8, 3)), 1.0, 1.0, 3.0)
    assert (second.box, second.share, second.rank, second.score) == (Box((0, 0, 3), (1, 4, 5)), 0.5, 2.0, 1.5)
    assert (third.box, third.share, third.rank, third.score) == (Box((1, 4, 3), (2, 8, 5)), 0.5, 2.0, 0.75)
    assert "1. frame 0, x 0 to 48, y 64 to 128: 2 of 2 heads, rank 1.0, score 3.00" in found.describe((128, 72))
    assert "3. frames 1 to 4, x 48 to 72, y 64 to 128: 1 of 2 heads, rank 2.0, score 0.75" in found.describe((128, 72))
    (only, last) = map_attention(q, k, layout, CONFIG, 0, token=(1, 3, 4), head=1).selected
    assert (only, last.box) == (first, third.box)


@pytest.mark.parametrize("token", [0.5, 1.0, 2.0])
def test_a_map_can_be_drawn_on_a_picture_much_smaller_than_the_video(token):
    """Windows of one token, which is a pixel or two of the picture, or less than one."""
    windows = [SelectedWindow(Box((0, 6, 0), (1, 7, 1)), share=1.0, rank=1.0, score=0.0)]
    found = AttentionMap(Box((0, 0, 6), (1, 1, 7)), tuple(windows), heads=1, others=48, scope=(0, 1))
    drawn = draw_map(found, Image.new("RGB", (round(7 * token),) * 2), 0, (token, token))
    assert drawn.getpixel((round(6 * token), 0)) == (255, 255, 255)
    assert max(drawn.getpixel((0, round(6 * token)))) > 100


PLACE = dict(x=100, y=70, frame=5, sigma=0.3, seed=1)


@pytest.fixture(scope="module")
def latent():
    """A LATENT of 13 frames of 144 x 136 pixels, odd in cells."""
    return {"samples": torch.randn(1, 16, 4, 17, 18, generator=torch.Generator().manual_seed(0))}


def shown(comfy, node_id, **inputs):
    """Runs a node: its outputs and its `ui`."""
    with torch.inference_mode():
        output = comfy.nodes[node_id].PREPARE_CLASS_CLONE(None).execute(**inputs)
    return output.args, output.ui if isinstance(output.ui, dict) else output.ui.as_dict()


def temporary(file: dict) -> Path:
    import folder_paths

    return Path(folder_paths.get_temp_directory()) / file["subfolder"] / file["filename"]


@pytest.fixture
def gvr(comfy):
    return comfy.run("SimpleGVRLoadModel", model_name="gvr_test.safetensors", weight_dtype="default")[0]


@pytest.fixture
def wan(comfy):
    return comfy.run("UNETLoader", unet_name="wan_test.safetensors", weight_dtype="default")[0]


def sparse(comfy, model):
    preset = {"preset": "custom", "window_frames": 1, "window_height": 4, "window_width": 3, "top_k": 1, "unit": 5, "radius": 0}
    return comfy.run("SimpleGVRSparseAttention", model=model, preset=preset)[0]


@pytest.mark.parametrize("kind", ["gvr", "wan"])
def test_attention_map_node_shows_what_the_network_selects(comfy, request, latent, monkeypatch, kind):
    """A frame has 9 x 9 tokens, so 3 x 3 windows of 4 x 3: the pixel is in window 2 * 9 + 1 * 3 + 2."""
    model = request.getfixturevalue(kind)
    model = model if kind == "gvr" else sparse(comfy, model)
    core = sys.modules[f"{comfy.pack.__name__}.simplegvr_core.networks.attention"]
    seen, select = [], core.select_windows

    def noting(q, k, *rest):
        selection = select(q, k, *rest)
        seen.extend([selection] if q.device.type == "cpu" else [])  # not when memory is counted
        return selection

    monkeypatch.setattr(core, "select_windows", noting)
    (picture, report, mask), ui = shown(comfy, "SimpleGVRAttentionMap", model=model, latent=latent, block=1, head=0, **PLACE)
    assert len(seen) == 4  # of three blocks, and of the map in block 1
    assert torch.equal(seen[1], seen[2])
    selected = int(seen[1][0, 0, 2 * 9 + 1 * 3 + 2, 1])
    frame, row, column = selected // 9, selected % 9 // 3, selected % 3
    expected = torch.zeros(4, 136, 144)
    expected[frame, 64 * row : 64 * row + 64, 48 * column : 48 * column + 48] = 1
    assert torch.equal(mask, expected)
    assert "Block 1, noise level 0.30." in report and f"x {48 * column} to {48 * column + 48}, y {64 * row} to" in report
    assert picture.shape == (4, 136, 144, 3)
    assert picture[2, 68, 102:138].min() == 1  # the chosen window's outline
    assert Image.open(temporary(ui["images"][0])).n_frames == 4
    assert ui["text"] == (report,)


def test_previews_of_the_bundled_model_have_its_colors(comfy):
    model = comfy.run("SimpleGVRLoadModel", model_name="gvr_tiny.safetensors", weight_dtype="default")[0].model
    colors = load_tiny_vae(REPO / "models" / "simplegvr_tiny_vae" / "gvr_tiny_vae.safetensors").preview_colors()
    torch.testing.assert_close(torch.tensor(model.latent_format.latent_rgb_factors), torch.tensor(colors.factors))
    assert type(model.latent_format)().latent_rgb_factors != model.latent_format.latent_rgb_factors  # other models keep Wan's


def test_attention_map_draws_on_the_decoded_video_of_any_size(comfy, gvr, latent):
    images = torch.zeros(13, 68, 72, 3)
    picture, _, mask = comfy.run("SimpleGVRAttentionMap", model=gvr, latent=latent, block=0, head=1, images=images, **PLACE)
    assert picture.shape == (13, 68, 72, 3)
    assert mask.shape == (13, 68, 72)
    marked = picture.sum((1, 2, 3)) > 0
    assert marked[5:9].all()  # the latent frame of frame 5
    assert marked.sum() in (4, 5, 8)  # and the one window's, which may be in the first, a frame alone
    assert torch.equal(marked.nonzero()[:, 0], (picture.amax((1, 2)).amax(1) > 0).nonzero()[:, 0])


def test_attention_map_says_what_it_cannot_show(comfy, gvr, wan, latent):
    def run(model, **changes):
        comfy.run("SimpleGVRAttentionMap", **{"model": model, "latent": latent, "block": 0, "head": 0, **PLACE, **changes})

    with pytest.raises(ValueError, match="of kind full, which selects no windows: put SimpleGVR Sparse Attention before"):
        run(wan)
    with pytest.raises(ValueError, match="x 144, y 70, frame 5 is outside the video: the latent holds 13 frames of 144 x 136 pixels"):
        run(gvr, x=144)
    with pytest.raises(ValueError, match="block is 3 and head is 0: the model has blocks 0 to 2, heads 1 to 1"):
        run(gvr, block=3)
    with pytest.raises(ValueError, match="there are 14 images, but the latent holds 13 frames"):
        run(gvr, images=torch.zeros(14, 8, 8, 3))


@pytest.mark.parametrize("frames", [4, 7])
def test_compare_puts_before_over_after_in_one_file(comfy, frames):
    """Before is a third of the size, after of odd sides; both are gradients, which bicubic interpolation keeps."""

    def ramp(height, width):
        across = (torch.arange(width) + 0.5) / width
        down = (torch.arange(height) + 0.5) / height
        return torch.stack(torch.broadcast_tensors(across[None], down[:, None], torch.tensor(0.5)), dim=-1)

    before, after = ramp(37, 63).expand(frames, -1, -1, -1), ramp(111, 189).flip(0).expand(4, -1, -1, -1)
    _, ui = shown(comfy, "SimpleGVRCompare", before=before, after=after, fps=12.5)
    (file,) = ui["simplegvr_compare"]
    assert (file["width"], file["height"], file["frames"], file["fps"], file["type"]) == (189, 111, 4, 12.5, "temp")
    played = [frame.float() / 255 for frame in read_frames(temporary(file))]
    assert len(played) == 4
    for frame in played:
        assert frame.shape == (224, 190, 3)
        torch.testing.assert_close(frame[:111, :189], ramp(111, 189), atol=0.05, rtol=0)
        torch.testing.assert_close(frame[112:223, :189], after[0], atol=0.05, rtol=0)


class Still:
    """A previewer that counts what it is asked for: a picture's grey is its frame's mean."""

    asked = 0

    def decode_latent_to_preview_image(self, preview_format, z_0):
        self.asked += 1
        assert z_0.shape[2] == 1
        return preview_format, Image.new("RGB", (80, 40), (int(z_0.mean()),) * 3), 64


@pytest.fixture
def clip_preview(comfy, gvr, monkeypatch):
    """Returns (makes a ClipPreview of so many latent frames, its previewer)."""
    import latent_preview

    still = Still()
    monkeypatch.setattr(latent_preview, "get_previewer", lambda device, latent_format: still)
    return (lambda frames: sys.modules[f"{comfy.pack.__name__}.nodes.host.preview"].ClipPreview(gvr, frames)), still


def greys(image: Image.Image) -> list[int]:
    """Returns the grey of each picture that the client gets."""
    file = BytesIO()
    image.save(file, format="PNG", quality=95, compress_level=1)  # as ComfyUI's server does
    return [picture.convert("RGB").getpixel((0, 0))[0] for picture in ImageSequence.Iterator(Image.open(file))]


def test_a_preview_is_some_frames_of_what_is_done_so_far(clip_preview):
    make, still = clip_preview
    preview = make(45)
    z = torch.arange(45.0).view(1, 1, 45, 1, 1).expand(1, 16, -1, 2, 2)
    preview.add(0, z[:, :, :20])
    kind, image, side = preview.image(last=False)
    assert (kind, image.size, side) == ("PNG", (32, 16), None)  # half of what a still may have
    assert greys(image) == [0, 4, 8, 12, 16]
    preview.add(20, z[:, :, 20:])
    assert preview.image(last=False) is None  # the one before is still being looked at
    assert greys(preview.image(last=True)[1]) == [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44]
    preview.add(0, z[:, :, :20] + 100)
    assert greys(preview.image(last=True)[1])[4:6] == [116, 20]
    assert still.asked == 17


def test_the_preview_of_one_frame_is_a_still(clip_preview):
    preview = clip_preview[0](1)
    preview.add(0, torch.full((1, 16, 1, 2, 2), 7.0))
    kind, image, side = preview.image(last=True)
    assert (kind, image.size, image.getpixel((0, 0)), side) == ("JPEG", (80, 40), (7, 7, 7), 64)


def test_a_previewer_that_shows_frames_itself_is_left_to_it(clip_preview, monkeypatch):
    make, still = clip_preview
    monkeypatch.setattr(still, "decode_latent_to_preview_image", lambda preview_format, z_0: None)
    preview = make(3)
    preview.add(0, torch.zeros(1, 16, 3, 2, 2))
    assert preview.image(last=True) is None


@pytest.fixture(scope="module")
def page(server):
    with comfyui_page(server.address) as page:
        yield page


@pytest.fixture(params=["classic canvas", "Vue nodes"])
def run_in_page(page, request):
    """Opens a workflow in the page, in each of the front end's two ways to draw nodes, and runs it."""

    def run(workflow: dict) -> None:
        page.evaluate("on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", request.param == "Vue nodes")
        page.evaluate("async workflow => { await app.loadApiJson(workflow, 'look'); app.graph.arrange() }", workflow)
        show_graph(page)
        page.evaluate("() => app.queuePrompt(0, 1)")

    yield run
    page.evaluate("() => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")


def plain(width: int, color: int) -> dict:
    return {"class_type": "EmptyImage", "inputs": {"width": width, "height": width // 2, "batch_size": 3, "color": color}}


CLOCKS_OF_A_COPY = """() => {
    const own = window.setInterval
    let started = 0
    window.setInterval = (...given) => { started += 1; return own(...given) }
    app.graph._nodes.find(node => node.type === "SimpleGVRCompare").clone()
    window.setInterval = own
    return started
}"""


def test_compare_in_the_page(page, server, run_in_page):
    """Red before, half as large, and green after: the line between them follows pointer and keys, and is saved."""
    if not page.evaluate("() => document.createElement('video').canPlayType('video/mp4; codecs=\"avc1.640028\"')"):
        pytest.skip("this build of Chromium cannot play H.264; Chrome and Debian's Chromium can")
    compare = {"class_type": "SimpleGVRCompare", "inputs": {"before": ["1", 0], "after": ["2", 0], "fps": 8.0}}
    run_in_page({"1": plain(96, 0xFF0000), "2": plain(192, 0x00FF00), "3": compare})
    canvas = page.locator(".simplegvr-compare canvas")

    def wait_for(*shown: str) -> None:
        """Waits until a tenth, four, six and nine tenths of the width show these."""
        page.wait_for_function(
            """shown => {
                const canvas = document.querySelector(".simplegvr-compare canvas")
                if (!canvas) return false
                const at = x => canvas.getContext("2d").getImageData(x * canvas.width, canvas.height / 2, 1, 1).data
                const name = ([red, green]) => red > 200 && green < 60 ? "red" : green > 200 && red < 60 ? "green" : "neither"
                return [0.1, 0.4, 0.6, 0.9].every((x, i) => name(at(x)) == shown[i])
            }""",
            arg=shown,
            timeout=60_000,
        )

    wait_for("red", "red", "green", "green")
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] / 2)
    page.mouse.up()
    wait_for("red", "green", "green", "green")
    page.get_by_label("Before | after").focus()
    page.keyboard.press("End")
    wait_for("red", "red", "red", "red")
    saved = page.evaluate("() => app.graph.serialize().nodes.find(node => node.type == 'SimpleGVRCompare')")
    assert saved["properties"]["wipe"] == 1
    player = page.locator(".simplegvr-compare")
    player.get_by_role("button", name="Pause").click()
    for key, frame in (("End", 3), ("Home", 1), ("ArrowRight", 2)):
        player.get_by_label("Frame").press(key)
        player.get_by_text(f"{frame} / 3").wait_for()
    reopen = "async () => app.loadGraphData(app.graph.serialize(), false)"  # as an undo does
    page.evaluate(reopen)
    wait_for("red", "red", "red", "red")
    newest = max((server.base / "temp").glob("SimpleGVR_compare_*.mp4"))
    first = newest.read_bytes()
    with write_frames(newest, Encoding(192, 192, Fraction(8), crf=12)) as add:  # a server that starts anew gives names again
        add(torch.tensor([0, 255, 0], dtype=torch.uint8).expand(3, 192, 192, 3))
    page.evaluate(reopen)
    wait_for("green", "green", "green", "green")
    newest.write_bytes(first)  # the server's cache holds on to it
    assert page.evaluate(CLOCKS_OF_A_COPY) == 0  # the clipboard's copy, which no graph has and so nobody removes
    page.evaluate("() => app.graph.clear()")
    canvas.wait_for(state="detached")


def test_the_preview_moves_in_the_page(page, run_in_page, server, tmp_path):
    """Of one preview, by its address, two moments look different."""
    shutil.copy(REPO / "assets" / "demo.mp4", server.base / "input" / "whole_demo.mp4")
    workflow = json.loads((REPO / "workflows" / "api" / "quickstart_video.json").read_text())
    nodes = {node["class_type"]: node["inputs"] for node in workflow.values()}
    nodes["LoadVideo"]["file"] = "whole_demo.mp4"
    settings = {"steps": 200, "cfg": 1.0, "noise_augmentation": 0.0, "denoise": 0.15}
    nodes["SimpleGVRSampler"].update(
        {"size.scale": 1.0, "settings": "custom", **{f"settings.{key}": value for key, value in settings.items()}}
    )
    run_in_page(workflow)
    shown = page.locator("img[src^='blob:']").first
    shown.wait_for(timeout=120_000)
    try:
        grown = """() => document.querySelector("img[src^='blob:']")?.getBoundingClientRect().height > 50"""
        page.wait_for_function(grown)  # the node grows for it; the page may put another picture in its place
        box = shown.bounding_box()
        for _ in range(50):
            before, first = shown.get_attribute("src"), page.screenshot(clip=box)
            page.wait_for_timeout(200)
            second, after = page.screenshot(clip=box, path=tmp_path / "preview.png"), shown.get_attribute("src")
            if before == after and first != second:
                return
        raise AssertionError("no preview looked different at two moments")
    finally:
        page.request.post(f"{server.address}/interrupt", data="{}")
