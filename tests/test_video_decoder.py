"""Small video decoders: what ComfyUI's own TAEHV gives, streamed equal to whole, read safely and strictly, in nodes and in a server."""

import asyncio
import pickle
import sys

import pytest
import torch
import torch.nn.functional as F
from client import output_files, run_workflow
from conftest import REPO, latent
from safetensors.torch import save_file
from torch import Tensor

from simplegvr_core.networks.video_decoder import VideoDecoder, VideoDecoderConfig, load_video_decoder, read_video_decoder
from simplegvr_core.video.read import read_video

TAEHV = VideoDecoderConfig()
LIGHT = VideoDecoderConfig(normalized=False)
ULTRA_FLASH = VideoDecoderConfig("ultra_flash", encoder=False)
CHUNKS = ((0, 1), (1, 3), (3, 5))

pytestmark = pytest.mark.usefixtures("one_thread")


def random_decoder(config: VideoDecoderConfig, seed: int = 0) -> VideoDecoder:
    """Returns a network of the real layout whose pictures are of unit size."""
    decoder, generator = VideoDecoder(config), torch.Generator().manual_seed(seed)
    for parameter in decoder.parameters():
        std = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        torch.nn.init.normal_(parameter, std=std, generator=generator)
    return decoder.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a taew2_1.pth in half precision, as it is published, and Ultra Flash's decoder, wrapped."""
    folder = tmp_path_factory.mktemp("vae")
    torch.save({name: tensor.half() for name, tensor in random_decoder(TAEHV).state_dict().items()}, folder / "taew2_1.pth")
    torch.save({"model": random_decoder(ULTRA_FLASH).state_dict()}, folder / "ultra_decoder.pth")
    return folder


@pytest.fixture(scope="module")
def load(comfy, files):
    """Loads a file by the node."""
    import folder_paths

    folder_paths.add_model_folder_path("vae", str(files))
    return lambda name, **inputs: comfy.run("SimpleGVRLoadVideoDecoder", decoder_name=name, **inputs)[0]


# The networks


@pytest.mark.parametrize("config", [TAEHV, LIGHT])
def test_decodes_and_encodes_what_comfyuis_taehv_does(comfy, config):
    """taew2_1 takes normalised latents, lighttaew2_1 those of VAE space."""
    from comfy.latent_formats import Wan21
    from comfy.taesd.taehv import TAEHV as Stock

    ours, wan = random_decoder(config), Wan21()
    stock = Stock(16, latent_format=Wan21 if config.normalized else None)
    stock.load_state_dict(ours.state_dict())
    z = latent((1, 16, 4, 5, 3))["samples"]
    video = torch.rand(1, 3, 9, 40, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours.decode(z), 2 * stock.decode(wan.process_out(z)) - 1, atol=2e-5, rtol=0)
        torch.testing.assert_close(ours.encode(2 * video - 1), wan.process_in(stock.encode(video)), atol=2e-5, rtol=0)


