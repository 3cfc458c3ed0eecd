"""A Sequential that runs neighbours as one operator: layer and activation in a single pass.

The layers themselves stay unfused: it is the container that looks at neighbours each time it is
called. So a slice of it, a layer called alone, a layer that stands in two containers with different
followers, and a hook that somebody adds later are all right by construction.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import (
    _global_backward_hooks,
    _global_backward_pre_hooks,
    _global_forward_hooks,
    _global_forward_pre_hooks,
)

from fastgan.nn.batch_norm import BatchNorm2d
from fastgan.nn.convolution import Conv2d, ConvTranspose2d, conv2d_arguments
from fastgan.nn.epilogue import Epilogue, epilogue_of
from fastgan.ops.convolution_pair import conv2d_pair
from fastgan.ops.recomputation import recompute_input

# The layers that can apply an activation to their own output.
FUSING = (Conv2d, ConvTranspose2d, BatchNorm2d)


def _global_hooks() -> bool:
    """True while anything listens to every module call (profilers, FLOP counters)."""
    return bool(
        _global_forward_hooks
        or _global_forward_pre_hooks
        or _global_backward_hooks
        or _global_backward_pre_hooks
    )


def _hooked(module: nn.Module) -> bool:
    """True if a hook would notice that a call of the module is left out."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def why_not_fused(layer: nn.Module, follower: nn.Module, after: nn.Module | None) -> str | None:
    """Say why the activation `follower` cannot run inside `layer`, or None if it can.

    Args:
        layer: a layer of a type in `FUSING` (or one that `accelerate` would turn into it).
        follower: the module after it in the same Sequential, which has an `epilogue_of`.
        after: the module after that one; None if there is none.

    Returns:
        The reason, or None when `layer` can apply the activation as its epilogue with every hook
        seeing what it saw before.
    """
    own = getattr(layer, "activation", "identity")
    if own != "identity":
        return f"the layer applies an activation of its own ({own})"
    # A plain forward pre-hook of the layer (spectral_norm, weight_norm, prune) sees the layer's
    # arguments, which fusion leaves alone; every other hook would see a fused call.
    if (
        layer._forward_hooks
        or layer._forward_pre_hooks_with_kwargs
        or layer._backward_hooks
        or layer._backward_pre_hooks
    ):
        return "a hook on the layer would see the activated output"
    if _hooked(follower):
        return "a hook on the activation would not be called"
    if layer._compiled_call_impl is not None or follower._compiled_call_impl is not None:
        return "the module is compiled on its own"
    if "forward" in follower.__dict__:
        return "the activation's forward is replaced on the instance"
    if _global_hooks():
        return "a global module hook is registered"
    # torch keeps the input of this one activation for the backward pass and leaves its output free
    # to be written; a convolution with it in the epilogue needs the output, as the others do.
    if (
        isinstance(follower, nn.LeakyReLU)
        and not follower.inplace
        and not isinstance(layer, nn.BatchNorm2d)
        and (after is None or getattr(after, "inplace", False))
    ):
        return "its output may be modified in place afterwards: use LeakyReLU(inplace=True)"
    return None


def _unseen(norm: nn.Module | None, convolution: nn.Module) -> bool:
    """Whether nobody can have written to what `norm` handed to `convolution`."""
    return (
        isinstance(norm, BatchNorm2d)
        and isinstance(convolution, Conv2d | ConvTranspose2d)
        and not (norm._forward_hooks or convolution._forward_pre_hooks or _global_hooks())
    )


def _pair(
    layer: nn.Module, epilogue: Epilogue, followers: list[nn.Module], input: Any
) -> Tensor | None:
    """Return what two convolutions with an activation between make of `input`, as one operator.

    None if they are to be called one by one: `conv2d_pair` does not serve them, or somebody would
    notice.
    """
    if type(layer) is not Conv2d or layer._forward_pre_hooks or not isinstance(input, Tensor):
        return None
    if not followers or type(followers[0]) is not Conv2d:
        return None
    convolution = followers[0]
    activated = convolution.activation != "identity" or (
        len(followers) == 2 and epilogue_of(followers[1]) is not None
    )
    replaced = "forward" in layer.__dict__ or "forward" in convolution.__dict__
    if activated or _hooked(convolution) or replaced or convolution._compiled_call_impl is not None:
        return None
    if layer.padding_mode != "zeros" or convolution.padding_mode != "zeros":
        return None
    first, second = conv2d_arguments(layer, input), conv2d_arguments(convolution, input)
    return conv2d_pair(first, second, *epilogue)


class Sequential(nn.Sequential):
    """`torch.nn.Sequential` that applies an activation inside the fastgan layer before it.

    A `fastgan.nn.Conv2d`, `ConvTranspose2d` or `BatchNorm2d` followed at once by a `ReLU`,
    `LeakyReLU`, `Tanh` or `Sigmoid` runs as one operator, unless a hook would notice or autograd
    would refuse what it used to allow (see `why_not_fused`). What a batch norm hands to a
    convolution is kept once, not twice (see `fastgan.ops.recomputation`), and what a layer that
    reads images hands to the next one not at all (see `fastgan.ops.convolution_pair`). It holds
    nothing besides its modules: names, indices, slices and state_dict are those of the twin.
    """

    def forward(self, input: Any) -> Any:
        """Chain the modules, fused where they can be.

        Args:
            input: what the first module takes; usually [N, C, H, W].

        Returns:
            What the last module returns.
        """
        modules = list(self._modules.values())
        last = len(modules) - 1
        index = 0
        before: nn.Module | None = None
        while index <= last:
            module, given = modules[index], input
            index += 1
            epilogue = None
            if index <= last and isinstance(module, FUSING):
                epilogue = epilogue_of(modules[index])
            if epilogue is not None:
                after = modules[index + 1] if index < last else None
                if why_not_fused(module, modules[index], after) is not None:
                    epilogue = None
            if epilogue is None:
                input = module(input)
            else:
                index += 1
                pair = _pair(module, epilogue, modules[index : index + 2], input)
                if pair is not None:
                    before, input = modules[index], pair
                    index += 1
                    continue
                input = module(input, epilogue=epilogue)
            if _unseen(before, module):
                recompute_input(input, given)
            before = module
        return input
