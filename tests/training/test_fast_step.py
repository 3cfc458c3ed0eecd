"""The fast step is the reference step: option by option, captured or not, resumed or not."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from recording_graphs import RecordingGraphs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import fastgan
from fastgan.training.runner import StepRunner
from fastgan.training.step import METRICS, StepPlan

STEPS = 25

# What a step may compute besides the recipe.
OPTIONS = {
    "horizontal_flip": (False, True),
    "discriminator_steps": (1, 2),
    "accumulate": (1, 2),
    "clip_gradients": (0.0, 0.5),
    "r1_gamma": (0.0, 2.0),
    "ema_half_life": (10_000.0, 0.0),
    "objective": ("bce", "hinge"),
}


def pairwise_rows() -> list[dict[str, object]]:
    """Rows in which every pair of values of two options occurs (greedy all-pairs)."""
    names = list(OPTIONS)
    missing = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x, y in itertools.product(OPTIONS[a], OPTIONS[b])
    }
    rows = []
    while missing:
        best = max(
            (dict(zip(names, row, strict=True)) for row in itertools.product(*OPTIONS.values())),
            key=lambda row: sum(pair in missing for pair in itertools.combinations(row.items(), 2)),
        )
        rows.append(best)
        missing -= set(itertools.combinations(best.items(), 2))
    return rows


def train(trainer, steps: int = STEPS, **settings):
    """The trainer after `steps`, and its metrics."""
    one = trainer(**settings)
    metrics = [one.step(one.batches.of_step(step)) for step in range(steps)]
    return one, metrics


def assert_close(ours, theirs, bound: float) -> None:
    """Every tensor of two states, each within `bound` of its own largest value."""
    for file, tensors in theirs.tensors().items():
        for name, expected in tensors.items():
            actual = ours.tensors()[file][name]
            error = (actual.double() - expected.double()).abs().max()
            assert error <= bound * max(expected.double().abs().max(), 1e-3), (file, name, error)


@pytest.mark.parametrize(
    "options", pairwise_rows(), ids=lambda row: "-".join(map(str, row.values()))
)
def test_one_pass_equals_two_for_every_pair_of_options(trainer, options) -> None:
    options = {**options, "r1_every": 4}
    fast, fast_metrics = train(trainer, **options, one_pass="on")
    reference, reference_metrics = train(trainer, **options, one_pass="off")
    assert fast.runner.plan.one_pass
    assert not reference.runner.plan.one_pass
    assert_close(fast.state, reference.state, 1e-5)
    for ours, theirs in zip(fast_metrics, reference_metrics, strict=True):
        for name in METRICS:
            assert abs(float(ours[name]) - float(theirs[name])) <= 1e-5 * max(
                1.0, abs(float(theirs[name]))
            )


def test_weights_cast_once_change_no_bit(trainer) -> None:
    once, _ = train(trainer, steps=6, precision="bf16", cast_once=True)
    each, _ = train(trainer, steps=6, precision="bf16", cast_once=False)
    assert len(once.state.packed) == 2
    assert each.state.packed == {}
    assert_close(once.state, each.state, 0.0)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"horizontal_flip": True, "discriminator_steps": 2},
        {"accumulate": 2, "clip_gradients": 0.5},
        {"r1_gamma": 2.0, "r1_every": 3},
    ],
    ids=lambda settings: "-".join(settings) or "recipe",
)
@pytest.mark.parametrize("given", ["pixels", "floats", "resident"])
def test_a_captured_run_equals_an_uncaptured_one_to_the_bit(trainer, settings, given) -> None:
    settings = {**settings, "precision": "bf16"}
    if given == "floats":
        settings["horizontal_flip"] = False
    plain, plain_metrics = train(trainer, 8, **settings)
    placement = "resident" if given == "resident" else "prefetch"
    captured = trainer(**settings, data_placement=placement)
    captured.runner.engine = RecordingGraphs()
    metrics = []
    for step in range(8):
        real = captured.batches.of_step(step)
        metrics.append(captured.step(real.float() / 127.5 - 1 if given == "floats" else real))
    assert captured.runner.why_not_captured is None
    assert_close(captured.state, plain.state, 0.0)
    assert [{k: float(v) for k, v in row.items()} for row in metrics] == [
        {k: float(v) for k, v in row.items()} for row in plain_metrics
    ]


def test_capturing_leaves_weights_moments_and_random_state_as_they_were(trainer) -> None:
    one = trainer(precision="bf16")
    before = copy.deepcopy(one.state.tensors())
    one.runner.engine = RecordingGraphs()
    real = one.batches.of_step(0)
    one.runner.inputs.prepare(0, 0.5)
    draws = [generator.get_state() for generator in one.runner.inputs.generators]
    one.runner._captured(real, False)
    for file, tensors in one.state.tensors().items():
        for name, value in tensors.items():
            expected = before[file].get(name, torch.zeros_like(value))
            assert torch.equal(value, expected), (file, name)
    for generator, state in zip(one.runner.inputs.generators, draws, strict=True):
        assert torch.equal(generator.get_state(), state)


class NoAllocation(TorchDispatchMode):
    """Fails on every operator whose result lies in memory that its arguments do not."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        known = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        for made in tree_flatten(result)[0]:
            if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() not in known:
                raise AssertionError(f"{func} allocates outside of the graph")
        return result


