"""Program of ``test_process_group.py``: three ranks call each collective."""

from __future__ import annotations

import time

import numpy as np

from crepe_dist.distributed import chunked_messages, process_group
from crepe_dist.distributed.init_process_group import init_process_group


def work():
    for number in range(6):
        time.sleep(0.2)
        yield number


def main() -> None:
    process_group.HEARTBEAT_SECONDS = 0.2
    chunked_messages.MAX_BYTES = 1 << 20  # The large messages below then travel in pieces.
    with init_process_group() as world:
        assert world.size == 3
        for dtype in ("float32", "float64", "int32", "int64"):
            total = world.all_reduce(np.array([1, world.rank], dtype=dtype), "t")
            assert total.dtype == dtype, total
            assert total.tolist() == [3, 3], total
        number = np.array([2**40 + world.rank], dtype=np.int64)
        assert world.all_reduce(number, "big").tolist() == [3 * 2**40 + 3]
        assert world.all_gather_object({"rank": world.rank, "é": "x" * world.rank}, "g")[2] == {"rank": 2, "é": "xx"}
        assert world.broadcast_object(f"from {world.rank}", "b") == "from 0"
        assert world.run_steps_on_rank0("w", work()) == (5 if world.is_root else None)
        assert world.run_on_all("things", lambda: world.rank, compare_by=lambda _: "equal") == world.rank
        arrays = {"b": np.full((2, 3), world.rank), "a": np.arange(5.0) * (world.rank + 1), "empty": np.zeros(0)}
        world.broadcast_parameters(arrays)
        assert not arrays["b"].any()
        assert arrays["a"].tolist() == [0, 1, 2, 3, 4]
        large = np.repeat(np.arange(3, dtype=np.int32), 1 << 20).reshape(-1, 1)  # more than a connection holds
        received, counts = world.all_to_all(large, [1 << 20] * 3, "big")
        assert received.shape == large.shape
        assert (received == world.rank).all()
        assert counts.tolist() == [1 << 20] * 3
        sent = np.full(world.rank, world.rank, np.int16)
        received, counts = world.all_to_all(sent, [0, 0, world.rank], "few")
        expected = ([1, 2, 2], [0, 1, 2]) if world.rank == 2 else ([], [0, 0, 0])
        assert (received.tolist(), counts.tolist()) == expected
        print("all well on", world.rank)


if __name__ == "__main__":
    main()
