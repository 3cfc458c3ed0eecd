"""The torch operators and the launchers of the CUDA kernels, end to end, beside torch's twins.

On a GPU they run the library that is shipped. Elsewhere csrc/cuda/operators.cpp is compiled against
the shim and registered for CPU tensors, so that the launchers run as they do on a GPU.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from simt_library import COMPILER, FLAGS, SHIM, SOURCES
from torch.nn import functional as F

from fastgan import native_cuda
from fastgan import native_cuda_kernels as kernels
from fastgan.native_cuda_build import FAMILIES, HOST_FLAGS
from fastgan.objectives import OBJECTIVES
from fastgan.ops import native_cuda as native_cuda_ops

SETTINGS = {"activation": "leaky_relu", "negative_slope": 0.2}


@pytest.fixture(scope="session")
def shim_operators(shim_objects: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> None:
    """`torch.ops.fastgan_cuda`, computing on the CPU.

    Once in a process, not once in each visit to this module, which a worker that steals tests may
    leave and come back to: a second library of the same names crashes while it is being loaded.
    """
    folder = tmp_path_factory.mktemp("operators")
    sources = (SOURCES / "cuda" / "operators.cpp", SHIM / "torch_stream.cpp")
    torch_folder = Path(torch.__file__).parent
    defines = [flag for flag in HOST_FLAGS if flag.startswith("-D")]
    command = [str(COMPILER), *FLAGS, *defines, "-DFASTGAN_DISPATCH_KEY=CPU", f"-I{SHIM}"]
    command += ["-isystem", str(torch_folder / "include"), *map(str, sources)]
    command += [str(shim_objects[name]) for name in (*FAMILIES, "simt")]
    command += ["-shared", "-o", str(folder / "operators.so"), f"-L{torch_folder / 'lib'}"]
    done = subprocess.run([*command, "-ltorch_cpu"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:3000]
    torch.ops.load_library(str(folder / "operators.so"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], autouse=True)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where the tensors of a test lie; the operators that serve them are loaded."""
    if request.param == "cuda":
        assert native_cuda.usable() is None
    elif torch.cuda.is_available():
        pytest.skip("the operators of the real library have the same names")
    else:
        request.getfixturevalue("shim_operators")
        monkeypatch.setattr(native_cuda, "usable", lambda: None)
    torch.set_default_device(request.param)
    yield request.param
    torch.set_default_device(None)


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, device="cpu").to(torch.get_default_device())
    values = values.to(dtype)
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", ["resident", "streaming"])
def test_batch_norm_trains_like_torch(variant: str, dtype: torch.dtype) -> None:
    x, grad_y = images(4, 16, 5, 6, dtype=dtype), images(4, 16, 5, 6, seed=1, dtype=dtype)
    weight, bias = images(16, seed=2) + 1, images(16, seed=3)
    running = [torch.zeros(16), torch.ones(16)]
    y, mean, invstd = kernels.forward_training(
        x,
        *running,
        weight,
        bias,
        momentum=0.1,
        eps=1e-5,
        stat_groups=2,
        variant=variant,
        **SETTINGS,
    )
    leaf, w, b = (t.double().requires_grad_() for t in (x, weight, bias))
    stats = [torch.zeros(16).double(), torch.ones(16).double()]
    parts = [F.batch_norm(part, *stats, w, b, True, 0.1, 1e-5) for part in leaf.chunk(2)]
    twin = F.leaky_relu(torch.cat(parts), 0.2)
    twin.backward(grad_y.double())
    grads = kernels.backward(
        grad_y, x, mean, invstd, weight, bias, stat_groups=2, training=True, variant=variant,
        **SETTINGS,
    )  # fmt: skip
    same(y, twin)
    for got, expected in zip((*running, *grads), (*stats, leaf.grad, w.grad, b.grad), strict=True):
        same(got, expected)


def test_batch_norm_infers_like_torch() -> None:
    x, running = images(3, 6, 5, 4), [images(6, seed=4), images(6, seed=5).abs() + 0.5]
    y = kernels.forward_inference(x, *running, None, None, eps=1e-5, **SETTINGS)
    same(y, F.leaky_relu(F.batch_norm(x, *running, eps=1e-5), 0.2))
    leaf = x.clone().requires_grad_()
    F.leaky_relu(F.batch_norm(leaf, *running, eps=1e-5), 0.2).backward(x)
    invstd = (running[1] + 1e-5).rsqrt()
    statistics = running[0][None], invstd[None]
    grad_x, _, _ = kernels.backward(
        x, x, *statistics, None, None, stat_groups=1, training=False, **SETTINGS
    )
    same(grad_x, leaf.grad)


def test_bias_act_is_like_torch() -> None:
    x, bias = images(2, 3, 8, 8), images(3, seed=1)
    leaf, b = x.clone().requires_grad_(), bias.clone().requires_grad_()
    twin = torch.tanh(leaf + b.view(1, -1, 1, 1))
    twin.backward(x)
    settings = {"activation": "tanh", "negative_slope": 0.0}
    same(kernels.bias_act_forward(x, bias, **settings), twin)
    grad_x, grad_bias = kernels.bias_act_backward(x, x, bias, **settings)
    same(grad_x, leaf.grad)
    same(grad_bias, b.grad)


