"""The activations that a layer can apply to its own output, and how a module says which.

Kernels know activations by name; PyTorch models know them as modules. This is the table between
the two.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

ACTIVATION_NAMES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
}


class Epilogue(NamedTuple):
    """What a kernel does to each element before it writes it.

    Attributes:
        activation: "identity", "relu", "leaky_relu", "tanh" or "sigmoid".
        negative_slope: the factor of negative values, for leaky_relu.
    """

    activation: str
    negative_slope: float


def epilogue_of(module: nn.Module) -> Epilogue | None:
    """Return the epilogue that computes what `module` computes, or None if no kernel has it.

    Subclasses are no match: their forward may be another function.
    """
    name = ACTIVATION_NAMES.get(type(module))
    if name is None:
        return None
    return Epilogue(name, module.negative_slope if name == "leaky_relu" else 0.01)  # type: ignore[arg-type]
