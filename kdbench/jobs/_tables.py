"""Views as Parquet, under the one schema, so that datasets.load_dataset reads a run directory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kdbench.errors import StorageError
from kdbench.records import arrow_schema

BATCH = 5_000  # rows held at once


def write_parquet(source: Path, target: Path, *, rejections: bool = False) -> None:
    """Copy a JSONL view that kdbench wrote into Parquet, batch by batch. Raises StorageError.

    A rejection is one row: reason and detail beside the columns of the sample it turned down.
    """
    schema = arrow_schema()
    if rejections:
        schema = pa.schema([pa.field("reason", pa.string()), pa.field("detail", pa.string()), *schema])
    try:
        with open(source, "rb") as lines, pq.ParquetWriter(target, schema) as writer:
            while batch := list(islice(_rows(lines, schema, rejections), BATCH)):
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
    except OSError as exc:
        raise StorageError(
            f"Cannot write {target}: {exc.strerror or exc}; free some room and go on with --resume"
        ) from exc


def _rows(lines: Any, schema: pa.Schema, rejections: bool) -> Iterator[dict[str, Any]]:
    for line in lines:
        values = json.loads(line)
        if rejections:
            values = {**(values.pop("sample") or {}), **values}
        yield {name: values.get(name) for name in schema.names}
