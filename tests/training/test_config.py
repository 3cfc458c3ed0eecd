"""The configuration: what it refuses, what it writes, what a resume may change."""

from __future__ import annotations

import dataclasses
import json

import pytest

from fastgan.errors import CheckpointError, ConfigError
from fastgan.training import TrainConfig


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"image_size": 30}, "30"),
        ({"image_size": "64x"}, "64x"),
        ({"channels": 2}, "channels"),
        ({"channels": 5}, "channels"),
        ({"batch_size": 1}, "batch_size"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"steps": 0}, "steps"),
        ({"steps": True}, "steps"),
        ({"seed": -1}, "seed"),
        ({"precision": "fp8"}, "precision"),
        ({"optimiser": "sgd"}, "optimiser"),
        ({"preset": "cover"}, "preset"),
        ({"objective": "love"}, "objective"),
        ({"objective": "hinge", "real_label": 0.9}, "real_label"),
        ({"real_label": 1.5}, "real_label"),
        ({"generator_lr": 0.0}, "generator_lr"),
        ({"generator_lr": float("nan")}, "generator_lr"),
        ({"betas": (0.5, 1.0)}, "betas"),
        ({"betas": "0.5"}, "betas"),
        ({"keep_checkpoints": 0}, "keep_checkpoints"),
        ({"horizontal_flip": 1}, "horizontal_flip"),
    ],
)
def test_a_bad_setting_is_named_in_one_sentence(settings, named) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        TrainConfig(**settings)
    assert "\n" not in str(caught.value)


def test_sizes_and_rates_may_be_text() -> None:
    config = TrainConfig(image_size="64x96", betas="0,0.9")
    assert config.image_size == (64, 96)
    assert config.betas == (0.0, 0.9)


def test_json_gives_back_the_same_configuration() -> None:
    config = TrainConfig(image_size=(32, 48), betas=(0.0, 0.9), channels=3, seed=2**63 - 1)
    again = TrainConfig.from_json(json.loads(config.to_text()), "config.json")
    assert again == config


def test_json_of_another_version_is_refused_by_name() -> None:
    values = TrainConfig().to_json()
    with pytest.raises(CheckpointError, match="momentum"):
        TrainConfig.from_json({**values, "momentum": 1}, "config.json")
    del values["seed"]
    with pytest.raises(CheckpointError, match="no seed"):
        TrainConfig.from_json(values, "config.json")


def test_the_book_preset_brings_its_settings() -> None:
    config = TrainConfig.from_preset("book", steps=10)
    assert (config.image_size, config.channels, config.optimiser) == ((28, 28), 1, "rmsprop")
    assert (config.generator_lr, config.discriminator_lr, config.steps) == (4e-4, 8e-4, 10)


def test_only_hyperparameters_count_as_changed() -> None:
    before = TrainConfig()
    after = before.replace(steps=9, device="cpu", data="elsewhere", batch_size=32, betas=(0.0, 0.9))
    assert before.changed_hyperparameters(after) == [
        "betas was [0.5, 0.999], not [0.0, 0.9]",
        "batch_size was 64, not 32",
    ]


def test_every_setting_explains_itself() -> None:
    for field in dataclasses.fields(TrainConfig):
        assert field.metadata["help"], field.name
