"""Messages between hosts. The hosts are threads, and the last of them sends a wrong message."""

import queue
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from crepe_dist.distributed.messages import Bytes
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.errors import PeerLostError
from tests.conftest import needs_kernels
from tests.parallel.test_sharded_embedding import CREPE, OPTIMIZERS, TABLE, Training

pytestmark = needs_kernels
Damage = Callable[[Bytes], Any]


class ThreadGroup(ProcessGroup):
    """Process group of threads of one process. Each rank is a host.

    Args:
        mailboxes: Queue of the messages from one rank to another.
        damage: Functions that change the messages that this rank sends, by name of the collective.
    """

    backend = "threads"

    def __init__(self, rank: int, size: int, mailboxes: Any, damage: Mapping[str, Damage]) -> None:
        self._mailboxes, self._damage = mailboxes, damage
        super().__init__(rank, size)
        self.hosts = [[rank] for rank in range(size)]

    def _exchange(self, messages: Mapping[int, Bytes], name: str) -> tuple[Bytes, list[int]]:
        for rank, message in messages.items():
            content = message.copy() if rank == self.rank else self._damage.get(name, np.copy)(message.copy())
            self._mailboxes[self.rank, rank].put((name, np.asarray(content).view(np.uint8)))
        received = []
        for rank in range(self.size):
            sent_as, content = name, np.zeros(0, np.uint8)
            if rank in messages:
                sent_as, content = self._mailboxes[rank, self.rank].get(timeout=20)
            if sent_as != name:
                raise PeerLostError(f"rank {rank}: {sent_as}")
            received.append(content)
        return np.concatenate(received), [content.size for content in received]


def train(shape: Any, size: int = 2, damage: Mapping[str, Damage] | None = None) -> list[Any]:
    """Train on hosts of one process. Return the digest of the parameters, or the exception, of each rank.

    Args:
        damage: Damage to the messages of the last rank, from the second step on.
    """
    mailboxes: Any = defaultdict(queue.Queue)
    for ends in np.ndindex(size, size):
        mailboxes[ends]  # Create the queues before the threads use the dictionary.

    def train_rank(rank: int) -> str:
        done: dict[str, Damage] = {}
        try:
            training = Training(shape, OPTIMIZERS[0], group=ThreadGroup(rank, size, mailboxes, done)).steps(0, 1)
            done.update(damage or {} if rank == size - 1 else {})
            return training.steps(1, 6).digest()
        finally:
            for peer in range(size):
                mailboxes[rank, peer].put(("has ended", np.zeros(0, np.uint8)))

    with ThreadPoolExecutor(size) as threads:
        futures = [threads.submit(train_rank, rank) for rank in range(size)]
        return [future.exception(60) or future.result() for future in futures]


@pytest.mark.parametrize("shape", [TABLE, CREPE], ids=["n-grams", "crepe"])
@pytest.mark.parametrize("size", [2, 5])
def test_hosts_train_what_one_process_does(shape, size):
    assert train(shape, size) == [Training(shape, OPTIMIZERS[0]).steps(0, 6).digest()] * size


def changed(change: Callable[[list[int], list[int]], Any]) -> Damage:
    """Return a damage of a message with gradients.

    Args:
        change: Function that changes two lists of numbers in place: the excesses after their number, and the ids of the
            requested rows after their number.
    """

    def damage(message: Bytes) -> Bytes:
        words = message.view(np.uint32).tolist()
        # Other numbers can look like the number of rows, but only row ids follow it in ascending order.
        starts = [i for i, number in enumerate(words) if number == len(words) - i - 1]
        start = next(i for i in starts if words[i + 1 :] == sorted(words[i + 1 :]))
        if start == 0:  # The first message has only a request.
            return message
        excesses = next(i for i in range(start - 1, -1, -1) if 2 * words[i] == start - i - 1)
        parts = words[:excesses], words[excesses:start], words[start:]
        change(*parts[1:])
        return np.array([*parts[0], *parts[1], *parts[2]], np.uint32).view(np.uint8)

    return damage


DAMAGES = [
    ("gradients", lambda message: message[:8]),
    ("gradients", lambda message: message[:0]),
    ("gradients", lambda message: message[:-4]),
    ("gradients", lambda message: np.append(message, np.zeros(4, np.uint8))),
    ("gradients", lambda message: np.append(message, np.zeros(2, np.uint8))),
    ("gradients", changed(lambda excesses, request: excesses.__setitem__(0, 1 << 31))),  # Too few excesses.
    ("gradients", changed(lambda excesses, request: excesses.__setitem__(slice(None), [1, 1 << 31, 1]))),  # Place.
    ("gradients", changed(lambda excesses, request: request.__setitem__(0, 1 << 31))),  # Too few rows.
    ("gradients", changed(lambda excesses, request: request.__setitem__(1, (1 << 32) - 1))),  # Another rank's row.
    ("gradients", changed(lambda excesses, request: request.__setitem__(-1, (1 << 32) - 1))),
    ("gradients", changed(lambda excesses, request: request.__setitem__(slice(1, None), request[:0:-1]))),  # Order.
    ("gradients", changed(lambda excesses, request: request.__setitem__(2, request[1]))),  # The same row twice.
    ("rows", lambda message: message[:-2]),
    ("rows", lambda message: message[:0]),
    ("rows", lambda message: np.append(message, message[:2])),
    ("rows of weight", lambda message: message[:-4]),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_wrong_message_is_reported(name, damage):
    error, _ = train(TABLE, 2, {name: damage})
    assert isinstance(error, RuntimeError), error
    assert "rank 1 sent " in str(error)
    assert f"bytes as {name}, which do not contain what this rank expects" in str(error)
