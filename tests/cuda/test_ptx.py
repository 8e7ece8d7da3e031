"""The PTX interpreter of the tests reports operations whose results are undefined on a GPU."""

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
        (7, "shared memory"),  # Written by the other warp, which may not have run yet.
        (8, "races with another thread in memory: ld.shared"),
        (9, "shuffles from a lane that is not there"),
        (10, "races with another thread in memory: st.global"),
    ],
)
def test_a_mistake_ends_the_launch(mistake, said, monkeypatch, capfd):
    monkeypatch.setattr(compiler, "KERNELS", cuda_emulator.FOLDER)
    with cuda_emulator.used(DRIVER_GPUS=11, EMULATOR_RACES=1):
        device = gpu.Gpu(mistake)  # One GPU per mistake, because a mistake destroys the context.
        image = compiler.compile_cached("probe.cu", {"FACTOR": 1}, device.capability)
        memory, program = device.allocate(400), gpu.CudaModule(device, image, compiler.parameters())
        program.launch("go_wrong", 1, 64, memory, 100, mistake)
        with pytest.raises(UserError, match=r"CUDA_ERROR_(ILLEGAL_ADDRESS|LAUNCH_FAILED)"):
            device.wait()
    assert said in capfd.readouterr().err


@pytest.mark.parametrize("statement", ["add.sat.s32 %a, %a, %a", "setp.lt.and.s32 %p, %a, %a, %p"])
def test_an_instruction_that_is_not_emulated_is_told(statement, capfd):
    text = f".target sm_70\n.entry one(.param .u32 n) {{ .reg .pred %p; .reg .b32 %a; {statement}; ret; }}\0"
    with cuda_emulator.used(), pytest.raises(UserError, match="CUDA_ERROR_INVALID_PTX"):
        gpu.CudaModule(gpu.Gpu(0), text.encode(), {})
    assert f"one: {statement}: " in capfd.readouterr().err
