"""The parts of `bench gpu-check` that measure, each run in a process of its own.

A kernel that reads out of bounds ends a CUDA context for good, and a process with it. So a part is
a list of tasks, whose rows are handed to the parent as they come; after such an error the process
ends, and the parent starts another that leaves out what was done and the provider that did it.
The protocol is a file of JSON lines, each with one key: ceilings, begun, rows, tainted or done.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from bench.baselines import Workload
from bench.ceilings import measure_ceilings
from bench.grid import OpsOptions, run_task, tasks
from bench.memory import memory_rows, providers_of
from bench.method import first_line
from bench.overhead import run_overhead
from bench.results import ERROR, Row
from bench.step import StepOptions, all_providers, step_cases, step_rows

TAINTED = 3
CUDA_ERRORS = ("CUDA error", "AcceleratorError", "CUBLAS_STATUS", "CUDNN_STATUS_EXECUTION_FAILED")
# Takes the providers to leave out; gives rows, or the measured ceilings by name.
Run = Callable[[Container[str]], list[Row] | dict[str, float]]


@dataclass(frozen=True)
class Request:
    """What the parent asks of a part's process.

    Attributes:
        part: its name in `PARTS`.
        device: "cuda", "cpu" ...
        tiny: the sizes of a dry run.
        done: names of tasks that are finished.
        exclude: providers to leave out, by task.
        file: where the JSON lines go.
    """

    part: str
    device: str
    tiny: bool
    done: tuple[str, ...]
    exclude: dict[str, list[str]]
    file: str


def _ceilings(request: Request, device: torch.device) -> tuple[dict[str, float], Run]:
    """The measured rates, and the task that hands them over."""
    ceilings = measure_ceilings(device, tiny=request.tiny)
    return ceilings, lambda _exclude: ceilings


def _grid(
    request: Request, options: OpsOptions, ceilings: dict[str, float]
) -> Iterator[tuple[str, Run]]:
    if request.tiny:
        options = dataclasses.replace(
            options,
            image_sizes=(16,),
            batch_sizes=(2,),
            precisions=("fp32",),
            others=False,
            compiled=False,
            seconds=0.0,
            width=4,
        )
    for task in tasks(options):
        yield task.name, functools.partial(run_task, task, options, ceilings)


def _correctness(request: Request, device: torch.device) -> Iterator[tuple[str, Run]]:
    options = OpsOptions(device, batch_sizes=(64, 3), compiled=False, timed=False)
    yield from _grid(request, options, {})


def _ops(request: Request, device: torch.device) -> Iterator[tuple[str, Run]]:
    """bf16 at the batches that decide, then fp32; then the ends, and other people's layers."""
    ceilings, hand_over = _ceilings(request, device)
    yield "ceilings", hand_over
    options = OpsOptions(device, image_sizes=(64,), compiled=False, others=False, seconds=0.25)
    for batches, precision, others in (
        ((512, 128), "bf16", False),
        ((128,), "fp32", False),
        ((2048, 16), "bf16", False),
        ((64,), "bf16", True),
    ):
        chosen = dataclasses.replace(
            options, batch_sizes=batches, precisions=(precision,), others=others
        )
        yield from _grid(request, chosen, ceilings)
        if request.tiny:
            return


def _ops_compiled(request: Request, device: torch.device) -> Iterator[tuple[str, Run]]:
    ceilings, hand_over = _ceilings(request, device)
    yield "ceilings", hand_over
    options = OpsOptions(
        device,
        image_sizes=(64,),
        batch_sizes=(512,),
        precisions=("bf16",),
        operators=("conv_transpose2d G", "batch_norm_act G", "bias_act", "discriminator_loss"),
        others=False,
        passes=False,
        seconds=0.25,
    )
    yield from _grid(request, options, ceilings)


