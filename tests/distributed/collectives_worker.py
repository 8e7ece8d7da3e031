"""Worker of ``test_process_group.py``: three ranks call each collective."""

import time

import numpy as np

from crepe_dist.distributed import chunked_messages, process_group
from crepe_dist.distributed.init_process_group import init_process_group


def slow_steps():
    for number in range(6):
        time.sleep(0.2)
        yield number


def main() -> None:
    process_group.HEARTBEAT_SECONDS = 0.2
    chunked_messages.MAX_BYTES = 1 << 20  # The large messages below are then sent in chunks.
    with init_process_group() as group:
        assert group.size == 3
        for dtype in ("float32", "float64", "int32", "int64"):
            total = group.all_reduce(np.array([1, group.rank], dtype=dtype), "t")
            assert total.dtype == dtype, total
            assert total.tolist() == [3, 3], total
        number = np.array([2**40 + group.rank], dtype=np.int64)
        assert group.all_reduce(number, "big").tolist() == [3 * 2**40 + 3]
        assert group.all_gather_json({"rank": group.rank, "é": "x" * group.rank}, "g")[2] == {"rank": 2, "é": "xx"}
        assert group.broadcast_json(f"from {group.rank}", "b") == "from 0"
        assert group.run_steps_on_rank0("w", slow_steps()) == (5 if group.is_root else None)
        assert group.run_on_all("things", lambda: group.rank, compare_by=lambda _: "equal") == group.rank
        arrays = {"b": np.full((2, 3), group.rank), "a": np.arange(5.0) * (group.rank + 1), "empty": np.zeros(0)}
        group.broadcast_parameters(arrays)
        assert not arrays["b"].any()
        assert arrays["a"].tolist() == [0, 1, 2, 3, 4]
        large = np.repeat(np.arange(3, dtype=np.int32), 1 << 20).reshape(-1, 1)  # More than a connection holds.
        received, counts = group.all_to_all(large, [1 << 20] * 3, "big")
        assert received.shape == large.shape
        assert (received == group.rank).all()
        assert counts.tolist() == [1 << 20] * 3
        sent = np.full(group.rank, group.rank, np.int16)
        received, counts = group.all_to_all(sent, [0, 0, group.rank], "few")
        expected = ([1, 2, 2], [0, 1, 2]) if group.rank == 2 else ([], [0, 0, 0])
        assert (received.tolist(), counts.tolist()) == expected
        print("all well on", group.rank)


if __name__ == "__main__":
    main()
