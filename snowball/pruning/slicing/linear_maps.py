"""Linear maps of a model, of whatever class, and the norms that are moved into them."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from snowball.pruning.slicing.anatomy import SlicingError
from snowball.pruning.slicing.sliced_model import GainlessNorm

# OLMo's LayerNorm does not say its own.
_OLMO_EPS = 1e-5


def folded(
    weight: Float[Tensor, "out hidden"], bias: Float[Tensor, " out"] | None, norm: nn.Module
) -> tuple[Float[Tensor, "out hidden"], Float[Tensor, " out"] | None]:
    """`W (g n + b) + c = (W g) n + (W b + c)`: the map of a norm without gain and bias."""
    gain, shift = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if shift is not None:
        moved = weight @ shift.double()
        bias = moved if bias is None else bias + moved
    return (weight if gain is None else weight * gain.double()), bias


def gainless(norm: Any, hidden: int) -> GainlessNorm:
    eps = getattr(norm, "variance_epsilon", None)
    return GainlessNorm(hidden, getattr(norm, "eps", _OLMO_EPS) if eps is None else eps)


def affine(module: Any) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None]:
    """Weight and bias of a linear map, in float64. GPT-2 stores the weight the other way round."""
    if not isinstance(module, nn.Linear) and not _is_transposed(module):
        raise SlicingError(
            f"a linear map of the model is a {type(module).__name__}: load it without quantisation"
        )
    weight = module.weight.double()
    bias = None if module.bias is None else module.bias.double()
    return (weight.T if _is_transposed(module) else weight), bias


def shape_of(module: Any) -> tuple[int, int]:
    """What a linear map gives and what it takes."""
    out, taken = module.weight.shape
    return (taken, out) if _is_transposed(module) else (out, taken)


def set_affine(
    module: Any, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None
) -> None:
    """Gives a linear map another weight and bias, of any shape, in the dtype that it has."""
    dtype = module.weight.dtype
    if _is_transposed(module):
        module.nx, module.nf = weight.shape[1], weight.shape[0]
        stored = weight.T
    else:
        module.in_features, module.out_features = weight.shape[1], weight.shape[0]
        stored = weight
    module.weight = nn.Parameter(stored.to(dtype).contiguous(), requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias.to(dtype), requires_grad=False)


def _is_transposed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"