def test_ultra_flashs_layout_sees_the_frame_before_and_the_first_one_itself():
    """Against a plain twin that takes a layer of all frames at a time. It has the size that is known: 12.9 million parameters."""
    decoder = random_decoder(ULTRA_FLASH)
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 12_906_115
    z = latent((1, 16, 3, 5, 7))["samples"]
    x = z[0].movedim(1, 0)  # frames as a batch
    for i, layer in enumerate(decoder.net):
        if hasattr(layer, "repeats"):
            past = torch.cat((x[:1], x[:-1]))
            x = F.relu(layer.conv(torch.cat((x, past), 1)) + x)
        elif hasattr(layer, "frames"):
            x = layer.conv(x).unflatten(1, (layer.frames, -1)).flatten(0, 1)
        else:
            x = layer(x)
        assert i not in (5, 11, 17) or x.shape[2] == 5 * 2 ** (1 + (i - 5) // 6)  # pixel shuffle
    torch.testing.assert_close(decoder.decode(z), x[3:].movedim(0, 1)[None], atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", [TAEHV, LIGHT, ULTRA_FLASH])
def test_streamed_equals_whole(config):
    decoder, z, state, video = random_decoder(config), latent((2, 16, 5, 3, 5))["samples"], {}, []
    for start, stop in CHUNKS:
        before = {name: tensor.clone() for name, tensor in state.items()}
        part, after = decoder.decode_chunk(z[:, :, start:stop], state)
        assert before.keys() == state.keys() and all(torch.equal(before[name], state[name]) for name in before)
        video, state = [*video, part], after
    whole = decoder.decode(z)
    assert whole.shape == (2, 3, 17, 24, 40)
    assert torch.equal(torch.cat(video, 2), whole)


def test_a_frame_never_depends_on_later_ones():
    decoder, z = random_decoder(TAEHV), latent((1, 16, 3, 3, 5))["samples"]
    changed = torch.cat((z[:, :, :2], z[:, :, 2:] + 1), 2)
    first, second = decoder.decode(z), decoder.decode(changed)
    assert torch.equal(first[:, :, :5], second[:, :, :5]) and not torch.allclose(first[:, :, 5:], second[:, :, 5:])


# Files


def save(tensors: dict[str, Tensor], path):
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "model."])
@pytest.mark.parametrize("config", [TAEHV, ULTRA_FLASH])
def test_a_file_is_recognised_by_its_tensors(tmp_path, suffix, prefix, config):
    decoder = random_decoder(config)
    path = save({prefix + name: tensor for name, tensor in decoder.state_dict().items()}, tmp_path / f"anything{suffix}")
    tensors, found = read_video_decoder(path)
    assert found == config and all(torch.equal(tensor, tensors[name]) for name, tensor in decoder.state_dict().items())
    z = latent((1, 16, 1, 3, 3))["samples"]
    assert torch.equal(load_video_decoder(path).decode(z), decoder.decode(z))


@pytest.mark.parametrize("wrapper", ["model", "generator"])
def test_a_wrapped_file_and_one_without_encoder(tmp_path, wrapper):
    decoder = random_decoder(VideoDecoderConfig(encoder=False))
    torch.save({wrapper: decoder.state_dict()}, tmp_path / "tiny_decoder.pth")
    tensors, config = read_video_decoder(tmp_path / "tiny_decoder.pth")
    assert config == decoder.config and tensors.keys() == decoder.state_dict().keys()
    with pytest.raises(ValueError, match=r"has no encoder: encode with Wan 2\.1's VAE"):
        decoder.encode(torch.zeros(1, 3, 1, 8, 8))


def changed(**changes) -> dict[str, Tensor]:
    """Returns the tensors of TAEHV's layout with changes by name; None removes one. A double underscore stands for a dot."""
    tensors = dict(random_decoder(TAEHV).state_dict())
    tensors |= {name.replace("__", "."): value for name, value in changes.items()}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


