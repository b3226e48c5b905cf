"""A model whose layers stay in their files: each is read when it runs, and dropped after it.

What lies outside the layers (embeddings, norms, unembedding) and all buffers are in memory, as are
the layer that runs and the one after it, which a thread reads in the meantime.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from snowball.pretrained.location import Location
from snowball.pretrained.refusal import PretrainedError, reason, shorten
from snowball.pretrained.tensor_files import TensorFiles
from snowball.pretrained.weights import is_constant

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_REMEDY = "load the model without streaming"


def is_streamed(model: nn.Module) -> bool:
    """Whether the layers of a model stay in their files."""
    return any(_streamed(module) is not None for module in model.modules())


def held(module: nn.Module) -> AbstractContextManager[None]:
    """Within it the weights of a module stay in memory; of most modules they always are."""
    streamed = _streamed(module)
    return nullcontext() if streamed is None else streamed.held()


def layer_bytes(model: nn.Module) -> int:
    """What one reading of all streamed layers reads."""
    found = map(_streamed, model.modules())
    return sum(one.bytes for one in found if one is not None)


def bytes_read(model: nn.Module) -> int:
    """What has been read of the streamed layers, each time that one ran."""
    found = map(_streamed, model.modules())
    return sum(one.bytes * one.readings for one in found if one is not None)


def _streamed(module: nn.Module) -> StreamedLayer | None:
    forward = module.__dict__.get("forward")
    return forward if isinstance(forward, StreamedLayer) else None


class StreamedWeights:
    """The weights of a model by their names in its state dict, in the dtype that it computes in."""

    def __init__(self, model: PreTrainedModel, files: TensorFiles, dtype: torch.dtype) -> None:
        self._files = files
        self._dtype = dtype
        self._stored = _stored_names(model, files)

    def read(self, name: str) -> Tensor:
        tensor = self._files.read(self._stored[name])
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

    def stores(self, name: str) -> bool:
        """Whether the files have it: not all buffers are stored."""
        return name in self._stored

    def each(self) -> Iterator[tuple[str, Tensor]]:
        """All weights, each as long as it is looked at, in the order of their names."""
        for name in sorted(self._stored):
            yield name, self.read(name)


@dataclass(frozen=True, slots=True)
class _Weight:
    """A parameter of a layer: where it belongs, and what stands there while it is in its file."""

    owner: nn.Module
    name: str
    absent: nn.Parameter
    read: Callable[[], Tensor]


class StreamedLayer:
    """The forward of a layer whose weights are in files; set on the instance of the module."""

    def __init__(
        self,
        forward: Callable[..., Any],
        weights: Sequence[_Weight],
        following: StreamedLayer | None,
        ahead: _Ahead,
        device: str,
    ) -> None:
        self._forward = forward
        self._weights = weights
        self._following = following
        self._ahead = ahead
        self._device = device
        self._held = False
        self.readings = 0

    @property
    def bytes(self) -> int:
        """Of its weights, as it computes with them."""
        return sum(one.absent.numel() * one.absent.element_size() for one in self._weights)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.held():
            return self._forward(*args, **kwargs)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within it the weights are in memory, and those of the layer that follows are read."""
        if self._held:
            yield
            return
        self._held = True
        try:
            self._load(self._ahead.take(self))
            self._ahead.begin(self._following)
            self.readings += 1
            yield
        finally:
            self._held = False
            for one in self._weights:
                setattr(one.owner, one.name, one.absent)

    def read(self) -> list[Tensor]:
        return [one.read() for one in self._weights]

    @torch.inference_mode(False)  # else they could not be used outside of it
    def _load(self, tensors: list[Tensor]) -> None:
        for one in self._weights:
            setattr(one.owner, one.name, _frozen(tensors.pop(0).to(self._device)))


@dataclass
class _Ahead:
    """Reads one layer ahead of the one that runs, in a thread of its own."""

    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "weights"))
    _layer: StreamedLayer | None = None
    _read: Future[list[Tensor]] | None = None

    def begin(self, layer: StreamedLayer | None) -> None:
        self._layer = layer
        self._read = None if layer is None else self._thread.submit(layer.read)

    def take(self, layer: StreamedLayer) -> list[Tensor]:
        """The weights of a layer, which may have been read already; all others are given up."""
        awaited, read = self._layer, self._read
        self._layer = self._read = None
        if read is not None and awaited is layer:
            return read.result()
        if read is not None and not read.cancel():
            read.exception()  # two layers at most are in memory: it ends first
        return layer.read()


