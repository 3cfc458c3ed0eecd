"""The choice of tiles: tables, the estimate, and opt-in autotuning with a fake timer."""

from __future__ import annotations

import json

import pytest
import torch

from fastgan.errors import ConfigError
from fastgan.kernels import conv_autotune, conv_tuning, convolution
from fastgan.kernels.architecture import ARCHITECTURES
from fastgan.kernels.conv_tuning import Chip, Configuration, Problem

FAMILIES = ("fprop", "dgrad", "wgrad", "fprop_image", "dgrad_image", "wgrad_image")
H100 = Chip("sm_90", "H100", 132, 227 * 1024)


def dcgan_fprop(batch, channels=128, size=8):
    return Problem(
        "fprop", torch.bfloat16, "ieee", (batch * size * size,), 2 * channels, channels, (16,)
    )


@pytest.mark.parametrize("name", [*ARCHITECTURES, "interpreter"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("arithmetic", conv_tuning.ARITHMETICS)
def test_every_table_has_tiles_for_every_call(name, family, arithmetic):
    tiles = conv_tuning.configurations(name, family, arithmetic)
    # The gather of fprop_image does not depend on the alignment of channels.
    assert tiles or (family, arithmetic) == ("fprop_image", "half_unaligned")
    for tile in tiles:
        assert min(tile.rows, tile.columns, tile.depth) >= 16
    assert len(set(tiles)) == len(tiles)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_smaller_chip_of_the_family_still_finds_a_tile(name, family):
    small = Chip(name, "small", 20, min(99 * 1024, ARCHITECTURES[name].shared_memory))
    for dtype in (torch.bfloat16, torch.float32):
        problem = Problem(family, dtype, "ieee", (4096,), 64, 64)
        assert conv_tuning.ranked(problem, small)


def test_large_batches_take_large_tiles_and_small_batches_fill_the_chip():
    large = conv_tuning.ranked(dcgan_fprop(2048), H100)[0]
    assert large.rows * large.columns >= 128 * 256
    small = conv_tuning.ranked(dcgan_fprop(64, channels=256, size=4), H100)[0]
    tiles = (64 * 16 // small.rows) * (512 // small.columns)
    assert tiles >= 100


def test_only_splittable_reductions_are_split_and_they_fill_the_chip():
    tile = Configuration(64, 64, 64, 4, 4)
    weight = Problem("wgrad", torch.bfloat16, "ieee", (64,), 64, 2**17, splittable=True)
    assert conv_tuning.estimate(weight, tile, H100)[1] >= 64
    assert conv_tuning.estimate(dcgan_fprop(1), tile, H100)[1] == 1


def test_a_reduction_of_one_step_is_not_split():
    tile = Configuration(64, 64, 64, 4, 4)
    short = Problem("wgrad", torch.bfloat16, "ieee", (64,), 64, 16, splittable=True)
    assert conv_tuning.estimate(short, tile, H100)[1] == 1


def test_unsupported_says_why():
    assert convolution.unsupported("fprop", dtype=torch.bfloat16) is None
    assert "float64" in convolution.unsupported("dgrad", dtype=torch.float64)
    assert "groups is 2" in convolution.unsupported("wgrad", dtype=torch.float32, groups=2)
    reason = convolution.unsupported("fprop", dtype=torch.float32, dilation=(1, 2))
    assert "(1, 2)" in reason
    assert "gelu" in convolution.unsupported("fprop", dtype=torch.float32, activation="gelu")
    with pytest.raises(ValueError, match="direction"):
        convolution.unsupported("sideways", dtype=torch.float32)


@pytest.fixture
def autotune(tmp_path, monkeypatch):
    """A process that has timed nothing yet, with its cache in a folder of its own."""
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path))
    monkeypatch.setattr(conv_autotune, "_chosen", {})
    return conv_autotune


def test_the_fastest_is_kept_and_never_timed_again(autotune, monkeypatch):
    timed = []

    def measure(call):
        call()
        return {"a": 3.0, "b": 1.0, "c": 2.0}[timed[-1]]

    assert autotune.fastest("key", "abc", timed.append, measure) == "b"
    assert timed == ["a", "b", "c"]
    assert autotune.fastest("key", "abc", timed.append, measure) == "b"
    monkeypatch.setattr(autotune, "_chosen", {})  # another process reads the file
    assert autotune.fastest("key", "abc", timed.append, measure) == "b"
    assert timed == ["a", "b", "c"]


def test_a_damaged_file_or_a_tile_that_is_gone_is_timed_anew(autotune):
    autotune.cache_file().write_text("{ damaged")
    assert autotune.fastest("key", "ab", lambda tile: None, lambda call: 1.0) == "a"
    stored = json.loads(autotune.cache_file().read_text())
    assert list(stored.values()) == ["a"]
    assert autotune.fastest("key", "xy", lambda tile: None, lambda call: 1.0) == "x"


def test_nothing_is_timed_unless_asked_for(monkeypatch):
    monkeypatch.delenv("FASTGAN_AUTOTUNE", raising=False)
    assert not conv_autotune.enabled(torch.device("cuda"))
    monkeypatch.setenv("FASTGAN_AUTOTUNE", "1")
    assert not conv_autotune.enabled(torch.device("cpu"))


def test_an_unknown_wish_to_time_is_refused(monkeypatch):
    monkeypatch.setenv("FASTGAN_AUTOTUNE", "yes")
    with pytest.raises(ConfigError, match="FASTGAN_AUTOTUNE='yes' is not known; allowed: 0, 1"):
        conv_autotune.enabled(torch.device("cuda"))
