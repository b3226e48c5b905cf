"""Norms, switch values and rotation angles of Theorem 1, layer by layer, as exact closed forms.

The stream that enters layer k has the squared norm `R_k^2 = C + s_k^2` at every token: C comes from
constant, filler and code, and `|s_k|` is the size of the switch. The switch is negative without the
target layer and positive with it. Before the reader nothing else in the stream depends on the
target (for epsilon > 1/2, but for a rotation of the filler), so that the two runs are mirror images
of each other and share every norm.

With `q = 1 - epsilon/2`, the share of the squared norm that need not be filler:

    sin^2(theta_0) = min(epsilon/2, q/3)   share of the switch right after the target
    sin^2(theta_L) = q/2                   share of the switch after the reader
    (1 + |code|^2) / C <= q/8              share of constant and code

so that the filler always holds more than `epsilon/2 + q/4` of the squared norm, and every other
layer can reach the score `epsilon + q/2` by rotating the filler.

Proof: lem:filler-share, lem:target-score, lem:other-scores, lem:reader-score, lem:divergence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from snowball.construction.gadgets.rounding import rounded
from snowball.construction.gadgets.versine import angle_of_versine, versine


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What each layer does to filler and switch, and the score it gets for that.

    `switch[k]` and `norm[k]` are |s_k| and R_k for k = 0..L; `norm[L]` and `score[L-1]` leave out
    what the reader adds to context and answer, whose squared norms stay below `context_square` and
    `answer_square`.
    """

    epsilon: float
    layers: int
    target: int
    free: float  # q
    base_square: float  # C
    filler: float  # U
    half: float  # h
    gain: float
    reader_gain: float
    switch: tuple[float, ...]
    norm: tuple[float, ...]
    angle: tuple[float, ...]
    score: tuple[float, ...]
    context_square: float
    answer_square: float
    reading_layers: int = 1

    @property
    def reader(self) -> int:
        return self.layers - 1

    @property
    def gatherer(self) -> int:
        """The layer that gathers: the reader, or the one before it."""
        return self.layers - self.reading_layers

    def amplifies(self, layer: int) -> bool:
        return self.target < layer < self.reader

    def gain_of(self, layer: int) -> float:
        """What a layer after the target multiplies the switch by."""
        if layer == self.reader:
            return self.reader_gain
        if layer == self.gatherer:
            return self.switch[layer + 1] / self.switch[layer]
        return self.gain

    @property
    def last_norm(self) -> float:
        """Largest norm of the stream that leaves the reader."""
        return math.sqrt(self.norm[-1] ** 2 + self.context_square + self.answer_square)

    def divergences(self) -> tuple[float, ...]:
        """Divergence after removal of the target at depths target+1 .. L, the last a lower bound.

        `D_k^2 = (F + 4 s_k^2) / R_k^2` with F the squared length of the filler rotation.
        """
        moved = 2 * self.filler**2 * versine(self.angle[self.target])
        depths = range(self.target + 1, self.layers + 1)
        norms = [*self.norm[self.target + 1 : self.reader], self._gathered_norm, self.last_norm]
        slack = self._reader_slack()
        switches = [*self.switch[self.target + 1 : self.layers], self.switch[-1] * slack]
        assert len(depths) == len(norms) == len(switches)
        return tuple(
            math.sqrt(moved + 4 * s * s) / norm for s, norm in zip(switches, norms, strict=True)
        )

    def least_growth(self) -> float:
        """A lower bound on the factor by which the divergence grows at each layer.

        Context that is gathered before the reader lowers the divergence there, but not the growth
        that follows.
        """
        lower = self.divergences()
        upper = list(lower)
        if self.gatherer < self.reader:
            upper[-2] = lower[-2] * self._gathered_norm / self.norm[self.reader]
        return min(b / a for a, b in zip(upper, lower[1:], strict=False))

    @property
    def _gathered_norm(self) -> float:
        """Largest norm of the stream that enters the reader."""
        gathered = self.context_square if self.gatherer < self.reader else 0.0
        return math.hypot(self.norm[self.reader], math.sqrt(gathered))

    def _reader_slack(self) -> float:
        """A lower bound on the factor of an update where the context lowers the gain of the MLP.

        With the gate at the stationary point of silu the factor is 1 or more (lem:update-factor).
        """
        square = self.norm[self.reader] ** 2
        return math.sqrt(square / (square + self.context_square))

    def reader_score_bound(self) -> float:
        """Smallest score that the reader can have at a token, over all contexts and answers.

        The score decreases in the norms of context and answer (x.y is negative or the additions
        only turn y further away), and the factor r of the update is monotone between its extremes.
        """
        x_square = self.norm[self.reader] ** 2
        s, gain = self.switch[self.reader], self.reader_gain
        turn = versine(self.angle[self.reader])
        # Where the layer before gathers, the same context stands in both states.
        carried = self.context_square if self.gatherer < self.reader else 0.0
        largest = self.context_square + self.answer_square
        scores = []
        for r in (self._reader_slack(), 1.0):
            rotated = 1 - 2 * r * turn + 2 * r * r * turn  # |1 + r (e^{ib} - 1)|^2
            moved = s * (1 + (gain - 1) * r)
            inner = x_square - self.filler**2 * r * turn + s * (moved - s)
            plain = x_square + self.filler**2 * (rotated - 1) + moved**2 - s * s
            for entering, leaving in ((0.0, 0.0), (carried, largest)):
                product = (x_square + entering) * (plain + leaving)
                scores.append(1 - (inner + carried) / math.sqrt(product))
        return min(scores)

    def gatherer_score_bound(self) -> float:
        """Smallest score that a layer before the reader can have where it gathers."""
        after = self.norm[self.gatherer + 1]
        shrunk = after / math.hypot(after, math.sqrt(self.context_square))
        score = self.score[self.gatherer]
        return min(score, 1 - (1 - score) * shrunk)


