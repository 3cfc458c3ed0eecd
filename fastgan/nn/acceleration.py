"""Make the layers of an existing model fast in place, and undo it.

`accelerate` changes the class of each module that a kernel can serve and nothing else: the module
object, its parameters, buffers, hooks, flags and name are the same ones afterwards, so optimizers,
wrappers and anything else that holds a reference go on working. `restore` sets the classes back.

Three kinds of class are met:

- a `torch.nn` class becomes its twin in `fastgan.nn`;
- a subclass that inherits its forward becomes a subclass of itself and the twin (in that order, so
  that all it defines stays in force and the twin supplies only the forward);
- the class that `torch.nn.utils.parametrize` injected into one instance is made anew on the
  accelerated base, with the same properties.
"""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from fastgan.nn.batch_norm import BatchNorm2d
from fastgan.nn.convolution import Conv2d, ConvTranspose2d
from fastgan.nn.losses import BCELoss
from fastgan.nn.sequential import Sequential

ModuleT = TypeVar("ModuleT", bound=nn.Module)

TWINS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: Conv2d,
    nn.ConvTranspose2d: ConvTranspose2d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.Sequential: Sequential,
    nn.BCELoss: BCELoss,
}
_ORIGINALS = {twin: original for original, twin in TWINS.items()}

# What a twin reimplements; a subclass that defines one of them computes something of its own.
_FORWARD_METHODS = ("forward", "_conv_forward", "__call__", "_call_impl", "__iter__")
# How a subclass may say that it is built or stored in a way of its own.
_CREATION_METHODS = ("__reduce__", "__reduce_ex__", "__deepcopy__", "__init_subclass__", "__new__")

# The attribute of a class made here that holds the class it was made from.
_MADE_FROM = "_fastgan_made_from"


def accelerate(model: ModuleT) -> ModuleT:
    """Let fastgan's operators run the layers of `model`, in place.

    Conv2d, ConvTranspose2d and BatchNorm2d (and BCELoss) run fastgan's operators; a ReLU,
    LeakyReLU, Tanh or Sigmoid right after one of them in a Sequential is applied by it in the same
    pass. Outputs, gradients, running statistics, parameters, state_dict keys, hooks and module
    names stay as they are. Calling it again changes nothing more; call it again after lazy modules
    have taken shape. Before tools that look at the exact class of a layer or rewrite its forward
    (quantization, torch.fx, TorchScript), and before saving a whole module for a machine without
    fastgan, call `restore`; a state_dict needs nothing.

    Args:
        model: any module, a wrapped one (DDP, torch.compile) and a single layer included.

    Returns:
        `model` itself: every module in it is still the same object, the root too.
    """
    for module in model.modules():
        if why_left_alone(module) is None:
            module.__class__ = accelerated_class(module)
    return model


def restore(model: ModuleT) -> ModuleT:
    """Undo `accelerate`: every module gets back exactly the class it had.

    Layers that were built as `fastgan.nn.Conv2d(...)` and the like stay what they are, because
    they may apply an activation that plain torch.nn would leave out.

    Args:
        model: a module on which `accelerate` was called, or a copy or an unpickled one.

    Returns:
        `model` itself.
    """
    for module in model.modules():
        if not _built_by_hand(module):
            original = _original_class(type(module), is_parametrized(module))
            if original is not type(module):
                module.__class__ = original
    return model


