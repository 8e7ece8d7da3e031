"""Memory use of one rank that reads a data set, as JSON: ``python -m crepe_dist.benchmarking.loader_memory DIR``.

It runs in a process of its own, because earlier imports and freed memory would distort the figures.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from crepe_dist.data.dataset import open_dataset
from crepe_dist.data.loader import batches
from crepe_dist.data.order import epoch_order


def main() -> None:
    part = open_dataset(Path(sys.argv[1])).splits["train"]
    before = _anonymous()
    order = epoch_order(len(part), 0, 0)
    documents = sum(batch.documents for batch in batches(part, order, 128, 0, 1))
    mapped = [mapping for mapping in _mappings() if ".codes-" in mapping["name"]]
    print(
        json.dumps(
            {
                "documents": documents,
                "anonymous": _anonymous() - before,  # bytes
                "mapped": sum(mapping["Rss"] for mapping in mapped),
                "mapped and private to this process": sum(
                    mapping["Private_Dirty"] + mapping["Anonymous"] for mapping in mapped
                ),
            }
        )
    )


def _anonymous() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def _mappings() -> list[dict[str, Any]]:
    """List the memory mappings of this process with their ``name`` and sizes in bytes."""
    mappings: list[dict[str, Any]] = []
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        key, *rest = line.split()
        if key.endswith(":"):
            if rest and rest[-1] == "kB":
                mappings[-1][key[:-1]] = 1024 * int(rest[0])
        else:
            mappings.append({"name": rest[-1] if len(rest) > 4 else ""})
    return mappings


if __name__ == "__main__":
    main()
