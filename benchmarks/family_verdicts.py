"""Every decoder family of `transformers`, tiny: does the engine give what it gives?

    python benchmarks/family_verdicts.py --out benchmarks/results/families [FAMILY ...]

Compared are log-likelihoods and cosine scores of the intact model and without each layer, and
generated tokens, with each row run alone, eagerly, by layers that are really left out. A family is
equal, or refused with a reason. An interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import family_models
import family_oracle
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from snowball.engine.ablation import AblationEngine
from snowball.engine.generation import generate
from snowball.engine.layer_pass import ItemAblation
from snowball.engine.removal import INTACT, Removal, layer_removals
from snowball.engine.self_check import check_engine, tolerance
from snowball.engine.self_check_result import RowLayout
from snowball.errors import SnowballError
from snowball.files import read_json, write_json, write_text
from snowball.jsonl import Row
from snowball.pretrained.loading import load_pretrained, quiet
from snowball.provenance import provenance
from snowball.tasks.item import Item
from snowball.tasks.task import GenerationTask, Task, read_task, task_of_rows

EQUAL, REFUSED, NOT_TINY, WRONG = "equal", "refused", "not made tiny", "WRONG"
# Scores of states that two ways of computing round differently; wrong ones differ by 1e-2 and more.
_COSINE_TOLERANCE = 1e-4
_NEW_TOKENS, _EOS = 5, 2
_TOKEN_BUDGET = 512  # small, so that a prefix of so few tokens is worth sharing
_EXAMPLES = "1 and 1: two. 2 and 2: four. 3 and 1: four. "
# One token a choice, several, a context longer than the others, and three that begin alike, with
# more than a window: all that packing and a shared prefix could mix.
_ROWS: Sequence[dict[str, Any]] = (
    {"context": "Is it 1?", "choices": ["y", "n"], "label": 0},
    {"context": "Is it 2?", "choices": ["y", "n"], "label": 1},
    {"context": "Name a colour:", "choices": [" red", " blue", " green"], "label": 2},
    {"context": "Name a number:", "choices": [" seven", " eight"], "label": 1},
    {
        "context": "The first words of this sentence only make the whole of it longer; a colour:",
        "choices": [" red", " blue"],
        "label": 0,
    },
    {"context": f"{_EXAMPLES}4 and 1:", "choices": [" five", " six"], "label": 0},
    {"context": f"{_EXAMPLES}1 and 5:", "choices": [" four", " six"], "label": 1},
    {"context": f"{_EXAMPLES}Two and two:", "choices": [" four", " one", " 3"], "label": 0},
)
_SHOWN = 300  # characters of a reason


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found of a family; differences are the largest, of generation the number of texts.

    `layout`: how items become rows. `prefixes`: whether rows run behind what they share.
    `reason`: why it is refused, or could not be made tiny.
    """

    family: str
    verdict: str
    layout: str | None = None
    prefixes: bool | None = None
    loglikelihood: float | None = None
    cosine: float | None = None
    generation: str | None = None
    reason: str | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for JSON and the table")
    parser.add_argument("families", nargs="*", help="some of them; default all")
    options = parser.parse_args()
    path = options.out / "families.json"
    found = read_json(path)["families"] if path.exists() else {}
    assert isinstance(found, dict)
    for family in options.families or family_models.FAMILIES:
        if family in found and not options.families:
            continue
        found[family] = asdict(verdict_of(family))
        print(f"{found[family]['verdict']:14} {family:24} {found[family]['reason'] or ''}")
        origin = {**provenance(), "command": "python benchmarks/family_verdicts.py"}
        write_json(path, {"families": found, "provenance": origin})
    write_text(options.out / "families.md", table([Verdict(**one) for one in found.values()]))


def verdict_of(family: str) -> Verdict:
    """Makes a tiny model of the family, saves it, and compares the engine with the oracle."""
    with quiet(), tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        try:
            family_models.tiny_family(family).save_pretrained(folder)
        except Exception as error:  # what it raises depends on the family
            return Verdict(family, NOT_TINY, reason=_shown(error))
        save_tokenizer(folder)
        rows = Path(temporary) / "rows.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in _ROWS))
        try:
            return _compare(family, folder, rows)
        except SnowballError as error:
            # A folder that is gone says nothing.
            return Verdict(family, REFUSED, reason=_shown(str(error).replace(f"{temporary}/", "")))


def _compare(family: str, folder: Path, rows: Path) -> Verdict:
    pretrained = load_pretrained(str(folder))
    assert pretrained.tokenizer is not None
    task = read_task(rows, pretrained.tokenizer)
    prompts = [
        Row(str(place), {"prompt": row["context"], "answer": "x"})
        for place, row in enumerate(_ROWS)
    ]
    open_questions = task_of_rows("generation", prompts, pretrained.tokenizer)
    removals = [INTACT, *layer_removals(family_models.DEPTH)]
    checked = check_engine(pretrained.model, [task], removals, token_budget=_TOKEN_BUDGET)
    engine = AblationEngine(
        pretrained.model,
        removals,
        token_budget=_TOKEN_BUDGET,
        layout=checked.rows,
        share_prefixes=bool(checked.shares_prefixes),
    )
    found = {one.item: one for batch in engine.run(task.items) for one in batch}
    plain: Any = hf.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    nats, within = _loglikelihoods(plain, removals, task.items, found)
    cosine = _cosine_scores(plain, task.items, found)
    generation = _generation(engine, plain, removals, open_questions)
    right = within and cosine < _COSINE_TOLERANCE and generation != WRONG
    return Verdict(
        family,
        EQUAL if right else WRONG,
        RowLayout(checked.rows).value,
        checked.shares_prefixes,
        nats,
        cosine,
        generation,
        checked.reason and _shown(checked.reason),
    )


