"""The first hour with the pack, in a real browser on a real server: what a person drops, presses and reads. Screenshots: out/first_hour."""

import json
import re

import pytest
from browser import LOADED, PATIENCE, click_node, click_until, drop_file, press_run, set_widgets, show_graph, shown_result
from conftest import REPO
from playwright.sync_api import expect
from stand_ins import use_stand_ins

from simplegvr_core.video.read import read_video

SCREENSHOTS = REPO / "out" / "first_hour"
SMALL_T2V = {"EmptyHunyuanLatentVideo": {"width": 80, "height": 48, "length": 5}, "KSampler": {"steps": 2, "cfg": 1.0}}
TWICE = {"size": "scale", "size.scale": 2.0}
SMALL = {  # what makes a workflow take seconds; frames, height and width of what it gives
    "degradation_preview": ({}, (9, 56, 6 * 96)),
    "long_video": ({}, (9, 3 * 56, 3 * 96)),
    "wiring_test_t2v": (SMALL_T2V, (5, 3 * 48, 3 * 80)),
    "quickstart_video": ({}, (9, 3 * 56, 3 * 96)),
    "wan21_t2v_to_1080p": ({**SMALL_T2V, "SimpleGVRSampler": TWICE}, (5, 2 * 48, 2 * 80)),
    "wan21_training_free_1080p": (
        {**SMALL_T2V, "SimpleGVRSampler": {**TWICE, "settings.steps": 2, "settings.cfg": 1.0}},
        (5, 2 * 48, 2 * 80),
    ),
    "wan21_ultraflash_1k": (SMALL_T2V, (5, 2 * 48, 2 * 80)),
    "wan21_ultraflash_2k": (SMALL_T2V, (5, 3 * 48, 3 * 80)),
    "wan22_training_free_4_steps": (
        {"EmptyHunyuanLatentVideo": SMALL_T2V["EmptyHunyuanLatentVideo"], "SimpleGVRSampler": TWICE},
        (5, 2 * 48, 2 * 80),
    ),
}
SAVED_BY_US = ("long_video", "wan21_ultraflash_1k", "wan21_ultraflash_2k", "wan22_training_free_4_steps")


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
    shown = shown_result(page, "SimpleGVRDecodeSave" if name in SAVED_BY_US else "SaveVideo")
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


@pytest.fixture
def clean(page):
    """The page, its messages and panels closed again after the test."""
    yield page
    page.keyboard.press("Escape")
    for message in page.get_by_test_id("error-overlay-dismiss").all():
        message.click()
    page.evaluate("app.extensionManager.sidebarTab.activeSidebarTab && app.extensionManager.sidebarTab.toggleSidebarTab('node-library')")
    close_panel(page)


def close_panel(page) -> None:
    """Closes the panel on the right, where help and errors are."""
    panel = page.get_by_test_id("properties-panel")
    if panel.is_visible():
        click_until(page, panel.get_by_role("button", name="Toggle properties panel"), panel.is_hidden)


BLUEPRINTS = {  # the links of each in wiring_test_t2v: input -> the node it comes from
    "Latent upscale to 1080p (SimpleGVR)": {"latent": "KSampler"},
    "Training-free refine (Wan)": {
        "model": "ModelSamplingSD3",
        "latent": "KSampler",
        "positive": "SimpleGVRNullPrompt",
        "negative": "SimpleGVRNullPrompt",
    },
}


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_a_blueprint_from_the_node_library_runs(clean, stocked, name):
    page = clean
    drop_file(page, REPO / "workflows" / "wiring_test_t2v.json")
    set_widgets(page, "EmptyHunyuanLatentVideo", {"width": 80, "height": 48, "length": 1})
    set_widgets(page, "KSampler", {"steps": 2})
    page.evaluate("app.graph.remove(app.graph._nodes.find(node => node.type === 'SimpleGVRSampler'))")
    before = page.evaluate("app.graph._nodes.map(node => node.id)")
    search = page.get_by_placeholder("Search").first
    click_until(page, page.get_by_test_id("side-toolbar").get_by_role("button", name="Node Library"), search.is_visible)
    search.fill(name)
    page.get_by_text(name, exact=True).drag_to(page.locator("#graph-canvas"), target_position={"x": 900, "y": 600})
    page.wait_for_function("before => app.graph._nodes.some(node => !before.includes(node.id))", arg=before)
    widgets = page.evaluate(
        """([before, links]) => {
            const blueprint = app.graph._nodes.find(node => !before.includes(node.id))
            const find = type => app.graph._nodes.find(node => node.type === type)
            for (const [input, type] of Object.entries(links)) find(type).connect(0, blueprint, input)
            blueprint.connect(0, find('VAEDecode'), 'samples')
            return [blueprint.type, blueprint.widgets.map(widget => widget.name)]
        }""",
        [before, BLUEPRINTS[name]],
    )
    assert {"size", "seed"} <= set(widgets[1])
    set_widgets(page, widgets[0], {"size": "720p"} | ({"steps": 2, "cfg": 1.0} if "steps" in widgets[1] else {}))
    show_graph(page)
    press_run(page)
    shown = shown_result(page, "SaveVideo")
    screenshot(page, f"blueprint {name}")
    assert (shown["width"], shown["height"]) == (1200, 720)


