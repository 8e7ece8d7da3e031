"""One thread that owns the model, and classifies together what waits for it."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Callable, NamedTuple

from crepe_dist.predicting.prediction import Prediction

TOGETHER = 32  # texts


class _Job(NamedTuple):
    texts: Sequence[str]
    answer: Future[list[Prediction]]


class Batcher:
    """Calls the model from a thread of its own, because MXNet is not to be called from many.

    It never waits for company: what came in while the last batch was computed is the next batch.

    Args:
        predict: one prediction a text, in order.
        together: texts of several requests that are classified in one call; a request with more is one call by itself.
        seen: told the number of texts of each call.
    """

    def __init__(
        self,
        predict: Callable[[Sequence[str]], list[Prediction]],
        together: int = TOGETHER,
        seen: Callable[[int], None] = lambda texts: None,
    ) -> None:
        self._predict = predict
        self._together = together
        self._seen = seen
        self._arrivals: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def is_working(self) -> bool:
        return self._thread.is_alive()

    def submit(self, texts: Sequence[str]) -> Future[list[Prediction]]:
        """From any thread. A future that is cancelled before its turn costs nothing."""
        job = _Job(texts, Future())
        self._arrivals.put(job)
        return job.answer

    def close(self) -> None:
        """Ends the thread once all that was submitted is answered."""
        self._arrivals.put(None)
        self._thread.join()

    def _work(self) -> None:
        waiting: deque[_Job | None] = deque()
        while True:
            if not waiting:
                waiting.append(self._arrivals.get())
            while not self._arrivals.empty():
                waiting.append(self._arrivals.get())
            jobs: list[_Job] = []
            texts = 0
            while (
                waiting and (job := waiting[0]) is not None and (not jobs or texts + len(job.texts) <= self._together)
            ):
                waiting.popleft()
                if job.answer.set_running_or_notify_cancel():
                    jobs.append(job)
                    texts += len(job.texts)
            if jobs:
                self._answer(jobs)
            elif waiting and waiting[0] is None:
                return

    def _answer(self, jobs: list[_Job]) -> None:
        texts = [text for job in jobs for text in job.texts]
        try:
            self._seen(len(texts))
            predictions = iter(self._predict(texts))
            for job in jobs:
                job.answer.set_result([next(predictions) for _ in job.texts])
        except Exception as error:
            for job in jobs:
                if not job.answer.done():
                    job.answer.set_exception(error)
