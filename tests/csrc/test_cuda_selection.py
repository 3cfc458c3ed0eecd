"""What the "cuda" records of the operators' tables say of calls, without building anything."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fastgan import native_cuda
from fastgan.errors import BackendError
from fastgan.ops import native_cuda as records

ALL = (records.BATCH_NORM_ACT, records.BIAS_ACT, records.ADVERSARIAL_LOSS, records.CONVOLUTION)


def call(**changes: object) -> SimpleNamespace:
    """A call that all four records know how to read: of channels_last data on a GPU."""
    settings: dict[str, object] = {
        "device": torch.device("cuda", 0),
        "dtype": torch.bfloat16,
        "dtypes": (torch.bfloat16, torch.bfloat16),
        "bias_dtype": torch.float32,
        "parameters": (torch.float32,) * 4,
        "channels_last": True,
        "big_channels": 3,
        "groups": 1,
        "dilation": (1, 1),
    }
    return SimpleNamespace(**settings | changes)


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of compute capability 9.0, and a library that is not to be built."""
    monkeypatch.setattr(native_cuda, "obstacle", lambda: None)
    monkeypatch.setattr(records, "_capability", lambda index: (9, 0))
    monkeypatch.setattr(records, "_missing", lambda: pytest.fail("the library was asked for"))


@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize("record", ALL)
def test_calls_on_a_gpu_are_served_but_left_to_triton_unasked(record) -> None:
    assert record.supports(call()) is None
    if records.TRITON_INSTALLED:
        assert "Triton" in record.prefers(call())


@pytest.mark.usefixtures("_gpu")
def test_what_was_measured_faster_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "WINS", frozenset({((9, 0), "bias_act")}))
    monkeypatch.setattr(records, "_missing", lambda: None)
    assert records.BIAS_ACT.prefers(call()) is None
    assert "NCHW" in records.BIAS_ACT.prefers(call(channels_last=False))
    assert "one launch" in records.BIAS_ACT.prefers(call(bias_dtype=None))


@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize(
    ("record", "changes", "reason"),
    [
        (records.BIAS_ACT, {"device": torch.device("cpu")}, "not on cpu"),
        (records.BIAS_ACT, {"dtype": torch.float64}, "float64"),
        (records.CONVOLUTION, {"big_channels": 64}, "1 to 4 channels, not 64"),
        (records.CONVOLUTION, {"groups": 3}, "groups"),
        (records.CONVOLUTION, {"dilation": (2, 1)}, "dilation"),
        (records.ADVERSARIAL_LOSS, {"dtypes": (torch.float32, torch.bfloat16)}, "one dtype"),
        (records.BATCH_NORM_ACT, {"parameters": (None, torch.float32, None, None)}, "both"),
    ],
)
def test_what_cannot_be_served_is_told(record, changes: dict, reason: str) -> None:
    assert reason in record.supports(call(**changes))


def test_without_the_library_a_launch_is_a_backend_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_missing", lambda: "no nvcc was found")
    with pytest.raises(BackendError, match="'cuda' cannot serve this call: no nvcc"):
        records.BIAS_ACT.run["forward"](torch.zeros(1, 2, 3, 4), None, "relu", 0.0)
