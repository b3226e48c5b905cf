"""The verdicts of both checkers on a folder; the certificate names the files as they are."""

import hashlib
import json
from pathlib import Path
from typing import Any

from snowball.certificates import checker
from snowball.certificates.certificate import read_certificate
from snowball.certificates.certification import verify
from snowball.certificates.rejection import Rejection

WEIGHTS = "model.safetensors"
Document = dict[str, Any]


def renewed(certificate: Document) -> Document:
    return json.loads(json.dumps(certificate))


def verdicts(folder: Path, certificate: Document) -> tuple[bool, bool]:
    """Whether each checker rejects, if the certificate names the files as they are."""
    files = {"config.json": "config.json", WEIGHTS: WEIGHTS, "dataset": "dataset.jsonl"}
    for name, file in files.items():
        digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        certificate["files"][name] = digest
    path, data = folder / "certificate.json", folder / "dataset.jsonl"
    path.write_text(json.dumps(certificate))
    standard = checker.main([str(path), str(folder), str(data)])
    assert standard in (checker.PASS, checker.REJECT)
    try:
        verify(read_certificate(path), folder, data)
    except Rejection:
        return standard == checker.REJECT, True
    return standard == checker.REJECT, False
