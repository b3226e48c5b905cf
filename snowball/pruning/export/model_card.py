"""The model card of a pruned checkpoint, and the same facts for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from snowball.engine.removal import Part, Removal, removal_name
from snowball.pretrained.loading import Pretrained
from snowball.provenance import provenance
from snowball.pruning.export.acceptance import Acceptance
from snowball.pruning.export.kept_layers import KeptLayers
from snowball.results.intervals import Interval

# What of the card of the base model holds of the pruned one, too.
_INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag")
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class TaskAccuracy:
    """Accuracy on the items of a task before and after pruning, with 95 % intervals.

    `role` is "calibration" for the items by which layers were chosen, "evaluation" for others.
    """

    task: str
    role: str
    metric: str
    items: int
    before: Interval
    after: Interval


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a model card says beside what the export knows itself.

    `base_model` is the name on the Hub where that is not the name by which it was loaded.
    `datasets` are those that the layers were chosen by, under their names on the Hub if they are
    there. `command` is what was typed, if anything was.
    """

    criterion: str
    datasets: tuple[str, ...] = ()
    accuracies: tuple[TaskAccuracy, ...] = ()
    base_model: str | None = None
    command: str | None = None


def front_matter(facts: CardFacts, base: str | None, inherited: Mapping[str, Any]) -> str:
    """The YAML at the head of a card; `inherited` is that of the base model's card."""
    import yaml

    entries: dict[str, Any] = {name: inherited[name] for name in _INHERITED if name in inherited}
    entries["library_name"] = "transformers"
    if base is not None:
        entries |= {"base_model": base, "base_model_relation": "finetune"}
    entries["tags"] = ["pruned"]
    if facts.datasets:
        entries["datasets"] = list(facts.datasets)
    return f"---\n{yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)}---\n"


def model_card(
    facts: CardFacts,
    pretrained: Pretrained,
    removal: Removal,
    kept: KeptLayers,
    acceptance: Acceptance,
    inherited: Mapping[str, Any],
) -> str:
    """The text of `README.md`."""
    base = hub_name(facts, pretrained)
    sections = [
        front_matter(facts, base, inherited),
        f"# {base or Path(pretrained.name).name}, pruned\n",
        "\n".join(_summary(facts, pretrained, removal, kept)),
        "\n".join(_layers(kept)),
        "\n".join(_accuracies(facts)) if facts.accuracies else "",
        "\n".join(_checks(acceptance)),
        f"## Command\n\n```bash\n{facts.command}\n```\n" if facts.command else "",
    ]
    return "\n".join(section for section in sections if section)


def pruning_record(
    facts: CardFacts,
    pretrained: Pretrained,
    removal: Removal,
    kept: KeptLayers,
    acceptance: Acceptance,
) -> dict[str, Any]:
    """What `pruning.json` says: the same for programs. `kept[i]` is what layer i was."""
    return {
        "format": _FORMAT,
        "base_model": facts.base_model or pretrained.name,
        "base_sha256": pretrained.sha256,
        "base_layers": kept.depth,
        "removed": removal_name(removal),
        "kept": list(kept.old),
        "silenced": list(map(str, kept.halves)),
        **{name: value for name, value in asdict(facts).items() if name != "base_model"},
        "acceptance": asdict(acceptance),
        "provenance": provenance(),
    }


def hub_name(facts: CardFacts, pretrained: Pretrained) -> str | None:
    """The name of the base model on the Hub; None if it came from elsewhere and none is given."""
    return facts.base_model or (pretrained.name if pretrained.source == "hub" else None)


def card_entries(text: str) -> dict[str, Any]:
    """The entries at the head of a model card; none where it has no head, or one that is broken."""
    import yaml

    _, rule, rest = text.partition("---\n")
    head, end, _ = rest.partition("\n---")
    if not rule or not end or not text.startswith("---\n"):
        return {}
    try:
        entries = yaml.safe_load(head)
    except yaml.YAMLError:
        return {}
    return entries if isinstance(entries, dict) else {}


def _summary(
    facts: CardFacts, pretrained: Pretrained, removal: Removal, kept: KeptLayers
) -> Iterator[str]:
    count = len(kept.removed)
    layers = (
        f"without {count} of its {kept.depth} layers, chosen"
        if count
        else f"with all of its {kept.depth} layers, changed"
    )
    name = facts.base_model or pretrained.name
    yield f"`{name}` {layers} by {facts.criterion}. Nothing was trained."
    if kept.halves:
        halves = ", ".join(
            f"the {'attention' if half.part is Part.ATTENTION else 'MLP'} of layer {half.layer}"
            for half in kept.halves
        )
        yield (
            "\nThese halves of the layers that stay add nothing, for the matrices by which they "
            f"write are zero; that saves no time: {halves}."
        )
    if pretrained.source == "gguf":
        yield (
            "\nThe base model is a GGUF file. Its weights were dequantised to "
            f"{str(pretrained.model.dtype).removeprefix('torch.')}, and are those that were "
            "measured."
        )
    yield f"\nRemoved, in the numbering of the base model from 0: `{removal_name(removal)}`.\n"


def _layers(kept: KeptLayers) -> Iterator[str]:
    yield "## Layers\n"
    yield "| layer | in the base model |"
    yield "|--:|--:|"
    for new, old in enumerate(kept.old):
        yield f"| {new} | {old} |"
    yield ""


def _accuracies(facts: CardFacts) -> Iterator[str]:
    yield "## Accuracy\n"
    yield "With 95 % intervals. Layers were chosen by the calibration items.\n"
    yield "| task | items | number | metric | base model | pruned |"
    yield "|---|---|--:|---|--:|--:|"
    for one in facts.accuracies:
        yield (
            f"| {one.task} | {one.role} | {one.items} | {one.metric} | {_shown(one.before)} | "
            f"{_shown(one.after)} |"
        )
    yield ""


def _shown(interval: Interval) -> str:
    if interval.value is None:
        return "undefined"
    if interval.low is None or interval.high is None:
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _checks(acceptance: Acceptance) -> Iterator[str]:
    yield "## Checked\n"
    yield (
        f"Loaded by `AutoModelForCausalLM.from_pretrained` (transformers "
        f"{acceptance.transformers}) in {acceptance.dtype}:\n"
    )
    yield f"- its {acceptance.tensors} tensors are bit for bit those of the base model's layers;"
    yield (
        f"- log-probabilities are those after true deletion, to {acceptance.worst_logit:.1e} nats;"
    )
    ties = f", but for ties of two tokens in {acceptance.ties}" if acceptance.ties else ""
    yield (
        f"- {acceptance.prompts} prompts are continued by the same {acceptance.tokens} tokens with "
        f"and without a cache of keys and values{ties};"
    )
    yield (
        f"- {acceptance.items} items have the log-likelihoods that were measured before the export,"
        f" to {acceptance.worst:.1e} nats a token.\n"
        if acceptance.items
        else "- no items were compared with what was measured before the export.\n"
    )
