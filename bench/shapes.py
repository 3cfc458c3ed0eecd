"""What is measured: DCGAN's layers at any image size, layers of other GANs, and their least work.

FLOPs count a multiply-add as two and the kernel's taps over the padding as work, as everybody
does. Bytes are the fewest that device memory can see: every input read once, every output
written once, for the forward and the backward pass each. Both are floors: no kernel does less,
and a kernel that keeps data in a cache between calls can only seem to.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastgan.models import plan_stages

SIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
LEAKY_SLOPE = 0.2
LATENT_DIM = 100


@dataclass(frozen=True)
class Cost:
    """The least work of one pass: matrix FLOPs and bytes through memory."""

    flops: float
    bytes: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)


@dataclass(frozen=True)
class ConvLayer:
    """A convolution, or a transposed one; sizes are (height, width) in pixels.

    The weight of either is [small, big, kh, kw], the channels on its small and its big side.
    """

    name: str
    transposed: bool
    in_channels: int
    out_channels: int
    in_size: tuple[int, int]
    kernel: int = 4
    stride: int = 2
    padding: int = 1
    output_padding: int = 0

    @property
    def out_size(self) -> tuple[int, int]:
        """(height, width) of the output."""
        height, width = (
            (side - 1) * self.stride - 2 * self.padding + self.kernel + self.output_padding
            if self.transposed
            else (side + 2 * self.padding - self.kernel) // self.stride + 1
            for side in self.in_size
        )
        return height, width

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """[small, big, kh, kw]."""
        if self.transposed:
            return (self.in_channels, self.out_channels, self.kernel, self.kernel)
        return (self.out_channels, self.in_channels, self.kernel, self.kernel)

    @property
    def fan_in(self) -> int:
        """Products summed in one output element, at most."""
        taps = self.kernel * self.kernel
        if self.transposed:
            taps = (-(-self.kernel // self.stride)) ** 2
        return self.in_channels * taps

    def elements(self, batch: int) -> tuple[int, int, int]:
        """Elements of input, weight and output."""
        small, big, kh, kw = self.weight_shape
        return (
            batch * self.in_channels * self.in_size[0] * self.in_size[1],
            small * big * kh * kw,
            batch * self.out_channels * self.out_size[0] * self.out_size[1],
        )

    def flops(self, batch: int) -> float:
        """Of one of fprop, dgrad and wgrad: they have the same."""
        small = self.in_size if self.transposed else self.out_size
        s, b, kh, kw = self.weight_shape
        return 2.0 * batch * small[0] * small[1] * s * b * kh * kw

    def describe(self, batch: int) -> str:
        """For tables: batch 64: 512x4x4 → 256x8x8 k4 s2 p1."""
        tail = f" op{self.output_padding}" if self.output_padding else ""
        return (
            f"batch {batch}: {self.in_channels}x{_by(self.in_size)} → "
            f"{self.out_channels}x{_by(self.out_size)} "
            f"k{self.kernel} s{self.stride} p{self.padding}{tail}"
        )


@dataclass(frozen=True)
class MapLayer:
    """Something that keeps its input's shape: batch norm + activation, bias + activation."""

    name: str
    channels: int
    size: tuple[int, int]
    activation: str

    def elements(self, batch: int) -> int:
        """Elements of the map."""
        return batch * self.channels * self.size[0] * self.size[1]

    def describe(self, batch: int) -> str:
        """For tables: batch 64: 512x4x4 relu."""
        return f"batch {batch}: {self.channels}x{_by(self.size)} {self.activation}"


def dcgan_convolutions(image_size: int, width: int = 64, channels: int = 3) -> list[ConvLayer]:
    """All convolutions of G and D, G's first, named like "G 512→256 @4²" (size of the input)."""
    plan = plan_stages(image_size, image_size)
    hidden = plan.channels(width)
    stem = plan.stem[0]
    layers = [_layer("G", True, LATENT_DIM, hidden[0], 1, kernel=stem, stride=1, padding=0)]
    side = stem
    for before, after in zip(hidden, [*hidden[1:], channels], strict=True):
        layers.append(_layer("G", True, before, after, side))
        side *= 2
    for before, after in zip([channels, *hidden[:0:-1]], hidden[::-1], strict=True):
        layers.append(_layer("D", False, before, after, side))
        side //= 2
    layers.append(_layer("D", False, hidden[0], 1, side, kernel=stem, stride=1, padding=0))
    return layers


