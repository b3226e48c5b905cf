"""Attacks on both checkers of certificates: tampered claims, fuzzed files; and their times.

    python benchmarks/checker_attacks.py [--tampers 10000] [--fuzz 100000] [--times] [--out FOLDER]

Figures of each part are printed and written as soon as it is done.

*Tampers* (`checker_tampers.py`) change a weight, the config, the dataset or the certificate of a
small certified model, and let the certificate name the changed files. Those that make no claim
false are drawn again; both checkers judge each of the others, in this process. *Fuzz* mutates bytes
and structure of all four files (`checker_fuzz.py`), in one process for each checker. *Times* are of
one thread, with the standard-library checker as a program.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from checker_tampers import TAMPERS, WEIGHTS, Document, Subject, falsehood

from snowball.certificates import checker
from snowball.certificates.certification import certify
from snowball.construction.counterexample.builder import counterexample
from snowball.data.dataset import Dataset
from snowball.files import write_json
from snowball.provenance import provenance

FUZZ = Path(__file__).with_name("checker_fuzz.py")

OPEN = [
    {"prompt": [0, 3], "label": [1, 2], "distractor": [1]},
    {"prompt": [3], "label": [2], "distractor": [0, 1]},
    {"prompt": [1, 1, 3], "label": [0], "distractor": [2]},
]
CHOICES = [
    {"prompt": [3], "choices": [[0], [1], [2]], "label": [0], "distractor": [1]},
    {"prompt": [0, 3], "choices": [[1], [0], [2]], "label": [0], "distractor": [2]},
]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)

    def done(part: str, figures: Document) -> None:
        print_table(part, figures)
        if arguments.out is not None:
            write(arguments.out / f"{part}.json", figures, arguments)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = _models(folder) if arguments.tampers or arguments.fuzz else []
        if arguments.tampers:
            done("tampers", tamper(models, arguments.tampers, arguments.seed, folder / "work"))
        if arguments.fuzz:
            for found in fuzz(models[0], arguments.fuzz, arguments.seed):
                done("fuzz", found)
        if arguments.times:
            done("times", times(folder))


def write(path: Path, figures: Document, arguments: argparse.Namespace) -> None:
    """Writes figures with the command that made them, without the folders of this machine."""
    options = [f"--tampers {arguments.tampers}"] if arguments.tampers else []
    options += [f"--fuzz {arguments.fuzz}"] if arguments.fuzz else []
    options += ["--times"] if arguments.times else []
    command = f"python benchmarks/{Path(__file__).name} {' '.join(options)} --seed {arguments.seed}"
    host = {"cores": os.cpu_count(), "machine": platform.machine(), "processor": processor()}
    digest = hashlib.sha256(Path(checker.__file__).read_bytes()).hexdigest()
    origin = {**provenance(), "checker.py": digest, "command": command}
    write_json(path, {"figures": figures, "host": host, "provenance": origin})


def processor() -> str:
    """The name of the processor, where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tampers", type=int, default=0, help="tampered claims to judge")
    parser.add_argument("--fuzz", type=int, default=0, help="fuzzed inputs to judge")
    parser.add_argument("--times", action="store_true", help="time both checkers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the figures as JSON")
    return parser.parse_args()


def _models(folder: Path) -> list[Path]:
    """Folders with a small certified model and `certificate.json` each."""
    made = []
    for name, rows, epsilon, layers, target, dtype in (
        ("open", OPEN, 1e-6, 4, 1, torch.float32),
        ("choices", CHOICES, 0.01, 5, 2, torch.float64),
    ):
        built = counterexample(
            Dataset.from_rows(rows), epsilon=epsilon, layers=layers, target=target, dtype=dtype
        )
        made.append(built.save_pretrained(folder / name))
        certify(made[-1]).write(made[-1] / "certificate.json")
    return made


# Tampers


def tamper(models: list[Path], count: int, seed: int, work: Path) -> Document:
    """Judges so many tampers that make a claim false, and as many kinds of them in turn."""
    draw, counts = random.Random(seed), {name: Counter[str]() for name in TAMPERS}
    claims = Counter[str]()
    for folder in models:  # the oracle finds nothing wrong where nothing is
        assert falsehood(Subject.read(folder), folder) is None
        assert (_standard(folder), _flint(folder)) == (0, 0)
    started, judged = time.perf_counter(), 0
    while judged < count:
        name, change = list(TAMPERS.items())[judged % len(TAMPERS)]
        subject = Subject.read(draw.choice(models))
        change(subject, draw)
        subject.write(work)
        claim = falsehood(subject, work)
        if claim is None:
            counts[name]["drawn again"] += 1
            continue
        judged += 1
        claims[claim] += 1
        for checked, status in (("standard", _standard(work)), ("flint", _flint(work))):
            counts[name][f"{checked} {_WORDS[status]}"] += 1
            if status == 0:
                print(f"accepted by {checked}: {name}, although {claim}", file=sys.stderr)
        if judged % 500 == 0:
            print(f"{judged} tampers", file=sys.stderr, flush=True)
    found = {name: dict(sorted(one.items())) for name, one in counts.items()}
    accepted = {
        c: sum(one[f"{c} accepted"] for one in counts.values()) for c in ("standard", "flint")
    }
    seconds = round(time.perf_counter() - started)
    claims_found = dict(claims.most_common())
    return {
        "judged": judged,
        "accepted": accepted,
        "by kind": found,
        "false claims": claims_found,
        "seconds": seconds,
    }


