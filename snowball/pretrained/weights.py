"""The weights of a pretrained model: exactly those that its config calls for, and finite."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from snowball.dtypes import DType
from snowball.pretrained.location import Location
from snowball.pretrained.refusal import PretrainedError, reason, shorten
from snowball.pretrained.weight_files import count_gguf, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_MOST_PARAMETERS_PER_BYTE = 8  # no format stores a weight in less than a bit
_LISTED = 3  # names in an error
_MASKED = -1e4  # what old masks put in, or less


def check_skeleton(location: Location, config: PreTrainedConfig, tensors: int, size: int) -> str:
    """The attention to use, once the tensors and their bytes are known to suffice for the config.

    What transformers does not find in the files it would allocate and fill at random.
    """
    from transformers import AutoModelForCausalLM

    layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    if layers is not None and layers > tensors:
        raise PretrainedError(
            f"{location.settings}: num_hidden_layers={layers}, but there are only {tensors} tensors"
        )
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    except Exception as error:  # what it raises depends on the architecture
        raise PretrainedError(
            f"{location.settings}: no model can be built from it: {reason(error)}"
        ) from error
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters > size * _MOST_PARAMETERS_PER_BYTE:
        raise PretrainedError(
            f"{location.settings} describes {parameters} parameters, but the weights are only "
            f"{size} bytes"
        )
    try:
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    except ValueError:  # the architecture is fine otherwise: it was built above
        return "eager"
    return "sdpa"


def count_weights(location: Location) -> tuple[int, int]:
    """How many tensors and bytes the weights are."""
    if location.gguf is not None:
        path = location.folder / location.gguf
        return count_gguf(location.name, path), path.stat().st_size
    files = weight_files(location.folder)
    return sum(map(_count_safetensors, files)), sum(path.stat().st_size for path in files)


def _count_safetensors(path: Path) -> int:
    try:
        with safe_open(path, "pt") as file:
            return len(file.keys())
    except (SafetensorError, OSError) as error:
        raise PretrainedError(f"{path}: truncated or corrupt: {reason(error)}") from error


def read_model(
    location: Location, config: PreTrainedConfig, attention: str, dtype: torch.dtype
) -> PreTrainedModel:
    """The model with its weights, none of them left out or made up.

    Raises:
        PretrainedError: tensors are missing, superfluous, or of another shape or dtype.
    """
    import transformers

    loader: Any = transformers.AutoModelForCausalLM
    arguments = {**location.arguments, "config": config, "attn_implementation": attention}
    # Versions without it always dequantise.
    if location.gguf and hasattr(transformers, "GgufConfig"):
        arguments["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        # The progress bar of the GGUF reader heeds no setting.
        with redirect_stderr(io.StringIO()):
            model, info = loader.from_pretrained(
                location.folder,
                dtype=dtype,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                output_loading_info=True,
                **arguments,
            )
    except Exception as error:  # what it raises depends on the architecture
        raise PretrainedError(
            f"{location.tensors}: transformers cannot load it: {reason(error)}"
        ) from error
    constants = _old_constants(location, info["unexpected_keys"])
    _check_loading(
        location.tensors, {**info, "unexpected_keys": info["unexpected_keys"] - constants}
    )
    _check_dtype(location.tensors, model, dtype)
    return model


def _old_constants(location: Location, names: set[str]) -> set[str]:
    """Those of the tensors that are no weights: older versions saved masks and positions too."""
    if location.gguf is not None or not names:
        return set()
    found = set()
    for path in weight_files(location.folder):
        with safe_open(path, "pt") as file:
            held = names.intersection(file.keys())
            found |= {name for name in held if is_constant(name, file.get_tensor(name))}
    return found


def is_constant(name: str, tensor: torch.Tensor) -> bool:
    """Whether a tensor is a causal mask, what a mask puts in, or the numbers of the positions."""
    kind = name.rpartition(".")[2]
    if kind == "masked_bias":
        return tensor.numel() == 1 and float(tensor) <= _MASKED
    if kind == "position_ids":
        return torch.equal(tensor.flatten(), torch.arange(tensor.numel(), dtype=tensor.dtype))
    if kind in ("bias", "causal_mask", "mask") and tensor.ndim >= 2:
        side = tensor.shape[-1]
        triangle = torch.ones(side, side, dtype=torch.bool).tril()
        return tensor.numel() == side**2 and torch.equal(
            tensor.reshape(side, side), triangle.to(tensor.dtype)
        )
    return False


def _check_loading(path: str, info: dict[str, Any]) -> None:
    """Refuses what transformers only warns of: it would initialise at random, or drop, tensors."""
    mismatched = [
        f"{name} (stored {tuple(stored)}, config {tuple(wanted)})"
        for name, stored, wanted in info["mismatched_keys"]
    ]
    for problem, names in (
        ("has the wrong shape", mismatched),
        ("is missing", info["missing_keys"]),
        ("is not part of the architecture", info["unexpected_keys"]),
        ("was not loaded", info["error_msgs"]),
    ):
        if names:
            first = ", ".join(sorted(map(str, names))[:_LISTED])
            raise PretrainedError(
                f"{path}: {len(names)} tensors, each of which {problem}: {shorten(first)}; "
                "config and weights must belong together"
            )


def _check_dtype(path: str, model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Refuses weights in yet another dtype; some architectures keep a few in float32 on purpose."""
    for name, parameter in model.named_parameters():
        if parameter.dtype not in (dtype, torch.float32):
            raise PretrainedError(f"{path}: {name} is loaded as {parameter.dtype}, not as {dtype}")


def check_values(location: Location, model: PreTrainedModel) -> None:
    """Raises PretrainedError if a weight is NaN or infinite."""
    for name, tensor in model.state_dict().items():
        check_value(location, name, tensor)


def check_value(location: Location, name: str, tensor: torch.Tensor) -> None:
    """Raises PretrainedError if an entry of a weight is NaN or infinite."""
    bad = tensor.numel() - int(tensor.isfinite().sum())
    if bad:
        raise PretrainedError(
            f"{location.tensors}: {bad} of {tensor.numel()} values of {name} are NaN or "
            f"infinite in {DType.of(tensor.dtype)}"
        )
