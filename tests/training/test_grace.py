"""A grace period too short for a save is refused before the first step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from crepe_dist.distributed.world import World
from crepe_dist.errors import UserError
from crepe_dist.settings.config import parse
from crepe_dist.settings.training_options import CheckpointOptions
from crepe_dist.training.estimate import SAVE_SECONDS, check_grace
from crepe_dist.training.state_saver import StateSaver
from tests.conftest import QUICK, command, losses, run


def check(grace: float | None, step: float, written: float | None) -> None:
    saver = StateSaver(Path(), CheckpointOptions(), print)
    saver.seconds = written or 0.0
    config = parse([] if grace is None else [f"--safety.grace-s={grace}"])
    check_grace(config.safety.grace_s, step, saver, World())


@pytest.mark.parametrize(
    ("grace", "step", "written"), [(None, 1000, 1000), (SAVE_SECONDS + 1, 1, None), (9, 1, 0.1), (9, 1, 4)]
)
def test_enough(grace, step, written):
    check(grace, step, written)


@pytest.mark.parametrize(
    ("grace", "step", "written", "seconds"),
    [(4, 0.5, None, "4.5"), (30, 27, 0.1, "31.0"), (9, 1, 4.5, "10.0")],  # a long step; a slow disk
)
def test_too_short(grace, step, written, seconds):
    with pytest.raises(UserError, match=f"safety.grace_s is {grace}, but stopping may take {seconds} s") as caught:
        check(grace, step, written)
    assert caught.value.on_all_ranks


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_no_step_is_taken(data, tmp_path, processes):
    flags = ("--data", data, "--run-dir", "run", *QUICK, "--safety.grace-s=2")
    printed = run(command("train", *flags, processes=processes), tmp_path, code=1)
    assert printed.count("safety.grace_s is 2, but stopping may take 4.") == 1
    assert "set --safety.grace-s to that" in printed
    assert not (tmp_path / "run" / "metrics.jsonl").exists() or not losses(tmp_path / "run")


def test_the_script_for_slurm_has_one_number_in_two_places():
    text = (Path(__file__).parents[2] / "launch" / "slurm.sbatch").read_text(encoding="utf-8")
    lead = re.findall(r"^#SBATCH --signal=TERM@(\d+)$", text, re.MULTILINE)
    assert lead == re.findall(r"^arguments=\(.*--safety\.grace-s (\d+)\)", text, re.MULTILINE)
    assert len(lead) == 1