_WORDS = ["accepted", "rejected", "malformed", "out of resources"]


def _standard(folder: Path) -> int:
    paths = [str(folder / name) for name in ("certificate.json", "", "dataset.jsonl")]
    with contextlib.redirect_stdout(io.StringIO()):
        return checker.main(paths)


def _flint(folder: Path) -> int:
    from snowball.certificates.certificate import read_certificate
    from snowball.certificates.certification import OutOfResources, verify
    from snowball.certificates.rejection import Rejection
    from snowball.errors import SnowballError

    try:
        verify(read_certificate(folder / "certificate.json"), folder, folder / "dataset.jsonl")
    except Rejection:
        return 1
    except OutOfResources:
        return 3
    except SnowballError:
        return 2
    return 0


# Fuzz


def fuzz(folder: Path, count: int, seed: int) -> Iterator[Document]:
    """Outcomes by exit status of one, then of both checkers on the same mutated files."""
    found: Document = {}
    for name in ("standard", "flint"):
        command = [sys.executable, str(FUZZ), name, str(folder), str(count), str(seed)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[name] = json.loads(done.stdout)
        yield found


# Times

# Runs a program as `python -I` does, and then says how much memory it took.
MEASURED = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    lines = open("/proc/self/status").readlines()
    print(*(line for line in lines if line.startswith("VmHWM")), file=sys.stderr)
"""


def times(folder: Path) -> Document:
    """Seconds of one thread, by the clock and of the processor; memory of the standard checker."""
    found = {}
    capitals = Dataset.capitals()
    rows = [
        {"prompt": list(e.prompt), "label": list(e.label), "distractor": list(e.distractor)}
        for e in capitals.examples[:20]
    ]
    size, bos, eos = capitals.vocabulary_size, capitals.bos, capitals.eos
    few = Dataset.from_rows(rows, vocabulary_size=size, bos=bos, eos=eos)
    for name, dataset in (("20 samples", few), ("demo", capitals)):
        print(f"timing {name}", file=sys.stderr, flush=True)
        built = counterexample(dataset, epsilon=1e-6, layers=8, target=3)
        made = built.save_pretrained(folder / name)
        certificate, certifying = _timed(lambda made=made: certify(made))
        certificate.write(made / "certificate.json")
        status, checking = _timed(lambda made=made: _flint(made))
        paths = [str(made / file) for file in ("certificate.json", "", "dataset.jsonl")]
        command = [sys.executable, "-I", "-c", MEASURED, checker.__file__, *paths]
        done, running = _timed(lambda c=command: subprocess.run(c, capture_output=True, text=True))
        memory = int(done.stderr.split()[1]) * 1024
        found[name] = {
            "examples": len(dataset.examples),
            "file_bytes": (made / WEIGHTS).stat().st_size,
            "certify": certifying,
            "flint": {"status": status, **checking},
            "standard": {
                "status": done.returncode,
                **running,
                "peak_bytes": memory,
                "line": done.stdout.strip(),
            },
        }
    return found


def _timed(function: Callable[[], Any]) -> tuple[Any, Document]:
    """A result, and seconds by the clock and of the processor, programs that it ran included."""
    start, before = time.perf_counter(), os.times()
    result = function()
    clock, after = time.perf_counter() - start, os.times()
    spent = sum(after[:4]) - sum(before[:4])
    return result, {"seconds": round(clock, 1), "processor_seconds": round(spent, 1)}


def print_table(part: str, found: Document) -> None:
    if part == "tampers":
        print(f"| {found['judged']} tampers that make a claim false | outcomes |\n|---|---|")
        for name, one in found["by kind"].items():
            print(f"| {name} | {', '.join(f'{k} {v}' for k, v in one.items())} |")
        print(f"| accepted | {found['accepted']} |\n")
    if part == "fuzz":
        print("| checker | fuzzed inputs | outcomes | untyped | peak MiB | of which added |")
        print("|---|--:|---|--:|--:|--:|")
        for name, one in found.items():
            outcomes = ", ".join(f"{k} {v}" for k, v in one["outcomes"].items())
            peak, added = (one[key] / 2**20 for key in ("peak_bytes", "added_bytes"))
            untyped = sum(one["untyped"].values())
            print(
                f"| {name} | {one['inputs']} | {outcomes} | {untyped} | {peak:.0f} | {added:.0f} |"
            )
        print()
    if part == "times":
        print("| model | certify s | flint s | standard s | peak MiB |\n|---|--:|--:|--:|--:|")
        for name, one in found.items():
            row = [one[part] for part in ("certify", "flint", "standard")]
            cells = [
                f"{part['processor_seconds']} ({part['seconds']} by the clock)" for part in row
            ]
            print(f"| {name} | {' | '.join(cells)} | {row[-1]['peak_bytes'] / 2**20:.0f} |")


if __name__ == "__main__":
    main()
