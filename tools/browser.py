"""A headless Chromium that shows ComfyUI's own front end, and what a person does in it; used to author workflows and to test them."""

import base64
import json
import mimetypes
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from comfyui import SetupError, say
from playwright.sync_api import Locator, Page, TimeoutError, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "msedge", "chrome")
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
}
LOADED = "window.app && app.graph && app.extensionManager?.workflow.activeWorkflow && !document.querySelector('.p-blockui-mask')"
PATIENCE = 180_000  # milliseconds; a busy machine is no failure
CLICK = 10_000  # milliseconds for the effect of a click, before the next
DRAWN = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
RESULT = """type => {
    const failure = document.querySelector('[data-testid="error-overlay"]')?.innerText
    if (failure) return { failure }
    const node = app.graph._nodes.find(node => node.type === type)
    const file = app.nodeOutputs[node.id]?.images?.at(-1)
    if (file?.type !== 'output') return null
    const shown = [...document.querySelectorAll('video')].find(video => video.src.includes(file.filename))
    if (!(shown?.readyState >= 2)) return null
    return { file: `${file.subfolder}/${file.filename}`, width: shown.videoWidth, height: shown.videoHeight }
}"""


def find_chromium() -> str | None:
    """Returns the path of an installed Chromium: the system's, else the one Playwright downloaded; None if there is none."""
    if system := next(filter(None, map(shutil.which, NAMES)), None):
        return system
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if os.path.exists(own) else None


def install_chromium() -> None:
    """Installs Chromium unless there is one: by apt as root on Debian and Ubuntu, else by Playwright. Raises SetupError."""
    if find_chromium():
        return
    say("installing Chromium for the browser tests")
    if shutil.which("apt-get") and os.geteuid() == 0:
        commands = [["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "chromium"]]
    else:
        commands = [[sys.executable, "-m", "playwright", "install", "chromium"]]
    for command in commands:
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    if not find_chromium():
        raise SetupError(f"Chromium could not be installed by {' '.join(commands[-1])}: install it, or Chrome, and run again")


@contextmanager
def comfyui_page(address: str) -> Iterator[Page]:
    """Yields a page with ComfyUI's front end loaded from the server at address, no workflow open."""
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=arguments)
        page = browser.new_page(viewport={"width": 1800, "height": 900})
        for setting, value in SETTINGS.items():
            page.request.post(f"{address}/settings/{setting}", data=json.dumps(value))
        page.goto(address)
        page.set_default_timeout(PATIENCE)
        page.wait_for_function(LOADED)
        yield page
        browser.close()


def drop_file(page: Page, path: Path) -> None:
    """Drops a file on the canvas, as a person does from a file manager; returns when the page has opened what is in it."""
    tab = "app.extensionManager.workflow.activeWorkflow?.path"
    before = page.evaluate(tab)
    page.evaluate(
        """([name, type, content]) => {
            const dataTransfer = new DataTransfer()
            dataTransfer.items.add(new File([Uint8Array.from(atob(content), c => c.charCodeAt(0))], name, { type }))
            const canvas = document.getElementById('graph-canvas')
            const { x, y, width, height } = canvas.getBoundingClientRect()
            const where = { clientX: x + width / 2, clientY: y + height / 2, bubbles: true, cancelable: true, dataTransfer }
            for (const kind of ['dragenter', 'dragover', 'drop']) canvas.dispatchEvent(new DragEvent(kind, where))
        }""",
        [path.name, mimetypes.guess_type(path.name)[0], base64.b64encode(path.read_bytes()).decode()],
    )
    opened = f"{tab} !== before && {tab}.includes(name) && app.graph._nodes.length > 0 && {LOADED}"
    page.wait_for_function(f"([before, name]) => {opened}", arg=[before, path.stem])


def set_widgets(page: Page, node_type: str, values: dict) -> None:
    """Sets widgets of the nodes of a type, in order: one may bring forth the next. Raises playwright.Error when one is not there."""
    page.evaluate(
        """([type, values]) => {
            const nodes = app.graph._nodes.filter(node => node.type === type)
            if (!nodes.length) throw new Error(`no ${type}`)
            for (const node of nodes) {
                for (const [name, value] of Object.entries(values)) {
                    const widget = node.widgets.find(widget => widget.name === name)
                    widget.value = value
                    widget.callback?.(value)
                }
            }
        }""",
        [node_type, values],
    )


def click_node(page: Page, node_type: str) -> None:
    """Clicks the title of the node of a type until it is selected: a busy page misses a click."""
    selected = "type => Object.values(app.canvas.selected_nodes).some(node => node.type === type)"
    for _ in range(20):
        x, y = page.evaluate(
            """type => {
                const [x, y] = app.graph._nodes.find(node => node.type === type).pos
                const [left, top] = app.canvas.convertOffsetToCanvas([x + 60, y - 15]), box = app.canvas.canvas.getBoundingClientRect()
                return [box.x + left, box.y + top]
            }""",
            node_type,
        )
        page.mouse.click(x, y)
        page.wait_for_timeout(500)
        if page.evaluate(selected, node_type):
            return
    raise AssertionError(f"{node_type} was not selected by a click")


def click_until(page: Page, target: Locator, happened: Callable[[], bool]) -> None:
    """Clicks a target until its effect is seen: a busy page misses a click.

    Args:
        page: The page.
        target: What is clicked.
        happened: Returns whether the effect is seen.

    Raises:
        AssertionError: It is never seen.
    """
    deadline = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < deadline:
        with suppress(TimeoutError):  # it may go away with the effect
            target.click(timeout=CLICK)
        for _ in range(20):
            if happened():
                return
            page.wait_for_timeout(CLICK / 20)
    raise AssertionError(f"{target} was clicked without effect")


def press_run(page: Page) -> None:
    """Presses the page's own Run button."""
    page.get_by_test_id("queue-button").click()


def shown_result(page: Page, node_type: str) -> dict:
    """Returns the video that the page shows on the node of a type once it has run: file below the output folder, width, height.

    The node must be in sight. Raises AssertionError with what the page says when it shows an error instead.
    """
    result = page.wait_for_function(RESULT, arg=node_type).json_value()
    assert "failure" not in result, result["failure"]
    return result


def show_graph(page: Page) -> None:
    """Fits the whole graph into the page, with its texts drawn at any zoom."""
    page.evaluate("""() => {
        const canvas = app.canvas, nodes = app.graph._nodes
        canvas.min_font_size_for_lod = 0
        canvas.low_quality_zoom_threshold = 0
        const left = Math.min(...nodes.map(n => n.pos[0])), top = Math.min(...nodes.map(n => n.pos[1])) - 40
        const right = Math.max(...nodes.map(n => n.pos[0] + n.size[0])), bottom = Math.max(...nodes.map(n => n.pos[1] + n.size[1]))
        const scale = Math.min((window.innerWidth - 140) / (right - left), (window.innerHeight - 160) / (bottom - top), 1.2)
        canvas.ds.scale = scale
        canvas.ds.offset = [80 / scale - left, 90 / scale - top]
        canvas.draw(true, true)
    }""")
    page.evaluate(DRAWN)
