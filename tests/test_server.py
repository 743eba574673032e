"""End to end: a real ComfyUI server runs the bundled models on real video."""

import asyncio
import json
import shutil
import urllib.request

import aiohttp
import numpy as np
import pytest
import torch
from client import WorkflowError, output_files, run_workflow
from conftest import REPO

from simplegvr_core.video.frames import to_video
from simplegvr_core.video.read import read_video
from simplegvr_core.video.write import write_video

API = REPO / "workflows" / "api"


def quickstart(server, video, scale=3.0, **sampler):
    """Returns the quickstart workflow for a video, with scale and other inputs of the sampler changed."""
    shutil.copy(video, server.base / "input" / video.name)
    workflow = json.loads((API / "quickstart_video.json").read_text())
    nodes = {node["class_type"]: node["inputs"] for node in workflow.values()}
    nodes["LoadVideo"]["file"] = video.name
    nodes["SimpleGVRTrim"]["scale"] = scale
    settings = {"steps": 2, "cfg": 1.0, "noise_augmentation": 0.1, "denoise": 1.0}
    settings |= {key: sampler.pop(key) for key in settings.keys() & sampler.keys()}
    nodes["SimpleGVRSampler"].update({"size.scale": scale, "settings": "custom", **sampler})
    nodes["SimpleGVRSampler"].update({f"settings.{key}": value for key, value in settings.items()})
    return workflow


