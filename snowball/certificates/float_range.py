"""What a model asks of float32: nothing that `transformers` computes leaves its normal range.

`transformers` computes RMSNorm, RoPE and softmax in float32 whatever the dtype of the model is.
The *scale* of a sum `sum w_c x_c` is `sum |w_c| |x_c|`, with the largest certified size of each
x_c. With the constants below, at every input:

- every scale, product and coordinate is 0 or within `LEAST..LARGEST`. So no partial sum overflows;
  and as the least normal number is 2^-126, what k products lose below it is at most `k 2^-20` of
  the scale, where float32 rounds by `k 2^-24` of it;
- coordinates of the stream are at most `COORDINATE`, so that their squares fit, and the mean of
  these is at least `MEAN`, so that 1/rms fits;
- scores of attention are at most `SCORE`, so that a mask of the least float32 absorbs them;
- gates and up values are at least `KEPT` of their scale, what units write to a coordinate is at
  most 1/KEPT of what the coordinate holds before or after it, and the scale of logits 1/KEPT of
  the margins: of 24 bits, no more than 14 cancel.

How much float32 rounds within that range is measured, not proved.
"""

from __future__ import annotations

from collections.abc import Mapping

from flint import arb

from snowball.certificates.balls import Entries, inverse_rms
from snowball.certificates.exact_model import Doubles, ExactModel, Layer
from snowball.certificates.rejection import Rejection, Undecided

LEAST, LARGEST = 2.0**-106, 2.0**120
COORDINATE, MEAN, SCORE, KEPT = 2.0**60, 2.0**-64, 2.0**16, 2.0**-14


def largest_size(x: arb) -> float:
    """At least |x|."""
    return abs(float(x.abs_upper())) * (1 + 2.0**-50)


def least_size(x: arb) -> float:
    """At most |x|."""
    return float(x.abs_lower()) * (1 - 2.0**-50)


def require_range(what: str, size: float, largest: float = LARGEST) -> float:
    """The size, if it is 0 or within the range of float32.

    Raises:
        Rejection: it is not, which includes NaN.
    """
    if size != 0 and not LEAST <= size <= largest:
        raise Rejection("range", f"{what} is of the size {size:.3g}, which float32 cannot carry")
    return size


def require_kept(what: str, scale: float, *values: arb) -> None:
    """Raises Rejection unless one of some values is at least `KEPT` of the scale of a sum."""
    if max(map(largest_size, values)) < KEPT * scale:
        raise Rejection("range", f"{what} cancels more digits than float32 can lose")
    if max(map(least_size, values)) < KEPT * scale:
        raise Undecided(f"range: {what} may cancel")


def scale_of(row: Entries, stream: Mapping[int, arb]) -> float:
    """`sum |w_c| |x_c|`, rounded up; exactly 0 if every term is."""
    sizes = (largest_size(w * stream[c]) for c, w in row if c in stream)
    return sum(sizes) * (1 + 2.0**-30)


def normed(
    model: ExactModel, what: str, stream: Mapping[int, arb], square: arb, norm: Doubles
) -> dict[int, arb]:
    """What RMSNorm makes of a stream of this squared norm, if all of it is in range."""
    for c, x in stream.items():
        require_range(f"coordinate {c} {what}", largest_size(x), COORDINATE)
    if not least_size(square / model.config.width) >= MEAN:
        raise Rejection("range", f"the mean of squares {what} may be less than {MEAN:.3g}")
    inverse = inverse_rms(model, square)
    found = {c: inverse * x * arb(float(norm[c])) for c, x in stream.items()}
    for c, x in found.items():
        require_range(f"coordinate {c} {what}, normed,", largest_size(x))
    return found


def gate_and_up(
    where: str, layer: Layer, unit: int, stream: Mapping[int, arb], *, kept: bool = True
) -> tuple[arb, arb] | None:
    """Gate and up value of a hidden unit on a normed stream, if both have a term that is not 0."""
    found = []
    for name, matrix in (("gate", layer.gate), ("up", layer.up)):
        row = [(c, arb(value)) for c, value in matrix.row(unit)]
        what = f"{name} of unit {unit} of layer {where}"
        scale = require_range(what, scale_of(row, stream))
        value = sum((w * stream[c] for c, w in row if c in stream), arb(0))
        if scale and kept:
            require_kept(what, scale, value)
        found += [value] if scale else []
    return (found[0], found[1]) if len(found) == 2 else None


def require_writes(
    where: str,
    layer: Layer,
    hidden: Mapping[int, arb],
    before: Mapping[int, arb],
    after: Mapping[int, arb],
) -> None:
    """Raises Rejection unless what hidden values write is in range, and does not cancel."""
    sizes: dict[int, float] = {}
    for unit, value in hidden.items():
        require_range(f"what unit {unit} of layer {where} holds", largest_size(value))
        for row, weight in layer.down_columns.row(unit):
            sizes[row] = sizes.get(row, 0.0) + largest_size(arb(weight) * value)
    for row, size in sizes.items():
        what = f"what layer {where} writes to coordinate {row}"
        size = require_range(what, size * (1 + 2.0**-30))
        require_kept(what, size, after[row], *([before[row]] if row in before else []))


def not_zero(stream: Mapping[int, arb]) -> dict[int, arb]:
    """The coordinates that are not exactly 0."""
    return {c: x for c, x in stream.items() if not x.is_zero()}
