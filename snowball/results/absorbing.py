"""What another store holds and this one lacks, copied: all of it or nothing."""

from __future__ import annotations

import os
from pathlib import Path

from snowball.results.database import DENIED, Database, check_file
from snowball.results.item_result import StoreError

# What the store that is attached as `other` holds, and this one lacks. Names first, then keys and
# runs, which refer to names, then results: of those (key, removal, item) only that are not complete
# here, so that the values of an item never come from two computations.
_ABSORB = """
INSERT INTO models (sha256) SELECT sha256 FROM other.models WHERE true ORDER BY id
ON CONFLICT DO NOTHING;
INSERT INTO datasets (name, sha256) SELECT name, sha256 FROM other.datasets WHERE true ORDER BY id
ON CONFLICT DO NOTHING;
INSERT INTO removals (name) SELECT name FROM other.removals WHERE true ORDER BY id
ON CONFLICT DO NOTHING;
INSERT INTO metrics (name) SELECT name FROM other.metrics WHERE true ORDER BY id
ON CONFLICT DO NOTHING;
INSERT INTO statistics (name) SELECT name FROM other.statistics WHERE true ORDER BY id
ON CONFLICT DO NOTHING;
INSERT INTO keys (model, dataset)
SELECT models.id, datasets.id
FROM other.keys AS theirs
JOIN other.models AS their_models ON their_models.id = theirs.model
JOIN other.datasets AS their_datasets ON their_datasets.id = theirs.dataset
JOIN main.models ON models.sha256 = their_models.sha256
JOIN main.datasets
    ON (datasets.name, datasets.sha256) = (their_datasets.name, their_datasets.sha256)
WHERE true ORDER BY theirs.id
ON CONFLICT DO NOTHING;
INSERT INTO runs (started, provenance)
SELECT started, provenance FROM other.runs
WHERE (started, provenance) NOT IN (SELECT started, provenance FROM main.runs)
GROUP BY started, provenance ORDER BY min(id);
CREATE TEMP TABLE key_ids AS
SELECT theirs.id AS theirs, keys.id AS ours
FROM other.keys AS theirs
JOIN other.models AS their_models ON their_models.id = theirs.model
JOIN other.datasets AS their_datasets ON their_datasets.id = theirs.dataset
JOIN main.models ON models.sha256 = their_models.sha256
JOIN main.datasets
    ON (datasets.name, datasets.sha256) = (their_datasets.name, their_datasets.sha256)
JOIN main.keys ON (keys.model, keys.dataset) = (models.id, datasets.id);
CREATE TEMP TABLE run_ids AS
SELECT theirs.id AS theirs, min(runs.id) AS ours
FROM other.runs AS theirs JOIN main.runs USING (started, provenance) GROUP BY theirs.id;
CREATE TEMP TABLE absorbed AS
SELECT key_ids.ours AS key, removals.id AS removal, theirs.item, run_ids.ours AS run,
    theirs.key AS their_key, theirs.removal AS their_removal
FROM other.completed AS theirs
JOIN key_ids ON key_ids.theirs = theirs.key
JOIN run_ids ON run_ids.theirs = theirs.run
JOIN other.removals AS their_removals ON their_removals.id = theirs.removal
JOIN main.removals ON removals.name = their_removals.name
WHERE NOT EXISTS (
    SELECT 1 FROM main.completed AS ours
    WHERE (ours.key, ours.removal, ours.item) = (key_ids.ours, removals.id, theirs.item)
);
INSERT INTO completed (key, removal, item, run) SELECT key, removal, item, run FROM absorbed;
INSERT INTO results (key, removal, item, metric, value)
SELECT absorbed.key, absorbed.removal, absorbed.item, metrics.id, theirs.value
FROM absorbed
JOIN other.results AS theirs
    ON (theirs.key, theirs.removal, theirs.item) = (their_key, their_removal, absorbed.item)
JOIN other.metrics AS their_metrics ON their_metrics.id = theirs.metric
JOIN main.metrics ON metrics.name = their_metrics.name;
INSERT INTO arrays (key, statistic, item, run, shape, data)
SELECT key_ids.ours, statistics.id, theirs.item, run_ids.ours, theirs.shape, theirs.data
FROM other.arrays AS theirs
JOIN key_ids ON key_ids.theirs = theirs.key
JOIN run_ids ON run_ids.theirs = theirs.run
JOIN other.statistics AS their_statistics ON their_statistics.id = theirs.statistic
JOIN main.statistics ON statistics.name = their_statistics.name
WHERE true
ON CONFLICT DO NOTHING
"""
# Only if the other store has them.
_ABSORB_ADDED = """
INSERT INTO answers (key, removal, item, answer)
SELECT absorbed.key, absorbed.removal, absorbed.item, theirs.answer
FROM absorbed
JOIN other.answers AS theirs
    ON (theirs.key, theirs.removal, theirs.item) = (their_key, their_removal, absorbed.item);
INSERT INTO documents (key, item, document)
SELECT key_ids.ours, theirs.item, theirs.document
FROM other.documents AS theirs JOIN key_ids ON key_ids.theirs = theirs.key
WHERE true
ON CONFLICT DO NOTHING
"""
_ABSORBED = """
DROP TABLE temp.key_ids;
DROP TABLE temp.run_ids;
DROP TABLE temp.absorbed
"""


def absorb(database: Database, other: Path) -> None:
    """As `Store.absorb` says."""
    _check_other(other)
    if other.samefile(database.path):  # for which SQLite would wait for ever
        return
    with database.explained(f"absorb {other}"):
        database.execute("ATTACH ? AS other", (os.fspath(other.absolute()),))
    try:
        with database.transaction("BEGIN IMMEDIATE", f"absorb {other}"):
            database.check_schema("other", other)
            _refuse_wrong(database, other)
            added = _ABSORB_ADDED if _has_answers(database) else ""
            for statement in ";".join((_ABSORB, added, _ABSORBED)).split(";"):
                database.execute(statement)
    finally:
        with database.explained(f"close {other}"):
            database.execute("DETACH other")


def _refuse_wrong(database: Database, other: Path) -> None:
    """Refuses a store with results that were found wrong; older ones have no marks."""
    marks = "SELECT count(*) FROM other.sqlite_master WHERE name = 'invalid'"
    if not database.execute(marks).fetchone()[0]:
        return
    row = database.execute("SELECT reason FROM other.invalid").fetchone()
    if row is not None:
        raise StoreError(f"{other} holds results that were found wrong: {row[0]}")


def _has_answers(database: Database) -> bool:
    query = "SELECT 1 FROM other.sqlite_master WHERE (type, name) = ('table', 'answers')"
    return database.execute(query).fetchone() is not None


def _check_other(path: Path) -> None:
    """Refuses what SQLite would create, and what is no SQLite file."""
    try:
        if not path.is_file():
            raise StoreError(f"{path}: there is no such file: name a store to absorb")
        check_file(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot open: {error}: {DENIED}") from error