def _loglikelihoods(
    plain: Any, removals: Sequence[Removal], items: Sequence[Item], found: dict[int, ItemAblation]
) -> tuple[float, bool]:
    """The largest difference in nats a token, and whether rounding explains all of them."""
    layers, worst, within = family_oracle.layers_of(plain), 0.0, True
    for row, removal in enumerate(removals):
        with family_oracle.left_out(layers, frozenset(unit.layer for unit in removal)):
            for index, item in enumerate(items):
                for place, ending in enumerate(item.continuations):
                    true = family_oracle.loglikelihood(plain, item.context, ending)
                    ours = float(found[index].loglikelihoods[row, place])
                    difference = abs(ours - true) / len(ending)
                    worst = max(worst, difference)
                    within &= difference <= tolerance(torch.float32, abs(true) / len(ending))
    return worst, within


def _cosine_scores(plain: Any, items: Sequence[Item], found: dict[int, ItemAblation]) -> float:
    layers, worst = family_oracle.layers_of(plain), 0.0
    for index, item in enumerate(items):
        sums = found[index].activations
        ours = sums.cosine[:3].sum(0) / sums.tokens[:3].sum()
        true = family_oracle.cosine_scores(plain, layers, item.context)
        worst = max(worst, *(abs(a - b) for a, b in zip(ours.tolist(), true, strict=True)))
    return worst


def _generation(engine: AblationEngine, plain: Any, removals: Sequence[Removal], task: Task) -> str:
    """Whether all removals generate what each generates alone, or that they are not asked to."""
    assert isinstance(task, GenerationTask)
    try:
        check_engine(engine.stack.model, [task], removals)
        made = generate(engine, task.prompts, task.sources, _NEW_TOKENS, lambda t: t[-1] == _EOS)
        found = {one.prompt: one.tokens for batch in made for one in batch}
    except SnowballError:
        return REFUSED
    layers = family_oracle.layers_of(plain)
    for row, removal in enumerate(removals):
        with family_oracle.left_out(layers, frozenset(unit.layer for unit in removal)):
            for index, prompt in enumerate(task.prompts):
                expected = family_oracle.greedy(plain, prompt, _NEW_TOKENS, _EOS)
                if list(found[index][row]) != expected:
                    return WRONG
    return EQUAL


def save_tokenizer(folder: Path) -> None:
    """The bytes and three special tokens; every text begins with BOS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{c: 3 + i for i, c in enumerate(alphabet)}}
    raw = Tokenizer(models.BPE(vocabulary, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    raw.post_processor = processors.TemplateProcessing(  # pyright: ignore
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    hf.PreTrainedTokenizerFast(tokenizer_object=raw, **special).save_pretrained(folder)


def table(verdicts: Sequence[Verdict]) -> str:
    """The page: families that are equal, those that are refused and why, those not made tiny."""
    by_verdict = {
        name: [one for one in verdicts if one.verdict == name]
        for name in (EQUAL, REFUSED, WRONG, NOT_TINY)
    }
    counts = ", ".join(f"{len(found)} {name}" for name, found in by_verdict.items() if found)
    lines = [
        "# Families of transformers, one tiny random model each",
        "",
        f"{len(verdicts)} families: {counts}. Made by `python benchmarks/family_verdicts.py`; each "
        "is a test of `pytest -m slow tests/engine/test_families.py`.",
        "",
        "| family | verdict | rows | prefixes | log-likelihood, nats a token | cosine score | "
        "generation |",
        "|---|---|---|---|--:|--:|---|",
        *(
            f"| {one.family} | {one.verdict} | {one.layout} | "
            f"{'shared' if one.prefixes else 'each row its own'} | {one.loglikelihood:.1e} | "
            f"{one.cosine:.1e} | {one.generation} |"
            for one in [*by_verdict[WRONG], *by_verdict[EQUAL]]
        ),
        "",
        "| family | refused, or not made tiny, because |",
        "|---|---|",
        *(
            f"| {one.family} | {one.verdict}: {_cell(one.reason)} |"
            for one in [*by_verdict[REFUSED], *by_verdict[NOT_TINY]]
        ),
    ]
    return "\n".join(lines) + "\n"


def _cell(reason: str | None) -> str:
    return (reason or "").replace("|", "\\|")


def _shown(error: object) -> str:
    kind = "" if isinstance(error, SnowballError | str) else f"{type(error).__name__}: "
    text = " ".join(f"{kind}{error}".split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


if __name__ == "__main__":
    main()
