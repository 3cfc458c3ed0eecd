"""What training changes: the networks, the averaged generator, the optimizers and the step.

`TrainingState` knows how to start from a configuration, how to name every tensor that a checkpoint
must hold, and how to take those tensors back; it knows nothing of files.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fastgan.errors import CheckpointError, ConfigError
from fastgan.models import build_networks
from fastgan.nn import accelerate
from fastgan.ops import PackedWeights
from fastgan.ops.implementations import forced_backend
from fastgan.training.adam import ChannelsLastAdam
from fastgan.training.config import TrainConfig
from fastgan.training.randomness import drawing_from

Parameters = list[nn.Parameter]


def _adam(parameters: Parameters, lr: float, config: TrainConfig) -> torch.optim.Adam:
    """Adam by torch's fused kernel, except for a plain run."""
    on_gpu = parameters[0].is_cuda
    if is_plain(config):
        return torch.optim.Adam(
            parameters, lr=lr, betas=config.betas, foreach=True, capturable=on_gpu
        )
    optimizer = torch.optim.Adam if on_gpu else ChannelsLastAdam
    return optimizer(parameters, lr=lr, betas=config.betas, fused=True, capturable=on_gpu)


# RMSprop is Keras's, which the book used.
OPTIMISERS: Mapping[str, Callable[[Parameters, float, TrainConfig], torch.optim.Optimizer]] = {
    "adam": _adam,
    "rmsprop": lambda parameters, lr, config: torch.optim.RMSprop(
        parameters, lr=lr, alpha=0.9, eps=1e-7, foreach=True, capturable=parameters[0].is_cuda
    ),
}


