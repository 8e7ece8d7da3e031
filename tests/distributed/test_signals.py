import os
import signal
import threading
from typing import Any

import pytest

import crepe_dist.train
from crepe_dist.distributed.signals import SignalHandler, StepAction, StopRequested
from crepe_dist.errors import ExitCode
from crepe_dist.settings.config import Config
from crepe_dist.settings.options import DataOptions
from tests.conftest import needs_kernels


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, ExitCode.STOPPED), (signal.SIGINT, ExitCode.INTERRUPTED)]
)
def test_a_deferred_signal_only_requests_a_stop(number, code):
    previous = signal.getsignal(number)
    with SignalHandler() as handler:
        with handler.defer():
            os.kill(os.getpid(), number)
            assert handler.requested_action is StepAction.STOP
        assert handler.stop_exception().code == code
    assert signal.getsignal(number) is previous


def test_other_signals_raise_immediately_and_handlers_are_restored():
    previous = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StopRequested, match="SIGTERM") as raised, SignalHandler():
        os.kill(os.getpid(), signal.SIGTERM)
    assert raised.value.code == ExitCode.STOPPED
    assert signal.getsignal(signal.SIGTERM) is previous


def test_a_second_ctrl_c_stops_immediately():
    with SignalHandler() as handler, handler.defer():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@needs_kernels
def test_training_works_in_a_thread(data, tmp_path):
    """Only the main thread can handle signals. Training works without them."""
    config = Config(run_dir=str(tmp_path / "run"), data=DataOptions(str(data), 50))
    config.model.width, config.model.blocks, config.model.embedding_rows, config.training.epochs = 16, 1, 1024, 1
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(crepe_dist.train.train(config)))
    thread.start()
    thread.join()
    assert results[0].checkpoint.is_relative_to(tmp_path / "run")
    assert results[0].checkpoint.is_file()
