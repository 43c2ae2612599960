"""Singular values of a convolution: the largest one measured, bounded with proof, and the spectrum.

The bound is a theorem about real numbers that also accounts for every floating-point rounding on
the way to it, so it is never below the true norm, by however little.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tfdq.certificates.linear_maps import Array, ConvolutionMap

_UNIT = float(np.finfo(np.float64).eps) / 2
CHUNK_BYTES = 16 * 2**20
"""Bytes of the symbols that are bounded at once; at least one frequency's are."""

_DENSE_FLOPS = 4e9

MOST_ITERATIONS = 300
"""Steps after which a power iteration stops, wherever it is."""


def _gamma(terms: int) -> float:
    """Return Higham's gamma: the relative error of a sum of ``terms`` rounded products."""
    return terms * _UNIT / (1 - terms * _UNIT)


@dataclass(frozen=True)
class PowerIteration:
    """The outcome of `largest_singular_value`.

    Attributes:
        sigma: the largest singular value found; a lower bound of the norm (it is attained by
            ``vector``, up to rounding).
        vector: the input of unit length that is stretched by ``sigma``, ``(height, width, c_in)``.
        iterations: applications of the map and of its transpose.
        residual: ``||A^T A v - sigma^2 v|| / sigma``, the distance to an exact singular value.
    """

    sigma: float
    vector: Array
    iterations: int
    residual: float


def largest_singular_value(
    linear_map: ConvolutionMap,
    tolerance: float = 1e-5,
    max_iterations: int = MOST_ITERATIONS,
    seed: int = 0,
) -> PowerIteration:
    """Measure the norm of a convolution, for its padding, stride, dilation and input size.

    Power iteration through the convolution and its transpose, in its Krylov form: the best
    vector of the whole space the iteration has visited, not only of its last step (Golub and
    Kahan's bidiagonalization, reorthogonalized). From a random start it stops when the residual
    falls below ``tolerance`` times the value; the error of the value is then about the square of
    that. Cost: two convolutions of one image a step, commonly 10 to 60 steps.

    Args:
        linear_map: the convolution.
        tolerance: relative residual at which to stop.
        max_iterations: steps after which to stop in any case.
        seed: of the random start.

    Raises:
        ValueError: ``tolerance`` or ``max_iterations`` is not positive.

    Source: Golub and Kahan 1965; Kuczynski and Wozniakowski, SIAM J. Matrix Anal. 1992, for the
    random start; Ryu et al. 2019 and Miyato et al. 2018 for the operator view of a convolution.
    """
    if not tolerance > 0 or max_iterations < 1:
        raise ValueError(
            f"tolerance and max_iterations must be positive, got {tolerance} and {max_iterations}"
        )
    shape = linear_map.input_shape
    size = math.prod(shape)
    # A unit kernel keeps the squares in the iteration clear of under- and overflow.
    peak = float(np.max(np.abs(linear_map.kernel)))
    start = np.random.default_rng(seed).standard_normal(size)
    start /= np.linalg.norm(start)
    if peak == 0.0:
        return PowerIteration(0.0, start.reshape(shape), 0, 0.0)
    rights, lefts = _Basis(size), _Basis(math.prod(linear_map.output_shape))
    rights.add(start)
    alphas: list[float] = []
    betas: list[float] = []
    limit = min(max_iterations, 1 + min(size, math.prod(linear_map.output_shape)))
    coefficients, sigma, residual = np.ones(1), 0.0, math.inf
    for count in range(1, limit + 1):
        left = linear_map.apply(rights.last.reshape(1, *shape)).ravel() / peak
        alphas.append(lefts.add(left))
        images = lefts.last.reshape(1, *linear_map.output_shape)
        right = linear_map.transpose(images).ravel() / peak
        beta = rights.add(right)
        if count == limit or beta == 0.0 or count < 20 or count % 5 == 0:
            columns, values, rows = np.linalg.svd(np.diag(alphas) + np.diag(betas, 1))
            sigma, coefficients = float(values[0]), rows[0]
            residual = beta * abs(float(columns[-1, 0]))
            if residual <= tolerance * sigma or beta == 0.0:
                break
        betas.append(beta)
    vector = rights.rows[: len(coefficients)].T @ coefficients
    return PowerIteration(sigma * peak, vector.reshape(shape), len(alphas), residual * peak)