def _steps(
    request: Request, device: torch.device, against: tuple[str, ...], batches: tuple[int, ...]
) -> Iterator[tuple[str, Run]]:
    options = StepOptions(
        device,
        image_sizes=(16,) if request.tiny else (64,),
        batch_sizes=(4,) if request.tiny else batches,
        precisions=("fp32",) if request.tiny else ("bf16",),
        against=against,
        width=4 if request.tiny else 64,
    )
    ceilings, hand_over = _ceilings(request, device)
    yield "ceilings", hand_over
    for workload, precision in step_cases(options):

        def run(exclude: Container[str], workload=workload, precision=precision) -> list[Row]:  # type: ignore[no-untyped-def]
            providers = [
                one for one in all_providers(options, precision) if one.name not in exclude
            ]
            seconds = 0.0 if request.tiny else 8.0
            return step_rows(workload, precision, providers, seconds, ceilings, _say)

        yield f"step batch {workload.batch_size} {precision}, {len(against)} baselines", run


def _steps_eager(request: Request, device: torch.device) -> Iterator[tuple[str, Run]]:
    against: tuple[str, ...] = ("plain script", "best eager")
    if device.type == "cuda":
        against += ("best eager, graph",)
    yield from _steps(request, device, against, (128, 512, 64, 2048))


def _steps_compiled(request: Request, device: torch.device) -> Iterator[tuple[str, Run]]:
    """All baselines; the compiler's autotuning makes each batch size a matter of minutes."""
    against: tuple[str, ...] = ("best eager",)
    if device.type == "cuda":
        against += ("best eager, graph", "compile", "compile, graph")
    yield from _steps(request, device, against, (128, 512))


def _memory(request: Request, device: torch.device) -> Iterator[tuple[str, Run]]:
    options = StepOptions(
        device,
        against=("best eager",) if request.tiny else ("plain script", "best eager"),
        width=4 if request.tiny else 64,
        image_sizes=(16,) if request.tiny else (64,),
        batch_sizes=(4,) if request.tiny else (128, 512),
    )
    for workload, precision in step_cases(options):
        name = f"memory batch {workload.batch_size}"
        yield name, functools.partial(_memory_of, options, workload, precision)


def _memory_of(
    options: StepOptions, workload: Workload, precision: str, exclude: Container[str]
) -> list[Row]:
    providers = [one for one in providers_of(options, precision) if one.name not in exclude]
    return memory_rows(workload, precision, providers, repeats=1, report=_say)


def _overhead(request: Request, device: torch.device) -> Iterator[tuple[str, Run]]:
    seconds = 0.0 if request.tiny else 0.5
    yield "overhead", lambda _: run_overhead(device, seconds=seconds, report=_say).rows


# Name -> what it measures; in this order a run that is cut short has told the most.
PARTS: dict[str, Callable[[Request, torch.device], Iterator[tuple[str, Run]]]] = {
    "correctness": _correctness,
    "step": _steps_eager,
    "ops": _ops,
    "memory": _memory,
    "overhead": _overhead,
    "step-compiled": _steps_compiled,
    "ops-compiled": _ops_compiled,
}


def serve(request: Request) -> int:
    """Run a part's tasks, handing rows over as they come; return the exit status."""
    from bench.cli_options import prepare_device

    device = prepare_device(request.device)
    with open(request.file, "a", encoding="utf-8") as stream:
        for name, run in PARTS[request.part](request, device):
            if name in request.done:
                continue
            _hand_over(stream, begun=name)
            _say(name)
            try:
                found = run(request.exclude.get(name, ()))
            except Exception as error:
                found = [Row(name, "all", status=ERROR, message=first_line(error))]
            if isinstance(found, dict):
                _hand_over(stream, ceilings=found)
                _hand_over(stream, done=name)
                continue
            rows = found
            broken = next((row for row in rows if _broke_the_context(row)), None)
            if broken is not None:
                # What came after it failed for its sake: measured again in a new process.
                rows = rows[: rows.index(broken) + 1]
            _hand_over(stream, rows=[dataclasses.asdict(row) for row in rows])
            if broken is not None:
                _hand_over(stream, tainted=[name, broken.provider])
                return TAINTED
            _hand_over(stream, done=name)
    return 0


def _broke_the_context(row: Row) -> bool:
    return row.status == ERROR and any(word in row.message for word in CUDA_ERRORS)


def _hand_over(stream: IO[str], **message: object) -> None:
    stream.write(json.dumps(message, ensure_ascii=False) + "\n")
    stream.flush()
    os.fsync(stream.fileno())


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    words = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    words["done"] = tuple(words["done"])
    sys.exit(serve(Request(**words)))
