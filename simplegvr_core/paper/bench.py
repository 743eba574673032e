"""Common parts of the paper's tables and figures: networks, low-resolution clips, videos sampled from text, each made once.

B batch, F frames, T latent frames, h, w low-resolution latent pixels, H, W target latent pixels; latents are normalised;
video (B, 3, F, H, W) in [-1, 1]
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..degradations import RECIPES, degrade_video
from ..evaluation import baselines
from ..evaluation.evaluate import Evaluate
from ..evaluation.full_reference import mean_decibels, psnr
from ..evaluation.metrics import METRICS
from ..evaluation.versions import versions
from ..files import CLIPS, GVR_TINY, GVR_TINY_T2V, GVR_TINY_UPSAMPLER, GVR_TINY_VAE, REPO, read_result, sha256, write_text
from ..flow import shifted_sigmas
from ..latent_space import LATENT_CHANNELS, SPATIAL_FACTOR, latent_frames, scaled_size
from ..networks.attention import AttentionConfig
from ..networks.checkpoint import load_strict, parse_config
from ..networks.dit import SimpleGVRDiT, load_dit, read_dit
from ..networks.layers import default_device
from ..networks.tiny_vae import TinyVAE
from ..networks.upsampler import Upsampler, load_upsampler
from ..networks.wan_vae import WanVAE, load_vae
from ..sampling.solvers import integrate
from ..sampling.super_resolve import SamplingConfig, guided_network, super_resolve
from ..video.frames import crop_centre, limit_height, to_images, to_video
from ..video.read import find_videos, read_video
from ..video.write import write_video

BUNDLED_CLIPS = (CLIPS / "demo_original.mp4", *sorted((REPO / "tests" / "clips").glob("*.mp4")))
HEIGHT = 120  # lines of the bundled clips at low resolution
METHODS = ("gvr", "upsampler", "latent_bilinear", "bicubic", "basicvsr", "span")  # of table 1
BY_OTHERS = ("table-1", "table-3", "figure-9")  # depend on the baselines and metrics that are installed
RATE = Fraction(12)  # of videos sampled from text


@dataclass(frozen=True)
class Options:
    """Options that decide the results; the defaults are small enough for a CPU."""

    clips: Path | None = None
    """Folder of low-resolution videos from a text-to-video model. Without it, the bundled clips are reduced with the flow-based
    degradation, which imitates such videos."""
    model: Path = GVR_TINY
    """Checkpoint of the SimpleGVR model."""
    upsampler: Path = GVR_TINY_UPSAMPLER
    """Checkpoint of the latent upsampler."""
    vae: Path = GVR_TINY_VAE
    """TinyVAE, or the stock wan_2.1_vae.safetensors."""
    t2v: Path = GVR_TINY_T2V
    """Text-to-video model: ours, or a stock Wan 2.1 (safetensors, original key names)."""
    contexts: Path | None = None
    """Folder with a file PROMPT.safetensors for each video to sample from text, tensor "context" (S, text_dim): the text
    encoder's features. Without it the null prompt is sampled --samples times."""
    samples: int = 1
    """Videos that are sampled for the null prompt, each with its own seed."""
    scale: int = 3
    """Scale of the super-resolution."""
    num_frames: int = 17
    """Video frames of each clip, from its start, and of each video sampled from text."""
    t2v_size: tuple[int, int] = (128, 224)
    """Height and width in pixels of the videos sampled from text; the paper's are 384 672."""
    t2v_sampling: SamplingConfig = SamplingConfig(steps=20, shift=3.0)
    """Steps, cfg and shift of the text-to-video model; Wan 2.1's are 50, 5 and 5."""
    seed: int = 0
    """Seed of all randomness."""
    device: str = default_device()
    """Device of the networks: cpu, cuda, cuda:1 and so on."""

    def check(self) -> None:
        """Raises ValueError or FileNotFoundError for options that would fail later."""
        if any(side % (2 * SPATIAL_FACTOR) for side in self.t2v_size):
            raise ValueError(f"--t2v-size is {self.t2v_size}, wanted multiples of {2 * SPATIAL_FACTOR}: the paper's are 384 672")
        if self.num_frames < 5 or self.num_frames % 4 != 1:
            raise ValueError(f"--num-frames is {self.num_frames}, wanted 4 n + 1, at least 5: the paper's are 17 and 77")
        if self.clips is not None:
            find_videos(self.clips)
        if self.contexts is not None and not sorted(self.contexts.glob("*.safetensors")):
            raise FileNotFoundError(f"--contexts {self.contexts} has no .safetensors file")

    @cached_property
    def key(self) -> str:
        """16 digits that depend on all that decides the results: the options, the files' contents and the version of the code."""
        files = [self.model, self.upsampler, self.vae, self.t2v]
        files += find_videos(self.clips) if self.clips is not None else []
        files += sorted(self.contexts.glob("*.safetensors")) if self.contexts is not None else []
        decisive = repr((self, versions()["commit"], [sha256(path) for path in files]))
        return hashlib.sha256(decisive.encode()).hexdigest()[:16]


