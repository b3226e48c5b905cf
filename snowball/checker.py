"""Checks a certificate of a built counterexample with the Python standard library alone.

    python -I checker.py CERTIFICATE DIR DATA

Prints one line; exit status 0 PASS, 1 REJECT (claim, value, bound), 2 MALFORMED, 3 OUT OF RESOURCES.
Weights are the exact dyadic numbers of the file, the model is a function of real numbers, and every
real number is enclosed in a `Ball` of integers. Only certain comparisons count; where balls are too
wide the precision doubles, up to `ATTEMPTS` attempts.

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
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache, reduce
from operator import add, mul
from types import SimpleNamespace
from typing import Any, BinaryIO

ATTEMPTS = 6
VERDICTS = ["PASS", "REJECT", "MALFORMED", "OUT OF RESOURCES"]
PASS, REJECT, MALFORMED, RESOURCES = range(4)
# Limits: bytes of a JSON text, of the weights, of a read, of the nonzero rows; sizes of the model;
# tokens of all sequences together.
TEXT, FILE, CHUNK, HELD, SIZE, TOKENS = 1 << 24, 1 << 36, 1 << 20, 1 << 30, 1 << 20, 1 << 26


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
        """A rational, or what a double is exactly: `2^p n/d` rounded down."""
        n, d = number.as_integer_ratio()
        return cls((n << p) // d, 1, p)

    def ends(self) -> tuple[int, int]:
        return self.m - self.r, self.m + self.r

    def at(self, p: int) -> Ball:
        """At another precision: exact if it grows, else both parts are rounded."""
        lost = self.p - p
        if lost <= 0:
            return Ball(self.m << -lost, self.r << -lost, p)
        return Ball(self.m >> lost, (self.r >> lost) + 2, p)

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

    def times(self, weight: float) -> Ball:
        """Times n/d, what a double is exactly; both parts are rounded."""
        n, d = weight.as_integer_ratio()
        return Ball(self.m * n // d, self.r * abs(n) // d + 2, self.p)

    def inverse(self) -> Ball:
        """1/x of x > 0 decreases: its values at the ends, rounded outward."""
        low, high = self.ends()
        if low <= 0:
            raise Undecided("a divisor is not certainly positive")
        return Ball.between((1 << 2 * self.p) // high, (1 << 2 * self.p) // low + 1, self.p)

    def sqrt(self) -> Ball:
        """The root of x > 0 increases, and `isqrt(n) <= sqrt(n) < isqrt(n) + 1` for n = 2^p ends."""
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
            terms, k, q = _taylor(self.m, self.p)
            power = Ball(sum(terms), 2 * len(terms) + 1, q)
            for _ in range(k):
                power = power * power
            power = power.at(self.p)
        return power.widened(((power.m + power.r) * 2 * self.r >> self.p) + 1)

    def sigmoid(self) -> Ball:
        """`1/(1 + e^-x)` at m, by way of e^-|m|; widened by r/4, as its slope is at most 1/4."""
        power = Ball(-abs(self.m), 0, self.p).exp()
        value = (power + Ball.of(1, self.p)).inverse()
        return (value if self.m >= 0 else power * value).widened((self.r >> 2) + 1)

    def cos_sin(self) -> tuple[Ball, Ball]:
        """cos and sin at m, widened by r, as their slopes are at most 1.

        Taylor sums at m/2^k, then k times `cos 2y = 1 - 2 sin^2 y` and `sin 2y = 2 sin y cos y`.
        """
        terms, k, q = _taylor(self.m, self.p)
        error, one = 2 * len(terms) + 1, Ball.of(1, q)
        cos = Ball(sum(terms[0::4]) - sum(terms[2::4]), error, q)
        sin = Ball(sum(terms[1::4]) - sum(terms[3::4]), error, q)
        for _ in range(k):
            cos, sin = one - sin * (sin + sin), sin * (cos + cos)
        return cos.at(self.p).widened(self.r), sin.at(self.p).widened(self.r)


def _taylor(m: int, p: int) -> tuple[list[int], int, int]:
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
    """`theta^(-m/half)` for m < half: powers of a root y, the largest integer with

    `y^half <= N = floor(2^(p half)/theta)`. So `y <= 2^p theta^(-1/half) < y + 1`, because the integer
    `(y + 1)^half > N` exceeds what N was rounded from. Bisection keeps low^half <= N < high^half.
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


def hull(balls: Sequence[Ball]) -> Ball:
    ends = [ball.ends() for ball in balls]
    return Ball.between(min(a for a, _ in ends), max(b for _, b in ends), balls[0].p)


Stream = dict[int, Ball]  # by coordinate; others are zero
Exact = tuple[int, list[tuple[int, int]]]  # e and (column, n): weights n/2^e


def dot(row: Exact, x: Stream, p: int) -> Ball:
    """`sum n/2^e x_c`: exact, then both parts are rounded."""
    terms = [(n, x[c]) for c, n in row[1] if c in x]
    r = sum(abs(n) * b.r for n, b in terms)
    return Ball(sum(n * b.m for n, b in terms) >> row[0], (r >> row[0]) + 2, p)


def inner(x: Stream, y: Stream, p: int) -> Ball:
    """`sum x_c y_c`, as the product of balls, but rounded once."""
    pairs = [(a, y[c]) for c, a in x.items() if c in y]
    r = sum(abs(a.m) * b.r + abs(b.m) * a.r + a.r * b.r for a, b in pairs)
    return Ball(sum(a.m * b.m for a, b in pairs) >> p, (r >> p) + 2, p)


