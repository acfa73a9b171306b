"""Views as Parquet, under the one schema, so that datasets.load_dataset reads a run directory."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.parquet as pq

from kdbench.errors import StorageError
from kdbench.records import arrow_schema

BLOCK = 4 * 2**20  # bytes of JSON read at once; a longer line makes its own block longer


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
            for batch in _batches(source, lines):
                writer.write_batch(_flat(batch, schema) if rejections else batch)
    except OSError as exc:
        raise StorageError(
            f"Cannot write {target}: {exc.strerror or exc}; free some room and go on with --resume"
        ) from exc


def _batches(source: Path, schema: pa.Schema) -> pj.JSONStreamingReader | list[pa.RecordBatch]:
    with open(source, "rb") as file:
        longest = max(map(len, file), default=0)
    if longest == 0:
        return []  # the reader refuses an empty file
    return pj.open_json(
        source,
        # A line must not be cut by more than one border between blocks.
        read_options=pj.ReadOptions(block_size=max(BLOCK, 2 * longest)),
        parse_options=pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
    )


def _flat(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Rejections with the columns of their samples; id and origin are the rejection's own."""
    own = {"reason", "detail", "id", "origin"}
    columns = [
        batch[name] if name in own else pc.struct_field(batch["sample"], name) for name in schema.names
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
