"""How many samples a second the engine writes, and in how much memory, with the scripted teacher.

    python benchmarks/engine_throughput.py            # 10,000 and 100,000 samples
    python benchmarks/engine_throughput.py 1000 5000

Each size runs in a process of its own: recipe, call log on disk, filters, JSONL and Parquet included.
Flat memory shows as a peak that does not grow with the number of samples.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from kdbench.provenance import machine

ONE = """
import json, resource, sys, time
import kdbench
began = time.perf_counter()
kdbench.generate("tinystories", teacher="scripted", n=int(sys.argv[1]), out=sys.argv[2])
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"seconds": seconds, "peak_mib": peak}))
"""


def measure(n: int) -> dict[str, float]:
    """Seconds and peak memory of one generation of n samples, in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", ONE, str(n), f"{folder}/run"], capture_output=True, text=True, check=True
        )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure each size and print the table."""
    sizes = [int(word) for word in sys.argv[1:]] or [10_000, 100_000]
    spec = machine()
    where = f"{spec['cores']} cores, {spec['cpu']}, Python {spec['python']}"
    table = Table(title=f"{datetime.now(UTC):%Y-%m-%d}, {where}")
    for heading in ("samples", "samples/s", "whole run, s", "peak RSS, MiB"):
        table.add_column(heading, justify="right")
    for n in sizes:
        found = measure(n)
        rate = f"{n / found['seconds']:,.0f}"
        table.add_row(f"{n:,}", rate, f"{found['seconds']:.1f}", f"{found['peak_mib']:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
