"""Files appear whole or not at all."""

import hashlib
from fractions import Fraction

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from simplegvr_core.files import atomic_write, sha256
from simplegvr_core.sampling.latent_file import write_latent
from simplegvr_core.video.write import write_video


@pytest.fixture
def small_disk():
    """No file may become longer than 20 000 bytes."""
    resource = pytest.importorskip("resource", reason="only POSIX limits the size of files")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_file_takes_its_place_when_it_is_finished(tmp_path):
    path = tmp_path / "new" / "a.b.mp4"
    with atomic_write(path) as partial:
        assert partial.parent == path.parent
        assert partial.suffix == ".mp4"
        partial.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_what_was_there_before(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_others_may_read_a_file_as_far_as_the_system_allows(tmp_path):
    (tmp_path / "plain").touch()
    with atomic_write(tmp_path / "a.safetensors") as partial:
        save_file({"x": torch.zeros(3)}, partial)
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    "write",
    [lambda path: path.write_bytes(bytes(30_000)), lambda path: save_file({"x": torch.zeros(8000)}, path)],
    ids=["bytes", "safetensors"],
)
def test_a_full_disk_names_the_file_and_the_cure(tmp_path, small_disk, write):
    path = tmp_path / "a.bin"
    with (
        pytest.raises(OSError, match=r"a\.bin cannot be written \(.*File too large.*\): free space there or choose"),
        atomic_write(path) as partial,
    ):
        write(partial)
    assert not list(tmp_path.iterdir())


def test_a_latent_that_finds_no_room_names_the_file_and_the_cure(tmp_path, small_disk):
    path, z = tmp_path / "z.safetensors", torch.zeros(1, 16, 3, 20, 30)
    with pytest.raises(OSError, match=r"z\.safetensors cannot be written .*free space there"), write_latent(path, z.shape, {}) as append:
        append(z)
    assert not list(tmp_path.iterdir())


def test_a_video_that_finds_no_room_leaves_nothing(tmp_path, small_disk):
    images = torch.randint(256, (20, 90, 150, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(OSError, match=r"a\.mp4 cannot be written \(File too large\): free space there"):
        write_video(tmp_path / "a.mp4", images, Fraction(24))
    assert not list(tmp_path.iterdir())


def test_an_error_of_another_file_stays_what_it_is(tmp_path, small_disk):
    with pytest.raises(FileNotFoundError, match=r"No such file.*other"), atomic_write(tmp_path / "a.bin"):
        (tmp_path / "other").read_bytes()
    (tmp_path / "damaged").write_bytes(b"x" * 100)
    with pytest.raises(SafetensorError, match="deserializing"), atomic_write(tmp_path / "a.bin"):
        load_file(tmp_path / "damaged")
    message = r"^[^(]*b\.bin cannot be written \(File too large\)[^(]*$"
    with pytest.raises(OSError, match=message), atomic_write(tmp_path / "a.bin"), atomic_write(tmp_path / "b.bin") as partial:
        partial.write_bytes(bytes(30_000))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(OSError, match=r"file.run.a\.json cannot be written \(Not a directory\)"),
        atomic_write(tmp_path / "file" / "run" / "a.json"),
    ):
        pass


@pytest.mark.parametrize("size", [0, 5, 2**20, 2**21 + 3])
def test_a_checksum_is_that_of_all_bytes(tmp_path, size):
    data = bytes(range(7)) * (size // 7) + bytes(size % 7)
    (tmp_path / "a").write_bytes(data)
    assert sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()
