"""Every shipped specialization compiles for every chip and keeps to its budget, without a GPU."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import textwrap

import pytest
from rich.console import Console

from bench.resources import measure, resources_table
from fastgan.kernels import bias_act, compilation
from fastgan.kernels.architecture import ARCHITECTURES
from fastgan.kernels.compilation import KernelVariant, Resources, catalogue, violations

FITTING = Resources(
    registers=64,
    shared_memory=1024,
    spills=0,
    matrix_instructions={"wgmma": 4},
    global_load=16,
    bulk_copies=0,
    tensor_memory=0,
)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_specialization_keeps_to_its_budget(architecture):
    # Two workers of xdist are two processes already. Triton's cache makes a second run quick.
    jobs = 1 if os.environ.get("PYTEST_XDIST_WORKER") else None
    records = measure([architecture], jobs)
    assert len(records) == len(list(catalogue(architecture)))
    broken = [f"{one['name']}: {what}" for one in records for what in one["violations"]]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_catalogue_names_every_family_once(architecture):
    names = [variant.name for variant in catalogue(architecture)]
    assert len(names) == len(set(names))
    families = {name.partition("[")[0].partition("_kernel")[0] for name in names}
    expected = {"fprop", "dgrad", "wgrad", "bias_act_forward", "batch_norm_act_normalise"}
    assert expected | {"adversarial_loss_discriminator", "channel_sums"} <= families


def variant(**changes: object) -> KernelVariant:
    listed = next(iter(bias_act.variants("sm_90")))
    return dataclasses.replace(listed, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"spills": 8}, ["8 bytes a thread spilt"]),
        ({"registers": 256}, ["256 registers a thread, 255 allowed"]),
        ({"shared_memory": 2**18}, ["262144 bytes of shared memory"]),
        ({"matrix_instructions": {"mma.sync": 4}}, ["no wgmma instruction"]),
        ({"matrix_instructions": {}}, ["no wgmma instruction"]),
        ({"global_load": 8}, ["widest global load is 8 bytes, 16 promised"]),
        ({"global_load": 0, "bulk_copies": 2}, []),
    ],
    ids=str,
)
def test_budget(changes, said):
    found = violations(variant(matrix=True), "sm_90", dataclasses.replace(FITTING, **changes))
    assert len(found) == len(said)
    assert all(part in whole for part, whole in zip(said, found, strict=True))


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="nothing is interpreted")
def test_interpreted_kernels_are_refused():
    with pytest.raises(RuntimeError, match="unset TRITON_INTERPRET"):
        compilation.compile_variant(variant(), "sm_90")


def test_kernels_that_break_their_promise_are_found():
    """A kernel that spills, loads narrowly, lacks matrix instructions or does not compile."""
    script = """
        import dataclasses
        from fastgan.kernels import bias_act, compilation

        listed = next(iter(bias_act.variants("sm_90")))
        tall = dataclasses.replace(listed, constants=listed.constants | {"BLOCK_R": 512})
        odd = dataclasses.replace(listed, signature=listed.signature | {"columns": "i32"})
        for one in (tall, odd, dataclasses.replace(listed, matrix=True), listed):
            resources = compilation.compile_variant(one, "sm_90")
            print(compilation.violations(one, "sm_90", resources))
        try:
            compilation.compile_variant(dataclasses.replace(listed, constants={}), "sm_90")
        except ValueError as error:
            print(error)
    """
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    tall, odd, product, listed, refused = done.stdout.splitlines()
    assert "spilt to local memory" in tall
    assert "widest global load is 4 bytes, 16 promised" in odd
    assert "no wgmma instruction" in product
    assert listed == "[]"
    assert "signature and constants name" in refused


def test_table_shows_what_was_found():
    records = [
        {"name": "kernel[64x64, bf16]", "num_warps": 4, "violations": []}
        | dataclasses.asdict(FITTING),
        {"name": "broken[1]", "num_warps": 4, "violations": ["does not compile"]},
    ]
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(resources_table("sm_90", records))
    shown = console.export_text()
    for word in ("sm_90", "kernel", "64x64, bf16", "1,024", "4 wgmma", "broken"):
        assert word in shown
