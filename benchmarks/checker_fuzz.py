"""Fuzzed inputs to one checker in a process of its own; `checker_attacks.py` runs it.

    python benchmarks/checker_fuzz.py standard|flint FOLDER COUNT SEED

FOLDER holds a certified model and `certificate.json`. Each input is these four files with one or
more mutations of bytes, of JSON structure, or of sizes; in most the certificate names the files as
they are, so that what is behind the hashes is reached. Prints JSON: inputs, outcomes by exit
status, what was untyped (an exception that is no verdict), peak memory.

The standard-library checker gets two attempts of precision instead of six: more of them take
minutes where a mutation leaves a comparison open, and run the same code.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import random
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILES = ("certificate.json", "config.json", "model.safetensors", "dataset.jsonl")
WORDS = {"0": "accepted", "1": "rejected", "2": "malformed", "3": "out of resources"}
NASTY: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**19, -(10**19), 1e308, 0.5, "", "1e400"),
    *("1e-400", "-0", "NaN", "9" * 100, "0" * 101, "\ud800", "\x00", "é", [], {}, [[]], {"": {}}),
    *([0] * 1000, "x" * 10_000, {"low": "0", "high": "1"}, "float64", "llama", [1, 2], [-1], [4]),
]
BOMBS = [
    *(b"[" * 100_000, b'{"a":' * 100_000, b"1" * 100_000, b'"' + b"\\u0000" * 10_000 + b'"'),
    *(b"[" + b"[]," * 100_000 + b"[]]", b"{" + b'"a":1,' * 10_000 + b'"a":1}', b"\n" * 100_000),
    *(b"", b"\x00" * 1000, b"\xff\xfe", b"null", b"{}", b"[]", b"1e999", b"-Infinity"),
]


def main() -> None:
    name, folder, count, seed = sys.argv[1:]
    base = {file: (Path(folder) / file).read_bytes() for file in FILES}
    run = {"standard": standard, "flint": flint}[name]()
    draw, outcomes, untyped = random.Random(int(seed)), Counter[str](), Counter[str]()
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=shared) as work:
        (Path(work) / "in").mkdir()
        for file, content in base.items():
            (Path(work) / "in" / file).write_bytes(content)
        assert run(Path(work) / "in") == "0"
        before, started, slowest = peak(), time.perf_counter(), 0.0
        for number in range(int(count)):
            write(mutated(base, draw), Path(work) / "in", draw)
            start = time.perf_counter()
            outcome = run(Path(work) / "in")
            slowest = max(slowest, time.perf_counter() - start)
            if outcome not in WORDS:
                untyped[outcome] += 1
            outcomes[WORDS.get(outcome, "untyped")] += 1
            if (number + 1) % 5000 == 0:
                print(f"{name}: {number + 1} inputs", file=sys.stderr, flush=True)
    figures = {
        "inputs": int(count),
        "outcomes": dict(sorted(outcomes.items())),
        "untyped": dict(untyped),
        "peak_bytes": peak(),
        "added_bytes": peak() - before,
        "slowest_seconds": round(slowest, 2),
        "seconds": round(time.perf_counter() - started),
    }
    print(json.dumps(figures))


def peak() -> int:
    """The largest resident memory of this program so far, in bytes.

    (That of `getrusage` counts what this process was before it became this program.)
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


# The checkers


def standard() -> Callable[[Path], str]:
    """The file of the checker, imported without the package."""
    file = Path(__file__).parents[1] / "snowball" / "certificates" / "checker.py"
    spec = importlib.util.spec_from_file_location("checker", file)
    assert spec is not None
    assert spec.loader is not None
    checker = importlib.util.module_from_spec(spec)
    sys.modules["checker"] = checker
    spec.loader.exec_module(checker)
    vars(checker)["ATTEMPTS"] = 2

    def run(folder: Path) -> str:
        out = io.StringIO()
        try:
            with contextlib.redirect_stdout(out):
                status = checker.main([str(folder / FILES[0]), str(folder), str(folder / FILES[3])])
        except BaseException as error:
            return repr(error)
        line = out.getvalue()
        # Decoders say "unexpected end of data" of malformed files.
        if line.count("\n") != 1 or line.startswith("REJECT: unexpected: "):
            return line
        return str(status)

    return run


def flint() -> Callable[[Path], str]:
    import torch

    from snowball.certificates.certificate import read_certificate
    from snowball.certificates.certification import OutOfResources, verify
    from snowball.certificates.rejection import Rejection
    from snowball.errors import SnowballError

    torch.set_num_threads(1)

    def run(folder: Path) -> str:
        try:
            verify(read_certificate(folder / FILES[0]), folder, folder / FILES[3])
        except Rejection:
            return "1"
        except OutOfResources:
            return "3"
        except SnowballError:
            return "2"
        except BaseException as error:
            return f"{type(error).__name__}: {error!s:.80}"
        return "0"

    return run


