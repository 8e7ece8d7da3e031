"""Tests of settings from flags and files: refused values, precedence, and saved files."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from crepe_dist.errors import UserError
from crepe_dist.settings import config
from crepe_dist.settings.config import GROUPS, Config, flag
from crepe_dist.settings.fields import Range, String, kind_of
from tests.test_errors import HUGE, check, mistake, outside


class TestSettings:
    @pytest.mark.parametrize("name", sorted(config.settings()))
    def test_every_setting_refuses_what_it_cannot_mean(self, name):
        setting = config.settings()[name]
        kind: Any = kind_of(setting)
        kind = getattr(kind, "of", kind)
        make = GROUPS.get(name.rpartition(".")[0], Config)
        wrong: list[Any] = [[1]]
        for value in outside(kind) if isinstance(kind, Range) else ():
            with suppress(ValueError, OverflowError):
                wrong.append(kind.kind(value))
        for value in wrong:
            with pytest.raises(UserError, match=name) as caught:
                make(**{setting.name: value})
            check(str(caught.value))
        assert flag(name) in mistake(f"{flag(name)}={'' if isinstance(kind, String) else 'nonsense'}")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--trainig.epochs=3"], "did you mean --epochs?"),
            (["--size=smal"], "one of auto, tiny, small, large"),
            (["--run-dir=\udcff"], "--run-dir is"),
            (['--class-weights={"a": 1e-30}'], "class-weights is"),
            (["--run-dir"], "--run-dir: expected one argument"),
            ([f"--seed={HUGE}"], "--seed is 999"),
            (["--config="], "--config is"),
        ],
    )
    def test_flags(self, arguments, message):
        assert message in mistake(*arguments)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("trainig: {epochs: 3}", "did you mean training?"),
            ("training: {epochs: 1.5}", "training.epochs is 1.5"),
            ("optimizer: {learning_rate: .nan}", "optimizer.learning_rate is nan"),
            ("data: 3", "data is not a group of settings"),
            ("fresh: maybe", "fresh is maybe"),
            ("- 3", "no settings of the form"),
            ("\t", "cannot be used"),
        ],
    )
    def test_files(self, tmp_path, text, message):
        path = tmp_path / "settings.yaml"
        path.write_text(text)
        assert message in mistake("--config", str(path))


def test_a_saved_configuration_gives_the_same_settings(tmp_path):
    flags = ["--seed=5", "--learning-rate=1e-3", '--class-weights={"spam": 3}', "--run-dir=x", "--data=y"]
    given = config.parse(flags)
    (tmp_path / "config.yaml").write_text(given.to_yaml())
    assert config.parse(["--config", str(tmp_path / "config.yaml")]) == given


def test_flags_override_files_and_later_files_earlier_ones(tmp_path):
    for name, text in (("a", "data: {batch_size: 1, typos: 1e-2}\ntraining: {seed: 1}"), ("b", "training: {seed: 2}")):
        (tmp_path / name).write_text(text)
    found = config.parse(["--seed=3", "--batch-size", "4", "--config", f"{tmp_path}/a", "--config", f"{tmp_path}/b"])
    assert (found.training.seed, found.data.batch_size, found.data.typos) == (3, 4, 0.01)
    found = config.parse(["--config", f"{tmp_path}/a", "--config", f"{tmp_path}/b"])
    assert (found.training.seed, found.data.batch_size) == (2, 1)


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_is_valid_and_gives_its_command(path):
    config.parse(["--config", str(path)])
    assert f"--config {path}" in path.read_text()
