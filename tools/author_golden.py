"""Writes tests/golden/object_info.json: the ids, inputs and outputs of the nodes, which saved workflows hold on to.

`python3 scripts/run.py tools/author_golden.py`, after a change to them that is meant.
"""

import json
import sys
import tempfile
import urllib.request
from pathlib import Path

from comfyui import REPO, SetupError, server

GOLDEN = REPO / "tests" / "golden" / "object_info.json"
HELD = ("default", "min", "max", "step", "round", "options", "multiselect", "multiline", "forceInput", "control_after_generate")


def interface(object_info: dict) -> dict:
    """Returns, of a server's /object_info, what workflows hold on to, of this pack's nodes: inputs in the order of their widgets."""
    nodes = {id: node for id, node in sorted(object_info.items()) if id.startswith("SimpleGVR")}
    return {
        id: {
            "inputs": inputs(node["input"]),
            "outputs": [list(output) for output in zip(node["output"], node["output_name"], node["output_is_list"], strict=True)],
            "output_node": node["output_node"],
        }
        for id, node in nodes.items()
    }


def inputs(groups: dict) -> list[dict]:
    """Returns the inputs of a node, or of an option of one of its inputs. Files of the machine are left out of lists."""
    listed = []
    for group in ("required", "optional"):
        for name, (kind, options) in groups.get(group, {}).items():
            described = {"name": name, "type": kind, "optional": group == "optional"}
            described |= {key: options[key] for key in HELD if key in options}
            if "options" in described:
                described["options"] = [
                    {"key": option["key"], "inputs": inputs(option["inputs"])} if isinstance(option, dict) else option
                    for option in described["options"]
                    if isinstance(option, dict) or not option.endswith((".safetensors", ".pth"))
                ]
            listed.append(described)
    return listed


def main() -> None:
    with tempfile.TemporaryDirectory() as base, server(Path(base)) as (address, _):
        object_info = json.load(urllib.request.urlopen(f"{address}/object_info"))
    GOLDEN.write_text(json.dumps(interface(object_info), indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except SetupError as error:
        sys.exit(str(error))
