"""Selection of what computes on a GPU: the native CUDA kernels, MXNet's operators, or an error with a reason."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from crepe_dist import network_registry
from crepe_dist.cuda import compiler, driver
from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.distributed.device import Device
from crepe_dist.errors import UserError
from crepe_dist.model import backend
from crepe_dist.model.backend import Backend, choose_backend, choose_for_inference
from crepe_dist.networks.crepe.config import CrepeConfig
from crepe_dist.reports import findings
from crepe_dist.settings.options import ModelOptions
from tests.helpers.engines import small_shape

CREPE, PAPER = small_shape("crepe"), small_shape("paper")
NGRAMS = network_registry.config_class("ngrams").for_data(
    ModelOptions(network="ngrams", buckets=4096), CharEncoder(feature_len=123), 4, 1000
)
WIDE = replace(cast(CrepeConfig, CREPE), width=129)
GPU = Device("gpu", 1)
pytestmark = pytest.mark.usefixtures("every_build")
NO_NVRTC = UserError("NVRTC is not installed", "no file", "install the extra gpu")
FLAVOUR = UserError("MXNet's CPU flavour is installed", "", "install its GPU flavour")


@pytest.fixture
def machine(monkeypatch):
    """Return a function that describes a machine with two GPUs."""

    def describe(
        capability: tuple[int, int] = (8, 0),
        version: tuple[int, int] = (12, 4),
        nvrtc: UserError | None = None,
        mxnet: UserError | None = None,
    ) -> None:
        monkeypatch.setattr(driver, "gpu_count", lambda: 2)
        monkeypatch.setattr(driver, "compute_capability", lambda gpu: capability)
        monkeypatch.setattr(driver, "driver_version", lambda: version)
        monkeypatch.setattr(compiler, "missing", lambda: nvrtc)
        monkeypatch.setattr(compiler, "_known_architectures", lambda: [50, 80])
        monkeypatch.setattr(compiler, "version", lambda: (12, 8))

        def check_mxnet(gpu: Device) -> None:
            if mxnet is not None:
                raise mxnet

        monkeypatch.setattr(backend, "check_mxnet_gpu", check_mxnet)

    describe()
    return describe


@pytest.mark.parametrize(
    ("capability", "architecture", "half"),
    [((7, 0), "sm_70", "float16"), ((9, 0), "sm_90", "bfloat16")],
)
def test_our_own_kernels_compute_on_gpus_since_volta(machine, capability, architecture, half):
    machine(capability)
    chosen = choose_backend(ModelOptions(), GPU, CREPE)
    assert (chosen.precision, chosen.kernels, chosen.on_cuda, chosen.library) == (half, "own", True, None)
    assert str(chosen) == f"{half}, own kernels (CUDA, {architecture})"
    build = f"cuda_{architecture.replace('_', '')}"
    assert chosen.as_settings() == {"model.precision": half, "model.kernels": build}
    assert choose_for_inference(CREPE, "auto", GPU) == chosen
    assert choose_backend(ModelOptions(kernels="native"), GPU, CREPE) == chosen
    assert choose_backend(ModelOptions(network="paper"), GPU, PAPER) == chosen
    assert str(choose_backend(ModelOptions(), GPU, NGRAMS)) == f"float32, own kernels (CUDA, {architecture})"
    asked = ModelOptions(precision="float32")
    assert str(choose_backend(asked, GPU, CREPE)) == f"float32, own kernels (CUDA, {architecture}) (as requested)"


@pytest.mark.parametrize(
    ("described", "options", "shape", "reason"),
    [
        ({}, {}, WIDE, "compute a --width of up to 128, and it is 129"),
        ({"capability": (6, 1)}, {}, CREPE, "need compute capability 7.0 (Volta) or later, and this GPU has 6.1"),
        ({"version": (11, 8)}, {}, CREPE, "the NVIDIA driver is too old: it is for CUDA 11.8"),
        ({"nvrtc": NO_NVRTC}, {}, CREPE, NO_NVRTC.what),
        ({}, {"precision": "float16"}, CREPE, "on this GPU, the native kernels compute in bfloat16 or float32"),
    ],
    ids=["width", "Pascal", "old driver", "no NVRTC", "float16"],
)
def test_otherwise_the_plan_says_why_and_what_to_do(machine, described, options, shape, reason):
    machine(**described)
    with pytest.raises(UserError) as raised:
        choose_backend(ModelOptions(**options), GPU, shape)
    assert raised.value.what == "no kernels can compute this network on gpu(1)"
    assert reason in raised.value.why
    assert raised.value.remedy


def test_mxnet_computes_the_papers_network_only(machine):
    for capability, options in (((8, 0), ModelOptions(kernels="mxnet")), ((6, 1), ModelOptions())):
        machine(capability)
        chosen = choose_backend(options, GPU, PAPER)
        assert (chosen.build_name, chosen.on_cuda, chosen.precision) == ("mxnet", False, "float32")
    for options, shape, message in (
        (ModelOptions(network="paper", kernels="native"), PAPER, "native kernels cannot compute this network on gpu"),
        (ModelOptions(network="paper", precision="float16"), PAPER, "only float32 can be computed"),
        (ModelOptions(kernels="mxnet"), CREPE, "MXNet's operators do not compute --model crepe"),
    ):
        with pytest.raises(UserError, match=message):
            choose_backend(options, GPU, shape)
    machine(mxnet=FLAVOUR)
    with pytest.raises(UserError) as raised:
        choose_backend(ModelOptions(network="paper", kernels="mxnet"), GPU, PAPER)
    assert raised.value is FLAVOUR


def test_versions_of_the_compilers_must_be_equal_on_all_ranks(machine):
    """The driver's compiler is used for an architecture that NVRTC does not support."""
    on_a100, on_h100 = (Backend("float32", None, "", architecture=name) for name in ("sm_80", "sm_90"))
    assert on_a100.determinism_key() == {**on_a100.as_settings(), "GPU": "sm_80, NVRTC 12.8"}
    assert on_h100.determinism_key()["GPU"] == "sm_90, NVRTC 12.8, driver for CUDA 12.4"


def test_a_run_on_a_gpu_is_reproducible_on_its_architecture(machine):
    record: Any = SimpleNamespace(
        metadata={"numerics": {"model.precision": "bfloat16", "model.kernels": "cuda_sm80", "device": "gpu(3)"}},
        made={"processes": 4},
        path="runs/a",
    )
    assert findings.reproducible(record)
    assert findings.command(record) == (
        "python -m crepe_dist.train --config runs/a/config.yaml --precision bfloat16 --kernels native --device gpu "
        "--fresh"
    )