@pytest.mark.parametrize(
    "tensors, message",
    [
        (changed(decoder__3__conv__0__weight=None), r"missing decoder\.3\.conv\.0\.weight"),
        (changed(decoder__99__weight=torch.zeros(1)), r"unexpected decoder\.99\.weight"),
        (
            changed(decoder__7__conv__weight=torch.zeros(512, 256, 1, 1)),
            r"decoder\.7\.conv\.weight is \(512, 256, 1, 1\), wanted \(256, 256",
        ),
        (changed(encoder__0__bias=None), r"missing encoder\.0\.bias"),
        (changed(decoder__1__weight=torch.zeros(256, 48, 3, 3)), r"latents of 48 channels, those of Wan 2\.2 5B, wanted Wan 2\.1's 16"),
        ({"decoder.middle.0.residual.0.gamma": torch.zeros(1)}, "layout of Wan 2\\.1's: load it with Load VAE"),
        ({"blocks.0.self_attn.q.weight": torch.zeros(1)}, "no video decoder .* first names are blocks"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, tensors, message):
    with pytest.raises(ValueError, match=message):
        read_video_decoder(save(tensors, tmp_path / "file.safetensors"))


class Harmful:
    def __reduce__(self):
        return (print, ("run",))


def test_a_pickle_that_could_run_code_is_not_read(tmp_path, capsys):
    (tmp_path / "bad.pth").write_bytes(pickle.dumps(Harmful()))
    torch.save({"decoder.1.weight": Harmful()}, tmp_path / "worse.pth")
    for name in ("bad.pth", "worse.pth"):
        with pytest.raises(ValueError, match=name):
            read_video_decoder(tmp_path / name)
    assert not capsys.readouterr().out


def test_a_truncated_file_is_an_error(tmp_path, files):
    content = (files / "taew2_1.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="download it again"):
        read_video_decoder(tmp_path / "cut.pth")


def test_the_family_must_fit_the_file(files):
    with pytest.raises(ValueError, match="is a decoder of Ultra Flash, not lighttaew2_1: choose family auto"):
        read_video_decoder(files / "ultra_decoder.pth", "lighttaew2_1")


# In ComfyUI


@pytest.fixture(params=["taew2_1.pth", "ultra_decoder.pth"])
def vae(request, load):
    return load(request.param)


def decoded(vae, samples: Tensor) -> Tensor:
    with torch.inference_mode():
        return vae.decode(samples)


def test_the_stock_decode_is_the_networks(load, files):
    """LATENT is in VAE space; the file's half precision is widened on a CPU."""
    from comfy.latent_formats import Wan21

    z = latent((1, 16, 3, 5, 7))["samples"]
    for name, family in (("taew2_1.pth", "auto"), ("taew2_1.pth", "lighttaew2_1"), ("ultra_decoder.pth", "auto")):
        core = load_video_decoder(files / name, family)
        out = decoded(load(name, family=family), Wan21().process_out(z))
        expected = (core.decode(z) / 2 + 0.5).clamp(0, 1).movedim(1, -1)
        assert out.shape == (1, 9, 40, 56, 3)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


def test_load_vae_decodes_the_same_file_otherwise(comfy, load, files):
    """Why there is this node: ComfyUI takes a half precision file for HunyuanVideo's. Should that be mended, the node's text is wrong."""
    import comfy.sd
    import comfy.utils

    samples = latent((1, 16, 2, 5, 7))["samples"]
    stock = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(files / "taew2_1.pth")))
    assert (decoded(stock, samples) - decoded(load("taew2_1.pth"), samples)).abs().mean() > 0.01


def test_stock_encode(load):
    vae = load("taew2_1.pth")
    with torch.inference_mode():
        samples = vae.encode(torch.rand(9, 40, 56, 3, generator=torch.Generator().manual_seed(0)))
    assert samples.shape == (1, 16, 3, 5, 7) and samples.isfinite().all()


def test_decode_and_save_streams_what_the_stock_decode_gives(comfy, vae, monkeypatch, tmp_path):
    import folder_paths

    for name in ("output", "temp"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    core = sys.modules[sys.modules[comfy.nodes["SimpleGVRDecodeSave"].__module__].StreamDecoder.__module__]
    seen, call = [], core.StreamDecoder.__call__
    monkeypatch.setattr(core.StreamDecoder, "__call__", lambda self, z: seen.append(call(self, z)[0]) or seen[-1][None])
    samples = latent((1, 16, 5, 5, 7))["samples"]
    inputs = {"fps": 16.0, "filename_prefix": "small", "trim": {"trim": "none"}, "crf": 10.0, "resume": False}
    (video,), _ = comfy.run("SimpleGVRDecodeSave", vae=vae, latent={"samples": samples}, **inputs)
    streamed = (torch.cat(seen, 1) / 2 + 0.5).clamp(0, 1).movedim(0, -1)
    assert len(seen) == 3
    torch.testing.assert_close(streamed, decoded(vae, samples)[0], atol=1e-6, rtol=0)
    assert read_video(REPO / video.get_stream_source())[0].shape == (17, 40, 56, 3)


def test_tiles_are_close_to_the_whole(comfy, load):
    """They overlap by 8 latent pixels; a pixel sees 18 to each side, so tiles are not exact."""
    core = sys.modules[sys.modules[comfy.nodes["SimpleGVRDecodeSave"].__module__].StreamDecoder.__module__]
    network, z = load("taew2_1.pth").first_stage_model, latent((1, 16, 3, 4, 41))["samples"]
    tiles = core.tiles_of_frame((4, 41), lambda height, width: width < 41)
    with torch.inference_mode():
        decoder = core.StreamDecoder(network.decode_chunk, tiles, lambda error: False)
        out = torch.cat([decoder(z[:, :, start:stop]) for start, stop in core.chunks(3)], 2)
        whole = network.decode(z)
    assert len(tiles) == 2
    assert torch.equal(out[..., : 8 * 6], whole[..., : 8 * 6])  # beyond the reach of the border
    assert (out - whole).square().mean() < 0.01 * whole.var()


def test_load_vaes_taehv_is_refused_with_the_cure(comfy, files):
    from comfy.sd import VAE
    from comfy.utils import load_torch_file

    stock = VAE(sd=load_torch_file(str(files / "taew2_1.pth")))
    inputs = {"fps": 16.0, "filename_prefix": "small", "trim": {"trim": "none"}, "crf": 10.0, "resume": False}
    with pytest.raises(ValueError, match="load the file with Load SimpleGVR Video Decoder"):
        comfy.run("SimpleGVRDecodeSave", vae=stock, latent=latent((1, 16, 1, 5, 7)), **inputs)


def test_a_file_that_is_gone_is_an_error(load):
    with pytest.raises(ValueError, match=r"gone\.pth is in neither models/vae nor models/vae_approx"):
        load("gone.pth")


def test_previews_are_decoded_by_taew2_1(comfy, model, files, tmp_path, monkeypatch):
    """With TAESD chosen in ComfyUI's settings, from models/vae_approx, where ComfyUI looks for lighttaew2_1 only."""
    import folder_paths
    from comfy.cli_args import LatentPreviewMethod, args

    preview = sys.modules[f"{comfy.pack.__name__}.nodes.host.preview"]
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.TAESD)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vae_approx", ([str(tmp_path)], {".pth"}))
    monkeypatch.delitem(folder_paths.filename_list_cache, "vae_approx", raising=False)
    (tmp_path / "taew2_1.pth").write_bytes((files / "taew2_1.pth").read_bytes())
    clip, z = preview.ClipPreview(model, 3), latent((1, 16, 3, 5, 7))["samples"]
    clip.add(0, z)
    assert {picture.size for picture in clip.pictures.values()} == {(56, 40)}  # of pixels; ComfyUI's own preview has those of the latent
    expected = load_video_decoder(files / "taew2_1.pth").decode(z[:, :, 1:2])[0, :, 0]
    shown = torch.tensor(list(clip.pictures[1].getdata())).view(40, 56, 3).movedim(-1, 0) / 127.5 - 1
    assert (shown - expected.clamp(-1, 1)).abs().max() < 2 / 127


def test_a_server_decodes_with_it_to_a_video(server, files):
    for path in files.iterdir():
        (server.base / "models" / "vae").mkdir(exist_ok=True)
        (server.base / "models" / "vae" / path.name).write_bytes(path.read_bytes())

    def node(class_type, **inputs):
        return {"class_type": class_type, "inputs": inputs}

    workflow = {
        "1": node("SimpleGVRLoadVideoDecoder", decoder_name="taew2_1.pth"),
        "2": node("EmptyHunyuanLatentVideo", width=80, height=48, length=9, batch_size=1),
        "3": node("SimpleGVRDecodeSave", vae=["1", 0], latent=["2", 0], fps=16.0, filename_prefix="small", crf=16.0, resume=False,
                  trim="none"),
        "4": node("SimpleGVRLoadVideoDecoder", decoder_name="ultra_decoder.pth", family="auto"),
        "5": node("VAEDecode", vae=["4", 0], samples=["2", 0]),
        "6": node("SaveAnimatedWEBP", images=["5", 0], filename_prefix="whole", fps=16.0, lossless=False, quality=90, method="fastest"),
    }  # fmt: skip
    outputs = asyncio.run(run_workflow(server.address, workflow))
    (saved,) = output_files({"3": outputs["3"]}, server.base / "output")
    images, rate = read_video(saved)
    assert images.shape == (9, 48, 80, 3) and rate == 16
    assert len(outputs["6"]["images"]) == 1
