"""Whose weights a MODEL and an upsampler are, and what is said of a pair: in the report of SimpleGVR Sampler and in the log."""

import re
from pathlib import Path

from comfy.model_patcher import ModelPatcher

ORIGIN = "simplegvr_origin"  # key of a patcher's attachment: {"family", "source", "assumed", "file"}
SCALES = {"1K": 2, "2K": 3}  # of Ultra Flash's transformers, by the beginning of their published names: nothing in the weights says it
NO_PROMPT = {  # by family
    "Ultra Flash": "Warning: no prompt is connected, and Ultra Flash's model was distilled with prompts only. "
    "Connect the positive prompt of the video's own sampler.",
    "control LoRA": "Warning: no prompt is connected, and neither Wan nor its control LoRA was trained with the null prompt. "
    "Connect the positive and negative prompt of the video's own sampler.",
}


def set_origin(patcher: ModelPatcher, config: dict, path: str) -> None:
    """Notes on a loaded network whose weights it has. config: of its checkpoint."""
    patcher.set_attachments(ORIGIN, {"family": "SimpleGVR", "assumed": False} | config.get("origin", {}) | {"file": Path(path).name})


def origin_of(patcher: ModelPatcher) -> dict | None:
    """Returns what set_origin noted; None for a network that a stock node loaded."""
    return patcher.get_attachment(ORIGIN)


def describe_weights(model: ModelPatcher, upsampler: ModelPatcher) -> str:
    """Returns in a sentence whose weights a pair has."""
    parts = []
    for patcher, name in ((model, "model"), (upsampler, "upsampler")):
        if (origin := origin_of(patcher)) is None:
            continue
        assumed = ", its family assumed from its shapes" if origin["assumed"] else ""
        parts.append(f"{name} {origin['file']} ({origin['family']}{assumed})")
    return f"Weights: {', '.join(parts)}."


def is_null(prompt: list | None) -> bool:
    """Returns whether a CONDITIONING is missing or the null prompt, of zeros."""
    return prompt is None or not any(text.any() for text, _ in prompt)


def pair_warnings(model: ModelPatcher, upsampler: ModelPatcher, positive: list | None) -> list[str]:
    """Returns what is wrong with a pair and its prompt, as sentences with the cure."""
    ours, theirs = origin_of(model), origin_of(upsampler)
    if ours is None or theirs is None:
        return []
    found = [NO_PROMPT[ours["family"]]] if ours["family"] in NO_PROMPT and is_null(positive) else []
    families, scale = {ours["family"], theirs["family"]}, upsampler.model.config.scale
    trained = SCALES.get(re.split(r"[-_ .]", ours.get("source", ours["file"]))[0])
    if len(families) > 1 and "Ultra Flash" in families:
        found.append(
            f"Warning: the model is of family {ours['family']}, the upsampler of {theirs['family']}: they were not trained together. "
            "Load the upsampler that was published with the model."
        )
    elif ours["family"] == "Ultra Flash" and trained and trained != scale:
        found.append(
            f"Warning: {ours.get('source', ours['file'])} was trained for scale {trained}, but the upsampler enlarges {scale} times. "
            "Load the model and the upsampler of the same scale: 1K files are for scale 2, 2K files for scale 3."
        )
    return found
