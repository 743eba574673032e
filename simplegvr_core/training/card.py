"""The model card of an exported model, in Markdown with a model hub's header, filled from the checkpoints' metadata."""

import json
from dataclasses import dataclass
from pathlib import Path

PAPER = "[SimpleGVR: A Simple Baseline for Latent-Cascaded Generative Video Super-Resolution](https://arxiv.org/abs/2506.19838)"
KINDS = {"dit": "transformer", "upsampler": "latent upsampler", "lora": "LoRA"}
AUTOENCODERS = {"wan": "Wan 2.1's (also Wan 2.2 14B's), 16 channels", "tiny_vae": "TinyVAE's, the pack's small autoencoder"}
HIDDEN = ("preview", "kind", "model", "attention", "sampling", "trained")


@dataclass(frozen=True)
class Released:
    """A checkpoint that is exported.

    Attributes:
        kind: "dit", "upsampler" or "lora".
        source: Its file.
        config: Its configuration.
        parameters: Number of its parameters.
        size: Of its file, in words.
        folder: Of ComfyUI's models that it belongs to.
    """

    kind: str
    source: Path
    config: dict
    parameters: int
    size: str
    folder: str


def model_card(
    name: str,
    files: dict[str, Released],
    *,
    license: str,
    base_model: str | None,
    data: str | None,
    sums: dict[str, str],
    lora_base: tuple[str, str] | None,
) -> str:
    """Returns the card.

    Args:
        name: Of the model.
        files: The checkpoints by the names of their files.
        license: As the hub abbreviates it.
        base_model: Model on the hub that the training started from.
        data: A sentence on the training data.
        sums: Checksums by file.
        lora_base: File name and checksum of the transformer that a LoRA is for.
    """
    main, *_ = files.values()
    header = [f"license: {license}", "pipeline_tag: video-to-video", "library_name: simplegvr"]
    header += ["tags: [simplegvr, comfyui, video-super-resolution]", *([f"base_model: {base_model}"] if base_model else [])]
    rows = [
        f"| `{file}` | {KINDS[net.kind]} | {millions(net.parameters)} | {net.size} | `models/{net.folder}` |" for file, net in files.items()
    ]
    parts = [
        "---\n" + "\n".join(header) + "\n---",
        f"# {name}",
        f"Video super-resolution in latent space by {PAPER}, for ComfyUI with the node pack ComfyUI-SimpleGVR.",
        "| file | network | parameters | size | folder of ComfyUI |\n|---|---|---|---|---|\n" + "\n".join(rows),
    ]
    if lora_base:
        parts.append(f"The LoRA is for the transformer `{lora_base[0]}`, sha256 `{lora_base[1]}`.")
    parts += [
        "## Use",
        "Put each file into its folder, drop `workflow.json` onto ComfyUI's page and press Run. *SimpleGVR Sampler* reads the settings "
        "below from the metadata (`settings` *recommended*).",
    ]
    for title, network, section in sections(files):
        parts += [f"## {title}", table(network.config[section])]
    upsampler = next((net for net in files.values() if net.kind == "upsampler"), None)
    if upsampler:
        latents = upsampler.config["model"].get("latents", "wan")
        parts.append(f"Latents: {AUTOENCODERS.get(latents, latents)}.")
    if other := {key: value for key, value in main.config.items() if key not in HIDDEN}:
        parts += ["## Other metadata", table(other)]
    parts += ["## Training data", data or "The author of this card gave no description of the training data."]
    parts += ["## Checksums", "`sha256sum -c sha256sums.txt` checks all files.\n\n" + table(sums)]
    return "\n\n".join(parts) + "\n"


def sections(files: dict[str, Released]) -> list[tuple[str, Released, str]]:
    """Returns title, checkpoint and part of its configuration of the card's tables, as far as the checkpoints have them."""
    titles = {"sampling": "Sampling", "model": "Sizes", "attention": "Attention", "trained": "Training"}
    return [
        (title if network.kind != "upsampler" else "Upsampler", network, section)
        for network in files.values()
        for section, title in titles.items()
        if network.config.get(section)
    ]


def table(values: dict) -> str:
    """Returns a table of names and values; tables within are flat, and a curve is only named."""
    rows = [f"| {key} | {value} |" for key, value in flat(values)]
    return "| | |\n|---|---|\n" + "\n".join(rows)


def flat(values: dict, prefix: str = "") -> list[tuple[str, str]]:
    """Returns the values as texts, those of tables within by NAME.KEY."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if key == "curve":
            rows.append((prefix + key, "uniform density" if value is None else "detail-aware density, in the metadata"))
        elif isinstance(value, dict):
            rows += flat(value, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, f"`{value if isinstance(value, str) else json.dumps(value)}`"))
    return rows


def millions(parameters: int) -> str:
    return f"{parameters / 1e6:,.2f} M"
