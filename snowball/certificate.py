"""Certificates of a built counterexample: what is claimed, how it is proved, how it is judged.

Three claims, never mixed. *Existence*: some real weight in a tiny interval around the shipped one
gives the score epsilon exactly, and everything else holds for the whole interval. *Artifact*: the
shipped weights, as exact numbers, give the stated scores and answers. *Runtime*: what torch computed
in floating point lies within those enclosures, widened by a stated error.

Claims are decimals, read as exact rationals; a verdict rests on certain comparisons only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from snowball.card import read_card
from snowball.checkpoint import CheckpointError, read_checkpoint, write_json
from snowball.dataset import Dataset
from snowball.decoder import Decoder, DecoderConfig
from snowball.exact_model import (
    CONFIG,
    DATASET,
    WEIGHTS,
    Enclosure,
    ExactModel,
    MalformedError,
    Rejection,
    TokenData,
    Undecided,
    read_data,
    read_model,
    sha256_of,
    strict_json,
)
from snowball.measurement import measure_layer
from snowball.residual import ResidualStream
from snowball.verification import SCORE_TOLERANCE

if TYPE_CHECKING:
    from torch import Tensor

    from snowball.enclosure import Effort, Enclosures, Place

FORMAT, THEOREM = 1, "thm:snowball"
CLAIMS = ("existence", "artifact", "runtime")
# Each attempt doubles the precision.
ATTEMPTS = 8
# The largest errors that torch may be stated to have made, by dtype: relative for scores.
SCORE_ERROR = {
    str(dtype).removeprefix("torch."): Decimal(repr(error))
    for dtype, error in SCORE_TOLERANCE.items()
}
PROBABILITY_ERROR = {
    "float64": Decimal("1e-3"),
    "float32": Decimal("1e-3"),
    "bfloat16": Decimal("2e-2"),
}
_RESOLUTION = {"float64": Fraction(1, 2**52), "float32": Fraction(1, 2**23)}
_DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?(e-?[0-9]+)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")

Progress = Callable[[int], None]
_Result = TypeVar("_Result")


class OutOfResources(Exception):
    """A comparison that the largest precision leaves open, or a model too large."""


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
class Runtime:
    """What torch measured in one dtype, and the errors that it is stated to have made."""

    dtype: str
    torch: str
    scores: tuple[Bounds, ...]
    probability_with: Decimal
    probability_without: Decimal
    score_error: Decimal
    probability_error: Decimal


@dataclass(frozen=True, slots=True)
class Certificate:
    """The claims about one counterexample folder and one dataset, and the files they are about."""

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
            "runtime": [
                {
                    "dtype": one.dtype,
                    "torch": one.torch,
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
            CheckpointError: the file cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, self.to_json())
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error}") from error


def _text(number: Decimal) -> str:
    return str(number).replace("E+", "e").replace("E", "e")


def _bounds_json(bounds: Sequence[Bounds]) -> list[dict[str, str]]:
    return [{"low": _text(one.low), "high": _text(one.high)} for one in bounds]


# Reading


def read_certificate(path: Path) -> Certificate:
    """Reads a certificate, closed world.

    Raises:
        MalformedError: a key is unknown, missing, twice there, or its value of another type.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise MalformedError(f"cannot read {path}: {error.strerror}") from None
    return parse_certificate(strict_json(text, str(path)), str(path))


class _Object:
    """A JSON object with exactly the given keys."""

    def __init__(self, value: Any, where: str, keys: str) -> None:
        expected = set(keys.split())
        if not isinstance(value, dict):
            raise MalformedError(f"{where}: must be an object")
        if set(value) != expected:
            odd = ", ".join(sorted(set(value) ^ expected))
            raise MalformedError(f"{where}: missing or unknown: {odd}")
        self.entries, self.where = value, where

    def _of(self, key: str, kind: type[_Result]) -> _Result:
        value = self.entries[key]
        if type(value) is not kind:
            raise MalformedError(f"{self.where}: {key} must be of type {kind.__name__}")
        return value

    def integer(self, key: str) -> int:
        value = self._of(key, int)
        if value < 0:
            raise MalformedError(f"{self.where}: {key} must not be negative")
        return value

    def text(self, key: str) -> str:
        return self._of(key, str)

    def items(self, key: str) -> list[Any]:
        return self._of(key, list)

    def decimal(self, key: str) -> Decimal:
        return _decimal(self.text(key), f"{self.where}: {key}")

    def sha256(self, key: str) -> str:
        value = self.text(key)
        if not _SHA256.fullmatch(value):
            raise MalformedError(f"{self.where}: {key} must be a SHA-256 in hexadecimal")
        return value

    def scores(self, layers: int) -> tuple[Bounds, ...]:
        items = self.items("scores")
        if len(items) != layers:
            raise MalformedError(f"{self.where}: {len(items)} scores for {layers} layers")
        found = [_Object(item, f"{self.where}: scores", "low high") for item in items]
        return tuple(Bounds(one.decimal("low"), one.decimal("high")) for one in found)


