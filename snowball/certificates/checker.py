"""Checks a certificate of a built counterexample with the Python standard library alone.

    python -I checker.py CERTIFICATE DIR DATA

Prints one line and exits with 0 PASS, 1 REJECT (claim, value, bound), 2 MALFORMED or 3 OUT OF
RESOURCES. Weights are the exact dyadic numbers of the file, the model is a function of the reals,
and every real number is enclosed in a `Ball` of integers. Only certain comparisons count; where
balls are too wide the precision doubles, up to `ATTEMPTS` attempts.

Why a few numbers speak of every token of every input: before the last layer nothing attends, and
all embeddings agree on the coordinates which those layers *touch*, and in norm. So one *passage*
(touched coordinates and squared norm) is that of every token. Queries and keys of the last layer
read touched coordinates only, and RoPE makes their products depend on distances only.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
import struct
import sys
from collections.abc import Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache, reduce
from itertools import pairwise
from operator import add
from types import SimpleNamespace
from typing import Any, BinaryIO

ATTEMPTS = 6
PASS, REJECT, MALFORMED, RESOURCES = range(4)
# Limits, which keep memory below a few GiB: bytes of a JSON text, of the weights, of a read, of all
# nonzero rows; sizes of the model; weights packed at a time; tokens of all sequences; bits of the
# balls that are held together.
TEXT, FILE, CHUNK, HELD = 1 << 24, 1 << 36, 1 << 20, 1 << 29
SIZE, WIDTH, BLOCK, TOKENS, BITS = 1 << 20, 1 << 15, 1 << 19, 1 << 26, 1 << 30


class Verdict(Exception):
    """An exit status and why."""


class Undecided(Exception):
    """The present precision is too small."""


# Balls. Proofs count in units of 2^-p. `>>` and `//` round down and so err by less than 1: hence a
# 1 after a radius that is rounded, and another for a middle that is.


class Ball:
    """The reals x with `|2^p x - m| <= r`, for integers m, r >= 0 and p >= 0; operands share p."""

    __slots__ = ("m", "p", "r")

    def __init__(self, m: int, r: int, p: int) -> None:
        self.m, self.r, self.p = m, r, p

    @classmethod
    def between(cls, low: int, high: int, p: int) -> Ball:
        """All of [low, high]: with m the middle rounded down, `m - low <= high - m = r`."""
        m = (low + high) >> 1
        return cls(m, high - m, p)

    @classmethod
    def of(cls, number: Fraction | float, p: int) -> Ball:
        """A rational n/d, or what a double is exactly: `2^p n/d`, rounded down."""
        n, d = number.as_integer_ratio()
        m, rest = divmod(n << p, d)
        return cls(m, 1 if rest else 0, p)

    def ends(self) -> tuple[int, int]:
        return self.m - self.r, self.m + self.r

    def at(self, p: int) -> Ball:
        """At another precision: exact if it grows, else both parts are rounded."""
        more, less = max(0, p - self.p), max(0, self.p - p)
        return Ball(self.m << more >> less, (self.r << more >> less) + (2 if less else 0), p)

    def widened(self, by: int) -> Ball:
        return Ball(self.m, self.r + by, self.p)

    def __add__(self, other: Ball) -> Ball:
        """Exact: `|x + y - (m + n)| <= |x - m| + |y - n|`."""
        return Ball(self.m + other.m, self.r + other.r, self.p)

    def __sub__(self, other: Ball) -> Ball:
        """Exact: `|x - y - (m - n)| <= |x - m| + |y - n|`."""
        return Ball(self.m - other.m, self.r + other.r, self.p)

    def __mul__(self, other: Ball) -> Ball:
        """`x y - m n = m (y - n) + n (x - m) + (x - m)(y - n)`, and two roundings."""
        spread = abs(self.m) * other.r + abs(other.m) * self.r + self.r * other.r
        return Ball(self.m * other.m >> self.p, (spread >> self.p) + 2, self.p)

    def inverse(self) -> Ball:
        """1/x for x > 0 decreases: its values at the ends, rounded outward."""
        low, high = self.ends()
        if low <= 0:
            raise Undecided("a divisor is not certainly positive")
        return Ball.between((1 << 2 * self.p) // high, (1 << 2 * self.p) // low + 1, self.p)

    def sqrt(self) -> Ball:
        """sqrt(x), x > 0, increases; `isqrt(n) <= sqrt(n) < isqrt(n) + 1` for n = 2^p low, high."""
        low, high = self.ends()
        if low <= 0:
            raise Undecided("a square is not certainly positive")
        return Ball.between(math.isqrt(low << self.p), math.isqrt(high << self.p) + 1, self.p)

    def exp(self) -> Ball:
        """e^x for m, r <= 1: e^m, widened by `e^m (e^r - 1) <= 2 r e^m`, as e^r is convex.

        e^m is its Taylor sum at m/2^k, squared k times; below e^-p < 2^-p it lies within 1 of 0.
        """
        if max(self.m, self.r) > 1 << self.p:
            raise Undecided("an exponent is not certainly small")
        power = Ball(0, 1, self.p)
        if self.m >= -self.p << self.p:
            terms, k, q = taylor(self.m, self.p)
            power = Ball(sum(terms), 2 * len(terms) + 1, q)
            for _ in range(k):
                power = power * power
            power = power.at(self.p)
        return power.widened(((power.m + power.r) * 2 * self.r >> self.p) + 1)

    def sigmoid(self) -> Ball:
        """`1/(1 + e^-x)` increases: its values at the ends, by way of e^-|x|."""
        low, high = (Ball(end, 0, self.p) for end in self.ends())
        return Ball.between(low._sigmoid().ends()[0], high._sigmoid().ends()[1], self.p)

    def _sigmoid(self) -> Ball:
        power = Ball(-abs(self.m), 0, self.p).exp()
        value = (power + Ball.of(1, self.p)).inverse()
        return value if self.m >= 0 else power * value

    def cos_sin(self) -> tuple[Ball, Ball]:
        """cos and sin at m, widened by r, as their slopes are at most 1.

        Taylor sums at m/2^k, then k times `cos 2y = 1 - 2 sin^2 y` and `sin 2y = 2 sin y cos y`.
        """
        terms, k, q = taylor(self.m, self.p)
        cos, sin = (sum(terms[i::4]) - sum(terms[i + 2 :: 4]) for i in (0, 1))
        x, y = (Ball(value, 2 * len(terms) + 1, q) for value in (cos, sin))
        for _ in range(k):
            x, y = Ball.of(1, q) - y * (y + y), y * (x + x)
        return x.at(self.p).widened(self.r), y.at(self.p).widened(self.r)


def taylor(m: int, p: int) -> tuple[list[int], int, int]:
    """Integers within 2 of `2^q y^j/j!` for j <= n, where `y = m/2^(p + k)`, |y| <= 2^-8; k; q.

    Errors: e_0 = 0 and `e_j <= |y| e_(j-1)/j + 1 <= 2` (dividing by 2^q, then by j, rounds down
    once). The terms beyond n sum to less than `2 |y|^(n+1) <= 2^(1 - 8(n+1)) < 2^-q`, less than 1.
    """
    k = max(0, abs(m).bit_length() - p) + 8
    q = p + 2 * k + 16
    y, terms = m << q - p - k, [1 << q]
    for j in range(1, q // 8 + 2):
        terms.append((terms[-1] * y >> q) // j)
    return terms, k, q


def frequencies(theta: Fraction, half: int, p: int) -> list[Ball]:
    """`theta^(-m/half)` for m < half, as powers of the first.

    That is a root: with y the largest integer such that `y^half <= N = floor(2^(p half)/theta)`,
    `y <= 2^p theta^(-1/half) < y + 1`, because `(y + 1)^half` is an integer above N. Bisection
    keeps `low^half <= N < high^half`.
    """
    number = (theta.denominator << p * half) // theta.numerator
    low, high = 0, 1 << number.bit_length() // half + 1
    while high - low > 1:
        y = (low + high) >> 1
        low, high = (y, high) if y**half <= number else (low, y)
    powers = [Ball.of(1, p)]
    while len(powers) < half:
        powers.append(powers[-1] * Ball.between(low, low + 1, p))
    return powers


Stream = dict[int, Ball]  # by coordinate, others are zero; also a row of a matrix


def inner(x: Stream, y: Stream, p: int) -> Ball:
    """`sum x_c y_c`: products of balls, exact, but for one rounding at the end."""
    pairs = [(a, y[c]) for c, a in x.items() if c in y]
    r = sum(abs(a.m) * b.r + abs(b.m) * a.r + a.r * b.r for a, b in pairs)
    return Ball(sum(a.m * b.m for a, b in pairs) >> p, (r >> p) + 2, p)


def plus(x: Stream, y: Stream) -> Stream:
    return {**x, **{c: x[c] + b if c in x else b for c, b in y.items()}}


class Packed:
    """A matrix that multiplies streams by one integer product per column (Kronecker substitution).

    A column v_0, v_1, .. is the integer `sum v_i B^i`. Combinations of such integers are those of
    the columns, and while |v_i| < B/2 the digits of `sum v_i B^i + sum B/2 B^i` are `v_i + B/2`.
    """

    def __init__(self, rows: Sequence[Stream], bits: int, size: int) -> None:
        """Streams are rounded to units of 2^-bits, and must be less than 2^size of them."""
        zero, columns = Ball(0, 0, 0), sorted({c for row in rows for c in row})
        matrix = {c: [row.get(c, zero) for row in rows] for c in columns}
        sizes = {c: max(abs(b.m) for b in column) for c, column in matrix.items()}
        self.bits, self.size, self.count = bits, size, len(rows)
        self.width = (sum(sizes.values()).bit_length() + size) // 8 + 1  # sizes 2^size < B/2
        self.half = 1 << 8 * self.width - 1
        self.halves = self._integer([0] * self.count)
        self.columns = {}
        for c, column in matrix.items():
            packed = self._integer([b.m for b in column]) - self.halves
            self.columns[c] = packed, sizes[c], max(b.r for b in column)

    def _integer(self, values: Sequence[int]) -> int:
        digits = [(v + self.half).to_bytes(self.width, "little") for v in values]
        return int.from_bytes(b"".join(digits), "little")

    def product(self, x: Stream) -> tuple[list[int], int]:
        """`sum_c n_ic k_c` for the middles n of row i and k of x, and what those may err by.

        With radii d and z it is `sum n z + d (k + z)` at most, for the largest n, d of a column.
        """
        total, error = self.halves, 0
        for c, ball in x.items():
            if c in self.columns:
                packed, most, d = self.columns[c]
                k = ball.at(self.bits)
                if abs(k.m) >> self.size:
                    raise Undecided("a number is too large")
                total += packed * k.m
                error += most * k.r + d * (abs(k.m) + k.r)
        digits, w = total.to_bytes(self.width * self.count, "little"), self.width
        cuts = range(0, len(digits), w)
        return [int.from_bytes(digits[i : i + w], "little") - self.half for i in cuts], error


# Files


def open_file(path: str) -> BinaryIO:
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            return open(path, "rb")
    except (OSError, ValueError) as error:
        raise Verdict(MALFORMED, f"cannot read {path}: {error}") from None
    raise Verdict(MALFORMED, f"{path} is not a file")


def read_text(path: str) -> bytes:
    with open_file(path) as file:
        text = file.read(TEXT + 1)
    if len(text) > TEXT:
        raise Verdict(RESOURCES, f"{path} has more than {TEXT} bytes")
    return text


def parse(text: bytes, where: str) -> Any:
    """JSON without duplicate keys, NaN, infinity and integers of more than 20 digits."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return dict(pairs) if len(dict(pairs)) == len(pairs) else refuse("a key twice")

    def integer(digits: str) -> int:
        return int(digits) if len(digits) <= 20 else refuse(digits)

    def refuse(what: str) -> Any:
        raise ValueError(f"{what:.30} is refused")

    hooks: dict[str, Any] = {"object_pairs_hook": unique, "parse_constant": refuse}
    try:
        return json.loads(text.decode("utf-8"), parse_int=integer, **hooks)
    except (ValueError, RecursionError) as error:
        raise Verdict(MALFORMED, f"{where}: {error}") from None