class Bench:
    """The networks on one device, and their results, each computed once and saved in a folder."""

    def __init__(self, options: Options, out: Path):
        """Loads nothing yet.

        Args:
            options: What decides the results.
            out: Folder of the results.
        """
        self.options, self.out = options, out

    def computed_once(self, name: str, compute: Callable[[Path], dict]) -> dict:
        """Returns the result in out/name/result.json, after computing it where it is missing or its key differs.

        Args:
            name: Name of the result and of its folder.
            compute: folder -> result.
        """
        folder = self.out / name
        if not (result := self.finished(name)):
            start = perf_counter()
            result = compute(folder) | {"key": self.key(name), "seconds": perf_counter() - start}
            write_text(folder / "result.json", json.dumps(result, indent=1))
        return result

    def finished(self, name: str) -> dict | None:
        """Returns the saved result of a name where its key is the present one, otherwise None."""
        result = read_result(self.out / name / "result.json")
        return result if result.get("key") == self.key(name) else None

    def key(self, name: str) -> str:
        """Returns what a saved result depends on: the options, and for some the baselines and metrics that are installed."""
        return " ".join((self.options.key, *(self.others if name in BY_OTHERS else ())))

    @cached_property
    def others(self) -> tuple[str, ...]:
        """The methods of table 1 and the metrics that are on this machine."""
        methods = [method for method in METHODS if method not in self.absent_baselines()]
        return *methods, *(name for name, metric in METRICS.items() if metric.absent() is None)

    @property
    def cascade_folder(self) -> Path:
        return self.out / "cascade"

    @property
    def evaluation_folder(self) -> Path:
        return self.out / "evaluation"

    @cached_property
    def vae(self) -> TinyVAE | WanVAE:
        return load_vae(self.options.vae).to(self.options.device)

    @cached_property
    def upsampler(self) -> Upsampler:
        return load_upsampler(self.options.upsampler).to(self.options.device)

    @cached_property
    def checkpoint(self) -> tuple[SimpleGVRDiT, dict]:
        """The SimpleGVR model, and its checkpoint's configuration."""
        dit, config = load_dit(self.options.model)
        return dit.to(self.options.device), config

    @property
    def dit(self) -> SimpleGVRDiT:
        return self.checkpoint[0]

    @property
    def sampling(self) -> SamplingConfig:
        return parse_config(SamplingConfig, self.checkpoint[1], "sampling", self.options.model)

    @cached_property
    def t2v(self) -> SimpleGVRDiT:
        """The text-to-video model, with full attention. Raises ValueError when it takes a condition."""
        config, weights = read_dit(self.options.t2v)
        if config.in_dim != LATENT_CHANNELS:
            raise ValueError(f"--t2v {self.options.t2v} takes {config.in_dim} channels, a text-to-video model {LATENT_CHANNELS}")
        model = SimpleGVRDiT(config, AttentionConfig(kind="full", unit=None))
        load_strict(model, weights, self.options.t2v)
        return model.eval().to(self.options.device)

    @property
    def prompts(self) -> dict[str, tuple[Tensor, int]]:
        """Text features (1, S, text_dim) and the seed of each video sampled from text, by name."""
        seed = self.options.seed
        if self.options.contexts is None:
            return {f"null_prompt_seed_{seed + i}": (self.null_context(), seed + i) for i in range(self.options.samples)}
        paths = sorted(self.options.contexts.glob("*.safetensors"))
        return {path.stem: (load_file(path)["context"][None].to(self.options.device), seed) for path in paths}

    @property
    def toy_t2v(self) -> str:
        """A sentence for the page about results of the bundled text-to-video model; empty for another model."""
        if self.options.t2v != Options.t2v:
            return ""
        return " The bundled text-to-video model makes blotches in the colors of its training film: compare with another --t2v."

    def null_context(self) -> Tensor:
        return torch.zeros(1, 1, self.t2v.config.text_dim, device=self.options.device)

    @cached_property
    def sources(self) -> dict[str, Path]:
        """The low-resolution clips by name, before any degradation."""
        return self.low_resolution("area")

    @cached_property
    def inputs(self) -> dict[str, Path]:
        """The low-resolution clips by name as SimpleGVR gets them: --clips, or the bundled clips with flow-based degradation."""
        return self.low_resolution("flow_based")

    def low_resolution(self, recipe: str) -> dict[str, Path]:
        """Returns --clips by name, or the bundled clips reduced by a recipe, in out/inputs."""
        paths = find_videos(self.options.clips) if self.options.clips else [self.shrunk(path, recipe) for path in BUNDLED_CLIPS]
        return {path.stem: path for path in paths}

    def shrunk(self, path: Path, recipe: str) -> Path:
        """Returns the video of a bundled clip, HEIGHT lines tall, by a recipe of degradations."""
        out = self.out / "inputs" / self.options.key / recipe / path.name
        if not out.exists():
            images, rate = read_video(path, self.options.num_frames)
            scale = self.options.scale
            images = crop_centre(torch.stack([limit_height(image, scale * HEIGHT) for image in images]), SPATIAL_FACTOR * scale)
            generator = torch.Generator().manual_seed(self.options.seed)
            write_video(out, to_images(degrade_video(to_video(images), scale, RECIPES[recipe], generator)), rate)
        return out

    def read(self, path: Path) -> Tensor:
        """Returns a low-resolution clip's video (1, 3, F, 8h, 8w) on the device, cropped to whole latent pixels."""
        images, _ = read_video(path, self.options.num_frames)
        return to_video(crop_centre(images, SPATIAL_FACTOR)).to(self.options.device)

    def first(self, clips: dict[str, Path]) -> Tensor:
        """Returns the video of the first of several clips."""
        return self.read(next(iter(clips.values())))

    def t2v_velocity(self, context: Tensor | None = None, cfg: float = 1.0) -> Callable:
        """Returns (z_t, sigma) -> velocity of the text-to-video model, by default for the null prompt."""
        network = guided_network(self.t2v, cfg, context, like=self.null_context())
        return lambda z, sigma: network(z, None, sigma).to(z)

    def scaled_size(self, z_lr: Tensor) -> tuple[int, int]:
        """Returns the target size (H, W) of a low-resolution latent, in latent pixels."""
        height, width = z_lr.shape[3:]
        return scaled_size((height, width), self.options.scale)

    def super_resolve(self, z_lr: Tensor, sampling: SamplingConfig | None = None) -> Tensor:
        """Returns the latent (B, 16, T, H, W) that SimpleGVR makes for the null prompt.

        Args:
            z_lr: Low-resolution latent (B, 16, T, h, w).
            sampling: By default the checkpoint's recommended sampling.
        """
        seed = self.options.seed
        return super_resolve(
            self.dit,
            self.upsampler,
            z_lr,
            self.scaled_size(z_lr),
            sampling=sampling or self.sampling,
            seed=seed,
            noise_seed=seed + 1,
        )

    @torch.inference_mode()
    def sample_t2v(self, context: Tensor, seed: int, size: tuple[int, int]) -> Tensor:
        """Returns a latent (1, 16, T, *size) that the text-to-video model samples from noise.

        Args:
            context: Text features (1, S, text_dim).
            seed: Seed of the noise.
            size: (H, W) in latent pixels.
        """
        sampling, frames = self.options.t2v_sampling, latent_frames(self.options.num_frames)
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(1, LATENT_CHANNELS, frames, *size, generator=generator).to(self.options.device)
        velocity = self.t2v_velocity(context, sampling.cfg)
        return integrate(velocity, z, shifted_sigmas(sampling.steps, sampling.shift).to(z.device))

    def cascade(self) -> dict:
        """Returns {"videos": {prompt: {"seconds": {part: its seconds}}}}: videos sampled from text, end to end and cascaded.

        cascade_folder/PROMPT has low.mp4, end_to_end.mp4 and cascaded.mp4.
        """
        return self.computed_once("cascade", self.sample_cascade)

    def evaluation(self) -> dict:
        """Returns Evaluate's results of METHODS on the inputs, without absent baselines. Its files are in evaluation_folder."""
        methods = tuple(method for method in METHODS if method not in self.absent_baselines())
        shared = {name: getattr(self.options, name) for name in ("scale", "num_frames", "seed", "device", "vae", "upsampler", "model")}
        clips = next(iter(self.inputs.values())).parent if self.options.clips is None else self.options.clips
        return Evaluate(clips, self.evaluation_folder, methods, suite="aigc", **shared).run()

    def absent_baselines(self) -> dict[str, str]:
        """Returns the baselines of METHODS that were not fetched, and how to fetch them."""
        absent = {}
        for name in (name for name in METHODS if name in baselines.BASELINES):
            try:
                baselines.find(name)
            except FileNotFoundError as error:
                absent[name] = str(error)
        return absent

    def decoded(self, z: Tensor) -> Tensor:
        """Returns the video of a latent."""
        return self.vae.decode(z).clamp(-1, 1)

    def likeness(self, video: Tensor, original: Tensor) -> float:
        """Returns the PSNR of a clip in dB."""
        return mean_decibels(psnr(video, original))

    def sample_cascade(self, folder: Path) -> dict:
        """Writes cascade's videos and returns its result."""
        height, width = self.options.t2v_size
        low = height // SPATIAL_FACTOR, width // SPATIAL_FACTOR
        high, videos = scaled_size(low, self.options.scale), {}
        for name, prompt in self.prompts.items():
            z_lr, first = timed(partial(self.sample_t2v, *prompt, low))
            cascaded, second = timed(partial(self.super_resolve, z_lr))
            end_to_end, whole = timed(partial(self.sample_t2v, *prompt, high))
            for file, z in {"low": z_lr, "end_to_end": end_to_end, "cascaded": cascaded}.items():
                write_video(folder / name / f"{file}.mp4", to_images(self.vae.decode(z).cpu()), RATE)
            videos[name] = {"seconds": {"text to video, low": first, "SimpleGVR": second, "text to video, end to end": whole}}
        return {"videos": videos}


def timed(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """Returns the result of run and its seconds."""
    start = perf_counter()
    result = run()
    result.sum().item()  # waits for the device
    return result, perf_counter() - start
