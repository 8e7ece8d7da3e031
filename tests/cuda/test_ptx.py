"""The interpreter of PTX with which the tests run kernels: what a GPU leaves undefined, it tells."""

from __future__ import annotations

import pytest

from crepe_dist.cuda import compiler, gpu
from crepe_dist.errors import UserError
from tests.helpers import cuda_emulator
from tests.helpers.needs import needs

pytestmark = [needs("g++"), pytest.mark.skipif(cuda_emulator.is_real(), reason="of the stand-in")]


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (1, "of an allocation of 400: st.global.u32"),
        (2, "accesses 4 bytes at"),
        (3, "no memory of the GPU"),
        (4, "threads that have returned"),
        (5, "8 bytes at an address not a multiple of 8"),
        (6, "reads shared memory that nobody has written"),
        (7, "shared memory"),  # of the other warp, which may not have been there
        (8, "races with another thread in shared memory"),
        (9, "shuffles from a lane that is not there"),
    ],
)
def test_a_mistake_ends_the_launch(mistake, said, monkeypatch, capfd):
    monkeypatch.setattr(compiler, "KERNELS", cuda_emulator.FOLDER)
    with cuda_emulator.used(DRIVER_GPUS=10):
        device = gpu.Gpu(mistake)  # one for each: the context is lost
        image = compiler.compiled("probe.cu", {"FACTOR": 1}, device.capability)
        memory, program = device.allocate(400), gpu.Module(device, image, compiler.parameters())
        program.launch("go_wrong", 1, 64, memory, 100, mistake)
        with pytest.raises(UserError, match=r"CUDA_ERROR_(ILLEGAL_ADDRESS|LAUNCH_FAILED)"):
            device.wait()
    assert said in capfd.readouterr().err
