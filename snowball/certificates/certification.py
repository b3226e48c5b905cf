"""Proving and checking certificates: enclosures until all is decided, torch for the runtime.

The runtime is that of our own decoder, and of the model of `transformers` where it is installed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from snowball.certificates.certificate import (
    Bounds,
    Certificate,
    Divergence,
    Existence,
    Runtime,
)
from snowball.certificates.claim_checks import (
    PROBABILITY_ERROR,
    SCORE_ERROR,
    Subject,
    check_claims,
    check_files,
    check_runtime,
    check_statement,
    loaded_as,
    place_of,
    read_subject,
)
from snowball.certificates.claims import Claim, claim_of
from snowball.certificates.exact_model import CONFIG, WEIGHTS, ExactModel
from snowball.certificates.interval import Enclosure
from snowball.certificates.rejection import Rejection, Undecided
from snowball.certificates.token_data import DATASET
from snowball.certificates.transformers_run import installed, run
from snowball.data.dataset import Dataset
from snowball.decoders.checkpoint import read_checkpoint
from snowball.decoders.decoder import Decoder, DecoderConfig
from snowball.files import FileError, sha256_of
from snowball.limits import ACTIVATION_BYTES, WEIGHT_BYTES, OutOfResources, require
from snowball.measurement.measurements import measure_layer
from snowball.progress import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor

    from snowball.certificates.balls import Effort
    from snowball.certificates.enclosure import Enclosures, Place

# Each attempt doubles the precision.
ATTEMPTS = 8
_RESOLUTION = {
    "float64": Fraction(1, 2**52),
    "float32": Fraction(1, 2**23),
    "bfloat16": Fraction(1, 2**7),
}

_Result = TypeVar("_Result")


@contextmanager
def _typed_errors() -> Iterator[None]:
    """What a hostile file can bring about wherever it is read, as what it is."""
    try:
        yield
    except RecursionError as error:
        raise FileError(f"nested too deeply: {error}") from None
    except (MemoryError, OverflowError) as error:
        raise OutOfResources(f"out of memory: {error}") from None
    except RuntimeError as error:  # of torch, which has no type for it
        if "allocate memory" not in str(error):
            raise
        raise OutOfResources(f"out of memory: {error!s:.200}") from None


def _until_decided(layers: int, attempt: Callable[[Effort], _Result]) -> _Result:
    """The result of the first effort that decides.

    Raises:
        OutOfResources: none does.
    """
    from snowball.certificates.balls import Effort

    reason = ""
    for number in range(ATTEMPTS):
        try:
            return attempt(Effort.of(layers, number))
        except Undecided as error:
            reason = str(error)
    raise OutOfResources(f"undecided at the largest precision: {reason}")


@_typed_errors()
def verify(
    certificate: Certificate, folder: Path, data_path: Path, progress: Progress = silent
) -> str:
    """Recomputes every enclosure with ball arithmetic, measures again with torch, and compares.

    Returns what was measured with `transformers`, or why nothing was.

    Raises:
        FileError: a file is not what its format says.
        Rejection: a claim is certainly false.
        OutOfResources: the largest precision does not decide, or something is beyond a limit.
    """
    check_files(certificate, folder, data_path)
    subject = read_subject(folder, data_path)
    _require_measurable(subject)
    check_statement(certificate, subject)
    claim = certificate.existence
    low, high = Fraction(claim.low), Fraction(claim.high)
    if not low < high:
        raise Rejection("existence", f"the interval {claim.low} to {claim.high} is empty")

    def attempt(effort: Effort) -> Enclosures:
        from snowball.certificates.enclosure import enclose

        found = enclose(
            subject.model, subject.data, place_of(certificate), low, high, effort, progress
        )
        check_claims(certificate, subject, found)
        return found

    found = _until_decided(certificate.layers, attempt)
    for stated in certificate.runtime:
        if stated.transformers is not None:
            continue
        again = _measured(subject, certificate.target, stated.dtype)
        again = replace(
            again, score_error=stated.score_error, probability_error=stated.probability_error
        )
        check_runtime(certificate, subject.model.dtype, again, found)
        _require_agreement(stated, again)
    return _verify_transformers(certificate, subject, found)


def _verify_transformers(certificate: Certificate, subject: Subject, found: Enclosures) -> str:
    """Measures the folder with `transformers`, whether or not the certificate says what it does."""
    if (version := installed()) is None:
        return "not measured with transformers, which is not installed"
    again = _stated(subject, certificate, found, _with_transformers(subject, certificate.target))
    check_runtime(certificate, subject.model.dtype, again, found)
    for stated in certificate.runtime:
        if stated.transformers is not None:
            _require_agreement(stated, again)
    return (
        f"transformers {version} in {again.dtype}: scores within a relative {again.score_error} of "
        f"the enclosures, probabilities within {again.probability_error}"
    )


def _require_agreement(stated: Runtime, again: Runtime) -> None:
    """Rejects numbers said to be measured that are not, to twice the errors that are stated.

    Machines round apart, and each may be off from the real number by the stated error.
    """
    pairs: list[tuple[str, Decimal, Decimal, Decimal]] = []
    for layer, (said, found) in enumerate(zip(stated.scores, again.scores, strict=True)):
        for end in ("low", "high"):
            old, new = getattr(said, end), getattr(found, end)
            pairs.append((f"{end} score of layer {layer}", old, new, stated.score_error * new))
    for name in ("probability_with", "probability_without"):
        old, new = getattr(stated, name), getattr(again, name)
        pairs.append((name, old, new, stated.probability_error))
    for what, old, new, error in pairs:
        if abs(old - new) > 2 * error:
            raise Rejection("runtime", f"{stated.dtype}: {what} was {old}, measured again {new}")


def _require_measurable(subject: Subject) -> None:
    """Raises OutOfResources if torch takes too much memory for the longest sequence."""
    config, last = subject.model.config, subject.model.layers[-1]
    answers = ((*r.choices, r.label, r.distractor) for r in subject.data.rows)
    longest = max(
        len(row.prompt) + max(map(len, some)) + 1
        for row, some in zip(subject.data.rows, answers, strict=True)
    )
    streams = (config.layers + 3) * config.width + 3 * len(last.active)
    heads = 3 * config.heads * (longest + config.head_dim)
    require("activations", 8 * longest * (streams + heads), ACTIVATION_BYTES)


# Producing


@_typed_errors()
def certify(
    folder: Path, data_path: Path | None = None, progress: Progress = silent
) -> Certificate:
    """Proves the claims about a counterexample folder, and states them.

    Raises:
        FileError: a file is not what its format says.
        Rejection: something cannot be certified; the claim is named.
        OutOfResources: the largest precision does not decide, or something is beyond a limit.
    """
    claim = claim_of(folder)
    subject = read_subject(folder, data_path or folder / DATASET)
    if claim.layers != subject.model.config.layers:
        raise FileError(f"{folder}: config.json and snowball.json disagree about the layers")
    found, draft = _until_decided(
        claim.layers, lambda effort: _prove(subject, claim, effort, progress)
    )
    measured = [
        _measured(subject, draft.target, dtype)
        for dtype in dict.fromkeys((subject.model.dtype, "float64"))
    ]
    if installed() is not None:
        measured.append(_with_transformers(subject, draft.target))
    runtime = tuple(_stated(subject, draft, found, one) for one in measured)
    certificate = replace(draft, runtime=runtime)
    for one in runtime:
        check_runtime(certificate, subject.model.dtype, one, found)
    return certificate


def _prove(
    subject: Subject, claim: Claim, effort: Effort, progress: Progress
) -> tuple[Enclosures, Certificate]:
    """Enclosures, and a certificate of them, checked, that lacks the runtime claims only."""
    from snowball.certificates.enclosure import Place, enclose

    epsilon, target, row = claim.epsilon, claim.target, claim.switch
    columns = list(subject.model.layers[target].down.row(row))
    if len(columns) != 1:
        raise Rejection(
            "existence", f"{len(columns)} hidden units of layer {target} write the switch, not one"
        )
    place = Place(target, row, columns[0][0])
    existence = _existence(subject.model, place, Fraction(epsilon), effort)
    low, high = Fraction(existence.low), Fraction(existence.high)
    found = enclose(subject.model, subject.data, place, low, high, effort, progress)
    draft = _claims(subject, epsilon, existence, found, target, hard=effort.pieces > 1)
    check_claims(draft, subject, found)
    return found, draft


def _existence(model: ExactModel, place: Place, epsilon: Fraction, effort: Effort) -> Existence:
    """An interval around the shipped weight and the one that solves, with a sixteenth to spare."""
    from snowball.certificates.enclosure import shipped_weight, solve

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
    subject: Subject,
    epsilon: Decimal,
    existence: Existence,
    found: Enclosures,
    target: int,
    *,
    hard: bool,
) -> Certificate:
    """Raises Undecided where (e) or (f) cannot be claimed, unless it was tried hard."""
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
        weights_sha256=sha256_of(subject.folder / WEIGHTS, WEIGHT_BYTES),
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
        everywhere=_everywhere(exact + away, found),
        divergence=_divergence(exact, found, hard=hard),
        margin_others=_margin_others(found, hard=hard),
        runtime=(),
    )


# What bounds at every input are claimed with: a share to spare, as each checker has its own bounds.
_SPARE = Fraction(1, 16)


def _everywhere(epsilon: Fraction, found: Enclosures) -> Decimal:
    low = found.everywhere.low
    spare = max(abs(low - epsilon), Fraction(1, 10**9)) * _SPARE
    return _down(low - spare, _magnitude(spare) - 2)


def _divergence(epsilon: Fraction, found: Enclosures, *, hard: bool) -> Divergence | None:
    """What (e) says for epsilon <= 1/2."""
    if epsilon > Fraction(1, 2):
        return None
    ratio = min(b.low / a.high for a, b in pairwise(found.divergences))
    kept = float(1 - _SPARE)
    growth = Decimal(repr(1 + (math.sqrt(float(ratio)) - 1) * kept)) if ratio > 0 else Decimal(0)
    last = math.sqrt(float(max(found.divergences[-1].low, 0)))
    end = Decimal(f"{0.5 + (last - 0.5) * kept:.4g}")
    if 1 < Fraction(growth) ** 2 < ratio and end > Decimal("0.5"):
        return Divergence(growth, end)
    # Runs that stay apart by the same are no case of (e), whatever the effort.
    open_ = all(b.high > a.low for a, b in pairwise(found.divergences))
    if open_ and not hard:
        raise Undecided("the divergence is not certain to grow")
    return None


def _margin_others(found: Enclosures, *, hard: bool) -> Decimal | None:
    least = found.margin_others
    if least is None:
        return None
    if least.low > 0:
        return _less(least.low * (1 - _SPARE))
    if least.high > 0 and not hard:
        raise Undecided("the margins without another layer are open")
    return None


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
    from snowball.certificates.enclosure import probability

    certain = probability(Fraction(margin), vocabulary)
    # Decimals have 28 digits: beyond, a nine less than all of them.
    return min(1 - _more(1 - certain.low), 1 - Decimal("1e-28"))


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
        dtype=str(dtype),  # plain text, as in the file
        torch=str(torch.__version__),
        transformers=None,
        scores=tuple(Bounds(_float(s.cosine.least), _float(s.cosine.largest)) for s in scores),
        probability_with=_float(intact.least_probability_label),
        probability_without=_float(without.least_probability_distractor),
        score_error=Decimal(0),
        probability_error=Decimal(0),
    )


def _with_transformers(subject: Subject, target: int) -> Runtime:
    """What `transformers` computes from the folder, with no errors stated."""
    import torch

    dtype = loaded_as(subject.model.dtype)
    found = run(subject.folder, subject.data, subject.model.config.bos, target, dtype)
    return Runtime(
        dtype=dtype,
        torch=str(torch.__version__),
        transformers=installed(),
        scores=tuple(Bounds(_float(least), _float(largest)) for least, largest in found.scores),
        probability_with=_float(found.probability_with),
        probability_without=_float(found.probability_without),
        score_error=Decimal(0),
        probability_error=Decimal(0),
    )


def _decoder(config: DecoderConfig, weights: Mapping[str, Tensor]) -> Decoder:
    try:
        return Decoder(config, weights)
    except ValueError as error:
        raise FileError(f"the decoder cannot be run: {error}") from None


def _widened(weight: Tensor) -> Tensor:
    """The weight in float64; pages of zeros stay unwritten."""
    import torch

    wide = torch.zeros(weight.shape, dtype=torch.float64)
    rows = weight.reshape(len(weight), -1).any(1).nonzero().flatten()
    wide[rows] = weight[rows].double()
    return wide


def _float(number: float) -> Decimal:
    return Decimal(repr(number))


def _stated(subject: Subject, draft: Certificate, found: Enclosures, measured: Runtime) -> Runtime:
    """What torch measured, with errors of four times what it took, since machines round apart."""
    # transformers computes RMSNorm in float32 in any case.
    dtype = measured.dtype if measured.transformers is None else "float32"
    needed = Fraction(0)
    for layer, (bounds, score) in enumerate(zip(measured.scores, found.scores, strict=True)):
        least, largest = (found.shipped,) * 2 if layer == draft.target else score
        below = 1 - Fraction(bounds.low) / least.low
        needed = max(needed, below, Fraction(bounds.high) / largest.high - 1)
    short = max(
        Fraction(draft.probability_with) - Fraction(measured.probability_with),
        Fraction(draft.probability_without) - Fraction(measured.probability_without),
    )
    return replace(
        measured,
        score_error=_error(needed, dtype, SCORE_ERROR),
        probability_error=_error(short, dtype, PROBABILITY_ERROR),
    )


def _error(needed: Fraction, dtype: str, largest: Mapping[str, Decimal]) -> Decimal:
    """Four times what is needed, or the resolution of the dtype; at most what may be stated."""
    return min(_more(4 * max(needed, _RESOLUTION[dtype])), largest[dtype])
