"""kdbench: turn a large language model into a small one that does one job well, and prove it.

    import kdbench
    kdbench.generate("tinystories", teacher="scripted", n=100, out="runs/stories")

Every command has its twin here: generate, preview, make_student, train, evaluate, report, run_job,
chat, doctor.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdbench.jobs.chatting import chat as chat
    from kdbench.jobs.doctor_job import doctor as doctor
    from kdbench.jobs.evaluating import evaluate as evaluate
    from kdbench.jobs.generating import generate as generate
    from kdbench.jobs.previewing import preview as preview
    from kdbench.jobs.report_job import report as report
    from kdbench.jobs.running import run_job as run_job
    from kdbench.jobs.signals_job import store_signals as store_signals
    from kdbench.jobs.student_job import make_student as make_student
    from kdbench.jobs.training import train as train

# Loaded on first use, so that `import kdbench` and every module below it stay light.
_TWINS = {
    "generate": "kdbench.jobs.generating",
    "preview": "kdbench.jobs.previewing",
    "make_student": "kdbench.jobs.student_job",
    "store_signals": "kdbench.jobs.signals_job",
    "train": "kdbench.jobs.training",
    "evaluate": "kdbench.jobs.evaluating",
    "report": "kdbench.jobs.report_job",
    "run_job": "kdbench.jobs.running",
    "chat": "kdbench.jobs.chatting",
    "doctor": "kdbench.jobs.doctor_job",
}
__all__ = list(_TWINS)


def __getattr__(name: str) -> Any:
    if name not in _TWINS:
        raise AttributeError(f"module 'kdbench' has no attribute '{name}'")
    return getattr(import_module(_TWINS[name]), name)
