"""The operators as things to measure: inputs, torch's twin, fastgan's operator, what is exact.

A `Subject` is one operator on one shape in one dtype. Its inputs are random and dense; gradients
that arrive are zero where a ReLU or LeakyReLU is within rounding of its kink, since there the
derivative is either of two numbers and no implementation is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.gate import tf32_allowed, tolerance
from bench.shapes import LEAKY_SLOPE, SIZE, ConvLayer, Cost, MapLayer
from fastgan import ops

Outputs = dict[str, Tensor]
Function = Callable[..., Outputs]
FORWARD, BOTH = "forward", "forward+backward"


@dataclass(frozen=True)
class Subject:
    """One operator on one shape.

    Attributes:
        operator: its name in `fastgan.ops`.
        case, shape: for the row.
        dtype: of the data.
        twin: torch's way, from keyword inputs to named outputs.
        ours: fastgan's.
        inputs: tensors by keyword, channels_last where they have four dimensions.
        differentiable: the inputs whose gradient `forward+backward` asks for.
        state: the inputs that a call changes.
        data: the inputs that are another batch on every call (weights are not).
        upstream: the gradients that arrive, by output.
        reductions: how many products each output and each "grad <input>" sums.
        work: direction → passes of the least work.
        constants: the operator's other arguments, for `explain_call`.
    """

    operator: str
    case: str
    shape: str
    dtype: torch.dtype
    twin: Function
    ours: Function
    inputs: dict[str, Tensor]
    differentiable: tuple[str, ...]
    upstream: dict[str, Tensor]
    reductions: dict[str, int]
    work: dict[str, list[Cost]]
    state: tuple[str, ...] = ()
    data: tuple[str, ...] = ("x",)
    constants: dict[str, Any] = field(default_factory=dict)

    def tolerances(self, names: Mapping[str, Tensor]) -> dict[str, float]:
        """The error allowed in each of the outputs `names`."""
        device = next(iter(self.inputs.values())).device
        tf32 = "conv" in self.operator and tf32_allowed(device, self.dtype)
        return {name: tolerance(self.dtype, self.reductions[name], tf32=tf32) for name in names}

    def chosen(self, direction: str) -> str:
        """The name of the implementation that fastgan chooses for this call."""
        inputs = [
            tensor.detach().requires_grad_(direction == BOTH and name in self.differentiable)
            for name, tensor in self.inputs.items()
        ]
        return ops.explain_call(self.operator, *inputs, **self.constants).chosen


def evaluate(
    function: Function,
    inputs: Mapping[str, Tensor],
    differentiable: tuple[str, ...],
    upstream: Mapping[str, Tensor],
    backward: bool,
) -> Outputs:
    """Call `function`; with `backward`, also its gradients, as "grad <input>"."""
    if not backward or not differentiable:
        with torch.no_grad():
            return function(**inputs)
    outputs = function(**inputs)
    gradients = torch.autograd.grad(
        [outputs[name] for name in upstream],
        [inputs[name] for name in differentiable],
        list(upstream.values()),
    )
    named = zip(differentiable, gradients, strict=True)
    return outputs | {f"grad {name}": gradient for name, gradient in named}


def exact_outputs(subject: Subject) -> Outputs:
    """All outputs, gradients and changed state in float64, from the subject's rounded inputs."""
    inputs = {name: _exact(tensor) for name, tensor in subject.inputs.items()}
    for name in subject.differentiable:
        inputs[name].requires_grad_()
    upstream = {name: _exact(tensor) for name, tensor in subject.upstream.items()}
    outputs = evaluate(subject.twin, inputs, subject.differentiable, upstream, backward=True)
    return outputs | {name: inputs[name] for name in subject.state}


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().double() if tensor.is_floating_point() else tensor.clone()


