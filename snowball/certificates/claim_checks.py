"""Checks the claims of a certificate against enclosures: certain comparisons, one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from snowball.certificates.certificate import Certificate, Runtime
from snowball.certificates.exact_model import CONFIG, WEIGHTS, ExactModel, read_model
from snowball.certificates.interval import Enclosure
from snowball.certificates.rejection import Rejection, Undecided
from snowball.certificates.token_data import TokenData, read_data
from snowball.construction.reader.reader_constants import LEAST_PROBABILITY
from snowball.data.answer_tree import keys_along
from snowball.decoders.checkpoint_files import refuse_unknown_files
from snowball.dtypes import SCORE_TOLERANCE
from snowball.files import sha256_of
from snowball.limits import TEXT_BYTES, WEIGHT_BYTES

if TYPE_CHECKING:
    from snowball.certificates.enclosure import Enclosures, Place
    from snowball.certificates.reader_enclosure import Chances

# The largest errors that torch may be stated to have made, by dtype: relative for scores.
SCORE_ERROR = {str(dtype): Decimal(repr(error)) for dtype, error in SCORE_TOLERANCE.items()}
PROBABILITY_ERROR = {
    "float64": Decimal("1e-3"),
    "float32": Decimal("1e-3"),
    "bfloat16": Decimal("2e-2"),
}


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
        FileError, Rejection: as `read_model` and `read_data`.
    """
    refuse_unknown_files(folder)
    model = read_model(folder)
    return Subject(folder, data_path, model, read_data(data_path, folder, model.config))


def check_files(certificate: Certificate, folder: Path, data_path: Path) -> None:
    """Raises Rejection unless the files are those that the certificate names."""
    for path, limit, stated in (
        (folder / CONFIG, TEXT_BYTES, certificate.config_sha256),
        (data_path, TEXT_BYTES, certificate.dataset_sha256),
        (folder / WEIGHTS, WEIGHT_BYTES, certificate.weights_sha256),
    ):
        if (found := sha256_of(path, limit)) != stated:
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


def check_claims(certificate: Certificate, subject: Subject, found: Enclosures) -> None:
    """Compares the claims with enclosures.

    Raises:
        Rejection: a claim is certainly false.
        Undecided: a comparison is open.
    """
    check_strength(certificate, subject.model.dtype)
    check_existence(certificate, subject, found)
    check_artifact(certificate, subject, found)
    for one in certificate.runtime:
        check_runtime(certificate, subject.model.dtype, one, found)


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
    low, high = (_digits(end) for end in enclosure)
    return low if low == high else f"[{low}, {high}]"


def _digits(number: Fraction) -> str:
    """Not by way of a float: claims reach beyond the largest."""
    return f"{Decimal(number.numerator) / number.denominator:.12g}"


def check_strength(certificate: Certificate, dtype: str) -> None:
    """Whether the claims, if they are true, say what the theorem says: (a) to rounding, (b) to (d).

    Claims about other layers hold for the whole interval of weights, and so where the score of the
    target is epsilon exactly. (e) and (f) need not be claimed.
    """
    epsilon, deviation = Fraction(certificate.epsilon), Fraction(certificate.deviation)
    allowed = epsilon * Fraction(SCORE_ERROR[dtype])
    what = (
        f"the score of layer {certificate.target} deviates from epsilon by more than {dtype} "
        "accounts for"
    )
    _require_less("artifact", what, _point(deviation), _point(allowed))
    for layer, claimed in enumerate(certificate.scores):
        if layer != certificate.target:
            what = f"epsilon and the deviation against the claimed score of layer {layer}"
            _require_less("artifact", what, _point(epsilon + deviation), _point(claimed.low))
    what = "epsilon and the deviation against the score of the last layer at every input"
    _require_less("artifact", what, _point(epsilon + deviation), _point(certificate.everywhere))
    if certificate.divergence is not None:
        what = "1 against the growth of the divergence"
        _require_less("artifact", what, _point(1), _point(certificate.divergence.growth))
        what = "1/2 against the last divergence"
        half = _point(Fraction(1, 2))
        _require_less("artifact", what, half, _point(certificate.divergence.end))
    if certificate.margin_others is not None:
        what = "zero against margin_others"
        _require_less("artifact", what, _point(0), _point(certificate.margin_others))
    for name, probability in (
        ("with", certificate.probability_with),
        ("without", certificate.probability_without),
    ):
        what = f"{LEAST_PROBABILITY} against probability_{name}"
        _require_less(
            "artifact", what, _point(Decimal(repr(LEAST_PROBABILITY))), _point(probability)
        )


