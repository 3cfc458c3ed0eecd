"""What a run leaves on the disk, who may write there, and how damage is noticed."""

from __future__ import annotations

import errno
import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from fastgan.errors import CheckpointError, ConfigError, DataError, MissingExtraError, RunError
from fastgan.training import RunFolder, Trainer, checkpoint, curves
from fastgan.training.checkpoint import FILES, list_checkpoints, load_checkpoint
from fastgan.training.run_folder import next_run_folder
from fastgan.training.samples import image_grid


def full_disk(*arguments, **settings):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_run_leaves_its_configuration_metrics_samples_curves_and_checkpoints(trainer) -> None:
    one = trainer(steps=6, checkpoint_every=2, keep_checkpoints=2, sample_every=3, tensorboard=True)
    assert one.fit() is True
    run = one.run
    assert run.read_config() == one.config
    rows = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert sorted(path.name for path in run.samples.iterdir()) == ["00000003.png", "00000006.png"]
    assert Image.open(run.samples / "00000006.png").size == (2 * 18 + 2, 2 * 18 + 2)
    assert Image.open(run.curves).size == (880, 660)
    assert [path.name for path in list_checkpoints(run.checkpoints)] == ["00000004", "00000006"]
    assert sorted(path.name for path in (run.checkpoints / "00000006").iterdir()) == [
        "discriminator.safetensors",
        "ema.safetensors",
        "generator.safetensors",
        "optimizers.safetensors",
        "state.json",
    ]
    assert any(run.tensorboard.iterdir())
    assert not list(run.path.rglob("*.part"))


def test_a_checkpoint_holds_the_state_by_name(trainer) -> None:
    one = trainer(steps=2)
    one.fit()
    saved = load_checkpoint(one.run.checkpoints / "00000002")
    assert (saved.step, saved.config, saved.data_digest) == (2, one.config, one.data.digest)
    assert set(saved.tensors) == set(FILES)
    assert "generator.main.0.weight.exp_avg" in saved.tensors["optimizers"]
    for file, tensors in one.state.tensors().items():
        for key, tensor in tensors.items():
            assert torch.equal(saved.tensors[file][key], tensor), (file, key)


def test_samples_do_not_move_the_statistics(trainer) -> None:
    with_samples, without = trainer(steps=4, sample_every=1), trainer(steps=4, sample_every=100)
    with_samples.fit()
    shutil.rmtree(with_samples.run.path)
    without.fit()
    for file, tensors in with_samples.state.tensors().items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, without.state.tensors()[file][key]), (file, key)


