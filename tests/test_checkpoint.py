"""Checkpoints: round trip, and a clear error for everything that is not one."""

import json

import pytest
import torch
from conftest import ATTENTION, DIT, save_dit
from safetensors.torch import load_file, save_file

from simplegvr_core.networks import checkpoint
from simplegvr_core.networks.dit import load_dit
from simplegvr_core.networks.upsampler import load_upsampler


@pytest.fixture
def path(tmp_path):
    return save_dit(tmp_path / "gvr.safetensors")


def rewrite(path, tensors=None, **config_changes):
    """Rewrites a checkpoint with other tensors or configuration entries."""
    _, config = checkpoint.read(path, "dit")
    metadata = {checkpoint.METADATA_KEY: json.dumps({**config, **config_changes})}
    save_file(load_file(path) if tensors is None else tensors, path, metadata)


def test_round_trip_keeps_weights_and_configuration(path):
    model, config = load_dit(path)
    assert model.config == DIT
    assert model.attention == ATTENTION
    assert config["sampling"]["shift"] == 3.0
    again = load_file(path)
    assert all(torch.equal(tensor, again[key]) for key, tensor in model.state_dict().items())
    assert not list(path.parent.glob("*partial*"))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors does not exist"):
        load_dit(tmp_path / "none.safetensors")


def test_truncated_file(path):
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        load_dit(path)


def test_pickle_is_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "executed"), "w")

    torch.save({"x": Trap()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        load_dit(tmp_path / "model.safetensors")
    assert not (tmp_path / "executed").exists()


def test_missing_keys_are_listed(path):
    tensors = load_file(path)
    del tensors["head.head.weight"]
    rewrite(path, tensors)
    with pytest.raises(ValueError, match=r"1 problems: missing head\.head\.weight"):
        load_dit(path)


def test_another_width_is_named(path):
    rewrite(path, model={**checkpoint.read(path, "dit")[1]["model"], "dim": 256, "num_heads": 2})
    with pytest.raises(ValueError, match=r"wanted \(\d*256"):
        load_dit(path)


def test_unknown_configuration_key(path):
    rewrite(path, attention={"kind": "full", "sinks": 4})
    with pytest.raises(ValueError, match=r"unknown AttentionConfig keys \['sinks'\].*update the pack"):
        load_dit(path)


def test_a_missing_section_is_named(path):
    rewrite(path, kind="upsampler")
    _, config = checkpoint.read(path, "upsampler")
    del config["model"]
    with pytest.raises(ValueError, match="has no 'model' in its configuration"):
        checkpoint.parse_config(type(DIT), config, "model", path)


def test_another_kind(path):
    with pytest.raises(ValueError, match="holds a 'dit', but a 'upsampler' is wanted"):
        load_upsampler(path)


def test_foreign_safetensors(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="is no SimpleGVR checkpoint"):
        load_dit(tmp_path / "x.safetensors")
