"""The book's GAN has exactly its layers, counts and shapes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastgan.errors import ConfigError
from fastgan.models import PRESETS, BookDiscriminator, BookGAN, BookGenerator, build_networks


def trainable(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameter_counts_are_the_books():
    generator, discriminator = build_networks("book", image_size=28, channels=1)
    running = sum(
        buffer.numel()
        for name, buffer in generator.named_buffers()
        if name.rsplit(".", 1)[-1] in ("running_mean", "running_var")
    )
    assert trainable(discriminator) == 720_833
    assert trainable(generator) == 837_377
    assert running == 6_784
    assert trainable(generator) + running == 844_161


def test_maps_shrink_as_keras_same_padding_makes_them():
    discriminator = BookDiscriminator()
    sizes = []
    for module in discriminator.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape[1:])))
    probabilities = discriminator(torch.randn(2, 1, 28, 28))
    assert sizes == [(64, 14, 14), (64, 7, 7), (128, 4, 4), (128, 4, 4)]
    assert probabilities.shape == (2,)
    assert sum(isinstance(module, nn.Dropout) for module in discriminator.modules()) == 4


def test_stride_2_pads_one_pixel_before_and_two_after_on_even_sizes():
    pads = [m.padding for m in BookDiscriminator().modules() if isinstance(m, nn.ZeroPad2d)]
    assert pads == [(1, 2, 1, 2), (1, 2, 1, 2)]


def test_the_generator_makes_images_between_minus_one_and_one():
    images = BookGenerator()(torch.randn(3, 100))
    assert images.shape == (3, 1, 28, 28)
    assert images.abs().max() <= 1


def test_batch_norm_has_the_momentum_and_epsilon_of_keras():
    norms = [m for m in BookGenerator().modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert [(round(m.momentum, 6), m.eps) for m in norms] == [(0.1, 1e-3)] * 4


def test_other_arguments_of_the_book_build_too():
    book = BookGAN(
        input_dim=(32, 48, 3),
        discriminator_batch_norm_momentum=0.8,
        discriminator_activation="leaky_relu",
        generator_initial_dense_layer_size=(8, 12, 16),
        generator_conv_filters=(16, 8, 8, 3),
        generator_batch_norm_momentum=None,
        generator_dropout_rate=0.1,
    )
    images = BookGenerator(book)(torch.randn(2, 100, 1, 1))
    assert images.shape == (2, 3, 32, 48)
    assert BookDiscriminator(book, "logit")(images).shape == (2,)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"generator_upsample": (2, 2)}, "generator_upsample"),
        ({"discriminator_conv_strides": (2,)}, "discriminator_conv_strides"),
        ({"discriminator_activation": "gelu"}, "discriminator_activation"),
        ({"input_dim": (32, 32, 1)}, "input_dim"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, named):
    with pytest.raises(ConfigError, match=named):
        BookGAN(**arguments)


def test_presets_name_settings_of_their_source():
    assert PRESETS["dcgan"].settings == {}
    assert PRESETS["book"].settings["optimiser"] == "rmsprop"
    assert PRESETS["book"].settings["discriminator_lr"] == 0.0008
