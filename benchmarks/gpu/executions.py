"""One way to run a model on items: dtype, matrix precision, attention kernel, padding, batch size.

The run is that of a plain script, not of the engine: a row for each answer choice, padded batches
in the order of the data, hooks on the layers. So what a setting does to a metric is seen alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from snowball import metrics
from snowball.dtypes import DType
from snowball.engine.layer_stack import LayerStack
from snowball.tasks.item import Item

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEFAULT = "sdpa"
# What transformers calls the attention, and the only backend that torch may then choose.
KERNELS: Mapping[str, tuple[str, SDPBackend | None]] = {
    DEFAULT: ("sdpa", None),
    "eager": ("eager", None),
    "math": ("sdpa", SDPBackend.MATH),
    "efficient": ("sdpa", SDPBackend.EFFICIENT_ATTENTION),
    "flash": ("sdpa", SDPBackend.FLASH_ATTENTION),
    "flex": ("flex_attention", None),
}
PADDINGS = ("right", "left")

Formula = Callable[
    [Float[Tensor, "tokens hidden"], Float[Tensor, "tokens hidden"]], Float[Tensor, " tokens"]
]


def naive(
    x: Float[Tensor, "tokens hidden"], y: Float[Tensor, "tokens hidden"]
) -> Float[Tensor, " tokens"]:
    """`1 - x.y / (|x| |y|)` in the dtype of the states, as it stands in most pruning scripts."""
    return 1 - (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))


OURS, NAIVE, NAIVE_FLOAT32 = "ours", "naive", "naive, float32"
FORMULAS: Mapping[str, Formula] = {
    OURS: metrics.cosine_score,
    NAIVE: naive,
    NAIVE_FLOAT32: lambda x, y: naive(x.float(), y.float()),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """How a model is run; `tf32` lets float32 matrix products of a GPU round their factors."""

    dtype: DType
    kernel: str = DEFAULT
    padding: str = PADDINGS[0]
    batch: int = 8
    tf32: bool = False

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "dtype": self.dtype.value}


@dataclass
class PlainRun:
    """What a run gave: a log-likelihood of each continuation, and scores of all real tokens.

    `scores[formula][layer]` is the flat mean over tokens, `lost[formula][layer]` the share of the
    tokens whose score is not above 0 (or is no number).
    """

    loglikelihoods: list[list[float]]
    scores: dict[str, list[float]] = field(default_factory=dict)
    lost: dict[str, list[float]] = field(default_factory=dict)


class UnavailableError(Exception):
    """A device, or a model, that cannot be run in a setting; the text says why."""


def run(
    model: PreTrainedModel, items: Sequence[Item], setting: Setting, *, scored: bool = True
) -> PlainRun:
    """Runs every continuation of every item, and scores the layers on the way if `scored`.

    Raises:
        UnavailableError: the kernel refuses the device, the dtype or the mask.
    """
    rows = [
        (index, number)
        for index, item in enumerate(items)
        for number in range(len(item.continuations))
    ]
    found = PlainRun([[0.0] * len(item.continuations) for item in items])
    watch = _Watch(LayerStack(model).layers) if scored else None
    try:
        with _executed(model, setting), torch.inference_mode():
            for start in range(0, len(rows), setting.batch):
                chosen = rows[start : start + setting.batch]
                batch = _Batch.of([(items[i], n) for i, n in chosen], setting, model.device)
                values = batch.loglikelihoods(model, watch)
                for (index, number), value in zip(chosen, values, strict=True):
                    found.loglikelihoods[index][number] = value
    except (RuntimeError, ValueError, ImportError, NotImplementedError) as error:
        raise UnavailableError(_first_line(error)) from error
    finally:
        if watch is not None:
            watch.remove()
    if watch is not None:
        found.scores, found.lost = watch.means()
    return found


@dataclass
class _Batch:
    """Rows side by side: each holds a context and a continuation but for its last token."""

    ids: Int[Tensor, "rows length"]
    real: Bool[Tensor, "rows length"]
    targets: list[tuple[int, list[int]]]  # of each row: where it predicts, and what

    @classmethod
    def of(cls, rows: Sequence[tuple[Item, int]], setting: Setting, device: torch.device) -> _Batch:
        texts = [[*item.context, *item.continuations[n][:-1]] for item, n in rows]
        length = max(map(len, texts))
        left = setting.padding == "left"
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        real = torch.zeros(len(rows), length, dtype=torch.bool)
        targets = []
        for row, ((item, n), text) in enumerate(zip(rows, texts, strict=True)):
            start = length - len(text) if left else 0
            ids[row, start : start + len(text)] = torch.tensor(text)
            real[row, start : start + len(text)] = True
            skipped = item.skips[n]
            first = start + len(item.context) - 1 + skipped
            targets.append((first, list(item.continuations[n][skipped:])))
        return cls(ids.to(device), real.to(device), targets)

    def loglikelihoods(self, model: PreTrainedModel, watch: _Watch | None) -> list[float]:
        """Summed over the tokens of each continuation, from logits in float64."""
        inputs: dict[str, Any] = {"input_ids": self.ids, "use_cache": False}
        if not bool(self.real.all()):
            inputs["attention_mask"] = self.real.long()
            inputs["position_ids"] = (self.real.long().cumsum(1) - 1).clamp(min=0)
        if watch is not None:
            watch.real = self.real
        logits: Tensor = model(**inputs).logits  # [rows, length, vocabulary]
        found = []
        for row, (first, tokens) in enumerate(self.targets):
            steps = logits[row, first : first + len(tokens)].double().log_softmax(-1)
            wanted = torch.tensor(tokens, device=steps.device)[:, None]
            found.append(float(steps.gather(1, wanted).sum()))
        return found


class _Watch:
    """Hooks that score every layer at every real token of each batch, by all formulas."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.real: Bool[Tensor, "rows length"]
        self._scores: list[dict[str, list[Tensor]]] = [
            {name: [] for name in FORMULAS} for _ in layers
        ]
        self._handles = [
            layer.register_forward_hook(self._hook(index), with_kwargs=True)
            for index, layer in enumerate(layers)
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def means(self) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        scores: dict[str, list[float]] = {name: [] for name in FORMULAS}
        lost: dict[str, list[float]] = {name: [] for name in FORMULAS}
        for layer in self._scores:
            for name, parts in layer.items():
                values = torch.cat(parts)  # [tokens]
                scores[name].append(float(values.mean()))
                lost[name].append(float((~(values > 0)).double().mean()))
        return scores, lost

    def _hook(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            entering = args[0] if args else kwargs["hidden_states"]
            leaving = output[0] if isinstance(output, tuple) else output
            x, y = entering[self.real], leaving[self.real]  # [tokens, hidden]
            for name, formula in FORMULAS.items():
                self._scores[index][name].append(_scores(formula, x, y).double().cpu())

        return hook


def _scores(
    formula: Formula, x: Float[Tensor, "tokens hidden"], y: Float[Tensor, "tokens hidden"]
) -> Float[Tensor, " tokens"]:
    """NaN at all tokens of a batch that has no scores: a state is infinite or NaN."""
    try:
        return formula(x, y)
    except metrics.UndefinedScoreError:
        return torch.full((len(x),), torch.nan)


def copied(model: PreTrainedModel, device: str, dtype: DType) -> PreTrainedModel:
    """The model once more, on a device and rounded to a dtype."""
    other = deepcopy(model)
    nn.Module.to(other, device=device, dtype=dtype.torch)  # in place
    return other


@contextmanager
def _executed(model: PreTrainedModel, setting: Setting) -> Iterator[None]:
    """Within it the model is run by the kernel and the precision of a setting."""
    implementation, backend = KERNELS[setting.kernel]
    before = model.config._attn_implementation or KERNELS[DEFAULT][0]
    precision = torch.get_float32_matmul_precision()
    with ExitStack() as undo:
        undo.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # torch tells of each backend why it cannot be used
        undo.callback(torch.set_float32_matmul_precision, precision)
        torch.set_float32_matmul_precision("high" if setting.tf32 else "highest")
        undo.callback(model.set_attn_implementation, before)
        model.set_attn_implementation(implementation)
        if backend is not None:
            undo.enter_context(sdpa_kernel(backend))
        yield


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0][:160]
