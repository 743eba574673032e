"""SimpleGVR Decode and Save: LATENT in, video file out, with never more than a few frames in memory."""

import math
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import comfy.ldm.wan.vae
import comfy.model_management
import comfy.taesd.taehv
import comfy.utils
import torch
from comfy.cli_args import args
from comfy_api.latest import InputImpl, io, ui
from torch import Tensor

from ..simplegvr_core.checks import amount, check_folder, check_name
from ..simplegvr_core.latent_space import SPATIAL_FACTOR, first_frame, latent_frames, pixels
from ..simplegvr_core.networks.tiny_vae import TinyVAE
from ..simplegvr_core.networks.video_decoder import VideoDecoder
from ..simplegvr_core.planning.preflight import check_encoding, video_bytes
from ..simplegvr_core.tiling import Box, OutOfMemory
from ..simplegvr_core.video.decode import CausalState, StatefulTile, StreamDecoder, decode_to_parts, tiles_of_frame
from ..simplegvr_core.video.sound import Sound, checked_sound
from ..simplegvr_core.video.write import Encoding, join
from .host.bridge import CATEGORY, LATENT_FORMAT, is_out_of_memory, named_choices, refuse
from .host.file_names import resolve_prefix
from .host.inputs import trim_input
from .host.working_files import RESUME_FOLDER, fingerprint, reserve_path, save_path, working_folder

PART_LENGTH = 10  # chunks; at 24 frames a second a part is some 3 seconds
# Of the VAE's own estimate: memory for a chunk while the decoder's state is on the host. Measured with Wan's VAE and TinyVAE; counted
STATE_ON_HOST, STATE_ON_HOST_OF_SMALL = 0.65, 0.8


class SimpleGVRDecodeSave(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SimpleGVRDecodeSave",
            display_name="SimpleGVR Decode and Save",
            category=CATEGORY,
            description="Decodes a video latent into a video file, a few frames at a time, so that memory does not grow with the "
            "length of the video. Frames that do not fit the memory are decoded in tiles. A cancelled run can be resumed.",
            search_aliases=["save video", "decode video", "long video", "VAE decode tiled", "out of memory"],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                io.Vae.Input(
                    "vae", tooltip="VAE of the latent: Wan 2.1's, or that of Load SimpleGVR Video Decoder or Load TinyVAE (SimpleGVR)."
                ),
                io.Latent.Input("latent", tooltip="Video latent, for example from SimpleGVR Sampler. Each item of a batch becomes a file."),
                io.Float.Input("fps", default=24.0, min=0.01, max=1000.0, step=0.01, tooltip="Frames per second of the video."),
                io.String.Input(
                    "filename_prefix",
                    default="video/SimpleGVR",
                    tooltip="Folder in the output folder and start of the file name, as in Save Video.",
                ),
                trim_input(),
                io.Float.Input(
                    "crf",
                    default=16.0,
                    min=0.0,
                    max=51.0,
                    step=1.0,
                    tooltip="H.264 quality: lower is better and gives larger files. 16 is visually lossless; 0 is lossless, which few "
                    "players support.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "resume",
                    default=False,
                    tooltip=f"Saves finished parts in {RESUME_FOLDER} in the output folder until the file is complete. After an interrupt, "
                    "an error or a crash, the same prompt continues after the last part.",
                    advanced=True,
                ),
                io.Audio.Input("audio", optional=True, tooltip="Audio track, cut to the length of the video."),
            ],
            outputs=[
                io.Video.Output(is_output_list=True, tooltip="The saved file, for stock video nodes; one per latent of a batch."),
                io.String.Output(display_name="report", tooltip="Report: files, sizes, tiles and memory shortages."),
            ],
        )

    @classmethod
    @named_choices
    def execute(cls, vae, latent, fps, filename_prefix, trim, crf, resume, audio=None) -> io.NodeOutput:
        samples = video_samples(latent)
        decode_chunk = chunk_decoder(vae)
        frames, height, width = trimmed_size(samples.shape, trim)
        encoding = Encoding(width - width % 2, height - height % 2, Fraction(round(fps * 1000), 1000), crf)
        filename_prefix = resolve_prefix(filename_prefix, cls.hidden.prompt, (cls.hidden.extra_pnginfo or {}).get("workflow"))
        sounds, report = preflight(samples, encoding, frames, filename_prefix, audio), []
        if sounds[0] and sounds[0].rate != sounds[0].encoded_rate:
            report.append(f"AAC has no {sounds[0].rate} Hz: the sound became {sounds[0].encoded_rate} Hz.")
        if (encoding.width, encoding.height) != (width, height):
            report.append(f"H.264 needs even sides: {width} x {height} became {encoding.width} x {encoding.height}.")
        name = fingerprint(samples, vae.patcher, str(vae.vae_dtype), frames, str(encoding), av.__version__) if resume else None
        with comfy.model_management.cuda_device_context(vae.device), working_folder(name, report.append) as folder:
            decoder, length = stream_decoder(vae, decode_chunk, samples, report), PART_LENGTH if resume else None
            parts = []
            for item in range(len(samples)):
                decoder.reset()
                z, where = samples[item : item + 1], folder / f"{item:03}"
                on_chunk = progress(item, len(samples), latent_frames(frames), report)
                try:
                    plan = {"frames": frames, "encoding": encoding, "folder": where, "part_length": length}
                    parts.append(decode_to_parts(z, decoder, **plan, on_chunk=on_chunk, note=report.append))
                except OutOfMemory as error:
                    raise OutOfMemory(f"SimpleGVR Decode and Save: {error}") from error
            if decoder.most_tiles > 1:
                report.append(f"Decoded in {decoder.most_tiles} tiles.")
            saved = save_all(filename_prefix, encoding, parts, sounds, workflow(cls.hidden))
        videos = [InputImpl.VideoFromFile(str(path)) for path, _ in saved]
        results: list[ui.SavedResult | dict] = [result for _, result in saved]
        report += [f"{path.name}: {frames} frames of {encoding.width} x {encoding.height}, {fps:g} a second." for path, _ in saved]
        return io.NodeOutput(videos, "\n".join(report), ui=ui.PreviewVideo(results))