def convolution(
    layer: ConvLayer, batch: int, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> Subject:
    """`conv2d` or `conv_transpose2d` on a layer, without bias as in DCGAN."""
    random = torch.Generator(device).manual_seed(seed)
    x = _normal((batch, layer.in_channels, *layer.in_size), dtype, device, random)
    y = _normal((batch, layer.out_channels, *layer.out_size), dtype, device, random)
    weight = _normal(layer.weight_shape, dtype, device, random, 1 / math.sqrt(layer.fan_in))
    arguments: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding}
    if layer.transposed:
        arguments["output_padding"] = layer.output_padding
    name = "conv_transpose2d" if layer.transposed else "conv2d"
    torch_function, our_function = getattr(F, name), getattr(ops, name)
    small = layer.in_size if layer.transposed else layer.out_size
    taps = layer.kernel**2
    elements, size = sum(layer.elements(batch)), SIZE[_name(dtype)]
    one = Cost(layer.flops(batch), float(elements * size))
    return Subject(
        operator=name,
        case=f"{name} {layer.name}",
        shape=layer.describe(batch),
        dtype=dtype,
        twin=lambda x, weight: {"y": torch_function(x, weight, **arguments)},
        ours=lambda x, weight: {"y": our_function(x, weight, **arguments)},
        inputs={"x": x, "weight": weight},
        differentiable=("x", "weight"),
        upstream={"y": y},
        reductions={
            "y": layer.fan_in,
            "grad x": layer.out_channels * taps,
            "grad weight": batch * small[0] * small[1],
        },
        work={FORWARD: [one], BOTH: [one] * 3},
        constants=arguments,
    )


