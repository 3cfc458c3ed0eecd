"""A run stopped anywhere, by anything, and resumed ends like one that was never interrupted."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from fastgan.data import open_images
from fastgan.errors import ConfigError, DataError, RunError
from fastgan.training import TrainConfig, Trainer, loop
from fastgan.training.checkpoint import FILES, list_checkpoints, load_checkpoint

# Processes of their own, forked from one that has torch imported and has computed nothing.
PROCESSES = multiprocessing.get_context("forkserver")
# torch.optim imports torch._dynamo on first use, which takes longer than these runs.
PROCESSES.set_forkserver_preload(["fastgan.training.trainer", "torch._dynamo", "pytest"])


def fit(out: Path, config: TrainConfig | None, cache: Path, steps: int, pause: float = 0.0) -> None:
    """Train (with `config`) or resume (without) in this process."""
    torch.set_num_threads(1)
    loop.can_draw = lambda: False  # importing matplotlib takes longer than these runs
    quiet = Console(quiet=True)
    if config is not None:
        data = open_images(config.data, 16, cache_dir=cache, progress=False)
        trainer = Trainer(config.replace(steps=steps), data, out, quiet)
    else:
        config = TrainConfig.from_json(load_json(out / "config.json"), "config.json")
        data = open_images(config.data, 16, cache_dir=cache, progress=False)
        trainer = Trainer.resume(out, data, quiet, steps=steps)
    inner = trainer.runner.run

    def slowly(*arguments):
        time.sleep(pause)
        return inner(*arguments)

    trainer.runner.run = slowly
    trainer.fit()


def fit_and_die_while_saving(
    out: Path, config: TrainConfig | None, cache: Path, steps: int, at_flush: int
) -> None:
    """As `fit`; kill -9 at the given flush of a file of a checkpoint."""
    flushes = itertools.count(1)
    flush = os.fsync

    def dying(descriptor: int) -> None:
        saving = "checkpoints" in os.readlink(f"/proc/self/fd/{descriptor}")
        if saving and next(flushes) == at_flush:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(descriptor)

    os.fsync = dying
    fit(out, config, cache, steps)


def load_json(path: Path):
    return json.loads(path.read_text())


def in_a_new_process(target, *arguments) -> multiprocessing.Process:
    process = PROCESSES.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def finish(process: multiprocessing.Process) -> int:
    process.join(120)
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode


def assert_equal_runs(one: Path, other: Path) -> None:
    """The newest checkpoints and the metrics are the same bytes."""
    first, second = (list_checkpoints(run / "checkpoints")[-1] for run in (one, other))
    assert first.name == second.name
    for name in FILES:
        file = f"{name}.safetensors"
        assert (first / file).read_bytes() == (second / file).read_bytes(), file
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def config(noise_file) -> TrainConfig:
    return TrainConfig(
        data=str(noise_file),
        image_size=16,
        channels=3,
        latent_dim=6,
        generator_width=4,
        discriminator_width=4,
        batch_size=8,
        sample_count=4,
        checkpoint_every=4,
        sample_every=1000,
        horizontal_flip=True,
        device="cpu",
    )


@pytest.fixture(scope="module")
def straight(config, noise_file, tmp_path_factory) -> Path:
    """A run of 40 steps that nothing interrupted."""
    out = tmp_path_factory.mktemp("straight") / "run"
    process = in_a_new_process(fit, out, config, noise_file.parent / "cache", 40)
    assert finish(process) == 0
    return out


@pytest.fixture
def cache(noise_file) -> Path:
    return noise_file.parent / "cache"


def test_20_steps_and_20_resumed_equal_40(config, straight, cache, tmp_path) -> None:
    out = tmp_path / "run"
    assert finish(in_a_new_process(fit, out, config, cache, 20)) == 0
    assert [path.name for path in list_checkpoints(out / "checkpoints")][-1] == "00000020"
    assert finish(in_a_new_process(fit, out, None, cache, 40)) == 0
    assert_equal_runs(out, straight)


@pytest.mark.parametrize("settings", [{"precision": "bf16"}, {"optimiser": "rmsprop"}])
def test_other_arithmetic_resumes_to_the_bit_too(config, cache, tmp_path, settings) -> None:
    changed = config.replace(**settings)
    assert finish(in_a_new_process(fit, tmp_path / "whole", changed, cache, 12)) == 0
    assert finish(in_a_new_process(fit, tmp_path / "run", changed, cache, 5)) == 0
    assert finish(in_a_new_process(fit, tmp_path / "run", None, cache, 12)) == 0
    assert_equal_runs(tmp_path / "run", tmp_path / "whole")


def test_kill_at_any_moment_then_resume(config, straight, cache, tmp_path) -> None:
    out = tmp_path / "run"
    moments = random.Random(4)
    process = in_a_new_process(fit, out, config, cache, 40, 0.03)
    for _ in range(4):
        deadline = time.monotonic() + 60
        while not (out / "config.json").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.join(moments.uniform(0.1, 0.8))
        process.kill()
        process.join()
        if list_checkpoints(out / "checkpoints")[-1:] == [out / "checkpoints" / "00000040"]:
            break
        process = in_a_new_process(fit, out, None, cache, 40, 0.03)
    process.join(120)
    assert_equal_runs(out, straight)


@pytest.mark.parametrize("at_flush", [1, 3, 5, 6, 7, 8])
def test_kill_in_the_middle_of_a_checkpoint_then_resume(
    config, straight, cache, tmp_path, at_flush
) -> None:
    out = tmp_path / "run"
    # The third checkpoint: 7 flushes (4 tensor files, state.json, two folders) come with each.
    process = in_a_new_process(fit_and_die_while_saving, out, config, cache, 40, 14 + at_flush)
    assert finish(process) == -signal.SIGKILL
    kept = [path.name for path in list_checkpoints(out / "checkpoints")]
    assert kept[0] == "00000004"
    assert kept[-1] == ("00000012" if at_flush >= 7 else "00000008")
    for name in kept:
        load_checkpoint(out / "checkpoints" / name)
    assert finish(in_a_new_process(fit, out, None, cache, 40)) == 0
    assert_equal_runs(out, straight)
    assert not list(out.rglob("*.part")), "what the killed process left is removed"


def test_kill_before_the_first_checkpoint_resumes_from_step_0(
    config, straight, cache, tmp_path
) -> None:
    out = tmp_path / "run"
    process = in_a_new_process(fit_and_die_while_saving, out, config, cache, 40, 1)
    assert finish(process) == -signal.SIGKILL
    assert list_checkpoints(out / "checkpoints") == []
    assert finish(in_a_new_process(fit, out, None, cache, 40)) == 0
    assert_equal_runs(out, straight)


def test_sigterm_saves_and_leaves_cleanly(config, straight, cache, tmp_path) -> None:
    out = tmp_path / "run"
    process = in_a_new_process(fit, out, config.replace(checkpoint_every=1000), cache, 40, 0.05)
    deadline = time.monotonic() + 60
    while not (out / "config.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.5)
    process.terminate()
    assert finish(process) == 0
    (saved,) = list_checkpoints(out / "checkpoints")
    assert 0 < int(saved.name) < 40
    assert finish(in_a_new_process(fit, out, None, cache, 40)) == 0
    assert_equal_runs(out, straight)


@pytest.fixture
def listening_to_ctrl_c() -> Iterator[None]:
    """SIGINT as on a terminal: a shell's background processes start with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening_to_ctrl_c")
