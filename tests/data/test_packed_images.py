"""The packed file: batches, the cache, and what happens when packing is stopped or shared."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fastgan.data import PackedImages, normalise, open_images
from fastgan.data import opening as opening_module
from fastgan.data.cache import default_cache_dir
from fastgan.data.format import PackedWriter
from fastgan.errors import DataError


def stack(count: int = 70, channels: int = 3) -> np.ndarray:
    shape = (count, 16, 20, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "images.npz"
    np.savez(path, images=stack(), labels=np.arange(70) % 4)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def pack(source: Path, cache: Path, **options) -> PackedImages:
    return open_images(source, (16, 20), cache_dir=cache, progress=False, **options)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_batch_is_channels_last_and_holds_the_images_asked_for(channels: int, tmp_path) -> None:
    np.save(tmp_path / "a.npy", stack(channels=channels))
    images = open_images(tmp_path / "a.npy", (16, 20), channels, cache_dir=tmp_path)
    indices = np.array([3, 69, 0, 3])
    batch = images.batch(indices)
    assert batch.shape == (4, channels, 16, 20)
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(batch.permute(0, 2, 3, 1).numpy(), stack(channels=channels)[indices])
    batch.zero_()  # a copy: the data set does not change
    assert np.array_equal(images.pixels, stack(channels=channels))


def test_batch_refuses_indices_out_of_range(source, cache) -> None:
    with pytest.raises(IndexError):
        pack(source, cache).batch(np.array([70]))
    assert pack(source, cache).batch(np.array([], dtype=np.int64)).shape == (0, 3, 16, 20)


def test_whole_set_in_one_tensor(source, cache, recwarn) -> None:
    whole = pack(source, cache).resident()
    assert whole.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(whole.permute(0, 2, 3, 1).numpy(), stack())
    whole.zero_()
    assert np.array_equal(pack(source, cache).pixels, stack())
    assert not [warning for warning in recwarn if "writable" in str(warning.message)]


def test_images_cannot_be_written(source, cache) -> None:
    images = pack(source, cache)
    with pytest.raises(ValueError, match="read-only"):
        images.pixels[0] = 0
    assert images.labels is not None
    with pytest.raises(ValueError, match="read-only"):
        images.labels[0] = 0


def test_normalise_maps_bytes_to_the_range_of_tanh() -> None:
    batch = torch.arange(256, dtype=torch.uint8).reshape(4, 4, 4, 4)
    result = normalise(batch)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(result, batch.float() / 127.5 - 1)
    assert (result.min(), result.max()) == (-1, 1)
    for wrong in (batch.float(), batch[0]):
        with pytest.raises(ValueError, match="batch_uint8 must be"):
            normalise(wrong)


def test_images_travel_to_other_processes_as_a_path(source, cache) -> None:
    images = pack(source, cache)
    data = pickle.dumps(images)
    assert len(data) < 1000
    copy = pickle.loads(data)
    assert np.array_equal(copy.pixels, images.pixels)
    assert (copy.digest, copy.classes) == (images.digest, images.classes)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_any_number_of_workers_keeps_the_order(workers: int, tmp_path, cache) -> None:
    np.save(tmp_path / "a.npy", stack(300))
    images = open_images(tmp_path / "a.npy", (16, 20), cache_dir=cache, workers=workers)
    assert np.array_equal(images.pixels, stack(300))


def test_second_opening_decodes_nothing(source, cache, monkeypatch) -> None:
    first = pack(source, cache)
    monkeypatch.setattr(opening_module, "pack", None)
    second = pack(source, cache)
    assert second.digest == first.digest
    assert np.array_equal(second.pixels, first.pixels)
    assert files(cache) == [first.path.name]


def test_each_setting_and_content_has_its_own_file(source, cache) -> None:
    opened = [
        pack(source, cache),
        pack(source, cache, upscale=True),
        open_images(source, 16, cache_dir=cache),
        open_images(source, 16, 1, cache_dir=cache),
    ]
    np.savez(source, images=255 - stack(), labels=np.arange(70) % 4)
    opened.append(pack(source, cache))
    assert len({images.path for images in opened}) == 5
    assert len({images.digest for images in opened}) == 4  # upscale made no difference here


def test_digest_is_of_the_content_and_not_of_the_place(source, cache, tmp_path) -> None:
    np.save(tmp_path / "same.npy", stack())
    np.savez(tmp_path / "same.npz", stack())
    one, other = pack(tmp_path / "same.npy", cache), pack(tmp_path / "same.npz", cache)
    assert one.digest == other.digest
    assert pack(source, cache).digest != one.digest  # it has labels


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path, source) -> None:
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "mine"))
    assert open_images(source, 16).path.parent == tmp_path / "mine" / "images"
    monkeypatch.delenv("FASTGAN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert default_cache_dir() == tmp_path / "xdg" / "fastgan" / "images"


def damage_magic(data: bytearray) -> bytes:
    data[0] ^= 1
    return bytes(data)


def damage_version(data: bytearray) -> bytes:
    data[16] += 1
    return bytes(data)


def damage_label(data: bytearray) -> bytes:
    data[4096 + stack().nbytes] ^= 1
    return bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"something else entirely",
        lambda data: bytes(data[:-1]),
        lambda data: bytes(data[:5000]),
        lambda data: bytes(data) + b"x",
        lambda data: bytes(4096) + bytes(data[4096:]),
        damage_magic,
        damage_version,
        damage_label,
    ],
)
def test_damaged_or_foreign_cache_files_are_built_again(damage, source, cache) -> None:
    images = pack(source, cache)
    images.path.write_bytes(damage(bytearray(images.path.read_bytes())))
    again = pack(source, cache)
    assert again.digest == images.digest
    assert np.array_equal(again.pixels, stack())
    assert files(cache) == [images.path.name]


def test_full_disk_leaves_nothing_behind(source, cache) -> None:
    cache.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        with pytest.raises(DataError, match=r"packed images cannot be kept.*FASTGAN_CACHE"):
            pack(source, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(cache) == []
    assert len(pack(source, cache)) == 70


@pytest.mark.parametrize("at", ["append", "finish"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()])
def test_whatever_stops_packing_leaves_nothing_behind(
    at, error, source, cache, monkeypatch
) -> None:
    def fail(*arguments):
        raise error

    monkeypatch.setattr(PackedWriter, at, fail)
    expected = DataError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        pack(source, cache)
    assert files(cache) == []


def test_too_little_room_is_noticed_before_packing(source, cache, monkeypatch) -> None:
    usage = opening_module.shutil.disk_usage(source.parent)._replace(free=100)
    monkeypatch.setattr(opening_module.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DataError, match=r"26,496 bytes needed, 100 free"):
        pack(source, cache)  # 4,096 + 70 images of 16 x 20 x 1, the least it can be
    assert files(cache) == []


def python(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


STOPS_HALFWAY = """
import sys, time
from fastgan.data import open_images
from fastgan.data.format import PackedWriter
append = PackedWriter.append
def slow(self, pixels):
    append(self, pixels)
    print("writing", flush=True)
    time.sleep(60)
