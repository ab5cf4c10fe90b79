"""Augmentation: layers that change images at random in training, and are the identity in inference.

How an image is changed depends only on the seed, the layer's number, the step and the row, as a dropout mask does:
the same for any number of workers and on every backend, to the bit in exact numerics, to rounding in fast ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xnn import ops
from xnn.backends import Backend, Purpose, Stream, backend_of, get_backend
from xnn.backends.random import AffineField, ElasticField
from xnn.errors import DTypeError, OptionError, ShapeError
from xnn.layers.dropout import Drawing
from xnn.layers.layer import Layer
from xnn.ops import Array, Namespace
from xnn.ops.apply import apply_rule
from xnn.options import check_count, check_real, checked, shown

__all__ = ["STRONGEST", "ElasticDeformation", "RandomAffine", "augmentation"]

#: The largest `strength` of `augmentation`: it moves an image of 28 pixels by 20, almost out of sight.
STRONGEST = 10.0


class _Warping(Drawing):
    """Moves the pixels of each image by a random field of displacements (ops.warp)."""

    op = ops.warp
    purpose = Purpose.AUGMENT

    def __init__(self, shape: Sequence[int] | None, seed: int | None) -> None:
        self.shape = None if shape is None else _height_and_width(shape)
        super().__init__(seed)

    def field(self, lib: Backend, stream: Stream, rows: int, size: tuple[int, int], dtype: str) -> Array:
        """The displacements (rows, 2, height, width): each pixel is taken from this many pixels down and right."""
        raise NotImplementedError

    def draw(self, lib: Backend, stream: Stream, x: Array) -> Array:
        dtype = "float64" if x.dtype == lib.xp.float64 else "float32"
        return self.field(lib, stream, int(x.shape[0]), self._size(tuple(x.shape[1:])), dtype)

    def _draws_by(self, kind: type[_Warping]) -> bool:
        """Whether draw and field are those of a class, and not a subclass's own."""
        return type(self).draw is _Warping.draw and type(self).field is kind.field

    def check(self, x: Array) -> None:
        if not backend_of(x).xp.isdtype(x.dtype, "real floating"):
            raise DTypeError(
                f"{type(self).__name__} got {x.dtype} and takes floating-point images: put Rescale(1 / 255) before it"
            )
        self._size(tuple(x.shape[1:]))

    def _size(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width of a sample of this shape. Raises ShapeError if it is not an image."""
        if self.shape is None:
            if len(shape) < 2:
                raise ShapeError(
                    f"{type(self).__name__} takes images (n, channels, height, width), got samples of shape {shape}: "
                    "if they are flat images, give it shape=(height, width)"
                )
            return shape[-2], shape[-1]
        height, width = self.shape
        if math.prod(shape) % (height * width) or not math.prod(shape):
            raise ShapeError(
                f"{type(self).__name__}(shape={self.shape}) got samples of shape {shape}, not images of that size"
            )
        return height, width

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        self._size(shape)
        return shape


def _height_and_width(shape: Any) -> tuple[int, int]:
    if not isinstance(shape, (tuple, list)) or len(shape) != 2:
        raise OptionError(f"shape must be (height, width) of the images, got {shown(shape)}")
    height, width = (check_count("height and width", extent) for extent in shape)
    return height, width


def _exact() -> Any:
    """Return the namespace of exact numerics on the host: its functions give the same bits on every machine."""
    from xnn.backends.exact import ExactNamespace  # imported when it is needed, since it is large

    return ExactNamespace(get_backend("numpy"))


class RandomAffine(_Warping):
    """In training, turns, scales and shifts each image at random; in inference it is the identity.

    shift: up to this many pixels in each direction, at least 0; 0 by default.
    rotation: up to this many degrees either way, in [0, 360); 0 by default.
    scale: by a factor in [1 - scale, 1 + scale], scale in [0, 1); 0 by default.
    shape: (height, width), for images that are flat rows; None by default.
    seed: an integer, for use without a Trainer; 0 by default. A Trainer draws from the seed of its fit.

    All three are drawn uniformly. Images are turned and scaled about their middle. The pixel at p is taken from
    R(-angle) (p - middle - shift) / factor + middle, interpolated between four pixels; beyond the image are zeros.
    Raises OptionError for other options, ShapeError for inputs that are not images, DTypeError for integers.

        >>> import numpy as np
        >>> from xnn import layers
        >>> moved = layers.RandomAffine(shift=2.0, rotation=10.0, seed=1)
        >>> moved.forward(np.ones((5, 1, 28, 28), np.float32), training=True).shape
        (5, 1, 28, 28)
    """

    shift: float = checked(check_real, 0.0)
    rotation: float = checked(check_real, 0.0, 360.0)
    scale: float = checked(check_real, 0.0, 1.0)

    def __init__(
        self,
        shift: float = 0.0,
        rotation: float = 0.0,
        scale: float = 0.0,
        shape: Sequence[int] | None = None,
        seed: int | None = None,
    ) -> None:
        self.shift, self.rotation, self.scale = shift, rotation, scale
        super().__init__(shape, seed)

    @property
    def idle(self) -> bool:
        return self.shift == self.rotation == self.scale == 0.0

    def field(self, lib: Backend, stream: Stream, rows: int, size: tuple[int, int], dtype: str) -> Array:
        # Four numbers for each row, drawn on the host: an angle, a factor, two shifts.
        dice = stream.signed(4 * self.row, 4 * rows).reshape(rows, 4).astype(np.float64)
        turn, grow = dice[:, 0] * self.rotation, 1.0 + dice[:, 1] * self.scale
        return affine_field(lib, turn, grow, dice[:, 2:] * self.shift, size, dtype)

    @property
    def recipe(self) -> AffineField | None:
        if not self._draws_by(RandomAffine):
            return None
        return AffineField(self.purpose, self.index, self.rotation, self.scale, self.shift)

    def config(self) -> dict[str, Any]:
        shape = None if self.shape is None else list(self.shape)
        return {"shift": self.shift, "rotation": self.rotation, "scale": self.scale, "shape": shape}


def affine_field(
    lib: Backend,
    degrees: np.ndarray,
    factor: np.ndarray,
    shift: np.ndarray,
    size: tuple[int, int],
    dtype: str,
) -> Array:
    """The displacements (n, 2, height, width) that turn, scale and shift n images.

    degrees (n,): counter-clockwise. factor (n,): about the middle. shift (n, 2): down and right, in pixels.
    """
    exact = _exact()
    angle = degrees * (math.pi / 180.0)
    cosine, sine = exact.cos(angle) / factor, exact.sin(angle) / factor
    maps = np.stack([cosine, sine, -sine, cosine, shift[:, 0], shift[:, 1]], axis=1)
    options = {"height": size[0], "width": size[1]}
    return apply_rule(_affine, lib.math, (lib.to_device(maps.astype(dtype)),), options)


def _affine(xp: Namespace, maps: Array, *, height: int, width: int) -> Array:
    """(A - 1) (p - middle - shift) - shift for each pixel p; maps (n, 6): the matrix A, then the shift."""
    a, b, c, d, down, right = (xp.reshape(maps[:, k], (-1, 1, 1)) for k in range(6))
    i = xp.reshape(xp.arange(height, dtype=maps.dtype, device=maps.device), (1, -1, 1)) - (height - 1) / 2
    j = xp.reshape(xp.arange(width, dtype=maps.dtype, device=maps.device), (1, 1, -1)) - (width - 1) / 2
    y, x = i - down, j - right
    return xp.stack(((a - 1.0) * y + b * x - down, c * y + (d - 1.0) * x - right), axis=1)


class ElasticDeformation(_Warping):
    """In training, bends each image at random, as handwriting varies; in inference it is the identity.

    alpha: the strength, a finite number of at least 0; 34 by default.
    sigma: the standard deviation of the smoothing in pixels, in [0.1, 1000); 4 by default.
    shape: (height, width), for images that are flat rows; None by default.
    seed: an integer, for use without a Trainer; 0 by default. A Trainer draws from the seed of its fit.

    Each pixel's displacement, down and right, is uniform in (-1, 1), smoothed by a Gaussian whose weights sum to 1,
    and multiplied by alpha. Beyond the image it is 0. The defaults are the article's best for MNIST; they move a
    pixel by about 1.4 pixels.
    Raises OptionError for other options, ShapeError for inputs that are not images, DTypeError for integers.
    Source: Simard, Steinkraus and Platt, "Best practices for convolutional neural networks", ICDAR 2003.

        >>> import numpy as np
        >>> from xnn import layers
        >>> bent = layers.ElasticDeformation(seed=1)
        >>> bent.forward(np.ones((5, 1, 28, 28), np.float32), training=True).shape
        (5, 1, 28, 28)
    """

    alpha: float = checked(check_real, 0.0)
    sigma: float = checked(check_real, 0.1, 1000.0)

    def __init__(
        self,
        alpha: float = 34.0,
        sigma: float = 4.0,
        shape: Sequence[int] | None = None,
        seed: int | None = None,
    ) -> None:
        self.alpha, self.sigma = alpha, sigma
        super().__init__(shape, seed)
        self._there: dict[tuple[str, int, str, float], Array] = {}

    @property
    def idle(self) -> bool:
        return self.alpha == 0.0

    def field(self, lib: Backend, stream: Stream, rows: int, size: tuple[int, int], dtype: str) -> Array:
        # The noise is drawn on the images' backend, and smoothed along one axis after the other.
        noise = lib.signed(stream, (rows, 2, *size), self.row)
        if dtype == "float64":
            noise = lib.xp.astype(noise, lib.xp.float64)
        down, right = (self._smoothing(lib, extent, dtype) for extent in size)
        return apply_rule(_smoothed, lib.math, (noise, down, right), {"alpha": self.alpha})

    def _smoothing(self, lib: Backend, extent: int, dtype: str) -> Array:
        """The matrix of `smoothing` on a backend, made once."""
        key = lib.name, extent, dtype, self.sigma
        if key not in self._there:
            self._there[key] = lib.to_device(self.smoothing(extent, dtype))
        return self._there[key]

    def smoothing(self, extent: int, dtype: str) -> np.ndarray:
        """The Gaussian smoothing of a row as a symmetric matrix: the weight of pixel i in smoothed pixel j."""
        away = np.arange(max(extent, math.ceil(9 * self.sigma)), dtype=np.float64)
        weight = _exact().exp(-(away * away) / (2.0 * self.sigma * self.sigma))
        weight = weight / (2.0 * math.fsum(weight) - 1.0)
        pixels = np.arange(extent)
        matrix = weight[np.abs(pixels[:, None] - pixels)]
        return np.asarray(matrix.astype(dtype))

    @property
    def recipe(self) -> ElasticField | None:
        if not self._draws_by(ElasticDeformation) or type(self).smoothing is not ElasticDeformation.smoothing:
            return None
        return ElasticField(self.purpose, self.index, self.alpha, self.sigma, self.smoothing)

    def config(self) -> dict[str, Any]:
        shape = None if self.shape is None else list(self.shape)
        return {"alpha": self.alpha, "sigma": self.sigma, "shape": shape}


def _smoothed(xp: Namespace, noise: Array, down: Array, right: Array, *, alpha: float) -> Array:
    """Return alpha times the smoothed noise (n, 2, height, width): each plane N becomes down @ N @ right.

    `down` and `right` are the smoothing matrices of columns and rows, which are symmetric.
    """
    n, _, height, width = noise.shape
    y = xp.reshape(xp.matmul(xp.reshape(noise, (2 * n * height, width)), right), (n, 2, height, width))
    y = xp.reshape(xp.permute_dims(y, (0, 1, 3, 2)), (2 * n * width, height))
    y = xp.permute_dims(xp.reshape(xp.matmul(y, down), (n, 2, width, height)), (0, 1, 3, 2))
    return y * alpha


def augmentation(shape: Sequence[int], strength: float = 1.0) -> list[Layer]:
    """The usual augmentation for images like MNIST's: an ElasticDeformation and a RandomAffine.

    shape: (height, width) of the images, which may be flat rows.
    strength: a number in [0, 10); 0 changes nothing, 1 is usual and the default: at 28 x 28 Simard's deformation, 2
        pixels, 10 degrees and 10 %.

    Put them after a Rescale, or first in a model whose samples have its dtype. Raises OptionError for other
    options.

        >>> import xnn
        >>> from xnn import layers
        >>> model = xnn.Sequential(layers.Rescale(1 / 255), *layers.augmentation((28, 28)), layers.Dense(784, 10))
        >>> [type(layer).__name__ for layer in model.layers]
        ['Rescale', 'ElasticDeformation', 'RandomAffine', 'Dense']
    """
    strength = check_real("strength", strength, 0.0, STRONGEST)
    size = min(_height_and_width(shape)) / 28.0
    elastic = ElasticDeformation(34.0 * strength * size * size, 4.0 * size, shape)
    return [elastic, RandomAffine(2.0 * strength * size, 10.0 * strength, min(0.1 * strength, 0.9), shape)]
