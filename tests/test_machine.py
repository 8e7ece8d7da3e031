"""Facts of the machine, from made-up control groups."""

from __future__ import annotations

import pytest

from crepe_dist import machine


@pytest.mark.parametrize(
    ("membership", "files", "free"),
    [
        ("0::/", {"memory.max": "5000", "memory.current": "4000", "memory.stat": "inactive_file 1500"}, 2500),
        ("2:memory:/x", {"memory/x/memory.limit_in_bytes": "100", "memory/x/memory.usage_in_bytes": "70",
                         "memory/x/memory.stat": "total_inactive_file 0"}, 30),
        ("3:cpu:/x\n0::/a/b", {"a/memory.max": "max"}, None),
    ],
)  # fmt: skip
def test_control_groups(tmp_path, monkeypatch, membership, files, free):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "membership").write_text(membership + "\n")
    monkeypatch.setattr(machine, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(machine, "CONTROL_GROUPS", tmp_path)
    available = machine.available_memory()
    assert available == free if free is not None else available > 10**6