def video_samples(latent: dict) -> Tensor:
    """Returns the samples of a LATENT, (B, 16, T, H, W) in VAE space. Raises ValueError when they are no Wan 2.1 video latent's."""
    samples = latent["samples"]
    if samples.ndim != 5 or samples.shape[1] != LATENT_FORMAT.latent_channels:
        raise refuse(
            SimpleGVRDecodeSave,
            f"the latent has shape {tuple(samples.shape)}, wanted (batch, 16, frames, height, width): "
            "connect a video latent of Wan 2.1, from its sampler, SimpleGVR Sampler or VAE Encode with Wan 2.1's VAE",
        )
    if not samples.numel():
        raise refuse(
            SimpleGVRDecodeSave,
            f"the latent has shape {tuple(samples.shape)}, wanted at least one frame: trim fewer frames before this node",
        )
    return samples


def trimmed_size(shape: tuple[int, ...], trim: dict) -> tuple[int, int, int]:
    """Returns frames, height and width of the video of a latent of shape (B, 16, T, H, W), as a `trim` value asks.

    Raises ValueError when the latent holds less than is asked for, or a side is no picture's.
    """
    there = F, H, W = first_frame(shape[2]), SPATIAL_FACTOR * shape[3], SPATIAL_FACTOR * shape[4]
    wanted = frames, height, width = trim.get("frames") or F, trim.get("height") or H, trim.get("width") or W
    if 1 in (height, width) or any(want > have for want, have in zip(wanted, there, strict=True)):
        raise refuse(
            SimpleGVRDecodeSave,
            f"trim asks for {frames} frames of {width} x {height}, but the latent holds {F} of {W} x {H}: "
            "set those of the source times the sampler's scale, or 0 for all",
        )
    return wanted


def preflight(samples: Tensor, encoding: Encoding, frames: int, prefix: str, audio: dict | None) -> list[Sound | None]:
    """Returns the sound of each item, after everything that the files will need is checked.

    Raises ValueError or OSError, of the node, for latents, a size, a rate, a name, a folder or a sound that cannot become a file.
    """
    try:
        check_finite(samples)
        check_encoding(encoding)
        path, _ = save_path(prefix, encoding, io.FolderType.output)
        check_name(path)
        check_folder(path.parent, len(samples) * video_bytes(encoding, frames))
        return sounds_of(audio, len(samples), float(frames / encoding.rate))
    except NotADirectoryError as error:
        raise refuse(SimpleGVRDecodeSave, f"{error.filename} is a file, wanted a folder: choose another filename_prefix") from error
    except (ValueError, OSError) as error:
        raise refuse(SimpleGVRDecodeSave, str(error)) from error


def check_finite(samples: Tensor) -> None:
    """Raises ValueError that names the first latent frame with NaN or infinite values, if there is one."""
    for frame in range(samples.shape[2]):
        if not samples[:, :, frame].isfinite().all():
            raise ValueError(f"latent frame {frame} contains NaN or infinite values: look for the cause in the sampler")


def chunk_decoder(vae) -> Callable:
    """Returns the function (network, z, state) -> (video, state) that decodes a chunk by a VAE. Raises ValueError if there is none."""
    network = vae.first_stage_model
    if isinstance(network, (TinyVAE, VideoDecoder)):
        return type(network).decode_chunk
    if isinstance(network, comfy.ldm.wan.vae.WanVAE):
        return wan_chunk
    if isinstance(network, comfy.taesd.taehv.TAEHV):
        raise refuse(
            SimpleGVRDecodeSave,
            "the VAE is a TAEHV of Load VAE, which scales taew2_1's latents wrongly: load the file with Load SimpleGVR Video Decoder",
        )
    raise refuse(
        SimpleGVRDecodeSave,
        f"the VAE is a {type(network).__name__}, which it cannot decode a few frames at a time: connect "
        "Wan 2.1's (Load VAE with wan_2.1_vae.safetensors), that of Load SimpleGVR Video Decoder or of Load TinyVAE (SimpleGVR); "
        "for others use VAE Decode and Save Video",
    )


