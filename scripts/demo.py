"""Super-resolves a video through a real ComfyUI: `python3 scripts/demo.py [INPUT.mp4] [--scale 3] [--out DIR] [--ui]`.

Sets everything up the first time. Leaves the result as mp4, a side-by-side PNG, a before-and-after WebP, and a table of times and quality.
"""

import argparse
import asyncio
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path

from comfyui import DEMO, HOME, PAGE, REPO, SetupError, enter, is_open, say, server

UI_PORT = 8188
BUNDLED = REPO / "scripts" / "clips" / "squirrels.mp4"
BUNDLED_ORIGINAL = REPO / "scripts" / "clips" / "squirrels_original.mp4"
QUICKSTART_CLIP = REPO / "assets" / "demo.mp4"  # which the quickstart workflow names
DECODED = "low resolution through TinyVAE, bicubic"  # what the user of a text-to-video model has without SimpleGVR


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", nargs="?", type=Path, default=BUNDLED, help="video to super-resolve (default: a bundled clip)")
    parser.add_argument("--scale", type=float, default=3.0, help="width and height of the result over the input's, 1 to 8 (default: 3)")
    parser.add_argument("--out", type=Path, default=REPO / "out", help="folder for the results (default: out)")
    parser.add_argument("--ui", action="store_true", help="leave ComfyUI running and print its address")
    arguments = parser.parse_args()
    if not arguments.input.is_file():
        parser.error(f"{arguments.input} is not a file")
    if not 1 <= arguments.scale <= 8:
        parser.error(f"--scale is {arguments.scale}, wanted 1 to 8")
    return arguments


def main(arguments: argparse.Namespace) -> None:
    notes = preflight(arguments)
    base = HOME / "base"
    base.mkdir(parents=True, exist_ok=True)
    name = f"demo_{os.getpid()}{'.mp4' if notes else arguments.input.suffix}"  # other runs share this folder
    (base / "input").mkdir(exist_ok=True)
    place(arguments, base / "input" / name, notes)
    shutil.copy(QUICKSTART_CLIP, base / "input")
    say("starting ComfyUI")
    port = UI_PORT if arguments.ui and not is_open(UI_PORT) else None
    log = base / f"server_{os.getpid()}.log"
    with server(base, port, log) as (address, process):
        files, stages, peak = run_quickstart(address, process.pid, base, name, arguments)
        report = write_results(files, base / "input" / name, arguments, notes)
        print_report(report, stages, peak)
        if arguments.ui:
            say(f"ComfyUI is at {address} with the workflows under Templates; stop it with Ctrl+C")
            process.wait()
    for leftover in (log, base / "input" / name, *files):
        leftover.unlink()


def preflight(arguments: argparse.Namespace) -> list[str]:
    """Returns what is unusual about the input, as inspect_video says it. Ends the program when it, folder or memory is no use."""
    from simplegvr_core.checks import check_folder
    from simplegvr_core.video.read import inspect_video, read_frames

    try:
        check_folder(arguments.out)
        frames, notes = inspect_video(arguments.input)
        if not frames:
            sys.exit(f"{arguments.input} has no frames")
        height, width, _ = next(read_frames(arguments.input)).shape
        check_needs(frames, (height, width), arguments)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    return notes


