"""Text features of captions: `simplegvr contexts --videos DIR --out captions --text-encoder Wan-AI/Wan2.1-T2V-1.3B-Diffusers`.

Captions are texts beside the videos, a table, or what a command of the user's prints for a video. umT5 encodes them, once for all
trainings. S text tokens
"""

import csv
import json
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from ..checks import check_folder
from ..files import read_json, write_text
from ..networks.layers import default_device
from ..planning.network_memory import TEXT_TOKENS
from ..sampling.context import INDEX, tensor_sha256, without_suffix
from ..video.read import VIDEO_SUFFIXES, find_videos
from .shards import read_metadata, read_shards, shard_name, write_shard

METADATA_KEY = "simplegvr_contexts"
NEGATIVE = "negative.safetensors"


@dataclass(frozen=True)
class BuildContexts:
    """Encodes the captions of a folder of video, or of a table. A killed run resumes when the same command is run again."""

    out: Path
    """Folder for the shards and their index, outside --videos."""
    videos: Path | None = None
    """Folder of video files, searched with its subfolders. A video's caption is the text VIDEO.txt beside it, unless --captions has it.
    Without it all captions of the table are encoded."""
    captions: Path | None = None
    """Table of captions: CSV with columns "video" and "caption", or JSON {video: caption}. Videos are paths in --videos."""
    captioner: str | None = None
    """Command that captions a video: its last argument is the video's path, what it prints is the caption. It is run for each video
    without a caption, and its captions are written beside the shards, as captions.json."""
    text_encoder: str = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    """umT5 as transformers saves it: a folder or a name on the model hub, with its tokenizer, or with both in subfolders text_encoder and
    tokenizer, as diffusers saves Wan."""
    negative: str | None = None
    """Negative prompt, whose features are written to negative.safetensors."""
    batch: int = 8
    """Captions that are encoded at once."""
    shard_contexts: int = 256
    """Most captions in a file. A killed run loses fewer than this many. It may change when a run is resumed."""
    device: str = default_device()
    """Device of umT5: cpu, cuda, cuda:1 and so on. On a CPU it computes in float32, elsewhere in bfloat16."""

    def run(self) -> dict:
        """Encodes the captions.

        Returns:
            {"out", "contexts": number, "captioned": number by --captioner, "tokens": longest, "cut": number longer than Wan's 512 tokens}.

        Raises:
            ValueError: Options do not go together, a video has no caption, the folder was begun with others, or features are not finite.
            OSError: A file cannot be read or written.
        """
        if self.videos is not None and self.out.resolve().is_relative_to(self.videos.resolve()):
            raise ValueError(f"--out {self.out} is inside --videos {self.videos}: choose a folder elsewhere")
        check_folder(self.out)
        given = self.given()
        own = self.own_captions(given)
        captions = {name: given.get(name) or own[name] for name in sorted(given.keys() | own.keys())}
        records = self.finished(captions)
        rest, negative = list(captions.items())[len(records) :], self.unfinished_negative()
        if rest or negative:
            encoder = TextEncoder(self.text_encoder, self.device)
            with tqdm(total=len(captions), initial=len(records), unit="caption", mininterval=1) as progress:
                for first in range(0, len(rest), self.shard_contexts):
                    records += self.write(rest[first : first + self.shard_contexts], records, encoder, progress)
            if negative:
                (context, _), *_ = encoder.encode([negative["negative"]], 1)
                write_shard(self.out / NEGATIVE, {"context": context}, METADATA_KEY, negative)
        write_text(self.out / INDEX, json.dumps({"text_encoder": self.text_encoder, "contexts": records}, indent=1, ensure_ascii=False))
        counts = {"tokens": max(record["tokens"] for record in records), "cut": sum(record["cut"] for record in records)}
        return {"out": str(self.out), "contexts": len(records), "captioned": len(own), **counts}

    def given(self) -> dict[str, str]:
        """Returns the captions of the table and of the texts beside the videos, by name. Raises ValueError without a source of captions."""
        table = {} if self.captions is None else read_table(self.captions)
        if self.videos is None:
            if not table:
                raise ValueError("no captions: give a folder of video with --videos, or a table with --captions")
            return table
        names = self.names(self.videos)
        if unknown := sorted(table.keys() - names.keys()):
            raise ValueError(f"--captions {self.captions} has {unknown[0]!r}, which is no video of {self.videos}: correct the table")
        texts = {name: path.with_suffix(".txt") for name, path in names.items()}
        return {name: read_caption(text) for name, text in texts.items() if text.is_file()} | table

    def names(self, videos: Path) -> dict[str, Path]:
        """Returns the videos of the folder by the names of their captions."""
        return {without_suffix(path.relative_to(videos).as_posix()): path for path in find_videos(videos)}

    def own_captions(self, given: dict[str, str]) -> dict[str, str]:
        """Returns captions of the videos that have none, by --captioner, and writes each to captions.json at once.

        Raises ValueError where a video has no caption, or --captioner fails.
        """
        lacking = {name: path for name, path in (self.names(self.videos) if self.videos else {}).items() if not given.get(name)}
        if empty := [name for name in given if not given[name] and name not in lacking]:
            raise ValueError(f"--captions {self.captions} has an empty caption of {empty[0]!r}: write one")
        if lacking and self.captioner is None:
            raise ValueError(
                f"{len(lacking)} videos of {self.videos} have no caption, such as {next(iter(lacking.values())).name}: write a text of the "
                "same name beside each, or give a table with --captions, or a command that captions with --captioner"
            )
        path = self.out / "captions.json"
        known = read_json(path, "delete it, and --captioner captions again") if path.exists() else {}
        for name, video in tqdm(lacking.items(), unit="video", desc="captioner", disable=not lacking, mininterval=1):
            if name not in known:
                known[name] = caption_of(video, self.captioner or "")
                write_text(path, json.dumps(known, indent=1, ensure_ascii=False))
        return {name: known[name] for name in lacking}

    def finished(self, captions: dict[str, str]) -> list[dict]:
        """Returns the records of the finished shards, up to a damaged or missing one; shards after it are removed.

        Raises ValueError when they are of other captions or another encoder.
        """
        records: list[dict] = []
        for metadata in read_shards(self.out, METADATA_KEY):
            assert isinstance(metadata, dict)  # write
            if metadata["text_encoder"] != self.text_encoder:
                raise ValueError(
                    f"{self.out} was begun with --text-encoder {metadata['text_encoder']}, now it is {self.text_encoder}: "
                    "give the same to resume, or choose another --out"
                )
            records += metadata["records"]
        before = [(record["name"], record["caption"]) for record in records]
        for (name, caption), now in zip(before, captions.items(), strict=False):
            if (name, caption) != now:
                raise ValueError(f"{self.out} was begun with other captions, such as that of {name!r}: choose another --out")
        if len(before) > len(captions):
            raise ValueError(f"{self.out} has {len(before)} captions, now there are {len(captions)}: choose another --out")
        kept = {record["shard"] for record in records}
        for path in self.out.glob("shard_*.safetensors"):
            if path.name not in kept:
                path.unlink()
        return records

    def unfinished_negative(self) -> dict[str, str]:
        """Returns encoder and negative prompt of a negative.safetensors that is yet to be written, {} where there is none."""
        if self.negative is None:
            return {}
        wanted, path = {"text_encoder": self.text_encoder, "negative": clean(self.negative)}, self.out / NEGATIVE
        try:
            return {} if read_metadata(path, METADATA_KEY) == wanted else wanted
        except (FileNotFoundError, ValueError):
            return wanted

    def write(self, captions: list[tuple[str, str]], before: list[dict], encoder: "TextEncoder", progress: tqdm) -> list[dict]:
        """Writes a shard and returns the records of its captions, whose numbers follow those of the shards before. Raises ValueError."""
        shard, tensors, records = shard_name(len({record["shard"] for record in before})), {}, []
        encoded = encoder.encode([caption for _, caption in captions], self.batch)
        for number, ((name, caption), (context, is_cut)) in enumerate(zip(captions, encoded, strict=True), len(before)):
            if not context.isfinite().all():
                raise ValueError(f"--text-encoder {self.text_encoder} gives features of {name!r} that are not finite: get its files again")
            tensors[f"{number:05d}.context"] = context
            about = {"tokens": len(context), "cut": is_cut, "sha256": tensor_sha256(context)}
            records.append({"id": number, "shard": shard, "name": name, "caption": caption, **about})
            progress.update()
        write_shard(self.out / shard, tensors, METADATA_KEY, {"text_encoder": self.text_encoder, "records": records})
        return records


