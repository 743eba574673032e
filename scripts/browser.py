"""A headless Chromium that shows ComfyUI's own front end; used to author the workflows and to test them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from comfyui import SetupError, say
from playwright.sync_api import Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "msedge", "chrome")
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.Workflow.ShowMissingModelsWarning": False}
LOADED = "window.app && app.graph && app.extensionManager"


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
        page.wait_for_function(LOADED, timeout=120_000)
        yield page
        browser.close()


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
    page.wait_for_timeout(1500)