def check_existence(certificate: Certificate, subject: Subject, found: Enclosures) -> None:
    """A sign change of `score - epsilon` over an interval that holds the shipped weight."""
    from snowball.certificates.enclosure import shipped_weight

    claim = certificate.existence
    low, high, epsilon = Fraction(claim.low), Fraction(claim.high), Fraction(certificate.epsilon)
    weight = shipped_weight(subject.model, place_of(certificate))
    if not low < weight < high:
        raise Rejection(
            "existence", f"the weight {float(weight):.17g} is not inside ({low}, {high})"
        )
    ends = found.at_low, found.at_high
    if ends[0].low > epsilon or ends[1].high < epsilon:
        ends = ends[1], ends[0]
    what = f"score of layer {certificate.target} at the ends of the interval against epsilon"
    _require_less("existence", what, ends[0], _point(epsilon))
    _require_less("existence", what, _point(epsilon), ends[1])


def check_artifact(certificate: Certificate, subject: Subject, found: Enclosures) -> None:
    """Scores, answers and probabilities of the shipped weights, and of the whole interval."""
    _check_scores(certificate, found)
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
        _check_answers(name, margin, claimed, probability, vocabulary)
        chances = found.chances_with if name == "with" else found.chances_without
        if chances:
            _check_likelihoods(name, subject.data, chances)
        elif subject.data.multiple_choice:
            _check_choices(name, Fraction(probability), subject.data.longest)
    _check_any_input(certificate, found)
    _check_others(certificate, subject, found)
    from snowball.certificates.float_range import KEPT

    largest = min(certificate.margin_with, certificate.margin_without) / Decimal(repr(KEPT))
    if not found.logits <= largest:
        raise Rejection(
            "range", f"logits cancel more digits than float32 can lose: {found.logits:.6g}"
        )


def _check_any_input(certificate: Certificate, found: Enclosures) -> None:
    what = "claimed score of the last layer at every input"
    _require_less("artifact", what, _point(certificate.everywhere), found.everywhere)
    claim = certificate.divergence
    if claim is None:
        return
    growth = Fraction(claim.growth) ** 2
    for before, after in pairwise(found.divergences):
        least = Enclosure(before.low * growth, before.high * growth)
        _require_less("artifact", "growth of the squared divergence", least, after)
    end = _point(Fraction(claim.end) ** 2)
    _require_less("artifact", "the last squared divergence", end, found.divergences[-1])


def _check_others(certificate: Certificate, subject: Subject, found: Enclosures) -> None:
    from snowball.certificates.enclosure import probability

    claim = certificate.margin_others
    if claim is None:
        return
    if found.margin_others is None:
        raise Rejection(
            "artifact",
            "margin_others is not for rows that want different tokens after one sequence",
        )
    what = "margin_others against the least margin of an answer"
    _require_less("artifact", what, _point(claim), found.margin_others)
    if subject.data.multiple_choice:
        certain = probability(Fraction(claim), subject.model.config.vocabulary)
        _check_choices("others", certain.low, subject.data.longest)


