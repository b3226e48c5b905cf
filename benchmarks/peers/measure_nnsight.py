"""nnsight: removal by `skip`, scores from the states that a trace hands out.

nnsight has no importance function: the formula, in float64, is this file's; what is judged is
whether the states are the right ones.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import nnsight
import torch
from protocol import Case, Emit, Way, accuracies, accuracy, main


def measure(case: Case, use_cache: bool) -> Iterator[tuple[str, Any]]:
    model = nnsight.TransformersModel(case.model(), tokenizer=case.tokenizer())
    scores = torch.cat([prompt_scores(model, each.prompt) for each in case.questions], dim=1)
    yield "cosine", scores.mean(dim=1).tolist()
    yield from accuracies(
        case.removals,
        lambda each: accuracy(skipping(model, each, use_cache), case.questions),
    )


def prompt_scores(model: Any, prompt: tuple[int, ...]) -> torch.Tensor:
    """Cosine scores, layers x tokens."""
    with torch.no_grad(), model.trace(torch.tensor([prompt])):
        states = nnsight.save([])
        for layer in model.model.layers:
            states.append((layer.input, layer.output))
    # torch's cosine_similarity would clamp small norms, also in float64.
    units = [(normalized(h[0].double()), normalized(g[0].double())) for h, g in states]
    return torch.stack([1 - (h * g).sum(-1) for h, g in units])


def normalized(states: torch.Tensor) -> torch.Tensor:
    return states / states.norm(dim=-1, keepdim=True)


def skipping(model: Any, removed: tuple[int, ...], use_cache: bool) -> Emit:
    edited = model
    if removed:
        with model.edit() as (tracer, edited):
            for _ in tracer.iter[:]:
                for layer in removed:
                    edited.model.layers[layer].skip(edited.model.layers[layer].input)

    def emit(prompts: torch.Tensor, tokens: int) -> torch.Tensor:
        options = {"max_new_tokens": tokens, "do_sample": False, "use_cache": use_cache}
        with edited.generate(prompts, **options) as tracer:
            found = tracer.result.save()
        return found[:, prompts.shape[1] :]

    return emit


def way(use_cache: bool) -> Way:
    command = f"""\
with model.trace(prompt):
    h, g = model.model.layers[layer].input.save(), model.model.layers[layer].output.save()
with model.edit() as (tracer, edited):
    for _ in tracer.iter[:]:
        edited.model.layers[layer].skip(edited.model.layers[layer].input)
with edited.generate(prompt, max_new_tokens=n, do_sample=False, use_cache={use_cache}) as tracer:
    found = tracer.result.save()"""
    return Way(command, lambda case: measure(case, use_cache))


if __name__ == "__main__":
    main("nnsight", {"default": way(True), "use_cache=False": way(False)})