def plus(x: Stream, y: Stream) -> Stream:
    return {**x, **{c: x[c] + b if c in x else b for c, b in y.items()}}


def cosine_score(square: Ball, product: Ball, after: Ball) -> Ball:
    """`1 - (|x|^2 + x.w) / (|x| |x + w|)`, from |x|^2, x.w and |x + w|^2."""
    cosine = (square + product) * (square * after).inverse().sqrt()
    return Ball.of(1, square.p) - cosine


# Many products at once (Kronecker substitution)


def pack(values: Iterable[int], width: int) -> int:
    """`sum v_i B^i` with B = 2^(8 width) and |v_i| < B/2, by way of the digits v_i + B/2."""
    digits = [(v + (1 << 8 * width - 1)).to_bytes(width, "little") for v in values]
    return int.from_bytes(b"".join(digits), "little") - _halves(len(digits), width)


def unpack(packed: int, width: int, count: int) -> list[int]:
    """The v_i: `v_i + B/2` are the digits of `sum v_i B^i + sum B/2 B^i`, and digits are unique.

    Integer combinations of packed integers are packed combinations, while |v_i| < B/2 holds.
    """
    digits = (packed + _halves(count, width)).to_bytes(width * count, "little")
    cuts, half = range(0, width * count, width), 1 << 8 * width - 1
    return [int.from_bytes(digits[i : i + width], "little") - half for i in cuts]


@lru_cache(maxsize=16)
def _halves(count: int, width: int) -> int:
    return int.from_bytes((bytes(width - 1) + b"\x80") * count, "little")


class Packed:
    """Rows of a matrix, to be multiplied by streams with one integer product per column."""

    def __init__(self, rows: Sequence[dict[int, float]], bits: int, size: int) -> None:
        """Weights g are `2^scale g` rounded to less than 2^bits, streams are to less than 2^size."""
        self.columns = sorted({c for row in rows for c in row})
        top = max((abs(v) for row in rows for v in row.values()), default=1.0)
        self.count, self.size, self.scale = len(rows), size, bits - math.frexp(top)[1]
        self.width = (bits + size + len(self.columns).bit_length() + 1) // 8 + 1
        self.packed, self.largest = [], []
        for c in self.columns:
            # ldexp is exact, or yields less than 1; int() errs by less than 1.
            weights = [int(math.ldexp(row.get(c, 0.0), self.scale)) for row in rows]
            self.packed.append(pack(weights, self.width))
            self.largest.append(max(map(abs, weights)))
        exact = (math.ldexp(v, self.scale).is_integer() for row in rows for v in row.values())
        self.slack = 0 if all(exact) else 1

    def product(self, x: Stream, p: int) -> tuple[list[int], int, int]:
        """Integers f_i, e, t with `|2^t sum_c g_ic x_c - f_i| <= e`.

        With `2^scale g = n + d`, |d| <= slack, and `2^(p-s) x_c = k_c + z`, |z| <= z_c, the error of
        `f = sum n k` is `sum (n + d) z + d k`, at most `sum (largest + slack) z_c + slack |k_c|`. As
        |n| < 2^bits and |k| <= 2^size, `|f| < columns 2^(bits + size) < 2^(8 width - 1)`.
        """
        balls = [x.get(c, Ball(0, 0, p)) for c in self.columns]
        s = max(0, max((abs(b.m).bit_length() for b in balls), default=0) - self.size)
        k = [b.m >> s for b in balls]
        e = sum(
            (n + self.slack) * ((b.r >> s) + 2) for n, b in zip(self.largest, balls, strict=True)
        )
        found = unpack(sum(map(mul, self.packed, k)), self.width, self.count)
        return found, e + self.slack * sum(map(abs, k)), self.scale + p - s


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

    def refuse(what: str) -> Any:
        raise ValueError(f"{what:.30} is refused")

    def integer(digits: str) -> int:
        return int(digits) if len(digits) <= 20 else refuse(digits)

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
    if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if kind is str and isinstance(value, str) or kind is int and type(value) is int and value >= 0:
        return value
    wanted = getattr(kind, "__name__", [*kind] if isinstance(kind, dict) else kind)
    raise Verdict(MALFORMED, f"{where} must be {wanted}, not {value!r:.60}")


HASH = re.compile("[0-9a-f]{64}")
BOUNDS = {"low": Fraction, "high": Fraction}
# What torch may be stated to have erred by: relative for scores, absolute for probabilities.
ERRORS = {
    "float64": (Fraction("1e-12"), Fraction("1e-3")),
    "float32": (Fraction("1e-5"), Fraction("1e-3")),
    "bfloat16": (Fraction("5e-2"), Fraction("2e-2")),
}
PROBABILITIES = {"probability_with": Fraction, "probability_without": Fraction}
RUNTIME = {
    "dtype": tuple(ERRORS),
    "torch": str,
    "scores": [BOUNDS],
    **PROBABILITIES,
    "score_error": Fraction,
    "probability_error": Fraction,
}
CERTIFICATE = {
    "format": (1,),
    "theorem": ("thm:snowball",),
    "files": {"config.json": HASH, "model.safetensors": HASH, "dataset": HASH},
    "epsilon": Fraction,
    "target": int,
    "layers": int,
    "examples": int,
    "existence": {"row": int, "column": int, **BOUNDS},
    "scores": [BOUNDS],
    "deviation": Fraction,
    "margin_with": Fraction,
    "margin_without": Fraction,
    **PROBABILITIES,
    "runtime": [RUNTIME],
}
SIZES = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads head_dim"
).split()
CONFIG = {
    **dict.fromkeys([*SIZES, "max_position_embeddings", "bos_token_id", "eos_token_id"], int),
    "architectures": (["LlamaForCausalLM"],),
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "rms_norm_eps": float,
    "rope_theta": float,
    "rope_parameters": {"rope_type": ("default",), "rope_theta": float},
    "attention_dropout": (0, 0.0),
    "use_cache": (True, False),
    **dict.fromkeys(["attention_bias", "mlp_bias", "tie_word_embeddings"], (False,)),
    **dict.fromkeys(["dtype", "torch_dtype"], tuple(ERRORS)),
}
TENSOR = {"dtype": str, "shape": [int], "data_offsets": [int]}
DTYPES = {"BF16": ("bfloat16", 2), "F32": ("float32", 4), "F64": ("float64", 8)}


