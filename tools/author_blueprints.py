"""Writes subgraphs/*.json, the pack's subgraph blueprints, from parts of workflows/api/*.json, through ComfyUI's own front end.

`python3 scripts/run.py tools/author_blueprints.py`, after a change to one of those workflows or to a node's inputs.
"""

import json
import urllib.parse
from dataclasses import dataclass, field

from author_workflows import authoring, identify
from comfyui import REPO, say


@dataclass(frozen=True)
class Blueprint:
    """Nodes of a workflow that become one, and what shows outside: their links that are cut, and the widgets and outputs named here.

    widgets, outputs: the name outside -> (node, input or output). values: (node, input) -> what is in it instead of the workflow's.
    """

    description: str
    workflow: str
    nodes: tuple[str, ...]
    widgets: dict[str, tuple[str, str]]
    outputs: dict[str, tuple[str, str]]
    values: dict[tuple[str, str], str] = field(default_factory=dict)


BLUEPRINTS = {
    "Latent upscale to 1080p (SimpleGVR)": Blueprint(
        "The LATENT of a text-to-video sampler, super-resolved by SimpleGVR; nothing is decoded in between. Choose a model that was "
        "trained on your VAE's latents: gvr_tiny is for those of TinyVAE. Prompts may be left open.",
        "wan21_t2v_to_1080p",
        ("10", "11", "12"),
        {"model": ("10", "model_name"), "upsampler": ("11", "model_name"), "size": ("12", "size.preset"), "seed": ("12", "seed")},
        {"report": ("12", "report")},
        {("10", "model_name"): "gvr_tiny.safetensors", ("11", "model_name"): "gvr_tiny_upsampler.safetensors"},
    ),
    "Training-free refine (Wan)": Blueprint(
        "The LATENT of a Wan 2.1 sampler, upsampled, noised to denoise and refined by the same model with sparse attention. It needs no "
        "SimpleGVR weights, and is not the trained SimpleGVR: expect less detail and more change. Connect the sampler's model and prompts.",
        "wan21_training_free_1080p",
        ("10", "11", "12"),
        {
            "size": ("12", "size.preset"),
            "denoise": ("12", "settings.denoise"),
            "steps": ("12", "settings.steps"),
            "cfg": ("12", "settings.cfg"),
            "seed": ("12", "seed"),
        },
        {"report": ("12", "report")},
    ),
}


def author(page, name: str, blueprint: Blueprint) -> str:
    """Returns the blueprint's JSON, as the front end publishes it."""
    api = json.loads((REPO / "workflows" / "api" / f"{blueprint.workflow}.json").read_text())
    for (node, widget), value in blueprint.values.items():
        api[node]["inputs"][widget] = value
    page.evaluate(
        """async ([api, name, description, nodes, widgets, outputs]) => {
            await app.loadApiJson(api, name)
            for (const node of app.graph._nodes) {
                for (const widget of node.widgets ?? []) if (widget.name === 'control_after_generate') widget.value = 'fixed'
            }
            const inner = app.graph._nodes.filter(node => nodes.includes(String(node.id)))
            const { subgraph, node } = app.graph.convertToSubgraph(new Set(inner))
            subgraph.arrange()
            for (const input of subgraph.inputs.filter(input => input.name in widgets)) subgraph.removeInput(input)
            const slot = ([id, name], side) => {
                const inside = subgraph.getNodeById(id)
                return [inside[side].find(slot => slot.name === name), inside]
            }
            for (const [name, where] of Object.entries(widgets)) {
                const [input, inside] = slot(where, 'inputs')
                subgraph.addInput(name, input.type).connect(input, inside)
            }
            for (const [name, where] of Object.entries(outputs)) {
                const [output, inside] = slot(where, 'outputs')
                subgraph.addOutput(name, output.type).connect(output, inside)
            }
            Object.assign(subgraph, { name, description })
            node.title = name
            node.setSize(node.computeSize())
            app.canvas.deselectAll()
            app.canvas.select(node)
            await app.extensionManager.command.execute('Comfy.PublishSubgraph', { metadata: { name } })
        }""",
        [api, name, blueprint.description, blueprint.nodes, blueprint.widgets, blueprint.outputs],
    )
    file = urllib.parse.quote(f"subgraphs/{name}.json", "")
    return page.evaluate("file => fetch('api/userdata/' + file).then(answer => answer.text())", file)


def main() -> None:
    (REPO / "subgraphs").mkdir(exist_ok=True)
    with authoring() as (page, _):
        for name, blueprint in BLUEPRINTS.items():
            say(f"authoring {name}")
            published = json.loads(author(page, name, blueprint))
            published["definitions"]["subgraphs"][0]["category"] = "SimpleGVR"  # which publishing leaves out
            (REPO / "subgraphs" / f"{name}.json").write_text(json.dumps(identify(published), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
