"""The choice among the builds of the kernels."""

from __future__ import annotations

from crepe_dist.native import library


def test_this_processor_runs_a_build():
    """The tests of the kernels run for no build at all where the package was installed without a compiler."""
    assert library.supported_builds()
    found, trouble = library.find()
    assert found is not None
    assert not trouble


def test_builds_are_chosen_by_the_processor_and_by_what_loads(monkeypatch):
    monkeypatch.setattr(library, "processor_flags", lambda: {"sse2"})
    assert library.supported_builds() == ["generic"]
    found, trouble = library._best.__wrapped__()
    assert found is not None
    assert (found.name, found.bfloat16, trouble) == ("generic", False, "this processor has no AVX2")
    monkeypatch.setattr(library, "processor_flags", lambda: library.BUILDS["avx2"])
    assert library.supported_builds() == ["avx2", "generic"]
    found, trouble = library._best.__wrapped__()
    assert found is not None
    assert (found.name, found.bfloat16, trouble) == ("avx2", False, "")
