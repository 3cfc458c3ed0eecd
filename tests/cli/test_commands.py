"""The commands from end to end: train, stop, resume, sample, doctor, help."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from bad_inputs import SMALL, array, main_quietly, train, trained
from PIL import Image

import fastgan
from fastgan import native, native_cuda
from fastgan.cli.doctor import _native_kernels
from fastgan.objectives import OBJECTIVES
from fastgan.training import RunFolder


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("fastgan.training.loop.can_draw", lambda: False)
    return tmp_path


def test_train_says_what_it_does_in_plain_lines_on_a_pipe(workplace, capsys) -> None:
    array(workplace)
    assert main_quietly(train("a.npy", "--steps=4", "--log-every=2")) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "a.npy: 8 images, 16x16, 3 channels"
    assert said[1] == "training to step 4 on cpu in fp32, prefetched images, into run"
    assert [line.split("  ")[0] for line in said[2:4]] == ["step 2/4", "step 4/4"]
    number = r"[\d,]+(\.\d+)?"
    assert re.fullmatch(
        rf"step 2/4  {number} images/s  loss D {number} G {number}  D\(x\) {number}"
        rf"  D\(G\(z\)\) {number} / {number}  left 0:00:\d\d",
        said[2],
    )
    assert said[4] == "done: samples in run/samples; draw more with `fastgan sample run`"
    assert "\x1b" not in "".join(said)


def test_resume_goes_on_with_other_output_settings(workplace, capsys) -> None:
    trained(workplace)
    assert main_quietly(["resume", "run", "--steps=5", "--sample-every=1"]) == 0
    assert "training from step 2 to step 5" in capsys.readouterr().out
    run = RunFolder.open("run")
    assert [row["step"] for row in run.read_metrics()] == [1, 2, 3, 4, 5]
    assert len(list(run.samples.iterdir())) == 4
    assert run.read_config().sample_every == 1


def test_a_switch_has_its_opposite_also_on_resume(workplace) -> None:
    array(workplace)
    assert main_quietly(train("a.npy", "--steps=2", "--no-cast-once", "--skip-bad")) == 0
    config = RunFolder.open("run").read_config()
    assert (config.cast_once, config.capture, config.skip_bad) == (False, True, True)
    assert main_quietly(["resume", "run", "--steps=3", "--no-skip-bad", "--cast-once"]) == 0
    config = RunFolder.open("run").read_config()
    assert (config.cast_once, config.capture, config.skip_bad) == (True, True, False)


def test_moved_images_are_found_again(workplace) -> None:
    trained(workplace)
    (workplace / "a.npy").rename(workplace / "b.npy")
    assert main_quietly(["resume", "run", "--steps=3", "--data=b.npy"]) == 0


def test_without_out_runs_are_numbered(workplace) -> None:
    array(workplace)
    for _ in range(2):
        assert main_quietly(["train", "a.npy", *SMALL]) == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["0001-a", "0002-a"]


def test_sample_draws_the_same_grid_or_folder_from_the_same_seed(workplace) -> None:
    trained(workplace)
    for out in ("one.png", "two.png"):
        assert main_quietly(["sample", "run", "--count=6", "--seed=3", f"--out={out}"]) == 0
    assert Path("one.png").read_bytes() == Path("two.png").read_bytes()
    assert main_quietly(["sample", "run", "--count=6", "--seed=4", "--out=three.png"]) == 0
    assert Path("one.png").read_bytes() != Path("three.png").read_bytes()
    assert main_quietly(["sample", "run", "--count=6", "--seed=3", "--out=many"]) == 0
    names = sorted(path.name for path in Path("many").iterdir())
    assert names == [f"{index:06d}.png" for index in range(6)]
    grid = np.asarray(Image.open("one.png"))
    # Three columns; the fifth image is in the second row, second column.
    fifth = np.asarray(Image.open("many/000004.png"))
    assert np.array_equal(grid[20:36, 20:36], fifth)


def test_an_image_does_not_depend_on_its_neighbours(workplace) -> None:
    trained(workplace)
    main_quietly(["sample", "run", "--count=2", "--out=two"])
    main_quietly(["sample", "run", "--count=9", "--out=nine"])
    for name in ("000000.png", "000001.png"):
        two, nine = (np.asarray(Image.open(f"{folder}/{name}")) for folder in ("two", "nine"))
        assert np.abs(two.astype(int) - nine.astype(int)).max() <= 1


def test_the_averaged_weights_are_the_default(workplace) -> None:
    main_quietly(train(array(workplace), "--ema-ramp-up=1e6", "--generator-lr=0.1"))
    main_quietly(["sample", "run", "--count=4", "--out=default.png"])
    main_quietly(["sample", "run", "--count=4", "--ema", "--out=ema.png"])
    main_quietly(["sample", "run", "--count=4", "--no-ema", "--out=last.png"])
    assert Path("default.png").read_bytes() == Path("ema.png").read_bytes()
    assert Path("default.png").read_bytes() != Path("last.png").read_bytes()


def test_help_teaches(capsys) -> None:
    for command, words in (
        ([], ["train", "resume", "sample", "doctor"]),
        (["train"], ["--image-size", "--preset", "64x96", "photos/", "may change on resume"]),
        (["train"], ["--no-capture", "[default: (on)]", "[default: (0.0002)]", *OBJECTIVES]),
        (["resume"], ["--steps", "--device", "exactly as if it had never stopped"]),
        (["sample"], ["--count", "--no-ema", "running statistics"]),
    ):
        assert main_quietly([*command, "--help"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        for word in words:
            assert word in said, (command, word)


def test_resume_lists_only_what_may_change(capsys) -> None:
    assert main_quietly(["resume", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--batch-size" not in said
    # What is not given stays as it was, whatever a new run would have.
    assert "(2000)" not in said
    assert "[default: (auto)]" not in said


def test_version(capsys) -> None:
    assert main_quietly(["--version"]) == 0
    assert capsys.readouterr().out == f"fastgan {fastgan.__version__}\n"


def test_doctor_finds_this_machine_and_checks_it(workplace, capsys) -> None:
    status = native.status()
    assert main_quietly(["doctor"]) == 0
    said = capsys.readouterr().out
    for name in ("python", "torch", "triton", "compiler", "nvcc", "native", "image cache", "plot"):
        assert re.search(rf"^{name} ", said, re.MULTILINE), name
    if status.usable:
        for level in status.compiled:
            state = "in use" if level.name == status.level else "usable|not on this processor"
            line = rf"^  {level.name} +({state}): {level.vector_bits}-bit vectors, register tiles "
            assert re.search(line + r"6x\d+ float32", said, re.MULTILINE), level.name
        assert re.search(r"^processor +\S", said, re.MULTILINE)
    assert re.search(r"^self-check +trained, saved and resumed to the bit on ", said, re.MULTILINE)


def test_doctor_says_what_stands_in_the_way(workplace, capsys, monkeypatch) -> None:
    Path("file").touch()
    monkeypatch.setenv("FASTGAN_CACHE", "file")  # nothing can be written below it, by anyone
    monkeypatch.setenv("FASTGAN_NATIVE", "off")
    monkeypatch.setattr(native, "_extension", None)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("CUDACXX", "no-such-compiler")
    monkeypatch.setattr(sys.modules["fastgan.cli.doctor"], "_self_check", lambda: "left out")
    assert main_quietly(["doctor"]) == 0
    said = capsys.readouterr().out
    for line in (
        r"compiler +CXX='no-such-compiler' is not a program; install g\+\+",
        r"nvcc +not found",
        r"native +not in use: FASTGAN_NATIVE=off$",
        r"native cache +file/native cannot be written; set FASTGAN_CACHE to another folder$",
        r"image cache +file/images cannot be written; set FASTGAN_CACHE to another folder$",
    ):
        assert re.search("^" + line, said, re.MULTILINE), line


def test_doctor_says_what_the_cuda_kernels_use(monkeypatch) -> None:
    def kernels() -> list[native_cuda.KernelAttributes]:
        return [
            native_cuda.KernelAttributes("one", 40, 0, 0, 1024),
            native_cuda.KernelAttributes("other", 96, 16, 8, 512),
        ]

    monkeypatch.setattr(
        native_cuda,
        "status",
        lambda: native_cuda.Status(True, None, Path("cache"), "nvcc", (13, 0), ("sm_90a",)),
    )
    monkeypatch.setattr(native_cuda, "kernel_attributes", kernels)
    assert dict(_native_kernels()) | {
        "native CUDA": "in cache",
        "  kernels": "2, each at most 96 registers and 8 bytes of local memory a thread, "
        "16 bytes of static shared memory a block; blocks of 512 threads and more",
    } == dict(_native_kernels())


def test_help_is_there_at_once_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from fastgan.cli import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'numpy', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_bar_on_a_terminal_and_ctrl_c_as_a_person_meets_them(workplace) -> None:
    array(workplace)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "160"}
    process = subprocess.Popen(
        [sys.executable, "-m", "fastgan", *train("a.npy", "--steps=100000")],
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    said, deadline, asked = "", time.monotonic() + 90, False
    while time.monotonic() < deadline:
        try:
            said += os.read(ours, 65536).decode(errors="replace")
        except OSError:  # the terminal closes with the process
            break
        if not asked and "images/s" in said:
            process.send_signal(2)
            asked = True
    assert process.wait(30) == 0
    for word in ("step", "/100000", "images/s", "loss D", "D(x)", "D(G(z))", "left"):
        assert word in said, word
    plain = " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said).split())
    stopped = re.search(r"stopped and saved at step (\d+): go on with `fastgan resume run`", plain)
    assert stopped, plain[-500:]
    newest = RunFolder.open("run").newest_checkpoint()
    assert newest is not None
    assert int(newest.name) == int(stopped[1])


def test_bench_hands_its_arguments_to_the_suite(capsys) -> None:
    assert main_quietly(["bench", "--help"]) == 0
    assert "gpu-check" in capsys.readouterr().out
    assert main_quietly(["bench", "compare"]) == 2
