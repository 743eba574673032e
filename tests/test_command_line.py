"""Command-line tools end with a sentence where the user can help."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPO
from PIL import Image

from simplegvr_core.__main__ import main, plain_errors
from simplegvr_core.video.read import read_video


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["photos", "--photos", "nowhere", "--out", "out"], "--photos nowhere has no photograph (.jpeg, .jpg, .png)"),
        (
            ["pairs", "--videos", "nowhere", "--out", "out", "--vae", "x", "--spacing", "3"],
            "--spacing is 3 frames, wanted at least the 17 of a clip",
        ),
    ],
    ids=lambda x: x[0],
)
def test_an_error_is_a_sentence(arguments, sentence):
    ran = subprocess.run(
        [sys.executable, "-m", "simplegvr_core", *arguments],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert ran.stderr == sentence + "\n"
    assert ran.stdout == ""


def test_what_the_user_cannot_cure_keeps_its_traceback():
    with pytest.raises(KeyError), plain_errors("core"):
        {}["x"]


def test_a_package_that_is_not_installed_is_named_with_its_extra():
    sentence = r'^torch_of_nobody is not installed: run `python -m pip install "\.\[train\]"` in the repository$'
    with pytest.raises(SystemExit, match=sentence), plain_errors("train"):
        import torch_of_nobody  # noqa: F401


def test_photos_make_videos_and_end_with_json(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)).save(tmp_path / "photos" / "one.png")
    main(
        [
            "photos",
            "--photos",
            f"{tmp_path / 'photos'}",
            "--out",
            f"{tmp_path / 'out'}",
            "--shots",
            "2",
            "--num-frames",
            "3",
            "--size",
            "64",
            "48",
        ]
    )
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"out": str(tmp_path / "out"), "videos": 1, "frames": 6}
    assert read_video(tmp_path / "out" / "one.mp4")[0].shape == (6, 48, 64, 3)
