"""The certificate of a built counterexample: what is claimed, and its file.

Three claims, never mixed. *Existence*: some real weight in a tiny interval around the shipped one
gives the score epsilon exactly, and everything else holds for the whole interval. *Artifact*: the
shipped weights, as exact numbers, give the stated scores and answers. *Runtime*: what torch, and
`transformers`, computed in floating point lies within those enclosures, widened by a stated error.

Of the clauses of the theorem, (a), (b) and (e) are certified at every token of every input; (c),
(d) and (f) on the dataset: that each answer is the likeliest, and that the tokens wanted after a
sequence (one, unless rows of multiple choice go on with several) have the stated probability
together, each leading all others by the stated margin. (e) is claimed for epsilon <= 1/2, (f) of
the tokens that are most likely; a model of prescribed scores, whose later layers do not amplify,
has no (e).

Numbers are decimals, read as exact rationals; there are no floats in the file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from snowball.certificates.exact_model import CONFIG, WEIGHTS
from snowball.dtypes import BUILT
from snowball.files import FileError, bytes_of, strict_json, write_json

FORMAT, THEOREM = 2, "thm:snowball"
_DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?(e-?[0-9]+)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"[0-9A-Za-z.+_-]{1,40}")

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Bounds:
    """A closed interval between decimals."""

    low: Decimal
    high: Decimal


@dataclass(frozen=True, slots=True)
class Existence:
    """Where in the target's down projection, and between which weights, epsilon is attained."""

    row: int
    column: int
    low: Decimal
    high: Decimal


@dataclass(frozen=True, slots=True)
class Divergence:
    """`|h_k - h'_k| / |h_k|` without the target: its growth at each later layer, and its end."""

    growth: Decimal
    end: Decimal


@dataclass(frozen=True, slots=True)
class Runtime:
    """What torch measured in one dtype, and the errors that it is stated to have made.

    `transformers` is the version of that library if its own model was measured, None if ours was.
    """

    dtype: str
    torch: str
    transformers: str | None
    scores: tuple[Bounds, ...]
    probability_with: Decimal
    probability_without: Decimal
    score_error: Decimal
    probability_error: Decimal


@dataclass(frozen=True, slots=True)
class Certificate:
    """The claims about one counterexample folder and one dataset, and the files they are about.

    `scores` of the last layer are those at the positions of the data; at any token of any input its
    score is more than `everywhere`. `divergence` None: (e) is not claimed. `margin_others`: least
    margin of a right token where one layer but the target and the last is removed, before the final
    norm, times the least 1/rms that this can have; None: (f) is not claimed.
    """

    config_sha256: str
    weights_sha256: str
    dataset_sha256: str
    epsilon: Decimal
    target: int
    layers: int
    examples: int
    existence: Existence
    scores: tuple[Bounds, ...]
    deviation: Decimal
    margin_with: Decimal
    margin_without: Decimal
    probability_with: Decimal
    probability_without: Decimal
    everywhere: Decimal
    divergence: Divergence | None
    margin_others: Decimal | None
    runtime: tuple[Runtime, ...]

    def to_json(self) -> dict[str, Any]:
        """The certificate as JSON values: integers, strings, lists and objects."""
        return {
            "format": FORMAT,
            "theorem": THEOREM,
            "files": {
                CONFIG: self.config_sha256,
                WEIGHTS: self.weights_sha256,
                "dataset": self.dataset_sha256,
            },
            "epsilon": _text(self.epsilon),
            "target": self.target,
            "layers": self.layers,
            "examples": self.examples,
            "existence": {
                "row": self.existence.row,
                "column": self.existence.column,
                "low": _text(self.existence.low),
                "high": _text(self.existence.high),
            },
            "scores": _bounds_json(self.scores),
            "deviation": _text(self.deviation),
            "margin_with": _text(self.margin_with),
            "margin_without": _text(self.margin_without),
            "probability_with": _text(self.probability_with),
            "probability_without": _text(self.probability_without),
            "everywhere": _text(self.everywhere),
            "divergence": self.divergence
            and {"growth": _text(self.divergence.growth), "end": _text(self.divergence.end)},
            "margin_others": None if self.margin_others is None else _text(self.margin_others),
            "runtime": [
                {
                    "dtype": str(one.dtype),
                    "torch": one.torch,
                    "transformers": one.transformers,
                    "scores": _bounds_json(one.scores),
                    "probability_with": _text(one.probability_with),
                    "probability_without": _text(one.probability_without),
                    "score_error": _text(one.score_error),
                    "probability_error": _text(one.probability_error),
                }
                for one in self.runtime
            ],
        }

    def write(self, path: Path) -> None:
        """Writes the file at once, or not at all.

        Raises:
            FileError: the file cannot be written.
        """
        write_json(path, self.to_json())


def _text(number: Decimal) -> str:
    return str(number).replace("E+", "e").replace("E", "e")


def _bounds_json(bounds: Sequence[Bounds]) -> list[dict[str, str]]:
    return [{"low": _text(one.low), "high": _text(one.high)} for one in bounds]


# Reading


def read_certificate(path: Path) -> Certificate:
    """Reads a certificate, closed world.

    Raises:
        FileError: a key is unknown, missing, twice there, or its value of another type.
    """
    return parse_certificate(strict_json(bytes_of(path), str(path)), str(path))


