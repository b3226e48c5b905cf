"""Tubes hold what they should: points inside a tube are mapped into the tube of the result."""

import numpy as np
import pytest
from flint import arb
from hypothesis import given
from hypothesis import strategies as st

from snowball.certificates.balls import precision
from snowball.lipschitz.tubes import Heads, Matrix, Tubes, lead_error, normed, swiglu

SLACK = 1 + 1e-9  # the points are computed in float64, too
SEEDS = st.integers(0, 2**32)
RADII = st.sampled_from([0.0, 1e-12, 1e-6, 1e-3, 0.1, 0.7, 3.0])


class Points:
    """A tube of one run around random vectors, with points inside, on its corners too."""

    def __init__(self, seed: int, radius: float, tokens: int, size: int) -> None:
        self.random = np.random.default_rng(seed)
        middle = self.random.normal(size=(tokens, size)) * 10.0 ** self.random.integers(-2, 2)
        radii = radius * self.random.choice([0.0, 1e-3, 1.0], size=(1, tokens, size))
        longest = np.linalg.norm(radii, axis=-1) * self.random.choice([0.3, 1.0])
        self.tubes = Tubes.of(middle, radii, longest)
        self.points = [middle, *(self._inside() for _ in range(8))]

    def _inside(self) -> np.ndarray:
        radii, length = self.tubes.coordinates[0], self.tubes.length[0][:, None]
        moved = radii * self.random.choice([-1.0, 1.0, self.random.uniform(-1, 1)], radii.shape)
        far = np.linalg.norm(moved, axis=-1, keepdims=True)
        return self.tubes.middle + moved * np.minimum(1, length / np.maximum(far, 1e-300))


def assert_inside(points: np.ndarray, tubes: Tubes) -> None:
    moved = np.abs(points - tubes.middle)
    rounded = 1e-12 * (1 + np.abs(tubes.middle).max(initial=0))
    assert (moved <= tubes.coordinates[0] * SLACK + rounded).all()
    assert (np.linalg.norm(moved, axis=-1) <= tubes.length[0] * SLACK + rounded).all()


@given(SEEDS, RADII, st.sampled_from([0.0, 1e-6, 1.0]))
def test_rms_norm(seed: int, radius: float, eps: float) -> None:
    x = Points(seed, radius, 3, 5)
    weight = x.random.normal(size=5)
    with np.errstate(all="ignore"):
        found = normed(x.tubes, weight, eps)
    for point in x.points:
        mean = np.square(point).mean(-1, keepdims=True) + eps
        assert_inside(weight * point / np.sqrt(mean), found)


def test_rms_norm_is_sharp_along_and_across() -> None:
    """A movement across x by r turns into `r sqrt(n) / |x|`, and nothing in x's direction."""
    middle, radii = np.array([[3.0, 0.0, 0.0, 0.0]]), np.array([[[0.0, 3e-5, 0.0, 0.0]]])
    found = normed(Tubes.of(middle, radii), np.ones(4), 0.0)
    assert found.length[0, 0] == pytest.approx(2e-5, rel=1e-4)
    assert found.coordinates[0, 0, 1] == pytest.approx(2e-5, rel=1e-4)
    assert found.coordinates[0, 0, 0] < 3e-10


def test_rms_norm_has_no_bound_where_the_tube_reaches_zero() -> None:
    with np.errstate(all="ignore"):
        found = normed(Tubes.of(np.ones((1, 4)), np.full((1, 1, 4), 0.6)), np.ones(4), 0.0)
    assert np.isinf(found.length).all()


@given(SEEDS, RADII, st.integers(1, 5), st.integers(1, 5))
def test_matrix(seed: int, radius: float, rows: int, columns: int) -> None:
    x = Points(seed, radius, 3, columns)
    weight = x.random.normal(size=(rows, columns)) * x.random.choice([0, 1], (rows, columns))
    matrix = Matrix(weight)
    for point in x.points:
        assert_inside(point @ weight.T, matrix.of(x.tubes))