def conform(value: Any, kind: Any, where: str) -> Any:
    """The value if it is of a kind, decimal strings as exact rationals, numbers as doubles.

    Kinds: {key: kind} (exactly these keys), [kind] (lists), tuples (one of these values), patterns,
    `Fraction` (decimal strings), `float` (finite numbers), `int` (natural numbers), `str`.
    """
    if isinstance(kind, dict) and isinstance(value, dict) and value.keys() == kind.keys():
        return {key: conform(value[key], kind[key], f"{where}: {key}") for key in kind}
    if isinstance(kind, list) and isinstance(value, list):
        return [conform(one, kind[0], where) for one in value]
    if isinstance(kind, tuple) and any(type(value) is type(v) and value == v for v in kind):
        return value
    if isinstance(kind, re.Pattern) and isinstance(value, str) and kind.fullmatch(value):
        return value
    if kind is Fraction and isinstance(value, str) and len(value) <= 100:
        decimal = re.fullmatch(r"-?[0-9]+(?:\.[0-9]+)?(?:e(-?[0-9]+))?", value)
        if decimal and abs(int(decimal[1] or 0)) <= 400:
            return Fraction(value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
    if kind is str and isinstance(value, str):
        return value
    if kind is int and type(value) is int and value >= 0:
        return value
    wanted = getattr(kind, "__name__", [*kind] if isinstance(kind, dict) else kind)
    raise Verdict(MALFORMED, f"{where} must be {wanted!s:.200}, not {value!r:.60}")


HASH, VERSION = re.compile("[0-9a-f]{64}"), re.compile(r"[0-9A-Za-z.+_-]{1,40}")
BOUNDS = {"low": Fraction, "high": Fraction}
PROBABILITIES = {"probability_with": Fraction, "probability_without": Fraction}
# What torch may be stated to have erred by: relative for scores, absolute for probabilities.
ERRORS = {
    "float64": (Fraction("1e-12"), Fraction("1e-3")),
    "float32": (Fraction("1e-5"), Fraction("1e-3")),
    "bfloat16": (Fraction("5e-2"), Fraction("2e-2")),
}
RUNTIME = {
    **{"dtype": tuple(ERRORS), "torch": VERSION, "scores": [BOUNDS], **PROBABILITIES},
    **{"score_error": Fraction, "probability_error": Fraction},
}
CERTIFICATE = {
    **{"format": (1,), "theorem": ("thm:snowball",), "target": int, "layers": int, "examples": int},
    "files": {"config.json": HASH, "model.safetensors": HASH, "dataset": HASH},
    "existence": {"row": int, "column": int, **BOUNDS},
    **dict.fromkeys(["epsilon", "deviation", "margin_with", "margin_without"], Fraction),
    **{"scores": [BOUNDS], **PROBABILITIES, "runtime": [RUNTIME]},
}
SIZES = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"]
SIZES += ["num_attention_heads", "num_key_value_heads"]
CONFIG = {
    **dict.fromkeys([*SIZES, "max_position_embeddings", "bos_token_id", "eos_token_id"], int),
    **{"architectures": (["LlamaForCausalLM"],), "model_type": ("llama",), "hidden_act": ("silu",)},
    **{"rms_norm_eps": float, "rope_theta": float, "attention_dropout": (0, 0.0)},
    "rope_parameters": {"rope_type": ("default",), "rope_theta": float},
    **dict.fromkeys(["attention_bias", "mlp_bias", "tie_word_embeddings"], (False,)),
    **{"dtype": tuple(ERRORS), "torch_dtype": tuple(ERRORS), "use_cache": (False, True)},
}
ENTRY = {"dtype": str, "shape": [int], "data_offsets": [int]}
# Of dtypes: the name in a safetensors header, bytes, and letter in `struct` (BF16 is half of F32).
CODES = {"bfloat16": ("BF16", 2, "f"), "float32": ("F32", 4, "f"), "float64": ("F64", 8, "d")}


def read_certificate(path: str) -> SimpleNamespace:
    claims = SimpleNamespace(**conform(parse(read_text(path), path), CERTIFICATE, path))
    if not 0 < len({one["dtype"] for one in claims.runtime}) == len(claims.runtime):
        raise Verdict(MALFORMED, f"{path}: runtime must have entries, of different dtypes")
    if any(len(one["scores"]) != claims.layers for one in (vars(claims), *claims.runtime)):
        raise Verdict(MALFORMED, f"{path}: not as many scores as layers")
    return claims


def read_config(text: bytes, where: str) -> SimpleNamespace:
    c = SimpleNamespace(**conform(parse(text, where), CONFIG, where))
    sizes = [getattr(c, key) for key in SIZES]
    impossible = [
        min(sizes) < 1 or c.num_attention_heads % c.num_key_value_heads or c.head_dim % 2,
        c.bos_token_id == c.eos_token_id or max(c.bos_token_id, c.eos_token_id) >= c.vocab_size,
        c.rms_norm_eps < 0 or c.rope_theta <= 0 or c.dtype != c.torch_dtype,
        c.rope_theta != c.rope_parameters["rope_theta"],
    ]
    if any(impossible):
        raise Verdict(MALFORMED, f"{where}: sizes, ids or constants contradict each other")
    largest = max(*sizes, c.num_attention_heads * c.head_dim)
    if largest > SIZE or c.hidden_size > WIDTH:
        raise Verdict(RESOURCES, f"{where}: a size exceeds {SIZE}, or the hidden size {WIDTH}")
    return c


class Matrix:
    """The rows of a tensor that are not zero, as bytes; decoded on demand to nonzero entries."""

    def __init__(self, shape: Sequence[int], dtype: str) -> None:
        self.code, self.item, self.letter = CODES[dtype]
        self.height, self.row_bytes = math.prod(shape[:-1]), shape[-1] * self.item
        self.rows: dict[int, bytes] = {}

    def decode(self, raw: bytes) -> tuple[float, ...]:
        """Numbers of one of three formats, each contained in the doubles."""
        if self.code == "BF16":  # the upper half of F32
            raw = b"".join(b"\0\0" + raw[i : i + 2] for i in range(0, len(raw), 2))
        return struct.unpack(f"<{len(raw) // struct.calcsize(self.letter)}{self.letter}", raw)

    def row(self, index: int) -> dict[int, float]:
        return {c: v for c, v in enumerate(self.decode(self.rows.get(index, b""))) if v}

    def column(self, index: int) -> dict[int, float]:
        cut = slice(index * self.item, (index + 1) * self.item)
        return {r: v for r, raw in self.rows.items() if (v := self.decode(raw[cut])[0])}

    def used_columns(self) -> set[int]:
        return {c for index in self.rows for c in self.row(index)}


def rounded(row: dict[int, float], p: int) -> Stream:
    return {c: Ball.of(v, p) for c, v in row.items()}


@lru_cache(maxsize=256)
def balls(matrix: Matrix, row: int, p: int) -> Stream:
    return rounded(matrix.row(row), p)


def limit(what: str, count: int, p: int) -> None:
    """Decides whether so many balls may be held at once."""
    if count * p > BITS:
        raise Verdict(RESOURCES, f"{what}: {count} balls of {p} bits are more than {BITS} bits")


def all_balls(matrix: Matrix, p: int) -> dict[int, Stream]:
    found, held = {}, 0
    for index in matrix.rows:
        found[index] = rounded(matrix.row(index), p)
        held += len(found[index])
        limit("a matrix", held, p)
    return found


def tensor_shapes(c: SimpleNamespace) -> dict[str, list[int]]:
    d, n, heads = c.hidden_size, c.intermediate_size, c.num_attention_heads * c.head_dim
    keys, ends = [c.num_key_value_heads * c.head_dim, d], [c.vocab_size, d]
    layer = {
        "input_layernorm": [d],
        "post_attention_layernorm": [d],
        "self_attn.q_proj": [heads, d],
    }
    layer |= {"self_attn.k_proj": keys, "self_attn.v_proj": keys, "self_attn.o_proj": [d, heads]}
    layer |= {"mlp.gate_proj": [n, d], "mlp.up_proj": [n, d], "mlp.down_proj": [d, n]}
    shapes = {"model.embed_tokens": ends, "model.norm": [d], "lm_head": ends}
    for index in range(c.num_hidden_layers):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def read_weights(path: str, config: SimpleNamespace) -> tuple[dict[str, Matrix], str]:
    """The tensors of a safetensors file, and its SHA-256."""
    with open_file(path) as file:
        total, prefix = os.fstat(file.fileno()).st_size, file.read(8)
        length = int.from_bytes(prefix, "little")
        if total > FILE or TEXT < length < total:
            raise Verdict(RESOURCES, f"{path}: more than {FILE} bytes, or {TEXT} of header")
        text = file.read(length) if length < total else b""
        digest, held, header = hashlib.sha256(prefix + text), 0, parse(text, path)
        tensors = layout(header, total - 8 - length, path, config)
        for name, matrix in tensors.items():
            size, step = matrix.row_bytes, max(1, CHUNK // matrix.row_bytes)
            for first in range(0, matrix.height, step):
                chunk = file.read(min(step, matrix.height - first) * size)
                digest.update(chunk)
                for i in range(0, 0 if chunk == bytes(len(chunk)) else len(chunk), size):
                    row = chunk[i : i + size]
                    values = () if row == bytes(size) else matrix.decode(row)
                    if not all(map(math.isfinite, values)):
                        raise Verdict(MALFORMED, f"{path}: {name} holds NaN or infinity")
                    if any(values):  # else zeros, some of them negative
                        matrix.rows[first + i // size] = row
                        held += size + 128
                if held > HELD:
                    raise Verdict(RESOURCES, f"{path}: nonzero rows exceed {HELD} bytes")
        return tensors, digest.hexdigest()


def layout(header: Any, size: int, path: str, config: SimpleNamespace) -> dict[str, Matrix]:
    """Matrices yet to be filled, whose bytes follow each other as the header lists them."""
    found, end = {}, 0
    header = header if isinstance(header, dict) else {}
    header.pop("__metadata__", None)
    wrong = Verdict(MALFORMED, f"{path}: the header is not that of the tensors of config.json")
    if len(header) != 9 * config.num_hidden_layers + 3:  # so many names would take long
        raise wrong
    shapes = tensor_shapes(config)
    entries = conform(header, dict.fromkeys(shapes, ENTRY), path)
    for name in header:
        matrix = found[name] = Matrix(shapes[name], config.dtype)
        start, end = end, end + matrix.height * matrix.row_bytes
        expected = {"dtype": matrix.code, "shape": shapes[name], "data_offsets": [start, end]}
        if entries[name] != expected:
            raise wrong
    if end != size:
        raise wrong
    return found


def read_data(text: bytes, where: str, config: SimpleNamespace) -> list[SimpleNamespace]:
    """Rows of token ids, with what is wanted after a prompt, and instead without the target.

    These are label and distractor, and EOS if one of them has more than one token anywhere.
    """
    kinds: dict[str, Any] = {"prompt": [int], "label": [int], "distractor": [int]}
    rows, special = [], {config.bos_token_id, config.eos_token_id}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        place, entry = f"{where}:{number}", parse(line, f"{where}:{number}")
        more = {"choices": [[int]]} if isinstance(entry, dict) and "choices" in entry else {}
        row = SimpleNamespace(**{"choices": [], **conform(entry, kinds | more, place)})
        answers = [row.label, row.distractor, *row.choices]
        ids = {token for tokens in (row.prompt, *answers) for token in tokens}
        if ids & special or max(ids, default=0) >= config.vocab_size:
            raise Verdict(REJECT, f"dataset: {place}: BOS, EOS or an id outside the vocabulary")
        if not all(answers) or row.label == row.distractor:
            raise Verdict(
                REJECT, f"dataset: {place}: an empty answer, or label and distractor agree"
            )
        if more and (row.choices.count(row.label) != 1 or row.distractor not in row.choices):
            raise Verdict(
                REJECT, f"dataset: {place}: label or distractor not once among the choices"
            )
        rows.append(row)
    if len({bool(row.choices) for row in rows}) != 1:
        raise Verdict(MALFORMED, f"{where}: no rows, or choices in some rows only")
    several = any(len(answer) > 1 for row in rows for answer in (row.label, row.distractor))
    end = [config.eos_token_id] if several else []
    for row in rows:
        row.wanted, row.instead = row.label + end, row.distractor + end
    return rows


# Structure, and the layers before the last


class Model:
    """A decoder of the form that the module docstring describes; anything else is rejected.

    On the `touched` coordinates all embeddings are `common`; squares of the others sum to `rest`.
    """

    def __init__(self, config: SimpleNamespace, tensors: dict[str, Matrix]) -> None:
        self.config, self.embedding = config, tensors["model.embed_tokens.weight"]
        self.norm, self.unembedding = tensors["model.norm.weight"], tensors["lm_head.weight"]
        self.layers = [SimpleNamespace() for _ in range(config.num_hidden_layers)]
        for name, tensor in tensors.items():
            if (parts := name.split("."))[1] == "layers":
                setattr(self.layers[int(parts[2])], parts[-2], tensor)
        self.touched: set[int] = set()
        for layer in self.layers:
            # The other hidden units add exactly nothing.
            layer.active = sorted(layer.down_proj.used_columns().intersection(layer.up_proj.rows))
        for index, layer in enumerate(self.layers[:-1]):
            if layer.o_proj.rows and layer.v_proj.rows:
                raise Verdict(REJECT, f"structure: layer {index} attends, but only the last may")
            self.touched.update(layer.down_proj.rows)
            for unit in layer.active:
                self.touched.update(layer.gate_proj.row(unit), layer.up_proj.row(unit))
        for matrix in (self.layers[-1].q_proj, self.layers[-1].k_proj):
            if other := matrix.used_columns() - self.touched:
                raise Verdict(REJECT, f"structure: the last layer attends by {min(other)}")
        for token in range(config.vocab_size):
            row = {c: Fraction(v) for c, v in self.embedding.row(token).items()}
            common = {c: row.pop(c, Fraction(0)) for c in self.touched}
            rest = Fraction(sum(v * v for v in row.values()))
            if token == 0:
                self.common, self.rest = common, rest
            if (common, rest) != (self.common, self.rest):
                raise Verdict(REJECT, f"structure: the layers tell token {token} from token 0")


def inverse_rms(square: Ball, config: SimpleNamespace) -> Ball:
    """`1 / sqrt(|x|^2 / width + eps)`."""
    mean = square * Ball.of(Fraction(1, config.hidden_size), square.p)
    return (mean + Ball.of(config.rms_norm_eps, square.p)).sqrt().inverse()


def scaled(x: Stream, norm: Matrix) -> Stream:
    """The stream times the weights of an RMSNorm."""
    weights = norm.row(0)
    return {c: b * Ball.of(weights[c], b.p) for c, b in x.items() if c in weights}


def hidden(layer: SimpleNamespace, unit: int, normed: Stream, inverse: Ball) -> Ball:
    """`silu(gate) up` of a hidden unit; `normed` lacks the factor `inverse`, 1/rms."""
    rows = (balls(matrix, unit, inverse.p) for matrix in (layer.gate_proj, layer.up_proj))
    gate, up = (inverse * inner(row, normed, inverse.p) for row in rows)
    return gate * gate.sigmoid() * up


def cosine_score(square: Ball, product: Ball, after: Ball) -> Ball:
    """`1 - (|x|^2 + x.w) / (|x| |x + w|)`, from |x|^2, x.w and |x + w|^2."""
    cosine = (square + product) * (square * after).inverse().sqrt()
    return Ball.of(1, square.p) - cosine


Place = tuple[int, int, int]  # layer, row and column of a down weight


class Passage:
    """What the layers before the last do to every token: their scores, and the stream after them.

    The weight at a place may be another, or one layer removed.
    """

    def __init__(
        self,
        model: Model,
        p: int,
        place: Place | None = None,
        weight: Ball | None = None,
        removed: int | None = None,
    ) -> None:
        self.scores: dict[int, Ball] = {}
        self.stream = {c: Ball.of(value, p) for c, value in model.common.items()}
        self.square = inner(self.stream, self.stream, p) + Ball.of(model.rest, p)
        for index, layer in enumerate(model.layers[:-1]):
            if index == removed:
                continue
            inverse = inverse_rms(self.square, model.config)
            normed = scaled(self.stream, layer.post_attention_layernorm)
            update: Stream = {}
            for unit in layer.active:
                value = hidden(layer, unit, normed, inverse)
                for row, entry in layer.down_proj.column(unit).items():
                    factor = weight if weight and (index, row, unit) == place else Ball.of(entry, p)
                    update = plus(update, {row: value * factor})
            product, self.stream = inner(self.stream, update, p), plus(self.stream, update)
            after = inner(self.stream, self.stream, p) + Ball.of(model.rest, p)
            self.scores[index] = cosine_score(self.square, product, after)
            self.square = after


def hull(parts: Sequence[Ball]) -> Ball:
    ends = [ball.ends() for ball in parts]
    return Ball.between(min(a for a, _ in ends), max(b for _, b in ends), parts[0].p)


def passage_over(
    model: Model, p: int, place: Place, low: Fraction, high: Fraction, n: int
) -> Passage:
    """The hull of the passages of all weights between two, cut into n parts."""
    cuts = [Ball.of(low + (high - low) * Fraction(i, n), p) for i in range(n + 1)]
    parts = (Passage(model, p, place, hull(ends)) for ends in pairwise(cuts))
    found = next(parts)
    for one in parts:
        found.scores = {i: hull([b, one.scores[i]]) for i, b in found.scores.items()}
        found.stream = {c: hull([b, one.stream[c]]) for c, b in found.stream.items()}
        found.square = hull([found.square, one.square])
    return found


# The last layer

Sequences = list[tuple[tuple[int, ...], set[int]]]


def sequences(rows: Sequence[Any], bos: int, answer: str, every: bool) -> Sequences:
    """Prefixes of BOS, prompt and answer with the tokens that must follow, short prefixes first.

    Those that end before a token of the answer, or every one; each once.
    """
    found: dict[tuple[int, ...], set[int]] = {}
    held = 0
    for row in rows:
        start, tokens = len(row.prompt) + 1, (bos, *row.prompt, *getattr(row, answer))
        for end in range(1 if every else start, len(tokens)):
            held += end
            if held > TOKENS:
                raise Verdict(RESOURCES, f"sequences have more than {TOKENS} tokens")
            found.setdefault(tokens[:end], set()).update(tokens[max(end, start) : end + 1])
    return sorted(found.items(), key=lambda item: len(item[0]))


class Reader:
    """The last layer and the unembedding, after a passage.

    Gates of most hidden units are only bounded, and a unit whose gate is certainly below `-silent`
    adds little. Units whose gate reads touched coordinates only are `steady`: always evaluated.
    """

    def __init__(self, model: Model, passage: Passage, attempt: int, found: Sequences) -> None:
        self.model, self.p, self.layer, c = model, 96 << attempt, model.layers[-1], model.config
        self.square = passage.square.at(self.p)
        self.touched = {i: b.at(self.p) for i, b in passage.stream.items()}
        norm, inverse = self.layer.input_layernorm, inverse_rms(self.square, c)
        tokens = sorted({token for sequence, _ in found for token in sequence})
        length, size = len(found[-1][0]), c.num_key_value_heads * c.head_dim
        held = len(tokens) * size + length * (c.num_attention_heads + c.head_dim)
        limit("attention", held, self.p)
        read: list[Stream] = [{} for _ in range(size)]
        for token in tokens:
            normed = scaled(self._entering(token), norm)
            for i, values in enumerate(read):
                row = balls(self.layer.v_proj, i, self.p)
                values[token] = inverse * inner(row, normed, self.p)
        heads = [block(head, c.head_dim) for head in range(c.num_key_value_heads)]
        self.values = [Packed([read[i] for i in some], self.p, self.p + 4) for some in heads]
        self.scale = inverse * inverse * Ball.of(c.head_dim, self.p).sqrt().inverse()
        self.scores = self._scores(scaled(self.touched, norm), length)
        self.powers: list[tuple[int, list[Ball]]] = [(0, []) for _ in self.scores]
        self.output = all_balls(self.layer.o_proj, self.p)
        self.unembedding = all_balls(model.unembedding, self.p)
        self._prepare_units(attempt)

    def _entering(self, token: int) -> Stream:
        return {**balls(self.model.embedding, token, self.p), **self.touched}

    def _scores(self, normed: Stream, length: int) -> list[list[Ball]]:
        """`scores[head][D] sqrt(head_dim) rms^2` at distance D.

        RoPE turns planes (m, m + half) of query and key by position times frequency f_m, so that
        their product is `sum_m Re(q_m conj(k_m) e^(i f_m D))` with q and k read as complex numbers.
        """
        c, p, found = self.model.config, self.p, []
        half, group = c.head_dim // 2, c.num_attention_heads // c.num_key_value_heads
        angles = frequencies(Fraction(c.rope_theta), half, p)
        turns = [[Ball(f.m * d, f.r * d, p).cos_sin() for f in angles] for d in range(length)]
        for head in range(c.num_attention_heads):
            places = [(self.layer.q_proj, head), (self.layer.k_proj, head // group)]
            rows = [[balls(matrix, i, p) for i in block(at, c.head_dim)] for matrix, at in places]
            q, k = ([inner(row, normed, p) for row in some] for some in rows)
            four = [(q[m], q[m + half], k[m], k[m + half]) for m in range(half)]
            planes = [(a * x + b * y, b * x - a * y) for a, b, x, y in four]
            found.append([])
            for turn in turns:
                parts = (planes[m][0] * x - planes[m][1] * y for m, (x, y) in enumerate(turn))
                found[-1].append(reduce(add, parts))
        return found

    def _weights(self, head: int, length: int) -> list[Ball]:
        """By distance: `exp(score - top)` over their sum, where top is about the largest score."""
        scores, (top, powers) = self.scores[head], self.powers[head]
        best = max(range(length), key=lambda d: scores[d].m)
        powers = powers if best == top else []
        for d in range(len(powers), length):
            powers.append((self.scale * (scores[d] - scores[best])).exp())
        self.powers[head] = best, powers
        inverse = reduce(add, powers).inverse()
        return [power * inverse for power in powers]

    def _prepare_units(self, attempt: int) -> None:
        gate, up, down = self.layer.gate_proj, self.layer.up_proj, self.layer.down_proj
        self.silent, q, size, self.parts = 10 << attempt, 8 << attempt, 24 << attempt, []
        active, step = self.layer.active, max(1, BLOCK // self.model.config.hidden_size)
        self.steady = [unit for unit in active if gate.row(unit).keys() <= self.model.touched]
        screened = sorted(set(active).difference(self.steady))
        self.unit = q + size  # products of the packed matrices count in units of 2^-unit
        for units in (screened[i : i + step] for i in range(0, len(screened), step)):
            rows = ([rounded(matrix.row(unit), q) for unit in units] for matrix in (gate, up))
            self.parts.append((units, *(Packed(some, size, size + 8) for some in rows)))
        self.down = {}  # the largest weights of screened units
        for row in down.rows:
            weights = down.row(row)
            largest = max((abs(weights.get(unit, 0.0)) for unit in screened), default=0.0)
            self.down[row] = Ball.of(largest, self.p)

    def read(self, found: Sequences) -> Iterator[tuple[Ball, list[Ball]]]:
        """The score at the end of each sequence, and the margins of what must follow it."""
        c, p, patterns = self.model.config, self.p, []
        group = c.num_attention_heads // c.num_key_value_heads
        for tokens, wanted in found:
            if not patterns or len(patterns[0]) < len(tokens):
                patterns = [self._weights(h, len(tokens)) for h in range(c.num_attention_heads)]
            context: list[Ball] = []
            for head, weights in enumerate(patterns):
                by_token: Stream = {}
                for distance, weight in enumerate(weights):
                    token = tokens[-1 - distance]
                    by_token[token] = by_token[token] + weight if token in by_token else weight
                sums, error = self.values[head // group].product(by_token)
                context += [Ball(f, error, 2 * p).at(p) for f in sums]
            mixed, x = dict(enumerate(context)), self._entering(tokens[-1])
            attended = {r: inner(row, mixed, p) for r, row in self.output.items()}
            update = plus(attended, self._mlp(plus(x, attended)))
            y = plus(x, update)
            square = inner(y, y, p)
            score = cosine_score(self.square, inner(x, update, p), square)
            yield score, self._margins(y, square, wanted) if wanted else []

    def _mlp(self, x: Stream) -> Stream:
        inverse = inverse_rms(inner(x, x, self.p), self.model.config)
        normed = scaled(x, self.layer.post_attention_layernorm)
        loud, size = self._screen(normed, inverse)
        update = {row: Ball(0, size, self.p) * largest for row, largest in self.down.items()}
        for unit in (*self.steady, *loud):
            value = hidden(self.layer, unit, normed, inverse)
            for row, weight in self.layer.down_proj.column(unit).items():
                update[row] += value * Ball.of(weight, self.p)
        return update

    def _screen(self, normed: Stream, inverse: Ball) -> tuple[list[int], int]:
        """Units that may be loud, and a bound on the sum of `|silu(gate) up|` over all others.

        If gate <= -a <= -1, then `|silu(gate)| <= |gate| e^gate <= a e^-a <= a 2^-floor(1.4426 a)`:
        `t e^-t` decreases for t >= 1, and 1.4426 < log2(e). Here a counts in units of 2^-16.
        """
        p, loud, size, least = self.p, [], 0, max(0, inverse.ends()[0])
        for units, packed_gates, packed_ups in self.parts:
            (gates, e), (ups, d) = packed_gates.product(normed), packed_ups.product(normed)
            for i, unit in enumerate(units):
                # At most (gate + e) inverse: where that is negative, the least inverse counts.
                a = -(gates[i] + e) * least >> self.unit + p - 16
                if a < self.silent << 16:
                    loud.append(unit)
                else:
                    silu = (a << p - 16 >> a * 14426 // (10000 << 16)) + 1
                    size += silu * (abs(ups[i]) + d)
        most = Ball(0, (size >> self.unit) + 1, p) * inverse
        return loud, most.r

    def _margins(self, y: Stream, square: Ball, wanted: set[int]) -> list[Ball]:
        """Logits of wanted tokens less the largest other one; tokens without a row have 0."""
        normed, inverse = scaled(y, self.model.norm), inverse_rms(square, self.model.config)
        logits = {t: inner(row, normed, self.p) for t, row in self.unembedding.items()}
        margins, zero = [], Ball(0, 0, self.p)
        for token in wanted:
            others = [logit for other, logit in logits.items() if other != token]
            others += [zero] * (len({*logits, token}) < self.model.config.vocab_size)
            low, high = (max(logit.ends()[i] for logit in others) for i in (0, 1))
            largest = Ball.between(low, high, self.p)
            margins.append((logits.get(token, zero) - largest) * inverse)
        return margins


def block(index: int, size: int) -> range:
    return range(index * size, (index + 1) * size)


# Claims

Ends = tuple[Fraction, Fraction]  # of an interval that holds a number


def ends_of(ball: Ball) -> Ends:
    low, high = ball.ends()
    return Fraction(low, 1 << ball.p), Fraction(high, 1 << ball.p)


def shown(*ends: Fraction) -> str:
    decimals = [f"{Decimal(end.numerator) / end.denominator:.12g}" for end in ends]
    return " to ".join(dict.fromkeys(decimals))


def less(claim: str, left: Ends | Fraction, right: Ends | Fraction) -> None:
    """Decides `left < right`.

    Raises:
        Verdict, Undecided: it is certainly false, or open.
    """
    (a, b), (c, d) = (one if isinstance(one, tuple) else (one, one) for one in (left, right))
    if not b < c:
        why = f"{claim}: {shown(a, b)} is not less than {shown(c, d)}"
        raise Verdict(REJECT, why) if a >= d else Undecided(why)


def within(claim: str, found: Sequence[Ends], low: Fraction, high: Fraction) -> Ends:
    """Decides whether numbers lie between bounds; returns what they all lie in."""
    least = min(a for a, _ in found), min(b for _, b in found)
    largest = max(a for a, _ in found), max(b for _, b in found)
    less(claim, low, least)
    less(claim, largest, high)
    return least[0], largest[1]


def judge_strength(claims: SimpleNamespace, dtype: str) -> None:
    """Decides whether the claims, if true, imply the theorem: (a) to rounding, (b), (c) and (d).

    The others' scores hold for all weights of the interval, and so for the one that gives epsilon.
    """
    allowed = claims.epsilon * ERRORS[dtype][0]
    less(f"deviation against what {dtype} accounts for", claims.deviation, allowed)
    for layer, bounds in enumerate(claims.scores):
        if layer != claims.target:
            name = f"epsilon and deviation against the claim of layer {layer}"
            less(name, claims.epsilon + claims.deviation, bounds["low"])
    for key in PROBABILITIES:
        less(f"0.99 against {key}", Fraction("0.99"), getattr(claims, key))


def judge(claims: SimpleNamespace, model: Model, rows: list[SimpleNamespace], attempt: int) -> None:
    """Decides all claims that need balls."""
    p, target, epsilon = (64 + 25 * claims.layers) << attempt, claims.target, claims.epsilon
    row, column, low, high = (claims.existence[key] for key in ("row", "column", *BOUNDS))
    limit("the layers before the last", len(model.touched) + claims.layers, p)
    entry, where = model.layers[target].down_proj.row(row).get(column, 0.0), (target, row, column)
    if not (low < entry < high and entry != 0):
        raise Verdict(REJECT, f"existence: the weight {entry} is zero, or not inside the interval")
    shipped, *at = [Passage(model, p, where, Ball.of(weight, p)) for weight in (entry, low, high)]
    lower, upper = sorted(ends_of(one.scores[target]) for one in at)
    less("existence: the score at one end against epsilon", lower, epsilon)
    less("existence: epsilon against the score at the other end", epsilon, upper)
    whole = passage_over(model, p, where, low, high, min(4**attempt, 64))
    removed = Passage(model, p, removed=target)
    score, scores = ends_of(shipped.scores[target]), {}
    within("deviation", [score], epsilon - claims.deviation, epsilon + claims.deviation)

    def judge_score(layer: int, found: list[Ends]) -> None:
        bounds = claims.scores[layer].values()
        scores[layer] = within(f"score of layer {layer}", found, *bounds)

    for layer in whole.scores:
        parts = [shipped] if layer == target else [whole, shipped, *at]
        judge_score(layer, [ends_of(one.scores[layer]) for one in parts])
    for passage, name, answer in ((whole, "with", "wanted"), (removed, "without", "instead")):
        found = sequences(rows, model.config.bos_token_id, answer, passage is whole)
        read = list(Reader(model, passage, attempt, found).read(found))
        if passage is whole:
            judge_score(claims.layers - 1, [ends_of(one) for one, _ in read])
        judge_answers(claims, name, [ends_of(one) for _, some in read for one in some], rows, model)
    for measured in claims.runtime:
        judge_runtime(claims, measured, scores, model.config.dtype)


def judge_answers(
    claims: SimpleNamespace, name: str, margins: list[Ends], rows: list[Any], model: Model
) -> None:
    """Decides the claims about the least margin; its token has `p = 1/(1 + (V - 1) e^-margin)`.

    A label of m tokens has at least the probability p^m. Another choice first differs from it at
    some token, and has at most the probability 1 - p of that token. If it begins with the label,
    it differs from it in EOS, or EOS does not count and it is less likely by its further tokens.
    """
    claimed, p = getattr(claims, f"margin_{name}"), getattr(claims, f"probability_{name}")
    least = min(low for low, _ in margins), min(high for _, high in margins)
    less(f"zero against margin_{name}", Fraction(0), claimed)
    less(f"margin_{name}", claimed, least)
    others = [Ball.of(-end, 128).exp() * Ball.of(model.config.vocab_size - 1, 128) for end in least]
    low, high = (ends_of((one + Ball.of(1, 128)).inverse()) for one in others)
    less(f"probability_{name}", p, (low[0], high[1]))
    if rows[0].choices:
        longest = max(len(answer) for row in rows for answer in (row.wanted, row.instead))
        less(f"choices by probability_{name}", 1 - p, p**longest)


def judge_runtime(
    claims: SimpleNamespace, measured: dict[str, Any], scores: dict[int, Ends], dtype: str
) -> None:
    """Rejects what lies outside the enclosures, widened by stated errors, or states larger ones."""
    name, e, f = measured["dtype"], measured["score_error"], measured["probability_error"]
    allowed = 0 <= e <= ERRORS[name][0] and 0 <= f <= ERRORS[name][1]
    if name not in (dtype, "float64") or not allowed:
        raise Verdict(REJECT, f"runtime: {name} of a {dtype} model, or the errors that it states")
    for layer, (low, high) in scores.items():
        least, largest = measured["scores"][layer].values()
        if not low * (1 - e) <= least <= largest <= high * (1 + e):
            raise Verdict(REJECT, f"runtime: {name}: layer {layer}: {shown(least, largest)}")
    for key in PROBABILITIES:
        if not getattr(claims, key) - f <= measured[key] <= 1:
            raise Verdict(REJECT, f"runtime: {name}: {key} {shown(measured[key])}")


def check(certificate: str, folder: str, data: str) -> str:
    """Decides everything.

    Raises:
        Verdict: it is not PASS.
    """
    claims = read_certificate(certificate)
    texts = [read_text(os.path.join(folder, "config.json")), read_text(data)]
    config = read_config(texts[0], "config.json")
    tensors, weights = read_weights(os.path.join(folder, "model.safetensors"), config)
    rows = read_data(texts[1], data, config)
    hashes = [hashlib.sha256(text).hexdigest() for text in texts]
    files = {"config.json": hashes[0], "model.safetensors": weights, "dataset": hashes[1]}
    statement = claims.files, claims.layers, claims.examples
    if statement != (files, config.num_hidden_layers, len(rows)):
        raise Verdict(REJECT, f"files: not those of the certificate: {files}")
    if not (1 <= claims.target <= claims.layers - 2 and 0 < claims.epsilon < 2):
        raise Verdict(REJECT, f"files: target {claims.target} or epsilon {claims.epsilon}")
    judge_strength(claims, config.dtype)
    model, why = Model(config, tensors), ""
    for attempt in range(ATTEMPTS):
        try:
            judge(claims, model, rows, attempt)
            return (
                f"{claims.layers} layers, {len(rows)} examples, epsilon {float(claims.epsilon):g}"
            )
        except Undecided as error:
            why = str(error)
    raise Verdict(RESOURCES, f"undecided at the largest precision: {why}")


def main(arguments: Sequence[str]) -> int:
    """Prints one line and returns the exit status."""
    try:
        if len(arguments) != 3:
            raise Verdict(MALFORMED, "usage: python -I checker.py CERTIFICATE DIR DATA")
        status, why = PASS, check(*arguments)
    except Verdict as verdict:
        status, why = verdict.args
    except (MemoryError, KeyboardInterrupt) as error:
        status, why = RESOURCES, repr(error)
    except Exception as error:
        status, why = REJECT, f"unexpected: {error!r}"
    line = f"{('PASS', 'REJECT', 'MALFORMED', 'OUT OF RESOURCES')[status]}: {why}"
    print(" ".join(line.encode("ascii", "backslashreplace").decode().split()))
    return status


if __name__ == "__main__":  # pragma: no cover
    sys.exit(main(sys.argv[1:]))