class _Object:
    """A JSON object with exactly the given keys."""

    def __init__(self, value: Any, where: str, keys: str) -> None:
        expected = set(keys.split())
        if not isinstance(value, dict):
            raise FileError(f"{where}: must be an object")
        if set(value) != expected:
            odd = ", ".join(sorted(set(value) ^ expected))
            raise FileError(f"{where}: missing or unknown: {odd:.200}")
        self.entries, self.where = value, where

    def _of(self, key: str, kind: type[_Result]) -> _Result:
        value = self.entries[key]
        if type(value) is not kind:
            raise FileError(f"{self.where}: {key} must be of type {kind.__name__}")
        return value

    def integer(self, key: str) -> int:
        value = self._of(key, int)
        if value < 0:
            raise FileError(f"{self.where}: {key} must not be negative")
        return value

    def text(self, key: str) -> str:
        return self._of(key, str)

    def items(self, key: str) -> list[Any]:
        return self._of(key, list)

    def decimal(self, key: str) -> Decimal:
        return _decimal(self.text(key), f"{self.where}: {key}")

    def is_null(self, key: str) -> bool:
        return self.entries[key] is None

    def version(self, key: str) -> str:
        value = self.text(key)
        if not _VERSION.fullmatch(value):
            raise FileError(f"{self.where}: {key} must be a version, as 2.13.0+cpu")
        return value

    def sha256(self, key: str) -> str:
        value = self.text(key)
        if not _SHA256.fullmatch(value):
            raise FileError(f"{self.where}: {key} must be a SHA-256 in hexadecimal")
        return value

    def scores(self, layers: int) -> tuple[Bounds, ...]:
        items = self.items("scores")
        if len(items) != layers:
            raise FileError(f"{self.where}: {len(items)} scores for {layers} layers")
        found = [_Object(item, f"{self.where}: scores", "low high") for item in items]
        return tuple(Bounds(one.decimal("low"), one.decimal("high")) for one in found)


def _decimal(text: str, where: str) -> Decimal:
    if len(text) > 100 or not _DECIMAL.fullmatch(text):
        raise FileError(f"{where} must be a decimal such as 1.5e-7, got {text!r:.40}")
    exponent = text.partition("e")[2]
    if exponent and abs(int(exponent)) > 400:
        raise FileError(f"{where} has an exponent beyond 400")
    return Decimal(text)


def parse_certificate(value: Any, where: str = "certificate") -> Certificate:
    """The certificate that JSON values describe; see `read_certificate`."""
    if isinstance(value, dict) and value.get("format") == 1:
        raise FileError(
            f"{where}: format 1 proves less than format {FORMAT}, which alone is read: certify the "
            "folder again"
        )
    body = _Object(
        value,
        where,
        "format theorem files epsilon target layers examples existence scores deviation "
        "margin_with margin_without probability_with probability_without everywhere divergence "
        "margin_others runtime",
    )
    if (body.integer("format"), body.text("theorem")) != (FORMAT, THEOREM):
        raise FileError(f"{where}: only format {FORMAT} of {THEOREM!r} is read")
    files = _Object(body.entries["files"], f"{where}: files", f"{CONFIG} {WEIGHTS} dataset")
    place = _Object(body.entries["existence"], f"{where}: existence", "row column low high")
    layers = body.integer("layers")
    runtime = tuple(_runtime(item, layers, where) for item in body.items("runtime"))
    programs = [(one.dtype, one.transformers is None) for one in runtime]
    if not programs or len(set(programs)) < len(programs):
        raise FileError(f"{where}: runtime must have one entry or more, of different dtypes")
    return Certificate(
        config_sha256=files.sha256(CONFIG),
        weights_sha256=files.sha256(WEIGHTS),
        dataset_sha256=files.sha256("dataset"),
        epsilon=body.decimal("epsilon"),
        target=body.integer("target"),
        layers=layers,
        examples=body.integer("examples"),
        existence=Existence(
            place.integer("row"),
            place.integer("column"),
            place.decimal("low"),
            place.decimal("high"),
        ),
        scores=body.scores(layers),
        deviation=body.decimal("deviation"),
        margin_with=body.decimal("margin_with"),
        margin_without=body.decimal("margin_without"),
        probability_with=body.decimal("probability_with"),
        probability_without=body.decimal("probability_without"),
        everywhere=body.decimal("everywhere"),
        divergence=None if body.is_null("divergence") else _divergence(body),
        margin_others=None if body.is_null("margin_others") else body.decimal("margin_others"),
        runtime=runtime,
    )


def _divergence(body: _Object) -> Divergence:
    entry = _Object(body.entries["divergence"], f"{body.where}: divergence", "growth end")
    return Divergence(entry.decimal("growth"), entry.decimal("end"))


def _runtime(value: Any, layers: int, where: str) -> Runtime:
    entry = _Object(
        value,
        f"{where}: runtime",
        "dtype torch transformers scores probability_with probability_without score_error "
        "probability_error",
    )
    if entry.text("dtype") not in BUILT:
        raise FileError(f"{where}: runtime: dtype must be one of {', '.join(BUILT)}")
    return Runtime(
        dtype=entry.text("dtype"),
        torch=entry.version("torch"),
        transformers=None if entry.is_null("transformers") else entry.version("transformers"),
        scores=entry.scores(layers),
        probability_with=entry.decimal("probability_with"),
        probability_without=entry.decimal("probability_without"),
        score_error=entry.decimal("score_error"),
        probability_error=entry.decimal("probability_error"),
    )