def batch_norm_act(
    layer: MapLayer, batch: int, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> Subject:
    """`batch_norm_act` in training: float32 parameters and statistics, as under autocast."""
    random = torch.Generator(device).manual_seed(seed)
    shape = (batch, layer.channels, *layer.size)
    single = torch.float32
    x = _normal(shape, dtype, device, random)
    weight = 1 + _normal((layer.channels,), single, device, random, 0.2)
    bias = _normal((layer.channels,), single, device, random, 0.2)
    mean = torch.zeros(layer.channels, device=device)
    var = torch.ones(layer.channels, device=device)
    activation = {"activation": layer.activation, "negative_slope": LEAKY_SLOPE}

    def twin(x: Tensor, weight: Tensor, bias: Tensor, **running: Tensor) -> Outputs:
        y = F.batch_norm(x, running["running_mean"], running["running_var"], weight, bias, True)
        return {"y": activated(y, layer.activation)}

    def ours(x: Tensor, weight: Tensor, bias: Tensor, **running: Tensor) -> Outputs:
        y = ops.batch_norm_act(
            x,
            running["running_mean"],
            running["running_var"],
            weight,
            bias,
            training=True,
            **activation,  # type: ignore[arg-type]
        )
        return {"y": y}

    normalised = F.batch_norm(x.double(), None, None, weight.double(), bias.double(), True)
    upstream = _away_from_kink(_normal(shape, dtype, device, random), normalised, layer.activation)
    each = batch * layer.size[0] * layer.size[1]
    tensor = float(layer.elements(batch) * SIZE[_name(dtype)])
    return Subject(
        operator="batch_norm_act",
        case=f"batch_norm_act {layer.name}",
        shape=layer.describe(batch),
        dtype=dtype,
        twin=twin,
        ours=ours,
        inputs={
            "x": x,
            "running_mean": mean,
            "running_var": var,
            "weight": weight,
            "bias": bias,
        },
        differentiable=("x", "weight", "bias"),
        upstream={"y": upstream},
        reductions=dict.fromkeys(
            ("y", "grad x", "grad weight", "grad bias", "running_mean", "running_var"), each
        ),
        state=("running_mean", "running_var"),
        work={FORWARD: [Cost(0, 2 * tensor)], BOTH: [Cost(0, 2 * tensor), Cost(0, 3 * tensor)]},
        constants={"training": True, **activation},
    )


def bias_act(
    layer: MapLayer, batch: int, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> Subject:
    """`bias_act`: a bias a channel, then the activation."""
    random = torch.Generator(device).manual_seed(seed)
    shape = (batch, layer.channels, *layer.size)
    x = _normal(shape, dtype, device, random)
    bias = _normal((layer.channels,), dtype, device, random, 0.2)
    activation = {"activation": layer.activation, "negative_slope": LEAKY_SLOPE}
    before = x.double() + bias.double()[:, None, None]
    upstream = _away_from_kink(_normal(shape, dtype, device, random), before, layer.activation)
    tensor = float(layer.elements(batch) * SIZE[_name(dtype)])
    return Subject(
        operator="bias_act",
        case=f"bias_act {layer.name}",
        shape=layer.describe(batch),
        dtype=dtype,
        twin=lambda x, bias: {"y": activated(x + bias[:, None, None], layer.activation)},
        ours=lambda x, bias: {"y": ops.bias_act(x, bias, **activation)},  # type: ignore[arg-type]
        inputs={"x": x, "bias": bias},
        differentiable=("x", "bias"),
        upstream={"y": upstream},
        reductions={
            "y": 2,
            "grad x": 2,
            "grad bias": batch * layer.size[0] * layer.size[1],
        },
        work={FORWARD: [Cost(0, 2 * tensor)], BOTH: [Cost(0, 2 * tensor), Cost(0, 3 * tensor)]},
        constants=activation,
    )


def adversarial_loss(
    which: str, batch: int, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> Subject:
    """`discriminator_loss` or `generator_loss`, non-saturating, with the logged means."""
    random = torch.Generator(device).manual_seed(seed)
    both = which == "discriminator_loss"
    names = ("real_logits", "fake_logits") if both else ("fake_logits",)
    inputs = {name: _normal((batch,), dtype, device, random) for name in names}

    def twin(**logits: Tensor) -> Outputs:
        labels = {"real_logits": 1.0, "fake_logits": 0.0 if both else 1.0}
        losses = [
            F.binary_cross_entropy_with_logits(value, torch.full_like(value, labels[name]))
            for name, value in logits.items()
        ]
        means = {f"{name} mean": value.detach().sigmoid().mean() for name, value in logits.items()}
        return {"loss": losses[0] + losses[1] if both else losses[0], **means}

    def ours(**logits: Tensor) -> Outputs:
        loss, *means = getattr(ops, which)(**logits)
        return {"loss": loss} | {
            f"{name} mean": mean for name, mean in zip(logits, means, strict=True)
        }

    outputs = ("loss", *(f"{name} mean" for name in names))
    gradients = tuple(f"grad {name}" for name in names)
    size = float(batch * SIZE[_name(dtype)] * len(names))
    return Subject(
        operator=which,
        case=which,
        shape=f"batch {batch}",
        dtype=dtype,
        twin=twin,
        ours=ours,
        inputs=inputs,
        differentiable=names,
        upstream={"loss": torch.ones((), device=device)},
        reductions=dict.fromkeys((*outputs, *gradients), batch),
        work={FORWARD: [Cost(0, size)], BOTH: [Cost(0, 2 * size)]},
        data=names,
    )


def binary_cross_entropy(
    batch: int, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> Subject:
    """`binary_cross_entropy` on probabilities, torch's clamp of log included."""
    random = torch.Generator(device).manual_seed(seed)
    probability = _normal((batch,), torch.float32, device, random).sigmoid().to(dtype)
    target = (torch.rand(batch, generator=random, device=device) > 0.5).to(dtype)
    size = float(batch * SIZE[_name(dtype)])
    return Subject(
        operator="binary_cross_entropy",
        case="binary_cross_entropy",
        shape=f"batch {batch}",
        dtype=dtype,
        twin=lambda probability, target: {"loss": F.binary_cross_entropy(probability, target)},
        ours=lambda probability, target: {"loss": ops.binary_cross_entropy(probability, target)},
        inputs={"probability": probability, "target": target},
        differentiable=("probability",),
        upstream={"loss": torch.ones((), device=device, dtype=dtype)},
        reductions={"loss": batch, "grad probability": batch},
        work={FORWARD: [Cost(0, 2 * size)], BOTH: [Cost(0, 2 * size), Cost(0, 3 * size)]},
        data=("probability", "target"),
    )


def activated(y: Tensor, activation: str) -> Tensor:
    """torch's own activation, out of place."""
    if activation == "leaky_relu":
        return F.leaky_relu(y, LEAKY_SLOPE)
    return torch.tanh(y) if activation == "tanh" else F.relu(y)


def _away_from_kink(upstream: Tensor, before: Tensor, activation: str) -> Tensor:
    """`upstream` with zeros where rounding could move `before` across zero."""
    if activation in ("relu", "leaky_relu"):
        margin = 8 * torch.finfo(upstream.dtype).eps
        upstream = upstream.masked_fill(before.abs() < margin, 0.0)
    # masked_fill takes the layout of the mask, which broadcasting may have made contiguous.
    return upstream.contiguous(memory_format=torch.channels_last)


def _normal(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    random: torch.Generator,
    scale: float = 1.0,
) -> Tensor:
    """Normal numbers, channels_last if 4D."""
    values = (torch.randn(shape, generator=random, device=device) * scale).to(dtype)
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