@pytest.mark.parametrize("objective", ["non_saturating", "hinge"])
def test_losses_follow_the_objectives(objective: str) -> None:
    formulas, real, fake = OBJECTIVES[objective], images(40), images(30, seed=1)
    loss, real_mean, _, grad_real, _ = kernels.discriminator(
        real, fake, objective=objective, real_label=1.0, fake_label=0.0
    )
    same(loss, formulas.real(real, 1.0).mean() + formulas.fake(fake, 0.0).mean())
    same(real_mean, (real.sigmoid() if formulas.score == "sigmoid" else real).mean())
    same(grad_real, formulas.real_derivative(real, 1.0) / 40)
    loss, _, grad_fake = kernels.generator(fake, objective=objective)
    same(loss, formulas.generator(fake).mean())
    same(grad_fake, formulas.generator_derivative(fake) / 30)


def test_convolutions_of_images_are_like_torch() -> None:
    big, small, weight = (
        images(2, 3, 9, 8),
        images(2, 16, 4, 4, seed=1),
        images(16, 3, 4, 4, seed=2),
    )
    bias, steps = images(16, seed=3), {"stride": (2, 2), "padding": (1, 1)}
    exact_big, exact_small, exact_bias = big.double(), small.double(), bias.double()
    exact_weight = weight.double().requires_grad_()
    twin = F.conv2d(exact_big, exact_weight, exact_bias, **steps)
    twin.backward(exact_small)
    same(kernels.fprop(big, weight, bias, activation="relu", **steps), F.relu(twin))
    got = kernels.wgrad(big, small, kernel_size=(4, 4), **steps)
    assert got.is_contiguous(memory_format=torch.channels_last)
    same(got, exact_weight.grad)
    twin = F.conv_transpose2d(
        exact_small, exact_weight, exact_bias[:3], output_padding=(1, 0), **steps
    )
    same(
        kernels.dgrad(small, weight, bias[:3], big_size=(9, 8), activation="tanh", **steps),
        torch.tanh(twin),
    )


def test_packing_writes_the_targets() -> None:
    sources = [torch.randn(5, 3, 4, 4), images(6, 2, 3, 3), torch.randn(2, 7, 1, 1)]
    targets = [
        torch.empty_like(source, dtype=torch.bfloat16, memory_format=torch.channels_last)
        for source in sources
    ]
    kernels.pack_into(sources, targets)
    for source, target in zip(sources, targets, strict=True):
        assert torch.equal(target, source.bfloat16())


def test_an_empty_batch_is_served() -> None:
    x = images(0, 8, 4, 4)
    y, mean, _ = kernels.forward_training(
        x, None, None, None, None, momentum=0.1, eps=1e-5, stat_groups=1, **SETTINGS
    )
    assert y.shape == x.shape
    assert (mean == 0).all()
    assert (kernels.bias_act_backward(x, x, torch.zeros(8), **SETTINGS)[1] == 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: torch.ops.fastgan_cuda.bias_act_forward(x, None, x.bfloat16(), 0, 0.0), "dtype"),
        (lambda x: torch.ops.fastgan_cuda.bias_act_forward(x, None, x[:1], 0, 0.0), "elements"),
        (
            lambda x: torch.ops.fastgan_cuda.bias_act_forward(x, None, x.contiguous(), 0, 0.0),
            "channels_last",
        ),
        (lambda x: torch.ops.fastgan_cuda.bias_act_forward(x, x[0, 0, 0], x, 0, 0.0), "bias"),
        (lambda x: torch.ops.fastgan_cuda.bias_act_forward(x, None, x, 9, 0.0), "activation 9"),
        (
            lambda x: torch.ops.fastgan_cuda.image_fprop(x, x, None, x, 1, 1, 0, 0, 0, 0.0),
            "1 to 4 channels",
        ),
    ],
)
def test_what_would_leave_the_memory_is_refused(call, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        call(images(2, 6, 5, 4))


def same(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to the rounding of got's dtype: what is exact is tested kernel by kernel."""
    eps = torch.finfo(got.dtype).eps
    torch.testing.assert_close(
        got.double(), expected.detach().double(), rtol=8 * eps, atol=128 * torch.finfo().eps
    )


def test_the_tables_records_reach_the_kernels() -> None:
    x, bias, steps = images(2, 3, 8, 8), images(3, seed=1), ((2, 2), (1, 1))
    weight, epilogue = images(8, 3, 4, 4, seed=2), ("leaky_relu", 0.2)
    forward = native_cuda_ops.BIAS_ACT.run
    y = forward["forward"](x, bias, *epilogue)
    same(y, F.leaky_relu(x + bias.view(1, 3, 1, 1), 0.2))
    assert len(forward["backward"](x, x, bias, *epilogue)) == 2
    norm = native_cuda_ops.BATCH_NORM_ACT.run
    running = [torch.zeros(3), torch.ones(3)]
    version = running[0]._version
    y, mean, invstd = norm["training"](x, *running, None, bias, 0.1, 1e-5, *epilogue, 2)
    assert running[0]._version > version
    assert y.shape == x.shape
    assert len(norm["backward"](x, x, mean, invstd, None, bias, 1e-5, *epilogue, 2, True)) == 3
    inferred = norm["inference"](x, *running, None, bias, 1e-5, *epilogue)
    same(inferred, F.leaky_relu(F.batch_norm(x, *running, None, bias, eps=1e-5), 0.2))
    loss = native_cuda_ops.ADVERSARIAL_LOSS.run
    assert len(loss["discriminator"](bias, bias, "hinge", 1.0, 0.0)) == 5
    assert len(loss["generator"](bias, "hinge")) == 3
    convolution = native_cuda_ops.CONVOLUTION.run
    small = convolution["fprop"](x, weight, None, *steps, *epilogue)
    assert small.shape == (2, 8, 4, 4)
    assert convolution["dgrad"](small, weight, bias, (8, 8), *steps, *epilogue).shape == x.shape
    gradient = convolution["wgrad"](x, small, (4, 4), *steps, torch.float32)
    assert gradient.shape == weight.shape
