"""`bench data`: images a second from where they lie to a normalised batch in training's memory.

The baseline is the PyTorch example's pipeline: a folder of JPEG files read through a DataLoader
whose workers decode, resize, crop and normalise. fastgan decodes once into a packed file and cuts
batches from its memory map; on a GPU the bytes travel and are normalised there. A resident set is
indexed, mirrored and normalised as the trainer does it, and beside it the same bytes are copied:
what that takes is the least that memory allows.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bench.baselines import CHANNELS
from bench.ceilings import measure_ceilings
from bench.gate import judge, tolerance
from bench.method import Contestant, paired_ratio, race, rotating
from bench.results import Results, Row, capture_environment
from bench.rows import Entry, rows_of
from bench.shapes import Cost
from fastgan.data import BatchIndices, PackedImages, normalise, open_images
from fastgan.ops.image_batch import image_batch

IMAGES = 2048
SAME_BYTES = "a copy of the same bytes"


class JpegFolder(Dataset):
    """Images of a folder as the example's transforms make them: float32 [C, H, W] in [−1, 1]."""

    def __init__(self, files: list[Path], image_size: int) -> None:
        self.files, self.image_size = files, image_size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.files[index]) as file:
            image = file.convert("RGB").resize((self.image_size,) * 2, Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return pixels.float().div(255.0).sub(0.5).div(0.5)


def run_data(
    device: torch.device,
    *,
    image_size: int = 64,
    batch_size: int = 64,
    seconds: float = 10.0,
    images: int = IMAGES,
    workers: int = 2,
    seed: int = 0,
    tiny: bool = False,
    report: Callable[[str], None] = print,
) -> Results:
    """Measure the pipelines on `images` synthetic JPEG files, one batch a call.

    The floor is a copy's: a byte read and a float written for each pixel. Every pipeline's first
    batch is compared with the pixels that it was made from.
    """
    results = Results("data", capture_environment(device, seed))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report(f"writing {images} JPEG files of {image_size}×{image_size} pixels, and packing them")
        files = write_jpegs(folder / "images", images, image_size, seed)
        packed = open_images(
            str(folder / "images"), image_size, CHANNELS, cache_dir=folder, progress=False
        )
        expected = _pixels(files[:batch_size], image_size)
        order = BatchIndices(len(packed), batch_size, seed)
        resident = packed.resident(device).permute(0, 2, 3, 1)
        first = torch.arange(batch_size, device=device)
        pipelines: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
            "fastgan packed": (
                functools.partial(_packed_batch, packed, order, device, _counter()),
                lambda: normalise(packed.batch(np.arange(batch_size)), device),
            ),
            "fastgan resident": (
                functools.partial(_resident_batch, resident, order, None, _counter()),
                lambda: image_batch(resident, first),
            ),
            "fastgan resident, mirrored by chance": (
                functools.partial(
                    _resident_batch, resident, order, torch.Generator(device), _counter()
                ),
                lambda: image_batch(resident, first, torch.ones_like(first, dtype=torch.bool)),
            ),
        }
        loaders = []
        for count in dict.fromkeys((0, workers)):
            stream = _endless(JpegFolder(files, image_size), batch_size, count, device)
            loaders.append(stream)
            pipelines[f"DataLoader, {count} workers"] = (
                functools.partial(next, stream),
                lambda: torch.stack(
                    [JpegFolder(files, image_size)[index] for index in range(batch_size)]
                ),
            )
        entries, contestants = [], []
        for title, (call, first_batch) in pipelines.items():
            allowed = {"batch": tolerance(torch.float32, 4)}
            exact = expected.flip(3) if "mirrored" in title else expected
            verdict = judge({"batch": first_batch()}, {"batch": exact}, allowed)
            entries.append(Entry(title, title.startswith("fastgan"), verdict))
            if verdict.passed:
                contestants.append(Contestant(title, call))
        report(f"{len(contestants)} pipelines in turns for {seconds:.0f} s")
        # A byte read and four written for each value; half of them are read in a copy.
        copied = _copies(5 * batch_size * CHANNELS * image_size**2 // 2, resident)
        contestants.append(Contestant(SAME_BYTES, copied))
        timings = race(contestants, device, seconds=seconds)
        for stream in loaders:
            stream.close()
    pixels = float(batch_size * CHANNELS * image_size**2)
    template = Row(
        case=f"images to a batch, {image_size}×{image_size}",
        provider="",
        shape=f"batch {batch_size}",
        dtype="float32",
    )
    results.ceilings = measure_ceilings(device, tiny=tiny)
    rows = rows_of(template, entries, timings, [Cost(0.0, 5 * pixels)], results.ceilings)
    for row in rows:
        if row.median is not None:
            row.extra["images_per_second"] = batch_size / row.median
            row.extra["copy_share"] = paired_ratio(timings[SAME_BYTES], timings[row.provider])[0]
    results.rows = rows
    copy_seconds = statistics.median(timings[SAME_BYTES].samples)
    results.notes.append(
        f"{SAME_BYTES} as a batch's ({5 * pixels / 1e6:.1f} MB read and written): "
        f"{1e6 * copy_seconds:.1f} µs, {5 * pixels / copy_seconds / 1e9:.0f} GB/s"
    )
    return results


def write_jpegs(folder: Path, count: int, image_size: int, seed: int) -> list[Path]:
    """`count` smooth random images as JPEG files; smooth, so that their size is a photo's."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    files = []
    for index in range(count):
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((image_size,) * 2, Image.Resampling.BICUBIC)
        files.append(folder / f"{index:06d}.jpg")
        image.save(files[-1], quality=90)
    return files


def _pixels(files: list[Path], image_size: int) -> Tensor:
    """The exact normalised batch of `files` in float64."""
    batch = [np.array(Image.open(file).convert("RGB")) for file in files]
    return torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).double() / 127.5 - 1.0


def _counter() -> Iterator[int]:
    step = 0
    while True:
        yield step
        step += 1


def _packed_batch(
    packed: PackedImages, order: BatchIndices, device: torch.device, steps: Iterator[int]
) -> Tensor:
    return normalise(packed.batch(order.indices(next(steps))), device)


def _resident_batch(
    resident: Tensor, order: BatchIndices, flips: torch.Generator | None, steps: Iterator[int]
) -> Tensor:
    """As `fastgan.training.inputs` makes it."""
    indices = torch.from_numpy(order.indices(next(steps))).to(resident.device)
    mirrored = None
    if flips is not None:
        mirrored = torch.rand(len(indices), generator=flips, device=resident.device) < 0.5
    return image_batch(resident, indices, mirrored)


def _copies(count: int, resident: Tensor) -> Callable[[], object]:
    """Copies `count` bytes to fresh memory, from all over a set as large as the resident one."""
    sets = max(1, resident.numel() // count)
    source = torch.empty((sets, count), dtype=torch.uint8, device=resident.device).random_()
    return rotating([functools.partial(torch.clone, one) for one in source])


def _endless(
    dataset: Dataset, batch_size: int, workers: int, device: torch.device
) -> Generator[Tensor, None, None]:
    """Batches of a DataLoader without end, its workers kept between epochs."""
    loader: DataLoader = DataLoader(
        dataset,
        batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )
    while True:
        for batch in loader:
            yield batch.to(device, non_blocking=True)
