"""Out-of-memory errors that name the batch size and suggest the next one to try."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from crepe_dist.errors import UserError, is_memory_error
from crepe_dist.settings.config import flag

# Parts of the text of an MXNetError, a RuntimeError: from CUDA's allocator, MXNet's on the host, oneDNN's, and C++'s.
TEXTS = ("out of memory", "Failed to allocate", "allocation failed", "could not create", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, RuntimeError):
        return any(text in str(error) for text in TEXTS)
    return is_memory_error(error)


@contextmanager
def explained(option: str, batch_size: int, processes: int) -> Iterator[None]:
    """Turn an out-of-memory error within the block into a ``UserError``.

    Args:
        option: name of the setting with the global batch size.
    """
    share = -(-batch_size // processes)
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory with {flag(option)} {batch_size}, which is {share} documents for this process",
            str(error).strip().splitlines()[-1][:200] if str(error) else "",
            f"try {flag(option)} {batch_size // 2}, a smaller network, or more processes on more hosts"
            if share > 1
            else "lower --width, choose --model ngrams, or shorten the documents (prepare --feature-len)",
        ) from error