class TextEncoder:
    """umT5 with its tokenizer, by transformers."""

    def __init__(self, source: str, device: str):
        """Loads both.

        Args:
            source: Folder or name on the model hub.
            device: Device of umT5.

        Raises:
            ValueError: There is no umT5 with a tokenizer.
        """
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        try:
            model, self.tokenizer = (load_umt5 if Path(source).is_dir() else load_from_hub)(source, dtype)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"--text-encoder {source} cannot be loaded ({error}): give a folder of umT5, or a hub name that is in the hub's cache "
                "or that the network reaches"
            ) from error
        self.model, self.device = model.eval().to(device), device

    @torch.inference_mode()
    def encode(self, captions: Sequence[str], batch: int) -> Iterator[tuple[Tensor, bool]]:
        """Yields the features (S, text_dim) of each caption, float16, and whether it was cut at Wan's number of tokens.

        Args:
            captions: The captions.
            batch: Captions that are encoded at once.
        """
        for first in range(0, len(captions), batch):
            texts = list(captions[first : first + batch])
            lengths = [len(ids) for ids in self.tokenizer(texts)["input_ids"]]
            tokens = self.tokenizer(texts, max_length=TEXT_TOKENS, truncation=True, padding=True, return_tensors="pt").to(self.device)
            features = self.model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
            for each, mask, length in zip(features, tokens["attention_mask"], lengths, strict=True):
                yield each[mask.bool()].half().cpu(), length > TEXT_TOKENS