@given(SEEDS, st.integers(1, 12), st.integers(1, 12), st.sampled_from([1e-200, 1.0, 1e100]))
def test_matrix_norm_is_a_close_bound(seed: int, rows: int, columns: int, size: float) -> None:
    weight = np.random.default_rng(seed).normal(size=(rows, columns)) * size
    exact = np.linalg.norm(weight, 2)
    least = min(rows, columns)
    assert exact <= Matrix(weight).norm <= exact * least ** (1 / 32) * 1.001


@given(SEEDS, RADII, RADII)
def test_swiglu(seed: int, radius: float, other: float) -> None:
    gate, up = Points(seed, radius, 3, 6), Points(seed + 1, other, 3, 6)
    found = swiglu(gate.tubes, up.tubes)
    for g, u in zip(gate.points, up.points, strict=True):
        assert_inside(g / (1 + np.exp(-g)) * u, found)


@pytest.mark.parametrize("gate", [-800.0, -60.0, -3.0, -1.2784, 0.0, 2.3994, 700.0])
def test_swiglu_at_single_gates(gate: float) -> None:
    """Steepest at 2.3994, flat at -1.2784, all but silent far below."""
    one = np.array([[gate]])
    found = swiglu(Tubes.of(one, np.full((1, 1, 1), 1e-6)), Tubes.exact(np.ones((1, 1))))
    exact = 1 / (1 + np.exp(-gate)) if gate > -700 else 0.0
    slope = exact * (1 + gate * (1 - exact))
    assert found.middle[0, 0] == pytest.approx(gate * exact, rel=1e-12, abs=1e-250)
    assert abs(slope) * 1e-6 <= found.length[0, 0] * SLACK
    assert found.length[0, 0] <= 1.1 * 1e-6 * (1 + 1e-7) + abs(gate) * 1e-12
    if gate < -50:
        assert found.length[0, 0] < 1e-22


