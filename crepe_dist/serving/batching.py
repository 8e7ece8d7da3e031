"""Dynamic batching of requests for a model."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from crepe_dist.predicting.occlusion import Explanation
from crepe_dist.predicting.prediction import Prediction

BATCH_TEXTS = 32  # Maximum number of texts in a batch that combines multiple requests.


class _Request(NamedTuple):
    texts: Sequence[str]
    future: Future[list[Prediction]]


class DynamicBatcher:
    """Queue of requests, with one thread that classifies batches and one thread that explains single texts.

    The first thread never waits for more requests to fill a batch. Each batch consists of the requests that arrived
    while the previous batch was processed, up to ``BATCH_TEXTS`` texts. A request with more texts forms its own batch.

    Args:
        predict: Function that classifies texts.
        explain: Function that explains the prediction for a text.
        on_batch: Callback for each batch. It receives the number of texts in the batch.
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
        self._queue: deque[_Request] = deque()
        self._predict_thread, self._explain_thread = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self.is_working = True

    def submit(self, texts: Sequence[str]) -> Future[list[Prediction]]:
        """Queue a request. This method is thread-safe. A request that is cancelled before it starts is skipped."""
        request = _Request(texts, Future())
        self._queue.append(request)
        # One task is submitted per request. If an earlier task has already emptied the queue, the task does nothing.
        self._predict_thread.submit(self._process_next_batch)
        return request.future

    def explain(self, text: str) -> Future[Explanation]:
        """Queue an explanation. This method is thread-safe."""
        return self._explain_thread.submit(self._explain, text)

    def close(self) -> None:
        """Process all queued requests, then stop the threads."""
        self.is_working = False
        self._predict_thread.shutdown()
        self._explain_thread.shutdown()

    def _process_next_batch(self) -> None:
        requests: list[_Request] = []
        num_texts = 0
        while self._queue and (not requests or num_texts + len(self._queue[0].texts) <= BATCH_TEXTS):
            request = self._queue.popleft()
            if request.future.set_running_or_notify_cancel():
                requests.append(request)
                num_texts += len(request.texts)
        if requests:
            self._process(requests)

    def _process(self, requests: list[_Request]) -> None:
        texts = [text for request in requests for text in request.texts]
        try:
            self._on_batch(len(texts))
            predictions = iter(self._predict(texts))
            for request in requests:
                request.future.set_result([next(predictions) for _ in request.texts])
        except Exception as error:
            if len(requests) == 1:
                requests[0].future.set_exception(error)
            else:
                # Possibly, only one request causes the error. Each request is therefore processed again separately.
                for request in requests:
                    self._process([request])
