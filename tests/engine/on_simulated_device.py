"""Engine, audits and prunings on a simulated device: as on the CPU, and nothing on the wrong side.

`test_device_placement.py` runs this file in a process of its own.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from audit_inputs import QUESTIONS as TEXTS
from audit_inputs import write
from simulated_device import NAME, moved, simulated_device
from tiny_models import DEPTH, ITEMS, tiny_model

from snowball.audit.folder import run_audit
from snowball.decoders.tokenizer import byte_tokenizer
from snowball.engine.ablation import AblationEngine, ItemAblation, ItemAnswers
from snowball.engine.deletion import deleted, loglikelihoods_one_by_one
from snowball.engine.generation import generate
from snowball.engine.gradients import taylor_scores
from snowball.engine.layer_stack import LayerStack
from snowball.engine.removal import INTACT, Part, layer_removals, sublayer_removals
from snowball.engine.self_check import check_engine
from snowball.engine.self_check_result import RowLayout
from snowball.engine.standing_check import StandingCheck
from snowball.engine.state_cache import StateCache
from snowball.engine.trial import trial_rate
from snowball.model_tasks import read_tasks
from snowball.pretrained.loading import Pretrained, load_pretrained
from snowball.pruning.document import read_pruning
from snowball.pruning.folder import run_pruning
from snowball.pruning.method import read_method
from snowball.tasks.item import Item
from snowball.tasks.task import multiple_choice_task

REMOVALS = (INTACT, *layer_removals(DEPTH), *sublayer_removals(DEPTH, Part.MLP))
EXAMPLES = tuple(range(3, 23))
BEHIND = (
    Item("behind examples", (*EXAMPLES, 30, 31), ((32,), (33, 34))),
    Item("behind them, too", (*EXAMPLES, 35), ((36, 37), (38,))),
)
EVERY = (*ITEMS, *BEHIND)
QUESTIONS = (*ITEMS[:3], *BEHIND)
# Logits come in larger blocks there, and so in sums of another order: a hundred roundings.
CLOSE: dict[str, Any] = {
    "rtol": 100 * torch.finfo(torch.float32).eps,
    "atol": 100 * torch.finfo(torch.float32).eps,
}


def on_both(name: str, measure: Callable[[Any], Any], **changes: Any) -> tuple[Any, Any]:
    """What is measured of a model on the CPU, and of the same model on the device."""
    model = tiny_model(name, **changes)
    expected = measure(model)
    with simulated_device() as simulated:
        model = moved(deepcopy(model))
        assert LayerStack.of(model).device == simulated.device
        return expected, measure(model)


def engine_of(model: Any, **options: Any) -> AblationEngine:
    return AblationEngine(model, REMOVALS, **{"token_budget": 256, **options})


def run(engine: AblationEngine) -> list[ItemAblation]:
    return sorted((one for batch in engine.run(EVERY) for one in batch), key=lambda one: one.item)


def assert_same_answers(one: Sequence[ItemAnswers], other: Sequence[ItemAnswers]) -> None:
    assert [mine.item for mine in one] == [theirs.item for theirs in other]
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine.loglikelihoods, theirs.loglikelihoods, **CLOSE)
        assert torch.equal(mine.greedy, theirs.greedy)


@pytest.mark.parametrize("layout", list(RowLayout))
@pytest.mark.parametrize(
    ("name", "budget"), [("llama_grouped", 16), ("llama_grouped", 256), ("gpt2", 256)]
)
def test_every_layout_gives_the_same(name: str, budget: int, layout: RowLayout) -> None:
    one, other = on_both(
        name, lambda model: run(engine_of(model, layout=layout, token_budget=budget))
    )
    assert len(one) == len(EVERY)
    assert_same_answers(one, other)
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine.kl, theirs.kl, **CLOSE)
        for key, array in mine.activations.arrays().items():
            np.testing.assert_allclose(array, theirs.activations.arrays()[key], **CLOSE)


def test_the_checks_find_the_same() -> None:
    sizes = [[1] * len(item.continuations) for item in QUESTIONS]
    task = multiple_choice_task("questions", QUESTIONS, [0] * len(QUESTIONS), sizes)

    def checked(model: Any) -> Any:
        found = check_engine(model, [task], REMOVALS)
        engine = engine_of(model, layout=found.rows, share_prefixes=bool(found.shares_prefixes))
        standing = StandingCheck(model, REMOVALS, len(QUESTIONS), seed=0)
        batches = [one for batch in engine.run(QUESTIONS) for one in batch]
        return found, [standing.compare(one.item, QUESTIONS[one.item], one) for one in batches]

    one, other = on_both("llama", checked)
    assert one[0].packed
    assert one == other


@pytest.mark.parametrize("items", [ITEMS[:2], BEHIND])
def test_nothing_crosses_over_between_two_layers(items: Sequence[Item]) -> None:
    """All of it is sent before the first layer, and read after the last one."""

    def crossings(layers: int) -> Counter[str]:
        removals = [removal for part in Part for removal in sublayer_removals(layers, part)]
        with simulated_device() as simulated:
            model = moved(tiny_model("llama", num_hidden_layers=layers))
            engine = AblationEngine(model, [INTACT, *removals], token_budget=256)
            simulated.crossings.clear()
            (group,) = engine.groups(items)
            assert (group.prefix_length > 0) == (items is BEHIND)
            (found,) = engine.run(items)
            assert len(found) == len(items)
            return simulated.crossings

    few, many = crossings(3), crossings(9)
    assert few == many
    assert 10 < few.total() < 50


def test_true_deletion_gives_the_same_bits() -> None:
    def one_by_one(model: Any) -> list[Any]:
        found = []
        for removal in REMOVALS:
            with deleted(model, removal):
                found += [loglikelihoods_one_by_one(model, item).tolist() for item in EVERY]
        return found

    one, other = on_both("llama", one_by_one)
    assert one == other


def test_states_are_kept_in_the_memory_of_the_host() -> None:
    def kept(model: Any) -> list[ItemAnswers]:
        engine, states = engine_of(model), StateCache(10**9)
        states.keep([2])
        first = [one for batch in engine.answers(QUESTIONS, states) for one in batch]
        held = [state for by_tokens in states._states.values() for state in by_tokens.values()]
        assert held
        assert {state.device.type for state in held} == {"cpu"}
        return first + [one for batch in engine.answers(QUESTIONS, states) for one in batch]

    assert_same_answers(*on_both("llama", kept))


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_the_same_texts_are_generated(name: str) -> None:
    prompts = [item.context for item in EVERY[:-3]] + [item.context for item in BEHIND]
    sources = [f"prompt {place}" for place in range(len(prompts))]

    def generated(model: Any) -> list[Any]:
        found = generate(engine_of(model), prompts, sources, 4, lambda tokens: False)
        return [one for batch in found for one in batch]

    one, other = on_both(name, generated)
    assert len(one) == len(prompts)
    assert one == other


def test_taylor_scores_are_the_same() -> None:
    def scored(model: Any) -> Any:
        return taylor_scores(LayerStack.of(model), QUESTIONS, [0] * len(QUESTIONS))

    one, other = on_both("llama", scored)
    np.testing.assert_allclose(one.parameters, other.parameters, **CLOSE)
    np.testing.assert_allclose(one.function, other.function, **CLOSE)


def test_the_rate_is_timed_there() -> None:
    assert min(on_both("llama", lambda model: trial_rate(engine_of(model), QUESTIONS))) > 0


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A saved model, which may be loaded onto the device; reports are not written."""
    # Only the CPU and CUDA are allowed.
    monkeypatch.setattr("snowball.pretrained.loading.check_device", lambda device: None)
    monkeypatch.setattr("snowball.audit.folder.write_report", lambda *_: None)
    model = tiny_model("llama", vocab_size=300, bos_token_id=256, eos_token_id=257)
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def questions(path: Path, end: str = "") -> Path:
    rows = [
        {"context": text[:20] + end, "choices": [" blue", " so"], "label": place % 2}
        for place, text in enumerate(TEXTS[:6])
    ]
    return write(path, rows)