class _Basis:
    """Orthonormal vectors, in one array that grows."""

    def __init__(self, size: int) -> None:
        self._storage = np.empty((16, size))
        self._count = 0

    @property
    def rows(self) -> Array:
        """The vectors, ``(count, size)``."""
        return self._storage[: self._count]

    @property
    def last(self) -> Array:
        """The newest vector."""
        return self._storage[self._count - 1]

    def add(self, vector: Array) -> float:
        """Append what of a vector is orthogonal to the others; return its length.

        When nothing new is left, the space is invariant and holds the answer: a zero is appended.
        """
        before = float(np.linalg.norm(vector))
        for _ in range(2 if self._count else 0):
            vector = vector - (self.rows @ vector) @ self.rows
        length = float(np.linalg.norm(vector))
        if length <= 1e-14 * before:
            vector, length = np.zeros_like(vector), 0.0
        if self._count == len(self._storage):
            self._storage = np.concatenate([self._storage, np.empty_like(self._storage)])
        self._storage[self._count] = vector / length if length else vector
        self._count += 1
        return length


def norm_upper_bound(linear_map: ConvolutionMap, dense_limit: int = 1024) -> tuple[float, str]:
    """Bound the norm of a convolution from above, with proof.

    Two ways, the cheaper exact one where it is affordable:

    * ``"dense"``: the matrix is written out (group by group) when its shorter side is at most
      ``dense_limit``; the bound is then tight to about ``1e-9``.
    * ``"fourier"``: with zero padding the map is a part (some rows, some columns) of a circular
      convolution on a torus of ``output + reach`` points, so its norm is at most the largest over
      the torus' frequencies of the ``c_in x c_out`` symbol's norm. Strides are taken into the
      channels first (space to depth), dilations split the image. Above the norm by ``O(1/n^2)``
      for an ``n x n`` image, and so close for all but the smallest images.

    Either way there is a list of Gram matrices ``G`` whose largest eigenvalue is bounded. For a
    candidate ``mu`` the Cholesky factorisation of ``mu I - G`` is run in float64: when it goes
    through, ``lambda_max(G) <= mu + gamma_{n+1} / (1 - gamma_{n+1}) * trace(mu I - G)`` (Demmel;
    Rump 2006), and the errors of forming ``G``, the shift and the symbols are added to that.

    Args:
        linear_map: the convolution.
        dense_limit: longest Gram side for the dense way; 0 forces the Fourier way.

    Returns:
        The bound, and the way it was found.

    Source: Sedghi, Gupta, Long, ICLR 2019 (circular convolutions); Araujo et al., AAAI 2021, and
    Delattre et al., ICML 2023, section 3 (zero padding by the torus); Rump, *Verification of
    positive definiteness*, BIT 2006; Higham, *Accuracy and Stability*, chapters 3 and 10.
    """
    if not np.any(linear_map.kernel):
        return 0.0, "dense"
    # Scaling by a power of two is exact; it keeps the squares clear of under- and overflow.
    scale = 2.0 ** math.frexp(float(np.max(np.abs(linear_map.kernel))))[1]
    unit = replace(linear_map, kernel=linear_map.kernel / scale)
    if is_small(unit, dense_limit):
        return _verified(_dense_blocks(unit), 0.0) * scale, "dense"
    return _verified(_symbol_blocks(unit), _symbol_error(unit)) * scale, "fourier"


