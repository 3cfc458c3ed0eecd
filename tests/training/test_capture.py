"""The capture protocol, on a small training program and a recording stand-in for CUDA graphs."""

from __future__ import annotations

import copy

import pytest
import torch
from recording_graphs import RecordingGraphs
from torch import nn

from fastgan.training.capture import REHEARSALS, CapturedProgram, CaptureError, CudaGraphs, Snapshot
from fastgan.training.metric_ring import MetricRing


class Training:
    """A model with batch norm and dropout, Adam on the device, random inputs, a metric ring."""

    def __init__(self, device: str = "cpu") -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 1)
        ).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), fused=True)
        self.generator = torch.Generator(device).manual_seed(1)
        self.scale = torch.ones((), device=device)
        self.ring = MetricRing(["loss"], 4, device)

    def program(self) -> None:
        inputs = (
            torch.randn(3, 2, 6, 6, generator=self.generator, device=self.scale.device) * self.scale
        )
        loss = self.model(inputs).square().mean()
        self.optimizer.zero_grad(set_to_none=False)
        loss.backward()
        self.optimizer.step()
        self.ring.write([loss])

    def state(self) -> list[torch.Tensor]:
        moments = [
            value
            for per_parameter in self.optimizer.state.values()
            for value in per_parameter.values()
        ]
        return [*self.model.state_dict().values(), *moments, *self.ring.state()]


def test_replays_equal_plain_steps_to_the_bit():
    plain, captured = Training(), Training()
    step = CapturedProgram(
        captured.program, captured.state, RecordingGraphs(), [captured.generator]
    )
    for scale in (1.0, 2.0, 0.5, 3.0, 1.0):
        plain.scale.fill_(scale), captured.scale.fill_(scale)
        plain.program()
        step()
    for ours, theirs in zip(captured.state(), plain.state(), strict=True):
        assert torch.equal(ours, theirs)
    assert captured.ring.read(4) == plain.ring.read(4)


def test_warm_up_leaves_every_tensor_and_generator_untouched():
    training = Training()
    before = copy.deepcopy(training.model.state_dict())
    draws = training.generator.get_state()
    engine = RecordingGraphs()
    CapturedProgram(training.program, training.state, engine, [training.generator])
    assert engine.rehearsals == REHEARSALS
    for name, value in training.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(training.generator.get_state(), draws)
    assert all(
        not value.any()
        for moments in training.optimizer.state.values()
        for value in moments.values()
    )


def test_a_step_that_reads_back_a_value_cannot_be_recorded():
    training = Training()

    def program() -> None:
        training.program()
        float(training.ring.rows[0, 0])

    before = copy.deepcopy(training.model.state_dict())
    with pytest.raises(CaptureError, match="reads a value back"):
        CapturedProgram(program, training.state, RecordingGraphs(), [training.generator])

    for name, value in training.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_snapshot_zeroes_state_that_appeared_after_it():
    old, new = torch.ones(2), torch.ones(3)
    snapshot = Snapshot([old])
    old.add_(1)
    snapshot.restore([old, new])
    assert old.tolist() == [1, 1]
    assert new.tolist() == [0, 0, 0]


@pytest.mark.gpu
def test_a_cuda_graph_equals_plain_steps_to_the_bit():
    plain, captured = Training("cuda"), Training("cuda")
    engine = CudaGraphs(torch.device("cuda", 0))
    step = CapturedProgram(captured.program, captured.state, engine, [captured.generator])
    for scale in (1.0, 2.0, 0.5, 3.0, 1.0):
        plain.scale.fill_(scale), captured.scale.fill_(scale)
        plain.program()
        step()
    for ours, theirs in zip(captured.state(), plain.state(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_ring_keeps_the_newest_rows_in_order():
    ring = MetricRing(["a", "b"], 3)
    for step in range(5):
        ring.write([torch.tensor(float(step)), torch.tensor(step * 10)])
    assert ring.read(2) == [{"a": 3.0, "b": 30.0}, {"a": 4.0, "b": 40.0}]
    assert ring.read(0) == []
    assert {name: float(value) for name, value in ring.latest().items()} == {"a": 4.0, "b": 40.0}
    with pytest.raises(ValueError, match="0 to 3"):
        ring.read(4)
    with pytest.raises(ValueError, match="capacity"):
        MetricRing(["a"], 0)
