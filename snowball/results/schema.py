"""The tables of a store, and what a file says of itself in its header."""

from __future__ import annotations

# In the header of the file: whose it is ("snow" in ASCII), and which schema it has.
APPLICATION_ID = 0x736E6F77
SCHEMA_VERSION = 1

# A result cannot exist without its row in `completed`, and goes with it.
SCHEMA = """
CREATE TABLE runs (id INTEGER PRIMARY KEY, started TEXT NOT NULL, provenance TEXT NOT NULL);
CREATE TABLE models (id INTEGER PRIMARY KEY, sha256 TEXT NOT NULL UNIQUE);
CREATE TABLE datasets (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, sha256 TEXT NOT NULL, UNIQUE (name, sha256)
);
CREATE TABLE keys (
    id INTEGER PRIMARY KEY,
    model INTEGER NOT NULL REFERENCES models,
    dataset INTEGER NOT NULL REFERENCES datasets,
    UNIQUE (model, dataset)
);
CREATE TABLE removals (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE metrics (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE statistics (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE completed (
    key INTEGER NOT NULL REFERENCES keys,
    removal INTEGER NOT NULL REFERENCES removals,
    item INTEGER NOT NULL,
    run INTEGER NOT NULL REFERENCES runs,
    PRIMARY KEY (key, removal, item)
) WITHOUT ROWID;
CREATE TABLE results (
    key INTEGER NOT NULL,
    removal INTEGER NOT NULL,
    item INTEGER NOT NULL,
    metric INTEGER NOT NULL REFERENCES metrics,
    value REAL NOT NULL,
    PRIMARY KEY (key, removal, item, metric),
    FOREIGN KEY (key, removal, item) REFERENCES completed ON DELETE CASCADE
) WITHOUT ROWID;
CREATE TABLE arrays (
    key INTEGER NOT NULL REFERENCES keys,
    statistic INTEGER NOT NULL REFERENCES statistics,
    item INTEGER NOT NULL,
    run INTEGER NOT NULL REFERENCES runs,
    shape TEXT NOT NULL,
    data BLOB NOT NULL,
    UNIQUE (key, statistic, item)
);
"""

# Results of a model on a dataset that were found wrong: kept, but given to nobody.
INVALID = """
CREATE TABLE IF NOT EXISTS invalid (
    key INTEGER PRIMARY KEY REFERENCES keys, reason TEXT NOT NULL, found TEXT NOT NULL
)
"""
VIEW = """
CREATE VIEW named_results AS
SELECT models.sha256 AS model, removals.name AS removed, datasets.name AS dataset, results.item,
    metrics.name AS metric, results.value, datasets.sha256 AS dataset_hash
FROM results
JOIN keys ON keys.id = results.key
JOIN models ON models.id = keys.model
JOIN datasets ON datasets.id = keys.dataset
JOIN removals ON removals.id = results.removal
JOIN metrics ON metrics.id = results.metric
WHERE results.key NOT IN (SELECT key FROM invalid)
"""

# What stores of the first version lack, and get when they are opened; they stay readable for it.
ADDED = """
CREATE TABLE IF NOT EXISTS answers (
    key INTEGER NOT NULL,
    removal INTEGER NOT NULL,
    item INTEGER NOT NULL,
    answer TEXT NOT NULL,
    PRIMARY KEY (key, removal, item),
    FOREIGN KEY (key, removal, item) REFERENCES completed ON DELETE CASCADE
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS documents (
    key INTEGER NOT NULL REFERENCES keys,
    item INTEGER NOT NULL,
    document TEXT NOT NULL,
    PRIMARY KEY (key, item)
) WITHOUT ROWID
"""
