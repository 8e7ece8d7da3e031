"""World of processes that ``horovodrun`` started, through Horovod for MXNet."""

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

# In the text of an MXNetError after a lost peer, for which there is no type: Gloo's error, behind its source file, or
# Horovod's. It is raised once. Afterwards the array can be read without an error, but its contents are wrong: discard
# all that depends on it. Checked with Horovod 0.28.1; check it before another version is allowed.
LOST_PEER = re.compile(r"/gloo/\S+\] (.*)|Horovod has been shut down")


class HorovodProcessGroup(ChunkedProcessGroup):
    """World over Horovod, in which collectives without a name pair up by a counter that may differ by rank."""

    backend = "Horovod"

    def __init__(self) -> None:
        hvd.init()
        super().__init__(hvd.rank(), hvd.size())

    def _bounded_all_to_all(self, data: Bytes, sizes: Sequence[int], name: str) -> tuple[Bytes, list[int]]:
        # On the memory of `data`, which MXNet makes read-only: hence a view.
        array = mx.nd.from_numpy(data[:], zero_copy=True)
        with detect_lost_peer():
            received, from_each = hvd.alltoall(array, splits=list(sizes), name=name)
            received.wait_to_read()
            return numpy_view(received), from_each.asnumpy().tolist()

    def close(self) -> None:
        mx.nd.waitall()  # otherwise the last update may be lost, and MXNet complains at exit
        hvd.shutdown()


@contextmanager
def detect_lost_peer() -> Iterator[None]:
    """Run a collective of Horovod to its end.

    Raises:
        PeerGone: another process is lost.
    """
    try:
        yield
    except mx.MXNetError as error:
        if (lost := LOST_PEER.search(str(error))) is None:
            raise
        raise PeerLostError(lost[1] or lost[0]) from error
