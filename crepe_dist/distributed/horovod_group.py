"""Process group of processes that ``horovodrun`` started, with Horovod for MXNet as the backend."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import horovod.mxnet as hvd
import mxnet as mx

from crepe_dist.distributed.chunked_messages import ChunkedProcessGroup
from crepe_dist.distributed.messages import Bytes
from crepe_dist.distributed.mxnet_internals import numpy_view
from crepe_dist.errors import PeerLostError

# MXNet raises an MXNetError if a peer is lost; there is no special type. The text contains either the error of Gloo,
# after the name of a source file, or the error of Horovod. The error is raised only once. Afterwards, the array can be
# read without an error, but its contents are wrong: discard everything that depends on it. This was checked with
# Horovod 0.28.1. Repeat the check before another version is allowed.
LOST_PEER = re.compile(r"/gloo/\S+\] (.*)|Horovod has been shut down")


class HorovodProcessGroup(ChunkedProcessGroup):
    """Process group over Horovod.

    Every collective has a name. Horovod matches collectives without names by a counter that may differ by rank.
    """

    backend = "Horovod"

    def __init__(self) -> None:
        hvd.init()
        super().__init__(hvd.rank(), hvd.size())

    def _bounded_all_to_all(self, data: Bytes, sizes: Sequence[int], name: str) -> tuple[Bytes, list[int]]:
        # The MXNet array shares the memory of `data`. MXNet makes the NumPy array read-only, so it gets a view.
        array = mx.nd.from_numpy(data[:], zero_copy=True)
        with detect_lost_peer():
            received, received_sizes = hvd.alltoall(array, splits=list(sizes), name=name)
            received.wait_to_read()
            return numpy_view(received), received_sizes.asnumpy().tolist()

    def close(self) -> None:
        mx.nd.waitall()  # Otherwise the last update may be lost, and MXNet prints an error at exit.
        hvd.shutdown()


@contextmanager
def detect_lost_peer() -> Iterator[None]:
    """Translate MXNet's error about a lost peer, within the block of a collective of Horovod.

    Raises:
        PeerLostError: Another process is lost.
    """
    try:
        yield
    except mx.MXNetError as error:
        if (lost := LOST_PEER.search(str(error))) is None:
            raise
        raise PeerLostError(lost[1] or lost[0]) from error
