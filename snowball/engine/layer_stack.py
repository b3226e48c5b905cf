"""The layers of any Hugging Face decoder, one by one: what enters them, each of them, what follows.

Nothing here knows an architecture. The layers are found as the list of modules through which the
hidden states run in order; their masks, position tables and caches are those that the model itself
prepares and hands to them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import starmap, takewhile
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from snowball.engine.removal import Part, Unit
from snowball.errors import SnowballError
from snowball.pretrained.streamed import held, is_streamed

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

Forward: TypeAlias = Callable[..., Any]

# Hugging Face has no common name for the two sublayers, but their classes are named after them.
_CLASS_NAMES = {
    Part.ATTENTION: ("attention", "attn"),
    Part.MLP: ("mlp", "moe", "feedforward", "ffn"),
}

# Products of different shapes are rounded differently, to a few roundings of the largest logit.
_ROUNDINGS = 16

# What the layers of models with ALiBi (BLOOM, MPT, Falcon-RW) call it.
_BIASES = ("alibi", "position_bias")

# How many numbers the layers of Gemma 3n and of small Gemma 4 read beside the states.
_OWN_INPUTS = "hidden_size_per_layer_input"


class LayerStackError(SnowballError):
    """A model whose layers cannot be found, or do not simply follow each other."""


@dataclass(frozen=True)
class LayerCall:
    """How the model calls one layer, after the hidden states: for `rows` rows at once."""

    rows: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def with_rows(self, rows: int, select: Callable[[Tensor], Tensor]) -> LayerCall:
        """The call for `rows` rows, which `select` takes from each tensor with an entry per row.

        A tensor of one axis is never per row (it counts positions), nor one of a single row, which
        broadcasts; but a mask is expanded, for some layers insist on its shape.
        """

        def convert(value: Any) -> Any:
            if isinstance(value, Tensor):
                if value.ndim == 4 and len(value) == 1 < rows:
                    return value.expand(rows, *value.shape[1:])
                per_row = value.ndim > 1 and len(value) == self.rows > 1
                return select(value) if per_row else value
            if isinstance(value, tuple):
                return tuple(map(convert, value))
            if isinstance(value, dict):
                return {key: convert(one) for key, one in value.items()}
            return value

        kwargs = {key: convert(value) for key, value in self.kwargs.items()}
        return LayerCall(rows, convert(self.args), kwargs)

    def with_cache(self, cache: Cache) -> LayerCall:
        """The call with another key-value cache in place of the one that it was given."""
        # Imported already, by the model.
        from transformers import Cache

        def swap(value: Any) -> Any:
            return cache if isinstance(value, Cache) else value

        kwargs = {key: swap(value) for key, value in self.kwargs.items()}
        return LayerCall(self.rows, tuple(map(swap, self.args)), kwargs)


@dataclass(frozen=True)
class Entry:
    """What enters the first layer, h_0, and how each layer is called."""

    hidden: Float[Tensor, "rows length hidden"]
    calls: tuple[LayerCall, ...]


class LayerStack:
    """The layers of a causal language model, found by watching it run.

    Raises:
        LayerStackError: no list of `num_hidden_layers` modules is called once each, in order, each
            with the output of the one before; or their attention is biased by ALiBi, which follows
            the places of tokens and comes without an entry per row; or each layer reads an input of
            its own, which is made for all layers at once.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._config = model.config.get_text_config()
        self.depth = int(self._config.num_hidden_layers)
        if getattr(self._config, _OWN_INPUTS, None):
            raise LayerStackError(
                f"{type(model).__name__}: each layer reads an input of its own beside the states "
                f"({_OWN_INPUTS}), which the model makes for all of its layers at once: without "
                "one of them the inputs are no longer theirs"
            )
        self.layers, runs = _find_layers(model, self.depth)
        if any(run.kwargs.get(name) is not None for run in runs for name in _BIASES):
            raise LayerStackError(
                f"{type(model).__name__}: its attention is biased by ALiBi, which the engine "
                "cannot give to several removals at once"
            )
        self._tuple_lengths = {
            run.module: len(run.output) if isinstance(run.output, tuple | list) else 0
            for run in runs
        }
        self._runs = {run.module: run for run in runs}
        self._adders: dict[nn.Module, bool] = {}
        self.streamed = is_streamed(model)

    @classmethod
    def of(cls, model: PreTrainedModel | LayerStack) -> LayerStack:
        """The layers of a model; a stack is what is known of them already, and is returned."""
        return model if isinstance(model, LayerStack) else cls(model)

    def without(self, gone: Collection[int]) -> LayerStack:
        """The stack of the model while some of its layers are deleted."""
        left = copy(self)
        left.layers = [one for layer, one in enumerate(self.layers) if layer not in gone]
        left.depth = len(left.layers)
        return left

    def held(self, layer: int) -> AbstractContextManager[None]:
        """Within it the weights of a layer stay in memory, if they are streamed from files."""
        return held(self.layers[layer])

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def context_length(self) -> int | None:
        """Tokens that the model can read, None where it does not say."""
        return getattr(self._config, "max_position_embeddings", None)

    @property
    def attention_window(self) -> int | None:
        """Tokens that the narrowest attention sees (sliding or chunked), None for all."""
        sizes = [getattr(self._config, n, None) for n in ("sliding_window", "attention_chunk_size")]
        return min((size for size in sizes if size), default=None)  # 0 is none either

    @property
    def vocabulary_size(self) -> int:
        return int(self._config.vocab_size)

    @property
    def token_count(self) -> int:
        """Ids that the model can both read and predict: 0 .. token_count - 1."""
        embedding: Any = self.model.get_input_embeddings()
        return min(len(embedding.weight), self.vocabulary_size)

    @property
    def takes_any_mask(self) -> bool:
        """Whether the attention follows an arbitrary mask (some kernels know causal ones only)."""
        return self._config._attn_implementation in ("eager", "sdpa")

    def mask(self, seen: Bool[Tensor, "rows 1 length length"]) -> Tensor:
        """A mask of what each token sees, in the form that the model's attention takes.

        Raises:
            LayerStackError: the attention takes no such mask; see `takes_any_mask`.
        """
        if self._config._attn_implementation == "sdpa":
            return seen
        if not self.takes_any_mask:
            raise LayerStackError(
                f"attention {self._config._attn_implementation!r} takes no mask of its own; load "
                "the model with attn_implementation='sdpa'"
            )
        dtype = self.model.dtype
        return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)

    def enter(self, **inputs: Any) -> Entry:
        """Runs everything before the layers: embeddings, masks, position tables.

        `inputs` are those of the model's forward: `input_ids`, `attention_mask`, ...
        """
        entered: list[Tensor] = []
        calls: list[LayerCall] = []

        def recorder(*args: Any, **kwargs: Any) -> Any:
            hidden, *others = args or (kwargs.pop("hidden_states"),)
            entered.append(hidden)
            calls.append(LayerCall(len(hidden), tuple(others), kwargs))
            return self._output(hidden)

        # The base model ends with the final norm: the unembedding is not run.
        with replaced_forwards(dict.fromkeys(self.layers, recorder)):
            self.model.base_model(**inputs)
        return Entry(entered[0], tuple(calls))

    def run(
        self, layer: int, hidden: Float[Tensor, "rows length hidden"], call: LayerCall
    ) -> Float[Tensor, "rows length hidden"]:
        """h_{layer+1} from h_layer."""
        return _hidden_of(self.layers[layer](hidden, *call.args, **call.kwargs))

    def unembed(
        self, hidden: Float[Tensor, "reads hidden"], piece: range | None = None
    ) -> Float[Tensor, "reads piece"]:
        """Logits of states h_L: whatever the model does after its last layer, and nothing else.

        `piece`: the tokens of the vocabulary whose logits are wanted, by default all; one of
        `vocabulary_pieces`.
        """

        forwards = self._handing_on(hidden[:, None])
        if piece is not None and len(piece) < self.vocabulary_size:
            forwards[self._unembedding] = _product_with(self._unembedding, piece)
        # One token a row, so that all stand at position 0, which every model has.
        dummies = torch.zeros(len(hidden), 1, dtype=torch.long, device=self.device)
        with replaced_forwards(forwards):
            return self.model(input_ids=dummies, use_cache=False).logits[:, 0]

    def logits(
        self, ids: Int[Tensor, "rows length"], hidden: Float[Tensor, "rows length hidden"]
    ) -> Float[Tensor, "rows length vocabulary"]:
        """Logits of a run of the model on these ids, whose layers have given h_L."""
        with replaced_forwards(self._handing_on(hidden)):
            return self.model(input_ids=ids, use_cache=False).logits

    def _handing_on(self, hidden: Float[Tensor, "rows length hidden"]) -> dict[nn.Module, Forward]:
        """Forwards of all layers that hand on h_L, which has been computed before."""

        def source(*args: Any, **kwargs: Any) -> Any:
            return self._output(hidden)

        def skip(*args: Any, **kwargs: Any) -> Any:
            return self._output(_first_argument(args, kwargs))

        return {layer: skip if place else source for place, layer in enumerate(self.layers)}

    def vocabulary_pieces(self, size: int) -> list[range]:
        """The vocabulary in pieces of at most so many tokens; whole, where no piece can be had."""
        total = self.vocabulary_size
        if size >= total or not self._splits_vocabulary:
            return [range(total)]
        return [range(start, min(start + size, total)) for start in range(0, total, size)]

    @property
    def _unembedding(self) -> nn.Module:
        unembedding = self.model.get_output_embeddings()
        assert unembedding is not None, "a causal language model has one"
        return unembedding

    @cached_property
    @torch.inference_mode()
    def _splits_vocabulary(self) -> bool:
        """Whether logits of a part of the vocabulary are a part of the logits: tried on two states.

        What a model does to logits (scaling, a soft cap) may mix them, or ask for all of them.
        """
        if type(self._unembedding) is not nn.Linear:
            return False
        states = _hidden_of(self._runs[self.layers[-1]].output)[0]
        cut, total = self.vocabulary_size // 3, self.vocabulary_size
        try:
            pieces = [self.unembed(states, piece) for piece in (range(cut), range(cut, total))]
        except Exception:  # what it raises depends on the model
            return False
        whole, parts = self.unembed(states), torch.cat(pieces, dim=-1)
        rounding = _ROUNDINGS * torch.finfo(whole.dtype).eps * float(whole.abs().nan_to_num().max())
        return whole.shape == parts.shape and torch.allclose(
            whole, parts, rtol=0, atol=rounding, equal_nan=True
        )

    @contextmanager
    def silenced(self, layer: int, parts: frozenset[Part]) -> Iterator[None]:
        """Within it the given sublayers of a layer are not run and add nothing to the stream.

        Raises:
            LayerStackError: the layer has no module, or several, that look like the sublayer.
        """
        silent = {}
        for part in parts:
            module = self.sublayer(layer, part)
            silent[module] = _silent(self._tuple_lengths[module])
        with replaced_forwards(silent):
            yield

    def check(self, unit: Unit) -> None:
        """Raises LayerStackError if a unit is a sublayer that cannot be told from its modules."""
        if unit.part is not Part.LAYER:
            self.sublayer(unit.layer, unit.part)

    def module(self, unit: Unit) -> nn.Module:
        """The module of a layer or sublayer; raises as `sublayer`."""
        if unit.part is Part.LAYER:
            return self.layers[unit.layer]
        return self.sublayer(unit.layer, unit.part)

    def sublayer(self, layer: int, part: Part) -> nn.Module:
        """The module of a sublayer.

        Raises:
            LayerStackError: the layer has no module, or several, that look like it, or the module
            adds the residual stream itself.
        """
        owner = self.layers[layer]
        children = [
            child
            for child in owner.children()
            if any(name in _own_name(child, owner) for name in _CLASS_NAMES[part])
        ]
        if len(children) != 1:
            kinds = [type(child).__name__ for child in owner.children()]
            raise LayerStackError(
                f"layer {layer} has {len(children)} modules that look like its {part}, among "
                f"{', '.join(kinds)}: remove whole layers of this model, not sublayers"
            )
        if self._adds_stream(children[0], layer):
            raise LayerStackError(
                f"the {part} of layer {layer} ({type(children[0]).__name__}) adds its own input to "
                "what it computes: remove whole layers of this model, not sublayers"
            )
        return children[0]

    def _adds_stream(self, module: nn.Module, layer: int) -> bool:
        if module not in self._adders:
            with self.held(layer):
                self._adders[module] = _hands_on_stream(self._runs[module])
        return self._adders[module]

    def _output(self, hidden: Tensor) -> Any:
        """Hidden states in the form in which this model's layers return them."""
        return _as_output(hidden, self._tuple_lengths[self.layers[0]])

    @property
    def state_bytes(self) -> int:
        """What the state of a token takes."""
        state = _hidden_of(self._runs[self.layers[-1]].output)
        return state.shape[-1] * state.element_size()

    @property
    def state_width(self) -> int:
        """Coordinates of a state."""
        return _hidden_of(self._runs[self.layers[-1]].output).shape[-1]

    @cached_property
    def hidden_units(self) -> int:
        """Of the widest matrix in a layer: those of its MLP, in most models."""
        matrices = [p for layer in self.layers for p in layer.parameters() if p.ndim > 1]
        return max((max(p.shape[-2:]) for p in matrices), default=self.state_width)

    def layer_parameters(self) -> int:
        """Parameters of all layers, each of which costs 2 operations a token."""
        return sum(p.numel() for layer in self.layers for p in layer.parameters())

    def unembedding_parameters(self) -> int:
        """Parameters of the unembedding, each of which costs 2 operations a token read."""
        return sum(p.numel() for p in self._unembedding.parameters())


