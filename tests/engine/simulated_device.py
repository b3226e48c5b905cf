"""A device that is simulated on the CPU: it computes the same, and refuses what a GPU refuses.

Its tensors hold tensors of the CPU and say that they are elsewhere. An operation on tensors of both
sides is an error, but for copies, single numbers and indices, as with CUDA. So what was put on the
wrong side shows without a GPU. It takes the place of a backend of PyTorch, in the whole process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

NAME = "simulated"
# These may take tensors of the CPU beside those of a GPU.
_COPIES = {"_to_copy", "to", "copy_", "copy"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
# What they give depends on values that only the device knows: the host waits for them.
_WAITING = {"_local_scalar_dense", "equal", "is_nonzero", "item", "nonzero"}


class OnDevice(Tensor):
    """A tensor of the simulated device: `held` is what it holds."""

    held: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        with torch.inference_mode(inner.is_inference()):  # a view of a tensor is as the tensor
            found = Tensor._make_wrapper_subclass(
                cls,
                inner.shape,
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                device=torch.device(NAME, 0),
            )
        found.held = inner
        return found

    def __init__(self, inner: Tensor) -> None:
        del inner  # `__new__` has taken it

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} outside of `simulated_device`")

    def tolist(self) -> Any:
        return self.cpu().tolist()


class SimulatedDevice(TorchDispatchMode):
    """Runs every operation on what the tensors hold.

    `crossings`: how often the host sent something to the device, or waited for it, by operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.device = torch.device(NAME, 0)
        self.crossings: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat = tree_flatten((args, kwargs or {}))[0]
        given = [one for one in flat if isinstance(one, Tensor)]
        devices = [one for one in flat if isinstance(one, torch.device)]
        name = func.overloadpacket.__name__
        there = any(isinstance(one, OnDevice) for one in given)
        if there and name not in _COPIES:
            _refuse_mixed(name, given, args)
        if name == "copy_":
            there = isinstance(args[0], OnDevice)
        if devices:
            there = devices[0].type == NAME
        inside = tree_map(_inner, (args, kwargs or {}))
        out = func(*inside[0], **inside[1])
        if _crosses(name, given, args, out, there):
            self.crossings[name] += 1
        # What is changed in place stays the object that it was.
        same = {id(_inner(one)): one for one in given}
        return tree_map(lambda one: _outside(one, there, same), out)


def _inner(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.held if isinstance(value, OnDevice) else value


def _outside(value: Any, there: bool, same: dict[int, Tensor]) -> Any:
    if not isinstance(value, Tensor):
        return value
    known = same.get(id(value))
    if known is not None and isinstance(known, OnDevice) == there:
        return known
    return OnDevice(value) if there else value


def _crosses(name: str, given: list[Tensor], args: Any, out: Any, there: bool) -> bool:
    """Whether an operation sends something to the other side, or has to wait for values."""
    # A single number goes with the call, and nothing need not be sent.
    sent = [one for one in given if one.numel() and (one.ndim or isinstance(one, OnDevice))]
    sides = {isinstance(one, OnDevice) for one in sent}
    if True not in sides:
        return there and sides == {False}
    masks = tree_flatten(args[1])[0] if name in _INDEXING else []
    by_mask = any(isinstance(one, OnDevice) and one.dtype == torch.bool for one in masks)
    back = isinstance(out, Tensor) and not there
    return name in _WAITING or by_mask or back or False in sides


def _refuse_mixed(name: str, given: list[Tensor], args: Any) -> None:
    """Raises RuntimeError for a tensor of the CPU among those of the device, as CUDA does."""
    indices = (
        tree_flatten(args[1])[0] if name in _INDEXING and isinstance(args[0], OnDevice) else []
    )
    for one in given:
        allowed = isinstance(one, OnDevice) or one.ndim == 0 or any(one is i for i in indices)
        if not allowed:
            raise RuntimeError(
                f"{name}: expected all tensors to be on the same device, but one of shape "
                f"{tuple(one.shape)} is on the CPU"
            )


class _Module(backend_registration._DummyBackendModule):
    """`torch.simulated`; what is random is drawn on the CPU."""

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        pass


# Before the first backward pass, which counts the devices.
backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())


@contextmanager
def simulated_device() -> Iterator[SimulatedDevice]:
    """The device, within which its tensors can be used."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # so that `torch.tensor(..., device=)` is seen
    try:
        with SimulatedDevice() as device:
            yield device
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


def moved(model: Any) -> Any:
    """The model with all weights and buffers on the device."""
    known: dict[Tensor, Any] = {}  # tied weights stay tied
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = known.setdefault(
                    weight, nn.Parameter(OnDevice(weight.detach()), requires_grad=False)
                )
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = known.setdefault(buffer, OnDevice(buffer))
    return model
