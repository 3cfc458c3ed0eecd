"""Every setting of a training run, named once.

The dataclass below is the single source for the Python API, the command line's options (name,
default and help come from its fields), `config.json` in the run folder and the checkpoint. It
imports nothing heavy, so that `fastgan train --help` is quick.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fastgan.errors import CheckpointError, ConfigError


def _setting(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    choices: tuple[str, ...] | None = None,
    resumable: bool = False,
) -> Any:
    """A field with its help text, the range allowed, and whether a resumed run may change it."""
    metadata = {
        "help": help,
        "at_least": at_least,
        "above": above,
        "at_most": at_most,
        "choices": choices,
        "resumable": resumable,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run; the defaults are the PyTorch DCGAN example's.

    Sizes are in pixels, lengths of training in steps or images as named. Raises `ConfigError` in
    one sentence where a value is not allowed. Fields marked resumable in their metadata may differ
    when a run is resumed; every other field is a hyperparameter, whose change is refused by name.
    """

    data: str = _setting(
        "digits",
        "Images to learn from: a folder, a .zip, a .npy or .npz file, a data set name, or 'digits'",
        resumable=True,
    )
    image_size: tuple[int, int] = _setting(
        (64, 64), "Height x width in pixels, such as 64 or 64x96 (multiples of 4, from 16 up)"
    )
    channels: int | None = _setting(
        None, "Image channels: 1, 3 or 4 (by default the data's own)", at_least=1, at_most=4
    )
    skip_bad: bool = _setting(
        False, "Leave out images that cannot be decoded instead of stopping", resumable=True
    )
    upscale: bool = _setting(False, "Enlarge images that are smaller than the image size")
    horizontal_flip: bool = _setting(False, "Mirror each image with probability one half")

    preset: str = _setting(
        "dcgan", "Networks, and the settings that go with them: dcgan, digits or book (28x28)"
    )
    latent_dim: int = _setting(100, "Length of the latent vector z", at_least=1)
    generator_width: int = _setting(64, "Channels of the generator's last hidden layer", at_least=1)
    discriminator_width: int = _setting(
        64, "Channels of the discriminator's first layer", at_least=1
    )
    upsample: str = _setting(
        "transposed",
        "How G enlarges: transposed (convolution), or resize (nearest, then convolution: no"
        " checkerboards)",
        choices=("transposed", "resize"),
    )

    objective: str = _setting(
        "bce",
        "Adversarial objective: bce, minimax, non_saturating, least_squares, wasserstein, hinge,"
        " kl, reverse_kl, pearson_chi2, squared_hellinger, jensen_shannon or gan",
    )
    real_label: float = _setting(
        1.0, "Label of real images in D's loss (0.9 smooths it)", at_least=0.0, at_most=1.0
    )
    fake_label: float = _setting(
        0.0, "Label of generated images in D's loss", at_least=0.0, at_most=1.0
    )
    discriminator_steps: int = _setting(
        1, "D steps per G step, each on fresh images and fresh z", at_least=1
    )
    optimiser: str = _setting(
        "adam", "Optimiser of both networks: adam or rmsprop", choices=("adam", "rmsprop")
    )
    generator_lr: float = _setting(2e-4, "Learning rate of G", above=0.0)
    discriminator_lr: float = _setting(2e-4, "Learning rate of D", above=0.0)
    betas: tuple[float, float] = _setting((0.5, 0.999), "Adam's decay rates, as 0.5,0.999")
    ema_half_life: float = _setting(
        10_000.0, "Half-life, in images, of the averaged G (0: no averaging)", at_least=0.0
    )
    ema_ramp_up: float = _setting(
        0.05, "Bounds the half-life by this share of the images seen so far", above=0.0
    )
    r1_gamma: float = _setting(
        0.0, "Weight of the R1 penalty on real images in D's loss (0: none)", at_least=0.0
    )
    r1_every: int = _setting(
        1, "Steps from one R1 penalty to the next, which weighs that much more", at_least=1
    )
    clip_gradients: float = _setting(
        0.0, "Bound on the norm of a network's gradients (0: none)", at_least=0.0
    )
    batch_size: int = _setting(64, "Images in a step", at_least=2)
    accumulate: int = _setting(
        1, "Parts of a batch, each with batch statistics of its own, to save memory", at_least=1
    )
    precision: str = _setting(
        "fp32",
        "Arithmetic: fp32, or bf16 (autocast to bfloat16: faster)",
        choices=("fp32", "bf16"),
    )
    seed: int = _setting(
        0, "Everything random is a function of this number", at_least=0, at_most=2**63 - 1
    )

    one_pass: str = _setting(
        "auto",
        "Run D on real and generated images as one batch: on, off (slower, but holds half of D's"
        " activations), or auto (on); equal up to rounding",
        choices=("auto", "on", "off"),
    )
    cast_once: bool = _setting(
        True, "In bf16, cast each weight once an update instead of at each use", resumable=True
    )
    keep_memory: bool = _setting(
        True,
        "On a CPU, keep the memory that a step frees for the next one instead of giving it back"
        " (faster; for the whole process)",
        resumable=True,
    )
    capture: bool = _setting(
        True, "On a GPU, replay the step as one CUDA graph (same results, faster)", resumable=True
    )
    data_placement: str = _setting(
        "auto",
        "Where images wait: resident (on the device), prefetch (from the packed file), or auto",
        choices=("auto", "resident", "prefetch"),
        resumable=True,
    )

    steps: int = _setting(2000, "Steps to train in all", at_least=1, resumable=True)
    device: str = _setting(
        "auto", "Where to train: cpu, cuda, cuda:1, or auto (a GPU if any)", resumable=True
    )
    checkpoint_every: int = _setting(500, "Steps between checkpoints", at_least=1, resumable=True)
    keep_checkpoints: int = _setting(
        3, "How many checkpoints to keep, newest first", at_least=1, resumable=True
    )
    sample_every: int = _setting(500, "Steps between sample grids", at_least=1, resumable=True)
    sample_count: int = _setting(
        64, "Images in a sample grid", at_least=1, at_most=4096, resumable=True
    )
    log_every: int = _setting(
        50, "Steps between readings of the losses from the device", at_least=1, resumable=True
    )
    tensorboard: bool = _setting(
        False, "Also write TensorBoard event files (the 'log' extra)", resumable=True
    )

    def __post_init__(self) -> None:
        # Imported here because it needs torch, which `fastgan train --help` does not.
        from fastgan.models import parse_image_size, plan_stages
        from fastgan.training.objective import AdversarialLoss

        object.__setattr__(self, "image_size", parse_image_size(self.image_size))
        plan_stages(*self.image_size)
        object.__setattr__(self, "betas", _betas(self.betas))
        for field in fields(self):
            _check(field, getattr(self, field.name))
        if self.batch_size % self.accumulate or self.batch_size // self.accumulate < 2:
            raise ConfigError(
                f"accumulate={self.accumulate} does not divide batch_size={self.batch_size}"
                " into parts of two images or more"
            )
        _preset_settings(self.preset)
        AdversarialLoss.of(self)

    @classmethod
    def from_preset(cls, preset: str = "dcgan", **settings: Any) -> TrainConfig:
        """The preset's settings (`fastgan.models.PRESETS`), changed by `settings`."""
        return cls(**{**_preset_settings(preset), **settings, "preset": preset})

    def replace(self, **changes: Any) -> TrainConfig:
        """This configuration with some settings changed."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values, in the order of the fields."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def to_text(self) -> str:
        """The settings as the content of config.json."""
        return json.dumps(self.to_json(), indent=2) + "\n"

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> TrainConfig:
        """The configuration that `to_json` wrote; `where` names the file in errors."""
        names = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - names)
        missing = sorted(names - set(values))
        if unknown or missing:
            said = f"unknown: {', '.join(unknown)}" if unknown else f"no {', '.join(missing)}"
            raise CheckpointError(f"{where} is not a configuration of this fastgan ({said})")
        return cls(**values)

    def changed_hyperparameters(self, other: TrainConfig) -> list[str]:
        """Sentences 'name was A, not B' for settings of `other` that a resume may not change."""
        return [
            f"{field.name} was {json.dumps(self.to_json()[field.name])},"
            f" not {json.dumps(other.to_json()[field.name])}"
            for field in fields(self)
            if not field.metadata["resumable"]
            and getattr(self, field.name) != getattr(other, field.name)
        ]


def _check(field: dataclasses.Field[Any], value: Any) -> None:
    name, rules = field.name, field.metadata
    if name == "channels" and value is None:
        return
    if name == "channels" and value == 2:
        raise ConfigError("channels=2 is not 1, 3 or 4")
    if name in ("image_size", "betas"):
        return
    wanted, fits = _KINDS[str(field.type).removesuffix(" | None")]
    if not fits(value):
        raise ConfigError(f"{name}={value!r} is not {wanted}")
    if rules["choices"] is not None and value not in rules["choices"]:
        raise ConfigError(f"{name}={value!r} is not one of {_words(rules['choices'])}")
    if rules["at_least"] is not None and value < rules["at_least"]:
        raise ConfigError(f"{name}={value!r} is too small: it must be at least {rules['at_least']}")
    if rules["above"] is not None and value <= rules["above"]:
        raise ConfigError(f"{name}={value!r} is too small: it must be above {rules['above']}")
    if rules["at_most"] is not None and value > rules["at_most"]:
        raise ConfigError(f"{name}={value!r} is too large: it must be at most {rules['at_most']}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


# Annotation of a field -> what it must be, in words and as a test.
_KINDS: dict[str, tuple[str, Any]] = {
    "int": ("a whole number", _is_integer),
    "float": ("a finite number", _is_number),
    "str": ("text", lambda value: isinstance(value, str)),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
}


def _preset_settings(preset: str) -> Mapping[str, Any]:
    from fastgan.models import PRESETS

    if preset not in PRESETS:
        raise ConfigError(f"preset={preset!r} is not one of {_words(tuple(PRESETS))}")
    return PRESETS[preset].settings


def _betas(value: Any) -> tuple[float, float]:
    """A pair of decay rates from (0.5, 0.999) or "0.5,0.999"."""
    try:
        first, second = value.split(",") if isinstance(value, str) else value
        betas = (float(first), float(second))
    except (TypeError, ValueError):
        betas = (-1.0, -1.0)
    if not all(0.0 <= beta < 1.0 for beta in betas):
        raise ConfigError(f"betas={value!r} is not two rates from 0 up and below 1: 0.5,0.999")
    return betas


def _words(choices: tuple[str, ...]) -> str:
    return ", ".join(choices[:-1]) + f" or {choices[-1]}"