def test_ctrl_c_stops_after_the_step_and_a_second_one_at_once(trainer) -> None:
    one = trainer(steps=1000)
    inner = one.runner.run
    calls = itertools.count(1)

    def interrupted(*arguments):
        if next(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return inner(*arguments)

    one.runner.run = interrupted
    assert one.fit() is False
    assert [path.name for path in list_checkpoints(one.run.checkpoints)] == ["00000003"]

    again = Trainer.resume(one.run.path, one.data, Console(quiet=True))

    def interrupted_twice(*arguments):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    again.runner.run = interrupted_twice
    with pytest.raises(KeyboardInterrupt):
        again.fit()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert [path.name for path in list_checkpoints(one.run.checkpoints)] == ["00000003"]


def test_training_in_a_thread_leaves_signals_alone(trainer) -> None:
    one = trainer(steps=2)
    done = []
    thread = threading.Thread(target=lambda: done.append(one.fit()))
    thread.start()
    thread.join(60)
    assert done == [True]


def test_changed_hyperparameters_are_refused_by_name(trainer, images) -> None:
    one = trainer(steps=2)
    one.fit()
    with pytest.raises(ConfigError, match=r"batch_size was 8, not 16; seed was 0, not 1") as caught:
        Trainer.resume(one.run.path, images, steps=4, seed=1, batch_size=16)
    assert "start a new run" in str(caught.value)
    resumed = Trainer.resume(one.run.path, images, Console(quiet=True), steps=4, sample_every=1)
    assert resumed.fit() is True
    assert load_json(one.run.config_file)["steps"] == 4


def test_an_edited_config_json_is_held_against_the_checkpoint(trainer, images) -> None:
    one = trainer(steps=2)
    one.fit()
    text = one.run.config_file.read_text()
    one.run.config_file.write_text(text.replace('"generator_lr": 0.0002', '"generator_lr": 0.1'))
    with pytest.raises(ConfigError, match=r"generator_lr was 0\.0002, not 0\.1"):
        Trainer.resume(one.run.path, images, steps=4)


def test_other_images_are_refused(trainer, tmp_path) -> None:
    one = trainer(steps=2)
    one.fit()
    np.save(tmp_path / "other.npy", np.zeros((40, 16, 16, 3), np.uint8))
    other = open_images(tmp_path / "other.npy", 16, cache_dir=tmp_path, progress=False)
    with pytest.raises(DataError, match="not those that"):
        Trainer.resume(one.run.path, other, steps=4)


def test_a_finished_run_asks_for_more_steps(trainer, images) -> None:
    one = trainer(steps=2)
    one.fit()
    with pytest.raises(RunError, match=r"already made 2 of 2 steps.*--steps"):
        Trainer.resume(one.run.path, images)