def test_the_templates_browser_shows_every_workflow_with_its_picture(clean):
    page = clean
    ours, first = page.get_by_role("button", name="ComfyUI-SimpleGVR"), page.get_by_test_id(f"template-workflow-{next(iter(SMALL))}")
    click_until(page, page.get_by_test_id("side-toolbar").get_by_role("button", name="Templates"), ours.is_visible)
    click_until(page, ours, first.is_visible)
    for name in SMALL:
        card = page.get_by_test_id(f"template-workflow-{name}")
        card.scroll_into_view_if_needed()  # a picture that was never in sight is not there
        picture = card.locator("img").first
        picture.wait_for()
        assert picture.evaluate("async picture => { await picture.decode(); return picture.naturalWidth }") >= 720
    screenshot(page, "templates")
    click_until(page, page.get_by_test_id("template-workflow-quickstart_video"), lambda: "SimpleGVRTrim" in node_types(page))


def test_the_help_panel_shows_the_page_of_every_node(clean):
    page = clean
    page.evaluate("app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    panel = page.get_by_test_id("properties-panel")
    for number, path in enumerate(sorted((REPO / "web" / "docs").glob("*.md"))):
        page.evaluate(
            """([type, place]) => {
                app.graph.clear()
                app.graph.add(LiteGraph.createNode(type))
                app.canvas.ds.scale = 1
                app.canvas.ds.offset = [400 + 200 * place, 400]
            }""",
            [path.stem, number % 2],  # in turn: two clicks on one place are a double click
        )
        click_node(page, path.stem)
        text = path.read_text(encoding="utf-8")
        heading = panel.get_by_role("heading", name=re.search("^# (.*)$", text, re.MULTILINE)[1], exact=True)
        click_until(page, page.get_by_test_id("panel-tab-info" if panel.is_visible() else "info-button"), heading.is_visible)
        for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
            shown = panel.locator(f"img[src$='{picture}']").first
            assert shown.evaluate("async picture => { await picture.decode(); return picture.naturalWidth }") > 100, path.stem
        if path.stem == "SimpleGVRSampler":
            screenshot(page, "help")


def speak(page, locale: str) -> None:
    """Sets the page's language and loads it again, with nothing open."""
    page.evaluate("app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    page.evaluate("locale => app.extensionManager.setting.set('Comfy.Locale', locale)", locale)
    page.reload()
    page.wait_for_function(LOADED)


# German waits for a ComfyUI that offers it: 0.30 does not
@pytest.mark.parametrize("locale", ["zh", "fr"])
def test_titles_and_inputs_follow_the_language(clean, locale):
    page = clean
    texts = json.loads((REPO / "locales" / locale / "nodeDefs.json").read_text(encoding="utf-8"))
    try:
        speak(page, locale)
        drop_file(page, REPO / "workflows" / "wiring_test_t2v.json")
        show_graph(page)
        screenshot(page, f"locale {locale}")
        shown = page.evaluate("""() => {
            const own = app.graph._nodes.filter(node => node.type.startsWith('SimpleGVR'))
            const name = slot => [slot.name, slot.label ?? slot.localized_name]
            return own.map(node => [node.type, node.title, Object.fromEntries(node.inputs.map(name))])
        }""")
    finally:
        speak(page, "en")
    assert len(shown) == 5
    for node_type, node_title, inputs in shown:
        assert node_title == texts[node_type]["display_name"]
        for name, label in inputs.items():
            assert label == texts[node_type]["inputs"][name.replace(".", "_")]["name"], (node_type, name)


def assert_says(page, sentence: str, picture: str) -> None:
    """Asks the page what went wrong, by its own button, and waits for the sentence."""
    panel = page.get_by_test_id("properties-panel")
    click_until(page, page.get_by_test_id("error-overlay-see-errors"), panel.is_visible)
    try:
        expect(panel).to_contain_text(sentence, timeout=PATIENCE / 10)
    finally:
        screenshot(page, picture)


def test_a_wrong_latent_is_explained_in_the_page(clean):
    page = clean
    drop_file(page, REPO / "workflows" / "quickstart_video.json")
    page.evaluate("""() => {
        const image = LiteGraph.createNode('EmptyLatentImage')
        app.graph.add(image)
        image.connect(0, app.graph._nodes.find(node => node.type === 'SimpleGVRSampler'), 'latent')
    }""")
    press_run(page)
    sentence = "SimpleGVR Sampler: the latent has shape (1, 4, 64, 64), wanted (batch, 16, frames, height, width): connect a video latent"
    assert_says(page, sentence, "error wrong latent")


def test_a_missing_model_is_named_with_its_download(clean, tmp_path):
    page = clean
    text = (REPO / "workflows" / "wan21_training_free_1080p.json").read_text(encoding="utf-8")
    workflow = tmp_path / "absent.json"
    workflow.write_text(text.replace("wan2.1_t2v_1.3B_fp16", "wan2.1_absent"), encoding="utf-8")
    drop_file(page, workflow)
    assert_says(page, "wan2.1_absent.safetensors", "error missing model")
    assert page.get_by_test_id("missing-model-download").count() == 1


def test_a_model_of_another_kind_is_explained_in_the_page(clean):
    page = clean
    drop_file(page, REPO / "workflows" / "quickstart_video.json")
    set_widgets(page, "SimpleGVRLoadModel", {"model_name": "gvr_tiny_t2v.safetensors"})
    press_run(page)
    assert_says(page, "connect the positive and negative prompt of the video's own sampler", "error wrong model")
