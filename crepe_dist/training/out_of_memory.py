"""Out-of-memory errors, translated into messages that name the batch size."""

from collections.abc import Iterator
from contextlib import contextmanager

from crepe_dist.errors import UserError, is_memory_error
from crepe_dist.settings.config import flag

# An MXNetError or RuntimeError whose message contains one of these substrings means out of memory. The messages come
# from CUDA's allocator, MXNet's host allocator, oneDNN and C++.
MEMORY_TEXTS = ("out of memory", "Failed to allocate", "allocation failed", "could not create", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception from Python, MXNet, CUDA or the native kernels means out of memory."""
    if isinstance(error, RuntimeError):
        return any(text in str(error) for text in MEMORY_TEXTS)
    return is_memory_error(error)


@contextmanager
def oom_as_user_error(batch_size: int, processes: int) -> Iterator[None]:
    """Translate an out-of-memory error in the ``with`` block into a ``UserError``.

    Args:
        batch_size: Global batch size, in documents.
        processes: Number of processes.
    """
    option, shard_size = flag("data.batch_size"), -(-batch_size // processes)
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory with {option} {batch_size}, which is up to {shard_size} documents for this process",
            str(error).strip().splitlines()[-1][:300] if str(error) else "",
            f"try {option} {batch_size // 2}, a smaller network, or more processes on more hosts"
            if shard_size > 1
            else "lower --width, choose --model ngrams, or shorten the documents (prepare --feature-len)",
        ) from error
