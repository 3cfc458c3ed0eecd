"""What a step does besides the recipe: randomness, averaging, precision, options, no waiting."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastgan
from fastgan.errors import ConfigError
from fastgan.objectives import OBJECTIVES
from fastgan.training.randomness import drawing_from, latents, mixed_seed
from fastgan.training.step import METRICS, frozen, weight_of_average


class NothingWaits(TorchDispatchMode):
    """Fails on every operator that brings a value of the device to the host.

    The tensors of `on_host` (the optimizers' step counters) are the host's own on any device.
    """

    WAITING = ("_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "unique")

    def __init__(self, on_host=lambda: ()) -> None:
        super().__init__()
        self.on_host = on_host

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in self.WAITING and not any(args[0] is tensor for tensor in self.on_host()):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **kwargs)


class NothingIsRead(TorchFunctionMode):
    """Fails on the methods that read a tensor on the host, which on a CPU leave no operator."""

    READING = ("cpu", "tolist", "numpy", "__array__")

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in self.READING:
            raise AssertionError(f"{func} reads a tensor on the host")
        return func(*args, **(kwargs or {}))


def step_counters(state):
    optimizers = (state.generator_optimizer, state.discriminator_optimizer)
    return [values["step"] for each in optimizers for values in each.state.values()]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimiser", ["adam", "rmsprop"])
def test_nothing_in_the_step_waits_for_the_device(trainer, precision, optimiser) -> None:
    one = trainer(
        precision=precision, optimiser=optimiser, horizontal_flip=True, discriminator_steps=2
    )
    real = one.batches.of_step(0)
    with NothingIsRead(), NothingWaits(lambda: step_counters(one.state)):
        metrics = one.step(real)
        metrics = one.step(real)
    assert set(metrics) == set(METRICS)
    assert all(value.shape == () and value.dtype == torch.float32 for value in metrics.values())


def test_the_watcher_sees_a_waiting_call() -> None:
    with NothingWaits(), pytest.raises(AssertionError, match="waits"):
        torch.ones(1).item()
    with NothingIsRead(), pytest.raises(AssertionError, match="reads"):
        torch.ones(1).tolist()


@pytest.mark.gpu
def test_nothing_in_the_step_waits_for_a_gpu(trainer) -> None:
    one = trainer(device="cuda")
    real = one.batches.of_step(0)
    one.step(real)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        one.step(real)
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_the_users_random_state_is_left_alone(trainer) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = trainer()
    one.step(one.batches.of_step(0))
    assert torch.equal(torch.rand(3), expected)


def test_dropout_is_a_function_of_seed_and_step(trainer) -> None:
    results = []
    for noise in (1, 2):
        one = trainer()
        one.state.discriminator.main.insert(2, nn.Dropout(0.4))
        torch.manual_seed(noise)
        one.step(one.batches.of_step(0))
        results.append(one.state.discriminator.main[0].weight.detach().clone())
    assert torch.equal(*results)
    with drawing_from(0, "modules", 1):
        first = torch.rand(4)
    with drawing_from(0, "modules", 2):
        assert not torch.equal(first, torch.rand(4))


def test_latents_depend_on_seed_stream_and_step_alone() -> None:
    z = latents(1, "latents", 7, (2, 3))
    assert torch.equal(z, latents(1, "latents", 7, (2, 3)))
    for other in ((2, "latents", 7), (1, "samples", 7), (1, "latents", 8)):
        assert not torch.equal(z, latents(*other, (2, 3)))
        assert mixed_seed(*other[:2], other[2]) != mixed_seed(1, "latents", 7)


def test_initial_weights_are_a_function_of_the_seed(trainer) -> None:
    def weights(seed: int) -> torch.Tensor:
        return trainer(seed=seed).state.generator.main[0].weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_a_frozen_network_passes_gradients_on_and_makes_none(trainer) -> None:
    network = trainer().state.discriminator
    images = torch.randn(4, 3, 16, 16, requires_grad=True)
    with frozen(network):
        loss = network(images).sum()
    loss.backward()
    assert images.grad is not None
    assert all(weight.grad is None and weight.requires_grad for weight in network.parameters())


def test_the_average_follows_its_half_life(trainer) -> None:
    one = trainer(ema_half_life=32.0, ema_ramp_up=1e9)
    expected = copy.deepcopy(one.state.generator.state_dict())
    for step in range(4):
        one.step(one.batches.of_step(step))
        for key, value in one.state.generator.state_dict().items():
            if value.is_floating_point():
                # 8 images a step and a half-life of 32: each step keeps 2^(-1/4).
                expected[key] = expected[key] * 2**-0.25 + value * (1 - 2**-0.25)
            else:
                expected[key] = value.clone()
    for key, value in one.state.averaged_generator.state_dict().items():
        torch.testing.assert_close(value, expected[key])


def test_the_average_is_short_at_the_start_and_off_at_zero(small) -> None:
    config = small(ema_half_life=10_000.0, ema_ramp_up=0.05)
    assert weight_of_average(config, 0) > 1 - 1e-5
    assert weight_of_average(config, 10**6) == pytest.approx(1 - 0.5 ** (8 / 10_000))
    assert weight_of_average(small(ema_half_life=0.0), 100) == 1.0


def test_an_average_of_nothing_is_the_generator_itself(trainer) -> None:
    one = trainer(ema_half_life=0.0)
    one.step(one.batches.of_step(0))
    averaged = one.state.averaged_generator
    assert not averaged.training
    mine = one.state.generator.state_dict(keep_vars=True)
    for key, value in averaged.state_dict(keep_vars=True).items():
        assert value is mine[key]
    assert next(trainer().state.averaged_generator.parameters()).requires_grad is False


def test_no_gradients_are_held_between_the_updates(trainer) -> None:
    one = trainer()
    held = []
    networks = {"G": one.state.generator, "D": one.state.discriminator}
    for name, other in (("G", "D"), ("D", "G")):
        one.state.optimizer_of(networks[name]).register_step_pre_hook(
            lambda *_, name=name, other=other: held.append(
                (
                    name,
                    all(weight.grad is not None for weight in networks[name].parameters()),
                    any(weight.grad is not None for weight in networks[other].parameters()),
                )
            )
        )
    one.step(one.batches.of_step(0))
    assert held == [("D", True, False), ("G", True, False)]


@pytest.mark.parametrize("keep", [True, False])
def test_a_trainer_on_a_cpu_keeps_memory_unless_told_otherwise(trainer, monkeypatch, keep) -> None:
    calls = []
    monkeypatch.setattr(fastgan.training.trainer, "keep_freed_memory", lambda: calls.append(1))
    trainer(keep_memory=keep)
    assert len(calls) == keep


def test_a_run_on_the_reference_operators_is_a_plain_script(trainer) -> None:
    with fastgan.backend("reference"):
        plain = trainer()
    fast = trainer()
    for one, layout, kernel in (
        (plain, torch.contiguous_format, "foreach"),
        (fast, torch.channels_last, "fused"),
    ):
        weight = one.state.discriminator.main[2].weight
        assert weight.is_contiguous(memory_format=layout)
        assert one.runner.inputs.images(one.batches.of_step(0)).is_contiguous(memory_format=layout)
        assert one.state.generator_optimizer.defaults[kernel]
    assert "plain" in plain.runner.plan.why_two_passes
    assert fast.runner.plan.one_pass


def test_several_discriminator_steps_take_fresh_images_and_latents(trainer) -> None:
    one = trainer(discriminator_steps=3)
    real = one.batches.of_step(0)
    assert len(real) == 24
    one.step(real)
    counted = one.state.discriminator.main[3].num_batches_tracked
    assert int(counted) == 3 * 2 + 1
    assert one.state.generator_optimizer.state[one.state.generator.main[0].weight]["step"] == 1
    with pytest.raises(ConfigError, match="multiple of 3"):
        one.step(real[:8])


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_every_objective_trains(trainer, objective) -> None:
    one = trainer(objective=objective)
    before = one.state.generator.main[0].weight.detach().clone()
    metrics = one.step(one.batches.of_step(0))
    assert all(bool(value.isfinite()) for value in metrics.values())
    assert not torch.equal(before, one.state.generator.main[0].weight)


def test_float_images_are_used_as_they_are(trainer) -> None:
    real = trainer().batches.of_step(0)
    first, second = trainer(), trainer()
    by_bytes = first.step(real)
    by_floats = second.step(real.float() / 127.5 - 1.0)
    for name in METRICS:
        assert torch.equal(by_bytes[name], by_floats[name])


def test_flips_mirror_about_half_of_the_images(trainer) -> None:
    one = trainer(horizontal_flip=True)
    real = one.batches.of_step(0)
    plain = real.float() / 127.5 - 1.0
    inputs = one.runner.inputs
    inputs.prepare(0, 0.0)
    prepared = inputs.images(real)
    pairs = list(zip(prepared, plain, strict=True))
    flipped = [torch.equal(image, original.flip(2)) for image, original in pairs]
    assert all(
        mirrored != torch.equal(image, original)
        for mirrored, (image, original) in zip(flipped, pairs, strict=True)
    )
    assert 0 < sum(flipped) < len(real)
    inputs.prepare(0, 0.0)
    assert torch.equal(prepared, inputs.images(real))


def test_bf16_is_channels_last_with_float32_weights_and_losses(trainer) -> None:
    one = trainer(precision="bf16")
    metrics = one.step(one.batches.of_step(0))
    weight = one.state.discriminator.main[2].weight
    assert weight.dtype == torch.float32
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert metrics["loss_d"].dtype == torch.float32
    reference = trainer()
    expected = reference.step(reference.batches.of_step(0))
    for name in METRICS:
        # One step from equal weights: bfloat16's epsilon, 2^-8, through a dozen layers.
        assert float(metrics[name]) == pytest.approx(float(expected[name]), rel=2**-5)


def test_images_of_another_size_are_refused(trainer) -> None:
    with pytest.raises(ConfigError, match=r"\(8, 3, 8, 8\)"):
        trainer().step(torch.zeros(8, 3, 8, 8))


@pytest.mark.parametrize("optimiser", ["adam", "rmsprop"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_optimizers_begin_as_they_would_have(trainer, optimiser, device) -> None:
    made = trainer(optimiser=optimiser, device=device).state
    config = trainer(optimiser=optimiser, device=device).config
    lazy = type(made).initial(config, made.device)
    for network, twin in zip(
        (made.generator, made.discriminator), (lazy.generator, lazy.discriminator), strict=True
    ):
        moments = made.optimizer_of(network).state
        for weight, other in zip(network.parameters(), twin.parameters(), strict=True):
            assert torch.equal(weight, other)
            assert weight.grad is None
            assert all(not tensor.any() for tensor in moments[weight].values())
            other.grad = torch.ones_like(other)
        lazy.optimizer_of(twin).step()
        for weight in network.parameters():
            weight.grad = torch.ones_like(weight)
        made.optimizer_of(network).step()
        for weight, other in zip(network.parameters(), twin.parameters(), strict=True):
            assert torch.equal(weight, other)
            assert moments[weight].keys() == lazy.optimizer_of(twin).state[other].keys()
