"""Files appear whole or not at all."""

import hashlib
import resource

import pytest
import torch
from safetensors.torch import save_file

from simplegvr_core.files import sha256, whole


@pytest.fixture
def small_disk():
    """No file may become longer than 20 000 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_file_takes_its_place_when_it_is_finished(tmp_path):
    path = tmp_path / "new" / "a.b.mp4"
    with whole(path) as partial:
        assert partial.parent == path.parent
        assert partial.suffix == ".mp4"
        partial.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_what_was_there_before(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), whole(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "write",
    [lambda path: path.write_bytes(bytes(30_000)), lambda path: save_file({"x": torch.zeros(8000)}, path)],
    ids=["bytes", "safetensors"],
)
def test_a_full_disk_names_the_file_and_the_cure(tmp_path, small_disk, write):
    path = tmp_path / "a.bin"
    with (
        pytest.raises(OSError, match=r"a\.bin cannot be written \(.*File too large.*\): free space there or choose"),
        whole(path) as partial,
    ):
        write(partial)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(OSError, match=r"file.run.a\.json cannot be written \(Not a directory\)"),
        whole(tmp_path / "file" / "run" / "a.json"),
    ):
        pass


@pytest.mark.parametrize("size", [0, 5, 2**20, 2**21 + 3])
def test_a_checksum_is_that_of_all_bytes(tmp_path, size):
    data = bytes(range(7)) * (size // 7) + bytes(size % 7)
    (tmp_path / "a").write_bytes(data)
    assert sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()
