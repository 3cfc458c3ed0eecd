"""The native kernels behind `fastgan.ops`: chosen where they win, forced, and differentiable."""

from __future__ import annotations

import pytest
import torch
from native_cases import dense
from tolerances import assert_within, epsilon
from torch.nn import functional as F

from fastgan import native, native_convolution, native_kernels, ops
from fastgan.errors import BackendError

BFLOAT16_LEVELS = {"avx512_bf16", "amx_bf16"}


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return dense(torch.randn(shape, generator=generator).to(dtype)).requires_grad_()


def test_deep_bfloat16_layers_are_chosen_unasked(extension) -> None:
    x, weight = drawn(2, 256, 8, 8, dtype=torch.bfloat16), drawn(512, 256, 4, 4).bfloat16()
    choice = ops.explain_call("conv2d", x, weight, None, 2, 1)
    expected = "cpu" if extension.module.levels()[0] in BFLOAT16_LEVELS else "reference"
    assert choice.chosen == expected


@pytest.mark.parametrize(
    ("backend", "batch", "kernel", "algorithm"),
    [
        ("auto", 64, (4, 4), "winograd"),
        ("auto", 2, (4, 4), "direct"),
        ("auto", 64, (3, 3), None),
        ("cpu", 64, (4, 4), "winograd"),
        ("cpu", 2, (4, 4), "direct"),
        ("cpu", 64, (3, 3), "direct"),
    ],
    ids=str,
)
def test_float32_layers_take_what_was_measured_to_win(
    extension, monkeypatch, backend, batch, kernel, algorithm
) -> None:
    if not {"avx512", "avx512_bf16"} & set(extension.module.levels()):
        pytest.skip("the table of what wins speaks of AVX-512")
    taken = []

    def launched(*args, algorithm="direct", **rest):
        taken.append(algorithm)
        return convolution_fprop(*args, algorithm=algorithm, **rest)

    convolution_fprop = native_convolution.fprop
    monkeypatch.setattr(native_convolution, "fprop", launched)
    x, weight = drawn(batch, 64, 8, 8), drawn(128, 64, *kernel)
    with native.forced_level("avx512"), ops.backend(backend):
        y = ops.conv2d(x, weight, None, 2, 1)
    assert taken == ([] if algorithm is None else [algorithm])
    torch.testing.assert_close(y, F.conv2d(x, weight, None, 2, 1), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "dtype", "training", "activation", "wins"),
    [
        ((64, 512, 4, 4), torch.bfloat16, True, "leaky_relu", True),
        ((64, 512, 4, 4), torch.float32, True, "relu", "forward"),
        ((64, 256, 8, 8), torch.float32, True, "relu", True),
        ((64, 128, 8, 8), torch.float32, True, "relu", True),
        ((64, 256, 4, 4), torch.float32, True, "leaky_relu", "forward"),
        ((64, 72, 15, 15), torch.float32, True, "identity", True),
        ((64, 256, 8, 8), torch.bfloat16, True, "identity", True),
        ((64, 256, 8, 8), torch.float32, True, "identity", False),
        ((4, 256, 8, 8), torch.bfloat16, True, "relu", False),
        ((16, 1024, 4, 4), torch.float32, True, "relu", False),
        ((64, 256, 8, 8), torch.bfloat16, False, "relu", True),
        ((64, 512, 4, 4), torch.float32, False, "relu", False),
        ((64, 256, 8, 8), torch.bfloat16, False, "identity", False),
    ],
    ids=str,
)
def test_batch_norms_are_chosen_where_they_were_measured_to_win(
    extension, shape, dtype, training, activation, wins
) -> None:
    running = torch.ones(shape[1])
    vectors = extension.module.levels()[0] != "portable"
    for recorded in (False, True):
        x = dense(torch.zeros(shape, dtype=dtype)).requires_grad_(recorded)
        choice = ops.explain_call(
            "batch_norm_act", x, running, running, training=training, activation=activation
        )
        won = wins is True or (wins == "forward" and not recorded)
        assert choice.chosen == ("cpu" if won and vectors else "reference")