def loaded_there(checkpoint: str, stream: bool = False) -> Pretrained:
    loaded = load_pretrained(checkpoint, device=NAME, stream=stream)
    assert loaded.model.device.type == NAME
    return loaded


def stored(folder: Path) -> dict[tuple[Any, ...], float]:
    """All numbers of a store, but for gradients, of which streamed models have none."""
    query = "SELECT dataset, removed, item, metric, value FROM named_results"
    with sqlite3.connect(folder / "results.sqlite") as store:
        rows = store.execute(f"{query} WHERE dataset NOT LIKE '%: first %'").fetchall()
    store.close()
    assert rows
    return {tuple(key): value for *key, value in rows}


@pytest.mark.parametrize(("stream", "memory"), [(False, None), (True, 0)])
def test_an_audit_finds_the_same(
    checkpoint: str, tmp_path: Path, stream: bool, memory: float | None
) -> None:
    text = write(tmp_path / "text.jsonl", [{"text": "The quick brown fox."}, {"text": "A cat."}])
    files = [questions(tmp_path / "questions.jsonl"), text]
    model = load_pretrained(checkpoint)
    run_audit(model, read_tasks(model, files), tmp_path / "here", token_budget=64)
    with simulated_device():
        model = loaded_there(checkpoint, stream)
        tasks = read_tasks(model, files)
        run_audit(model, tasks, tmp_path / "there", token_budget=64, memory=memory)
    one, other = stored(tmp_path / "here"), stored(tmp_path / "there")
    assert one.keys() == other.keys()
    np.testing.assert_allclose(list(one.values()), [other[key] for key in one], **CLOSE)


def test_a_pruning_takes_the_same_layers(checkpoint: str, tmp_path: Path) -> None:
    train, test = questions(tmp_path / "train.jsonl"), questions(tmp_path / "test.jsonl", "?")

    def pruned(model: Pretrained, folder: Path) -> Any:
        method = read_method("likelihood", "greedy")
        calibration, evaluation = read_tasks(model, [train]), read_tasks(model, [test])
        run_pruning(model, calibration, evaluation, folder, method, remove="2", memory=0.001)
        assert (folder / "model" / "config.json").exists()
        return read_pruning(folder)

    expected = pruned(load_pretrained(checkpoint), tmp_path / "here")
    with simulated_device():
        found = pruned(loaded_there(checkpoint), tmp_path / "there")
    assert found.removed == expected.removed
    assert found.exported.folder == expected.exported.folder


def test_a_tensor_on_the_wrong_side_is_refused() -> None:
    with simulated_device() as simulated:
        device = simulated.device
        there = torch.ones(3, device=device)
        with pytest.raises(RuntimeError, match=r"add: .* one of shape \(3,\) is on the CPU"):
            torch.add(there, torch.ones(3))
        assert (there + torch.tensor(1.0)).tolist() == [2, 2, 2]  # as with CUDA
        assert there[torch.tensor([0, 1])].device == device
        with pytest.raises(RuntimeError, match="is on the CPU"):
            torch.arange(3)[there.long()]