def load_from_hub(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Returns load_umt5's pair for a name on the model hub: from its cache, and by the network only where that has not all files."""
    from huggingface_hub import snapshot_download

    try:
        return load_umt5(snapshot_download(name, local_files_only=True), dtype)
    except (OSError, ValueError):
        return load_umt5(name, dtype)


def load_umt5(source: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Returns umT5 and its tokenizer.

    Args:
        source: Folder, or name on the model hub.
        dtype: Data type of umT5.

    Raises:
        OSError: They are not there, or the network cannot be reached.
        ValueError: They are of another kind, or the name is none of the hub.
    """
    from transformers import AutoTokenizer, UMT5EncoderModel  # takes seconds, which --help need not

    parts = ("text_encoder", "tokenizer") if has_parts(source) else ("", "")
    model = UMT5EncoderModel.from_pretrained(source, subfolder=parts[0], dtype=dtype)
    return model, AutoTokenizer.from_pretrained(source, subfolder=parts[1])


def has_parts(source: str) -> bool:
    """Returns whether umT5 and its tokenizer are subfolders of a folder, or of a repository of the model hub."""
    if Path(source).is_dir():
        return (Path(source) / "text_encoder").is_dir()
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        hf_hub_download(source, "text_encoder/config.json")
    except LocalEntryNotFoundError:  # without a network
        raise
    except EntryNotFoundError:
        return False
    return True


def read_caption(path: Path) -> str:
    """Returns the caption in a text file. Raises ValueError when it is no text."""
    try:
        return clean(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from error


def read_table(path: Path) -> dict[str, str]:
    """Returns the captions of a table, by the names of their videos. Raises ValueError when it is none."""
    wanted = 'wanted CSV with columns "video" and "caption", or JSON {video: caption}'
    try:
        if path.suffix.lower() == ".json":
            rows = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(rows, dict) or not all(isinstance(caption, str) for caption in rows.values()):
                raise ValueError("it is no table of texts")
        else:
            with path.open(encoding="utf-8", newline="") as file:
                rows = {row["video"]: row["caption"] for row in csv.DictReader(file)}
    except (ValueError, KeyError) as error:
        raise ValueError(f"--captions {path} cannot be read ({error!r}): {wanted}") from error
    return {table_name(video): clean(caption or "") for video, caption in rows.items()}


def table_name(video: str) -> str:
    """Returns the name of a video that a table may give with its suffix or without."""
    return without_suffix(video) if PurePath(video).suffix.lower() in VIDEO_SUFFIXES else video


def clean(caption: str) -> str:
    """Returns a caption on one line, as Wan was trained."""
    return " ".join(caption.split())


def caption_of(video: Path, captioner: str) -> str:
    """Returns what a command prints for a video. Raises ValueError when it fails or prints nothing."""
    command = [*shlex.split(captioner), str(video)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    except OSError as error:
        raise ValueError(f"--captioner {captioner!r} cannot be run ({error.strerror}): give a command and its options") from error
    caption = clean(done.stdout)
    if done.returncode or not caption:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"--captioner {captioner!r} gave no caption of {video} (exit status {done.returncode}: {last}): mend the command")
    return caption


def main(arguments: Sequence[str]) -> dict:
    """Encodes captions as the command line asks and returns BuildContexts.run's summary."""
    return tyro.cli(BuildContexts, prog="simplegvr contexts", args=arguments).run()