def _product_with(unembedding: nn.Module, piece: range) -> Forward:
    """The forward of a linear unembedding that gives some of its outputs only."""
    assert isinstance(unembedding, nn.Linear)
    rows = slice(piece.start, piece.stop)
    weight = unembedding.weight[rows]
    bias = None if unembedding.bias is None else unembedding.bias[rows]
    return lambda states: nn.functional.linear(states, weight, bias)


def empty_cache() -> Cache:
    """A cache of keys and values that forgets nothing, whatever windows a model has."""
    from transformers import DynamicCache

    return DynamicCache()


@contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Within it the given modules run other functions; their attributes stay visible.

    Set on the instance, so that what wraps a module (hooks, checkpointing) still finds it in place.
    """
    before = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, forward in before.items():
            del module.__dict__["forward"]
            if forward is not None:
                module.__dict__["forward"] = forward


def _find_layers(model: PreTrainedModel, depth: int) -> tuple[list[nn.Module], list[_Run]]:
    """The layers, and one call of each of them and of their children."""
    lists = [
        list(module)
        for module in model.base_model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    for layers in lists:
        seen = _watch(model, [*layers, *(child for layer in layers for child in layer.children())])
        if _chained(layers, seen):
            return layers, seen
    raise LayerStackError(
        f"{type(model).__name__}: no list of {depth} modules (num_hidden_layers) is called in "
        "order, each with the output of the one before; its layers cannot be removed one by one"
    )


@dataclass(frozen=True)
class _Run:
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any


def _watch(model: PreTrainedModel, modules: Sequence[nn.Module]) -> list[_Run]:
    """The calls of the given modules while the model reads two tokens."""
    seen: list[_Run] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        seen.append(_Run(module, args, kwargs, out))

    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in modules]
    try:
        with torch.inference_mode():
            ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
            model.base_model(input_ids=ids, use_cache=False)
    except Exception as error:  # what it raises depends on the model
        raise LayerStackError(
            f"{type(model).__name__}: cannot read two tokens: {type(error).__name__}: {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _chained(layers: Sequence[nn.Module], seen: Sequence[_Run]) -> bool:
    """Whether each layer was called once, in order, with the output of the one before.

    What they hand on is one state for each token.
    """
    runs = [run for run in seen if run.module in layers]
    if [run.module for run in runs] != list(layers):
        return False
    given = [_first_argument(run.args, run.kwargs) for run in runs]
    out = [_hidden_of(run.output) for run in runs]
    states = all(isinstance(x, Tensor) and x.ndim == 3 and x.shape[:2] == (1, 2) for x in given)
    return states and all(starmap(_same, zip(out, given[1:], strict=False)))


def _same(x: Any, y: Any) -> bool:
    """Whether two tensors are equal, where NaN (a broken weight) equals itself."""
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        return False
    return x.shape == y.shape and torch.allclose(x, y, rtol=0, atol=0, equal_nan=True)


@torch.inference_mode()
def _hands_on_stream(run: _Run) -> bool:
    """Whether what a module gives depends on its input even if all of its matrices are zero.

    Then it adds the stream itself (perhaps in a module of its own), and is no sublayer whose
    removal leaves the stream as it is.
    """
    zero = {
        name: torch.zeros_like(p) if p.ndim > 1 else p for name, p in run.module.named_parameters()
    }
    like = _first_argument(run.args, run.kwargs)

    def other(value: Any) -> Any:
        stream = (
            isinstance(value, Tensor) and value.shape == like.shape and value.is_floating_point()
        )
        return value.flip(-1) + 1 if stream else value

    def output(change: Callable[[Any], Any]) -> Tensor:
        args = tuple(map(change, run.args))
        kwargs = {name: change(value) for name, value in run.kwargs.items()}
        return _hidden_of(torch.func.functional_call(run.module, zero, args, kwargs))

    return not _same(output(lambda value: value), output(other))


def _own_name(module: nn.Module, owner: nn.Module) -> str:
    """Class name without the name of the model, which may hold "moe" itself, in lower case."""
    name, other = type(module).__name__, type(owner).__name__
    common = takewhile(lambda pair: pair[0] == pair[1], zip(name, other, strict=False))
    return name[len(list(common)) :].lower()


def _first_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return args[0] if args else kwargs.get("hidden_states")


def _hidden_of(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple | list) else output


def _as_output(hidden: Tensor, tuple_length: int) -> Any:
    return (hidden, *(None,) * (tuple_length - 1)) if tuple_length else hidden


def _silent(tuple_length: int) -> Forward:
    """The forward of a sublayer that adds zero to the residual stream."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        return _as_output(torch.zeros_like(_first_argument(args, kwargs)), tuple_length)

    return forward