def dcgan_norms(image_size: int, width: int = 64) -> list[MapLayer]:
    """All batch-normed maps of G (ReLU) and D (LeakyReLU 0.2)."""
    plan = plan_stages(image_size, image_size)
    hidden = plan.channels(width)
    maps = [(count, plan.stem[0] << index) for index, count in enumerate(hidden)]
    return [
        MapLayer(f"{network} {count} @{side}²", count, (side, side), activation)
        for network, activation, these in (("G", "relu", maps), ("D", "leaky_relu", maps[:-1]))
        for count, side in these
    ]


def dcgan_activations(image_size: int, width: int = 64, channels: int = 3) -> list[MapLayer]:
    """The activations without batch norm: G's tanh over the image, D's first LeakyReLU."""
    half = image_size // 2
    return [
        MapLayer(f"G {channels} @{image_size}²", channels, (image_size, image_size), "tanh"),
        MapLayer(f"D {width} @{half}²", width, (half, half), "leaky_relu"),
    ]


# Layers of other people's GANs, and shapes that a kernel could be bad at.
OTHER_CONVOLUTIONS = (
    ConvLayer("ResNet block 128 @32²", False, 128, 128, (32, 32), kernel=3, stride=1, padding=1),
    ConvLayer("U-Net up 256→128 @16²", True, 256, 128, (16, 16), kernel=2, stride=2, padding=0),
    ConvLayer("CycleGAN up 128→64 @32²", True, 128, 64, (32, 32), kernel=3, output_padding=1),
    ConvLayer("CycleGAN in 3→64 @64²", False, 3, 64, (64, 64), kernel=7, stride=1, padding=3),
    ConvLayer("pix2pix D 64→128 @64²", False, 64, 128, (64, 64)),
    ConvLayer("to-RGB 1×1 64→3 @64²", False, 64, 3, (64, 64), kernel=1, stride=1, padding=0),
    ConvLayer("book 5×5 64→128 @14²", False, 64, 128, (14, 14), kernel=5, padding=2),
    ConvLayer("odd 48→72 @15²", False, 48, 72, (15, 15), kernel=3, stride=2, padding=1),
)
OTHER_NORMS = (
    MapLayer("ResNet block 256 @14²", 256, (14, 14), "relu"),
    MapLayer("pix2pix 128 @32²", 128, (32, 32), "leaky_relu"),
    MapLayer("odd 72 @15²", 72, (15, 15), "relu"),
)


def step_passes(image_size: int, batch: int, precision: str, width: int = 64) -> list[Cost]:
    """The least work of a DCGAN training step, pass by pass.

    D forward three times, backward twice by its weights, and by its inputs twice without the
    image and once with it; G forward, by weights and by all inputs but the latents, once each;
    Adam. Each convolution pass reads both operands and writes its result once; batch norm and
    activations ride on them, but for the pre-activation that their derivative reads. Adam reads
    gradient, parameter and two moments and writes the latter three, in float32.
    """
    size = SIZE["bfloat16" if precision == "bf16" else "float32"]
    layers = dcgan_convolutions(image_size, width)
    stem, image_reader = layers[0], next(layer for layer in layers if not layer.transposed)
    passes = []
    parameters = 0
    for layer in layers:
        x, w, y = layer.elements(batch)
        parameters += w
        one = Cost(layer.flops(batch), float((x + w + y) * size))
        backward = one + Cost(0.0, float(x * size))
        forward_passes = weight_passes = input_passes = 1
        if not layer.transposed:
            forward_passes, weight_passes, input_passes = 3, 2, 3
        if layer is stem:
            input_passes = 0
        elif layer is image_reader:
            input_passes = 1
        passes += [one] * (forward_passes + weight_passes) + [backward] * input_passes
    passes.append(Cost(0.0, 7 * 4.0 * parameters))
    return passes


def _layer(
    network: str,
    transposed: bool,
    before: int,
    after: int,
    side: int,
    kernel: int = 4,
    stride: int = 2,
    padding: int = 1,
) -> ConvLayer:
    name = f"{network} {before}→{after} @{side}²"
    return ConvLayer(name, transposed, before, after, (side, side), kernel, stride, padding)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