# Mutations


def write(files: dict[str, Any], folder: Path, draw: random.Random) -> None:
    """Writes the files; now and then one is a folder, a link, missing, or has a long hole."""
    for name, content in files.items():
        path = folder / name
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)
        path.write_bytes(content)
    kind = draw.randrange(400)
    path = folder / draw.choice(FILES)
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.unlink()
        path.mkdir()
    elif kind == 2:
        path.unlink()
        path.symlink_to(path)
    elif kind == 3:
        os.truncate(path, draw.choice([0, 1, 1 << 20, 1 << 30, 1 << 36]))


def mutated(base: dict[str, bytes], draw: random.Random) -> dict[str, bytes]:
    files = dict(base)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        name = draw.choice(FILES)
        files[name] = mutate(name, files[name], draw)
    if draw.random() < 0.8:
        name_files(files)
    return files


def name_files(files: dict[str, bytes]) -> None:
    """Lets the certificate name the files as they are, if it still is a certificate."""
    keys = {"config.json": FILES[1], "model.safetensors": FILES[2], "dataset": FILES[3]}
    try:
        certificate = json.loads(files[FILES[0]])
        for key, file in keys.items():
            certificate["files"][key] = hashlib.sha256(files[file]).hexdigest()
        files[FILES[0]] = json.dumps(certificate).encode()
    except (ValueError, TypeError, KeyError, RecursionError):
        pass


def mutate(name: str, content: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.02:
        return draw.choice(BOMBS)
    if draw.random() < 0.3:
        return mutate_bytes(content, draw)
    if name == "model.safetensors":
        return mutate_weights(content, draw)
    if name == "dataset.jsonl":
        lines = content.splitlines()
        if not lines:
            return content
        place = draw.randrange(len(lines))
        lines[place] = mutate_json(lines[place], draw)
        return b"\n".join(lines)
    return mutate_json(content, draw)


def mutate_bytes(content: bytes, draw: random.Random) -> bytes:
    data, size = bytearray(content), len(content)
    start = draw.randrange(size + 1)
    stop = min(size, start + draw.choice([1, 2, 8, 100, size]))
    kind = draw.randrange(6)
    if kind == 0 and start < size:
        data[start] ^= 1 << draw.randrange(8)
    elif kind == 1:
        data[start:stop] = b""
    elif kind == 2:
        data[start:start] = draw.randbytes(draw.choice([1, 4, 100]))
    elif kind == 3:
        data[start:start] = data[start:stop]
    elif kind == 4:
        data[start:stop] = draw.randbytes(stop - start)
    else:
        del data[start:]
    return bytes(data)


def mutate_json(content: bytes, draw: random.Random) -> bytes:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return mutate_bytes(content, draw)
    holder = [value]
    nodes = [*places(holder)]
    container, key = draw.choice(nodes)
    kind = draw.randrange(6)
    if kind == 0:
        container[key] = draw.choice(NASTY)
    elif kind == 1 and isinstance(container, dict):
        del container[key]
    elif kind == 2 and isinstance(container, dict):
        container[draw.choice(["", "more", key + " ", "__metadata__"])] = container[key]
    elif kind == 3 and isinstance(container, list) and container is not holder:
        container.insert(0, draw.choice(container))
    elif kind == 4 and type(container[key]) in (int, float):
        container[key] += draw.choice([-1, 1, 0.5, 1000, -container[key]])
    else:
        other, name = draw.choice(nodes)
        container[key] = json.loads(json.dumps(other[name]))
    text = json.dumps(holder[0])
    if draw.random() < 0.03:  # a key twice
        text = text.replace("{", '{"epsilon":"1",', 1)
    return text.encode()


def places(value: Any) -> list[tuple[Any, Any]]:
    """Containers and keys of all nodes of a JSON value below its root."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = [(value, key) for key, _ in items]
    for _, one in list(value.items() if isinstance(value, dict) else enumerate(value)):
        if isinstance(one, dict | list):
            found += places(one)
    return found


def mutate_weights(content: bytes, draw: random.Random) -> bytes:
    """The length, the header, or numbers."""
    length = struct.unpack("<Q", content[:8].ljust(8, b"\0"))[0]
    header, data = content[8 : 8 + length], bytearray(content[8 + length :])
    kind = draw.randrange(4)
    if kind == 0:
        length = draw.choice([0, 1, length - 1, length + 1, 2**24, 2**32, 2**63, 2**64 - 1])
        return struct.pack("<Q", length % 2**64) + content[8:]
    if kind == 1:
        header = mutate_json(header, draw)
    elif data:
        for _ in range(draw.choice([1, 1, 10])):
            at = draw.randrange(len(data))
            data[at] = draw.choice([0, 0x7F, 0x80, 0xFF, draw.randrange(256)])
    return struct.pack("<Q", len(header)) + header + bytes(data)


if __name__ == "__main__":
    main()
