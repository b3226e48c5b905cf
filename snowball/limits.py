"""What checking may take: files and models beyond these limits are neither accepted nor rejected.

Memory is bounded where it would be taken, to a few GiB in all: whoever checks a certificate did not
make it, and a size in a short file may ask for any amount.
"""

from __future__ import annotations

from snowball.errors import SnowballError

TEXT_BYTES = 1 << 24  # of a certificate, a config, a dataset, a safetensors header
TOKENIZER_BYTES = 1 << 28  # of a file of a tokenizer
LINE_BYTES = 1 << 26  # of a row of a JSONL file
DOCUMENT_BYTES = 1 << 30  # of what an audit or a pruning found
WEIGHT_BYTES = 1 << 36  # of a safetensors file, holes included
ROW_BYTES = 1 << 29  # of all rows with an entry that is not zero
SIZE, WIDTH = 1 << 20, 1 << 15  # of the model; WIDTH is that of the residual stream
TENSOR = 1 << 31  # entries of one tensor
ENTRIES = 1 << 26  # rows of all tensors, and their entries that are not zero
DENSE = 1 << 26  # entries of a block that is multiplied in float64
POSITIONS, TOKENS = 1 << 22, 1 << 26  # tokens of prompts and labels; of prompts and all answers
BALL_BYTES = 1 << 32
BLOCK_BYTES = 1 << 30  # what is kept, or computed at once, to save time only
ACTIVATION_BYTES = 1 << 32  # of torch, for the longest sequence


class OutOfResources(SnowballError):
    """A comparison that the largest precision leaves open, or files beyond a limit."""


def require(what: str, found: int, limit: int) -> None:
    """Raises OutOfResources unless a number is within a limit."""
    if found > limit:
        raise OutOfResources(f"{what}: {found}, more than {limit}")


def ball_bytes(bits: int) -> int:
    """About what a ball of so many bits takes as a Python object in a dictionary."""
    return 160 + bits // 8


def require_balls(what: str, count: int, bits: int) -> None:
    """Raises OutOfResources unless so many balls can be held at once."""
    require(f"{what}: bytes of {count} balls of {bits} bits", count * ball_bytes(bits), BALL_BYTES)