@pytest.mark.parametrize("name", [*(f"{file}.safetensors" for file in FILES), "state.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_a_damaged_checkpoint_is_named_and_not_loaded(trainer, images, name, damage) -> None:
    one = trainer(steps=4, checkpoint_every=2)
    one.fit()
    file = one.run.checkpoints / "00000004" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=f"damaged at {name}.*delete that folder"):
        Trainer.resume(one.run.path, images, steps=6)
    # As the message says: without it, the one before serves.
    shutil.rmtree(file.parent)
    assert Trainer.resume(one.run.path, images, steps=6).state.step == 2


def test_a_checkpoint_of_other_networks_is_refused(trainer) -> None:
    one, other = trainer(steps=2), trainer(generator_width=8)
    one.fit()
    saved = load_checkpoint(one.run.checkpoints / "00000002")
    with pytest.raises(CheckpointError, match="does not fit"):
        other.state.load(saved.step, saved.tensors)


def test_a_full_disk_at_a_checkpoint_leaves_the_one_before(trainer, images, monkeypatch) -> None:
    one = trainer(steps=4, checkpoint_every=2)
    write, written = checkpoint._write, []

    def filling(file, content):
        written.append(file)
        # The second checkpoint's third file is cut short.
        if len(written) == 8:
            file.write_bytes(content[:10])
            full_disk()
        return write(file, content)

    monkeypatch.setattr(checkpoint, "_write", filling)
    with pytest.raises(RunError, match=r"No space left on device; .* goes on from step 2"):
        one.fit()
    assert [path.name for path in one.run.checkpoints.iterdir()] == ["00000002"]
    monkeypatch.undo()
    assert Trainer.resume(one.run.path, images, Console(quiet=True)).fit() is True


def test_a_full_disk_at_the_start_leaves_no_folder(trainer, tmp_path, monkeypatch) -> None:
    one = trainer()
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(RunError, match=r"cannot be written: No space left on device$"):
        one.fit()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_at_the_metrics_leaves_whole_lines(trainer, monkeypatch) -> None:
    one = trainer(steps=4, log_every=1)
    flush, calls = os.fsync, []

    def filling(descriptor):
        if "metrics" in os.readlink(f"/proc/self/fd/{descriptor}"):
            calls.append(descriptor)
            if len(calls) == 4:
                full_disk()
        flush(descriptor)

    monkeypatch.setattr("os.fsync", filling)
    with pytest.raises(RunError, match="No space left"):
        one.fit()
    assert [json.loads(line)["step"] for line in one.run.metrics_file.open()] == [1, 2]


def test_only_one_process_trains_into_a_folder(trainer, small) -> None:
    one = trainer(steps=2)
    with one.run.training(one.config), pytest.raises(RunError, match="another process"):
        one.fit()
    assert one.fit() is True


def test_a_new_run_takes_a_missing_or_empty_folder_only(tmp_path) -> None:
    RunFolder.new(tmp_path / "deep" / "down")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    RunFolder.new(tmp_path / "empty")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("all of it")
    with pytest.raises(RunError, match="is not empty and is not a fastgan run"):
        RunFolder.new(tmp_path / "full")
    with pytest.raises(RunError, match="is a file"):
        RunFolder.new(tmp_path / "full" / "thesis.txt")


def test_a_new_run_does_not_overwrite_an_old_one(trainer) -> None:
    one = trainer(steps=1)
    one.fit()
    with pytest.raises(RunError, match=r"already holds a run.*fastgan resume"):
        RunFolder.new(one.run.path)


def test_run_folders_are_numbered(tmp_path) -> None:
    assert next_run_folder(tmp_path / "runs", "digits").name == "0001-digits"
    (tmp_path / "runs" / "0007-photos").mkdir(parents=True)
    assert next_run_folder(tmp_path / "runs", "digits").name == "0008-digits"


def test_divergence_names_the_step_and_keeps_the_last_good_checkpoint(trainer) -> None:
    one = trainer(steps=50, checkpoint_every=2, log_every=3)
    inner, state = one.runner.run, one.state

    def exploding(real):
        if state.step == 7:
            with torch.no_grad():
                state.discriminator.main[0].weight.fill_(float("nan"))
        inner(real)

    one.runner.run = exploding
    with pytest.raises(RunError, match=r"diverged: d_real is nan at step 8; .*00000006.*lower"):
        one.fit()
    assert list_checkpoints(one.run.checkpoints)[-1].name == "00000006"
    assert [json.loads(line)["step"] for line in one.run.metrics_file.open()] == list(range(1, 8))


@pytest.mark.parametrize("what", ["generator", "optimizers"])
def test_a_checkpoint_that_is_not_finite_is_never_written(trainer, what) -> None:
    one = trainer(steps=2)
    inner = one.runner.run

    def spoiling(real):
        inner(real)
        tensors = one.state.tensors()[what]
        key = "main.0.weight" if what == "generator" else "generator.main.0.weight.exp_avg"
        if one.state.step == 2:
            tensors[key][0, 0, 0, 0] = float("inf")

    one.runner.run = spoiling
    with pytest.raises(RunError, match="not finite after step 2"):
        one.fit()
    assert list_checkpoints(one.run.checkpoints) == []


def test_data_that_do_not_fit_the_configuration_are_refused(small, images, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"16x16 with 3 channels.*32x32 with 3"):
        Trainer(small(image_size=32), images, tmp_path / "run")
    with pytest.raises(DataError, match="batch_size is 64"):
        Trainer(small(batch_size=64), images, tmp_path / "run")
    with pytest.raises(ConfigError, match="cuda:9"):
        Trainer(small(device="cuda:9"), images, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_without_the_extra_says_how_to_get_it(trainer, monkeypatch) -> None:
    monkeypatch.setattr(curves.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"fastgan\[log\]"):
        trainer(tensorboard=True)


def test_a_grid_is_square_and_bordered() -> None:
    images = np.full((5, 4, 6, 3), 255, np.uint8)
    grid = np.asarray(image_grid(images, border=1))
    assert grid.shape == (2 * 5 + 1, 3 * 7 + 1, 3)
    assert grid[1:5, 1:7].min() == 255
    assert grid[0].max() == 0
    assert grid[6:10, 15:21].max() == 0
