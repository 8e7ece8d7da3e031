"""Batching of requests for a model that runs in one thread."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from typing import Any, Callable, NamedTuple

from crepe_dist.predicting.occlusion import Explanation
from crepe_dist.predicting.prediction import Prediction

BATCH_TEXTS = 32


class _Job(NamedTuple):
    given: Any  # texts to classify, or the steps of an explanation
    answer: Future[Any]


class Batcher:
    """Model thread with a queue of requests; MXNet must not be called from several threads.

    It never waits for a batch to fill up: the next batch consists of the requests that arrived during the last one, up
    to ``BATCH_TEXTS`` texts; a larger request is a batch of its own. Between two batches it computes one step of one
    explanation, so that these do not keep others waiting.

    Args:
        explain: function that explains the prediction for a text, and yields after each step.
        on_batch: called with the number of texts of each batch.
    """

    def __init__(
        self,
        predict: Callable[[Sequence[str]], list[Prediction]],
        explain: Callable[[str], Generator[None, None, Explanation]],
        on_batch: Callable[[int], None] = lambda texts: None,
    ) -> None:
        self._predict = predict
        self._explain = explain
        self._on_batch = on_batch
        self._arrivals: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def is_working(self) -> bool:
        return self._thread.is_alive()

    def submit(self, texts: Sequence[str]) -> Future[list[Prediction]]:
        """Queue a request, from any thread. A future that is cancelled before its turn is skipped."""
        return self._put(texts)

    def explain(self, text: str) -> Future[Explanation]:
        """Queue an explanation, from any thread. Once its future is cancelled, it is dropped."""
        return self._put(self._explain(text))

    def _put(self, given: Any) -> Future[Any]:
        job = _Job(given, Future())
        self._arrivals.put(job)
        return job.answer

    def close(self) -> None:
        """Answer all submitted requests, then end the thread."""
        self._arrivals.put(None)
        self._thread.join()

    def _work(self) -> None:
        waiting: deque[_Job] = deque()
        explaining: deque[_Job] = deque()
        is_closed = False
        while waiting or explaining or not is_closed:
            while not (waiting or explaining or is_closed) or not self._arrivals.empty():
                arrival = self._arrivals.get()
                if arrival is None:
                    is_closed = True
                else:
                    (explaining if isinstance(arrival.given, Generator) else waiting).append(arrival)
            jobs: list[_Job] = []
            texts = 0
            while waiting and (not jobs or texts + len(waiting[0].given) <= BATCH_TEXTS):
                job = waiting.popleft()
                if job.answer.set_running_or_notify_cancel():
                    jobs.append(job)
                    texts += len(job.given)
            if jobs:
                self._answer(jobs)
            if explaining and _has_ended(explaining[0]):
                explaining.popleft()

    def _answer(self, jobs: list[_Job]) -> None:
        texts = [text for job in jobs for text in job.given]
        try:
            self._on_batch(len(texts))
            predictions = iter(self._predict(texts))
            for job in jobs:
                job.answer.set_result([next(predictions) for _ in job.given])
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].answer.set_exception(error)
            else:  # of one request, perhaps, which is no reason to refuse the others
                for job in jobs:
                    self._answer([job])


def _has_ended(job: _Job) -> bool:
    """Compute the next step of an explanation; return whether it was the last one."""
    try:
        if not job.answer.cancelled():
            next(job.given)
            return False
    except StopIteration as end:
        if job.answer.set_running_or_notify_cancel():
            job.answer.set_result(end.value)
    except Exception as error:
        if job.answer.set_running_or_notify_cancel():
            job.answer.set_exception(error)
    return True