PackedWriter.append = slow
open_images(sys.argv[1], (16, 20), cache_dir=sys.argv[2])
"""


def test_a_killed_build_is_neither_used_nor_waited_for(source, cache) -> None:
    builder = python(STOPS_HALFWAY, source, cache)
    assert builder.stdout is not None
    assert builder.stdout.readline() == "writing\n"
    os.kill(builder.pid, signal.SIGKILL)
    builder.communicate()
    (left,) = files(cache)
    assert left.endswith(".packed.partial")
    (cache / "other.packed.partial").write_bytes((cache / left).read_bytes())
    images = pack(source, cache)
    assert np.array_equal(images.pixels, stack())
    assert files(cache) == [images.path.name]  # the other killed build is cleared away, too


OPENS_AT_ONCE = """
import sys
from fastgan.data import open_images
print("ready", flush=True)
sys.stdin.readline()
images = open_images(sys.argv[1], (16, 20), cache_dir=sys.argv[2])
print(images.digest, int(images.pixels.sum()), flush=True)
"""


def test_two_processes_may_build_the_same_file(source, cache) -> None:
    builders = [python(OPENS_AT_ONCE, source, cache) for _ in range(2)]
    for builder in builders:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "ready\n"
    for builder in builders:
        assert builder.stdin is not None
        builder.stdin.write("go\n")
        builder.stdin.flush()
    said = [builder.communicate()[0] for builder in builders]
    images = pack(source, cache)
    assert said == [f"{images.digest} {int(stack().sum())}\n"] * 2
    assert files(cache) == [images.path.name]


def test_who_comes_second_waits_and_does_not_decode(source, cache, monkeypatch) -> None:
    real_pack, packed = opening_module.pack, []

    def slow_pack(*arguments, **options):
        packed.append(1)
        time.sleep(0.3)
        real_pack(*arguments, **options)

    monkeypatch.setattr(opening_module, "pack", slow_pack)
    opened: list[PackedImages] = []
    threads = [
        threading.Thread(target=lambda: opened.append(pack(source, cache))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({images.digest for images in opened}) == 1
    assert len(opened) == 4
    assert len(packed) == 2  # one build: a try in grey, then in colour
    assert files(cache) == [opened[0].path.name]


def test_file_systems_without_locks_build_all_the_same(source, cache, monkeypatch) -> None:
    monkeypatch.setattr("fastgan.data.cache.fcntl", None)
    cache.mkdir()
    (cache / "abandoned.partial").write_bytes(b"x")
    os.utime(cache / "abandoned.partial", (0, 0))
    (cache / "alive.partial").write_bytes(b"x")
    images = pack(source, cache)
    assert np.array_equal(images.pixels, stack())
    assert files(cache) == sorted(["alive.partial", images.path.name])


def test_opened_images_outlive_their_file(source, cache) -> None:
    images = pack(source, cache)
    images.path.unlink()
    assert np.array_equal(images.pixels, stack())


def test_progress_is_silent_where_there_is_no_terminal(source, cache, capfd, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    pack(source, cache)
    open_images(source, (16, 20), 1, cache_dir=cache, progress=True)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_progress_bar_on_a_terminal(source, cache, monkeypatch, capfd) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    open_images(source, (16, 20), cache_dir=cache)
    assert "packing" in capfd.readouterr().err