def _decimal(text: str, where: str) -> Decimal:
    if len(text) > 100 or not _DECIMAL.fullmatch(text):
        raise MalformedError(f"{where} must be a decimal such as 1.5e-7, got {text!r:.40}")
    exponent = text.partition("e")[2]
    if exponent and abs(int(exponent)) > 400:
        raise MalformedError(f"{where} has an exponent beyond 400")
    return Decimal(text)


def parse_certificate(value: Any, where: str = "certificate") -> Certificate:
    """The certificate that JSON values describe; see `read_certificate`."""
    body = _Object(
        value,
        where,
        "format theorem files epsilon target layers examples existence scores deviation "
        "margin_with margin_without probability_with probability_without runtime",
    )
    if (body.integer("format"), body.text("theorem")) != (FORMAT, THEOREM):
        raise MalformedError(f"{where}: only format {FORMAT} of {THEOREM!r} is read")
    files = _Object(body.entries["files"], f"{where}: files", f"{CONFIG} {WEIGHTS} dataset")
    place = _Object(body.entries["existence"], f"{where}: existence", "row column low high")
    layers = body.integer("layers")
    runtime = tuple(_runtime(item, layers, where) for item in body.items("runtime"))
    dtypes = [one.dtype for one in runtime]
    if not dtypes or len(set(dtypes)) < len(dtypes):
        raise MalformedError(f"{where}: runtime must have one entry or more, of different dtypes")
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
        runtime=runtime,
    )


def _runtime(value: Any, layers: int, where: str) -> Runtime:
    entry = _Object(
        value,
        f"{where}: runtime",
        "dtype torch scores probability_with probability_without score_error probability_error",
    )
    if entry.text("dtype") not in SCORE_ERROR:
        raise MalformedError(f"{where}: runtime: dtype must be one of {', '.join(SCORE_ERROR)}")
    return Runtime(
        dtype=entry.text("dtype"),
        torch=entry.text("torch"),
        scores=entry.scores(layers),
        probability_with=entry.decimal("probability_with"),
        probability_without=entry.decimal("probability_without"),
        score_error=entry.decimal("score_error"),
        probability_error=entry.decimal("probability_error"),
    )


# Judging


@dataclass(frozen=True, slots=True)
class Subject:
    """What a certificate is about, as exact numbers."""

    folder: Path
    data_path: Path
    model: ExactModel
    data: TokenData


def read_subject(folder: Path, data_path: Path) -> Subject:
    """Reads a folder and a dataset.

    Raises:
        MalformedError, Rejection: as `read_model` and `read_data`.
    """
    model = read_model(folder)
    return Subject(folder, data_path, model, read_data(data_path, folder, model.config))


def check_files(certificate: Certificate, folder: Path, data_path: Path) -> None:
    """Raises Rejection unless the files are those that the certificate names."""
    for path, stated in (
        (folder / CONFIG, certificate.config_sha256),
        (folder / WEIGHTS, certificate.weights_sha256),
        (data_path, certificate.dataset_sha256),
    ):
        if (found := sha256_of(path)) != stated:
            raise Rejection("files", f"{path} has the SHA-256 {found[:16]}.., not {stated[:16]}..")


def check_statement(certificate: Certificate, subject: Subject) -> None:
    """Raises Rejection unless the certificate speaks of this model, dataset and theorem."""
    layers, rows = subject.model.config.layers, len(subject.data.rows)
    if certificate.layers != layers:
        raise Rejection("files", f"the model has {layers} layers, not {certificate.layers}")
    if certificate.examples != rows:
        raise Rejection("files", f"the dataset has {rows} rows, not {certificate.examples}")
    if not 1 <= certificate.target <= layers - 2:
        raise Rejection("files", f"target {certificate.target} is not in 1..{layers - 2}")
    if not 0 < certificate.epsilon < 2:
        raise Rejection("files", f"epsilon {certificate.epsilon} is not in (0, 2)")
    place, shape = certificate.existence, subject.model.layers[certificate.target].down.shape
    if not (place.row < shape[0] and place.column < shape[1]):
        raise Rejection("existence", f"there is no weight [{place.row}, {place.column}]")


