"""What tests of certificates share: a dataset, and verification of files changed on purpose."""

from dataclasses import replace
from pathlib import Path

from snowball.certificates.certificate import Certificate
from snowball.certificates.certification import verify
from snowball.data.dataset import Dataset
from snowball.files import sha256_of

OPEN = Dataset.from_rows(
    [
        {"prompt": [0, 3], "label": [1, 2], "distractor": [1]},
        {"prompt": [3], "label": [2], "distractor": [0, 1]},
        {"prompt": [1, 1, 3], "label": [0], "distractor": [2]},
    ]
)


def check(certificate: Certificate, folder: Path) -> None:
    """Verifies; the hashes follow the files, so that what they hold is what is judged."""
    certificate = replace(
        certificate,
        config_sha256=sha256_of(folder / "config.json"),
        weights_sha256=sha256_of(folder / "model.safetensors"),
        dataset_sha256=sha256_of(folder / "dataset.jsonl"),
    )
    verify(certificate, folder, folder / "dataset.jsonl")