def test_a_replayed_step_allocates_nothing_and_waits_for_nothing(trainer, monkeypatch) -> None:
    one = trainer(precision="bf16", horizontal_flip=True)
    one.runner.engine = RecordingGraphs()
    batches = [one.batches.of_step(step) for step in range(3)]
    one.runner.run(batches[0])
    program = one.runner._programs["pixels", False]
    replays = []
    # The graph itself is left out: its memory is its own, and what waits was refused on recording.
    monkeypatch.setattr(type(program), "__call__", lambda self: replays.append(self))
    with NoAllocation():
        one.runner.run(batches[1])
        one.runner.run(batches[2])
    assert replays == [program, program]


def test_the_watcher_sees_an_allocation() -> None:
    with NoAllocation(), pytest.raises(AssertionError, match="allocates"):
        torch.ones(3) + 1


@pytest.mark.parametrize(
    ("real", "reason"),
    [
        (torch.zeros(4, 3, 16, 16), "batch of 4"),
        (torch.zeros(16, 3, 16, 16, dtype=torch.uint8), "batch of 16"),
    ],
)
def test_what_the_graph_was_not_recorded_for_runs_uncaptured_and_says_so(
    trainer, real, reason
) -> None:
    one = trainer()
    one.runner.engine = RecordingGraphs()
    one.step(real)
    assert reason in one.runner.why_not_captured
    assert one.state.step == 1


def test_a_hook_is_not_lost_in_a_replay(trainer) -> None:
    one = trainer(precision="bf16")
    one.runner.engine = RecordingGraphs()
    one.step(one.batches.of_step(0))
    assert one.runner.how == "captured as one graph"
    calls = []
    one.state.generator.main[0].register_forward_hook(lambda *_: calls.append(1))
    one.step(one.batches.of_step(1))
    assert calls == [1]
    assert one.runner.how == "not captured: the hook on main.0 would not run in a replay"


def test_a_step_that_cannot_be_recorded_runs_uncaptured_from_the_same_state(trainer) -> None:
    # A plain run updates with an Adam that reads its step counts back.
    with fastgan.backend("reference"):
        one, plain = trainer(), trainer()
        one.runner.engine = RecordingGraphs()
        for step in range(3):
            one.step(one.batches.of_step(step))
            plain.step(plain.batches.of_step(step))
            assert "recording failed: aten._local_scalar_dense" in one.runner.how
    assert_close(one.state, plain.state, 0.0)


def test_a_capture_can_be_switched_off(trainer) -> None:
    one = trainer(capture=False)
    assert one.runner.engine is None
    one.step(one.batches.of_step(0))
    assert one.runner.why_not_captured == "capture is off"


def test_layers_that_would_mix_the_halves_take_two_passes(trainer) -> None:
    one = trainer(one_pass="on")
    one.state.discriminator.main.insert(2, torch.nn.Dropout(0.4))
    plan = StepPlan.of(one.config, one.state.discriminator)
    assert "Dropout" in plan.why_two_passes
    one.state.discriminator.main[2] = torch.nn.BatchNorm1d(4)
    assert "BatchNorm1d" in StepPlan.of(one.config, one.state.discriminator).why_two_passes


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_300_captured_steps_on_a_gpu_equal_uncaptured_ones(trainer, precision) -> None:
    runs = []
    for capture in (True, False):
        one, _ = train(trainer, 300, device="cuda", precision=precision, capture=capture)
        assert (one.runner.why_not_captured is None) == capture
        runs.append(one.state)
    assert_close(*runs, 0.0)


@pytest.mark.gpu
def test_a_replayed_step_on_a_gpu_does_not_wait(trainer) -> None:
    one = trainer(device="cuda", data_placement="resident")
    batches = [one.batches.of_step(step) for step in range(4)]
    one.runner.run(batches[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches[1:]:
            one.runner.run(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_runner_refuses_indices_without_resident_images(trainer) -> None:
    one = trainer(data_placement="prefetch")
    with pytest.raises(ValueError, match="not on the device"):
        one.step(torch.arange(8))
    assert isinstance(one.runner, StepRunner)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"one_pass": "off"},
        {"discriminator_steps": 2, "accumulate": 2},
        {"r1_gamma": 2.0, "r1_every": 2},
        {"optimiser": "rmsprop", "precision": "bf16"},
    ],
    ids=lambda settings: "-".join(settings) or "recipe",
)
def test_early_updates_change_no_bit(trainer, settings, monkeypatch) -> None:
    def run(large: int):
        """The trainer after 4 steps, its metrics, and how many gradients D held at each update."""
        monkeypatch.setattr("fastgan.training.step.LARGE_WEIGHT", large)
        one = trainer(**settings)
        weights = list(one.state.discriminator.parameters())
        optimizer = one.state.discriminator_optimizer
        held = []

        def note(*_: object) -> None:
            held.append(sum(weight.grad is not None for weight in weights))

        optimizer.register_step_pre_hook(note)
        return one, [one.step(one.batches.of_step(step)) for step in range(4)], held

    early, early_metrics, early_held = run(0)
    late, late_metrics, late_held = run(1 << 60)
    assert set(late_held) == {len(list(late.state.discriminator.parameters()))}
    assert set(early_held) == {0, 1}  # one by one, and then there are none
    assert_close(early.state, late.state, 0.0)
    for ours, theirs in zip(early_metrics, late_metrics, strict=True):
        assert {k: float(v) for k, v in ours.items()} == {k: float(v) for k, v in theirs.items()}


def test_gradients_that_are_bounded_together_wait_for_each_other(trainer, monkeypatch) -> None:
    def clipped(large: int):
        monkeypatch.setattr("fastgan.training.step.LARGE_WEIGHT", large)
        return train(trainer, 3, clip_gradients=0.01)[0]

    assert_close(clipped(0).state, clipped(1 << 60).state, 0.0)