@given(SEEDS, RADII, RADII, RADII)
def test_attention(seed: int, radius_q: float, radius_k: float, radius_v: float) -> None:
    """Four heads of two coordinates, which share the keys of two."""
    query, key = Points(seed, radius_q, 4, 8), Points(seed + 1, radius_k, 4, 4)
    value = Points(seed + 2, radius_v, 4, 4)
    turns = np.arange(4)[:, None] * 1.0
    heads, reads = Heads(2, np.cos(turns), np.sin(turns)), np.array([0, 2, 3])
    found = heads.of(query.tubes.at(reads), key.tubes, value.tubes, reads)
    for q, k, v in zip(query.points, key.points, value.points, strict=True):
        mixed = np.concatenate(
            [
                _attend(q[:, 2 * h : 2 * h + 2], k[:, g : g + 2], v[:, g : g + 2])
                for h in range(4)
                for g in [2 * (h // 2)]
            ],
            axis=1,
        )
        assert_inside(mixed[reads], found)


@pytest.mark.parametrize("move", [1e-6, 0.1, 0.7, 20.0])
def test_attention_is_sharp_for_two_keys(move: float) -> None:
    """Scores that were equal move apart by 2 D, and the pattern by tanh(D) / 2 <= D / 2."""
    still = Heads(2, np.ones((2, 1)), np.zeros((2, 1)))
    query = Tubes.exact(np.array([[np.sqrt(2), 0.0]]))
    key = Tubes.of(np.zeros((2, 2)), np.array([[[move, 0.0], [move, 0.0]]]))
    value = Tubes.exact(np.array([[0.0, 0.0], [1.0, 0.0]]))
    found = still.of(query, key, value, np.array([1]))
    assert np.tanh(move) / 2 <= found.coordinates[0, 0, 0] * SLACK
    assert found.coordinates[0, 0, 0] == pytest.approx(min(1, move / 2), rel=1e-4)


@given(SEEDS)
def test_rounding_is_covered(seed: int) -> None:
    """Of what is known exactly, against balls; the terms of the last products cancel."""
    random = np.random.default_rng(seed)
    x, y, scale = random.normal(size=(3, 6))
    weight = random.normal(size=(4, 6))
    weight[:, -1] = -(weight[:, :-1] @ x[:-1]) / x[-1]
    tubes, other, gate = (Tubes.exact(one[None]) for one in (x, y, 20 * x))
    error = lead_error(tubes, weight, np.array([0]))[0, 0]
    logits = weight @ x
    with precision(200):
        a, b, s, w, g = (exactly(one) for one in (x, y, scale, weight, gate.middle[0]))
        assert_exact(tubes.plus(other), a + b)
        assert_exact(Matrix(weight).of(tubes), w @ a)
        assert_exact(normed(tubes, scale, 1e-6), s * a / ((a @ a) / 6 + arb(1e-6)).sqrt())
        assert_exact(swiglu(gate, other), g / (1 + exactly_exp(-g)) * b)
        leads = exactly(logits[0] - logits) - ((w @ a)[0] - w @ a)
        assert all(abs(lead) <= arb(e) for lead, e in zip(leads, error.tolist(), strict=True))


exactly = np.vectorize(arb, otypes=[object])
exactly_exp = np.vectorize(arb.exp, otypes=[object])


def assert_exact(found: Tubes, expected: np.ndarray) -> None:
    off = exactly(found.middle[0]) - expected
    radii = found.coordinates[0, 0].tolist()
    assert all(abs(distance) <= arb(radius) for distance, radius in zip(off, radii, strict=True))
    assert (off @ off).sqrt() <= arb(float(found.length[0, 0]))


def _attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """One head of dimension 2 as complex numbers, token by token."""
    at = np.arange(len(q))
    turn = np.exp(1j * at)
    q, k = (q[:, 0] + 1j * q[:, 1]) * turn, (k[:, 0] + 1j * k[:, 1]) * turn
    rows = []
    for i in at:
        scores = (q[i].conj() * k[: i + 1]).real / np.sqrt(2)
        power = np.exp(scores - scores.max())
        rows.append(power / power.sum() @ v[: i + 1])
    return np.array(rows)


@given(SEEDS, RADII)
def test_sum_and_leads(seed: int, radius: float) -> None:
    x, y = Points(seed, radius, 3, 4), Points(seed + 1, radius, 3, 4)
    unembedding = x.random.normal(size=(5, 4))
    predicted = np.array([0, 4, 2])
    error = lead_error(x.tubes, unembedding, predicted)[0]
    logits = x.tubes.middle @ unembedding.T
    for point, other in zip(x.points, y.points, strict=True):
        assert_inside(point + other, x.tubes.plus(y.tubes))
        moved = (point - x.tubes.middle) @ unembedding.T
        lead = np.take_along_axis(moved, predicted[:, None], 1) - moved
        assert (np.abs(lead) <= error * SLACK + 1e-12 * (1 + np.abs(logits).max())).all()


def test_adding_nothing_rounds_nothing() -> None:
    x = Tubes.exact(np.array([[0.1, 0.2]]))
    found = x.plus(Tubes.exact(np.array([[0.3, 0.0]])))
    assert found.coordinates[0, 0, 0] > 1e-17
    assert found.coordinates[0, 0, 1] < 1e-200


def test_a_removal_starts_where_the_layer_began() -> None:
    before = Tubes.of(np.array([[1.0, 2.0]]), np.full((1, 1, 2), 0.25))
    after = Tubes.exact(np.array([[1.0, 5.0]])).joined(before)
    assert after.coordinates[1, 0] == pytest.approx([0.25, 3.25])
    assert after.length.shape == (2, 1)
    assert after.length[0, 0] < 1e-200


def test_what_is_not_finite_has_no_bound() -> None:
    with np.errstate(all="ignore"):
        found = Tubes.of(np.zeros((1, 2)), np.array([[[np.nan, 1.0]]]))
    assert np.isinf(found.length).all()
    assert np.isinf(found.coordinates[0, 0, 0])
