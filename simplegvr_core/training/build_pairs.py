"""Latent pairs for training: `simplegvr pairs --videos DIR --vae FILE --out DIR --recipe classical`.

A folder of video is cut into clips, filters drop some, a recipe degrades the others, and the autoencoder encodes both. Every clip
has a seed of its own, so neither order nor number of processes changes a pair. The metadata of every shard has the records of
the clips up to its last pair, so a killed run resumes after it.

F video frames, T latent frames, S text tokens; h, w low-resolution latent pixels, H = scale h, W = scale w; latents are normalised
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Literal

import torch
import tyro
from tqdm import tqdm

from ..checks import check_folder
from ..degradations import RECIPES, Recipe
from ..files import read_json, read_result, sha256, write_text
from ..latent_space import LATENT_CHANNELS, SPATIAL_FACTOR, latent_frames
from ..networks import checkpoint
from ..networks.attention import AttentionConfig
from ..networks.dit import SimpleGVRDiT, read_dit
from ..networks.layers import default_device
from ..networks.tiny_vae import TinyVAE
from ..networks.wan_vae import WanVAE, load_vae
from ..planning.network_memory import TEXT_TOKENS
from ..sampling.context import Contexts, read_context
from ..video.frames import limit_height
from ..video.read import read_frames
from .clips import ClipReader, Survey, survey
from .filters import Drop, FilterConfig, load_musiq
from .pair_maker import Base, Made, PairMaker, Worker, fractions, timed
from .pairs_on_cluster import make_on_cluster
from .shards import read_shards, shard_name, write_shard
from .throughput import Throughput

METADATA_KEY = "simplegvr_pairs"
WAN_CFG = 5.0  # of Wan 2.1's own script


@dataclass(frozen=True)
class BuildPairs:
    """Builds latent pairs of a folder of video. A killed run resumes when the same command is run again."""

    videos: Path
    """Folder of video files, searched with its subfolders."""
    vae: Path
    """TinyVAE, or the stock wan_2.1_vae.safetensors (needs diffusers)."""
    out: Path
    """Folder for the shards and their index, outside --videos."""
    recipe: Literal[tuple(RECIPES)] = "classical"  # pyright: ignore[reportInvalidTypeForm]: names from the table
    """Degradation of the low resolution."""
    t2v: Path | None = None
    """Text-to-video model of --vae's latents for model-guided recipes: stock Wan 2.1, or one of ours with 16 input channels."""
    num_frames: int = 17
    """Video frames of a clip, 4 n + 1."""
    spacing: int | None = None
    """Video frames from the start of a clip to that of the next; by default those of a clip."""
    height: int = 1080
    """Height in pixels to which taller video is reduced by area averaging."""
    contexts: Path | None = None
    """Folder of text features, as `simplegvr contexts` writes it, or with a file VIDEO.safetensors for each video, tensor "context"
    (S, text_dim), for --t2v. Stock Wan needs it; ours has the null prompt without it."""
    negative: Path | None = None
    """Safetensors file, tensor "context": the text encoder's features of the negative prompt. Stock Wan needs it where --cfg is not 1."""
    cfg: float | None = None
    """Guidance scale of --t2v; by default 5 for stock Wan, 1 for ours."""
    t2v_steps: int | None = None
    """Steps of --t2v from alpha to 0; by default those of the recipe."""
    t2v_shift: float | None = None
    """Shift of the noise levels of --t2v; by default that of the recipe."""
    scales: tuple[int, ...] = ()
    """Whole scales, of which each clip gets one at random. Without them scales are fractional, in --scale-range."""
    scale_range: tuple[float, float] = (1.5, 4.0)
    """Smallest and largest fractional scale. Each clip gets one of the fractions between them with a denominator of at most 6."""
    filters: FilterConfig = FilterConfig()
    """Limits that a clip must meet."""
    shard_pairs: int = 64
    """Pairs in a file. A killed run loses fewer than this many."""
    seed: int = 0
    """Seed of all randomness."""
    device: str = default_device()
    """Device of the networks: cpu, cuda, cuda:1 and so on."""
    workers: int | None = None
    """Number of processes, by ray; without it and --ray, this process makes the pairs."""
    ray: str | None = None
    """Address of a ray cluster, or "local" to start one on this machine."""

    def run(self) -> dict:
        """Builds the pairs.

        Returns:
            {"out", "clips", "pairs", "dropped": {reason: number}, "skipped": {reason: number}, "musiq"}.

        Raises:
            ValueError: Options do not go together, the folder was begun with others, or no clip became a pair.
            OSError: --out cannot be written, or has no room for a shard.
            ImportError: --workers or --ray is given and ray is not installed.
        """
        self.check()
        found = survey(self.videos, self.num_frames)
        musiq, musiq_note = load_musiq()
        maker = PairMaker(self.chosen_recipe, self.all_scales, self.filters, self.seed, self.device, *self.load_models(), musiq)
        starts = found.starts(self.num_frames, self.distance)
        self.check_room(starts)
        self.begin(found, musiq_note)
        records = read_records(self.out)
        reader, left = ClipReader(self.videos, self.num_frames, self.height), starts[len(records) :]
        with one_thread(), tqdm(total=len(starts), initial=len(records), unit="clip", mininterval=1) as progress:
            alone = not left or (self.workers is None and self.ray is None)
            made = make_here(maker, reader, left) if alone else make_on_cluster(maker, reader, left, self.workers, self.ray or "local")
            throughput = self.write_shards(starts, made, records, progress)
        return self.finish(found, records, musiq_note, throughput)

    def check(self) -> None:
        """Raises ValueError for options that do not go together, OSError unless --out can be written."""
        if self.num_frames % 4 != 1:
            raise ValueError(f"--num-frames is {self.num_frames}, wanted 4 times a number of latent frames plus 1: 17 or 77, for example")
        if self.distance < self.num_frames:
            raise ValueError(f"--spacing is {self.distance} frames, wanted at least the {self.num_frames} of a clip")
        if self.out.resolve().is_relative_to(self.videos.resolve()):
            raise ValueError(f"--out {self.out} is inside --videos {self.videos}: choose a folder elsewhere")
        if not self.scales and not fractions(*self.scale_range):
            raise ValueError(f"--scale-range is {self.scale_range}, wanted the smallest and the largest scale, such as 1.5 4")
        if min((*self.scales, 1)) < 1 or min((*self.scale_range, 1)) < 1:
            raise ValueError(f"--scales {self.scales} and --scale-range {self.scale_range}: wanted scales of at least 1")
        if RECIPES[self.recipe].model_guided and self.t2v is None:
            raise ValueError(f"recipe {self.recipe!r} is made by a text-to-video model: give its checkpoint with --t2v")
        if self.chosen_recipe.model_guided and self.is_stock and (self.contexts is None or (self.negative is None and self.guidance != 1)):
            raise ValueError(
                f"--t2v {self.t2v} is a stock Wan model, which is not trained with the null prompt: give the text features of each video's "
                "caption with --contexts, and those of the negative prompt with --negative or --cfg 1"
            )
        check_folder(self.out)

    def check_room(self, starts: list[tuple[str, int]]) -> None:
        """Raises OSError unless a shard fits --out. How many of the clips become pairs is not known before they are judged."""
        if not starts:
            return
        (name, _), pairs = starts[0], min(self.shard_pairs, len(starts))
        *size, _ = limit_height(next(read_frames(self.videos / name)), self.height).shape
        smallest = min(prod(side // scale.numerator // SPATIAL_FACTOR * scale.numerator for side in size) for scale in self.all_scales)
        nbytes = pairs * torch.float16.itemsize * LATENT_CHANNELS * latent_frames(self.num_frames) * smallest
        check_folder(self.out, nbytes, f"a shard of {pairs} pairs of the size of {name}")

    @property
    def all_scales(self) -> list[Fraction]:
        return [Fraction(scale) for scale in self.scales] or fractions(*self.scale_range)

    @property
    def distance(self) -> int:
        """Video frames from the start of a clip to that of the next."""
        return self.num_frames if self.spacing is None else self.spacing

    @property
    def is_stock(self) -> bool:
        return self.t2v is not None and not checkpoint.is_ours(self.t2v)

    @property
    def guidance(self) -> float:
        return self.cfg if self.cfg is not None else (WAN_CFG if self.is_stock else 1.0)

    @property
    def chosen_recipe(self) -> Recipe:
        """The recipe, with the steps and the shift asked for."""
        recipe = RECIPES[self.recipe]
        if recipe.model_guided is None:
            return recipe
        steps, shift = self.t2v_steps or recipe.model_guided.steps, self.t2v_shift or recipe.model_guided.shift
        return replace(recipe, model_guided=replace(recipe.model_guided, steps=steps, shift=shift))

    def base_settings(self) -> dict:
        """Returns what the metadata of a shard says about the text-to-video model; {} for a recipe without one."""
        config = self.chosen_recipe.model_guided
        if config is None or self.t2v is None:
            return {}
        prompts = {"prompts": "captions" if self.contexts else "null", "negative": "given" if self.negative else "null"}
        settings = {"t2v": self.t2v.name, "sha256": sha256(self.t2v), "stock": self.is_stock, "cfg": self.guidance}
        return settings | prompts | asdict(config)

    def load_models(self) -> tuple[TinyVAE | WanVAE, Base | None]:
        vae = load_vae(self.vae)
        if not RECIPES[self.recipe].model_guided:
            return vae, None
        assert self.t2v is not None  # check saw to it
        config, weights = read_dit(self.t2v)
        t2v = SimpleGVRDiT(config, AttentionConfig(kind="full", unit=None)).eval()
        checkpoint.load_strict(t2v, weights, self.t2v)
        if t2v.config.in_dim != LATENT_CHANNELS:
            raise ValueError(f"--t2v {self.t2v} takes {t2v.config.in_dim} channels, a text-to-video model {LATENT_CHANNELS}")
        negative = None if self.negative is None else read_context(self.negative, t2v.config.text_dim)
        return vae, Base(t2v, self.contexts and Contexts(self.contexts), negative, self.guidance, TEXT_TOKENS if self.is_stock else 0)

    def begin(self, found: Survey, musiq_note: str) -> None:
        """Writes the options to build.json. Raises ValueError when the folder was begun with others."""
        options = {key: value for key, value in asdict(self).items() if key not in ("videos", "out", "workers", "ray")}
        options |= {
            "spacing": self.distance,
            "videos": {name: f"{length} frames" for name, length in found.lengths.items()},
            "musiq": musiq_note,
        }
        options |= {"recipe_numbers": asdict(self.chosen_recipe)}
        files = {name: sha256(path) for name in ("vae", "t2v", "negative") if (path := getattr(self, name))}
        options = flatten(json.loads(json.dumps(options | files, default=str)))
        path = self.out / "build.json"
        if not path.exists():
            write_text(path, json.dumps(options, indent=1))
            return
        begun = read_json(path, f"delete it if the options are those that {self.out} was begun with, else choose another --out")
        for key in sorted(options.keys() | begun.keys()):
            if options.get(key) != begun.get(key):
                raise ValueError(
                    f"{self.out} was begun with {key} = {begun.get(key)}, now it is {options.get(key)}: "
                    "give the same to resume, or choose another --out"
                )

    def write_shards(self, starts: list[tuple[str, int]], made: Iterator[Made], records: list[dict], progress: tqdm) -> dict | None:
        """Appends a record of each clip to records, and writes the pairs, shard by shard. Returns Throughput.report."""
        saved, tensors, number = len(records), {}, sum("id" in record for record in records)
        base, throughput = self.base_settings(), Throughput()
        for (video, frame), one in zip(starts[saved:], made, strict=True):
            outcome = one.outcome
            throughput.count(one)
            record, shard = {"video": video, "frame": frame}, shard_name(number // self.shard_pairs)
            if isinstance(outcome, Drop):
                records.append(record | asdict(outcome))
            else:
                scale = outcome.scale.numerator if outcome.scale.denominator == 1 else float(outcome.scale)
                noised = {} if outcome.alpha is None else {"alpha": outcome.alpha}
                records.append({"id": number, "shard": shard, **record, "scale": scale, **noised})
                tensors |= {f"{number:05d}.z_lr": outcome.z_lr, f"{number:05d}.z_hr": outcome.z_hr}
                number += 1
            progress.update()
            if tensors and (number % self.shard_pairs == 0 or len(records) == len(starts)):
                metadata = {"base": base, "records": records[saved:]} if base else records[saved:]
                write_shard(self.out / shard, tensors, METADATA_KEY, metadata)
                saved, tensors = len(records), {}
        return throughput.report()

    def finish(self, found: Survey, records: list[dict], musiq_note: str, throughput: dict | None) -> dict:
        """Writes pairs.json and report.json and returns run's summary. Raises ValueError when there is no pair."""
        pairs = [record for record in records if "id" in record]
        drops = [record for record in records if "id" not in record]
        summary = {
            "out": str(self.out),
            "clips": len(records),
            "pairs": len(pairs),
            "dropped": dict(Counter(record["reason"] for record in drops)),
            "skipped": dict(Counter(drop.reason for drop in found.skipped.values())),
            "musiq": musiq_note,
        }
        path = self.out / "report.json"
        skipped = {name: asdict(drop) for name, drop in found.skipped.items()}
        report = summary | {"skipped_files": skipped, "dropped_clips": drops, "notes": found.notes}
        report["throughput"] = throughput or read_result(path).get("throughput")  # where nothing was left to do, of the build before
        write_text(path, json.dumps(report, indent=1))
        if not pairs:
            raise ValueError(f"no clip of {self.videos} became a pair: {path} has the reason of each ({summary})")
        index = {"recipe": self.recipe, "num_frames": self.num_frames, "pairs": pairs}
        write_text(self.out / "pairs.json", json.dumps(index, indent=1))
        return summary


def make_here(maker: PairMaker, reader: ClipReader, starts: list[tuple[str, int]]) -> Iterator[Made]:
    """Yields what becomes of each clip, in order, in this process. Arguments as of make_on_cluster."""
    worker = Worker(maker)
    return (worker.make(*clip) for clip in timed(reader.read(starts)))


def flatten(options: dict, prefix: str = "") -> dict:
    """Returns nested options as one level: {"filters": {"min_luma": 25}} becomes {"filters.min_luma": 25}."""
    flat = {}
    for key, value in options.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def read_records(folder: Path) -> list[dict]:
    """Returns the records of all clips up to the last pair of the folder's shards, in order."""
    shards = read_shards(folder, METADATA_KEY)
    return [record for metadata in shards for record in (metadata["records"] if isinstance(metadata, dict) else metadata)]


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs the block on one thread. Sums split among threads round differently; on one thread every machine gives the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def print_summary(summary: dict) -> None:
    """Prints the numbers of pairs, of dropped clips and of skipped files."""
    print(f"{summary['pairs']} pairs of {summary['clips']} clips in {summary['out']}")
    for what in ("dropped", "skipped"):
        for reason, number in sorted(summary[what].items()):
            print(f"  {number} {'clips' if what == 'dropped' else 'files'} {what}: {reason}")
    print(f"  MUSIQ {summary['musiq']}")


def main(arguments: Sequence[str]) -> dict:
    """Builds pairs as the command line asks and returns BuildPairs.run's summary."""
    summary = tyro.cli(BuildPairs, prog="simplegvr pairs", args=arguments).run()
    print_summary(summary)
    return summary