@pytest.mark.parametrize(
    ("shape", "dtype", "activation", "wins"),
    [
        ((64, 3, 32, 32), torch.float32, "tanh", True),
        ((1, 3, 32, 32), torch.float32, "tanh", "forward"),
        ((1, 3, 16, 16), torch.float32, "tanh", False),
        ((64, 64, 32, 32), torch.float32, "leaky_relu", True),
        ((64, 64, 16, 16), torch.float32, "leaky_relu", "forward"),
        ((64, 64, 16, 16), torch.bfloat16, "leaky_relu", True),
        ((1, 64, 16, 16), torch.bfloat16, "leaky_relu", False),
        ((16, 64, 16, 16), torch.float32, "tanh", True),
    ],
    ids=str,
)
def test_biases_are_chosen_where_they_were_measured_to_win(
    extension, shape, dtype, activation, wins
) -> None:
    vectors = extension.module.levels()[0] != "portable"
    for recorded in (False, True):
        x = dense(torch.zeros(shape, dtype=dtype)).requires_grad_(recorded)
        choice = ops.explain_call("bias_act", x, torch.zeros(shape[1]), activation)
        won = wins is True or (wins == "forward" and not recorded)
        assert choice.chosen == ("cpu" if won and vectors else "reference")


@pytest.mark.parametrize(
    ("kernel", "stride", "dtype", "taken"),
    [
        (1, 1, torch.float32, {"fprop", "wgrad"}),
        (3, 1, torch.float32, {"fprop", "wgrad"}),
        (1, 2, torch.float32, set()),
        (9, 1, torch.float32, set()),
        (9, 1, torch.bfloat16, set()),
    ],
)
def test_a_convolution_to_an_image_takes_the_directions_that_win(
    extension, monkeypatch, kernel, stride, dtype, taken
) -> None:
    if not {"avx512", "avx512_bf16"} & set(extension.module.levels()):
        pytest.skip("the table of what wins speaks of AVX-512")
    found = set()
    for direction in ("fprop", "dgrad", "wgrad"):
        launch = getattr(native_convolution, direction)

        def launched(*args, launch=launch, direction=direction, **rest):
            found.add(direction)
            return launch(*args, **rest)

        monkeypatch.setattr(native_convolution, direction, launched)
    x, weight = drawn(16, 64, 64, 64, dtype=dtype), drawn(3, 64, kernel, kernel, dtype=dtype)
    twins = [tensor.detach().clone().requires_grad_() for tensor in (x, weight)]
    arguments = (None, stride, kernel // 2)
    y, twin = ops.conv2d(x, weight, *arguments), F.conv2d(*twins, *arguments)
    upstream = dense(torch.randn_like(twin))
    y.backward(upstream)
    twin.backward(upstream)
    assert found == taken
    for ours, theirs in zip(
        (y, x.grad, weight.grad), (twin, *(t.grad for t in twins)), strict=True
    ):
        # Both sum at least 3 products of normal numbers in float32, in orders of their own.
        size = theirs.detach().abs().max()
        bound = 2 * torch.finfo(dtype).eps * size + 2048 * torch.finfo(torch.float32).eps * size
        assert (ours - theirs).abs().max() <= bound


def test_contiguous_inputs_are_left_to_torch(extension) -> None:
    x, weight = torch.randn(2, 256, 8, 8).bfloat16(), torch.randn(512, 256, 4, 4).bfloat16()
    rejected = dict(ops.explain_call("conv2d", x, weight, None, 2, 1).rejected)
    assert "use torch.channels_last" in rejected["cpu"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize("channels", [(64, 128), (3, 64)], ids=str)
def test_convolutions_agree_with_float64(extension, dtype, transposed, channels) -> None:
    big, small = channels
    taken, given = (small, big) if transposed else (big, small)
    x = drawn(3, taken, 8, 8, dtype=dtype, seed=1)
    weight = drawn(small, big, 4, 4, dtype=dtype, seed=2)
    bias = drawn(given, dtype=dtype, seed=3)
    twin, function = (
        (F.conv_transpose2d, ops.conv_transpose2d) if transposed else (F.conv2d, ops.conv2d)
    )
    exact_inputs = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    exact = twin(*exact_inputs, 2, 1)
    with ops.backend("cpu"):
        assert ops.explain_call(function, x, weight, bias, 2, 1).chosen == "cpu"
        y = function(x, weight, bias, 2, 1)
    upstream = dense(torch.randn(y.shape).to(dtype))
    y.backward(upstream)
    exact.backward(upstream.double())
    for got, wanted in zip(
        (y, x.grad, weight.grad, bias.grad),
        (exact, *(t.grad for t in exact_inputs)),
        strict=True,
    ):
        # Sums of at least 64 products of normal numbers: their size is that of their spread.
        size = wanted.detach().abs().max()
        bound = 2 * torch.finfo(dtype).eps * size + 2048 * torch.finfo(torch.float32).eps * size
        assert (got.double() - wanted).abs().max() <= bound


def test_training_a_block_agrees_with_torch(extension) -> None:
    x = drawn(8, 64, 8, 8, seed=1)
    twin = torch.nn.BatchNorm2d(64)
    mean, var = twin.running_mean.clone(), twin.running_var.clone()
    weight, bias = twin.weight.detach().clone().requires_grad_(), drawn(64, seed=2)
    with torch.no_grad():
        twin.bias.copy_(bias)
    with ops.backend("cpu"):
        y = ops.batch_norm_act(x, mean, var, weight, bias, True, activation="leaky_relu")
    other = x.detach().clone().requires_grad_()
    expected = F.leaky_relu(twin(other), 0.01)
    upstream = dense(torch.randn(y.shape))
    y.backward(upstream)
    expected.backward(upstream)
    pairs = ((y, expected), (x.grad, other.grad), (mean, twin.running_mean),
             (var, twin.running_var), (weight.grad, twin.weight.grad))  # fmt: skip
    for got, wanted in pairs:
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_an_all_bfloat16_batch_norm_keeps_the_statistics_that_its_twin_rounds(extension) -> None:
    """Ours is within the one rounding of its result; torch rounds mean and 1/deviation besides.

    Without a float32 parameter torch keeps its statistics in bfloat16 on a CPU. With a relative
    error u in each, w (x - mean) / deviation + b moves by u |w| (|mean| + |x - mean|) / deviation.
    """
    x = (drawn(3, 64, 8, 8) + 1).detach().bfloat16()
    weight, bias = drawn(64, seed=1).detach().bfloat16(), drawn(64, seed=2).detach().bfloat16()
    running = torch.zeros(64, dtype=torch.bfloat16), torch.ones(64, dtype=torch.bfloat16)
    with ops.backend("cpu"):
        found = ops.batch_norm_act(x, *running, weight, bias, True, activation="relu")
    twins = F.batch_norm(x, *running, weight, bias, True).relu()

    exact_x, w, b = x.double(), weight.double()[:, None, None], bias.double()[:, None, None]
    variance, mean = torch.var_mean(exact_x, (0, 2, 3), correction=0, keepdim=True)
    factor = w.abs() / (variance + 1e-5).sqrt()
    exact = F.batch_norm(exact_x, None, None, weight.double(), bias.double(), True).relu()
    size = factor * (mean.abs() + exact_x.abs()) + b.abs()
    sums = (3 * 8 * 8 + 10) * epsilon(torch.float32) * size  # of 192 numbers, then ten operations
    u = epsilon(torch.bfloat16) / 2
    own = u * exact.abs() + sums
    assert_within("ours", found, exact, own)
    moved = u * factor * (mean.abs() + (exact_x - mean).abs())
    assert_within("torch's", twins, exact, (1 + 2 * u) * moved + (1 + u) * own)


def test_second_derivatives_are_right(extension) -> None:
    def gradients(backend: str) -> list[torch.Tensor]:
        x, weight = drawn(2, 64, 4, 4, seed=1), drawn(128, 64, 4, 4, seed=2)
        with ops.backend(backend):
            y = ops.conv2d(x, weight, None, 2, 1)
            first = torch.autograd.grad(y.square().sum(), x, create_graph=True)[0]
            return list(torch.autograd.grad(first.square().sum(), (x, weight)))

    for got, wanted in zip(gradients("cpu"), gradients("reference"), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_forced_without_the_extension_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_extension", None)
    monkeypatch.setattr(native, "_tried_to_build", False)
    monkeypatch.setenv("FASTGAN_NATIVE", "off")
    assert native_kernels.usable() == "FASTGAN_NATIVE=off"
    with ops.backend("cpu"), pytest.raises(BackendError, match="FASTGAN_NATIVE=off"):
        ops.bias_act(drawn(2, 3, 4, 4), drawn(3), activation="relu")


@pytest.mark.parametrize("transposed", [False, True], ids=["conv2d", "conv_transpose2d"])
def test_what_only_the_backward_pass_wins_is_torchs_where_nothing_records(
    extension, monkeypatch, transposed
) -> None:
    if extension.module.levels()[0] != "avx512_bf16":
        pytest.skip("the table of bfloat16 pairs is asked")
    calls = []
    for name in ("fprop", "dgrad"):
        monkeypatch.setattr(
            native_convolution, name, lambda *_, name=name, **__: calls.append(name)
        )
    # 64 -> 128 channels: dgrad and wgrad win, fprop does not; 3x3 kernels: wgrad alone.
    function, kernel = (ops.conv_transpose2d, 3) if transposed else (ops.conv2d, 4)
    x = drawn(16, 128 if transposed else 64, 16, 16, dtype=torch.bfloat16)
    weight = drawn(128, 64, kernel, kernel, dtype=torch.bfloat16)
    assert ops.explain_call(function, x, weight, None, 2, 1).chosen == "cpu"
    recorded = function(x, weight, None, 2, 1)
    assert "Backward" in type(recorded.grad_fn).__name__
    with torch.no_grad():
        unrecorded = function(x, weight, None, 2, 1)
    twin = F.conv_transpose2d if transposed else F.conv2d
    expected = twin(x, weight, None, 2, 1)
    assert calls == []
    assert torch.equal(unrecorded, expected)
    assert torch.equal(recorded, expected)


@pytest.mark.parametrize(
    ("shape", "weight_shape", "stride", "recorded_too"),
    [
        ((1, 64, 32, 32), (3, 64, 1, 1), 1, False),  # backward is torch's
        ((1, 64, 16, 16), (128, 64, 4, 4), 2, True),
        ((1, 48, 15, 15), (72, 48, 3, 3), 2, None),  # too few products for the calls
    ],
    ids=str,
)
def test_few_pixels_are_recorded_where_all_directions_win(
    extension, monkeypatch, shape, weight_shape, stride, recorded_too
) -> None:
    if not {"avx512", "avx512_bf16"} & set(extension.module.levels()):
        pytest.skip("the table of what wins speaks of AVX-512")
    calls = []
    launch = native_convolution.fprop

    def launched(*args, **rest):
        calls.append(1)
        return launch(*args, **rest)

    monkeypatch.setattr(native_convolution, "fprop", launched)
    x, weight = drawn(*shape), drawn(*weight_shape)
    taken = []
    for recorded in (False, True):
        calls.clear()
        with torch.set_grad_enabled(recorded):
            y = ops.conv2d(x, weight, None, stride, weight.shape[2] // 2)
        taken.append(bool(calls))
        expected = F.conv2d(x, weight, None, stride, weight.shape[2] // 2)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-3)
    assert taken == [recorded_too is not None, bool(recorded_too)]
