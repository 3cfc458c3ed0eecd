"""Registration of `torch.ops.fastgan.*`: define, impl per device, and a fake.

`torch.library.custom_op` with `register_autograd` costs tens of microseconds a call; a bare
definition with the autograd Function outside of the operator costs a few. The price is that the
operators have no derivative of their own: call the functions of `fastgan.ops`, not these.

Where nobody looks on (no tracing, no dispatch mode, no tensor subclass) the dispatcher would only
find its way back to the Python function that it was called from, so that function is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

# A fragment: the compiled extension adds operators to the same namespace.
_library = torch.library.Library("fastgan", "FRAGMENT")

#: The overloads registered from Python, by name; what `opcheck` is run on.
OPERATORS: dict[str, Any] = {}

#: Types of arguments that hide nothing from a function that is called with them.
_PLAIN = frozenset(
    {Tensor, Parameter, type(None), str, bool, int, float, tuple, list, torch.Size, torch.dtype}
)
_dispatch_modes = torch._C._len_torch_dispatch_stack


def register(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Define an operator and return what to call: the operator, or `run` where that is the same.

    Args:
        schema: "name(arguments) -> returns"; the last argument is `str implementation`.
        run: computes it on CPU and CUDA tensors; told the implementation by name, so that a
            compiled graph and an eager call take the same path.
        fake: returns empty tensors of the shapes, dtypes and strides that `run` returns.
    """
    name = schema.partition("(")[0]
    _library.define(schema)
    for dispatch_key in ("CPU", "CUDA"):
        _library.impl(name, run, dispatch_key)
    torch.library.register_fake(f"fastgan::{name}", fake, lib=_library)
    overload = getattr(torch.ops.fastgan, name).default
    OPERATORS[name] = overload

    def call(*arguments: Any) -> Any:
        if (
            torch.compiler.is_compiling()
            or _dispatch_modes()
            or not _PLAIN.issuperset(map(type, arguments))
        ):
            return overload(*arguments)
        return run(*arguments)

    return call