def run(server, workflow, on_event=lambda event: None):
    return asyncio.run(run_workflow(server.address, workflow, on_event))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A real clip of odd height whose frames are no 4n + 1."""
    images, rate = read_video(REPO / "assets" / "demo.mp4", 7)
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, images[:, :58, :70], rate)
    return path


def test_quickstart_gives_exactly_the_asked_size_and_all_frames(server, clip):
    events = []
    files = output_files(run(server, quickstart(server, clip), events.append), server.base / "output")
    images, rate = read_video(files[0])
    assert images.shape == (7, 174, 210, 3)
    assert rate == 24
    progress = [(event.value, event.maximum) for event in events if event.kind == "progress" and event.node == "7"]
    assert progress[-1] == (2, 2)


def test_quickstart_resembles_its_source(server, clip):
    files = output_files(run(server, quickstart(server, clip, 2.0, denoise=0.3)), server.base / "output")
    result, source = (to_video(read_video(path)[0]) for path in (files[0], clip))
    shrunk = torch.nn.functional.interpolate(result[0].transpose(0, 1), source.shape[3:], mode="area")
    assert (shrunk - source[0].transpose(0, 1)).abs().mean() < 0.12


@pytest.mark.parametrize("method", ["latent2rgb", "none"])
def test_previews_in_motion_reach_the_client(server, clip, method):
    """The sampler sends the clip as ComfyUI's preview setting asks: several frames that differ, and look like the video."""
    import io

    import aiohttp
    from PIL import Image

    async def watch():
        async with aiohttp.ClientSession(server.address) as session, session.ws_connect("/ws?clientId=preview", max_msg_size=0) as socket:
            workflow = quickstart(server, clip, 2.0, steps=8, seed=11)
            prompt = {"prompt": workflow, "client_id": "preview", "extra_data": {"preview_method": method}}
            await session.post("/prompt", json=prompt)
            pictures = []
            async for message in socket:
                if message.type == aiohttp.WSMsgType.BINARY and message.data[:8] == b"\0\0\0\1\0\0\0\2":  # a preview, a PNG
                    pictures.append(Image.open(io.BytesIO(message.data[8:])))
                elif message.type == aiohttp.WSMsgType.TEXT and json.loads(message.data)["type"] == "execution_success":
                    return pictures

    pictures = asyncio.run(watch())
    assert (len(pictures) >= 2) == (method != "none")
    images = read_video(clip)[0]
    for number, latent_frame in enumerate((0, 4) if pictures else ()):
        pictures[-1].seek(number)
        width, height = pictures[-1].size
        shown = pictures[-1].convert("RGB").crop((0, 0, width * 70 // 72, height * 58 // 64))  # without the padding to whole cells
        pair = [
            np.array(picture.resize((14, 12), Image.Resampling.BOX)) for picture in (shown, Image.fromarray(images[latent_frame].numpy()))
        ]
        for channel in range(3):
            assert np.corrcoef(*(values[..., channel].flatten() for values in pair))[0, 1] > 0.6
    frames = [picture.n_frames for picture in pictures]
    assert frames == [3] * len(frames)  # of nine frames' three latent frames, none like the one before


def test_an_interrupt_stops_and_the_next_prompt_runs_clean(server, clip):
    def outputs(seed):
        return output_files(run(server, quickstart(server, clip, 2.0, seed=seed)), server.base / "output")

    first = outputs(21)[0]

    def interrupt(event):
        if event.kind == "progress" and event.value == 1:
            request = urllib.request.Request(f"{server.address}/interrupt", b"{}", {"Content-Type": "application/json"})
            urllib.request.urlopen(request).close()

    with pytest.raises(WorkflowError, match="interrupted"):
        run(server, quickstart(server, clip, 2.0, steps=200, seed=22), interrupt)
    outputs(23)
    free = urllib.request.Request(f"{server.address}/free", b'{"free_memory": true}', {"Content-Type": "application/json"})
    urllib.request.urlopen(free).close()  # what the first run left in the server's cache would prove nothing
    again = outputs(21)[0]
    assert again != first
    assert torch.equal(read_video(first)[0], read_video(again)[0])


def test_a_missing_model_is_refused_before_anything_runs(server, clip):
    workflow = quickstart(server, clip)
    workflow["5"]["inputs"]["model_name"] = "not_there.safetensors"
    with pytest.raises(WorkflowError, match=r"(?s)value_not_in_list.*not_there\.safetensors"):
        run(server, workflow)


def test_a_broken_checkpoint_is_named(server, clip, checkpoints):
    whole = (REPO / "models" / "diffusion_models" / "gvr_tiny.safetensors").read_bytes()
    (checkpoints / "diffusion_models" / "broken.safetensors").write_bytes(whole[:-100])
    workflow = quickstart(server, clip)
    workflow["5"]["inputs"]["model_name"] = "broken.safetensors"
    with pytest.raises(WorkflowError, match=r"SimpleGVRLoadModel: .*broken\.safetensors is not a complete safetensors file"):
        run(server, workflow)


def test_training_free_chain_from_a_text_to_video_sampler(server):
    """Empty latent -> stock KSampler (16-channel Wan) -> GVR, training-free with sparse attention -> saved latent."""

    def node(class_type, **inputs):
        return {"class_type": class_type, "inputs": inputs}

    workflow = {
        "1": node("UNETLoader", unet_name="wan_test.safetensors", weight_dtype="default"),
        "2": node("SimpleGVRNullPrompt"),
        "3": node("EmptyHunyuanLatentVideo", width=128, height=80, length=9, batch_size=1),
        "4": node("KSampler", model=["1", 0], seed=1, steps=2, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0,
                  positive=["2", 0], negative=["2", 0], latent_image=["3", 0]),
        "5": node("SimpleGVRSparseAttention", model=["1", 0], preset="paper"),
        "6": node("SimpleGVRLoadUpsampler", model_name="bilinear.safetensors"),
        "7": {"class_type": "SimpleGVRSampler", "inputs": {
            "model": ["5", 0], "upsampler": ["6", 0], "latent": ["4", 0], "size": "width x height", "size.width": 328, "size.height": 200,
            "seed": 1, "settings": "custom", "settings.steps": 2, "settings.cfg": 1.0, "settings.noise_augmentation": 0.4,
            "settings.denoise": 0.4, "noise_seed": 0, "positive": ["2", 0]}},
        "8": node("SaveLatent", samples=["7", 0], filename_prefix="gvr"),
        "9": node("PreviewAny", source=["7", 1]),
    }  # fmt: skip
    outputs = run(server, workflow)
    assert "Training-free" in outputs["9"]["text"][0]
    from safetensors.torch import load_file

    saved = load_file(server.base / "output" / outputs["8"]["latents"][0]["filename"])
    assert saved["latent_tensor"].shape == (1, 16, 3, 25, 41)


def test_object_info_describes_every_input_and_output(server):
    with urllib.request.urlopen(f"{server.address}/object_info") as response:
        info = {name: node for name, node in json.load(response).items() if node["python_module"].endswith("ComfyUI-SimpleGVR")}
    assert len(info) == 21
    for name, node in info.items():
        assert node["description"] and node["search_aliases"], name
        assert all(node["output_tooltips"]), name
        for group in ("required", "optional"):
            for input_name, (_, options) in node["input"].get(group, {}).items():
                assert options.get("tooltip"), (name, input_name)
                for option in options.get("options", []):
                    for inner in option.get("inputs", {}).values() if isinstance(option, dict) else []:
                        assert all(spec[1].get("tooltip") for spec in inner.values()), (name, input_name)


def test_tiny_vae_keeps_odd_sizes_and_frames_in_stock_nodes(clip, comfy):
    vae = comfy.run("SimpleGVRLoadTinyVAE", vae_name="gvr_tiny_vae.safetensors")[0]
    images = read_video(clip)[0] / 255
    latent = comfy.run("VAEEncode", vae=vae, pixels=images)[0]
    assert latent["samples"].shape == (1, 16, 3, 8, 9)  # 58 x 70 pixels, 7 frames, rounded up
    decoded = comfy.run("VAEDecode", vae=vae, samples=latent)[0]
    assert decoded.shape == (9, 64, 72, 3)
    assert (decoded[:7, :58, :70] - images).abs().mean() < 0.05
    tiled = comfy.run("VAEDecodeTiled", vae=vae, samples=latent, tile_size=512, overlap=64, temporal_size=64, temporal_overlap=8)[0]
    torch.testing.assert_close(tiled, decoded, atol=1e-4, rtol=0)


def test_the_sparse_attention_node_shows_what_ran(server, clip):
    workflow = quickstart(server, clip, 2.0)
    names = {node["class_type"]: name for name, node in workflow.items()}
    sampler = workflow[names["SimpleGVRSampler"]]["inputs"]
    preset = {"preset": "custom", "preset.window_frames": 1, "preset.window_height": 4, "preset.window_width": 3, "preset.top_k": 1}
    preset |= {"preset.unit": 5, "preset.radius": 0}
    workflow["99"] = {"class_type": "SimpleGVRSparseAttention", "inputs": {"model": sampler["model"], **preset}}
    sampler["model"] = ["99", 0]

    shown = set()

    async def watch(socket):
        async for message in socket:
            if message.type == aiohttp.WSMsgType.BINARY and message.data[:4] == (3).to_bytes(4, "big"):  # a node's text
                shown.add(message.data[4:])

    async def run_watched():
        async with aiohttp.ClientSession(server.address) as session, session.ws_connect("/ws?clientId=watcher") as socket:
            watcher = asyncio.create_task(watch(socket))
            await run_workflow(server.address, workflow)
            watcher.cancel()

    asyncio.run(run_watched())
    assert shown == {b"\x00\x00\x00\x0299" + b"sdpa: 18 windows of 1 x 4 x 3 tokens, each sees 2: 11 % of dense attention"}
