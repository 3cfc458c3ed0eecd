"""`bench ops --module`: a user's own layer before and after `fastgan.accelerate`.

Nothing is known of the module, so no tolerance can be derived for it. The yardstick is torch
itself: the accelerated module may be off float64 by twice what eager is in the same precision,
or by the rounding of its outputs, whichever is larger; all as ‖result − exact‖ / ‖exact‖.
"""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

import fastgan
from bench.gate import SAFETY, Verdict
from bench.method import Contestant, first_line, race
from bench.operators import BOTH, FORWARD
from bench.results import Results, Row, capture_environment
from bench.rows import Entry, rows_of
from fastgan.errors import ConfigError


def load_module(name: str) -> nn.Module:
    """The module that "package.module:Name" or "package.module:Name(1, key=2)" names.

    A class or function is called, with the literal arguments if there are any. The current
    folder is searched too, as `python -m` does.

    Raises:
        ConfigError: the name is malformed, cannot be imported, or gives no nn.Module.
    """
    match = re.fullmatch(r"([\w.]+):(\w+)(\(.*\))?", name.strip())
    if not match:
        raise ConfigError(
            f"--module {name!r} must look like package.module:Name or package.module:Name(1, 2)"
        )
    package, attribute, arguments = match.groups()
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(package), attribute)
        if arguments or inspect.isclass(found) or inspect.isfunction(found):
            positional, keywords = _literals(arguments or "()")
            found = found(*positional, **keywords)
    except Exception as error:
        raise ConfigError(f"--module {name!r} cannot be made: {first_line(error)}") from error
    if not isinstance(found, nn.Module):
        raise ConfigError(f"--module {name!r} is a {type(found).__name__}, not an nn.Module")
    return found


def _literals(arguments: str) -> tuple[list[Any], dict[str, Any]]:
    """The literal arguments of a call, "(64, stride=2)"; ValueError where one is no literal."""
    call = ast.parse(f"f{arguments}", mode="eval").body
    if not isinstance(call, ast.Call):
        raise ValueError(f"{arguments} are no arguments")
    keywords = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    return [ast.literal_eval(value) for value in call.args], keywords


def parse_shape(text: str) -> tuple[int, ...]:
    """(64, 128, 32, 32) from "64x128x32x32".

    Raises:
        ConfigError: `text` is no shape.
    """
    if not re.fullmatch(r"\d+([x×,]\d+)*", text):
        raise ConfigError(f"--input {text!r} must look like 64x128x32x32")
    return tuple(int(side) for side in re.split("[x×,]", text))


def run_own_layer(
    name: str,
    shape: str,
    device: torch.device,
    precisions: tuple[str, ...],
    compiled: bool,
    seconds: float,
    seed: int,
) -> Results:
    """Time the module of that name on random input of that shape; bf16 is autocast."""
    results = Results("ops", capture_environment(device, seed))
    torch.manual_seed(seed)
    module = load_module(name).to(device)
    x = torch.randn(parse_shape(shape), device=device)
    for precision in precisions:
        for direction in (FORWARD, BOTH):
            template = Row(
                case=name,
                provider="",
                direction=direction,
                shape=f"batch {len(x)}: {shape}",
                dtype="bfloat16" if precision == "bf16" else "float32",
            )
            results.rows += _measure(module, x, precision, template, compiled, seconds)
    return results


def _measure(
    module: nn.Module, x: Tensor, precision: str, template: Row, compiled: bool, seconds: float
) -> list[Row]:
    device, backward = x.device, template.direction == BOTH
    try:
        exact = _call(copy.deepcopy(module).double(), x.double(), nullcontext, backward)()
    except Exception as refusal:
        raise ConfigError(
            f"--module does not take --input {list(x.shape)}: {first_line(refusal)}"
        ) from refusal

    def autocast() -> AbstractContextManager[object]:
        return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    layouts: dict[str, torch.memory_format] = {"": torch.contiguous_format}
    if last is not None:
        layouts[" channels_last"] = last
    ways: dict[str, Callable[[], Mapping[str, Tensor]]] = {}
    for suffix, layout in layouts.items():
        for provider in ("eager", "fastgan", *(("compile",) if compiled else ())):
            mine = copy.deepcopy(module).to(memory_format=layout)  # type: ignore[call-overload]
            if provider == "fastgan":
                mine = fastgan.accelerate(mine)
            elif provider == "compile":
                mine = torch.compile(mine, dynamic=False)
            data = x.contiguous(memory_format=layout)
            ways[provider + suffix] = _call(mine, data, autocast, backward)
    entries, contestants, yardstick = [], [], _epsilon(precision)
    for provider, way in ways.items():
        try:
            error, where = _largest_relative(way(), exact)
            if provider.startswith("eager"):
                yardstick = max(yardstick, 2 * error)
            verdict = Verdict(error <= yardstick, error, yardstick, where)
            entries.append(Entry(provider, provider.startswith("fastgan"), verdict))
            if verdict.passed:
                contestants.append(Contestant(provider, way))
        except Exception as error:
            entries.append(
                Entry(provider, provider.startswith("fastgan"), failure=first_line(error))
            )
    return rows_of(template, entries, race(contestants, device, seconds=seconds))


def _call(
    module: nn.Module,
    x: Tensor,
    surround: Callable[[], AbstractContextManager[object]],
    backward: bool,
) -> Callable[[], dict[str, Tensor]]:
    """One call of the module, with the gradients of its input and parameters if `backward`."""
    x = x.detach().clone().requires_grad_(backward)
    parameters = {
        name: weight for name, weight in module.named_parameters() if weight.requires_grad
    }
    wanted = [x, *parameters.values()]

    def call() -> dict[str, Tensor]:
        with torch.set_grad_enabled(backward), surround():
            output = module(x)
        tensors = [output] if isinstance(output, Tensor) else list(output)
        results = {f"output {index}": tensor for index, tensor in enumerate(tensors)}
        if backward:
            total = torch.stack([tensor.float().square().mean() for tensor in tensors]).sum()
            gradients = torch.autograd.grad(total, wanted, allow_unused=True)
            for name, gradient in zip(["input", *parameters], gradients, strict=True):
                if gradient is not None:
                    results[f"gradient of {name.removeprefix('_orig_mod.')}"] = gradient
        return results

    return call


def _largest_relative(
    results: Mapping[str, Tensor], exact: Mapping[str, Tensor]
) -> tuple[float, str]:
    worst = (-1.0, "")
    for name, value in exact.items():
        if name not in results or results[name].shape != value.shape:
            return math.inf, name
        difference = (results[name].detach().double() - value).norm()
        error = (difference / value.norm().clamp_min(1e-30)).item()
        worst = max(worst, (error if math.isfinite(error) else math.inf, name))
    return worst


def _epsilon(precision: str) -> float:
    return SAFETY * torch.finfo(torch.bfloat16 if precision == "bf16" else torch.float32).eps
