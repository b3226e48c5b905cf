"""Tampered claims about a certified model, and an oracle that tells whether they are false.

`checker_attacks.py` draws from them. A tamper counts if it makes a claim false: the oracle, the
float64 decoder, measures every score and every margin at every position, and the claim must be
missed by more than `SLACK` (relative), a thousand times what float64 rounds here.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from snowball.decoders.checkpoint import read_checkpoint, write_safetensors
from snowball.decoders.decoder import Decoder
from snowball.dtypes import SCORE_TOLERANCE, DType, score_tolerance
from snowball.metrics import divergence, layer_scores

SLACK = 1e-9
WEIGHTS = "model.safetensors"
Document = dict[str, Any]

# Tampers


@dataclass(slots=True)
class Subject:
    """Everything that is claimed and of which it is claimed, in memory, to be changed."""

    certificate: Document
    config: Document
    weights: dict[str, Tensor]
    rows: list[Document]
    hashes: bool = True  # whether the certificate is to name the files as they are

    @classmethod
    def read(cls, folder: Path) -> Subject:
        return cls(
            json.loads((folder / "certificate.json").read_text()),
            json.loads((folder / "config.json").read_text()),
            load_file(folder / WEIGHTS),
            [json.loads(line) for line in (folder / "dataset.jsonl").read_text().splitlines()],
        )

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config))
        # Written anew: the file that torch has mapped keeps its content.
        (folder / WEIGHTS).unlink(missing_ok=True)
        write_safetensors(folder / WEIGHTS, self.weights)
        (folder / "dataset.jsonl").write_text("".join(json.dumps(r) + "\n" for r in self.rows))
        if self.hashes:
            names = {"config.json": "config.json", WEIGHTS: WEIGHTS, "dataset": "dataset.jsonl"}
            for name, file in names.items():
                digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
                self.certificate["files"][name] = digest
        (folder / "certificate.json").write_text(json.dumps(self.certificate))


Tamper = Callable[[Subject, random.Random], None]


def change_weight(subject: Subject, draw: random.Random) -> None:
    """A nonzero weight, by a factor of any size or sign, or to zero."""
    name = draw.choice(sorted(subject.weights))
    weight = subject.weights[name] = subject.weights[name].clone()
    places = weight.nonzero().tolist()
    if places:
        place = tuple(draw.choice(places))
        step = 10 ** draw.uniform(-6, 1) * draw.choice([-1, 1])
        weight[place] *= draw.choice([-1, 0, 2, 0.5, 1 + step])


def write_weight(subject: Subject, draw: random.Random) -> None:
    """Any weight, zero or not, becomes some number."""
    name = draw.choice(sorted(subject.weights))
    weight = subject.weights[name] = subject.weights[name].clone()
    place = tuple(draw.randrange(size) for size in weight.shape)
    weight[place] = draw.choice([-1, 1]) * 10 ** draw.uniform(-3, 3)


def change_config(subject: Subject, draw: random.Random) -> None:
    key = draw.choice(sorted(subject.config))
    value = subject.config[key]
    if key == "rms_norm_eps":
        subject.config[key] = 10 ** draw.uniform(-6, 1)
    elif key in ("rope_theta", "rope_parameters"):
        theta = 10 ** draw.uniform(-1, 6)
        subject.config.update(rope_theta=theta)
        subject.config["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    elif type(value) is bool:
        subject.config[key] = not value
    elif type(value) is int:
        subject.config[key] = max(0, value + draw.choice([-2, -1, 1, 2, value]))
    else:
        subject.config[key] = draw.choice(["gelu", "float16", "mistral", None, 1])


def change_row(subject: Subject, draw: random.Random) -> None:
    row = draw.choice(subject.rows)
    kind = draw.randrange(6)
    if kind == 0:
        row["label"], row["distractor"] = row["distractor"], row["label"]
    elif kind == 1:
        subject.rows.append(draw.choice(subject.rows))
    elif kind == 2 and len(subject.rows) > 1:
        subject.rows.remove(row)
        if draw.random() < 0.5:
            subject.certificate["examples"] -= 1
    else:
        ids = row[draw.choice(["prompt", "label", "distractor"])]
        if ids and draw.random() < 0.7:
            ids[draw.randrange(len(ids))] = draw.randrange(7)
        else:
            ids.insert(draw.randrange(len(ids) + 1), draw.randrange(7))


def change_claim(subject: Subject, draw: random.Random) -> None:
    """A number of the certificate: a little, by a factor, its sign, or that of another claim."""
    certificate = subject.certificate
    numbers = list(_decimals(certificate))
    place, key = draw.choice(numbers)
    kind = draw.randrange(4)
    if kind == 0:
        place[key] = repr(
            float(place[key]) * (1 + draw.choice([-1, 1]) * 10 ** draw.uniform(-9, 0))
        )
    elif kind == 1:
        place[key] = repr(float(place[key]) * 10 ** draw.uniform(-3, 3))
    elif kind == 2:
        place[key] = repr(-float(place[key]))
    else:
        other, name = draw.choice(numbers)
        place[key], other[name] = other[name], place[key]


def _decimals(value: Any) -> Iterator[tuple[Any, Any]]:
    """Where the decimal strings of a certificate are."""
    for key, one in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(one, dict | list):
            yield from _decimals(one) if key != "files" else ()
        elif isinstance(one, str) and key not in ("theorem", "dtype", "torch", "transformers"):
            yield value, key


def change_statement(subject: Subject, draw: random.Random) -> None:
    """What the certificate says it is about."""
    certificate, kind = subject.certificate, draw.randrange(5)
    if kind == 0:
        certificate["target"] = draw.randrange(certificate["layers"] + 1)
    elif kind == 1:
        certificate["existence"][draw.choice(["row", "column"])] = draw.randrange(10)
    elif kind == 2:
        certificate["examples"] += draw.choice([-1, 1])
    elif kind == 3:
        certificate["runtime"][0]["dtype"] = draw.choice(["float32", "bfloat16"])
    else:
        subject.hashes = False
        name = draw.choice(sorted(certificate["files"]))
        digits = list(certificate["files"][name])
        digits[draw.randrange(64)] = draw.choice("0123456789abcdef")
        certificate["files"][name] = "".join(digits)


TAMPERS: dict[str, Tamper] = {
    "weight changed": change_weight,
    "weight written": write_weight,
    "config": change_config,
    "dataset": change_row,
    "claim": change_claim,
    "statement": change_statement,
}


# The oracle


class Measured:
    """Every score and margin of a model on rows of token ids, by the float64 decoder."""

    def __init__(self, decoder: Decoder, rows: list[Document], eos: int, bos: int, target: int):
        ends = any(len(row[key]) > 1 for row in rows for key in ("label", "distractor"))
        self.margins = {"with": float("inf"), "without": float("inf")}
        self.scores: list[list[float]] = [[] for _ in range(decoder.num_layers)]
        self.growth, self.end = float("inf"), float("inf")  # of the divergence
        self.margin_others = float("inf")
        for row in rows:
            for name, key in (("with", "label"), ("without", "distractor")):
                wanted = [*row[key], *([eos] if ends else [])]
                ids = torch.tensor([[bos, *row["prompt"], *wanted[:-1]]])
                removed = set() if name == "with" else {target}
                states = decoder.residual_states(ids, removed)
                if name == "with":
                    for layer, (x, y) in enumerate(pairwise(states)):
                        self.scores[layer] += layer_scores(x, y).cosine.flatten().tolist()
                    self._diverge(
                        states[target + 1 :], decoder.residual_states(ids, {target})[target:]
                    )
                    for other in range(decoder.num_layers - 1):
                        if other != target:
                            last = decoder.residual_states(ids, {other})[-1]
                            logits = decoder.logits(last)[0, len(row["prompt"]) :]
                            margin = min(_margin(*one) for one in zip(logits, wanted, strict=True))
                            self.margin_others = min(self.margin_others, margin)
                logits = decoder.logits(states[-1])[0, len(row["prompt"]) :]
                for place, token in enumerate(wanted):
                    margin = _margin(logits[place], token)
                    self.margins[name] = min(self.margins[name], margin)

    def _diverge(self, states: list[Tensor], ablated: list[Tensor]) -> None:
        found = [divergence(x, y) for x, y in zip(states, ablated, strict=True)]
        for before, after in pairwise(found):
            self.growth = min(self.growth, float((after / before).min()))
        self.end = min(self.end, float(found[-1].min()))


def _margin(logits: Tensor, token: int) -> float:
    others = logits.clone()
    others[token] = -torch.inf
    return float(logits[token] - others.max())


def falsehood(subject: Subject, folder: Path) -> str | None:
    """A claim that is false of the files in a folder, or None where none is found to be.

    By measurement in float64, with room for its rounding: never because a checker says so.
    """
    claims, rows = subject.certificate, subject.rows
    if not subject.hashes and claims["files"] != Subject.read(folder).certificate["files"]:
        return "hash"
    for name, file in (
        ("config.json", "config.json"),
        (WEIGHTS, WEIGHTS),
        ("dataset", "dataset.jsonl"),
    ):
        if hashlib.sha256((folder / file).read_bytes()).hexdigest() != claims["files"][name]:
            return "hash"
    try:
        config, weights = read_checkpoint(folder)
        decoder = Decoder(config, {name: weight.double() for name, weight in weights.items()})
        config_is_ours = {"llama"} == {subject.config["model_type"]}
    except Exception:  # whatever the package's own reader refuses
        return "config"
    if not config_is_ours:
        return "config"
    layers, target, epsilon = config.num_hidden_layers, claims["target"], float(claims["epsilon"])
    if claims["layers"] != layers or claims["examples"] != len(rows):
        return "statement"
    if not (1 <= target <= layers - 2 and 0 < epsilon < 2):
        return "statement"
    special = {config.bos_token_id, config.eos_token_id}
    for row in rows:
        answers = [row["label"], row["distractor"], *row.get("choices", [])]
        ids = {token for tokens in (row["prompt"], *answers) for token in tokens}
        if ids & special or max(ids) >= config.vocab_size or not all(answers):
            return "dataset"
        if row["label"] == row["distractor"]:
            return "dataset"
        if "choices" in row and (
            row["choices"].count(row["label"]) != 1 or row["distractor"] not in row["choices"]
        ):
            return "dataset"
    if _says_too_little(claims, epsilon, weights["lm_head.weight"].dtype):
        return "too little"
    try:
        found = Measured(decoder, rows, config.eos_token_id, config.bos_token_id, target)
    except Exception:  # a stream without a direction
        return "score"
    return _false_claim(claims, found, epsilon, config.vocab_size, rows) or _false_existence(
        claims, config, weights, rows, epsilon
    )


def _below(number: float, bound: float) -> bool:
    """Whether a measured number is certainly less than a bound."""
    return number < bound - SLACK * max(abs(bound), abs(number))


def _says_too_little(claims: Document, epsilon: float, dtype: torch.dtype) -> bool:
    """Whether the claims do not imply the theorem: (a) to rounding, (b), and 0.99 of (c), (d)."""
    deviation = float(claims["deviation"])
    others = [s for layer, s in enumerate(claims["scores"]) if layer != claims["target"]]
    others.append({"low": claims["everywhere"]})
    grows, margin = claims["divergence"], claims["margin_others"]
    if grows and (_below(float(grows["growth"]), 1) or _below(float(grows["end"]), 0.5)):
        return True
    if margin is not None and float(margin) <= 0:
        return True
    return (
        _below(epsilon * score_tolerance(dtype), deviation)
        or _below(min(float(one["low"]) for one in others), epsilon + deviation)
        or any(_below(float(claims[f"probability_{name}"]), 0.99) for name in ("with", "without"))
    )


def _false_claim(
    claims: Document, found: Measured, epsilon: float, vocabulary: int, rows: list[Document]
) -> str | None:
    target = claims["target"]
    own = found.scores[target][0]
    for layer, (bounds, scores) in enumerate(zip(claims["scores"], found.scores, strict=True)):
        if _below(min(scores), float(bounds["low"])) or _below(float(bounds["high"]), max(scores)):
            return "score"
        if layer != target and (_below(min(scores), own) or _below(min(scores), epsilon)):
            return "order of scores"
    if _below(min(found.scores[-1]), float(claims["everywhere"])):
        return "everywhere"
    if (grows := claims["divergence"]) and (
        _below(found.growth, float(grows["growth"])) or _below(found.end, float(grows["end"]))
    ):
        return "divergence"
    others = claims["margin_others"]
    if others is not None and _below(found.margin_others, float(others)):
        return "margin_others"
    if _below(float(claims["deviation"]), abs(own - epsilon) - SLACK * epsilon):
        return "deviation"
    for name in ("with", "without"):
        claimed = float(claims[f"margin_{name}"])
        if claimed <= 0 or _below(found.margins[name], claimed):
            return f"margin_{name}"
        margin = torch.tensor(-found.margins[name], dtype=torch.float64)
        certain = float(1 / (1 + (vocabulary - 1) * margin.exp()))
        if _below(certain, float(claims[f"probability_{name}"])):
            return f"probability_{name}"
        if "choices" in rows[0]:
            p = float(claims[f"probability_{name}"])
            longest = max(len(row[key]) for row in rows for key in ("label", "distractor"))
            longest += any(len(row[key]) > 1 for row in rows for key in ("label", "distractor"))
            if p <= 0 or _below(p**longest, 1 - p):
                return "choices"
    return _false_runtime(claims, found)


def _false_runtime(claims: Document, found: Measured) -> str | None:
    """Stated measurements outside what was claimed, by more than the stated error."""
    for one in claims["runtime"]:
        error, away = float(one["score_error"]), float(one["probability_error"])
        computed = "float32" if one["transformers"] else one["dtype"]
        largest = 2e-2 if computed == "bfloat16" else 1e-3
        if not (0 <= error <= SCORE_TOLERANCE[DType(computed)] and 0 <= away <= largest):
            return "runtime error"
        for bounds, claimed, scores in zip(
            one["scores"], claims["scores"], found.scores, strict=True
        ):
            low, high = float(bounds["low"]), float(bounds["high"])
            # Enclosures lie within the claimed bounds, or those are false.
            least, most = float(claimed["low"]), float(claimed["high"])
            if low > high or _below(low, least * (1 - error)) or _below(most * (1 + error), high):
                return "runtime score"
            del scores
        for name in ("with", "without"):
            measured, claimed = (
                float(one[f"probability_{name}"]),
                float(claims[f"probability_{name}"]),
            )
            if measured > 1 or _below(measured, claimed - away):
                return "runtime probability"
    return None


def _false_existence(
    claims: Document, config: Any, weights: dict[str, Tensor], rows: list[Document], epsilon: float
) -> str | None:
    """No sign change between the ends, or a shipped weight that is not inside."""
    place = claims["existence"]
    name = f"model.layers.{claims['target']}.mlp.down_proj.weight"
    weight = weights[name]
    row, column, low, high = (place[key] for key in ("row", "column", "low", "high"))
    if not (row < weight.shape[0] and column < weight.shape[1]):
        return "existence"
    shipped = float(weight[row, column])
    if shipped == 0 or not Fraction(low) < shipped < Fraction(high):
        return "existence"
    above = []
    for end in (low, high):
        wide = {key: value.double() for key, value in weights.items()}
        wide[name] = wide[name].clone()
        wide[name][row, column] = float(end)
        decoder = Decoder(config, wide)
        ids = torch.tensor([[config.bos_token_id]])
        states = decoder.residual_states(ids)
        target = claims["target"]
        score = float(layer_scores(states[target], states[target + 1]).cosine)
        above.append(True if _below(epsilon, score) else False if _below(score, epsilon) else None)
    return "existence" if above in ([True, True], [False, False]) else None