def _check_scores(certificate: Certificate, found: Enclosures) -> None:
    target, epsilon = certificate.target, Fraction(certificate.epsilon)
    deviation = Fraction(certificate.deviation)
    for layer, (claimed, score) in enumerate(zip(certificate.scores, found.scores, strict=True)):
        what = f"score of layer {layer} against its claimed bounds"
        least, largest = (found.shipped,) * 2 if layer == target else score
        _require_less("artifact", what, _point(claimed.low), least)
        _require_less("artifact", what, largest, _point(claimed.high))
    what = f"score of layer {target} against epsilon and the deviation"
    _require_less("artifact", what, _point(epsilon - deviation), found.shipped)
    _require_less("artifact", what, found.shipped, _point(epsilon + deviation))


def _check_answers(
    name: str, margin: Enclosure, claimed: Decimal, probability: Decimal, vocabulary: int
) -> None:
    from snowball.certificates.enclosure import probability as probability_of

    _require_less("artifact", f"zero against margin_{name}", _point(0), _point(claimed))
    what = f"margin_{name} against the least margin of an answer"
    _require_less("artifact", what, _point(claimed), margin)
    certified = Enclosure(
        probability_of(margin.low, vocabulary).low, probability_of(margin.high, vocabulary).high
    )
    what = f"probability_{name} against the least probability of a right token"
    _require_less("artifact", what, _point(probability), certified)


def _check_choices(name: str, probability: Fraction, longest: int) -> None:
    """The label's likelihood is at least p^m, that of any other choice at most 1 - p."""
    what = f"1 - p against p^{longest}, for p = probability_{name}, so that choices are right"
    _require_less("artifact", what, _point(1 - probability), _point(probability**longest))


def _check_likelihoods(name: str, data: TokenData, chances: Mapping[bytes, Chances]) -> None:
    """Of every row the label (or the distractor) is the likeliest choice, by products of chances.

    What choices have in common at their beginning counts for none of them. A choice that begins
    with the whole label is less likely by its further tokens.
    """
    for number, row in enumerate(data.rows, start=1):
        wanted = data.scored(row.label if name == "with" else row.distractor)
        own = list(keys_along(row.prompt, wanted))
        for choice in dict.fromkeys(row.choices):
            other = list(keys_along(row.prompt, data.scored(choice)))
            pairs = zip(own, other, strict=False)
            common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            if common == len(own):
                continue
            low = Fraction(1)
            for key, token in own[common:]:
                low *= max(chances[key].wanted[token].low, Fraction(0))
            high = Fraction(1)
            for key, token in other[common:]:
                if key not in chances:
                    raise Rejection(
                        "dataset",
                        f"row {number}: nothing is known of what follows an answer that one of its "
                        "choices begins with",
                    )
                of = chances[key].wanted.get(token)
                high *= chances[key].rest if of is None else of.high
                if of is None:
                    break
            what = f"row {number}, {name} the target: likelihood of a choice against the right one"
            _require_less("artifact", what, _point(high), _point(low))


def check_runtime(
    certificate: Certificate, dtype: str, measured: Runtime, found: Enclosures
) -> None:
    """What was measured against the enclosures, widened by the stated errors."""
    dtypes = (dtype, "float64") if measured.transformers is None else (loaded_as(dtype),)
    if measured.dtype not in dtypes:
        raise Rejection("runtime", f"{measured.dtype} is not {' or '.join(dtypes)}")
    computed = measured.dtype if measured.transformers is None else "float32"
    for kind, error, largest in (
        ("score", measured.score_error, SCORE_ERROR[computed]),
        ("probability", measured.probability_error, PROBABILITY_ERROR[computed]),
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
                f"{_digits(low)} to {_digits(high)}",
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
                f"{_digits(least)} or more than 1",
            )


def loaded_as(dtype: str) -> str:
    """The dtype in which `transformers` is measured: all of them are exact there.

    It computes RMSNorm, RoPE and softmax in float32 in any case.
    """
    return "float64" if dtype == "float64" else "float32"


def place_of(certificate: Certificate) -> Place:
    from snowball.certificates.enclosure import Place

    return Place(certificate.target, certificate.existence.row, certificate.existence.column)
