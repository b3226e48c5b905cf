"""How long an audit will take, by its own engine, timed on a few of the items; and what memory."""

from __future__ import annotations

import torch

from snowball.audit.run import Audit
from snowball.engine.cost import matmul_rate
from snowball.engine.trial import deletion_seconds, middling, trial_rate
from snowball.memory import resident_bytes
from snowball.progress import duration_text
from snowball.results.store import Store
from snowball.tasks.task import GenerationTask


def estimate(audit: Audit, store: Store) -> str:
    """What is not yet in the store, and how long it will take, in a sentence."""
    if audit.is_complete(store):
        return "Nothing is left to measure: every result is in the store."
    engine, cost = audit.engine, audit.cost(store)
    operations = cost.operations + audit.gradient_operations(store)
    generates = any(isinstance(task, GenerationTask) for task in audit.tasks)
    more = ", and more for generation" if generates else ""
    what = f"{len(audit.removals)} models on {cost.tokens:,} tokens"
    if audit.streamed:
        least = duration_text(operations / matmul_rate(engine.stack, engine.token_budget))
        return (
            f"{what}: {operations:.2e} operations, which take at least {least} from the first "
            "layer on."
        )
    memory = estimated_bytes(audit, store) / 1e9  # before anything is tried, which leaves traces
    return (
        f"{what if cost.tokens else 'Only gradients are left'}: {operations:.2e} operations, "
        f"about {duration_text(estimated_seconds(audit, store))} and {memory:.2g} GB of "
        f"memory{more}."
    )


def estimated_bytes(audit: Audit, store: Store) -> int:
    """The most that measuring will take of the memory of the model's device, the model included."""
    device = audit.engine.stack.device
    held = torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes()
    return held + audit.working_bytes(store)


def estimated_seconds(audit: Audit, store: Store) -> float:
    """Seconds that measuring will take, but for generation and the writing of results.

    Some items of middling length are measured for it, and their results are forgotten.
    """
    engine = audit.engine
    operations = audit.cost(store).operations + audit.gradient_operations(store)
    items = [item for task in audit.tasks for item in audit.waiting(task, store)[1]]
    if not items:  # only Taylor scores are left
        items = [item for task in audit.tasks for item in task.items]
    timed = middling(engine, items)
    rate = trial_rate(engine, timed)
    recomputed = sum(len(audit.to_recompute(task, store)) for task in audit.tasks)
    alone = deletion_seconds(engine, timed[0], audit.removals[-1]) if recomputed else 0.0
    return operations / rate + recomputed * alone
