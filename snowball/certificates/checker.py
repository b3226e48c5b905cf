"""Checks a certificate of a built counterexample with the Python standard library alone.

    python -I checker.py CERTIFICATE DIR DATA

Prints one line and exits with 0 PASS, 1 REJECT (claim, value, bound), 2 MALFORMED or 3 OUT OF
RESOURCES. Weights are the exact dyadic numbers of the file, the model is a function of the reals,
and every real number is enclosed in a `Ball` of integers. Only certain comparisons count; where
balls are too wide the precision doubles, up to `ATTEMPTS` attempts.

What PASS says of the model as a function of the reals. At every token of every input: (a) the
target's score is epsilon for a real weight in the stated interval, and within the deviation for the
shipped one; (b) every other score is larger; (e) if it is claimed, the divergence by removing the
target grows at every later layer and ends above 1/2. On the dataset: (c) every answer is right; (d)
without the target every one is the distractor, the tokens wanted after a sequence having at least
the stated probability together; (f) if it is claimed, without any one other layer but the last
every answer is still right.

What it says of `transformers`: it loads the folder, reads nothing there that is not checked here,
and no number that it computes leaves the range of float32 (`Range`). How much it rounds on the way
is not proved; what was measured is taken as it is stated. Tokenizers are not looked at.

Why a few numbers speak of every token of every input: before the last layer nothing attends, and
all embeddings agree on the coordinates which those layers *touch*, and in norm. So one *passage*
(touched coordinates and squared norm) is that of every token. Queries and keys of the last layer
read touched coordinates only, and RoPE makes their products depend on distances only. What the last
layer does at an input that is not in the data is bounded by `Everywhere`.
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
from itertools import chain, combinations, pairwise
from operator import add
from types import SimpleNamespace
from typing import Any, BinaryIO, NamedTuple

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
        For larger r: its values at the ends, as it increases.
        """
        if self.m + (self.r if self.r > 1 << self.p else 0) > 1 << self.p:
            raise Undecided("an exponent is not certainly small")
        if self.r > 1 << self.p:
            low, high = (Ball(end, 0, self.p).exp().ends() for end in self.ends())
            return Ball.between(low[0], high[1], self.p)
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
    """JSON without duplicate keys, NaN, infinity, -0 and integers of more than 20 digits."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return dict(pairs) if len(dict(pairs)) == len(pairs) else refuse("a key twice")

    def integer(digits: str) -> int:
        # Others take -0 for a float: safetensors would not load it.
        return int(digits) if len(digits) <= 20 and digits != "-0" else refuse(digits)

    def refuse(what: str) -> Any:
        raise ValueError(f"{what:.30} is refused")

    hooks: dict[str, Any] = {"object_pairs_hook": unique, "parse_constant": refuse}
    try:
        return json.loads(text.decode("utf-8"), parse_int=integer, **hooks)
    except (ValueError, RecursionError) as error:
        raise Verdict(MALFORMED, f"{where}: {error}") from None


class Maybe(NamedTuple):
    """Null, or a value of a kind."""

    kind: Any


def is_text(value: Any) -> bool:
    """Whether a JSON value is a text that has a UTF-8 form: a lone surrogate has none."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def conform(value: Any, kind: Any, where: str) -> Any:
    """The value if it is of a kind, decimal strings as exact rationals, numbers as doubles.

    Kinds: {key: kind} (exactly these keys), [kind] (lists), tuples (one of these values), patterns,
    `Maybe` (null or a kind), `Fraction` (decimal strings), `float` (finite numbers), `int` (natural
    numbers), `str`.
    """
    if isinstance(kind, Maybe):
        return None if value is None else conform(value, kind.kind, where)
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
    **{"dtype": tuple(ERRORS), "torch": VERSION, "transformers": Maybe(VERSION)},
    **{"scores": [BOUNDS], "score_error": Fraction, "probability_error": Fraction, **PROBABILITIES},
}
FORMAT = 2
CERTIFICATE = {
    "format": (FORMAT,),
    **{"theorem": ("thm:snowball",), "target": int, "layers": int, "examples": int},
    "files": {"config.json": HASH, "model.safetensors": HASH, "dataset": HASH},
    "existence": {"row": int, "column": int, **BOUNDS},
    **dict.fromkeys(["epsilon", "deviation", "margin_with", "margin_without"], Fraction),
    **{"scores": [BOUNDS], **PROBABILITIES, "runtime": [RUNTIME], "everywhere": Fraction},
    "divergence": Maybe({"growth": Fraction, "end": Fraction}),
    "margin_others": Maybe(Fraction),
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
# All that may be in a folder: what transformers reads and is checked here, what it does not read,
# and a tokenizer, of which a certificate says nothing. Anything else might change what
# `from_pretrained` or `generate` do: adapters, other weights, code.
FILES = {"config.json", "model.safetensors", "generation_config.json"}
FILES |= {"snowball.json", "dataset.jsonl", "certificate.json", "answer.json", "questions.jsonl"}
FILES |= {"README.md", "LICENSE", ".gitattributes"}
FILES |= {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
FILES |= {"chat_template.jinja"}
# Ranges of numbers of the config: positions and angles of RoPE are computed in float32.
EPS, THETA, POSITIONS = 1.0, (1.0, 2.0**40), 1 << 24
ENTRY = {"dtype": str, "shape": [int], "data_offsets": [int]}
# Of dtypes: the name in a safetensors header, bytes, and letter in `struct` (BF16 is half of F32).
CODES = {"bfloat16": ("BF16", 2, "f"), "float32": ("F32", 4, "f"), "float64": ("F64", 8, "d")}


def read_certificate(path: str) -> SimpleNamespace:
    entries = parse(read_text(path), path)
    if isinstance(entries, dict) and entries.get("format") == 1:
        why = "format 1 proves less than this checker asks for: certify the folder again"
        raise Verdict(MALFORMED, f"{path}: {why}")
    claims = SimpleNamespace(**conform(entries, CERTIFICATE, path))
    programs = {(one["dtype"], one["transformers"] is None) for one in claims.runtime}
    if not 0 < len(programs) == len(claims.runtime):
        raise Verdict(MALFORMED, f"{path}: runtime must have entries, of different dtypes")
    if any(len(one["scores"]) != claims.layers for one in (vars(claims), *claims.runtime)):
        raise Verdict(MALFORMED, f"{path}: not as many scores as layers")
    return claims


def read_names(folder: str) -> None:
    """Refuses a folder with anything in it that is not known."""
    try:
        found = sorted(entry.name for entry in os.scandir(folder) if not known(entry))
    except (OSError, ValueError) as error:
        raise Verdict(MALFORMED, f"cannot read {folder}: {error}") from None
    if found:
        why = "which might change what from_pretrained or generate do"
        raise Verdict(MALFORMED, f"{folder}: unknown {found[0]!r:.80}, {why}")


def known(entry: os.DirEntry[str]) -> bool:
    return entry.name in FILES and entry.is_file()


def read_generation(folder: str, config: SimpleNamespace) -> None:
    """Refuses anything but greedy decoding up to EOS."""
    path = os.path.join(folder, "generation_config.json")
    if os.path.lexists(path):
        ids = {key: (getattr(config, key),) for key in ("bos_token_id", "eos_token_id")}
        conform(parse(read_text(path), path), {**ids, "do_sample": (False,)}, path)


def read_config(text: bytes, where: str) -> SimpleNamespace:
    entries = parse(text, where)
    c = SimpleNamespace(**conform(entries, CONFIG, where))
    sizes = [getattr(c, key) for key in SIZES]
    impossible = [
        min(sizes) < 1 or c.num_attention_heads % c.num_key_value_heads or c.head_dim % 2,
        c.bos_token_id == c.eos_token_id or max(c.bos_token_id, c.eos_token_id) >= c.vocab_size,
        type(entries["rms_norm_eps"]) is not float,
        c.rope_theta != c.rope_parameters["rope_theta"] or c.dtype != c.torch_dtype,
    ]
    if any(impossible):
        raise Verdict(MALFORMED, f"{where}: sizes, ids or constants contradict each other")
    for name, value, least, most in (
        ("rms_norm_eps", c.rms_norm_eps, 0, EPS),
        ("rope_theta", c.rope_theta, *THETA),
        ("max_position_embeddings", c.max_position_embeddings, 1, POSITIONS),
    ):
        if not least <= value <= most:
            raise Verdict(MALFORMED, f"{where}: {name} {value:g} is not within {least:g}..{most:g}")
    largest = max(*sizes, c.num_attention_heads * c.head_dim)
    if largest > SIZE or c.hidden_size > WIDTH:
        raise Verdict(RESOURCES, f"{where}: a size exceeds {SIZE}, or the hidden size {WIDTH}")
    if c.hidden_size % c.num_attention_heads:
        raise Verdict(MALFORMED, f"{where}: heads do not divide the hidden size")
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


ball_of = lru_cache(maxsize=1 << 14)(Ball.of)  # weights take few values; nobody changes a ball


def rounded(row: dict[int, float], p: int) -> Stream:
    return {c: ball_of(v, p) for c, v in row.items()}


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
    metadata = header.pop("__metadata__", {})
    wrong = Verdict(MALFORMED, f"{path}: the header is not that of the tensors of config.json")
    if not isinstance(metadata, dict) or not all(map(is_text, chain(*metadata.items()))):
        raise wrong  # safetensors would not load it
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
        if len(row.prompt) + max(map(len, answers)) + 2 > config.max_position_embeddings:
            raise Verdict(REJECT, f"dataset: {place}: longer than max_position_embeddings")
        rows.append(row)
    if len({bool(row.choices) for row in rows}) != 1:
        raise Verdict(MALFORMED, f"{where}: no rows, or choices in some rows only")
    pairs = [(row, answer) for row in rows for answer in (row.label, row.distractor)]
    end = [config.eos_token_id] if any(len(answer) > 1 for _, answer in pairs) else []
    # EOS counts for the likelihood of choices where one is a proper prefix of an answer.
    prefixes = ((c, a) for row, a in pairs for c in row.choices if len(c) < len(a))
    scored = end if any(choice == answer[: len(choice)] for choice, answer in prefixes) else []
    for row in rows:
        row.wanted, row.instead, row.scored = row.label + end, row.distractor + end, scored
    return rows


# Structure, and the layers before the last


class Model:
    """A decoder of the form that the module docstring describes; anything else is rejected.

    On the `touched` coordinates all embeddings are `common`; squares of the others sum to `rest`,
    and each lies between those of two rows, `low` and `high`. What adds nothing must be zero.

    Of the last layer: heads write coordinates that are zero before (`attended`), *screened* units
    have gates that read them, and write other coordinates that are zero before (`written`); all
    other units are *steady*, and what they do depends on the norm only.
    """

    def __init__(self, config: SimpleNamespace, tensors: dict[str, Matrix]) -> None:
        self.config, self.embedding = config, tensors["model.embed_tokens.weight"]
        self.norm, self.unembedding = tensors["model.norm.weight"], tensors["lm_head.weight"]
        self.layers = [SimpleNamespace() for _ in range(config.num_hidden_layers)]
        for name, tensor in tensors.items():
            if (parts := name.split("."))[1] == "layers":
                setattr(self.layers[int(parts[2])], parts[-2], tensor)
        self.touched: set[int] = set()
        for index, layer in enumerate(self.layers):
            columns = layer.down_proj.used_columns()
            rows = set(layer.gate_proj.rows), set(layer.up_proj.rows), columns
            layer.active = sorted(set.intersection(*rows))
            if idle := set.union(*rows).difference(layer.active):
                why = f"unit {min(idle)} of layer {index} adds nothing, but has weights"
                raise Verdict(REJECT, f"structure: {why}")
        for index, layer in enumerate(self.layers[:-1]):
            if layer.q_proj.rows or layer.k_proj.rows or layer.v_proj.rows or layer.o_proj.rows:
                raise Verdict(REJECT, f"structure: layer {index} attends, but only the last may")
            self.touched.update(layer.down_proj.rows)
            for unit in layer.active:
                self.touched.update(layer.gate_proj.row(unit), layer.up_proj.row(unit))
        for matrix in (self.layers[-1].q_proj, self.layers[-1].k_proj):
            if other := matrix.used_columns() - self.touched:
                raise Verdict(REJECT, f"structure: the last layer attends by {min(other)}")
        self._read_heads()
        self._read_embedding()
        self._read_units()

    def _read_heads(self) -> None:
        """Values that are not put out, and the heads and keys of such, must be zero."""
        c, last = self.config, self.layers[-1]
        group = c.num_attention_heads // c.num_key_value_heads
        columns = last.o_proj.used_columns()
        places = {j // c.head_dim // group * c.head_dim + j % c.head_dim for j in columns}
        heads = {j // c.head_dim for j in columns}
        idle = {i // c.head_dim for i in last.q_proj.rows} - heads
        deaf = {i // c.head_dim for i in last.k_proj.rows} - {head // group for head in heads}
        if idle or deaf or places != set(last.v_proj.rows):
            raise Verdict(REJECT, "structure: heads that put nothing out have weights")
        self.attended = set(last.o_proj.rows)
        self.marks: dict[int, Marks] = {}

    def _read_embedding(self) -> None:
        low: dict[int, Fraction] = {}
        high: dict[int, Fraction] = {}
        seen: dict[int, int] = {}
        for token in range(self.config.vocab_size):
            row = {c: Fraction(v) for c, v in self.embedding.row(token).items()}
            common = {c: row.pop(c, Fraction(0)) for c in self.touched}
            rest = Fraction(sum(v * v for v in row.values()))
            if token == 0:
                self.common, self.rest = common, rest
            if (common, rest) != (self.common, self.rest):
                raise Verdict(REJECT, f"structure: the layers tell token {token} from token 0")
            for c, v in row.items():
                low[c], high[c] = min(low.get(c, v), v), max(high.get(c, v), v)
                seen[c] = seen.get(c, 0) + 1
        for c, count in seen.items():
            if count < self.config.vocab_size:
                low[c], high[c] = min(low[c], Fraction(0)), max(high[c], Fraction(0))
        self.low, self.high = low, high

    def _read_units(self) -> None:
        last, differ = self.layers[-1], {c for c in self.low if self.low[c] != self.high[c]}
        mixed = last.v_proj.used_columns()
        self.screened, self.steady, self.written = list[int](), list[int](), set[int]()
        moved, up, read = set[int](), set[int](), set[int]()
        for unit in last.active:
            gate = last.gate_proj.row(unit).keys()
            kind, writes = (self.steady, moved)
            if gate & self.attended:
                kind, writes = (self.screened, self.written)
            kind.append(unit)
            writes.update(last.down_proj.column(unit))
            up.update(last.up_proj.row(unit))
            read.update(gate - self.attended)
        read |= up
        fresh = self.attended | self.written
        for what, wrong in (
            ("heads mix, as if it were of tokens, coordinate", mixed & self.touched),
            ("units of the last layer read coordinate", read & differ),
            ("up values read what heads write, at", up & self.attended),
            ("attention and hidden units both write coordinate", self.attended & self.written),
            (
                "what the last layer writes is not zero before, at",
                fresh & (self.touched | {*self.low}),
            ),
            ("units of different kinds write coordinate", fresh & moved),
            ("the last layer changes what differs between tokens, at", moved & differ),
        ):
            if wrong:
                raise Verdict(REJECT, f"structure: {what} {min(wrong)}")

    def box(self, stream: Stream, p: int) -> Stream:
        """All streams that enter the last layer, by coordinate; exact zeros are left out."""
        ends = {c: [Ball.of(self.low[c], p), Ball.of(self.high[c], p)] for c in self.low}
        return nonzero({**{c: hull(some) for c, some in ends.items()}, **stream})


def inverse_rms(square: Ball, config: SimpleNamespace) -> Ball:
    """`1 / sqrt(|x|^2 / width + eps)`."""
    mean = square * Ball.of(Fraction(1, config.hidden_size), square.p)
    return (mean + Ball.of(config.rms_norm_eps, square.p)).sqrt().inverse()


def scaled(x: Stream, norm: Matrix) -> Stream:
    """The stream times the weights of an RMSNorm."""
    weights = norm.row(0)
    return {c: b * Ball.of(weights[c], b.p) for c, b in x.items() if c in weights}


# The range of float32

# transformers computes RMSNorm, RoPE and softmax in float32, whatever the dtype of the model. The
# *scale* of a sum `sum w_c x_c` is `sum |w_c| |x_c|`, with the largest that is certified of each
# |x_c|. It must be 0 or within 2^LOW..2^HIGH. Then no partial sum overflows, and as the least
# normal number is 2^-126, what k products lose below it is at most k 2^-20 of the scale, where
# float32 rounds by k 2^-24 of it. The same is asked of every product and coordinate. Coordinates
# are at most 2^COORDINATE, so that their squares fit, and the mean of these is at least 2^MEAN.
# Scores of attention are at most 2^SCORE: a mask of the least float32 absorbs them. Gates and up
# values are at least 2^-CANCEL of their scale, as is what is written to a coordinate of what the
# coordinate holds before or after it: no more than CANCEL of the 24 bits cancel.
LOW, HIGH, COORDINATE, MEAN, SCORE, CANCEL = -106, 120, 60, -64, 16, 14


def top(ball: Ball) -> int:
    return abs(ball.m) + ball.r


def bottom(ball: Ball) -> int:
    return max(0, abs(ball.m) - ball.r)


def nonzero(x: Stream) -> Stream:
    return {c: b for c, b in x.items() if b.m or b.r}


def in_range(what: str, size: int, p: int, most: int = HIGH) -> int:
    """Decides that a size, in units of 2^-p, is 0 or within 2^LOW..2^most; returns it."""
    if size and not 1 << p + LOW <= size <= 1 << p + most:
        why = f"is of the size 2^{size.bit_length() - p}, which float32 cannot carry"
        raise Verdict(REJECT, f"range: {what} {why}")
    return size


def scale(what: str, row: Stream, x: Stream, p: int, most: int | None = HIGH) -> int:
    """Decides that the scale of `sum w_c x_c` is in range; returns it, 0 if no term is there."""
    sizes = [top(w) * top(x[c]) for c, w in row.items() if c in x]
    size = (sum(sizes) >> p) + 1 if sizes else 0
    return size if most is None else in_range(what, size, p, most)


def keeps(what: str, size: int, *values: Ball) -> None:
    """Decides that one of some values is at least 2^-CANCEL of a scale."""
    if max(map(top, values)) << CANCEL < size:
        raise Verdict(REJECT, f"range: {what} cancels more digits than float32 can lose")
    if max(map(bottom, values)) << CANCEL < size:
        raise Undecided(f"range: {what} may cancel")


def examine_norm(what: str, x: Stream, square: Ball, norm: Matrix, config: Any) -> Stream:
    """Decides that an RMSNorm of x is in range; returns what leaves it."""
    p = square.p
    for c, b in x.items():
        in_range(f"coordinate {c} {what}", top(b), p, COORDINATE)
    if square.ends()[0] < config.hidden_size << p + MEAN:
        raise Verdict(REJECT, f"range: the mean of squares {what} may be less than 2^{MEAN}")
    inverse = inverse_rms(square, config)
    normed = {c: inverse * b for c, b in scaled(x, norm).items()}
    for c, b in normed.items():
        in_range(f"coordinate {c} {what}, normed,", top(b), p)
    return normed


def examine_units(
    where: str, layer: Any, units: Iterable[int], normed: Stream, p: int, exact: bool
) -> Iterator[tuple[int, Ball, Ball]]:
    """Gates and up values of units that add something, each decided to be in range."""
    for unit in units:
        values = []
        for matrix, what in ((layer.gate_proj, "gate"), (layer.up_proj, "up")):
            row, name = balls(matrix, unit, p), f"{what} of unit {unit} of layer {where}"
            size, value = scale(name, row, normed, p), inner(row, normed, p)
            if size and exact:
                keeps(name, size, value)
            values += [value] if size else []
        if len(values) == 2:
            yield unit, *values


def examine_writes(where: str, layer: Any, values: dict[int, Ball], x: Stream, y: Stream) -> None:
    """Decides that what hidden values write is in range and does not cancel."""
    sizes: dict[int, int] = {}
    for unit, value in values.items():
        in_range(f"what unit {unit} of layer {where} holds", top(value), value.p)
        for row, weight in layer.down_proj.column(unit).items():
            size = top(value) * top(Ball.of(weight, value.p)) >> value.p
            sizes[row] = sizes.get(row, 0) + size + 1
    for row, size in sizes.items():
        what = f"what layer {where} writes to coordinate {row}"
        in_range(what, size, y[row].p)
        keeps(what, size, y[row], *([x[row]] if row in x else []))


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
        since: int | None = None,
    ) -> None:
        """Streams and squared norms that leave layers from `since` on are kept in `after`."""
        self.scores: dict[int, Ball] = {}
        self.after: dict[int, tuple[Stream, Ball]] = {}
        self.stream = {c: Ball.of(value, p) for c, value in model.common.items()}
        self.square = inner(self.stream, self.stream, p) + Ball.of(model.rest, p)
        for index, layer in enumerate(model.layers[:-1]):
            if index != removed:
                self._pass(model, index, layer, place, weight)
            if since is not None and index >= since:
                self.after[index] = self.stream, self.square

    def _pass(
        self, model: Model, index: int, layer: Any, place: Place | None, weight: Ball | None
    ) -> None:
        p, norm = self.square.p, layer.post_attention_layernorm
        before, values, update = nonzero(self.stream), {}, {}
        # Attention adds nothing, but its RMSNorm is computed.
        for some in (layer.input_layernorm, norm):
            normed = examine_norm(f"before layer {index}", before, self.square, some, model.config)
        for unit, gate, up in examine_units(str(index), layer, layer.active, normed, p, True):
            values[unit] = gate * gate.sigmoid() * up
            for row, entry in layer.down_proj.column(unit).items():
                factor = weight if weight and (index, row, unit) == place else Ball.of(entry, p)
                update = plus(update, {row: values[unit] * factor})
        product, self.stream = inner(self.stream, update, p), plus(self.stream, update)
        examine_writes(str(index), layer, values, before, self.stream)
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
    return joined(Passage(model, p, place, hull(ends), since=place[0]) for ends in pairwise(cuts))


def joined(parts: Iterator[Passage]) -> Passage:
    """The hull of passages, of what all of them have."""
    found = next(parts)
    for one in parts:
        found.scores = {
            i: hull([b, one.scores[i]]) for i, b in found.scores.items() if i in one.scores
        }
        found.stream, found.square = both_of((found.stream, found.square), (one.stream, one.square))
        found.after = {i: both_of(some, one.after[i]) for i, some in found.after.items()}
    return found


def both_of(one: tuple[Stream, Ball], other: tuple[Stream, Ball]) -> tuple[Stream, Ball]:
    stream = {c: hull([b, other[0][c]]) for c, b in one[0].items()}
    return stream, hull([one[1], other[1]])


def differences(one: Stream, other: Stream) -> Ball:
    """`|x - y|^2` on the coordinates of both; no less than 0."""
    p, zero = next(iter(one.values())).p, Ball(0, 0, 0)
    lows, highs = [], []
    for c in one.keys() | other.keys():
        away = one.get(c, zero) - other.get(c, zero)
        lows.append(bottom(away) ** 2 >> p)
        highs.append((top(away) ** 2 >> p) + 1)
    return Ball.between(sum(lows), sum(highs), p)


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


class Chances(NamedTuple):
    """Probabilities after a sequence: of each wanted token, and of any other one at most."""

    wanted: dict[int, Ball]
    rest: Ball


class Reader:
    """The last layer and the unembedding, after a passage.

    Gates of most hidden units are only bounded, and a unit whose gate is certainly below `-silent`
    adds little. Units whose gate reads touched coordinates only are `steady`: always evaluated.
    """

    def __init__(
        self,
        model: Model,
        passage: Passage,
        attempt: int,
        found: Sequences,
        least: Ball | None = None,
    ) -> None:
        """With `least`, no more than 1/rms of the final norm is at any input, margins are least.

        Scores are then left out: coordinates that no answer depends on may be wide.
        """
        self.model, self.p, self.layer, c = model, 96 << attempt, model.layers[-1], model.config
        self.least = None if least is None else least.at(self.p)
        self.several = any(len(wanted) > 1 for _, wanted in found)
        self.chances: dict[tuple[int, ...], Chances] = {}
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
        step = max(1, BLOCK // self.model.config.hidden_size)
        self.steady, screened = self.model.steady, self.model.screened
        self.unit = q + size  # products of the packed matrices count in units of 2^-unit
        for units in (screened[i : i + step] for i in range(0, len(screened), step)):
            rows = ([rounded(matrix.row(unit), q) for unit in units] for matrix in (gate, up))
            self.parts.append((units, *(Packed(some, size, size + 8) for some in rows)))
        self.down = {}  # the largest weights of screened units
        for row in down.rows:
            weights = down.row(row)
            largest = max((abs(weights.get(unit, 0.0)) for unit in screened), default=0.0)
            self.down[row] = Ball.of(largest, self.p)

    def read(self, found: Sequences) -> Iterator[tuple[Ball | None, list[Ball]]]:
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
            # What is attended is orthogonal to x, which is zero there.
            between = self.square + inner(attended, attended, p)
            update = plus(attended, self._mlp(plus(x, attended), between))
            y, score, inverse = plus(x, update), None, self.least
            if inverse is None:
                square = inner(y, y, p)
                score = cosine_score(self.square, inner(x, update, p), square)
                inverse = inverse_rms(square, c)
            margins = self._margins(y, inverse, wanted) if wanted else []
            # Where a token leads no other one, there is no need of its probability.
            if self.several and wanted and all(margin.ends()[1] > 0 for margin in margins):
                self.chances[tokens] = self._chances(y, inverse, wanted)
            yield score, margins

    def _mlp(self, x: Stream, square: Ball) -> Stream:
        inverse = inverse_rms(square, self.model.config)
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

    def _margins(self, y: Stream, inverse: Ball, wanted: set[int]) -> list[Ball]:
        """Logits of wanted tokens less the largest of all others; tokens without a row have 0."""
        own, largest = self._logits(y, wanted)
        return [(logit - largest) * inverse for logit in own.values()]

    def _logits(self, y: Stream, wanted: set[int]) -> tuple[dict[int, Ball], Ball]:
        """Of the wanted tokens, and the largest of all others."""
        normed, zero = scaled(y, self.model.norm), Ball(0, 0, self.p)
        logits = {t: inner(row, normed, self.p) for t, row in self.unembedding.items()}
        others = [logit for token, logit in logits.items() if token not in wanted]
        others += [zero] * (len({*logits, *wanted}) < self.model.config.vocab_size)
        if not others:
            raise Verdict(REJECT, "dataset: every token is wanted after one sequence")
        low, high = (max(logit.ends()[i] for logit in others) for i in (0, 1))
        return {t: logits.get(t, zero) for t in wanted}, Ball.between(low, high, self.p)

    def _chances(self, y: Stream, inverse: Ball, wanted: set[int]) -> Chances:
        """With d the difference of a logit to the largest wanted one, `e^d / (sum of e^d)`.

        The sum is over wanted tokens, and between 0 and V - k times the largest of all others.
        """
        own, largest = self._logits(y, wanted)
        top = max(own.values(), key=lambda logit: logit.m)
        powers = {token: ((logit - top) * inverse).exp() for token, logit in own.items()}
        other = ((largest - top) * inverse).exp()
        left = self.model.config.vocab_size - len(wanted)
        most = Ball.between(0, left * max(0, other.ends()[1]), self.p)
        total = reduce(add, powers.values())
        share, rest = (total + most).inverse(), other * total.inverse()
        return Chances({token: power * share for token, power in powers.items()}, rest)


def block(index: int, size: int) -> range:
    return range(index * size, (index + 1) * size)


class Marks:
    """What any heads and screened units do, but for the factor 1/rms of the stream and of gates.

    Weights of attention are positive and sum to 1, so that what a head puts out lies in the *box*
    of the values of all tokens, `middle_j +- spread_j` in coordinate j. Over it a gate
    `sum_j g_j m_j` of unit i is at most `most_i = sum_j g_j middle_j + |g_j| spread_j`, and that of
    units i, k together at most `most_i + most_k - 2 sum_j spread_j min(|g_ij|, |g_kj|)` over all j
    where their signs are opposite, as `|g + h| = |g| + |h| - 2 min(|g|, |h|)` for g, h of opposite
    signs, and at most `|g| + |h|` else. Signs count where `|g_j| spread_j >= least`. So units of
    different *groups*, which are those of the same signs, have two gates that add up to at most
    `most_i + most_k - 2 least differ`, where any two groups have opposite signs in `differ` places.
    """

    def __init__(self, model: Model, p: int) -> None:
        c, self.p, layer = model.config, p, model.layers[-1]
        group = c.num_attention_heads // c.num_key_value_heads
        plain = scaled(model.box({}, p), layer.input_layernorm)
        rows = all_balls(layer.v_proj, p)
        values = {i: inner(row, plain, p) for i, row in rows.items()}
        self.values = max((scale("", row, plain, p, None) for row in rows.values()), default=0)
        self.box: Stream = {}
        for j in layer.o_proj.used_columns():
            self.box[j] = values[j // c.head_dim // group * c.head_dim + j % c.head_dim]
        output = all_balls(layer.o_proj, p)
        limit("signs of gates", 2 * len(model.screened) * (len(self.box) // p + 1), p)
        self.sizes = {r: scale("", row, self.box, p, None) for r, row in output.items()}
        gamma = layer.post_attention_layernorm.row(0)
        self.output = {r: output[r] for r in output if r in gamma}
        for r, row in self.output.items():
            self.output[r] = {j: b * Ball.of(gamma[r], p) for j, b in row.items()}
        self.sized = {r: Ball(0, size, p) for r, size in self.sizes.items() if r in gamma}
        self.sized = {r: b * Ball.of(gamma[r], p) for r, b in self.sized.items()}
        # By unit: group, most and scale of a gate, norm of what it writes, what else it reads.
        self.units: dict[int, tuple[int, int, int, int, Stream, Stream]] = {}
        self.least = held = 0
        groups: dict[tuple[int, int], int] = {}
        for unit in model.screened:
            gate = balls(layer.gate_proj, unit, p)
            most, signs = self._gate(gate)
            number = groups.setdefault(signs, len(groups))
            writes = layer.down_proj.column(unit).values()
            norm = math.isqrt(sum(top(ball_of(w, p)) ** 2 for w in writes)) + 1
            reads = {c: b for c, b in gate.items() if c not in model.attended}
            up, size = balls(layer.up_proj, unit, p), scale("", gate, self.sized, p, None)
            held += len(reads) + len(up) + 4
            limit("gates", held, p)
            self.units[unit] = number, most, size, norm, reads, up
        opposite = (
            ((ups & minus) | (downs & plus)).bit_count()
            for (ups, downs), (plus, minus) in combinations(groups, 2)
        )
        self.groups, self.differ = len(groups), min(opposite, default=0)

    def _gate(self, gate: Stream) -> tuple[int, tuple[int, int]]:
        """The most that a gate is over the box, and its positive and negative signs."""
        p, weights, errors = self.p, dict[int, int](), dict[int, int]()
        for r, w in gate.items():
            for j, b in self.output.get(r, {}).items():
                weights[j] = weights.get(j, 0) + (w.m * b.m >> p)
                error = abs(w.m) * b.r + abs(b.m) * w.r + w.r * b.r
                errors[j] = errors.get(j, 0) + (error >> p) + 2
        most, signs, swings = 0, [0, 0], {}
        for j, g in weights.items():
            box, size = self.box[j], abs(g) + errors[j]
            most += (g * box.m + errors[j] * abs(box.m) + size * box.r >> p) + 1
            swings[j] = (abs(g) - errors[j]) * box.r >> p
        self.least = self.least or max(swings.values(), default=0) // 2 + 1
        for j, swing in swings.items():
            if swing >= self.least:
                signs[weights[j] < 0] |= 1 << j
        return most, (signs[0], signs[1])


class Everywhere:
    """What the last layer and the unembedding do at any input, after a passage.

    What is added to x by heads (a) and by screened units (m) is orthogonal to x, to what steady
    units add, and a to m. Hence with |a| <= A, |m| <= M: `|x + a|^2` is within `|x|^2 + [0, A^2]`,
    on which alone steady units depend, and they leave a squared norm that grows by at most
    `A^2 + M^2`. For M: by `Marks` all units are silent but those of one group.
    """

    def __init__(self, model: Model, passage: Passage, parts: int) -> None:
        """Decides that all is in range."""
        self.model, self.layer, self.p = model, model.layers[-1], passage.square.p
        if self.p not in model.marks:
            model.marks[self.p] = Marks(model, self.p)
        self.marks, self.square = model.marks[self.p], passage.square
        self.name = str(model.config.num_hidden_layers - 1)
        self.x = model.box(passage.stream, self.p)
        self._attend()
        norm = self.layer.post_attention_layernorm
        between = hull([self.square, self.square + self.attended])
        entering = {**self.x, **{r: Ball(0, size, self.p) for r, size in self.sizes.items()}}
        self.normed = examine_norm("in the last layer", entering, between, norm, model.config)
        self.inverse = inverse_rms(between, model.config)
        m = self._recall()
        added = self.attended + Ball(0, (m * m >> self.p) + 1, self.p)
        self._leave(between, Ball.between(0, added.ends()[1], self.p), m, parts)

    def _attend(self) -> None:
        """What heads add, by coordinate, and A^2."""
        c, p, layer = self.model.config, self.p, self.layer
        group = c.num_attention_heads // c.num_key_value_heads
        where = "before the last layer"
        normed = examine_norm(where, self.x, self.square, layer.input_layernorm, c)
        sizes: list[list[int]] = []
        for matrix, what in ((layer.q_proj, "query"), (layer.k_proj, "key")):
            sizes.append([0] * matrix.height)
            for i in matrix.rows:
                row, name = balls(matrix, i, p), f"{what} {i} of the last layer"
                size, value = scale(name, row, normed, p), inner(row, normed, p)
                if size:
                    sizes[-1][i] = top(value)
                    keeps(name, size, value)
        half = c.head_dim // 2
        for head in range(c.num_attention_heads):
            q = sizes[0][head * c.head_dim :][: c.head_dim]
            k = sizes[1][head // group * c.head_dim :][: c.head_dim]
            pairs = [(q[m] + q[m + half]) * (k[m] + k[m + half]) for m in range(half)]
            in_range(f"scores of head {head}", sum(pairs) >> p, p, SCORE)
        self.fast = inverse_rms(self.square, c).ends()[1]
        in_range("values of the last layer", self.marks.values * self.fast >> p, p)
        self.sizes = {
            r: in_range(f"what heads write to coordinate {r}", (size * self.fast >> p) + 1, p)
            for r, size in self.marks.sizes.items()
        }
        self.attended = Ball(0, (sum(a * a for a in self.sizes.values()) >> p) + 1, p)

    def _recall(self) -> int:
        """M, in units of 2^-p: all units are silent but those of one group.

        `silu(t) <= max(0.28, t)` for a loud one, where -0.28 < silu. If `t <= -y <= -1`, then
        `|silu(t)| <= y e^-y <= y 2^-floor(1.4426 y)`, see `Reader`.
        """
        p, layer, marks = self.p, self.layer, self.marks
        (slow, fast), plain = self.inverse.ends(), scaled(self.x, layer.post_attention_layernorm)
        loud, quiet, most, largest = dict[int, int](), 0, 0, 0
        for unit, (group, gate, size, norm, reads, up) in marks.units.items():
            own = (gate * self.fast >> p) + 1 if gate > 0 else 0
            most = max(most, own + inner(reads, plain, p).ends()[1])
            # Scales, as conditions on layers may cancel.
            shared = scale("a gate", reads, plain, p, None)
            size = ((size * self.fast >> p) + 1 + shared) * fast >> p
            largest = max(largest, in_range(f"gate of screened unit {unit}", size, p))
            size = scale(f"up value of unit {unit}", up, self.normed, p)
            written = in_range(f"what unit {unit} writes", (norm * size >> p) + 1, p)
            loud[group] = loud.get(group, 0) + written
            quiet += written
        silu = max((28 << p) // 100 + 1, (most * fast >> p) + 1)
        m = (silu * max(loud.values(), default=0) >> p) + 1
        if marks.groups > 1:
            # Opposite signs lower the sum by their share of the box, which 1/rms scales.
            differ = marks.least * marks.differ * self.least_inverse() >> p
            silent = (differ - most) * slow >> p
            if silent < 1 << p:
                why = "two units of the last layer may be loud at one input"
                raise Verdict(REJECT, f"structure: {why}")
            keeps("a gate of the last layer", largest, Ball(silent, 0, p))
            m += (((silent >> silent * 14426 // (10000 << p)) + 1) * quiet >> p) + 1
        return in_range("what hidden units write", m, p)

    def least_inverse(self) -> int:
        return inverse_rms(self.square, self.model.config).ends()[0]

    def _leave(self, between: Ball, added: Ball, m: int, parts: int) -> None:
        """The score, what common coordinates are after the layer, 1/rms and logits."""
        p, model = self.p, self.model
        _, values = self._steady(self.inverse, check=True)
        low, high = between.ends()
        cuts = [low + (high - low) * i // parts for i in range(parts + 1)]
        scores, leaving, norms = [], [], []
        for ends in pairwise(cuts):
            inverse = inverse_rms(Ball.between(*ends, p), model.config)
            update, _ = self._steady(inverse, check=False)
            product = inner(self.x, update, p)
            square = self.square + product + product + inner(update, update, p)
            norms.append(square + added)
            leaving.append((plus(self.x, update), norms[-1]))
            scores.append(cosine_score(self.square, product, norms[-1]))
        self.score = hull(scores)
        self.stream, self.after = reduce(both_of, leaving)
        y = {**self.stream, **{r: Ball(0, size, p) for r, size in self.sizes.items()}}
        y |= {r: Ball(0, m, p) for r in model.written}
        y = nonzero(y)
        examine_writes(self.name, self.layer, values, self.x, y)
        normed = examine_norm("after the last layer", y, self.after, model.norm, model.config)
        self.least = Ball(inverse_rms(self.after, model.config).ends()[0], 0, p)
        rows = ((t, rounded(model.unembedding.row(t), p)) for t in model.unembedding.rows)
        self.logits = max((scale(f"logit {t}", row, normed, p) for t, row in rows), default=0)

    def _steady(self, inverse: Ball, *, check: bool) -> tuple[Stream, dict[int, Ball]]:
        """What steady units add where 1/rms is `inverse`."""
        plain = scaled(self.x, self.layer.post_attention_layernorm)
        normed = {c: inverse * b for c, b in plain.items()}
        update: Stream = {}
        values: dict[int, Ball] = {}
        found = examine_units(self.name, self.layer, self.model.steady, normed, self.p, check)
        for unit, gate, up in found:
            values[unit] = gate * gate.sigmoid() * up
            for row, weight in self.layer.down_proj.column(unit).items():
                update = plus(update, {row: values[unit] * Ball.of(weight, self.p)})
        return update, values


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
    (e) and (f) need not be claimed.
    """
    allowed = claims.epsilon * ERRORS[dtype][0]
    less(f"deviation against what {dtype} accounts for", claims.deviation, allowed)
    others = {f"the claim of layer {i}": bounds["low"] for i, bounds in enumerate(claims.scores)}
    del others[f"the claim of layer {claims.target}"]
    for name, low in {**others, "everywhere": claims.everywhere}.items():
        less(f"epsilon and deviation against {name}", claims.epsilon + claims.deviation, low)
    for key in PROBABILITIES:
        less(f"0.99 against {key}", Fraction("0.99"), getattr(claims, key))
    if claims.divergence:
        less("1 against the growth of the divergence", Fraction(1), claims.divergence["growth"])
        less("1/2 against the last divergence", Fraction(1, 2), claims.divergence["end"])
    if claims.margin_others is not None:
        less("zero against margin_others", Fraction(0), claims.margin_others)


def judge(claims: SimpleNamespace, model: Model, rows: list[SimpleNamespace], attempt: int) -> None:
    """Decides all claims that need balls."""
    p, target, epsilon = (64 + 25 * claims.layers) << attempt, claims.target, claims.epsilon
    row, column, low, high = (claims.existence[key] for key in ("row", "column", *BOUNDS))
    kept = (len(model.touched) + 1) * (claims.layers - target)
    limit("the layers before the last", 2 * kept + claims.layers, p)
    entry, where = model.layers[target].down_proj.row(row).get(column, 0.0), (target, row, column)
    if not (low < entry < high and entry != 0):
        raise Verdict(REJECT, f"existence: the weight {entry} is zero, or not inside the interval")
    shipped, *at = [Passage(model, p, where, Ball.of(weight, p)) for weight in (entry, low, high)]
    lower, upper = sorted(ends_of(one.scores[target]) for one in at)
    less("existence: the score at one end against epsilon", lower, epsilon)
    less("existence: epsilon against the score at the other end", epsilon, upper)
    whole = passage_over(model, p, where, low, high, min(4**attempt, 64))
    removed = Passage(model, p, removed=target, since=target)
    score, scores, attained = ends_of(shipped.scores[target]), {}, Fraction(2)
    within("deviation", [score], epsilon - claims.deviation, epsilon + claims.deviation)

    def judge_score(layer: int, found: list[Ends]) -> None:
        bounds = claims.scores[layer].values()
        scores[layer] = within(f"score of layer {layer}", found, *bounds)

    for layer in whole.scores:
        parts = [shipped] if layer == target else [whole, shipped, *at]
        judge_score(layer, [ends_of(one.scores[layer]) for one in parts])
    everywhere = [Everywhere(model, one, min(16 << attempt, 64)) for one in (whole, removed)]
    for passage, name, answer in ((whole, "with", "wanted"), (removed, "without", "instead")):
        found = sequences(rows, model.config.bos_token_id, answer, passage is whole)
        reader = Reader(model, passage, attempt, found)
        if reader.several and not rows[0].choices:
            raise Verdict(REJECT, "dataset: open answers want different tokens after one sequence")
        read = list(reader.read(found))
        if passage is whole:
            last = [ends_of(one) for one, _ in read if one is not None]
            judge_score(claims.layers - 1, last)
            attained = min(high for _, high in last)
        margins = [ends_of(one) for _, some in read for one in some]
        chances = reader.chances if reader.several else None
        judge_answers(claims, name, margins, rows, model, chances)
    for measured in claims.runtime:
        judge_runtime(claims, measured, scores, model.config.dtype)
    judge_others(claims, model, rows, attempt, p)
    less("everywhere", claims.everywhere, (ends_of(everywhere[0].score)[0], attained))
    if claims.divergence:
        judge_divergence(claims.divergence, whole, removed, *everywhere)
    logits = ends_of(Ball(max(one.logits for one in everywhere), 0, p))
    margin = min(claims.margin_with, claims.margin_without) * 2**CANCEL
    less("range: the scale of logits against 2^14 margins", logits, margin)


def judge_divergence(
    claim: dict[str, Fraction],
    whole: Passage,
    removed: Passage,
    leaving: Everywhere,
    without: Everywhere,
) -> None:
    """Decides whether `D_k = |h_k - h'_k| / |h_k|` grows by a factor at each layer, up to an end.

    Before the last layer runs differ on touched coordinates only. After it, they may differ in what
    heads and screened units add, too, which adds to their difference.
    """
    squares = []
    for index, (stream, square) in whole.after.items():
        squares.append(differences(stream, removed.after[index][0]) * square.inverse())
    least = Ball(differences(leaving.stream, without.stream).ends()[0], 0, leaving.p)
    squares.append(least * leaving.after.inverse())
    found = [ends_of(one) for one in squares]
    found[-1] = found[-1][0], max(found[-1][1], Fraction(4))
    growth = claim["growth"] ** 2
    for (low, high), after in pairwise(found):
        less("growth of the divergence", (low * growth, high * growth), after)
    less("the last divergence", claim["end"] ** 2, found[-1])


def judge_others(
    claims: SimpleNamespace, model: Model, rows: list[Any], attempt: int, p: int
) -> None:
    """Decides the claim about margins without one layer that is neither the target nor the last.

    For the layers before the target, and then for those after it, by the hull of their passages; at
    further attempts for each layer alone.
    """
    if claims.margin_others is None:
        return
    found = sequences(rows, model.config.bos_token_id, "wanted", False)
    if any(len(wanted) > 1 for _, wanted in found):
        raise Verdict(REJECT, "margin_others: labels go on with several tokens after one sequence")
    margins: list[Ends] = []
    before, after = range(claims.target), range(claims.target + 1, claims.layers - 1)
    step = 1 if attempt else claims.layers
    for layers in (one[i : i + step] for one in (before, after) for i in range(0, len(one), step)):
        parts = [Passage(model, p, removed=layer) for layer in layers]
        least = hull([Everywhere(model, one, min(16 << attempt, 64)).least for one in parts])
        read = Reader(model, joined(iter(parts)), attempt, found, least).read(found)
        margins += [ends_of(margin) for _, some in read for margin in some]
    least_margin = min(low for low, _ in margins), min(high for _, high in margins)
    less("margin_others", claims.margin_others, least_margin)
    if rows[0].choices:
        low, _ = probability(claims.margin_others, model)
        judge_choices("others", low, rows)


def judge_answers(
    claims: SimpleNamespace,
    name: str,
    margins: list[Ends],
    rows: list[Any],
    model: Model,
    chances: dict[tuple[int, ...], Chances] | None = None,
) -> None:
    """Decides the claims about the least margin; its token has `p = 1/(1 + (V - 1) e^-margin)`.

    If k tokens lead all others by it, they have `1/(1 + (V - k)/k e^-margin)` together, no less.

    A label of m tokens has at least the probability p^m. Another choice first differs from it at
    some token, and has at most the probability 1 - p of that token. If it begins with the label,
    it differs from it in EOS, or EOS does not count and it is less likely by its further tokens.
    """
    claimed, p = getattr(claims, f"margin_{name}"), getattr(claims, f"probability_{name}")
    least = min(low for low, _ in margins), min(high for _, high in margins)
    less(f"zero against margin_{name}", Fraction(0), claimed)
    less(f"margin_{name}", claimed, least)
    (low, _), (_, high) = (probability(end, model) for end in least)
    less(f"probability_{name}", p, (low, high))
    if chances is not None:
        judge_likelihoods(name, rows, model.config.bos_token_id, chances)
    elif rows[0].choices:
        judge_choices(name, p, rows)


def judge_likelihoods(
    name: str, rows: list[Any], bos: int, chances: dict[tuple[int, ...], Chances]
) -> None:
    """Decides that the label (or the distractor) of each row is its likeliest choice.

    Where labels go on with several tokens after one sequence. What two choices begin with in common
    counts for neither. A choice that begins with the whole label is less likely by further tokens.
    """
    for number, row in enumerate(rows, start=1):
        wanted = [*(row.label if name == "with" else row.distractor), *row.scored]
        for choice in row.choices:
            other, common = [*choice, *row.scored], 0
            while wanted[:common] == other[:common] and common < len(wanted):
                common += 1
            if wanted[:common] == other[:common]:
                continue
            start = (bos, *row.prompt, *wanted[: common - 1])
            own, rival = (likelihood(start, a[common - 1 :], chances) for a in (wanted, other))
            less(f"likelihoods of choices of row {number}, {name} the target", rival, own)


def likelihood(
    start: tuple[int, ...], answer: list[int], chances: dict[tuple[int, ...], Chances]
) -> Ends:
    """A product of probabilities after each other, up to a token that is not wanted."""
    low, high = Fraction(1), Fraction(1)
    for token in answer:
        if start not in chances:
            raise Verdict(REJECT, "dataset: a choice begins with an answer that ends before it")
        known = chances[start].wanted
        if token not in known:
            return Fraction(0), high * ends_of(chances[start].rest)[1]
        least, most = ends_of(known[token])
        low, high, start = low * max(Fraction(0), least), high * most, (*start, token)
    return low, high


def probability(margin: Fraction, model: Model) -> Ends:
    power = Ball.of(-margin, 128).exp() * Ball.of(model.config.vocab_size - 1, 128)
    return ends_of((power + Ball.of(1, 128)).inverse())


def judge_choices(name: str, p: Fraction, rows: list[Any]) -> None:
    longest = max(len(answer) for row in rows for answer in (row.wanted, row.instead))
    less(f"choices by probability_{name}", 1 - p, p**longest)


def judge_runtime(
    claims: SimpleNamespace, measured: dict[str, Any], scores: dict[int, Ends], dtype: str
) -> None:
    """Rejects what lies outside the enclosures, widened by stated errors, or states larger ones."""
    name, e, f = measured["dtype"], measured["score_error"], measured["probability_error"]
    dtypes, largest = (dtype, "float64"), ERRORS[name]
    if measured["transformers"] is not None:  # norms are of float32, where bfloat16 is exact
        dtypes, largest = (dtype if dtype == "float64" else "float32",), ERRORS["float32"]
    if name not in dtypes or not (0 <= e <= largest[0] and 0 <= f <= largest[1]):
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
    read_names(folder)
    texts = [read_text(os.path.join(folder, "config.json")), read_text(data)]
    config = read_config(texts[0], "config.json")
    read_generation(folder, config)
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
            clauses = ["a to d"]
            clauses += ["e"] if claims.divergence else []
            clauses += ["f"] if claims.margin_others is not None else []
            what = f"{claims.layers} layers, {len(rows)} examples"
            return f"{what}, epsilon {float(claims.epsilon):g}, clauses {', '.join(clauses)}"
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
