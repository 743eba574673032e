"""A text-to-video workflow (API JSON) cut down to what makes the low-resolution latent, with other prompts and seeds.

A link is [node id, output]; everything else in a node's inputs is a value.
"""

import copy
import json
from collections.abc import Iterator

UPSCALERS = ("SimpleGVRSampler", "SimpleGVRLatentUpscale")  # what they take is the low-resolution latent
SEEDS = ("seed", "noise_seed")
LATENT, VIDEO = "save_latent", "save_video"  # ids of the nodes that save


class UnusableWorkflowError(ValueError):
    """The workflow cannot be used; the message says why and what to do."""


def base_workflow(workflow: dict, prefix: str) -> dict:
    """Returns the part of a workflow that makes its low-resolution latent, with nodes that save it and a video of it.

    That latent is what a SimpleGVR node upscales, else what is decoded. prefix: of the saved files. Raises UnusableWorkflowError.
    """
    if not isinstance(workflow, dict) or not all(map(is_node, workflow.values())):
        raise UnusableWorkflowError("it is not in API format: in ComfyUI, choose File > Export (API)")
    decoder = next((node for node in workflow.values() if {"samples", "vae"} <= links(node).keys()), None)
    if decoder is None:
        raise UnusableWorkflowError("it decodes no latent: add VAE Decode, whose VAE makes the previews")
    upscaler = next((node for node in workflow.values() if node["class_type"] in UPSCALERS), None)
    latent = links(upscaler).get("latent") if upscaler else decoder["inputs"]["samples"]
    if latent is None:
        raise UnusableWorkflowError(f"its {upscaler['class_type']} has no latent: connect one")
    rates = (node["inputs"]["fps"] for node in workflow.values() if node["class_type"] == "CreateVideo")
    kept = {id: workflow[id] for start in (latent, decoder["inputs"]["vae"]) for id in ancestors(workflow, start[0])}
    if not any(name in node["inputs"] for node in kept.values() for name in SEEDS):
        raise UnusableWorkflowError("nothing before its latent has a seed: it has no sampler, so all videos would be the same")
    return copy.deepcopy(kept) | {
        LATENT: made("SaveLatent", samples=latent, filename_prefix=prefix),
        "decode": made(decoder["class_type"], **decoder["inputs"] | {"samples": latent}),
        "video": made("CreateVideo", images=["decode", 0], fps=next(rates, 16.0)),
        VIDEO: made("SaveVideo", video=["video", 0], filename_prefix=prefix, format="mp4", codec="h264"),
    }


def made(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def links(node: dict) -> dict[str, list]:
    """Returns the inputs of a node that other nodes feed."""
    return {name: value for name, value in node["inputs"].items() if isinstance(value, list) and len(value) == 2}


def is_node(node: object) -> bool:
    return isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)


def ancestors(workflow: dict, id: str, without: tuple[str, ...] = ()) -> list[str]:
    """Returns the ids of a node and of all that feed it, in an order of their own; not along the inputs called without."""
    found, waiting = [], [id]
    while waiting:
        if (current := waiting.pop()) not in found:
            if current not in workflow:
                raise UnusableWorkflowError(f"it has a link from node {current!r}, which is not there: export it again")
            found.append(current)
            waiting += [link[0] for name, link in links(workflow[current]).items() if name not in without]
    return found


def prompt_nodes(workflow: dict) -> Iterator[dict]:
    """Yields the inputs of the nodes that hold the positive prompt of a base workflow; none where the model takes no text."""
    for id in ancestors(workflow, workflow[LATENT]["inputs"]["samples"][0], without=("negative",)):
        inputs = workflow[id]["inputs"]
        if isinstance(inputs.get("text"), str) and "clip" in inputs:
            yield inputs


def with_prompt(workflow: dict, prompt: str, seed: int) -> dict:
    """Returns a base workflow for another prompt and seed."""
    workflow = copy.deepcopy(workflow)
    for inputs in prompt_nodes(workflow):
        inputs["text"] = prompt
    for node in workflow.values():
        node["inputs"] |= {name: seed for name in SEEDS if isinstance(node["inputs"].get(name), int)}
    return workflow


def with_settings(workflow: dict, settings: list[str]) -> dict:
    """Returns a workflow with inputs changed. settings: "CLASS.input=value", the value JSON or plain text. Raises UnusableWorkflowError."""
    workflow = copy.deepcopy(workflow)
    for setting in settings:
        place, _, text = setting.partition("=")
        class_type, _, name = place.partition(".")
        nodes = [node for node in workflow.values() if node["class_type"] == class_type and name in node["inputs"]]
        if not nodes:
            there = sorted(
                f"{node['class_type']}.{name}" for node in workflow.values() for name in node["inputs"].keys() - links(node).keys()
            )
            raise UnusableWorkflowError(f"--set {setting} fits no node, wanted CLASS.input=value of {', '.join(there)}")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        for node in nodes:
            node["inputs"][name] = value
    return workflow
