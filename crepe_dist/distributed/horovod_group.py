"""Process group of processes that ``horovodrun`` started, with Horovod for MXNet as the backend."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import horovod.mxnet as hvd
import mxnet as mx

from crepe_dist.distributed.chunked_messages import ChunkedProcessGroup
from crepe_dist.distributed.messages import Bytes
from crepe_dist.distributed.mxnet_internals import numpy_view
from crepe_dist.errors import PeerLostError

# MXNet raises an MXNetError if a peer is lost. There is no subclass for this case, so the message is searched. The
# message contains either an error of Gloo, after the name of a source file, or an error of Horovod. MXNet raises the
# error only once. Afterwards, the array can be read without an error, but its contents are wrong, so everything that
# depends on the array must be discarded. This was checked with Horovod 0.28.1. Check it again before you allow another
# version.
LOST_PEER = re.compile(r"/gloo/\S+\] (.*)|Horovod has been shut down")


class HorovodProcessGroup(ChunkedProcessGroup):
    """Process group over Horovod.

    Every collective has a name. Horovod would match unnamed collectives by a counter, which may differ between ranks.
    """

    backend = "Horovod"

    def __init__(self) -> None:
        hvd.init()
        super().__init__(hvd.rank(), hvd.size())

    def _bounded_all_to_all(self, data: Bytes, sizes: Sequence[int], name: str) -> tuple[Bytes, list[int]]:
        # The MXNet array uses the memory of `data` without a copy. MXNet makes the NumPy array that it receives
        # read-only, so pass a view to keep `data` writeable.
        array = mx.nd.from_numpy(data[:], zero_copy=True)
        with detect_lost_peer():
            received, received_sizes = hvd.alltoall(array, splits=list(sizes), name=name)
            received.wait_to_read()
            return numpy_view(received), received_sizes.asnumpy().tolist()

    def close(self) -> None:
        mx.nd.waitall()  # Without this wait, the last update may be lost, and MXNet prints an error at exit.
        hvd.shutdown()


@contextmanager
def detect_lost_peer() -> Iterator[None]:
    """Translate MXNet's error about a lost peer to ``PeerLostError``. The block contains a collective of Horovod.

    Raises:
        PeerLostError: Another process is lost.
    """
    try:
        yield
    except mx.MXNetError as error:
        if (lost := LOST_PEER.search(str(error))) is None:
            raise
        raise PeerLostError(lost[1] or lost[0]) from error