def judge(certificate: Certificate, subject: Subject, found: Enclosures) -> None:
    """Compares the claims with enclosures.

    Raises:
        Rejection: a claim is certainly false.
        Undecided: a comparison is open.
    """
    judge_existence(certificate, subject, found)
    judge_artifact(certificate, subject, found)
    for one in certificate.runtime:
        judge_runtime(certificate, subject.model.dtype, one, found)


def _point(number: Decimal | Fraction | int) -> Enclosure:
    return Enclosure(Fraction(number), Fraction(number))


def _require_less(claim: str, what: str, left: Enclosure, right: Enclosure) -> None:
    if left.high < right.low:
        return
    message = f"{what}: {_show(left)} is not certainly less than {_show(right)}"
    if left.low >= right.high:
        raise Rejection(claim, message)
    raise Undecided(f"{claim}: {message}")


def _show(enclosure: Enclosure) -> str:
    low, high = (f"{float(end):.12g}" for end in enclosure)
    return low if low == high else f"[{low}, {high}]"


def judge_existence(certificate: Certificate, subject: Subject, found: Enclosures) -> None:
    """A sign change of `score - epsilon` over an interval that holds the shipped weight."""
    from snowball.enclosure import shipped_weight

    claim = certificate.existence
    low, high, epsilon = Fraction(claim.low), Fraction(claim.high), Fraction(certificate.epsilon)
    weight = shipped_weight(subject.model, place_of(certificate))
    if not low < weight < high:
        raise Rejection("existence", f"the weight {float(weight):.17g} is not inside ({low}, {high})")
    ends = found.at_low, found.at_high
    if ends[0].low > epsilon or ends[1].high < epsilon:
        ends = ends[1], ends[0]
    what = f"score of layer {certificate.target} at the ends of the interval against epsilon"
    _require_less("existence", what, ends[0], _point(epsilon))
    _require_less("existence", what, _point(epsilon), ends[1])


def judge_artifact(certificate: Certificate, subject: Subject, found: Enclosures) -> None:
    """Scores, answers and probabilities of the shipped weights, and of the whole interval."""
    _judge_scores(certificate, found)
    vocabulary = subject.model.config.vocabulary
    for name, margin, claimed, probability in (
        ("with", found.margin_with, certificate.margin_with, certificate.probability_with),
        (
            "without",
            found.margin_without,
            certificate.margin_without,
            certificate.probability_without,
        ),
    ):
        _judge_answers(name, margin, claimed, probability, vocabulary)
        if subject.data.multiple_choice:
            _judge_choices(name, Fraction(probability), subject.data.longest)


def _judge_scores(certificate: Certificate, found: Enclosures) -> None:
    target, epsilon = certificate.target, Fraction(certificate.epsilon)
    deviation = Fraction(certificate.deviation)
    for layer, (claimed, score) in enumerate(zip(certificate.scores, found.scores, strict=True)):
        what = f"score of layer {layer} against its claimed bounds"
        least, largest = (found.shipped,) * 2 if layer == target else score
        _require_less("artifact", what, _point(claimed.low), least)
        _require_less("artifact", what, largest, _point(claimed.high))
        if layer != target:
            what = f"score of layer {target} against that of layer {layer}"
            _require_less("artifact", what, found.scores[target].largest, least)
            _require_less("artifact", f"epsilon against {what}", _point(epsilon), least)
    what = f"score of layer {target} against epsilon and the deviation"
    _require_less("artifact", what, _point(epsilon - deviation), found.shipped)
    _require_less("artifact", what, found.shipped, _point(epsilon + deviation))


def _judge_answers(
    name: str, margin: Enclosure, claimed: Decimal, probability: Decimal, vocabulary: int
) -> None:
    from snowball.enclosure import probability as probability_of

    _require_less("artifact", f"zero against margin_{name}", _point(0), _point(claimed))
    what = f"margin_{name} against the least margin of an answer"
    _require_less("artifact", what, _point(claimed), margin)
    certified = Enclosure(
        probability_of(margin.low, vocabulary).low, probability_of(margin.high, vocabulary).high
    )
    what = f"probability_{name} against the least probability of a right token"
    _require_less("artifact", what, _point(probability), certified)


