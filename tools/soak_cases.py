"""The prompts of the soak: drawn at random, and as workflows."""

from dataclasses import dataclass
from math import prod
from random import Random

from comfyui import REPO

from simplegvr_core.latent_space import scaled_size

SOURCE = REPO / "assets" / "demo.mp4"
MOST_WORK = 6_000  # latent cells times steps of a prompt: about a second of two cores
SOURCES = [  # least and most latent frames, rows, columns
    ((2, 7), (5, 20), (5, 20)),
    ((2, 7), (5, 20), (5, 20)),
    ((1, 1), (5, 20), (5, 20)),
    ((1, 3), (5, 8), (30, 50)),
    ((1, 3), (30, 50), (5, 8)),
    ((21, 21), (5, 6), (5, 6)),
    ((41, 41), (5, 6), (5, 6)),
]
SHARES = {
    "none": 48,
    "interrupt": 16,
    "out of memory once": 10,
    "out of memory above": 8,
    "bad input": 14,
    "killed server": 2,
    "damaged file": 6,
    "emptied temp": 6,
    "other server": 2,
    "two servers": 4,
}


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def decode_and_save(latent: list, prefix: str) -> dict:
    """Returns nodes that decode and save a latent."""
    options = {"fps": 24.0, "filename_prefix": prefix, "trim": "none", "crf": 16.0, "resume": False}
    return {
        "tiny": node("SimpleGVRLoadTinyVAE", vae_name="gvr_tiny_vae.safetensors"),
        "video": node("SimpleGVRDecodeSave", vae=["tiny", 0], latent=latent, **options),
    }


BAD_INPUTS = [  # (inputs by node, or whole nodes, and what the server must answer)
    (
        {"sampler": {"size": "width x height", "size.width": 1924, "size.height": 1080}},
        r"target is 1924 x 1080 pixels, wanted multiples of 8",
    ),
    ({"sampler": {"size": "width x height", "size.width": 16, "size.height": 16}}, r"the target 16 x 16 is smaller than the source"),
    ({"sampler": {"settings.steps": 0}}, r"value_smaller_than_min"),
    ({"sampler": {"model": ["t2v", 0], "settings.denoise": 1.0}}, r"denoise is 1 with a stock Wan model"),
    ({"sampler": {"model": ["t2v", 0], "settings.denoise": 0.4}}, r"a stock Wan model is not trained with the null prompt"),
    ({"sampler": {"latent": ["image", 0]}}, r"the latent has shape \(1, 4, 8, 8\), wanted \(batch, 16, frames, height, width\)"),
    ({"sampler": {"size": "scal"}}, r"SimpleGVR Sampler: size is 'scal', wanted one of upsampler scale, scale, width x height, short side"),
    ({"sampler": {"tiling": "whol"}}, r"SimpleGVR Sampler: tiling is 'whol', wanted one of auto, whole, custom"),
    ({"gvr": {"model_name": "not_there.safetensors"}}, r"value_not_in_list.*not_there\.safetensors"),
    (
        {"cut": node("TrimVideoLatent", samples=["source", 0], trim_amount=999), "sampler": {"latent": ["cut", 0]}},
        r"SimpleGVR Sampler: .*, wanted at least one frame",
    ),
    (decode_and_save(["source", 0], 300 * "a"), r"Decode and Save: the file name a{40}\.\.\. has 31\d bytes"),
    (
        {
            "wide": node("EmptyHunyuanLatentVideo", width=16384, height=16384, length=1, batch_size=1),
            **decode_and_save(["wide", 0], "wide"),
        },
        r"Decode and Save: H\.264 does not take frames of 16384 x 16384 at 24 a second",
    ),
]


@dataclass(frozen=True)
class Case:
    """A prompt. source: (B, T, h, w) latent cells; target: (H, W) cells; sampler: its inputs; draw: the fault's own chance."""

    fault: str
    source: tuple[int, int, int, int]
    from_video: bool
    target: tuple[int, int]
    sampler: dict
    sparse: bool
    draw: float


PROBE_INPUTS = {
    "model": ["gvr", 0], "size": "width x height", "size.width": 160, "size.height": 120, "seed": 1, "noise_seed": 2,
    "settings": "custom", "settings.steps": 3, "settings.cfg": 1.0, "settings.noise_augmentation": 0.1, "settings.denoise": 0.3,
    "tiling": "custom", "tiling.segment": 10, "tiling.tile_width": 0, "tiling.tile_height": 0, "color_match": 1.0, "resume": False,
}  # fmt: skip
PROBE = Case("none", (1, 6, 7, 9), False, (15, 20), PROBE_INPUTS, False, 0.0)