def streamed_model(
    location: Location,
    config: PreTrainedConfig,
    attention: str,
    dtype: torch.dtype,
    files: TensorFiles,
    device: str,
) -> tuple[PreTrainedModel, StreamedWeights]:
    """The model with its layers in their files, and all of its weights by name.

    Raises:
        PretrainedError: the layers are no list, or share weights; tensors are missing, superfluous,
            of another shape, or converted by transformers while it loads them.
    """
    model = _skeleton(location, config, attention, dtype)
    lists = _layer_lists(model)
    layers = [layer for modules in lists for layer in modules]
    try:
        _check_precision(model, dtype)
        _check_sharing(model, layers)
        weights = StreamedWeights(model, files, dtype)
    except PretrainedError as error:
        raise PretrainedError(f"{location.folder}: {error}") from error
    in_layers = {weight for layer in layers for weight in layer.parameters()}
    _load_residents(model, weights, in_layers, device)
    names = {weight: name for name, weight in model.named_parameters()}
    for modules in lists:
        _stream(modules, names, weights, device)
    return model.eval().requires_grad_(False), weights


def _skeleton(
    location: Location, config: PreTrainedConfig, attention: str, dtype: torch.dtype
) -> PreTrainedModel:
    """The model with real buffers, whose every parameter has a shape and no memory."""
    from transformers import AutoModelForCausalLM

    def absent(module: nn.Module, name: str, weight: nn.Parameter | None) -> Any:
        # One that has moved already stays the same object, so that tied weights are still tied.
        if weight is None or weight.is_meta:
            return weight
        return _frozen(weight.to("meta"))

    handle = nn.modules.module.register_module_parameter_registration_hook(absent)
    try:
        with _EmptyWithoutMemory():
            model = AutoModelForCausalLM.from_config(
                config, attn_implementation=attention, dtype=dtype
            )
        if not any(map(_lacks_values, model.modules())):
            return model
        # Tables that begin empty and are filled then need memory.
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
    except Exception as error:  # what it raises depends on the architecture
        raise PretrainedError(
            f"{location.settings}: no model can be built from it: {reason(error)}"
        ) from error
    finally:
        handle.remove()


def _lacks_values(module: nn.Module) -> bool:
    """Whether a buffer, or a tensor that is not registered at all, has no memory."""
    tensors = [*module.buffers(recurse=False), *vars(module).values()]
    return any(isinstance(one, Tensor) and one.is_meta for one in tensors)


class _EmptyWithoutMemory(TorchFunctionMode):
    """What `torch.empty` makes, as modules do for their parameters, has a shape and no memory.

    One parameter after the other would leave gaps in the heap, in all as large as the model.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is torch.empty and given.get("device") is None:
            given["device"] = "meta"
        return func(*args, **given)


def _layer_lists(model: PreTrainedModel) -> list[nn.ModuleList]:
    """The lists with a module for each layer, but for those within one of them."""
    depth = model.config.get_text_config(decoder=True).num_hidden_layers
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.base_model.named_modules():
        within = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) == depth and not within:
            found[name] = module
    if not found:
        raise PretrainedError(
            f"{type(model).__name__}: no list of {depth} modules (num_hidden_layers) to be "
            f"streamed: {_REMEDY}"
        )
    return list(found.values())


def _check_precision(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Refuses models of which transformers keeps some weights in float32."""
    names: set[str] = set()
    if dtype in (torch.float16, torch.bfloat16):
        names |= set(model._keep_in_fp32_modules_strict or ())
    if dtype == torch.float16:
        names |= set(model._keep_in_fp32_modules or ())
    if names:
        raise PretrainedError(
            f"{type(model).__name__} keeps {shorten(', '.join(sorted(names)))} in float32, which "
            f"cannot be streamed in {dtype}: give --dtype float32, or {_REMEDY}"
        )


def _check_sharing(model: PreTrainedModel, layers: Sequence[nn.Module]) -> None:
    """Refuses a weight of a layer that stands elsewhere too: it would be dropped with the layer."""
    uses = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    for layer in layers:
        for name, weight in layer.named_parameters():
            if uses[id(weight)] > 1:
                raise PretrainedError(
                    f"{name} of a layer of {type(model).__name__} is shared with another part of "
                    f"the model, which cannot be streamed: {_REMEDY}"
                )


