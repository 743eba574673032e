"""Every input that takes IMAGE, with what other nodes give: other dtypes, channels, strides. It is taken, or named."""

import pytest
import torch
from conftest import REPO

from simplegvr_core.video.read import read_video

FRAMES, HEIGHT, WIDTH = 5, 48, 64


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Five frames of a real video, gray, so that one channel says as much as three."""
    frames = read_video(REPO / "assets" / "demo.mp4", FRAMES)[0][:, 20 : 20 + HEIGHT, 40 : 40 + WIDTH]
    return (frames.float().mean(3, keepdim=True) / 255).expand(-1, -1, -1, 3).contiguous()


def with_channels(images: torch.Tensor, channels: int) -> torch.Tensor:
    alpha = torch.linspace(0, 1, WIDTH).view(1, 1, WIDTH, 1).expand(*images.shape[:3], 1)
    return {1: images[..., :1], 2: torch.cat((images[..., :1], alpha), 3), 4: torch.cat((images, alpha), 3)}[channels]


VARIANTS = {
    "float16": lambda images: images.half(),
    "bfloat16": lambda images: images.bfloat16(),
    "float64": lambda images: images.double(),
    "one channel": lambda images: with_channels(images, 1),
    "two channels": lambda images: with_channels(images, 2),
    "four channels": lambda images: with_channels(images, 4),
    "half of one channel": lambda images: with_channels(images, 1).half(),
    "not contiguous": lambda images: images.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
}
NO_IMAGES = {
    "integers": lambda images: (255 * images).byte(),
    "five channels": lambda images: images.repeat(1, 1, 1, 2)[..., :5],
    "one frame without an axis": lambda images: images[0],
    "no frames": lambda images: images[:0],
}
FLOW = {"seed": 1, "color_bleeding": 0.8, "ellipses": 8, "motion_blur": 1.5, "min_motion": 1.0}
CLASSICAL = {"scale": 1, "seed": 1, "blur": 1.0, "smallest": 0.15, "noise": 1.0, "jpeg_quality": 30, "kilobits": 10.0}
NO_SEAMS = dict.fromkeys(("period", "tile_height", "first_border", "overlap", "tile_overlap_width", "tile_overlap_height"), 0)
SEAMS = {**NO_SEAMS, "tile_width": 32}
INPUTS = {  # (node, input): the other inputs; "images" is the plain video
    ("SimpleGVRCompare", "before"): {"after": "images", "fps": 12.0},
    ("SimpleGVRCompare", "after"): {"before": "images", "fps": 12.0},
    ("SimpleGVREvaluate", "result"): {"original": "images", "metrics": "quick"},
    ("SimpleGVREvaluate", "original"): {"result": "images", "metrics": "quick"},
    ("SimpleGVREvaluate", "source"): {"result": "images", "metrics": "quick"},
    ("SimpleGVRFlowDegrade", "images"): FLOW,
    ("SimpleGVRClassicalDegrade", "images"): CLASSICAL,
    ("SimpleGVRSeamMeter", "video"): SEAMS,
    ("SimpleGVRColorMatch", "images"): {"reference": "images", "strength": 1.0, "levels": 3},
    ("SimpleGVRColorMatch", "reference"): {"images": "images", "strength": 1.0, "levels": 3},
    ("SimpleGVRTrim", "images"): {"source": "images", "scale": 1.0, "even": True},
    ("SimpleGVRTrim", "source"): {"images": "images", "scale": 1.0, "even": True},
}
IDS = [f"{node}-{name}" for node, name in INPUTS]


@pytest.fixture
def run(comfy, images, tmp_path, monkeypatch):
    """Runs a node with a variant of the video in one of its inputs."""
    import folder_paths

    for name in ("output", "temp"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))

    def with_variant(node: str, name: str, variant: torch.Tensor) -> tuple:
        others = {key: images if isinstance(value, str) and value == "images" else value for key, value in INPUTS[node, name].items()}
        return comfy.run(node, **{name: variant}, **others)

    return with_variant


def test_the_table_has_every_image_input(comfy):
    from comfy_api.latest import io

    found = {
        (node, input.id)
        for node, each in comfy.nodes.items()
        if node.startswith("SimpleGVR") and hasattr(each, "define_schema")
        for input in each.define_schema().inputs
        if "IMAGE" in input.get_io_type().split(",")
    }
    assert io.Image.io_type == "IMAGE"
    assert found == INPUTS.keys() | {("SimpleGVRAttentionMap", "images")}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("node", "name"), INPUTS, ids=IDS)
def test_it_gives_what_the_plain_video_gives(run, images, node, name, variant):
    """To the precision of its dtype."""
    expected = run(node, name, images)
    found = run(node, name, VARIANTS[variant](images))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, torch.Tensor) and one.ndim == 4:
            assert one.shape[:3] == other.shape[:3]
            if "Classical" not in node and "Flow" not in node and one.shape == other.shape:
                assert (one.float() - other.float()).abs().mean() < 0.02
    if node == "SimpleGVREvaluate" and "float16" not in variant and "half" not in variant:
        psnr = [values[3] for values in (found, expected)]
        assert psnr[0] == pytest.approx(psnr[1], abs=0.01, nan_ok=True) or min(psnr) > 60


@pytest.mark.parametrize("variant", NO_IMAGES)
@pytest.mark.parametrize(("node", "name"), INPUTS, ids=IDS)
def test_what_is_no_image_is_named(run, images, node, name, variant):
    with pytest.raises(ValueError, match=rf"^SimpleGVR .*: {name} is torch\.\w+ of shape \(.*\), wanted floating-point \(frames, height"):
        run(node, name, NO_IMAGES[variant](images))


def test_transparency_goes_through_color_match(run, images):
    matched = run("SimpleGVRColorMatch", "images", with_channels(images, 4))[0]
    assert matched.shape[3] == 4
    assert torch.equal(matched[..., 3:], with_channels(images, 4)[..., 3:])
