"""Batching of requests for a model that runs in one thread."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Callable, NamedTuple

from crepe_dist.predicting.prediction import Prediction

BATCH_TEXTS = 32


class _Job(NamedTuple):
    texts: Sequence[str]
    answer: Future[list[Prediction]]


class Batcher:
    """Model thread with a queue of requests; MXNet must not be called from several threads.

    It never waits for a batch to fill up: the next batch consists of the requests that arrived during the last one.

    Args:
        predict: function that returns one prediction per text, in order.
        batch_texts: largest number of texts of several requests in one batch. A larger request is a batch of its own.
        on_batch: called with the number of texts of each batch.
    """

    def __init__(
        self,
        predict: Callable[[Sequence[str]], list[Prediction]],
        batch_texts: int = BATCH_TEXTS,
        on_batch: Callable[[int], None] = lambda texts: None,
    ) -> None:
        self._predict = predict
        self._batch_texts = batch_texts
        self._on_batch = on_batch
        self._arrivals: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def is_working(self) -> bool:
        return self._thread.is_alive()

    def submit(self, texts: Sequence[str]) -> Future[list[Prediction]]:
        """Queue a request, from any thread. A future that is cancelled before its turn is skipped."""
        job = _Job(texts, Future())
        self._arrivals.put(job)
        return job.answer

    def close(self) -> None:
        """Answer all submitted requests, then end the thread."""
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
            while waiting and (job := waiting[0]) is not None:
                if jobs and texts + len(job.texts) > self._batch_texts:
                    break
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
            self._on_batch(len(texts))
            predictions = iter(self._predict(texts))
            for job in jobs:
                job.answer.set_result([next(predictions) for _ in job.texts])
        except Exception as error:
            for job in jobs:
                if not job.answer.done():
                    job.answer.set_exception(error)