def _judge_choices(name: str, probability: Fraction, longest: int) -> None:
    """The label's likelihood is at least p^m, that of any other choice at most 1 - p."""
    what = f"1 - p against p^{longest}, for p = probability_{name}, so that choices are right"
    power = Fraction(0) if probability <= 0 else probability**longest
    _require_less("artifact", what, _point(1 - probability), _point(power))


def judge_runtime(
    certificate: Certificate, dtype: str, measured: Runtime, found: Enclosures
) -> None:
    """What was measured against the enclosures, widened by the stated errors."""
    if measured.dtype not in (dtype, "float64"):
        raise Rejection("runtime", f"{measured.dtype} is neither {dtype} nor float64")
    for kind, error, largest in (
        ("score", measured.score_error, SCORE_ERROR[measured.dtype]),
        ("probability", measured.probability_error, PROBABILITY_ERROR[measured.dtype]),
    ):
        if not 0 <= error <= largest:
            raise Rejection(
                "runtime", f"{measured.dtype}: {kind}_error {error} is not within 0..{largest}"
            )
    error = Fraction(measured.score_error)
    for layer, (bounds, score) in enumerate(zip(measured.scores, found.scores, strict=True)):
        least, largest = (found.shipped,) * 2 if layer == certificate.target else score
        low, high = least.low * (1 - error), largest.high * (1 + error)
        if not low <= Fraction(bounds.low) <= Fraction(bounds.high) <= high:
            raise Rejection(
                "runtime",
                f"{measured.dtype}: layer {layer} scored {bounds.low} to {bounds.high}, outside "
                f"{float(low):.12g} to {float(high):.12g}",
            )
    for name, probability, claimed in (
        ("with", measured.probability_with, certificate.probability_with),
        ("without", measured.probability_without, certificate.probability_without),
    ):
        least = Fraction(claimed) - Fraction(measured.probability_error)
        if not least <= Fraction(probability) <= 1:
            raise Rejection(
                "runtime",
                f"{measured.dtype}: probability_{name} was {probability}, less than "
                f"{float(least):.12g} or more than 1",
            )


def place_of(certificate: Certificate) -> Place:
    from snowball.enclosure import Place

    return Place(certificate.target, certificate.existence.row, certificate.existence.column)


def _until_decided(layers: int, attempt: Callable[[Effort], _Result]) -> _Result:
    """The result of the first effort that decides.

    Raises:
        OutOfResources: none does.
    """
    from snowball.enclosure import Effort

    reason = ""
    try:
        for number in range(ATTEMPTS):
            try:
                return attempt(Effort.of(layers, number))
            except Undecided as error:
                reason = str(error)
    except (MemoryError, OverflowError) as error:
        raise OutOfResources(f"out of memory: {error}") from None
    raise OutOfResources(f"undecided at the largest precision: {reason}")


def verify(
    certificate: Certificate, folder: Path, data_path: Path, progress: Progress | None = None
) -> None:
    """Recomputes every enclosure with ball arithmetic, measures again with torch, and compares.

    Raises:
        MalformedError: a file is not what its format says.
        Rejection: a claim is certainly false.
        OutOfResources: the largest precision does not decide.
    """
    check_files(certificate, folder, data_path)
    subject = read_subject(folder, data_path)
    check_statement(certificate, subject)
    claim = certificate.existence
    low, high = Fraction(claim.low), Fraction(claim.high)
    if not low < high:
        raise Rejection("existence", f"the interval {claim.low} to {claim.high} is empty")

    def attempt(effort: Effort) -> Enclosures:
        from snowball.enclosure import enclose

        found = enclose(
            subject.model, subject.data, place_of(certificate), low, high, effort, progress
        )
        judge(certificate, subject, found)
        return found

    found = _until_decided(certificate.layers, attempt)
    for stated in certificate.runtime:
        again = _measured(subject, certificate.target, stated.dtype)
        again = _with_errors(again, stated.score_error, stated.probability_error)
        judge_runtime(certificate, subject.model.dtype, again, found)


# Producing


