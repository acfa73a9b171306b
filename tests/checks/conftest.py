"""A sound setup to put faults into: tiny models and a case of their samples."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def student(tmp_path_factory):
    from tests.trainers.tiny import save_model

    return save_model(tmp_path_factory.mktemp("student"), seed=1)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    from tests.trainers.tiny import save_model

    return save_model(tmp_path_factory.mktemp("teacher"), seed=2, layers=3, hidden=24)
