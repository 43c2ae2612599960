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

from tfdq.lipschitz.linear_maps import Array, ConvolutionMap

_UNIT = float(np.finfo(np.float64).eps) / 2
_CHUNK_BYTES = 64 * 2**20
_DENSE_FLOPS = 4e9


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
    max_iterations: int = 300,
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

    Either way there is a list of Gram matrices ``G`` whose largest eigenvalue is wanted. For a
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
    if _is_small(unit, dense_limit):
        return _verified(_dense_blocks(unit), 0.0) * scale, "dense"
    return _verified(_symbol_blocks(unit), _symbol_error(unit)) * scale, "fourier"


def _is_small(linear_map: ConvolutionMap, dense_limit: int) -> bool:
    """Tell whether writing the matrix out is affordable."""
    side = min(math.prod(linear_map.input_shape), math.prod(linear_map.output_shape))
    side = -(-side // linear_map.groups)
    return side <= dense_limit and linear_map.groups * float(side) ** 3 <= _DENSE_FLOPS


def _dense_blocks(linear_map: ConvolutionMap) -> Iterator[Array]:
    """Yield the matrix of each group, ``(1, outputs, inputs)``."""
    for index in range(linear_map.groups):
        yield _dense_block(linear_map.group(index))[None]


def _dense_block(single: ConvolutionMap) -> Array:
    """Write out one group from its shorter side, so that the identity stays small."""
    outputs = math.prod(single.output_shape)
    if outputs >= math.prod(single.input_shape):
        return single.matrix()
    identity = np.eye(outputs).reshape(outputs, *single.output_shape)
    return single.transpose(identity).reshape(outputs, -1)


def _torus_taps(linear_map: ConvolutionMap) -> tuple[Array, tuple[int, int]]:
    """Take strides and dilation out of a convolution.

    Returns:
        The taps of the equivalent stride-1 convolution between phase-split images,
        ``(taps_h, taps_w, phases * c_in / groups, groups, c_out / groups)``, and a size of the
        torus on which no output sees an input twice.
    """
    places: list[list[tuple[int, int]]] = []
    sizes: list[int] = []
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
    steps = [1 + reach[-1][0] for reach in places]
    channels, filters = linear_map.kernel.shape[2:]
    taps = np.zeros((*steps, *phases, channels, filters))
    for row, (step_h, phase_h) in enumerate(places[0]):
        for column, (step_w, phase_w) in enumerate(places[1]):
            taps[step_h, step_w, phase_h, phase_w] = linear_map.kernel[row, column]
    taps = taps.reshape(*steps, -1, linear_map.groups, filters // linear_map.groups)
    return taps, (sizes[0], sizes[1])


def _symbol_error(linear_map: ConvolutionMap) -> float:
    """Bound the norm of the rounding errors of one computed symbol."""
    taps, _ = _torus_taps(linear_map)
    lengths = np.sqrt(np.sum(taps**2, axis=(2, 4)))
    # A phase factor carries the rounding of its angle, below 4 pi, and of its cosine and sine.
    return (_gamma(2 * lengths[..., 0].size) + 128 * _UNIT) * float(
        np.max(np.sum(lengths, axis=(0, 1)))
    )


def _symbol_blocks(linear_map: ConvolutionMap) -> Iterator[Array]:
    """Yield the symbols at the torus' frequencies, complex matrices ``(n, rows, columns)``.

    A real kernel has equal singular values at opposite frequencies: half of them are enough.
    """
    taps, (height, width) = _torus_taps(linear_map)
    steps_h, steps_w, rows, groups, columns = taps.shape
    flat = taps.reshape(steps_h * steps_w, -1)
    frequencies = np.array(list(np.ndindex(height // 2 + 1, width)))
    if steps_h * steps_w == 1:
        frequencies = frequencies[:1]
    chunk = max(1, _CHUNK_BYTES // (16 * rows * groups * columns))
    place_h, place_w = np.divmod(np.arange(steps_h * steps_w), steps_w)
    for begin in range(0, len(frequencies), chunk):
        part = frequencies[begin : begin + chunk]
        angle = (
            2
            * np.pi
            * ((part[:, :1] * place_h) % height / height + (part[:, 1:] * place_w) % width / width)
        )
        symbols = np.cos(angle) @ flat
        if steps_h * steps_w > 1:
            symbols = symbols + 1j * (np.sin(angle) @ flat)
        symbols = symbols.reshape(len(part), rows, groups, columns).transpose(0, 2, 1, 3)
        yield symbols.reshape(-1, rows, columns)


def _verified(blocks: Iterator[Array], block_error: float) -> float:
    """Return a bound on the norm of every block, given a bound on the error of each."""
    bound, shift = 0.0, 0.0
    for block in blocks:
        if block.shape[1] > block.shape[2]:
            block = block.transpose(0, 2, 1)
        side, terms = block.shape[1], block.shape[2]
        if np.iscomplexobj(block):
            # A complex product is as exact as four real ones (Higham, lemma 3.5).
            side, terms = 4 * side, 4 * terms
        grams = block @ block.conj().transpose(0, 2, 1)
        shift = max(shift, _estimate(grams) * (1 + 1e-9))
        # Failing costs one cheap factorisation; all eigenvalues would cost ten of them.
        growth = 1e-4
        while not _cholesky_succeeds(grams, shift):
            shift *= 1 + growth
            growth *= 2
        lengths = np.sum(block.real**2 + block.imag**2, axis=(1, 2))
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
    if _is_small(linear_map, dense_limit):
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
