"""Runs the step: as one captured graph where that is possible, else launch by launch.

Either way it is the same function of (seed, step, data), with the same bits: a capture only changes
who launches the kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fastgan.errors import ConfigError
from fastgan.training.capture import (
    CapturedProgram,
    CaptureError,
    CudaGraphs,
    GraphEngine,
)
from fastgan.training.config import TrainConfig
from fastgan.training.inputs import KINDS, StepInputs
from fastgan.training.metric_ring import MetricRing
from fastgan.training.objective import AdversarialLoss
from fastgan.training.randomness import drawing_from
from fastgan.training.state import TrainingState
from fastgan.training.step import (
    METRICS,
    StepPlan,
    adversarial_step,
    is_penalised,
    weight_of_average,
)


class StepRunner:
    """Makes steps of a run, and keeps their metrics on the device.

    Args:
        config: the run's settings.
        state: what a step changes.
        resident: uint8 [count, H, W, C] on the device, or None where batches are staged.
        engine: records and replays; by default CUDA graphs on a GPU, and none elsewhere.
    """

    def __init__(
        self,
        config: TrainConfig,
        state: TrainingState,
        resident: Tensor | None = None,
        engine: GraphEngine | None = None,
    ) -> None:
        self.config, self.state = config, state
        self.loss = AdversarialLoss.of(config)
        self.plan = StepPlan.of(config, state.discriminator)
        self.inputs = StepInputs(config, state.device, resident, state.memory_format)
        self.ring = MetricRing(METRICS, config.log_every, state.device)
        if engine is None and state.device.type == "cuda":
            engine = CudaGraphs(state.device)
        self.engine = engine if config.capture else None
        #: Why the last step was not replayed from a graph; None where it was.
        self.why_not_captured: str | None = "no step was made"
        self._programs: dict[tuple[str, bool], CapturedProgram] = {}
        self._capture_failed: str | None = None
        if config.precision == "bf16" and config.cast_once:
            state.pack(torch.bfloat16)

    @property
    def how(self) -> str:
        """How the last step was run, in words."""
        if self.why_not_captured is None:
            return "captured as one graph"
        return f"not captured: {self.why_not_captured}"

    def run(self, real: Tensor) -> None:
        """Make one step, whose metrics become the ring's newest row; does not wait for the device.

        Args:
            real: the step's images: uint8 [D steps * batch, C, H, W], or float32 in [-1, 1], or
                int64 [D steps * batch] where the data set is resident.

        Raises:
            ConfigError: `real` is none of these.
        """
        state, config = self.state, self.config
        self._check(real)
        penalised = is_penalised(config, state.step)
        self.inputs.prepare(state.step, weight_of_average(config, state.step))
        modules = drawing_from(config.seed, "modules", state.step, state.device)
        with modules, _repeatable(state.device):
            program = self._captured(real, penalised)
            if program is not None:
                self.inputs.stage(real)
                program()
            else:
                images = self.inputs.images(real.to(state.device, non_blocking=True))
                self._step(images, self.inputs.z(len(real)), penalised)
        state.step += 1

    def _captured(self, real: Tensor, penalised: bool) -> CapturedProgram | None:
        """The graph that makes this step; None, with the reason kept, where there is none."""
        self.why_not_captured = self._capture_failed or self._why_not_captured(real)
        if self.why_not_captured is not None:
            return None
        kind = KINDS[real.dtype]
        if (kind, penalised) not in self._programs:
            assert self.engine is not None
            self.inputs.stage(real)
            try:
                self._programs[kind, penalised] = CapturedProgram(
                    lambda: self._step(*self.inputs.draw(kind), penalised),
                    self._changing,
                    self.engine,
                    self.inputs.generators,
                )
            except CaptureError as error:
                self.why_not_captured = self._capture_failed = f"recording failed: {error}"
                return None
        return self._programs[kind, penalised]

    def _why_not_captured(self, real: Tensor) -> str | None:
        if not self.config.capture:
            return "capture is off"
        if self.engine is None:
            return f"device {self.state.device.type!r} has no graphs"
        if len(real) != self.inputs.count:
            return f"a batch of {len(real)} came, and the graph is for {self.inputs.count}"
        for network in (self.state.generator, self.state.discriminator):
            for name, module in network.named_modules():
                if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
                    return f"the hook on {name or 'the network'} would not run in a replay"
        return None

    def _step(self, images: Tensor, z: Tensor, penalised: bool) -> None:
        metrics = adversarial_step(
            self.state,
            self.config,
            self.loss,
            images,
            z,
            self.inputs.average_weight,
            self.plan,
            penalised,
        )
        self.ring.write([metrics[name] for name in METRICS])

    def _changing(self) -> Iterator[Tensor]:
        """Every tensor that a step changes and a rehearsal must not."""
        for tensors in self.state.tensors().values():
            yield from tensors.values()
        for packed in self.state.packed.values():
            yield from packed.copies
        yield from self.ring.state()

    def _check(self, real: Tensor) -> None:
        config, kind = self.config, KINDS.get(real.dtype)
        if kind == "indices" and self.inputs.resident is None:
            raise ConfigError("real holds indices, but the data set is not on the device")
        item = () if kind == "indices" else (config.channels, *config.image_size)
        multiple = config.discriminator_steps * config.accumulate
        fits = tuple(real.shape[1:]) == item and real.dim() > 0
        if kind is None or not fits or not len(real) or len(real) % multiple:
            shape = ", ".join(["N", *map(str, item)])
            raise ConfigError(
                f"real is {real.dtype} of shape {tuple(real.shape)}, but must be uint8 or float32"
                f" of ({shape}), or int64 of (N) where the data are resident, with N a multiple of"
                f" {multiple} (discriminator_steps * accumulate)"
            )


@contextmanager
def _repeatable(device: torch.device) -> Iterator[None]:
    """Within: cuDNN only uses convolutions that give the same bits every time."""
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