def read_certificate(path: str) -> SimpleNamespace:
    claims = SimpleNamespace(**conform(parse(read_text(path), path), CERTIFICATE, path))
    if not 0 < len({one["dtype"] for one in claims.runtime}) == len(claims.runtime):
        raise Verdict(MALFORMED, f"{path}: runtime must have entries, of different dtypes")
    for scores in (claims.scores, *(one["scores"] for one in claims.runtime)):
        if len(scores) != claims.layers:
            raise Verdict(MALFORMED, f"{path}: {len(scores)} scores for {claims.layers} layers")
    return claims


def read_config(text: bytes, where: str) -> SimpleNamespace:
    c = SimpleNamespace(**conform(parse(text, where), CONFIG, where))
    sizes, special = [getattr(c, key) for key in SIZES], {c.bos_token_id, c.eos_token_id}
    if (
        min(sizes) < 1
        or c.num_attention_heads % c.num_key_value_heads
        or c.head_dim % 2
        or len(special) < 2
        or max(special) >= c.vocab_size
        or c.rms_norm_eps < 0
        or c.rope_theta <= 0
        or c.rope_theta != c.rope_parameters["rope_theta"]
        or c.dtype != c.torch_dtype
    ):
        raise Verdict(MALFORMED, f"{where}: sizes, ids or constants contradict each other")
    if max(*sizes, c.num_attention_heads * c.head_dim) > SIZE:
        raise Verdict(RESOURCES, f"{where}: a size exceeds {SIZE}")
    return c


