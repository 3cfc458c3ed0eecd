"""Drop-in layers: fast twins of `torch.nn` classes, and a switch that puts them under a model.

    import fastgan

    model = Generator()                      # any torch.nn model, trained or not
    fastgan.accelerate(model)                # in place: same parameters, state_dict, hooks, names
    print(fastgan.explain(model, z))         # layer by layer: what runs it, and why nothing faster
    fastgan.restore(model)                   # plain torch.nn again

`accelerate` changes the class of the Conv2d, ConvTranspose2d, BatchNorm2d, BCELoss and Sequential
modules that it finds and touches nothing else, so optimizers, hooks, checkpoints, `copy.deepcopy`,
pickle, DDP and torch.compile go on as before; it may be called before or after any of them. In a
Sequential, a ReLU, LeakyReLU, Tanh or Sigmoid right after one of these layers runs in the same pass
as the layer. What no kernel serves runs as torch runs it, and `explain` says so.

The layers can be used by name too, with the arguments of their twins and an activation:

    nn.Sequential(
        fastgan.nn.ConvTranspose2d(128, 64, 4, 2, 1, bias=False),
        fastgan.nn.BatchNorm2d(64, activation="relu"),
    )
"""

from __future__ import annotations

from fastgan.nn.acceleration import accelerate, restore
from fastgan.nn.batch_norm import BatchNorm2d
from fastgan.nn.convolution import Conv2d, ConvTranspose2d
from fastgan.nn.explanation import Explanation, LayerRecord, explain
from fastgan.nn.losses import BCELoss, DiscriminatorLoss, GeneratorLoss
from fastgan.nn.sequential import Sequential

__all__ = [
    "BCELoss",
    "BatchNorm2d",
    "Conv2d",
    "ConvTranspose2d",
    "DiscriminatorLoss",
    "Explanation",
    "GeneratorLoss",
    "LayerRecord",
    "Sequential",
    "accelerate",
    "explain",
    "restore",
]