def check_needs(frames: int, size: tuple[int, int], arguments: argparse.Namespace) -> None:
    """Raises OSError or ValueError unless the result fits the output folder, and its decoding the memory. size: height and width."""
    from fractions import Fraction

    import torch

    from simplegvr_core.checks import check_folder, check_host_memory
    from simplegvr_core.latent_space import latent_frames, scaled_size
    from simplegvr_core.networks.tiny_vae import TinyVAEConfig
    from simplegvr_core.planning.network_memory import coding_bytes
    from simplegvr_core.planning.preflight import video_bytes
    from simplegvr_core.video.write import Encoding

    height, width = (round(side * arguments.scale) for side in size)
    check_folder(arguments.out, video_bytes(Encoding(width, height, Fraction(24)), frames) / 2, "the result")
    latent = scaled_size((-(-size[0] // 8), -(-size[1] // 8)), arguments.scale)
    needed = coding_bytes(TinyVAEConfig(), "decode", (1, 16, latent_frames(frames), *latent), torch.float32)
    result = f"{frames} frames of {width} x {height}, decoded in one piece,"
    check_host_memory(
        needed, result, "give a shorter or smaller video, or a smaller --scale; docs/long_video.md is for videos of any length"
    )


def place(arguments: argparse.Namespace, path: Path, notes: list[str]) -> None:
    """Writes the input to path for ComfyUI's Load Video, which knows neither shapes of pixels nor frame times: converted if it has any."""
    from simplegvr_core.video.normalize import normalize_video

    if not notes:
        shutil.copy(arguments.input, path)
        return
    unusual = ", ".join(note.split(":")[0] for note in notes)
    say(f"{arguments.input.name} has {unusual}: it is converted to square pixels, 8-bit SDR and a constant frame rate first")
    try:
        normalize_video(arguments.input, path)
    except ValueError as error:
        sys.exit(str(error))


def run_quickstart(address: str, pid: int, base: Path, name: str, arguments: argparse.Namespace) -> tuple[list[Path], dict, float]:
    """Returns the server's output files, the seconds of each node and the peak memory in GiB of the quickstart workflow.

    H.264 as players know it holds even sizes only: for an odd result the frames are saved as PNG instead of a video.
    """
    from client import output_files, run_workflow

    from simplegvr_core.video.read import read_frames

    workflow = json.loads((REPO / "workflows" / "api" / "quickstart_video.json").read_text())
    workflow = {id: node for id, node in workflow.items() if node["class_type"] != "SimpleGVRCompare"}  # which is for the page
    nodes = {node["class_type"]: node for node in workflow.values()}
    nodes["LoadVideo"]["inputs"]["file"] = name
    nodes["SimpleGVRSampler"]["inputs"]["size.scale"] = nodes["SimpleGVRTrim"]["inputs"]["scale"] = arguments.scale
    nodes["SimpleGVRTrim"]["inputs"]["even"] = False
    nodes["SaveVideo"]["inputs"]["filename_prefix"] = f"video/{Path(name).stem}"
    height, width = next(read_frames(base / "input" / name)).shape[:2]
    if round(height * arguments.scale) % 2 or round(width * arguments.scale) % 2:
        trim = next(id for id, node in workflow.items() if node["class_type"] == "SimpleGVRTrim")
        say("the result has an odd size, which the stock Save Video cannot write: it is written from pictures, without sound")
        nodes["SaveVideo"].update(class_type="SaveImage", inputs={"images": [trim, 0], "filename_prefix": Path(name).stem})
    progress = Progress({id: node["_meta"]["title"] for id, node in workflow.items()})
    with PeakMemory(pid) as memory:
        outputs = asyncio.run(run_workflow(address, workflow, progress))
    return output_files(outputs, base / "output"), progress.close(), memory.peak


class Progress:
    """Shows the server's events as one progress bar a node, and keeps each node's seconds."""

    def __init__(self, titles: dict[str, str]):
        self.titles, self.stages = titles, {}
        self.bar, self.started = None, time.monotonic()

    def __call__(self, event) -> None:
        from tqdm import tqdm

        if event.kind == "executing":
            self.close()
            self.bar = event.node and tqdm(desc=self.titles[event.node], total=1, bar_format="{desc:28} {bar} {n}/{total} {elapsed}")
        elif self.bar is not None:
            self.bar.total, self.bar.n = event.maximum, event.value
            self.bar.refresh()

    def close(self) -> dict[str, float]:
        """Returns the seconds of every node so far, after ending the one that runs."""
        if self.bar:
            self.bar.n = self.bar.total
            self.bar.close()
            self.stages[self.bar.desc] = time.monotonic() - self.started
        self.bar, self.started = None, time.monotonic()
        return self.stages


class PeakMemory:
    """Watches a process; peak is its largest resident memory in GiB."""

    def __init__(self, pid: int):
        import psutil

        self.process, self.peak = psutil.Process(pid), 0.0
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def watch(self) -> None:
        while not self.stopped.wait(0.1):
            self.peak = max(self.peak, self.process.memory_info().rss / 2**30)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error) -> None:
        self.stopped.set()
        self.thread.join()


def write_results(files: list[Path], placed: Path, arguments: argparse.Namespace, notes: list[str]) -> dict:
    """Returns paths, sizes and, where the original is known, quality; writes the mp4, the PNG and demo.json.

    placed: the input as ComfyUI was given it. notes: what was converted of it.
    """
    import torch

    from simplegvr_core.evaluation import metrics
    from simplegvr_core.evaluation.result import EvaluationClip, Result
    from simplegvr_core.files import BUNDLE
    from simplegvr_core.latent_space import scaled_size
    from simplegvr_core.networks.tiny_vae import load_tiny_vae
    from simplegvr_core.networks.upsampler import resize
    from simplegvr_core.video.frames import resize_frames, to_images, to_video
    from simplegvr_core.video.read import read_video
    from simplegvr_core.video.write import write_video

    result = arguments.out / f"{arguments.input.stem}_simplegvr.mp4"
    source, rate = read_video(placed)
    if files[0].suffix == ".png":
        write_video(result, torch.stack([read_video(file)[0][0] for file in files]), rate)
    else:
        shutil.copy(files[0], result)
    gvr = to_video(read_video(result)[0])
    size = gvr.shape[3:]
    vae = load_tiny_vae(BUNDLE / "simplegvr_tiny_vae" / "gvr_tiny_vae.safetensors")
    with torch.inference_mode():
        z_lr = vae.encode(to_video(source))
        latent_bilinear = vae.decode(resize(z_lr, scaled_size(z_lr.shape[3:], arguments.scale)))
        decoded = vae.decode(z_lr)[:, :, : len(source), : source.shape[1], : source.shape[2]]
    videos = {
        DECODED: resize_frames(decoded, size, "bicubic"),
        "latent bilinear": latent_bilinear[:, :, : len(source), : size[0], : size[1]],
        "SimpleGVR": gvr,
    }
    report = {
        "result": str(result),
        "input": list(source.shape[:3]),
        "output": [gvr.shape[2], *size],
        "scale": arguments.scale,
        "notes": notes,
    }
    if arguments.input.resolve() == BUNDLED and arguments.scale == 3:
        original = to_video(read_video(BUNDLED_ORIGINAL)[0])
        clip = EvaluationClip(tuple(size), original)
        results = {name: Result(video, clip) for name, video in videos.items()}
        results["low resolution in pixels, bicubic"] = Result(resize_frames(to_video(source), size, "bicubic"), clip)
        report["quality"] = {name: [metrics.measure(each, result).value for each in ("psnr", "ssim")] for name, result in results.items()}
        videos["original"] = original
    middle = {name: to_images(video[:, :, video.shape[2] // 2 :][:, :, :1])[0].numpy() for name, video in videos.items()}
    report["side_by_side"] = str(result.with_suffix(".png"))
    side_by_side(middle).save(report["side_by_side"])
    report["before_after"] = str(result.with_name(f"{arguments.input.stem}_before_after.webp"))
    frames = before_after(to_images(videos[DECODED]).numpy(), to_images(gvr).numpy())
    frames[0].save(report["before_after"], save_all=True, append_images=frames[1:], duration=round(1000 / rate), loop=0, quality=80)
    (arguments.out / "demo.json").write_text(json.dumps(report, indent=1))
    return report


def side_by_side(pictures: dict):
    """Returns a PIL picture: the pictures (H, W, 3) uint8 in a row with their names, below them their most detailed ninth at 3x."""
    from PIL import Image, ImageDraw

    height, width = next(iter(pictures.values())).shape[:2]
    label = 24
    canvas = Image.new("RGB", (width * len(pictures), label + 2 * height), "black")
    draw = ImageDraw.Draw(canvas)
    left, top = most_detailed(next(iter(pictures.values())), (height // 3, width // 3))
    for index, (name, picture) in enumerate(pictures.items()):
        image = Image.fromarray(picture)
        box = (left, top, left + width // 3, top + height // 3)
        draw.text((index * width + 6, 4), name, fill="white", font_size=15)
        canvas.paste(image, (index * width, label))
        canvas.paste(image.crop(box).resize((width, height), Image.Resampling.NEAREST), (index * width, label + height))
    return canvas


def most_detailed(picture, size: tuple[int, int]) -> tuple[int, int]:
    """Returns (left, top) of the part (height, width) of a picture (H, W, 3) uint8 that differs most from one pixel to the next."""
    import numpy as np

    height, width = size
    detail = np.abs(np.diff(picture.astype(int), axis=1, append=picture[:, -1:])).sum(2)
    above = np.pad(detail.cumsum(0).cumsum(1), ((1, 0), (1, 0)))  # sums of all above and to the left
    sums = above[height:, width:] - above[:-height, width:] - above[height:, :-width] + above[:-height, :-width]
    top, left = np.unravel_index(sums.argmax(), sums.shape)
    return int(left), int(top)


def before_after(before, after) -> list:
    """Returns PIL pictures of a loop: the most detailed part of the frames (T, H, W, 3) uint8, before left and after right of a line.

    The line moves to and fro once, the part is at most 360 x 640 pixels.
    """
    import math

    from PIL import Image, ImageDraw

    height, width = min(before.shape[1], 360), min(before.shape[2], 640)
    left, top = most_detailed(before[len(before) // 2], (height, width))
    pictures = []
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        line = round(width * (0.5 - 0.4 * math.cos(2 * math.pi * index / len(before))))
        picture = Image.fromarray(new[top : top + height, left : left + width])
        picture.paste(Image.fromarray(old[top : top + height, left : left + line]))
        ImageDraw.Draw(picture).line((line, 0, line, height), fill="white", width=2)
        pictures.append(picture)
    return pictures


def print_report(report: dict, stages: dict[str, float], peak: float) -> None:
    print("\n| stage | seconds |\n|---|---|")
    for name, seconds in stages.items():
        print(f"| {name.strip()} | {seconds:.1f} |")
    print(f"| all | {sum(stages.values()):.1f} |\n\npeak memory of the server (RAM): {peak:.2f} GiB")
    if "quality" in report:
        print("\n| against the original | PSNR | SSIM |\n|---|---|---|")
        for name, (psnr, ssim) in report["quality"].items():
            print(f"| {name} | {psnr:.2f} dB | {ssim:.3f} |")
        print("The first three see TinyVAE's latent of the low resolution, the last one its pixels.")
    (frames, *source), (_, *target) = report["input"], report["output"]
    print(f"\n{frames} frames, {source[1]} x {source[0]} -> {target[1]} x {target[0]}")
    print(f"video:        {report['result']}\nside by side: {report['side_by_side']}\nbefore|after: {report['before_after']}")


if __name__ == "__main__":
    arguments = parse_arguments()
    enter((*DEMO, PAGE) if arguments.ui else DEMO)
    from client import WorkflowError

    try:
        main(arguments)
    except (SetupError, WorkflowError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        say("stopped")
