from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.multihost.network import Network, needs_namespaces


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("multihost")
            item.add_marker(needs_namespaces)


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """Two hosts, ``hosta`` and ``hostb``."""
    folder = tmp_path / "network"
    folder.mkdir()
    with Network(folder) as up:
        yield up
