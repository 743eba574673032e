"""Node ids, inputs and outputs are frozen: workflows that people saved must load and run for ever."""

import copy
import json
import urllib.request

import pytest
from author_golden import GOLDEN, interface

CURE = """
People's workflows would no longer load or run. Append optional inputs and new nodes instead, or keep the old id by a node
replacement: CONTRIBUTING.md, "Stable names". Where no release has what changed: python3 scripts/run.py tools/author_golden.py"""


def breaks(old: dict, new: dict) -> list[str]:
    """Returns what of new would break a workflow saved with old; new nodes and optional inputs at the end do not."""
    found = [f"{id} is gone" for id in old if id not in new]
    for id in old.keys() & new.keys():
        before, after = old[id], new[id]
        for was, now in zip(before["inputs"], after["inputs"], strict=False):
            if was != now:
                found.append(f"{id}: input {was['name']} was {was}, is {now}")
        found += [f"{id}: input {was['name']} is gone" for was in before["inputs"][len(after["inputs"]) :]]
        found += [f"{id}: new input {now['name']} is required" for now in after["inputs"][len(before["inputs"]) :] if not now["optional"]]
        found += [f"{id}: {key} was {before[key]}, is {after[key]}" for key in ("outputs", "output_node") if before[key] != after[key]]
    return found


@pytest.fixture
def golden() -> dict:
    return json.loads(GOLDEN.read_text())


def test_saved_workflows_still_fit_the_nodes(server, golden):
    with urllib.request.urlopen(f"{server.address}/object_info") as response:
        found = breaks(golden, interface(json.load(response)))
    assert not found, "\n".join(found) + CURE


def rename_an_output(nodes):
    nodes["SimpleGVRSampler"]["outputs"][1][1] = "text"


def widen_a_range(nodes):
    next(entry for entry in nodes["SimpleGVRSampler"]["inputs"] if entry["name"] == "seed")["max"] += 1


def change_a_default_inside_an_option(nodes):
    size = next(entry for entry in nodes["SimpleGVRSampler"]["inputs"] if entry["name"] == "size")
    scale = next(option for option in size["options"] if option["key"] == "scale")
    scale["inputs"][0]["default"] = 4.0


def reorder_options(nodes):
    next(entry for entry in nodes["SimpleGVRSampler"]["inputs"] if entry["name"] == "size")["options"].reverse()


def insert_an_input(nodes):
    nodes["SimpleGVRSampler"]["inputs"].insert(0, {"name": "new", "type": "INT", "optional": True})


def append_a_required_input(nodes):
    nodes["SimpleGVRSampler"]["inputs"].append({"name": "new", "type": "INT", "optional": False})


def remove_the_last_input(nodes):
    nodes["SimpleGVRSampler"]["inputs"].pop()


def remove_a_node(nodes):
    del nodes["SimpleGVRSampler"]


@pytest.mark.parametrize(
    "change",
    [rename_an_output, widen_a_range, change_a_default_inside_an_option, reorder_options, insert_an_input]
    + [append_a_required_input, remove_the_last_input, remove_a_node],
)
def test_what_would_break_a_workflow_is_found(golden, change):
    changed = copy.deepcopy(golden)
    change(changed)
    (found,) = breaks(golden, changed)[:1]
    assert found.startswith("SimpleGVRSampler")


def test_new_nodes_and_appended_optional_inputs_break_nothing(golden):
    changed = copy.deepcopy(golden)
    changed["SimpleGVRSampler"]["inputs"].append({"name": "new", "type": "INT", "optional": True})
    changed["SimpleGVRNew"] = changed["SimpleGVRSampler"]
    assert breaks(golden, changed) == []
