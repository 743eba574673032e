"""File names of SimpleGVR Decode and Save: dates and other nodes' values as ComfyUI's page writes them, in names that all systems take."""

import asyncio
import sys
from datetime import datetime

import pytest
from client import output_files, run_workflow

NOW = datetime(2026, 3, 7, 9, 5, 4)
PROMPT = {
    "1": {"class_type": "KSampler", "inputs": {"seed": 7, "cfg": 1.5, "model": ["2", 0]}, "_meta": {"title": "First pass"}},
    "2": {"class_type": "SimpleGVRLoadModel", "inputs": {"model_name": "folder/gvr:tiny.safetensors"}},
}


@pytest.fixture(scope="module")
def resolve(comfy):
    return sys.modules[f"{comfy.pack.__name__}.nodes.host.file_names"].resolve_prefix


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("%date:yyyy-MM-dd%/a", "2026-03-07/a"),
        ("%date:yy_M_d hh.mm.ss%", "26_3_7 09.05.04"),
        ("%date:h-m-s%", "9-5-4"),
        ("%KSampler.seed%/x", "7/x"),
        ("%First pass.cfg%", "1.5"),
        ("%SimpleGVRLoadModel.model_name%", "folder_gvr_tiny.safetensors"),
        ("%KSampler.model%", "%KSampler.model%"),
        ("%Nobody.seed%_%year%", "%Nobody.seed%_%year%"),
        ("video/what?*<>|\"a:b", "video/what______a_b"),
        ("a\\b", "a/b"),
        ("con/nul.txt/COM1 /ok. /lpt0", "con_/nul.txt_/COM1_/ok._/lpt0_"),
        ("../outside", "../outside"),
        ("concert/auxiliary", "concert/auxiliary"),
        ("ünï/日本語/a'b\"", "ünï/日本語/a'b_"),
        ("a\x00b\nc", "a_b_c"),
        ("", ""),
    ],
)  # fmt: skip
def test_names(resolve, prefix, expected):
    assert resolve(prefix, PROMPT, None, NOW) == expected


def test_the_pages_name_of_a_node_comes_first(resolve):
    workflow = {"nodes": [{"id": 1, "properties": {"Node name for S&R": "mine"}}, {"id": 2, "type": "Note"}]}
    assert resolve("%mine.seed%_%KSampler.seed%_%First pass.seed%", PROMPT, workflow, NOW) == "7_%KSampler.seed%_7"


def test_by_api_the_names_are_replaced(server):
    """Where Save Video leaves them, which only the page replaces."""

    def node(class_type, **inputs):
        return {"class_type": class_type, "inputs": inputs}

    prefix = "%date:yyyy%/%EmptyHunyuanLatentVideo.width%/con/video:%crf%"
    workflow = {
        "1": node("SimpleGVRLoadTinyVAE", vae_name="gvr_tiny_vae.safetensors"),
        "2": node("EmptyHunyuanLatentVideo", width=80, height=48, length=1, batch_size=1),
        "3": node(
            "SimpleGVRDecodeSave", vae=["1", 0], latent=["2", 0], fps=17.0, filename_prefix=prefix, crf=16.0, resume=False, trim="none"
        ),
    }
    (saved,) = output_files(asyncio.run(run_workflow(server.address, workflow)), server.base / "output")
    assert saved.relative_to(server.base / "output").as_posix() == f"{datetime.now().year}/80/con_/video_%crf%_00001_.mp4"
    assert saved.exists()
