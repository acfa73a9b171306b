"""The dataset card of a generated data set: README.md, which also tells `datasets` what to load.

    write_dataset_card(Path("runs/stories"), info)
    load_dataset("runs/stories")              # the samples
    load_dataset("runs/stories", "rejected")  # what was turned down, with the reason

Without the `configs:` of its head, `load_dataset` would mix every Parquet file of the directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData

from kdbench.reporting import _cards

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def write_dataset_card(run_dir: Path, info: dict[str, Any]) -> None:
    """Write README.md for the finished generation in `run_dir`; `info` is its run.json.

    Lists recipe, teachers, licence and counts. Raises StorageError.
    """
    stats = info.get("stats", {})
    licence = _cards.licence_of(info)
    data = DatasetCardData(
        license=licence,
        task_categories=["text-generation"],
        size_categories=_size(int(stats.get("accepted", 0))),
        tags=["synthetic", "knowledge-distillation", "kdbench"],
        configs=_configs(run_dir, stats),
    )
    text = _cards.body(
        "dataset_card.md.j2",
        recipe=info.get("recipe", "unknown"),
        teachers=_cards.teacher_names(info),
        licence=licence,
        stats=stats,
        templates=info.get("templates", {}),
        seed=info.get("seed"),
        commit=info.get("git", {}).get("commit"),
        config_sha256=info.get("config_sha256"),
        packages=info.get("packages", {}),
    )
    _cards.save(run_dir / "README.md", data.to_yaml(), text)


def _configs(run_dir: Path, stats: dict[str, Any]) -> list[dict[str, Any]]:
    configs: list[dict[str, Any]] = [
        {"config_name": "default", "data_files": "samples.parquet", "default": True}
    ]
    # `datasets` cannot load a table without rows.
    if stats.get("rejected") and (run_dir / "rejected.parquet").is_file():
        configs.append({"config_name": "rejected", "data_files": "rejected.parquet"})
    return configs


def _size(rows: int) -> str:
    return next((name for limit, name in SIZES if rows < limit), "n>1M")