class Matrix:
    """The rows of a tensor that are not zero, as bytes; decoded on demand to nonzero entries."""

    def __init__(self, shape: Sequence[int], dtype: str) -> None:
        self.height, self.dtype, self.item = math.prod(shape[:-1]), dtype, DTYPES[dtype][1]
        self.row_bytes = shape[-1] * self.item
        self.rows: dict[int, bytes] = {}

    def row(self, index: int) -> dict[int, float]:
        return {c: v for c, v in enumerate(decode(self.rows.get(index, b""), self.dtype)) if v}

    @lru_cache(maxsize=256)
    def exact(self, index: int) -> Exact:
        ratios = {c: v.as_integer_ratio() for c, v in self.row(index).items()}
        e = max((d.bit_length() - 1 for _, d in ratios.values()), default=0)
        return e, [(c, (n << e) // d) for c, (n, d) in ratios.items()]

    def column(self, index: int) -> list[tuple[int, float]]:
        cut = slice(index * self.item, (index + 1) * self.item)
        return [(r, v) for r, raw in self.rows.items() if (v := decode(raw[cut], self.dtype)[0])]

    def used_columns(self) -> set[int]:
        return {c for index in self.rows for c in self.row(index)}


def decode(raw: bytes, dtype: str) -> tuple[float, ...]:
    """Numbers of one of three formats, each contained in the doubles."""
    if dtype == "BF16":  # the upper half of F32
        upper = bytearray(2 * len(raw))
        upper[2::4], upper[3::4] = raw[0::2], raw[1::2]
        raw = bytes(upper)
    size, code = (8, "d") if dtype == "F64" else (4, "f")
    return struct.unpack(f"<{len(raw) // size}{code}", raw)


ATTENTION, MLP = "input_layernorm", "post_attention_layernorm"
QUERY, KEY, VALUE, OUTPUT = (f"self_attn.{name}_proj" for name in "qkvo")
GATE, UP, DOWN = (f"mlp.{name}_proj" for name in ("gate", "up", "down"))
Layer = dict[str, Matrix]
Place = tuple[int, int, int]  # layer, row and column of a down weight


def tensor_shapes(c: SimpleNamespace) -> dict[str, list[int]]:
    width, units, heads = c.hidden_size, c.intermediate_size, c.num_attention_heads * c.head_dim
    keys, vocabulary = [c.num_key_value_heads * c.head_dim, width], [c.vocab_size, width]
    layer = {ATTENTION: [width], QUERY: [heads, width], KEY: keys, VALUE: keys, MLP: [width]}
    layer |= {
        OUTPUT: [width, heads],
        GATE: [units, width],
        UP: [units, width],
        DOWN: [width, units],
    }
    shapes = {"model.embed_tokens": vocabulary, "model.norm": [width], "lm_head": vocabulary}
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
        digest, held = hashlib.sha256(prefix + text), 0
        tensors = layout(parse(text, path), total - 8 - length, path, config)
        for name, matrix in tensors.items():
            step, zeros = max(1, CHUNK // matrix.row_bytes), bytes(matrix.row_bytes)
            for first in range(0, matrix.height, step):
                chunk = file.read(min(step, matrix.height - first) * matrix.row_bytes)
                digest.update(chunk)
                if chunk == bytes(len(chunk)):
                    continue
                for i in range(len(chunk) // matrix.row_bytes):
                    row = chunk[i * matrix.row_bytes : (i + 1) * matrix.row_bytes]
                    values = () if row == zeros else decode(row, matrix.dtype)
                    if not all(map(math.isfinite, values)):
                        raise Verdict(MALFORMED, f"{path}: {name} holds NaN or infinity")
                    if any(values):  # else zeros, some of them negative
                        matrix.rows[first + i] = row
                        held += len(row) + 128
                if held > HELD:
                    raise Verdict(RESOURCES, f"{path}: nonzero rows exceed {HELD} bytes")
        return tensors, digest.hexdigest()


def layout(header: Any, size: int, path: str, config: SimpleNamespace) -> dict[str, Matrix]:
    """Matrices yet to be filled, in the order of their bytes, which must cover the data exactly."""
    if not isinstance(header, dict) or len(header) > 9 * config.num_hidden_layers + 4:
        raise Verdict(MALFORMED, f"{path}: the header is not that of the tensors of config.json")
    metadata = header.pop("__metadata__", {})
    shapes = tensor_shapes(config)
    found = conform(header, dict.fromkeys(shapes, TENSOR), path)
    end, matrices = 0, {}
    for name, entry in sorted(found.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["shape"] != shapes[name] or DTYPES.get(entry["dtype"], "?")[0] != config.dtype:
            raise Verdict(MALFORMED, f"{path}: shape or dtype of {name} is not that of config.json")
        matrices[name] = Matrix(shapes[name], entry["dtype"])
        start, end = end, end + matrices[name].height * matrices[name].row_bytes
        if entry["data_offsets"] != [start, end]:
            raise Verdict(MALFORMED, f"{path}: {name} overlaps another tensor, or leaves a gap")
    if end != size or not isinstance(metadata, dict):
        raise Verdict(MALFORMED, f"{path}: not as long as its header says")
    return matrices


def read_data(text: bytes, where: str, config: SimpleNamespace) -> list[dict[str, Any]]:
    """Rows of token ids; `wanted` and `instead` are what has to follow a prompt, and its end.

    EOS ends every answer if some label or distractor has more than one token.
    """
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            rows.append(_row(parse(line, f"{where}:{number}"), f"{where}:{number}", config))
    if not rows or len({bool(row["choices"]) for row in rows}) > 1:
        raise Verdict(MALFORMED, f"{where}: no rows, or choices in some rows only")
    several = any(len(answer) > 1 for row in rows for answer in (row["label"], row["distractor"]))
    for row in rows:
        for key, answer in (("wanted", "label"), ("instead", "distractor")):
            row[key] = row[answer] + [config.eos_token_id] * several
    return rows


def _row(entry: Any, where: str, config: SimpleNamespace) -> dict[str, Any]:
    kinds: dict[str, Any] = {"prompt": [int], "label": [int], "distractor": [int]}
    if isinstance(entry, dict) and "choices" in entry:
        kinds["choices"] = [[int]]
    row = {"choices": [], **conform(entry, kinds, where)}
    answers = [row["label"], row["distractor"], *row["choices"]]
    known = set(range(config.vocab_size)) - {config.bos_token_id, config.eos_token_id}
    if any(not known.issuperset(ids) for ids in (row["prompt"], *answers)):
        raise Verdict(REJECT, f"dataset: {where}: BOS, EOS, or an id outside the vocabulary")
    if not all(answers) or row["label"] == row["distractor"]:
        raise Verdict(REJECT, f"dataset: {where}: an empty answer, or the label is the distractor")
    once = row["choices"].count(row["label"]) == 1 and row["distractor"] in row["choices"]
    if row["choices"] and not once:
        raise Verdict(REJECT, f"dataset: {where}: label and distractor must be choices, once")
    return row


# Structure, and the layers before the last


class Model:
    """A decoder of the form that the module docstring describes; anything else is rejected.

    On the `touched` coordinates all embeddings are `common`; squares of the others sum to `rest`.
    """

    def __init__(self, config: SimpleNamespace, tensors: dict[str, Matrix]) -> None:
        self.config, self.embedding = config, tensors["model.embed_tokens.weight"]
        self.norm, self.unembedding = tensors["model.norm.weight"], tensors["lm_head.weight"]
        self.layers: list[Layer] = [{} for _ in range(config.num_hidden_layers)]
        for index, layer in enumerate(self.layers):
            for name in (ATTENTION, QUERY, KEY, VALUE, OUTPUT, MLP, GATE, UP, DOWN):
                layer[name] = tensors[f"model.layers.{index}.{name}.weight"]
        self.touched: set[int] = set()
        for index, layer in enumerate(self.layers[:-1]):
            if layer[OUTPUT].rows and layer[VALUE].rows:
                raise Verdict(REJECT, f"structure: layer {index} attends, but only the last may")
            self.touched.update(layer[DOWN].rows)
            for unit in active_units(layer):
                self.touched.update(layer[GATE].row(unit), layer[UP].row(unit))
        for name in (QUERY, KEY):
            if other := self.layers[-1][name].used_columns() - self.touched:
                raise Verdict(REJECT, f"structure: {name} of the last layer reads {min(other)}")
        for token in range(config.vocab_size):
            e, row = self.embedding.exact(token)
            common = {c: Fraction(n, 1 << e) for c, n in row if c in self.touched}
            rest = Fraction(sum(n * n for c, n in row if c not in self.touched), 1 << 2 * e)
            if token == 0:
                self.common, self.rest = common, rest
            if (common, rest) != (self.common, self.rest):
                raise Verdict(REJECT, f"structure: tokens 0 and {token} differ to the layers")


def active_units(layer: Layer) -> list[int]:
    """Hidden units with a nonzero up row and down column; the others add exactly nothing."""
    return sorted(layer[DOWN].used_columns().intersection(layer[UP].rows))


def inverse_rms(square: Ball, config: SimpleNamespace) -> Ball:
    """`1 / sqrt(|x|^2 / width + eps)`."""
    mean = square * Ball.of(Fraction(1, config.hidden_size), square.p)
    return (mean + Ball.of(config.rms_norm_eps, square.p)).sqrt().inverse()


def scaled(x: Stream, norm: Matrix) -> Stream:
    """The stream times the weights of an RMSNorm."""
    weights = norm.row(0)
    return {c: b if weights[c] == 1 else b.times(weights[c]) for c, b in x.items() if c in weights}


def hidden(layer: Layer, unit: int, normed: Stream, inverse: Ball) -> Ball:
    """`silu(gate) up` of a hidden unit; `normed` lacks the factor `inverse`, 1/rms."""
    gate, up = (inverse * dot(layer[n].exact(unit), normed, inverse.p) for n in (GATE, UP))
    return gate * gate.sigmoid() * up


class Passage:
    """What the layers before the last do to every token: their scores, and the stream after them.

    The down weight at `place` (layer, row, unit) may be another, or one layer removed.
    """

    def __init__(
        self,
        model: Model,
        p: int,
        place: Place | None = None,
        weight: Any = None,
        removed: int = -1,
    ) -> None:
        self.stream = {c: Ball.of(model.common.get(c, 0), p) for c in model.touched}
        self.scores: dict[int, Ball] = {}
        rest = Ball.of(model.rest, p)
        self.square = inner(self.stream, self.stream, p) + rest
        for index, layer in enumerate(model.layers[:-1]):
            if index == removed:
                continue
            inverse, normed = (
                inverse_rms(self.square, model.config),
                scaled(self.stream, layer[MLP]),
            )
            update: Stream = {}
            for unit in active_units(layer):
                value = hidden(layer, unit, normed, inverse)
                for row, entry in layer[DOWN].column(unit):
                    varied = (index, row, unit) == place
                    update = plus(update, {row: value * weight if varied else value.times(entry)})
            product, self.stream = inner(self.stream, update, p), plus(self.stream, update)
            after = inner(self.stream, self.stream, p) + rest
            self.scores[index] = cosine_score(self.square, product, after)
            self.square = after

    def at(self, p: int) -> tuple[Stream, Ball]:
        return {c: b.at(p) for c, b in self.stream.items()}, self.square.at(p)


def passage_over(model: Model, p: int, place: Place, ends: Sequence[Fraction], n: int) -> Passage:
    """The hull of the passages of all weights between two, cut into n parts."""
    cuts = [ends[0] + (ends[1] - ends[0]) * Fraction(i, n) for i in range(n + 1)]
    weights = [
        hull([Ball.of(a, p), Ball.of(b, p)]) for a, b in zip(cuts[:-1], cuts[1:], strict=True)
    ]
    found, *others = [Passage(model, p, place, weight) for weight in weights]
    for one in others:
        found.scores = {i: hull([b, one.scores[i]]) for i, b in found.scores.items()}
        found.stream = {c: hull([b, one.stream[c]]) for c, b in found.stream.items()}
        found.square = hull([found.square, one.square])
    return found


# The last layer


Sequences = list[tuple[tuple[int, ...], set[int]]]


def sequences(rows: Iterable[dict[str, Any]], bos: int, answer: str, every: bool) -> Sequences:
    """Prefixes of BOS, prompt and answer with the tokens that must follow, short prefixes first.

    Those that end before a token of the answer, or every one; each once.
    """
    found: dict[tuple[int, ...], set[int]] = {}
    held = 0
    for row in rows:
        start, tokens = len(row["prompt"]) + 1, (bos, *row["prompt"], *row[answer])
        for end in range(1 if every else start, len(tokens)):
            held += end
            if held > TOKENS:
                raise Verdict(RESOURCES, f"sequences have more than {TOKENS} tokens")
            found.setdefault(tokens[:end], set()).update(
                tokens[end : end + 1] if end >= start else ()
            )
    return sorted(found.items(), key=lambda item: len(item[0]))


class Values:
    """What one key head carries of each token, all coordinates in one integer."""

    def __init__(self, vectors: dict[int, list[Ball]], length: int, p: int) -> None:
        balls = [ball for vector in vectors.values() for ball in vector]
        self.largest, self.radius = max(abs(b.m) for b in balls), max(b.r for b in balls)
        self.p, self.count, self.limit = p, len(balls) // len(vectors), length << p + 2
        self.width = (self.limit.bit_length() + self.largest.bit_length() + 1) // 8 + 1
        self.packed = {t: pack([b.m for b in one], self.width) for t, one in vectors.items()}

    def mixed(self, weights: Sequence[Ball], tokens: Sequence[int]) -> list[Ball]:
        """`sum_D w_D v_D`, for weights and tokens by distance.

        With middles W, V and radii w, v: `|sum (W + w')(V + v') - W V| <= sum |W| v + w (|V| + v)`,
        and `|sum W V| <= limit largest < 2^(8 width - 1)`.
        """
        size, spread = sum(abs(w.m) for w in weights), sum(w.r for w in weights)
        if size > self.limit:
            raise Undecided("attention is too wide")
        error = (size * self.radius + spread * (self.largest + self.radius) >> self.p) + 2
        total = sum(w.m * self.packed[t] for w, t in zip(weights, tokens, strict=True))
        return [Ball(m >> self.p, error, self.p) for m in unpack(total, self.width, self.count)]


class Reader:
    """The last layer and the unembedding, after a passage, for sequences of some tokens.

    Gates of most hidden units are only bounded, and a unit whose gate is certainly below `-silent`
    adds little. Units whose gate reads touched coordinates only are `steady`: always evaluated.
    """

    def __init__(self, model: Model, passage: Passage, attempt: int, found: Sequences) -> None:
        self.model, self.p, self.layer, c = model, 96 << attempt, model.layers[-1], model.config
        self.square = passage.square.at(self.p)
        touched = {i: b.at(self.p) for i, b in passage.stream.items()}
        inverse, embedding = inverse_rms(self.square, c), model.embedding
        self.entering, normed = {}, {}
        for token in {token for tokens, _ in found for token in tokens}:
            own = {i: Ball.of(v, self.p) for i, v in embedding.row(token).items()}
            self.entering[token] = {**own, **touched}
            normed[token] = scaled(self.entering[token], self.layer[ATTENTION])
        self.values = []
        for head in range(c.num_key_value_heads):
            rows = [self.layer[VALUE].exact(i) for i in _block(head, c.head_dim)]
            vectors = {t: [inverse * dot(r, x, self.p) for r in rows] for t, x in normed.items()}
            self.values.append(Values(vectors, len(found[-1][0]), self.p))
        self.scale = inverse * inverse * Ball.of(c.head_dim, self.p).sqrt().inverse()
        self.scores = self._scores(scaled(touched, self.layer[ATTENTION]), len(found[-1][0]))
        self.powers: list[tuple[int, list[Ball]]] = [(0, []) for _ in self.scores]
        self._prepare_units(attempt)
        self.output = [(r, self.layer[OUTPUT].exact(r)) for r in self.layer[OUTPUT].rows]
        self.tokens = sorted(model.unembedding.rows)
        logits = [model.unembedding.row(t) for t in self.tokens]
        self.unembedding = Packed(logits, 64 << attempt, 64 << attempt)

    def _scores(self, normed: Stream, length: int) -> list[list[Ball]]:
        """`scores[head][D] sqrt(head_dim) rms^2`.

        RoPE turns planes (m, m + half) of query and key by position times frequency f_m, so that
        their product is `sum_m Re(q_m conj(k_m) e^(i f_m D))` with q and k read as complex numbers.
        """
        c, p, found = self.model.config, self.p, []
        half, group = c.head_dim // 2, c.num_attention_heads // c.num_key_value_heads
        angles = frequencies(Fraction(c.rope_theta), half, p)
        turns = [[Ball(f.m * d, f.r * d, p).cos_sin() for f in angles] for d in range(length)]
        for head in range(c.num_attention_heads):
            q = [dot(self.layer[QUERY].exact(i), normed, p) for i in _block(head, c.head_dim)]
            k = [
                dot(self.layer[KEY].exact(i), normed, p) for i in _block(head // group, c.head_dim)
            ]
            pairs = [(q[m], q[m + half], k[m], k[m + half]) for m in range(half)]
            planes = [(a * x + b * y, b * x - a * y) for a, b, x, y in pairs]
            found.append([])
            for turn in turns:
                parts = [a * x - b * y for (a, b), (x, y) in zip(planes, turn, strict=True)]
                found[-1].append(reduce(add, parts))
        return found

    def _weights(self, head: int, length: int) -> list[Ball]:
        """By distance: `exp(score - top)` over their sum, where top seems to be the largest score."""
        scores, (top, powers) = self.scores[head], self.powers[head]
        best = max(range(length), key=lambda d: scores[d].m)
        if best != top:
            powers = []
        for d in range(len(powers), length):
            powers.append((self.scale * (scores[d] - scores[best])).exp())
        self.powers[head] = best, powers
        inverse = reduce(add, powers).inverse()
        return [power * inverse for power in powers]

    def _prepare_units(self, attempt: int) -> None:
        gate, up, active = self.layer[GATE], self.layer[UP], active_units(self.layer)
        self.steady = [u for u in active if gate.row(u).keys() <= self.model.touched]
        screened = sorted(set(active).difference(self.steady))
        self.silent, self.parts = 10 << attempt, []
        for i in range(0, len(screened), 512):
            units = screened[i : i + 512]
            rows = [gate.row(u) for u in units]
            self.parts.append((units, Packed(rows, 16, 30 << attempt)))
        kinds: dict[bytes, int] = {}  # one unit stands for all with its up row
        self.like = {u: kinds.setdefault(up.rows[u], u) for u in screened}
        self.down: dict[int, float] = {}  # the largest weights of screened units
        for row in self.layer[DOWN].rows:
            weights = self.layer[DOWN].row(row)
            self.down[row] = max((abs(weights.get(u, 0.0)) for u in screened), default=0.0)

    def read(self, found: Sequences) -> Iterator[tuple[Ball, list[Ball]]]:
        """The score of the layer at the end of each sequence, and the margins of what must follow."""
        c, p, patterns = self.model.config, self.p, []
        group = c.num_attention_heads // c.num_key_value_heads
        for tokens, wanted in found:
            if not patterns or len(patterns[0]) < len(tokens):
                patterns = [self._weights(h, len(tokens)) for h in range(c.num_attention_heads)]
            context: list[Ball] = []
            for head, weights in enumerate(patterns):
                context += self.values[head // group].mixed(weights, tokens[::-1])
            by_column, x = dict(enumerate(context)), self.entering[tokens[-1]]
            attended = {r: dot(row, by_column, p) for r, row in self.output}
            update = plus(attended, self._mlp(plus(x, attended)))
            y = plus(x, update)
            square = inner(y, y, p)
            score = cosine_score(self.square, inner(x, update, p), square)
            yield score, self._margins(y, square, wanted) if wanted else []

    def _mlp(self, x: Stream) -> Stream:
        inverse = inverse_rms(inner(x, x, self.p), self.model.config)
        normed = scaled(x, self.layer[MLP])
        loud, size = self._screen(normed, inverse)
        bound = Ball(0, size, self.p)  # what all other units together multiply down weights by
        update = {row: bound.times(weight) for row, weight in self.down.items()}
        for unit in (*self.steady, *loud):
            value = hidden(self.layer, unit, normed, inverse)
            for row, weight in self.layer[DOWN].column(unit):
                update[row] += value.times(weight)
        return update

    def _screen(self, normed: Stream, inverse: Ball) -> tuple[list[int], int]:
        """Units that may be loud, and a bound on the sum of `|silu(gate) up|` over all others.

        If gate <= -a <= -1, then `|silu(gate)| <= |gate| e^gate <= a e^-a <= a 2^-floor(1.4426 a)`:
        `t e^-t` decreases for t >= 1, and 1.4426 < log2(e). Here a counts in units of 2^-16.
        """
        loud, sums, least, size = [], {}, inverse.m - inverse.r, 0
        for units, packed in self.parts:
            products, error, t = packed.product(normed, self.p)
            # gate <= (f + error) 2^-t inverse, and where f + error < 0 the least inverse counts
            shift = t + self.p - 16
            factor = least << max(0, -shift)
            for unit, f in zip(units, products, strict=True):
                a = -(f + error) * factor >> max(0, shift)
                if a < self.silent << 16:
                    loud.append(unit)
                else:
                    silu = (a << self.p - 16 >> a * 14426 // (10000 << 16)) + 1
                    sums[self.like[unit]] = sums.get(self.like[unit], 0) + silu
        for unit, silu in sums.items():
            up = inverse * dot(self.layer[UP].exact(unit), normed, self.p)
            size += (silu * (abs(up.m) + up.r) >> self.p) + 1
        return loud, size

    def _margins(self, y: Stream, square: Ball, wanted: set[int]) -> list[Ball]:
        """The logit of each wanted token less the largest other one; tokens without a row have 0.

        Logits err by e, so does the largest of them, and their difference by 2 e.
        """
        c, margins = self.model.config, []
        products, e, t = self.unembedding.product(scaled(y, self.model.norm), self.p)
        logits = dict(zip(self.tokens, products, strict=True))
        for token in wanted:
            others = [logit for other, logit in logits.items() if other != token]
            if len({*logits, token}) < c.vocab_size:
                others.append(0)
            f, unit = logits.get(token, 0) - max(others), Fraction(2) ** -t
            ends = [Ball.of((f + sign * 2 * e) * unit, self.p) for sign in (-1, 1)]
            margins.append(hull(ends) * inverse_rms(square, c))
        return margins


def _block(index: int, size: int) -> range:
    return range(index * size, (index + 1) * size)


# Claims


Ends = tuple[Fraction, Fraction]  # of an interval that holds a number


def ends_of(ball: Ball) -> Ends:
    low, high = ball.ends()
    return Fraction(low, 1 << ball.p), Fraction(high, 1 << ball.p)


def shown(ends: Ends) -> str:
    low, high = (f"{Decimal(end.numerator) / end.denominator:.12g}" for end in ends)
    return low if low == high else f"[{low}, {high}]"


def less(claim: str, left: Ends, right: Ends) -> None:
    """Decides `left < right`."""
    if left[1] < right[0]:
        return
    why = f"{claim}: {shown(left)} is not less than {shown(right)}"
    raise Verdict(REJECT, why) if left[0] >= right[1] else Undecided(why)


def within(claim: str, found: Sequence[Ends], bounds: Ends) -> Ends:
    """Decides whether numbers lie between bounds; returns what they all lie in."""
    least = min(low for low, _ in found), min(high for _, high in found)
    largest = max(low for low, _ in found), max(high for _, high in found)
    less(claim, (bounds[0],) * 2, least)
    less(claim, largest, (bounds[1],) * 2)
    return least[0], largest[1]


def probability(margin: Fraction, vocabulary: int, p: int) -> Ends:
    """`1/(1 + (V - 1) e^-margin)`, at least which a token has that leads V - 1 others."""
    others = Ball.of(-margin, p).exp().times(vocabulary - 1)
    return ends_of((others + Ball.of(1, p)).inverse())


def judge(claims: SimpleNamespace, model: Model, rows: list[dict[str, Any]], attempt: int) -> None:
    """Decides all claims that need balls.

    Raises:
        Verdict, Undecided: a claim is certainly false, or open.
    """
    target, place = claims.target, claims.existence
    p, epsilon = (64 + 25 * claims.layers) << attempt, (claims.epsilon,) * 2
    where, ends = (target, place["row"], place["column"]), (place["low"], place["high"])
    entry = dict(model.layers[target][DOWN].column(where[2])).get(where[1], 0.0)
    if not (ends[0] < entry < ends[1] and entry != 0):
        raise Verdict(REJECT, f"existence: the weight {entry} is zero or not inside the interval")
    shipped, *at = [Passage(model, p, where, Ball.of(w, p)) for w in (entry, *ends)]
    first, second = sorted((ends_of(one.scores[target]) for one in at), key=sum)
    less("existence: score at an end against epsilon", first, epsilon)
    less("existence: epsilon against the score at an end", epsilon, second)
    whole = passage_over(model, p, where, ends, min(4**attempt, 64))
    goal, score = ends_of(whole.scores[target]), ends_of(shipped.scores[target])
    bounds = (claims.epsilon - claims.deviation, claims.epsilon + claims.deviation)
    within(f"deviation: score of layer {target}", [score], bounds)
    scores = {target: within(f"score of layer {target}", [score], interval(claims.scores[target]))}
    for layer in set(whole.scores) - {target}:
        found = [ends_of(one.scores[layer]) for one in (whole, shipped, *at)]
        scores[layer] = within(f"score of layer {layer}", found, interval(claims.scores[layer]))
        less(f"score of layer {target} against layer {layer}", goal, scores[layer])
        less(f"epsilon against the score of layer {layer}", epsilon, scores[layer])
    passages = {"with": whole, "without": Passage(model, p, removed=target)}
    for name, answer in (("with", "wanted"), ("without", "instead")):
        found = sequences(rows, model.config.bos_token_id, answer, name == "with")
        read = list(Reader(model, passages[name], attempt, found).read(found))
        if name == "with":
            last, lasts = claims.layers - 1, [ends_of(one) for one, _ in read]
            scores[last] = within(f"score of layer {last}", lasts, interval(claims.scores[last]))
            less(f"score of layer {target} against layer {last}", goal, scores[last])
            less(f"epsilon against the score of layer {last}", epsilon, scores[last])
        margins = [ends_of(margin) for _, some in read for margin in some]
        margin = min(low for low, _ in margins), min(high for _, high in margins)
        judge_answers(claims, name, margin, rows, model.config.vocab_size)
    for measured in claims.runtime:
        judge_runtime(claims, measured, scores, model.config.dtype)


def interval(bounds: dict[str, Fraction]) -> Ends:
    return bounds["low"], bounds["high"]


def judge_answers(
    claims: SimpleNamespace, name: str, margin: Ends, rows: list[dict[str, Any]], vocabulary: int
) -> None:
    """Decides the claims about the least margin of an answer.

    A label of m tokens has at least the probability p^m. Another choice first differs from it at
    some token, and has at most the probability 1 - p of that token (a choice that begins another
    one differs from it in EOS, which then counts).
    """
    claimed, p = getattr(claims, f"margin_{name}"), getattr(claims, f"probability_{name}")
    less(f"margin_{name} against zero", (Fraction(0),) * 2, (claimed,) * 2)
    less(f"margin_{name}", (claimed,) * 2, margin)
    low, high = (probability(end, vocabulary, 128) for end in margin)
    less(f"probability_{name}", (p,) * 2, (low[0], high[1]))
    longest = max(len(row[key]) for row in rows for key in ("wanted", "instead"))
    if rows[0]["choices"]:
        less(f"choices by probability_{name}", (1 - p,) * 2, (max(p, Fraction(0)) ** longest,) * 2)


def judge_runtime(
    claims: SimpleNamespace, measured: dict[str, Any], scores: dict[int, Ends], dtype: str
) -> None:
    """Rejects measurements outside the enclosures widened by the stated errors, or larger errors."""
    name, errors = measured["dtype"], (measured["score_error"], measured["probability_error"])
    if name not in (dtype, "float64"):
        raise Verdict(REJECT, f"runtime: {name} is neither float64 nor {dtype}")
    for error, largest in zip(errors, ERRORS[name], strict=True):
        if not 0 <= error <= largest:
            raise Verdict(REJECT, f"runtime: {name} states the error {error}, not in 0..{largest}")
    for layer, (low, high) in scores.items():
        bounds, allowed = (
            interval(measured["scores"][layer]),
            (low * (1 - errors[0]), high * (1 + errors[0])),
        )
        if not allowed[0] <= bounds[0] <= bounds[1] <= allowed[1]:
            why = f"runtime: {name}: layer {layer} scored {shown(bounds)}, not within {shown(allowed)}"
            raise Verdict(REJECT, why)
    for key in PROBABILITIES:
        least = getattr(claims, key) - errors[1]
        if not least <= measured[key] <= 1:
            raise Verdict(REJECT, f"runtime: {name}: {key} {measured[key]} is not in {least}..1")


def check(certificate: str, folder: str, data: str) -> str:
    """Decides everything; returns a line about it.

    Raises:
        Verdict: anything but PASS.
    """
    claims = read_certificate(certificate)
    texts = [read_text(os.path.join(folder, "config.json")), read_text(data)]
    config = read_config(texts[0], "config.json")
    tensors, digest = read_weights(os.path.join(folder, "model.safetensors"), config)
    rows = read_data(texts[1], data, config)
    hashes = [hashlib.sha256(text).hexdigest() for text in texts]
    for name, found in (
        ("config.json", hashes[0]),
        ("dataset", hashes[1]),
        ("model.safetensors", digest),
    ):
        if found != claims.files[name]:
            raise Verdict(REJECT, f"files: {name} has SHA-256 {found}, not {claims.files[name]}")
    if (claims.layers, claims.examples) != (config.num_hidden_layers, len(rows)):
        raise Verdict(REJECT, f"files: {config.num_hidden_layers} layers and {len(rows)} rows")
    if not (1 <= claims.target <= claims.layers - 2 and 0 < claims.epsilon < 2):
        raise Verdict(
            REJECT, f"files: target {claims.target}, epsilon {claims.epsilon}: out of range"
        )
    model, why = Model(config, tensors), ""
    for attempt in range(ATTEMPTS):
        try:
            judge(claims, model, rows, attempt)
            return f"{claims.layers} layers, {claims.examples} examples, epsilon {claims.epsilon}"
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
    line = f"{VERDICTS[status]}: {' '.join(why.split())}"
    print(line.encode("ascii", "backslashreplace").decode())
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