def is_small(linear_map: ConvolutionMap, dense_limit: int = 1024) -> bool:
    """Tell whether writing the matrix out is affordable."""
    side = min(math.prod(linear_map.input_shape), math.prod(linear_map.output_shape))
    side = -(-side // linear_map.groups)
    return side <= dense_limit and linear_map.groups * float(side) ** 3 <= _DENSE_FLOPS


def _dense_blocks(linear_map: ConvolutionMap) -> Iterator[Array]:
    """Yield the matrix of each group, ``(1, outputs, inputs)``."""
    for index in range(linear_map.groups):
        yield linear_map.group(index).matrix()[None]


@dataclass(frozen=True)
class Torus:
    """A convolution without strides and dilation, between phase-split images on a torus.

    Attributes:
        places: for each axis and tap of the kernel, the tap and the phase that it becomes.
        size: height and width of a torus on which no output sees an input twice.
        taps: height and width of the kernel.
        phases: rows and columns of phases that a pixel's channels are.
        rows: input channels of a group, all phases.
        columns: output channels of a group.
        groups: number of groups.
    """

    places: tuple[list[tuple[int, int]], list[tuple[int, int]]]
    size: tuple[int, int]
    taps: tuple[int, int]
    phases: tuple[int, int]
    rows: int
    columns: int
    groups: int

    @property
    def frequencies(self) -> int:
        """How many symbols there are: a real kernel has equal ones at opposite frequencies."""
        return 1 if self.taps == (1, 1) else (self.size[0] // 2 + 1) * self.size[1]


def torus_of(linear_map: ConvolutionMap) -> Torus:
    """Take strides and dilation out of a convolution."""
    places, sizes = [], []
    for axis in (0, 1):
        stride, dilation = linear_map.strides[axis], linear_map.dilation[axis]
        outputs = linear_map.output_shape[axis]
        if stride == 1:
            # The residues modulo the dilation never meet: each is a convolution of its own.
            outputs, dilation = -(-outputs // dilation), 1
        reach = [divmod(tap * dilation, stride) for tap in range(linear_map.kernel.shape[axis])]
        places.append(reach)
        sizes.append(outputs + reach[-1][0])
    phases = [1 + max(phase for _, phase in reach) for reach in places]
    return Torus(
        (places[0], places[1]),
        (sizes[0], sizes[1]),
        (1 + places[0][-1][0], 1 + places[1][-1][0]),
        (phases[0], phases[1]),
        phases[0] * phases[1] * int(linear_map.kernel.shape[2]),
        linear_map.filters // linear_map.groups,
        linear_map.groups,
    )


def _torus_taps(linear_map: ConvolutionMap, torus: Torus) -> Array:
    """Return the taps on a torus, ``(taps_h, taps_w, rows, groups, columns)``."""
    taps = np.zeros((*torus.taps, *torus.phases, *linear_map.kernel.shape[2:]))
    for row, (step_h, phase_h) in enumerate(torus.places[0]):
        for column, (step_w, phase_w) in enumerate(torus.places[1]):
            taps[step_h, step_w, phase_h, phase_w] = linear_map.kernel[row, column]
    return taps.reshape(*torus.taps, torus.rows, torus.groups, torus.columns)


def _symbol_error(linear_map: ConvolutionMap) -> float:
    """Bound the norm of the rounding errors of one computed symbol."""
    taps = _torus_taps(linear_map, torus_of(linear_map))
    lengths = np.sqrt(np.sum(taps**2, axis=(2, 4)))
    # A phase factor carries the rounding of its angle, below 4 pi, and of its cosine and sine.
    return (_gamma(2 * lengths[..., 0].size) + 128 * _UNIT) * float(
        np.max(np.sum(lengths, axis=(0, 1)))
    )


def _symbol_blocks(linear_map: ConvolutionMap) -> Iterator[Array]:
    """Yield the symbols at the torus' frequencies, complex matrices ``(n, rows, columns)``.

    A real kernel has equal singular values at opposite frequencies: half of them are enough.
    """
    torus = torus_of(linear_map)
    height, width = torus.size
    count = math.prod(torus.taps)
    flat = _torus_taps(linear_map, torus).reshape(count, -1)
    chunk = max(1, CHUNK_BYTES // (16 * max(flat.shape[1], count)))
    place_h, place_w = np.divmod(np.arange(count), torus.taps[1])
    for begin in range(0, torus.frequencies, chunk):
        numbers = np.arange(begin, min(begin + chunk, torus.frequencies))
        part = np.stack(np.divmod(numbers, width), axis=1)
        angle = (
            2
            * np.pi
            * ((part[:, :1] * place_h) % height / height + (part[:, 1:] * place_w) % width / width)
        )
        symbols = np.cos(angle) @ flat
        if count > 1:
            symbols = symbols + 1j * (np.sin(angle) @ flat)
        symbols = symbols.reshape(len(part), torus.rows, torus.groups, torus.columns)
        yield symbols.transpose(0, 2, 1, 3).reshape(-1, torus.rows, torus.columns)


def _verified(blocks: Iterator[Array], block_error: float) -> float:
    """Return a bound on the norm of every block, given a bound on the error of each."""
    bound, shift = 0.0, 0.0
    for block in blocks:
        if block.shape[1] > block.shape[2]:
            block = block.transpose(0, 2, 1)
        side, terms = block.shape[1], block.shape[2]
        parts = [block]
        if np.iscomplexobj(block):
            # A complex product is as exact as four real ones (Higham, lemma 3.5).
            side, terms = 4 * side, 4 * terms
            parts = [block.real, block.imag]
        # A real block is its own conjugate; NumPy would copy it.
        conjugate = block.conj() if len(parts) > 1 else block
        grams = block @ conjugate.transpose(0, 2, 1)
        shift = max(shift, _estimate(grams) * (1 + 1e-9))
        # Failing costs one cheap factorisation; all eigenvalues would cost ten of them.
        growth = 1e-4
        while not _cholesky_succeeds(grams, shift):
            shift *= 1 + growth
            growth *= 2
        lengths = sum(np.einsum("nij,nij->n", part, part) for part in parts)
        squares = float(np.max(lengths)) * (1 + _gamma(4 * block[0].size))
        forming = _gamma(terms + 2) * squares
        factoring = _gamma(side + 1) / (1 - _gamma(side + 1)) * side * shift + _UNIT * shift
        bound = max(bound, shift + forming + factoring)
    return (math.sqrt(bound) + block_error) * (1 + 8 * _UNIT)


def _estimate(grams: Array) -> float:
    """Return the largest eigenvalue of the most promising Gram matrices, as a first candidate."""
    if grams.shape[1] <= 8 or len(grams) <= 4:
        return float(np.max(np.linalg.eigvalsh(grams)[:, -1]))
    vectors = np.random.default_rng(0).standard_normal((*grams.shape[:2], 1)).astype(grams.dtype)
    for _ in range(12):
        vectors = grams @ vectors
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors /= np.maximum(lengths, np.finfo(np.float64).tiny)
    promising = np.argsort(lengths.ravel())[-4:]
    return float(np.max(np.linalg.eigvalsh(grams[promising])[:, -1]))


def _cholesky_succeeds(grams: Array, shift: float) -> bool:
    """Tell whether ``shift * I - gram`` factorises for every Gram matrix."""
    try:
        np.linalg.cholesky(shift * np.eye(grams.shape[1]) - grams)
    except np.linalg.LinAlgError:
        return False
    return True


def singular_values(linear_map: ConvolutionMap, dense_limit: int = 1024) -> tuple[Array, str]:
    """Return the spectrum of a convolution, largest first.

    Returns:
        The singular values and how they were found: ``"dense"``, all of them, exact; or
        ``"fourier"``, those of the circular convolution of the same kernel on the output's torus,
        which is how the spectrum of a large zero-padded image is distributed.
    """
    if is_small(linear_map, dense_limit):
        parts = [np.linalg.svd(b, compute_uv=False).ravel() for b in _dense_blocks(linear_map)]
        return np.sort(np.concatenate(parts))[::-1], "dense"
    parts = [np.linalg.svd(b, compute_uv=False).ravel() for b in _symbol_blocks(linear_map)]
    return np.sort(np.concatenate(parts))[::-1], "fourier"


def reshaped_norm(kernel: npt.ArrayLike) -> float:
    """Return the largest singular value of a kernel reshaped to ``(k_h*k_w*c_in, c_out)``.

    The quantity that the Defensive Quantization penalty controls; the convolution's own norm is
    up to ``k`` times larger for a ``k x k`` kernel at stride 1.
    """
    matrix = np.asarray(kernel, np.float64)
    return float(np.linalg.norm(matrix.reshape(-1, matrix.shape[-1]), 2))
