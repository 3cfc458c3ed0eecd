"""Every barrier of every kernel is needed: without it, some test of the kernel fails.

Each mutant lacks one barrier. It is compiled for the shim and run on fixed cases in several thread
orders; the checks are those that the kernels themselves have to pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import test_cuda_adversarial_loss as loss
import test_cuda_batch_norm as batch_norm
import test_cuda_bias_act as bias_act
import test_cuda_image_convolution as convolution
import test_cuda_pack_weights as packing
import torch
from simt_library import Barrier, LaunchError, Library, barriers, compile_without

from fastgan.native_cuda_build import SHARED_LIMITS

NORM = batch_norm.BIG
CONVOLUTION = replace(convolution.DCGAN, small_size=(9, 9), small_channels=70)
LOSS = loss.Case("non_saturating", False, 900, 1100, torch.float32, (0.9, 0.1), 11)


def norm_checks(check: Callable[[Library, batch_norm.Case, bool], None]) -> list[Callable]:
    return [
        lambda simt, order, variant=variant: check(
            simt, replace(NORM, variant=variant, order=order), True
        )
        for variant in ("resident", "streaming")
    ]


def convolution_check(direction: str) -> Callable[[Library, int], None]:
    return lambda simt, order: convolution.check(simt, replace(CONVOLUTION, order=order), direction)


#: What a mutant of a family is run on: checks of a library in a thread order.
CHECKS: dict[str, list[Callable[[Library, int], None]]] = {
    "batch_norm_forward": norm_checks(batch_norm.check_forward),
    "batch_norm_backward": norm_checks(batch_norm.check_backward),
    "bias_act": [lambda simt, order: bias_act.check(simt, replace(bias_act.IMAGES, seed=order))],
    "adversarial_loss": [lambda simt, order: loss.check(simt, replace(LOSS, order=order))],
    "image_fprop": [convolution_check("fprop")],
    "image_dgrad": [convolution_check("dgrad")],
    "image_wgrad": [convolution_check("wgrad")],
    "pack_weights": [
        partial(
            lambda simt, order: packing.check(
                simt, [(3, 70, 4, 4, packing.LAYOUTS[0])], torch.float32, 1, order
            )
        )
    ],
}
#: Families in which a header's barriers are taken away.
HEADERS: dict[str, tuple[str, ...]] = {
    "columns.cuh": ("batch_norm_forward", "batch_norm_backward"),
    "image_product.cuh": ("image_fprop", "image_wgrad"),
}
ORDERS = range(1, 5)

MUTANTS = [
    (barrier, family)
    for barrier in barriers()
    for family in HEADERS.get(barrier.file, (Path(barrier.file).stem,))
]


def fails(simt: Library, check: Callable[[Library, int], None], order: int) -> bool:
    try:
        check(simt, order)
    except (AssertionError, LaunchError):
        return True
    finally:
        simt.release()
    return False


@pytest.mark.parametrize("family", CHECKS)
def test_the_checks_pass_with_all_barriers(shim_library: Library, family: str) -> None:
    shim_library.most_shared()
    assert not any(
        fails(shim_library, check, order) for check in CHECKS[family] for order in ORDERS
    )
    assert 0 < shim_library.most_shared() <= SHARED_LIMITS[family]


@pytest.mark.parametrize(
    ("barrier", "family"), MUTANTS, ids=[f"{barrier}-{family}" for barrier, family in MUTANTS]
)
def test_without_one_barrier_a_check_fails(
    barrier: Barrier, family: str, shim_objects: dict[str, Path], tmp_path: Path
) -> None:
    mutant = compile_without(barrier, family, shim_objects, tmp_path)
    assert any(fails(mutant, check, order) for check in CHECKS[family] for order in ORDERS)