@dataclass
class TrainingState:
    """Networks G and D, the averaged G, both optimizers, and how many steps they have made."""

    generator: nn.Module
    discriminator: nn.Module
    averaged_generator: nn.Module
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    device: torch.device
    memory_format: torch.memory_format
    step: int = 0
    packed: dict[nn.Module, PackedWeights] = field(default_factory=dict)

    @classmethod
    def initial(cls, config: TrainConfig, device: torch.device) -> TrainingState:
        """Step 0 of a run: a function of the configuration's seed (`channels` must be known)."""
        with drawing_from(config.seed, "initialisation"):
            generator, discriminator = _build(config)
        layout = torch.contiguous_format if is_plain(config) else torch.channels_last
        for network in (generator, discriminator):
            network.to(device).to(memory_format=layout)  # type: ignore[call-overload]
            accelerate(network.train())
        averaged = averaged_copy(generator, config)
        optimiser = OPTIMISERS[config.optimiser]
        return cls(
            generator,
            discriminator,
            averaged,
            optimiser(list(generator.parameters()), config.generator_lr, config),
            optimiser(list(discriminator.parameters()), config.discriminator_lr, config),
            device,
            layout,
        )

    def make_optimizer_state(self) -> None:
        """Make the moments that the optimizers would otherwise make in their first update.

        What lives as long as the run then lies below what steps take and free, not among it: the
        memory that a CPU process keeps is a fifth less. An update by gradients of zero moves no
        weight; that it counted is taken back.
        """
        for network in (self.generator, self.discriminator):
            optimizer = self.optimizer_of(network)
            for weight in network.parameters():
                weight.grad = torch.zeros_like(weight)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            for moments in optimizer.state.values():
                for tensor in moments.values():
                    tensor.zero_()

    def optimizer_of(self, network: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of G or of D."""
        generating = network is self.generator
        return self.generator_optimizer if generating else self.discriminator_optimizer

    @property
    def averages(self) -> bool:
        """Whether the averaged G has tensors of its own, which follow G's."""
        of_average = next(self.averaged_generator.parameters())
        return of_average is not next(self.generator.parameters())

    def pack(self, dtype: torch.dtype) -> None:
        """From now on keep G's and D's weights in kernel layout too, cast once an update."""
        for network in (self.generator, self.discriminator):
            self.packed[network] = PackedWeights(network.parameters(), dtype)

    def refresh_packed(self, network: nn.Module) -> None:
        """Bring the copies up to date with a network's weights, if copies are kept."""
        if network in self.packed:
            self.packed[network].refresh()

    def networks(self) -> dict[str, nn.Module]:
        """The three networks by the name of their file in a checkpoint."""
        return {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "ema": self.averaged_generator,
        }

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Every tensor of the state: file name -> name in the file -> tensor (not copied)."""
        named = {file: dict(network.state_dict()) for file, network in self.networks().items()}
        named["optimizers"] = {
            f"{file}.{name}.{key}": tensor
            for file, name, parameter, optimizer in self._optimised()
            for key, tensor in optimizer.state[parameter].items()
        }
        return named

    def load(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take the tensors that `tensors()` named, as a checkpoint of `step` holds them.

        Raises `CheckpointError` where names or shapes are not those of this configuration.
        """
        try:
            for file, network in self.networks().items():
                network.load_state_dict(dict(tensors[file]))
        except RuntimeError as error:
            raise CheckpointError(
                f"{file}.safetensors does not fit this run's networks: {_first_line(error)}"
            ) from error
        left = dict(tensors["optimizers"])
        for file, name, parameter, optimizer in self._optimised():
            prefix = f"{file}.{name}."
            mine = [key for key in left if key.startswith(prefix)]
            state = optimizer.state[parameter]
            for key in mine:
                state[key.removeprefix(prefix)] = _like(parameter, left.pop(key))
        if left:
            raise CheckpointError(
                f"optimizers.safetensors holds {min(left)}, which no parameter of this run has"
            )
        for network in self.packed:
            self.refresh_packed(network)
        self.step = step

    def _optimised(self) -> Iterator[tuple[str, str, nn.Parameter, torch.optim.Optimizer]]:
        for file, network, optimizer in (
            ("generator", self.generator, self.generator_optimizer),
            ("discriminator", self.discriminator, self.discriminator_optimizer),
        ):
            for name, parameter in network.named_parameters():
                yield file, name, parameter, optimizer

    def finite(self, *, optimizers: bool) -> Tensor:
        """Whether all weights and buffers (and optimizer tensors) are finite: a bool tensor."""
        groups = self.tensors()
        if not optimizers:
            del groups["optimizers"]
        tensors = [
            tensor
            for tensor in itertools.chain.from_iterable(group.values() for group in groups.values())
            if tensor.is_floating_point() and tensor.device == self.device
        ]
        return torch.stack(torch._foreach_norm(tensors, float("inf"))).isfinite().all()


def build_generator(config: TrainConfig) -> nn.Module:
    """The generator of a configuration; its values are to be loaded."""
    with drawing_from(config.seed, "initialisation"):
        return _build(config)[0]


def averaged_copy(generator: nn.Module, config: TrainConfig) -> nn.Module:
    """The averaged G at step 0, to be evaluated; on G's own tensors where nothing is averaged."""
    if config.ema_half_life > 0:
        return copy.deepcopy(generator).eval().requires_grad_(False)
    shared = {id(tensor): tensor for tensor in (*generator.parameters(), *generator.buffers())}
    return copy.deepcopy(generator, shared).eval()


def _build(config: TrainConfig) -> tuple[nn.Module, nn.Module]:
    if config.channels is None:
        raise ConfigError("channels is not set: give 1, 3 or 4, or take the data's own")
    return build_networks(
        preset=config.preset,
        image_size=config.image_size,
        channels=config.channels,
        latent_dim=config.latent_dim,
        generator_width=config.generator_width,
        discriminator_width=config.discriminator_width,
        upsample=config.upsample,  # type: ignore[arg-type]
        # The step applies the sigmoid itself, in float32 whatever the precision.
        output="logit",
    )


def is_plain(config: TrainConfig) -> bool:
    """Whether a run is computed as a plain PyTorch script would, in float32 by torch's operators.

    The reference operators, forced (`FASTGAN_BACKEND=reference`), then come with torch's default
    layout and a weight update that rounds as its default one does, so that the weights stay those
    of the script: Adam turns differences of rounding into whole steps where a gradient is near 0.
    """
    return config.precision == "fp32" and forced_backend() == "reference"


def find_device(name: str) -> torch.device:
    """The device of a configuration; raises `ConfigError` where this machine does not have it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device={name!r} is not a device such as cpu, cuda or cuda:1") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device={name!r} is not supported: use cpu, cuda or cuda:1")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(f"device={name!r} is not here: this machine offers {count} CUDA devices")
    return device


def _like(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """A loaded optimizer tensor where and laid out as the optimizer keeps its own."""
    if value.shape != parameter.shape:  # the step count, which the optimizer keeps where it was
        return value.to(parameter.device) if parameter.is_cuda else value
    return torch.empty_like(parameter, requires_grad=False).copy_(value)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split()).removeprefix("Error(s) in loading state_dict for ")[:200]
