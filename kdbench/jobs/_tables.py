"""Views as Parquet, under the one schema, so that datasets.load_dataset reads a run directory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.parquet as pq

from kdbench.errors import StorageError
from kdbench.records import arrow_schema

BLOCK = 2**19  # bytes of JSON read at once, of which some are read ahead; a longer line needs a longer block
ROWS = 5_000  # in a row group, at least


def write_parquet(source: Path, target: Path, *, rejections: bool = False) -> None:
    """Copy a JSONL view that kdbench wrote into Parquet, block by block. Raises StorageError.

    A rejection is one row: reason and detail beside the columns of the sample it turned down.
    """
    schema = arrow_schema()
    lines = schema
    if rejections:
        words = [pa.field("reason", pa.string()), pa.field("detail", pa.string())]
        own = [pa.field("id", pa.string()), schema.field("origin"), pa.field("sample", pa.struct(schema))]
        lines, schema = pa.schema([*words, *own]), pa.schema([*words, *schema])
    try:
        with pq.ParquetWriter(target, schema) as writer:
            for table in _row_groups(_batches(source, lines), lines):
                writer.write_table(_flat(table, schema) if rejections else table)
    except OSError as exc:
        raise StorageError(
            f"Cannot write {target}: {exc.strerror or exc}; free some room and go on with --resume"
        ) from exc


def _row_groups(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(one.num_rows for one in waiting) >= ROWS:
            yield pa.Table.from_batches(waiting, schema=schema)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting, schema=schema)


def _batches(source: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    with open(source, "rb") as file:
        longest = max(map(len, file), default=0)
    if longest == 0:
        return  # the reader refuses an empty file
    yield from pj.open_json(
        source,
        # A line must not be cut by more than one border between blocks.
        read_options=pj.ReadOptions(block_size=max(BLOCK, 2 * longest)),
        parse_options=pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
    )


def _flat(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rejections with the columns of their samples; id and origin are the rejection's own."""
    own = {"reason", "detail", "id", "origin"}
    columns = [
        table[name] if name in own else pc.struct_field(table["sample"], name) for name in schema.names
    ]
    return pa.Table.from_arrays(columns, schema=schema)
