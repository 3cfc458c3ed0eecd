"""The PyTorch DCGAN example's training loop, written out plainly: what the trainer must equal.

Nothing here comes from fastgan: networks, losses and optimizers are torch's, in the order of
https://github.com/pytorch/examples/blob/main/dcgan/main.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def plain_networks(
    size: int, channels: int, latent_dim: int, width: int, doublings: int
) -> tuple[nn.Module, nn.Module]:
    """The example's G and D for square images of `size` pixels made by `doublings` stages."""
    stem = size >> doublings
    widths = [width << stage for stage in reversed(range(doublings))]
    generator: list[nn.Module] = [
        nn.ConvTranspose2d(latent_dim, widths[0], stem, 1, 0, bias=False),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(True),
    ]
    for before, after in itertools.pairwise(widths):
        generator += [
            nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(True),
        ]
    generator += [nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False), nn.Tanh()]

    widths.reverse()
    discriminator: list[nn.Module] = [
        nn.Conv2d(channels, width, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2, inplace=True),
    ]
    for before, after in itertools.pairwise(widths):
        discriminator += [
            nn.Conv2d(before, after, 4, 2, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.LeakyReLU(0.2, inplace=True),
        ]
    discriminator += [nn.Conv2d(widths[-1], 1, stem, 1, 0, bias=False), nn.Sigmoid()]
    return nn.Sequential(*generator), nn.Sequential(*discriminator)


def train_plainly(
    generator: nn.Module,
    discriminator: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
) -> list[tuple[float, ...]]:
    """Train in place on (real [B, C, H, W], z [B, latent, 1, 1]); the example's five figures."""
    criterion = nn.BCELoss()
    optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    figures = []
    for real, noise in batches:
        # (1) Update D: maximize log(D(x)) + log(1 - D(G(z)))
        discriminator.zero_grad()
        label = torch.full((len(real),), 1.0)
        output = discriminator(real).view(-1)
        loss_real = criterion(output, label)
        loss_real.backward()
        d_x = output.mean().item()

        fake = generator(noise)
        label.fill_(0.0)
        output = discriminator(fake.detach()).view(-1)
        loss_fake = criterion(output, label)
        loss_fake.backward()
        d_g_z1 = output.mean().item()
        loss_d = loss_real + loss_fake
        optimizer_d.step()

        # (2) Update G: maximize log(D(G(z)))
        generator.zero_grad()
        label.fill_(1.0)
        output = discriminator(fake).view(-1)
        loss_g = criterion(output, label)
        loss_g.backward()
        d_g_z2 = output.mean().item()
        optimizer_g.step()
        figures.append((loss_d.item(), loss_g.item(), d_x, d_g_z1, d_g_z2))
    return figures