def draw_case(random: Random) -> Case:
    """Returns a prompt that two busy cores run in about two seconds."""
    fault = random.choices(list(SHARES), SHARES.values())[0]
    halved = fault == "out of memory once"
    frames, height, width = random.choice([source for source in SOURCES if source[0][0] > 20] if halved else SOURCES)
    source = random.choice((1, 1, 2)), random.randint(*frames), random.randint(*height), random.randint(*width)
    steps = random.randint(2, 5)
    scale = round(random.uniform(1, min(4, max(1, (MOST_WORK / steps / prod(source)) ** 0.5))), 2)
    target, size = draw_target(random, source[2:], scale)
    training_free = random.random() < 0.15
    settings = {
        "settings": "custom",
        "settings.steps": steps,
        "settings.cfg": random.choice((1.0, 1.0, 3.0)),
        "settings.noise_augmentation": random.choice((0.0, 0.1, 0.4)),
        "settings.denoise": random.choice((0.3, 0.6) if training_free else (0.3, 1.0)),
    }
    model = {"model": ["t2v", 0], "positive": ["null", 0], "negative": ["null", 0]} if training_free else {"model": ["gvr", 0]}
    others = {"color_match": random.choice((0.0, 0.5, 1.0)), "resume": random.random() < 0.3}
    seeds = {"seed": random.getrandbits(64), "noise_seed": random.getrandbits(32)}
    sampler = {**size, **settings, **model, **draw_tiling(random, halved), **others, **seeds}
    from_video = source[1] <= 7 and source[2] <= 13 and source[3] <= 20 and random.random() < 0.5
    return Case(fault, source, from_video, target, sampler, random.random() < 0.2, random.random())


def draw_target(random: Random, source: tuple[int, int], scale: float) -> tuple[tuple[int, int], dict]:
    """Returns the target (H, W) in cells, and the sampler's inputs that ask for it."""
    if random.random() < 0.5:
        return scaled_size(source, scale), {"size": "scale", "size.scale": scale}
    height, width = (random.randint(cells, round(cells * scale)) for cells in source)
    return (height, width), {"size": "width x height", "size.width": 8 * width, "size.height": 8 * height}


def draw_tiling(random: Random, halved: bool) -> dict:
    """Returns the sampler's inputs for tiles. halved: every box of 21 or more frames can be."""
    tiling = random.choice(("auto", "whole") if halved else ("auto", "whole", "custom", "custom"))
    if tiling != "custom":
        return {"tiling": tiling}
    sides = {f"tiling.{side}": random.choice((0, 256, 384)) for side in ("tile_width", "tile_height")}
    return {"tiling": tiling, "tiling.segment": random.choice((0, 10, 20)), **sides}


def workflow(case: Case) -> dict:
    """Returns the API workflow of a case."""
    batch, frames, height, width = case.source
    length, size = 4 * frames - 3, {"width": 8 * width, "height": 8 * height}
    nodes = {
        "null": node("SimpleGVRNullPrompt"),
        "wan": node("UNETLoader", unet_name="gvr_tiny_t2v.safetensors", weight_dtype="default"),
        "t2v": node("ModelSamplingSD3", model=["wan", 0], shift=3.0),
        "gvr": node("SimpleGVRLoadModel", model_name="gvr_tiny.safetensors", weight_dtype="default"),
        "upsampler": node("SimpleGVRLoadUpsampler", model_name="gvr_tiny_upsampler.safetensors"),
        "image": node("EmptyLatentImage", width=64, height=64, batch_size=1),
    }
    if case.from_video:
        nodes |= {
            "file": node("LoadVideo", file=SOURCE.name),
            "video": node("GetVideoComponents", video=["file", 0]),
            "frames": node("ImageFromBatch", image=["video", 0], batch_index=int(case.draw * 8), length=length),
            "crop": node("ImageCrop", image=["frames", 0], x=int(case.draw * 32), y=0, **size),
            "vae": node("SimpleGVRLoadTinyVAE", vae_name="gvr_tiny_vae.safetensors"),
            "encode": node("VAEEncode", pixels=["crop", 0], vae=["vae", 0]),
            "source": node("RepeatLatentBatch", samples=["encode", 0], amount=batch),
        }
    else:
        prompts = {"positive": ["null", 0], "negative": ["null", 0]}
        settings = {"seed": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
        nodes |= {
            "empty": node("EmptyHunyuanLatentVideo", length=length, batch_size=batch, **size),
            "source": node("KSampler", model=["t2v", 0], latent_image=["empty", 0], **prompts, **settings),
        }
    model = case.sampler["model"]
    if case.sparse:
        nodes["sparse"] = node("SimpleGVRSparseAttention", model=model, preset="paper")
        model = ["sparse", 0]
    sampler = {"upsampler": ["upsampler", 0], "latent": ["source", 0], **case.sampler, "model": ["faults", 0]}
    return nodes | {
        "faults": node("SimpleGVRTestFaults", model=model),
        "sampler": {"class_type": "SimpleGVRSampler", "inputs": sampler},
        "save": node("SaveLatent", samples=["sampler", 0], filename_prefix="soak"),
        "report": node("PreviewAny", source=["sampler", 1]),
    }
