"""Gadgets: each writes one sublayer pattern of the construction into the weights of one layer.

Common setting: the residual stream at the gadget has the known norm R at every token, and RMSNorm
has unit weights, so that it is multiplication by `rho = sqrt(width) / R` (with an epsilon, R grows
to `sqrt(R^2 + width epsilon)`). Weights are computed in float64 and rounded once, as they are
written. Docstrings state maps over the reals.
"""

from snowball.construction.gadgets.gather import context_layout, gather
from snowball.construction.gadgets.layer_weights import LayerWeights, norm_factor
from snowball.construction.gadgets.linear_map import linear_map
from snowball.construction.gadgets.recall import odd_recall, recall
from snowball.construction.gadgets.rotation import rotation
from snowball.construction.gadgets.switch import amplifier, flip, grow, require

__all__ = [
    "LayerWeights",
    "amplifier",
    "context_layout",
    "flip",
    "gather",
    "grow",
    "linear_map",
    "norm_factor",
    "odd_recall",
    "recall",
    "require",
    "rotation",
]