def _stored_names(model: PreTrainedModel, files: TensorFiles) -> dict[str, str]:
    """Under which name each entry of the state dict is stored; exactly these are."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    wanted, changes = model.state_dict(keep_vars=True), get_model_conversion_mapping(model)
    stored = {_loaded_name(model, name, wanted, changes): name for name in files.names}
    _refuse("has a second name", set(files.names) - set(stored.values()))
    left = stored.keys() - wanted.keys()
    _refuse("is not part of the architecture", left - _old_constants(files, stored, left))
    stored = {name: stored[name] for name in wanted if name in stored}
    _check_shapes(wanted, stored, files)
    tied = _names_of(wanted)
    for name in wanted:
        if others := [other for other in tied[wanted[name]] if other in stored]:
            stored.setdefault(name, stored[others[0]])
    _refuse("is missing", wanted.keys() - stored.keys())
    for names in tied.values():
        _check_equal(files, list(dict.fromkeys(stored[name] for name in names)))
    return stored


def _loaded_name(
    model: PreTrainedModel, name: str, wanted: Mapping[str, Tensor], changes: Sequence[Any]
) -> str:
    """The entry of the state dict that transformers makes of a stored tensor.

    Raises:
        PretrainedError: it makes it by more than another name.
    """
    loaded, prefix = name, f"{model.base_model_prefix}."
    for change in changes:
        loaded, pattern = change.rename_source_key(loaded)
        if pattern is not None and getattr(change, "operations", None):
            raise PretrainedError(
                f"{name} is converted by transformers while it loads {type(model).__name__}, which "
                f"cannot be streamed: {_REMEDY}"
            )
    # Checkpoints may be of the base model alone.
    found = (loaded, prefix + loaded, loaded.removeprefix(prefix))
    return next((one for one in found if one in wanted), loaded)


def _names_of(wanted: Mapping[str, Tensor]) -> dict[Tensor, list[str]]:
    """The names of each weight: of tied ones several."""
    names: dict[Tensor, list[str]] = {}
    for name, weight in wanted.items():
        names.setdefault(weight, []).append(name)
    return names


def _check_equal(files: TensorFiles, names: Sequence[str]) -> None:
    """Refuses tied weights that are stored twice, unless they are equal."""
    for other in names[1:]:
        if not torch.equal(files.read(names[0]), files.read(other)):
            raise PretrainedError(
                f"{names[0]} and {other} are one weight by the config, and differ in the files: "
                "set tie_word_embeddings to false"
            )


def _check_shapes(
    wanted: Mapping[str, Tensor], stored: Mapping[str, str], files: TensorFiles
) -> None:
    for name, found in stored.items():
        if files.shape(found) != tuple(wanted[name].shape):
            raise PretrainedError(
                f"{name} has the wrong shape (stored {files.shape(found)}, config "
                f"{tuple(wanted[name].shape)}); config and weights must belong together"
            )


def _old_constants(files: TensorFiles, stored: Mapping[str, str], names: set[str]) -> set[str]:
    """Masks and positions, which old checkpoints hold beside the weights."""
    return {name for name in names if is_constant(name, files.read(stored[name]))}


def _refuse(problem: str, names: set[str]) -> None:
    if names:
        first = shorten(", ".join(sorted(names)[:3]))
        raise PretrainedError(
            f"{len(names)} tensors, each of which {problem}: {first}; config and weights must "
            "belong together"
        )


def _load_residents(
    model: PreTrainedModel, weights: StreamedWeights, in_layers: set[nn.Parameter], device: str
) -> None:
    """Reads what is not in a layer, and all buffers that are stored."""
    read: dict[nn.Parameter, nn.Parameter] = {}  # tied ones once
    for owner_name, owner in model.named_modules():
        prefix = f"{owner_name}." if owner_name else ""
        for name, weight in list(owner.named_parameters(recurse=False)):
            if weight not in in_layers:
                if weight not in read:
                    read[weight] = _frozen(weights.read(prefix + name).to(device))
                setattr(owner, name, read[weight])
        for name, buffer in list(owner.named_buffers(recurse=False)):
            stored = weights.stores(prefix + name)
            setattr(owner, name, (weights.read(prefix + name) if stored else buffer).to(device))


def _stream(
    layers: nn.ModuleList,
    names: Mapping[nn.Parameter, str],
    weights: StreamedWeights,
    device: str,
) -> None:
    """Makes the layers of a list read their weights when they run."""
    ahead, following = _Ahead(), None
    for layer in reversed(layers):
        parts = [
            _Weight(owner, name, weight, partial(weights.read, names[weight]))
            for owner in layer.modules()
            for name, weight in owner.named_parameters(recurse=False)
        ]
        following = StreamedLayer(layer.forward, parts, following, ahead, device)
        layer.__dict__["forward"] = following


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