def certify(
    folder: Path, data_path: Path | None = None, progress: Progress | None = None
) -> Certificate:
    """Proves the claims about a counterexample folder, and states them.

    Raises:
        MalformedError, CheckpointError: a file is not what its format says.
        Rejection: something cannot be certified; the claim is named.
        OutOfResources: the largest precision does not decide.
    """
    card = read_card(folder)
    subject = read_subject(folder, data_path or folder / DATASET)
    if card.layers != subject.model.config.layers:
        raise MalformedError(f"{folder}: config.json and snowball.json disagree about the layers")
    epsilon = Decimal(repr(card.epsilon))
    row = ResidualStream(card.subspaces, card.width)["switch"].start
    found, draft = _until_decided(
        card.layers, lambda effort: _prove(subject, epsilon, card.target, row, effort, progress)
    )
    runtime = tuple(
        _stated(subject, draft, found, dtype)
        for dtype in dict.fromkeys((subject.model.dtype, "float64"))
    )
    certificate = Certificate(**{**_fields(draft), "runtime": runtime})
    for one in runtime:
        judge_runtime(certificate, subject.model.dtype, one, found)
    return certificate


def _fields(certificate: Certificate) -> dict[str, Any]:
    return {name: getattr(certificate, name) for name in Certificate.__slots__}


def _prove(
    subject: Subject,
    epsilon: Decimal,
    target: int,
    row: int,
    effort: Effort,
    progress: Progress | None,
) -> tuple[Enclosures, Certificate]:
    """Enclosures, and a certificate of them that is judged and lacks the runtime claims only."""
    from snowball.enclosure import Place, enclose

    columns = list(subject.model.layers[target].down.row(row))
    if len(columns) != 1:
        raise Rejection(
            "existence", f"{len(columns)} hidden units of layer {target} write the switch, not one"
        )
    place = Place(target, row, columns[0][0])
    existence = _existence(subject.model, place, Fraction(epsilon), effort)
    low, high = Fraction(existence.low), Fraction(existence.high)
    found = enclose(subject.model, subject.data, place, low, high, effort, progress)
    draft = _claims(subject, epsilon, existence, found, target)
    judge_existence(draft, subject, found)
    judge_artifact(draft, subject, found)
    _check_deviation(draft, subject.model.dtype)
    return found, draft


def _existence(model: ExactModel, place: Place, epsilon: Fraction, effort: Effort) -> Existence:
    """An interval around the shipped weight and the one that solves, with a sixteenth to spare."""
    from snowball.enclosure import shipped_weight, solve

    weight = shipped_weight(model, place)
    if weight == 0:
        raise Rejection("existence", f"the weight at {place} is zero")
    solution = solve(model, place, epsilon, effort)
    spare = max(abs(solution - weight) / 16, abs(weight) / 10**20)
    exponent = _magnitude(spare)
    return Existence(
        place.row,
        place.column,
        _down(min(weight, solution) - spare, exponent),
        _up(max(weight, solution) + spare, exponent),
    )


def _claims(
    subject: Subject, epsilon: Decimal, existence: Existence, found: Enclosures, target: int
) -> Certificate:
    vocabulary = subject.model.config.vocabulary
    margin_with, margin_without = (_less(m.low) for m in (found.margin_with, found.margin_without))
    exact = Fraction(epsilon)
    away = max(abs(found.shipped.low - exact), abs(found.shipped.high - exact), exact / 10**20)
    scores = [
        _outward(found.shipped, found.shipped) if layer == target else _outward(*score)
        for layer, score in enumerate(found.scores)
    ]
    return Certificate(
        config_sha256=sha256_of(subject.folder / CONFIG),
        weights_sha256=sha256_of(subject.folder / WEIGHTS),
        dataset_sha256=sha256_of(subject.data_path),
        epsilon=epsilon,
        target=target,
        layers=subject.model.config.layers,
        examples=len(subject.data.rows),
        existence=existence,
        scores=tuple(scores),
        deviation=_more(away),
        margin_with=margin_with,
        margin_without=margin_without,
        probability_with=_probability(margin_with, vocabulary),
        probability_without=_probability(margin_without, vocabulary),
        runtime=(),
    )


def _check_deviation(certificate: Certificate, dtype: str) -> None:
    allowed = Fraction(certificate.epsilon) * Fraction(SCORE_ERROR[dtype])
    if Fraction(certificate.deviation) > allowed:
        raise Rejection(
            "artifact",
            f"the score of layer {certificate.target} deviates from epsilon by about "
            f"{certificate.deviation}, and {dtype} accounts for {float(allowed):.3g} only",
        )


# Decimals, rounded away from what they bound


def _magnitude(number: Fraction) -> int:
    """The exponent e with `10^e <= number < 10^(e+1)`, for a positive number."""
    bits = number.numerator.bit_length() - number.denominator.bit_length()
    exponent = int(bits * 0.30103) - 2
    while Fraction(10) ** (exponent + 1) <= number:
        exponent += 1
    return exponent


