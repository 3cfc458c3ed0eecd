"""`bench resources`: what every shipped kernel specialization uses on every chip, without a GPU.

Each specialization in the tuning tables is compiled ahead of time for each architecture that ships
it; registers, shared memory, spills, matrix instructions and the width of its loads are read from
the binary and held to the chip's limits and to what the kernel promises. The compiling happens in
worker processes of their own, in which Triton's interpreter is off whatever it is here.

The C++ CUDA kernels stand beside them where there is an nvcc: what ptxas says of each, held to the
budget of `fastgan.native_cuda_build`.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

# Registers, shared memory and the rest as `fastgan.kernels.compilation.Resources` names them.
Record = dict[str, Any]


def work(share: str, architectures: list[str]) -> None:
    """Compiles one share of the catalogue and prints a JSON record a line; runs in a worker.

    Args:
        share: "k/n": every n-th specialization from the k-th on.
        architectures: names in `fastgan.kernels.architecture.ARCHITECTURES`.
    """
    from fastgan.kernels.compilation import catalogue, compile_variant, violations

    first, step = (int(number) for number in share.split("/"))
    listed = [(name, variant) for name in architectures for variant in catalogue(name)]
    for architecture, variant in listed[first::step]:
        record: Record = {
            "architecture": architecture,
            "name": variant.name,
            "num_warps": variant.num_warps,
            "num_stages": variant.num_stages,
            "of": len(listed),
        }
        try:
            resources = compile_variant(variant, architecture)
        except Exception as error:  # any failure to compile is a finding about this kernel
            record |= {"violations": [f"does not compile: {type(error).__name__}: {error}"]}
        else:
            record |= dataclasses.asdict(resources)
            record |= {"violations": violations(variant, architecture, resources)}
        print(json.dumps(record), flush=True)


def measure(
    architectures: Iterable[str],
    jobs: int | None = None,
    report: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Compiles the whole catalogue in parallel processes.

    Args:
        architectures: names in `fastgan.kernels.architecture.ARCHITECTURES`.
        jobs: processes; one a processor by default.
        report: called with each record as it comes.

    Returns:
        One record a specialization and architecture, by architecture and name: the fields of
        `Resources` (absent if it did not compile), num_warps, num_stages, and "violations".

    Raises:
        RuntimeError: a worker died; the message holds what it said.
    """
    names = list(architectures)
    jobs = jobs or os.cpu_count() or 1
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    code = "import sys; from bench.resources import work; work(sys.argv[1], sys.argv[2:])"

    def run(share: int) -> list[Record]:
        command = [sys.executable, "-c", code, f"{share}/{jobs}", *names]
        records = []
        with subprocess.Popen(
            command,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as worker:
            said = []
            for line in worker.stdout or ():
                if not line.startswith('{"architecture"'):
                    said.append(line)
                    continue
                records.append(json.loads(line))
                if report is not None:
                    report(records[-1])
        if worker.returncode:
            raise RuntimeError(f"a compiling process died:\n{''.join(said[-20:])}")
        return records

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        parts = list(pool.map(run, range(jobs)))
    order = {name: index for index, name in enumerate(names)}
    return sorted(
        (record for part in parts for record in part),
        key=lambda record: (order[record["architecture"]], record["name"]),
    )


def cuda_chip(architecture: str) -> str | None:
    """The chip that nvcc compiles for to serve an architecture, such as "sm_90a", or None."""
    from fastgan.native_cuda_build import ARCHITECTURES

    return next((chip for chip in ARCHITECTURES if chip.rstrip("a") == architecture), None)


def measure_cuda(architectures: Iterable[str], jobs: int | None = None) -> list[Record]:
    """Compiles the C++ CUDA kernels with nvcc.

    Args:
        architectures: as of `measure`; those that nvcc does not compile for are passed over.
        jobs: compilers at a time; one a processor by default.

    Returns:
        One record a kernel and architecture, as `measure` returns them but for what ptxas does not
        tell. "shared_memory" is the most that the kernel's launcher may ask for.
    """
    from fastgan import native_cuda_build
    from fastgan.errors import NativeBuildError

    def inspect(pair: tuple[str, str]) -> list[Record]:
        architecture, family = pair
        source: Record = {"architecture": architecture, "name": f"{family}.cu"}
        try:
            rows = native_cuda_build.resources([str(cuda_chip(architecture))], [family])
        except NativeBuildError as error:
            return [source | {"violations": [f"does not compile: {error}"]}]
        if not rows:
            return [source | {"violations": ["ptxas names no kernel"]}]
        dynamic = native_cuda_build.SHARED_LIMITS[family]
        return [
            source
            | {
                "name": f"{family}.cu {row.kernel.replace('<', '[').replace('>', ']')}",
                "registers": row.registers,
                "shared_memory": row.static_shared_bytes + dynamic,
                "spills": row.spill_bytes,
                "violations": native_cuda_build.violations(row),
            }
            for row in rows
        ]

    pairs = [
        (architecture, family)
        for architecture in architectures
        if cuda_chip(architecture) is not None
        for family in sorted(native_cuda_build.FAMILIES)
    ]
    with concurrent.futures.ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        return [record for records in pool.map(inspect, pairs) for record in records]


def resources_table(architecture: str, records: Iterable[Record]) -> Table:
    """One line a specialization of an architecture; those that break their budget in red."""
    table = Table(title=architecture, title_justify="left", title_style="bold")
    table.add_column("kernel", overflow="fold", max_width=38)
    table.add_column("configuration", overflow="fold")
    for heading in ("warps", "registers", "shared B", "spilt B"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("matrix", no_wrap=True)
    table.add_column("load B", justify="right", no_wrap=True)
    for record in records:
        kernel, _, configuration = record["name"].rstrip("]").partition("[")
        style = "red" if record["violations"] else ""
        if "registers" not in record:
            table.add_row(kernel, configuration, style=style)
            continue
        # Of the CUDA kernels ptxas tells neither warps nor instructions.
        found = record.get("matrix_instructions", {}).items()
        table.add_row(
            kernel,
            configuration,
            str(record.get("num_warps", "")),
            str(record["registers"]),
            f"{record['shared_memory']:,}",
            str(record["spills"]),
            ", ".join(f"{count} {name}" for name, count in found),
            "TMA" if record.get("bulk_copies") else str(record.get("global_load", "")),
            style=style,
        )
    return table


def main(
    architecture: Annotated[
        list[str] | None,
        typer.Option(help="Only this one: sm_80, sm_90, sm_100 or gfx942; repeat for more."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Compiling processes (default: one a processor).")
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option("--json", help="Write the results here; a folder gets resources.json."),
    ] = None,
) -> None:
    """Compile every shipped kernel for every chip, and show what each uses. Needs no GPU.

    Registers and spilt bytes a thread, shared memory a program, and of Triton's kernels matrix
    instructions and the widest load from global memory; ends with status 1 if a kernel breaks its
    budget. The CUDA kernels (.cu) are compiled where there is an nvcc.

    `python -m bench resources --architecture sm_90 --json resources.json`
    """
    import torch

    from bench.results import FAILED, OK, Results, Row, capture_environment
    from bench.tables import bench_console
    from fastgan import native_cuda_build
    from fastgan.errors import ConfigError
    from fastgan.kernels.architecture import ARCHITECTURES

    names = architecture or list(ARCHITECTURES)
    for name in names:
        if name not in ARCHITECTURES:
            raise ConfigError(f"--architecture {name!r} is not known: {', '.join(ARCHITECTURES)}")
    console = bench_console()
    done: list[Record] = []
    with console.status("compiling ...") as status:

        def report(record: Record) -> None:
            done.append(record)
            status.update(f"compiled {len(done)} of {record['of']}: {record['name']}")

        records = measure(names, jobs, report)
        no_nvcc = native_cuda_build.toolkit_obstacle()
        if no_nvcc is None:
            status.update("compiling the CUDA kernels with nvcc")
            records += measure_cuda(names, jobs)
    for name in names:
        own = (record for record in records if record["architecture"] == name)
        console.print(resources_table(name, own))
    broken = [record for record in records if record["violations"]]
    for record in broken:
        for violation in record["violations"]:
            console.print(
                f"{record['architecture']} {record['name']}: {violation}", style="red", markup=False
            )
    console.print(f"{len(records)} specializations compiled, {len(broken)} break their budget")
    if no_nvcc is not None:
        console.print(f"without the CUDA kernels: {no_nvcc}", markup=False, soft_wrap=True)
    if json is not None:
        kept = ("architecture", "name", "violations", "of")
        rows = [
            Row(
                case=record["name"],
                provider=record["architecture"],
                status=FAILED if record["violations"] else OK,
                message="; ".join(record["violations"]),
                extra={key: value for key, value in record.items() if key not in kept},
            )
            for record in records
        ]
        results = Results("resources", capture_environment(torch.device("cpu"), seed=0), rows=rows)
        path = json / "resources.json" if json.is_dir() else json
        console.print(f"written: {results.write(path)}", highlight=False, soft_wrap=True)
    if broken:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
