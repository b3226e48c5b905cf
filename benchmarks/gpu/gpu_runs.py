"""What the benchmarks of a GPU share: their common options, and what a result says of its run."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from snowball.pretrained.loading import check_device, device_name
from snowball.provenance import provenance, script_command


def add_common(parser: argparse.ArgumentParser) -> None:
    """Where to run, where to write, and the seed."""
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)


def prepare(options: argparse.Namespace) -> None:
    """Threads and seed; raises PretrainedError for a device that is absent."""
    check_device(options.device)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)


def origin(options: argparse.Namespace) -> dict[str, Any]:
    """Device, versions, seed and command; folders of this machine are left out."""
    return {
        "device": options.device,
        "device_name": device_name(torch.device(options.device)),
        "seed": options.seed,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "provenance": {**provenance(), "command": script_command()},
    }
