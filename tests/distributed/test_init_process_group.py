"""Polling interval of Horovod's background thread."""

import pytest

from crepe_dist.cuda import driver, nccl
from crepe_dist.distributed import init_process_group, mxnet_cuda
from crepe_dist.distributed.launch import HOROVODRUN, LauncherEnv
from crepe_dist.settings.config import Config
from crepe_dist.settings.options import ModelOptions

CREPE, PAPER, ON_CPU = Config(), Config(model=ModelOptions(network="paper")), Config(device="cpu")


@pytest.mark.parametrize(
    ("config", "gpus", "has_nccl", "local_size", "milliseconds"),
    [
        (None, 0, False, 4, "10"),
        (None, 0, False, 2, "1"),
        (ON_CPU, 4, True, 2, "1"),
        (CREPE, 4, True, 2, "10"),
        (CREPE, 4, False, 4, "1"),
        (PAPER, 4, True, 4, "0.2"),
    ],
    ids=["a host", "two hosts", "CPUs of two hosts", "NCCL", "GPUs without NCCL", "MXNet on GPUs"],
)
def test_horovod_polls_often_only_if_it_sums_the_gradients(
    config, gpus, has_nccl, local_size, milliseconds, monkeypatch
):
    monkeypatch.setattr(driver, "gpu_count", lambda: gpus)
    monkeypatch.setattr(nccl, "version", lambda: has_nccl)
    monkeypatch.setattr(mxnet_cuda, "is_installed", lambda: True)
    assert init_process_group.horovod_cycle_time(LauncherEnv(HOROVODRUN, 0, 4, local_size), config) == milliseconds
