"""Batching of requests for a model."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, NamedTuple

from crepe_dist.predicting.occlusion import Explanation
from crepe_dist.predicting.prediction import Prediction

BATCH_TEXTS = 32


class _Job(NamedTuple):
    texts: Sequence[str]
    answer: Future[list[Prediction]]


class DynamicBatcher:
    """A thread that classifies, with a queue of requests, and one that explains a text at a time.

    It never waits for a batch to fill up: the next batch consists of the requests that arrived during the last one, up
    to ``BATCH_TEXTS`` texts; a larger request is a batch of its own.

    Args:
        explain: function that explains the prediction for a text.
        on_batch: called with the number of texts of each batch.
    """

    def __init__(
        self,
        predict: Callable[[Sequence[str]], list[Prediction]],
        explain: Callable[[str], Explanation],
        on_batch: Callable[[int], None] = lambda texts: None,
    ) -> None:
        self._predict = predict
        self._explain = explain
        self._on_batch = on_batch
        self._waiting: deque[_Job] = deque()
        self._predicting, self._explaining = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.is_working = True

    def submit(self, texts: Sequence[str]) -> Future[list[Prediction]]:
        """Queue a request, from any thread. A future that is cancelled before its turn is skipped."""
        job = _Job(texts, Future())
        self._waiting.append(job)
        self._predicting.submit(self._answer_next)  # this request, unless it was answered with earlier ones
        return job.answer

    def explain(self, text: str) -> Future[Explanation]:
        """Queue an explanation, from any thread."""
        return self._explaining.submit(self._explain, text)

    def close(self) -> None:
        """Answer all submitted requests, then end the threads."""
        self.is_working = False
        self._predicting.shutdown()
        self._explaining.shutdown()

    def _answer_next(self) -> None:
        jobs: list[_Job] = []
        texts = 0
        while self._waiting and (not jobs or texts + len(self._waiting[0].texts) <= BATCH_TEXTS):
            job = self._waiting.popleft()
            if job.answer.set_running_or_notify_cancel():
                jobs.append(job)
                texts += len(job.texts)
        if jobs:
            self._answer(jobs)

    def _answer(self, jobs: list[_Job]) -> None:
        texts = [text for job in jobs for text in job.texts]
        try:
            self._on_batch(len(texts))
            predictions = iter(self._predict(texts))
            for job in jobs:
                job.answer.set_result([next(predictions) for _ in job.texts])
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].answer.set_exception(error)
            else:  # of one request, perhaps, which is no reason to refuse the others
                for job in jobs:
                    self._answer([job])
