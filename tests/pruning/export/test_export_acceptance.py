"""The acceptance test: what it finds of a right checkpoint, and what every wrong one fails by."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pruning_models import model_of, save_model
from recorded_progress import Recorded
from safetensors.torch import load_file, save_file
from tiny_models import ITEMS
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from snowball.engine.ablation import AblationEngine
from snowball.engine.layer_stack import LayerStack
from snowball.engine.removal import INTACT, parse_removal
from snowball.pretrained.loading import Pretrained, load_pretrained
from snowball.pruning.export import acceptance
from snowball.pruning.export.acceptance import (
    NEW_TOKENS,
    AcceptanceError,
    MeasuredItem,
    accept,
    random_prompts,
)
from snowball.pruning.export.checkpoint import export_pruned
from snowball.pruning.export.model_card import CardFacts

REMOVAL = parse_removal("0+2.attention")
PROMPT = (1, 5, 9)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    folder = save_model(model_of("llama"), tmp_path_factory.mktemp("acceptance") / "model")
    return load_pretrained(str(folder))


@pytest.fixture(scope="module")
def accepted(source: Pretrained) -> Path:
    folder = Path(source.name).parent / "pruned"
    export_pruned(source, REMOVAL, folder, CardFacts("hand"))
    return folder


@pytest.fixture
def folder(accepted: Path, tmp_path: Path) -> Path:
    """A right checkpoint, to be made wrong."""
    return Path(shutil.copytree(accepted, tmp_path / "pruned"))


@pytest.fixture(scope="module")
def measured(source: Pretrained) -> list[MeasuredItem]:
    """What the engine finds of every form of item, in a batch with other removals."""
    engine = AblationEngine(source.model, [INTACT, REMOVAL])
    found = {one.item: one.loglikelihoods[1] for batch in engine.run(ITEMS) for one in batch}
    return [MeasuredItem(ITEMS[i], tuple(found[i].tolist())) for i in range(len(ITEMS))]


def edit_json(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


# What is found


def test_a_right_checkpoint(source: Pretrained, folder: Path, measured: list[MeasuredItem]) -> None:
    progress = Recorded()
    found = accept(folder, source, REMOVAL, measured, progress=progress)
    assert (found.items, found.prompts, found.tokens) == (len(ITEMS), 4, 16)
    assert found.tensors == 30  # 3 layers of 9, embedding, norm and unembedding
    assert (found.ties, found.dtype) == (0, "float32")
    assert 0 <= found.worst < 1e-5
    assert 0 <= found.worst_logit < 1e-5
    task = progress.only()
    assert (task.title, sum(task.amounts), task.total) == ("accepting", 13, 13)


def test_items_are_compared_before_the_folder_is_there(
    source: Pretrained, measured: list[MeasuredItem], tmp_path: Path
) -> None:
    facts = CardFacts("hand")
    found = export_pruned(source, REMOVAL, tmp_path / "right", facts, measured=measured)
    assert found.items == len(ITEMS)
    first = measured[0]
    wrong = MeasuredItem(first.item, (first.loglikelihoods[0] + 0.01, *first.loglikelihoods[1:]))
    with pytest.raises(AcceptanceError, match="several, continuation 0: log-likelihood"):
        export_pruned(source, REMOVAL, tmp_path / "wrong", facts, measured=[wrong])
    assert [path.name for path in tmp_path.iterdir()] == ["right"]


def test_prompts_of_ones_own(source: Pretrained, folder: Path) -> None:
    assert accept(folder, source, REMOVAL, prompts=[(1, 2), (3,)]).prompts == 2


@pytest.mark.parametrize(
    ("name", "lengths"), [("llama", [1, 5, 12, 40]), ("mistral", [1, 5, 12, 40, 11])]
)
def test_random_prompts_are_of_several_lengths(name: str, lengths: list[int]) -> None:
    """One of them exceeds the window."""
    model = model_of(name)
    prompts = random_prompts(LayerStack(model))
    assert [len(prompt) for prompt in prompts] == lengths
    assert max(map(max, prompts)) < 300
    model.config.max_position_embeddings = 30
    assert max(map(len, random_prompts(LayerStack(model)))) == 30 - NEW_TOKENS - 2


def test_half_precision(source: Pretrained, tmp_path: Path) -> None:
    half = load_pretrained(source.name, dtype="bfloat16")
    found = export_pruned(half, REMOVAL, tmp_path / "pruned", CardFacts("hand"))
    assert found.dtype == "bfloat16"
    assert found.worst_logit < 0.1


@pytest.mark.parametrize(
    "settings",
    [
        {"eos_token_id": list(range(300))},
        {"max_time": 1e-9},
        {"num_beams": 4, "num_return_sequences": 2},
        {"stop_strings": ["a"]},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3},
        {"do_sample": True, "repetition_penalty": 1.3},
    ],
    ids=str,
)
def test_settings_of_generation_play_no_part(
    source: Pretrained, folder: Path, settings: dict[str, Any]
) -> None:
    """It is the model that is tried."""
    edit_json(folder / "generation_config.json", **settings)
    assert accept(folder, source, REMOVAL, prompts=[PROMPT]).tokens == NEW_TOKENS


# What is refused


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda weights: weights["model.layers.1.mlp.up_proj.weight"].mul_(1.0001),
            r"model\.layers\.1\.mlp\.up_proj\.weight is not model\.layers\.2\.mlp\.up_proj\.weight",
        ),
        (
            lambda weights: weights["model.layers.1.self_attn.o_proj.weight"].add_(1),
            r"layers\.1\.self_attn\.o_proj\.weight is not model\.layers\.2\.self_attn\.o_proj",
        ),
        (
            lambda weights: weights.pop("model.norm.weight"),
            r"missing_keys of the checkpoint: \['model\.norm\.weight'\]",
        ),
        (
            lambda weights: weights.update({"model.norm.weight": torch.ones(3)}),
            r"mismatched_keys of the checkpoint: |cannot load it: ",
        ),
    ],
)
def test_tensors_that_are_not_those_of_the_model(
    source: Pretrained, folder: Path, edit: Callable[[Any], Any], message: str
) -> None:
    edit_weights(folder, edit)
    with pytest.raises(AcceptanceError, match=message):
        accept(folder, source, REMOVAL)


def test_a_layer_too_many(source: Pretrained, accepted: Path) -> None:
    with pytest.raises(AcceptanceError, match="tensors that the model does not have: "):
        accept(accepted, source, parse_removal("0+2.attention+3"))


def test_a_config_that_computes_something_else(source: Pretrained, folder: Path) -> None:
    """The tensors are right."""
    rope = {"rope_type": "default", "rope_theta": 50.0}
    edit_json(folder / "config.json", rope_parameters=rope)
    message = (
        r"the prompt of 5 tokens \(.*\): log-probabilities differ from those after true deletion "
        r"of 0\+2\.attention by up to"
    )
    with pytest.raises(AcceptanceError, match=message):
        accept(folder, source, REMOVAL)


def test_a_folder_that_does_not_load(source: Pretrained, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"truncated")
    with pytest.raises(AcceptanceError, match="transformers cannot load it: "):
        accept(folder, source, REMOVAL)


def test_a_tokenizer_with_another_vocabulary(source: Pretrained, folder: Path) -> None:
    other = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=other).save_pretrained(folder)
    with pytest.raises(AcceptanceError, match="its tokenizer has another vocabulary"):
        accept(folder, source, REMOVAL)


def test_a_tokenizer_that_cannot_be_read(source: Pretrained, folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(AcceptanceError, match="transformers cannot read its tokenizer: "):
        accept(folder, source, REMOVAL)


def fake_generation(monkeypatch: pytest.MonkeyPatch, second: float) -> None:
    """Has the cache give token 7 where token 3 is the likeliest, and 7 has the logit `second`."""
    logits = torch.zeros(10, dtype=torch.float64)
    logits[3], logits[7] = 2.0, second

    def generated(model: Any, prompt: Any, *, use_cache: bool) -> Any:
        return [7 if use_cache else 3] * NEW_TOKENS, [logits] * NEW_TOKENS

    monkeypatch.setattr(acceptance, "_generated", generated)


def test_a_cache_that_changes_the_answer(
    source: Pretrained, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_generation(monkeypatch, 1.5)
    message = (
        r"the prompt of 3 tokens \(1, 5, 9\): new token 0 is 7 with a cache of keys and values and "
        r"3 without, which is likelier by 0\.5 nats"
    )
    with pytest.raises(AcceptanceError, match=message):
        accept(folder, source, REMOVAL, prompts=[PROMPT])


def test_ties_that_rounding_decides_are_counted(
    source: Pretrained, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_generation(monkeypatch, 2.0 - 1e-7)
    assert accept(folder, source, REMOVAL, prompts=[PROMPT, PROMPT]).ties == 2


def test_an_item_is_measured_whole() -> None:
    with pytest.raises(ValueError, match="several: 1 log-likelihoods of 4 continuations"):
        MeasuredItem(ITEMS[0], (0.0,))