def why_left_alone(module: nn.Module) -> str | None:
    """Say why `accelerate` does not change `module`, or None if it does."""
    cls = type(module)
    if issubclass(cls, tuple(_ORIGINALS)):
        return "it is already accelerated"
    if isinstance(module, LazyModuleMixin):
        return "it is lazy: call accelerate again after the first forward pass has given it a shape"
    plain = cls.__bases__[0] if is_parametrized(module) else cls
    base = next((original for original in TWINS if issubclass(plain, original)), None)
    if base is None:
        return f"no fastgan operator computes {cls.__name__}"
    if "forward" in module.__dict__:
        return "its forward is replaced on the instance"
    if plain is not base:
        own = _own_method(plain, base, _FORWARD_METHODS)
        if own:
            return f"{plain.__name__} is a subclass of {base.__name__} with its own {own}"
        own = _own_method(plain, base, _CREATION_METHODS)
        if own or type(plain) is not type:
            return f"{plain.__name__} controls how its instances are made ({own or 'metaclass'})"
    taken = [name for name in _attributes_of(TWINS[base]) if hasattr(module, name)]
    if taken:
        return f"it has an attribute of its own named {taken[0]!r}"
    return None


def accelerated_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that `accelerate` gives to `module` (see the module docstring)."""
    cls = type(module)
    if is_parametrized(module):
        return _with_base(cls, _accelerated_plain(cls.__bases__[0]), made_from=cls)
    return _accelerated_plain(cls)


def _accelerated_plain(cls: type[nn.Module]) -> type[nn.Module]:
    if cls in TWINS:
        return TWINS[cls]
    # One class for all instances: torch.compile guards on it, and pickle asks for it again.
    for made in cls.__subclasses__():
        if made.__dict__.get(_MADE_FROM) is cls:
            return made
    twin = next(twin for original, twin in TWINS.items() if issubclass(cls, original))
    body = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__reduce_ex__": _reduce_by_original,
        _MADE_FROM: cls,
    }
    return type(cls.__name__, (cls, twin), body)


def _reduce_by_original(module: nn.Module, protocol: Any) -> tuple[Any, ...]:
    """Pickle an instance of a class made here by the class it was made from."""
    original = _original_class(type(module), False)
    return _new_accelerated, (original,), module.__getstate__()


def _new_accelerated(original: type[nn.Module]) -> nn.Module:
    cls = _accelerated_plain(original)
    return cls.__new__(cls)


def _original_class(cls: type[nn.Module], parametrized: bool) -> type[nn.Module]:
    """Return the class that an instance of `cls` had before `accelerate`; `cls` if the same."""
    if not parametrized:
        return _ORIGINALS.get(cls) or cls.__dict__.get(_MADE_FROM, cls)
    base = _original_class(cls.__bases__[0], False)
    if base is cls.__bases__[0]:
        return cls
    original = cls.__dict__.get(_MADE_FROM)
    # Parametrizations may have come or gone since: each is a property of the class.
    if original is not None and _properties(original) == _properties(cls):
        return original
    return _with_base(cls, base, made_from=None)


def _with_base(
    cls: type[nn.Module], base: type[nn.Module], made_from: type[nn.Module] | None
) -> type[nn.Module]:
    """Make a class like `cls`, one that parametrize injected, on another base."""
    leave = ("__dict__", "__weakref__", _MADE_FROM)
    body = {name: value for name, value in cls.__dict__.items() if name not in leave}
    if made_from is not None:
        body[_MADE_FROM] = made_from
    return type(cls.__name__, (base,), body)


def _properties(cls: type) -> set[str]:
    return {name for name, value in cls.__dict__.items() if isinstance(value, property)}


def _own_method(cls: type, base: type, names: tuple[str, ...]) -> str | None:
    """Return the first of `names` that `cls` has from elsewhere than `base`."""
    for ancestor in cls.__mro__:
        if not issubclass(base, ancestor):
            for name in names:
                if name in ancestor.__dict__:
                    return name
    return None


def _attributes_of(twin: type[nn.Module]) -> tuple[str, ...]:
    """The attributes that a twin reads and its torch.nn original does not have."""
    return tuple(getattr(twin, "own_attributes", ()))


def _built_by_hand(module: nn.Module) -> bool:
    """True for a layer made by the twin's constructor, which alone sets these on the instance."""
    return any(name in module.__dict__ for name in _attributes_of(type(module)))
