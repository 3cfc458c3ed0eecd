"""Ahead-of-time compilation of Triton kernels, without a GPU.

A kernel's tuning table promises that each of its configurations compiles, fits the machine and uses
the instructions that it was written for. This file makes that promise checkable on any computer:
a kernel module lists its specializations as `KernelVariant` records (`variants(architecture)`),
`compile_variant` compiles one for a named architecture and reads what it uses out of the assembly
and the binary, `catalogue` walks every kernel module, and `violations` holds the result to the
architecture's limits.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastgan.kernels.architecture import ARCHITECTURES

# Names under which matrix instructions are reported, and how the assembly spells them.
MATRIX_INSTRUCTIONS: dict[str, str] = {
    "mma.sync": r"\bmma\.sync",
    "wgmma": r"\bwgmma\.mma_async",
    "tcgen05": r"\btcgen05\.mma",
    "mfma": r"\bv_mfma",
}


@dataclass(frozen=True)
class KernelVariant:
    """One specialization of a kernel, as a launcher would run it.

    Attributes:
        kernel: the `@triton.jit` function.
        name: unique within the catalogue; says kernel, shape class and dtype.
        signature: run-time arguments in Triton's notation: "*bf16" (a pointer; torch's allocator
            aligns it to 16 bytes and the compiler is told so), "i32", "fp32"; "i32:16" is
            an integer known to be divisible by 16.
        constants: the `tl.constexpr` arguments, and arguments that are None at run time.
        num_warps, num_stages: launch options.
        architectures: the architectures whose table holds this variant.
        matrix: must contain the architecture's matrix instructions.
        load_bytes: its widest load from global memory must be at least this many bytes a thread.
    """

    kernel: Any
    name: str
    signature: dict[str, str]
    constants: dict[str, object]
    num_warps: int
    num_stages: int
    architectures: tuple[str, ...]
    matrix: bool = False
    load_bytes: int = 0


@dataclass(frozen=True)
class Resources:
    """What one compiled specialization uses.

    Attributes:
        registers: 32-bit registers a thread (AMD: vector + accumulation registers).
        shared_memory: bytes a program.
        spills: bytes a thread keeps in local memory for want of registers, or for its stack.
        matrix_instructions: number of them in the assembly, by name ("wgmma": 4); empty if none.
        global_load: bytes a thread of the widest load from global memory; asynchronous copies
            count with what one thread asks for, 0 if there are only bulk (TMA) copies or none.
        bulk_copies: number of bulk tensor copies (TMA) in the assembly.
        tensor_memory: columns of tensor memory (sm_100).
    """

    registers: int
    shared_memory: int
    spills: int
    matrix_instructions: dict[str, int]
    global_load: int
    bulk_copies: int
    tensor_memory: int


def compile_variant(variant: KernelVariant, architecture: str) -> Resources:
    """Compiles one specialization for an architecture; needs no GPU.

    Args:
        variant: the specialization.
        architecture: a name in `ARCHITECTURES`.

    Returns:
        What the compiled kernel uses.

    Raises:
        RuntimeError: Triton's interpreter is on (TRITON_INTERPRET was set when the kernel module
            was imported), so there is nothing to compile.
        ValueError: the architecture is unknown.
        Exception: whatever Triton raises when the kernel does not compile.
    """
    if not isinstance(variant.kernel, triton.JITFunction):
        raise RuntimeError(
            f"{variant.name}: its kernel was imported under Triton's interpreter; "
            "unset TRITON_INTERPRET and start a new process to compile it"
        )
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture is {architecture!r}, must be one of {list(ARCHITECTURES)}")
    chip = ARCHITECTURES[architecture]
    compiled = triton.compile(
        _source(variant),
        target=GPUTarget(chip.backend, chip.arch, chip.warp_size),
        # Triton 3.9 announces another default for FP fusion in 3.10 and warns where none is named.
        options={
            "num_warps": variant.num_warps,
            "num_stages": variant.num_stages,
            "enable_fp_fusion": True,
        },
    )
    return _amd_resources(compiled) if chip.backend == "hip" else _nvidia_resources(compiled)


def _source(variant: KernelVariant) -> ASTSource:
    """The kernel with its types, constants and alignments, in Triton's form."""
    names = variant.kernel.arg_names
    unknown = set(variant.signature) | set(variant.constants)
    if unknown != set(names):
        raise ValueError(
            f"{variant.name}: signature and constants name {sorted(unknown)}, "
            f"the kernel's arguments are {sorted(names)}"
        )
    signature, attributes = {}, {}
    for position, name in enumerate(names):
        kind, _, divisor = variant.signature.get(name, "constexpr").partition(":")
        signature[name] = kind
        if kind.startswith("*") or divisor:
            attributes[(position,)] = [["tt.divisibility", int(divisor or 16)]]
    return ASTSource(variant.kernel, signature, dict(variant.constants), attributes)


