"""The first hour with the pack, in a real browser on a real server: what a person drops, presses and reads. Screenshots: out/first_hour."""

import pytest
from browser import drop_file, press_run, set_widgets, show_graph, shown_result
from conftest import REPO
from stand_ins import use_stand_ins

from simplegvr_core.data import read_video

SCREENSHOTS = REPO / "out" / "first_hour"
SMALL_T2V = {"EmptyHunyuanLatentVideo": {"width": 80, "height": 48, "length": 5}, "KSampler": {"steps": 2, "cfg": 1.0}}
TWICE = {"size": "scale", "size.scale": 2.0}
SMALL = {  # what makes a workflow take seconds; frames, height and width of what it gives
    "degradation_preview": ({}, (9, 56, 6 * 96)),
    "long_video": ({}, (9, 3 * 56, 3 * 96)),
    "quickstart_t2v": (SMALL_T2V, (5, 3 * 48, 3 * 80)),
    "quickstart_video": ({}, (9, 3 * 56, 3 * 96)),
    "wan21_t2v_to_1080p": ({**SMALL_T2V, "SimpleGVRSampler": TWICE}, (5, 2 * 48, 2 * 80)),
    "wan21_training_free_1080p": (
        {**SMALL_T2V, "SimpleGVRSampler": {**TWICE, "settings.steps": 2, "settings.cfg": 1.0}},
        (5, 2 * 48, 2 * 80),
    ),
}


def screenshot(page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def node_types(page) -> list[str]:
    return sorted(page.evaluate("app.graph._nodes.map(node => node.type)"))


@pytest.mark.parametrize("name", SMALL)
def test_a_dropped_workflow_runs_and_its_result_shows(page, stocked, name):
    widgets, shape = SMALL[name]
    drop_file(page, REPO / "workflows" / f"{name}.json")
    use_stand_ins(page)
    for node_type, values in widgets.items():
        set_widgets(page, node_type, values)
    show_graph(page)
    press_run(page)
    shown = shown_result(page, "SimpleGVRDecodeSave" if name == "long_video" else "SaveVideo")
    screenshot(page, name)
    assert (shown["height"], shown["width"]) == shape[1:]
    file = stocked.base / "output" / shown["file"]
    images, _ = read_video(file)
    assert images.shape == (*shape, 3)
    check(name, images, page, stocked)
    ran = node_types(page)
    drop_file(page, file)
    assert node_types(page) == ran


def check(name, images, page, stocked):
    """What is particular to a workflow."""
    if name == "degradation_preview":
        before, *degraded = images.float().split(96, dim=2)
        assert all((before - other).abs().mean() > 1 for other in degraded)
    if name == "long_video":
        assert "Bytes are counted" in page.evaluate("JSON.stringify(Object.values(app.nodeOutputs).map(output => output.text))")
        assert not [path for path in (stocked.base / "output").rglob("*simplegvr_*") if path.is_dir()]


def test_every_workflow_is_tried():
    assert sorted(SMALL) == sorted(path.stem for path in (REPO / "workflows").glob("*.json"))
