"""Which implementation serves a call, who says so, and what a user is told when none can."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch
from torch.nn import functional as F

from fastgan import ops
from fastgan.errors import BackendError
from fastgan.ops.convolution_plan import IMPLEMENTATIONS, Call
from fastgan.ops.implementations import NAMES, Implementation, always, choose


def images(*shape, **options):
    return torch.randn(shape or (2, 3, 8, 8), **options)


def test_stems_and_heads_are_matrix_products_unasked():
    stem = ops.explain_call(ops.conv_transpose2d, images(2, 8, 1, 1), torch.randn(8, 4, 4, 4))
    head = ops.explain_call("conv2d", images(2, 8, 4, 4), torch.randn(1, 8, 4, 4))
    assert stem.chosen == head.chosen == "matmul"


def test_what_is_passed_over_comes_with_its_reason():
    choice = ops.explain_call("conv2d", images(), torch.randn(4, 3, 3, 3))
    assert choice.chosen == "reference"
    assert [name for name, _ in choice.rejected] == ["matmul", "cuda", "cpu", "triton"]
    assert all(reason for _, reason in choice.rejected)


@pytest.mark.parametrize(
    ("options", "tensors", "reason"),
    [
        ({"groups": 2}, (images(2, 4, 8, 8), torch.randn(4, 2, 3, 3)), "groups=1"),
        ({"dilation": 2}, (images(), torch.randn(4, 3, 3, 3)), "dilation=1"),
        ({}, (images().double(), torch.randn(4, 3, 3, 3).double()), "float64"),
    ],
)
def test_a_forced_backend_that_cannot_serve_says_why(options, tensors, reason):
    with ops.backend("triton"), pytest.raises(BackendError, match=reason):
        ops.conv2d(*tensors, **options)
    with ops.backend("reference"):
        ops.conv2d(*tensors, **options)


def test_a_gpu_in_channels_last_takes_triton_and_says_why_not_otherwise():
    def choice(dtype=torch.bfloat16, channels_last=True, tf32=False):
        device = torch.device("cuda:0")
        call = Call(
            device, dtype, channels_last, (8, 8), (4, 4), (4, 4), (2, 2), (1, 1), (1, 1), 1, tf32
        )
        (triton,) = (record for record in IMPLEMENTATIONS if record.name == "triton")
        return triton.prefers(call)

    assert choice() is None
    assert choice(torch.float32, tf32=True) is None
    assert "TF32" in choice(torch.float32)
    assert "channels_last" in choice(channels_last=False)


def test_backend_nests_restores_and_belongs_to_its_thread():
    x, w = images(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    seen = []
    with ops.backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(ops.explain_call("conv2d", x, w)))
        thread.start()
        thread.join()
        assert ops.explain_call("conv2d", x, w).chosen == "reference"
        with ops.backend("auto"):
            assert ops.explain_call("conv2d", x, w).chosen == "matmul"
        assert ops.explain_call("conv2d", x, w).chosen == "reference"
    assert seen[0].chosen == "matmul"
    assert ops.explain_call("conv2d", x, w).chosen == "matmul"


def test_unknown_names_are_refused_with_what_is_allowed():
    with pytest.raises(BackendError, match="reference"), ops.backend("cudnn"):
        pass
    with pytest.raises(ValueError, match="conv2d"):
        ops.explain_call("conv3d")
    with pytest.raises(ValueError, match="leaky_relu"):
        ops.bias_act(images(), activation="gelu")
    with pytest.raises(ValueError, match="non_saturating"):
        ops.generator_loss(images(3), "gann")
    with pytest.raises(ValueError, match="no targets"):
        ops.discriminator_loss(images(3), images(3), "hinge", real_label=0.9)
    with pytest.raises(ValueError, match="name"):
        Implementation("vulkan", always, always, {})
    assert "reference" in NAMES


def test_a_backend_without_a_record_is_named_with_those_that_there_are():
    table = (Implementation("reference", always, always, {}),)
    with pytest.raises(BackendError, match="there are: reference"):
        choose("conv2d", table, None, "triton")


def test_environment_forces_a_backend_and_refuses_unknown_ones():
    program = "from fastgan.ops.implementations import forced_backend as f; print(f())"

    def run(value):
        command = [sys.executable, "-c", program]
        environment = {"FASTGAN_BACKEND": value, "PATH": "", "PYTHONPATH": ":".join(sys.path)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert run("reference").stdout.strip() == "reference"
    assert run("auto").stdout.strip() == "None"
    assert "cudnn" in run("cudnn").stderr


WRONG_CONVOLUTIONS = {
    "channels": lambda f: f(images(), torch.randn(4, 5, 3, 3)),
    "dtype": lambda f: f(images(), torch.randn(4, 3, 3, 3).bfloat16()),
    "dimensions": lambda f: f(torch.randn(3, 3), torch.randn(4, 3, 3, 3)),
    "kernel too large": lambda f: f(images(2, 3, 2, 2), torch.randn(4, 3, 5, 5)),
    "stride": lambda f: f(images(), torch.randn(4, 3, 3, 3), None, 0),
    "padding": lambda f: f(images(), torch.randn(4, 3, 3, 3), None, 1, -1),
    "bias": lambda f: f(images(), torch.randn(4, 3, 3, 3), torch.randn(3)),
    "same with stride": lambda f: f(images(), torch.randn(4, 3, 3, 3), None, 2, "same"),
}
WRONG_TRANSPOSED = {
    "channels": lambda f: f(images(), torch.randn(4, 5, 3, 3)),
    "output_padding": lambda f: f(images(), torch.randn(3, 4, 3, 3), None, 2, 0, 2),
    "nothing left": lambda f: f(images(2, 3, 1, 1), torch.randn(3, 4, 2, 2), None, 1, 4),
}
WRONG_NORMS = {
    "one value": lambda f: f(images(1, 3, 1, 1), None, None, training=True),
    "no statistics": lambda f: f(images(), None, None),
    "weight": lambda f: f(images(), torch.zeros(3), torch.ones(3), torch.ones(4)),
}


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize(
    ("operator", "twin", "call"),
    [
        *((ops.conv2d, F.conv2d, call) for call in WRONG_CONVOLUTIONS.values()),
        *((ops.conv_transpose2d, F.conv_transpose2d, call) for call in WRONG_TRANSPOSED.values()),
        *((ops.batch_norm_act, F.batch_norm, call) for call in WRONG_NORMS.values()),
    ],
)
def test_wrong_arguments_raise_in_torchs_words(operator, twin, call, backend):
    with pytest.raises((RuntimeError, ValueError)) as torchs:
        call(twin)
    with pytest.raises(type(torchs.value)) as ours, ops.backend(backend):
        call(operator)
    assert str(ours.value) == str(torchs.value)


def test_stat_groups_must_divide_the_batch():
    with pytest.raises(ValueError, match="stat_groups=3"):
        ops.batch_norm_act(images(), None, None, training=True, stat_groups=3)


@pytest.mark.parametrize("backend", ["reference", "triton", "auto"])
def test_unbatched_and_named_padding_like_torch(backend):
    x, w = torch.randn(3, 8, 8), torch.randn(4, 3, 3, 3)
    with ops.backend(backend):
        for padding in (0, "valid", "same"):
            wanted = F.conv2d(x, w, padding=padding)
            torch.testing.assert_close(ops.conv2d(x, w, padding=padding), wanted, atol=1e-4, rtol=0)
        wanted = F.conv_transpose2d(x, w.transpose(0, 1).contiguous(), stride=2)
        actual = ops.conv_transpose2d(x, w.transpose(0, 1).contiguous(), stride=[2, 2])
        torch.testing.assert_close(actual, wanted, atol=1e-4, rtol=0)


def test_everything_runs_where_triton_is_missing():
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'triton' else find(n, *a)\n"
        "import torch; from fastgan import ops\n"
        "x = torch.randn(2, 3, 8, 8); w = torch.randn(4, 3, 3, 3)\n"
        "ops.bias_act(ops.conv2d(x, w))\n"
        "print(ops.explain_call('conv2d', x, w).rejected[-1][1])"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Triton is not installed" in done.stdout
