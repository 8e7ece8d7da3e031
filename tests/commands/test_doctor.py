"""Tests of `crepe doctor`."""

from crepe_dist.commands import doctor


def test_this_machine_is_described(printed_by):
    names = [line[:13].rstrip() for line in printed_by("doctor").splitlines()]
    assert names[:2] == ["machine", "CPU kernels"]
    assert names[-2:] == ["MPI", "Horovod"]


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(doctor.library, "find", lambda: (None, "no AVX2"))
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    said = dict(doctor.describe_machine())
    assert said["CPU kernels"] == "none; no AVX2"
    assert (said["MPI"], said["Horovod"]) == ("mpi4py not found", "horovod not found")
