"""Settings for the whole test process.

Without a GPU, Triton kernels run in Triton's interpreter, which must be switched on before the
first kernel module is imported. Ahead-of-time compile checks switch it off in processes of their
own. Tests marked `gpu` run where there is a CUDA device and are skipped elsewhere.
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

HAS_CUDA = torch.cuda.is_available()
if not HAS_CUDA:
    os.environ.setdefault("TRITON_INTERPRET", "1")
    from triton_interpreter import use_hardware_rounding

    use_hardware_rounding()

# The same drawn cases on every run: a red test is red for everyone. `--hypothesis-profile=explore`
# draws new ones.
settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile("explore", deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("ci")


def pytest_configure(config: pytest.Config) -> None:
    # Two workers on two cores must not start two threads each.
    if os.environ.get("PYTEST_XDIST_WORKER"):
        torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if HAS_CUDA:
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def rng() -> torch.Generator:
    """A seeded CPU generator."""
    return torch.Generator().manual_seed(0)
