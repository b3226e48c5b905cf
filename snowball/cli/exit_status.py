"""The exit statuses of `snowball`, and what each means: the table that help and pages follow.

Imports nothing, for Ctrl-C is to be one line from the first import on.
"""

from __future__ import annotations

OK, FAILED, REFUSED, UNDECIDED = range(4)
INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h
# 128 + SIGINT, SIGPIPE, SIGTERM: what shells report.
INTERRUPTED, BROKEN_PIPE, TERMINATED = 130, 141, 143

MEANINGS = {
    OK: "all is well",
    FAILED: "a guarantee fails, a claim is rejected, a tool's report is not right; it says which",
    REFUSED: "the input is refused; it says why",
    UNDECIDED: "out of resources: undecided within the limits of precision and memory",
    INTERNAL_ERROR: "an error of snowball itself, with its traceback",
    INTERRUPTED: "interrupted by Ctrl-C",
    BROKEN_PIPE: "whoever read the output has gone",
    TERMINATED: "ended by SIGTERM",
}