def layer_plan(
    epsilon: float,
    layers: int,
    target: int,
    code_square: float,
    largest_gain: float,
    dtype: torch.dtype,
    reading_layers: int = 1,
) -> LayerPlan:
    """Solves the closed forms of the module docstring for one epsilon.

    The amplifiers share one gain, `(tan theta_L / tan theta_0)^(1/(L-1-target))` or the largest
    allowed; the reader takes what remains. U and h are rounded to the dtype before anything is
    derived from them. `code_square` is the squared norm of code and learned position.
    """
    free = 1 - epsilon / 2
    # U^2 = 9 (1 + |code|^2) / q, so that constant and code are at most the share q/8 of C.
    filler = rounded(math.sqrt(9 * (1 + code_square) / free), dtype)
    base = 1 + code_square + filler**2
    # sin^2(theta_0) = h^2 / (C + h^2), solved for h.
    share = min(epsilon / 2, free / 3)
    exact_half = math.sqrt(base * share / (1 - share))
    # A switch that the dtype rounds to 0 is kept as it is: the builder refuses it by its size.
    half = rounded(exact_half, dtype) or exact_half
    # What reading may add to the squared norm; `end` is sqrt(C) tan(theta_L).
    added = base * free / (64 * reading_layers)
    end = math.sqrt(base * (free / 2) / (1 - free / 2))
    amplifying = layers - 1 - target
    gain = min((end / half) ** (1 / amplifying), largest_gain)

    # |s_0| .. |s_{L-1}|: h up to the target, then one gain for each amplifier.
    switch = [half] * (target + 1) + [half * gain**i for i in range(amplifying)]
    # A layer that reads makes up for the norm that it adds, the reader also for what that costs it.
    if reading_layers > 1:
        switch[-1] *= 1 + 2 * added / base
    # |s_L|, the last of L + 1; each norm is R_k^2 = C + s_k^2.
    switch.append(end * (1 + 2 * reading_layers * added / base))
    norm = [math.sqrt(base + s * s) for s in switch]

    scores, angles = [], []
    for layer in range(layers):
        if layer == target:
            score = epsilon
            # The flip scores 2 h^2 / R^2 by itself, the rotation what is missing to epsilon.
            # Not below 0 where rounding h up to the dtype has overshot epsilon.
            moved = (
                max(epsilon * norm[layer] ** 2 - 2 * half**2, 0.0) if share < epsilon / 2 else 0.0
            )
        else:
            # From epsilon + q/4 to epsilon + q/2, growing with depth. The score is
            # 1 - (x . y) / (R_k R_{k+1}) with x . y = C - moved + s_k s_{k+1}, solved for `moved`.
            score = epsilon + free / 4 * (1 + layer / (layers - 1))
            product = norm[layer] * norm[layer + 1]
            moved = (score - 1) * product + base + switch[layer] * switch[layer + 1]
        scores.append(score)
        # The rotation moves the filler by `moved = U^2 (1 - cos angle)`.
        angles.append(angle_of_versine(moved / filler**2))
    return LayerPlan(
        epsilon=epsilon,
        layers=layers,
        target=target,
        free=free,
        base_square=base,
        filler=filler,
        half=half,
        gain=gain if amplifying > 1 else 1.0,
        reader_gain=switch[-1] / switch[-2],
        switch=tuple(switch),
        norm=tuple(norm),
        angle=tuple(angles),
        score=tuple(scores),
        context_square=added,
        answer_square=added,
        reading_layers=reading_layers,
    )
