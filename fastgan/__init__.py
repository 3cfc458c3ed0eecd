"""fastgan: a GAN engine whose speed comes from kernels of its own.

Three ways in: `fastgan.accelerate(model)` makes the layers of any PyTorch model faster in place;
`python -m bench` measures what is faster, where and why; `fastgan train` trains a DCGAN on a
folder of images.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_source_root = Path(__file__).resolve().parent.parent
if (_source_root / "kernels" / "__init__.py").exists() and (_source_root / "setup.py").exists():
    # In a source tree that is not installed, fastgan.kernels is the top-level kernels/ folder.
    __path__.append(str(_source_root))

# Public names and the modules that hold them: imported on first use, so that `import fastgan`
# and the command line's help stay quick.
_exports = {
    "accelerate": "fastgan.nn.acceleration",
    "restore": "fastgan.nn.acceleration",
    "explain": "fastgan.nn.explanation",
    "backend": "fastgan.ops.implementations",
    "keep_freed_memory": "fastgan.memory",
}
_subpackages = ("data", "errors", "kernels", "models", "nn", "ops", "training")

__all__ = ["__version__", *_exports, *_subpackages]


def __getattr__(name: str) -> Any:
    if name in _exports:
        value = getattr(importlib.import_module(_exports[name]), name)
        globals()[name] = value
        return value
    if name in _subpackages:
        return importlib.import_module(f"fastgan.{name}")
    raise AttributeError(f"module 'fastgan' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