def _matrix_instructions(assembly: str) -> dict[str, int]:
    counts = {name: len(re.findall(spelt, assembly)) for name, spelt in MATRIX_INSTRUCTIONS.items()}
    return {name: count for name, count in counts.items() if count}


def _nvidia_resources(compiled: Any) -> Resources:
    ptx, metadata = compiled.asm["ptx"], compiled.metadata
    usage = _cuobjdump(compiled.asm["cubin"])
    loads = [
        int(lanes or 1) * int(bits) // 8
        for lanes, bits in re.findall(r"\bld\.global[\w.:]*?(?:\.v(\d))?\.[bfsu](\d+)\b", ptx)
    ]
    copies = re.findall(r"\bcp\.async\.c[ag]\.shared\.global[^\[]*\[[^]]*\], \[[^]]*\], (\w+)", ptx)
    loads += [int(size, 0) for size in copies]
    return Resources(
        registers=usage["REG"],
        shared_memory=metadata.shared + usage["SHARED"],
        spills=max(usage["STACK"], usage["LOCAL"]),
        matrix_instructions=_matrix_instructions(ptx),
        global_load=max(loads, default=0),
        bulk_copies=len(re.findall(r"\bcp\.async\.bulk\.tensor", ptx)),
        tensor_memory=metadata.tmem_size,
    )


def _cuobjdump(cubin: bytes) -> dict[str, int]:
    """REG, STACK, SHARED and LOCAL of a binary's one kernel, as cuobjdump tells them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run(
            [tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    usage = {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", told)}
    return {key: usage[key] for key in ("REG", "STACK", "SHARED", "LOCAL")}


def _amd_resources(compiled: Any) -> Resources:
    assembly = compiled.asm["amdgcn"]
    notes = {key: int(value) for key, value in re.findall(r"\.(\w+): +(\d+)\n", assembly)}
    names = r"\b(?:global|buffer)_load_(?:lds_)?(\w+)"
    width = {"ubyte": 1, "sbyte": 1, "ushort": 2, "sshort": 2, "short": 2, "dword": 4}
    width |= {"dwordx2": 8, "dwordx3": 12, "dwordx4": 16}
    kinds = (kind.split("_d16")[0] for kind in re.findall(names, assembly))
    loads = [width[kind] for kind in kinds if kind in width]
    return Resources(
        registers=notes["vgpr_count"],
        shared_memory=compiled.metadata.shared,
        spills=notes["private_segment_fixed_size"],
        matrix_instructions=_matrix_instructions(assembly),
        global_load=max(loads, default=0),
        bulk_copies=0,
        tensor_memory=0,
    )


def violations(variant: KernelVariant, architecture: str, resources: Resources) -> list[str]:
    """What a compiled specialization does that it must not; empty if it keeps to its budget.

    Args:
        variant: the specialization; says what it promises.
        architecture: a name in `ARCHITECTURES`; says what the chip offers.
        resources: what `compile_variant` returned.

    Returns:
        One sentence for each broken promise.
    """
    chip = ARCHITECTURES[architecture]
    found = []
    if resources.registers > chip.registers:
        found.append(f"{resources.registers} registers a thread, {chip.registers} allowed")
    if resources.shared_memory > chip.shared_memory:
        found.append(
            f"{resources.shared_memory} bytes of shared memory, {chip.shared_memory} allowed"
        )
    if resources.spills:
        found.append(f"{resources.spills} bytes a thread spilt to local memory")
    if variant.matrix and chip.matrix_instruction not in resources.matrix_instructions:
        found.append(f"no {chip.matrix_instruction} instruction")
    if resources.global_load < variant.load_bytes and not resources.bulk_copies:
        found.append(
            f"widest global load is {resources.global_load} bytes, {variant.load_bytes} promised"
        )
    return found


def catalogue(architecture: str) -> Iterator[KernelVariant]:
    """Every specialization shipped for an architecture: the `variants` of each kernel module."""
    package = importlib.import_module(__package__)
    for module in sorted(entry.name for entry in pkgutil.iter_modules(package.__path__)):
        listed = getattr(importlib.import_module(f"{__package__}.{module}"), "variants", None)
        if listed is not None:
            own: Iterable[KernelVariant] = listed(architecture)
            yield from (variant for variant in own if architecture in variant.architectures)
