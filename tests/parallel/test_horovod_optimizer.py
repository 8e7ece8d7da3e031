"""All-reduce of the gradients that MXNet computes."""

from tests.conftest import run
from tests.helpers.programs import program


def test_gradients_are_summed_even_if_horovod_averages_by_default(tmp_path):
    printed = run(program("parallel/averaging_worker.py", processes=3), tmp_path)
    assert printed.count("all well on") == 3