def stream_decoder(vae, decode_chunk: Callable, samples: Tensor, report: list[str]) -> StreamDecoder:
    """Returns the decoder of a VAE for clips of samples' size, loaded, in tiles where the whole frame does not fit.

    report: gets a line when there is little memory, and for each time when it runs out.
    """
    network, size = vae.first_stage_model, (samples.shape[3], samples.shape[4])
    on_host = STATE_ON_HOST_OF_SMALL if isinstance(network, VideoDecoder) else STATE_ON_HOST

    def needed(height: int, width: int) -> float:
        return vae.memory_used_decode((1, samples.shape[1], min(samples.shape[2], 5), height, width), vae.vae_dtype)

    def on_out_of_memory(box: Box, tiles: list[StatefulTile]) -> None:
        remedy = "decoded in two tiles" if len(tiles) == 2 else "stored the state of the decoder in host memory"
        report.append(f"Out of memory with {pixels(box.size[1:])}: {remedy} from then on.")
        comfy.model_management.soft_empty_cache()

    comfy.model_management.load_models_gpu([vae.patcher], memory_required=math.ceil(needed(*size)))
    free = vae.patcher.get_free_memory(vae.device)

    def fits(height: int, width: int) -> bool:
        return on_host * needed(height, width) <= free

    tiles = tiles_of_frame(size, fits)
    if len(tiles) > 1:
        report.append(
            f"A frame of {pixels(size)} needs {amount(on_host * needed(*size))}, {amount(free)} are free: it is decoded in tiles."
        )
    return StreamDecoder(
        lambda z, state: decode_chunk(network, z.to(vae.device, vae.vae_dtype), state),
        tiles,
        is_out_of_memory,
        vae.output_device,
        needed(*size) <= free and vae.device != vae.output_device,
        on_out_of_memory,
        fits,
    )


def wan_chunk(network: comfy.ldm.wan.vae.WanVAE, z: Tensor, state: CausalState) -> tuple[Tensor, CausalState]:
    """Returns the video of a chunk by Wan 2.1's VAE, and the next state: the frames that its decoder caches, by layer.

    The cache of a layer that was given only the first frame is "Rep"; in a state that is an empty tensor.
    """
    cache = [state.get(str(i)) for i in range(comfy.ldm.wan.vae.count_cache_layers(network.decoder))]
    cache = ["Rep" if values is not None and not values.numel() else values for values in cache]
    video = torch.cat(network.decoder(network.conv2(z), feat_cache=cache, feat_idx=[0]), dim=2)
    kept = {str(i): values for i, values in enumerate(cache) if values is not None}
    return video, {name: torch.empty(0) if isinstance(values, str) else values for name, values in kept.items()}


def progress(item: int, items: int, total: int, report: list[str]) -> Callable[[int, int], None]:
    """Returns what is to be called after each chunk: it shows where the run is, and stops it when asked to.

    It shows no frame: ComfyUI's page goes on showing a node's last preview when the result, here the video, has come.
    """
    bar, seen = comfy.utils.ProgressBar(items * total), []

    def on_chunk(start: int, stop: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if start and not seen:
            report.append(f"Resumed at frame {first_frame(start)} of an earlier run.")
        seen.append(start)
        bar.update_absolute(item * total + stop)

    return on_chunk


def save_all(
    prefix: str, encoding: Encoding, parts: list[list[Path]], sounds: list[Sound | None], metadata: dict
) -> list[tuple[Path, ui.SavedResult]]:
    """Returns path and shown result of the file that is made of each item's parts. When one cannot be written, none stays."""
    saved = []
    try:
        for item_parts, item_sound in zip(parts, sounds, strict=True):
            saved.append(reserve_path(prefix, encoding, io.FolderType.output))
            join(saved[-1][0], item_parts, encoding.rate, sound=item_sound, metadata=metadata)
    except BaseException:
        for path, _ in saved:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        raise
    return saved


def sounds_of(audio: dict | None, count: int, seconds: float) -> list[Sound | None]:
    """Returns an AUDIO's sound for each item of a batch, the last one's for all that have none of their own.

    Raises ValueError when one cannot be encoded.
    """
    if audio is None:
        return [None] * count
    waveforms = audio["waveform"]
    if waveforms.ndim != 3 or not len(waveforms):
        raise ValueError(f"the audio has shape {tuple(waveforms.shape)}, wanted (batch, channels, samples): load it with Load Audio")
    return [checked_sound(waveforms[min(item, len(waveforms) - 1)], audio["sample_rate"], seconds) for item in range(count)]


def workflow(hidden) -> dict:
    """Returns what Save Video writes into a file, so that dropping it on the page opens the workflow."""
    if args.disable_metadata:
        return {}
    return {**(hidden.extra_pnginfo or {}), **({} if hidden.prompt is None else {"prompt": hidden.prompt})}
