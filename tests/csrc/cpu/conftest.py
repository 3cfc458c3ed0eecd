"""Every test of the native kernels runs at each instruction-set level, into poisoned buffers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from fastgan import native, native_build


@pytest.fixture(scope="session")
def extension() -> native.Extension:
    """The extension as users get it: from the package or the cache, built if need be."""
    obstacle = native_build.obstacle()
    if obstacle is not None:
        pytest.skip(obstacle)
    return native.build()


@pytest.fixture(params=list(native_build.levels()))
def level(request: pytest.FixtureRequest, extension: native.Extension) -> Iterator[str]:
    """One instruction-set level, forced; skipped where the processor does not have it."""
    if request.param not in extension.module.levels():
        pytest.skip(f"this processor has no {request.param}")
    with native.forced_level(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _poisoned_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill every fresh buffer with NaN, so that an element nobody writes shows."""
    empty, empty_like = torch.empty, torch.empty_like
    monkeypatch.setattr(torch, "empty", lambda *args, **kw: empty(*args, **kw).fill_(math.nan))
    monkeypatch.setattr(torch, "empty_like", lambda x, **kw: empty_like(x, **kw).fill_(math.nan))