def _down(number: Fraction, exponent: int) -> Decimal:
    """The largest multiple of a power of ten that is at most the number."""
    return Decimal(f"{number // Fraction(10) ** exponent}e{exponent}")


def _up(number: Fraction, exponent: int) -> Decimal:
    return -_down(-number, exponent)


def _more(number: Fraction) -> Decimal:
    """More than a positive number, in two digits."""
    exponent = _magnitude(number) - 1
    return _up(number + Fraction(10) ** exponent, exponent)


def _less(number: Fraction) -> Decimal:
    """Less than a positive number, in four digits; a number that is not positive as it is."""
    if number <= 0:
        raise Rejection("artifact", f"an answer has the margin {float(number):.6g}")
    exponent = _magnitude(number) - 3
    return _down(number - Fraction(10) ** exponent, exponent)


def _outward(least: Enclosure, largest: Enclosure) -> Bounds:
    """Bounds a width away from a range, or 1e-12 of it where it is narrower than that."""
    width = max(largest.high - least.low, abs(largest.high) / 10**12)
    exponent = _magnitude(width)
    return Bounds(_down(least.low - width, exponent), _up(largest.high + width, exponent))


def _probability(margin: Decimal, vocabulary: int) -> Decimal:
    from snowball.enclosure import probability

    certain = probability(Fraction(margin), vocabulary)
    return 1 - _more(1 - certain.low)


# Measuring


def _measured(subject: Subject, target: int, dtype: str) -> Runtime:
    """What torch computes in a dtype, with no errors stated."""
    import torch

    config, weights = read_checkpoint(subject.folder)
    if dtype == "float64":
        weights = {name: _widened(weight) for name, weight in weights.items()}
    dataset = Dataset.from_jsonl(
        subject.data_path,
        vocabulary_size=config.vocab_size,
        bos=config.bos_token_id,
        eos=config.eos_token_id,
    )
    scores, intact, without = measure_layer(_decoder(config, weights), dataset, target)
    return Runtime(
        dtype=dtype,
        torch=torch.__version__,
        scores=tuple(Bounds(_float(s.cosine.least), _float(s.cosine.largest)) for s in scores),
        probability_with=_float(intact.least_probability_label),
        probability_without=_float(without.least_probability_distractor),
        score_error=Decimal(0),
        probability_error=Decimal(0),
    )


def _decoder(config: DecoderConfig, weights: Mapping[str, Tensor]) -> Decoder:
    try:
        return Decoder(config, weights)
    except ValueError as error:
        raise MalformedError(f"the decoder cannot be run: {error}") from None


def _widened(weight: Tensor) -> Tensor:
    """The weight in float64; pages of zeros stay unwritten."""
    import torch

    wide = torch.zeros(weight.shape, dtype=torch.float64)
    rows = weight.reshape(len(weight), -1).any(1).nonzero().flatten()
    wide[rows] = weight[rows].double()
    return wide


def _float(number: float) -> Decimal:
    return Decimal(repr(number))


def _with_errors(measured: Runtime, score: Decimal, probability: Decimal) -> Runtime:
    fields = {name: getattr(measured, name) for name in Runtime.__slots__}
    return Runtime(**{**fields, "score_error": score, "probability_error": probability})


def _stated(subject: Subject, draft: Certificate, found: Enclosures, dtype: str) -> Runtime:
    """What torch measured, with errors of four times what it took, since machines round apart."""
    measured = _measured(subject, draft.target, dtype)
    needed = Fraction(0)
    for layer, (bounds, score) in enumerate(zip(measured.scores, found.scores, strict=True)):
        least, largest = (found.shipped,) * 2 if layer == draft.target else score
        below = 1 - Fraction(bounds.low) / least.low
        needed = max(needed, below, Fraction(bounds.high) / largest.high - 1)
    short = max(
        Fraction(draft.probability_with) - Fraction(measured.probability_with),
        Fraction(draft.probability_without) - Fraction(measured.probability_without),
    )
    resolution = _RESOLUTION.get(dtype, Fraction(1, 2**7))
    return _with_errors(
        measured,
        min(_more(4 * max(needed, resolution)), max(SCORE_ERROR[dtype], _more(needed))),
        min(_more(4 * max(short, resolution)), max(PROBABILITY_ERROR[dtype], _more(max(short, resolution)))),
    )
