"""Transfer learning from another run: copied and new layers, and incompatible combinations."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import crepe_dist
from crepe_dist.data.char_encoder import CharEncoder
from crepe_dist.data.dataset import Dataset, open_dataset
from crepe_dist.errors import UserError
from crepe_dist.files.safe_read import sha256
from crepe_dist.model import weights_io
from crepe_dist.model.quantization import CompressedArray
from crepe_dist.preparing.preparation import prepare
from crepe_dist.preparing.sources import find_sources
from crepe_dist.preparing.spec import PreparationSpec
from crepe_dist.preparing.splitting import SplitOptions
from crepe_dist.runs import checkpoint
from crepe_dist.settings.config import Config
from crepe_dist.settings.options import ModelOptions
from crepe_dist.training import transfer
from crepe_dist.training.model_setup import initial_parameters, select_network_config
from crepe_dist.training.startup_messages import warn_leaked_rows
from tests.conftest import FEATURE_LEN, needs_kernels, train, write_csv
from tests.helpers.engines import Network

CREPE = ModelOptions(network="crepe", buckets=64, embedding_rows=1024, width=32, blocks=2)
PAPER = ModelOptions(network="paper", size="tiny")
NGRAMS = ModelOptions(network="ngrams", buckets=64)
NETWORKS = {"crepe": CREPE, "paper": PAPER, "ngrams": NGRAMS}
OTHER_CLASSES = ["one", "two"]
SOME_CLASSES = {"more": ["new", "third", "first", "second"], "others": ["second", "new"]}
LAST = {"14.weight", "14.bias"}
CYRILLIC = "абвгд "


def build_network(options: ModelOptions, dataset: Dataset, start: transfer.PretrainedWeights | None = None) -> Network:
    shape = start.shape if start else select_network_config(options, dataset)
    return Network(shape, initial_parameters(Config(model=options), shape, start))


def with_classes(dataset: Dataset, classes: list[str]) -> Dataset:
    return replace(dataset, manifest={**dataset.manifest, "classes": classes})


def write_run(folder: Path, options: ModelOptions, dataset: Dataset) -> str:
    """Write a run whose parameters are all random. Return its folder."""
    network = build_network(options, dataset)
    generator = np.random.default_rng(1)
    arrays = {name: generator.normal(0, 0.1, array.shape).astype(np.float32) for name, array in network.values.items()}
    about = {
        "epoch": 0,
        "test_accuracy": 0.5,
        "encoding": dataset.encoder.to_dict(),
        "composition": dataset.preprocessor.to_dict(),
        "classes": dataset.classes,
        "network": network.shape.settings(),
    }
    checkpoint.write_checkpoint(folder, arrays, about)
    return str(folder)


@pytest.fixture(scope="module")
def dataset(data) -> Dataset:
    return open_dataset(data)


@pytest.fixture(scope="module")
def runs(dataset, tmp_path_factory) -> dict[str, str]:
    """Folders of runs by the name of the network."""
    return {kind: write_run(tmp_path_factory.mktemp(kind), each, dataset) for kind, each in NETWORKS.items()}


@pytest.fixture
def foreign(runs, tmp_path) -> str:
    """Parameters without a .json file."""
    path = tmp_path / "notebook.params"
    path.write_bytes(checkpoint.resolve_model(runs["paper"]).read_bytes())
    return str(path)


def started(given: str, dataset: Dataset, options: ModelOptions | None = None):
    """Return the parameters of a network that was initialised from ``given``, and the summary."""
    options = options or ModelOptions()
    start = transfer.load_pretrained(given, options, dataset)
    return build_network(options, dataset, start), start.summary


def given_arrays(given: str) -> weights_io.Arrays:
    """Return the parameters in ``given``, which may have no .json file."""
    arrays = weights_io.load(checkpoint.resolve_model(given))
    return {
        name: array.validate().unpack() if isinstance(array, CompressedArray) else array
        for name, array in arrays.items()
    }


@pytest.mark.parametrize("classes", SOME_CLASSES.values(), ids=SOME_CLASSES.keys())
@pytest.mark.parametrize("kind", NETWORKS)
def test_classes_keep_their_outputs_by_name_and_others_start_as_usual(runs, kind, dataset, classes):
    given, other = runs[kind], with_classes(dataset, classes)
    network, said = started(given, other)
    got, before, shape = network.values, given_arrays(given), network.shape
    fresh = build_network(NETWORKS[kind], other).values
    for name, array in got.items():
        if (axis := shape.class_axes.get(name)) is None:
            np.testing.assert_array_equal(array, (fresh if name in shape.buffers else before)[name])
            continue
        for place, each in enumerate(classes):
            known = each in dataset.classes
            source, index = (before, dataset.classes.index(each)) if known else (fresh, place)
            np.testing.assert_array_equal(array.take(place, axis), source[name].take(index, axis))
    shared = len(set(classes) & set(dataset.classes))
    assert f"for {shared} of its 3 classes; {len(classes) - shared} classes of the data are new" in said


class TestOtherClasses:
    def test_only_the_last_layer_is_new(self, runs, dataset):
        other = with_classes(dataset, OTHER_CLASSES)
        network, said = started(runs["paper"], other)
        got, before = network.values, given_arrays(runs["paper"])
        fresh = build_network(PAPER, other).values
        for name, array in got.items():
            np.testing.assert_array_equal(array, (fresh if name in LAST else before)[name])
        assert got["14.weight"].shape == (2, 512)
        assert np.abs(got["14.weight"]).max() > 0
        assert said.startswith("convolutions 1 to 6, dense 1 and 2 from")

    def test_the_towers_embeddings_and_convolutions_are_kept_and_the_n_grams_counted_anew(self, runs, dataset):
        crepe, other = runs["crepe"], with_classes(dataset, OTHER_CLASSES)
        network, said = started(crepe, other)
        got, before = network.values, given_arrays(crepe)
        fresh = build_network(CREPE, other).values
        kept = {name for name in got if name.startswith(("tower.table", "tower.convolutions"))}
        assert len(kept) == 9
        for name, array in got.items():
            np.testing.assert_array_equal(array, (before if name in kept else fresh)[name])
        assert got["ngrams.weight"].shape == (64, 2)
        assert got["tower.out.weight"].shape == (2, 64)
        assert "ngrams.significant" not in transfer.load_pretrained(crepe, ModelOptions(), other).arrays
        assert "ngrams.significant" in transfer.load_pretrained(crepe, ModelOptions(), dataset).arrays
        assert said.startswith("embeddings and convolutions from")

    def test_of_n_grams_nothing_could_be_kept(self, runs, dataset):
        with pytest.raises(UserError, match="a network for other classes") as error:
            transfer.load_pretrained(runs["ngrams"], ModelOptions(), with_classes(dataset, OTHER_CLASSES))
        assert "--model crepe" in error.value.remedy


class TestEncodings:
    @pytest.mark.parametrize(
        ("encoding", "flag"),
        [
            (CharEncoder(feature_len=FEATURE_LEN + 1), f"--feature-len {FEATURE_LEN}"),
            (CharEncoder("notebook", FEATURE_LEN), "--case fold"),
            (CharEncoder(feature_len=FEATURE_LEN, alphabet=CYRILLIC), "--case fold"),
        ],
        ids=["length", "direction", "alphabet"],
    )
    def test_another_one_is_refused_with_what_to_prepare_with(self, runs, dataset, encoding, flag):
        with pytest.raises(UserError, match="encoded differently") as error:
            transfer.load_pretrained(runs["paper"], ModelOptions(), replace(dataset, encoder=encoding))
        assert flag in error.value.remedy
        assert error.value.remedy.endswith("--alphabet standard")

    def test_n_grams_may_be_of_longer_texts_but_not_of_other_characters(self, runs, dataset):
        longer = replace(dataset, encoder=CharEncoder(feature_len=200))
        assert transfer.load_pretrained(runs["ngrams"], ModelOptions(), longer).shape.feature_len == 200
        with pytest.raises(UserError, match="encoded differently"):
            transfer.load_pretrained(
                runs["ngrams"], ModelOptions(), replace(dataset, encoder=CharEncoder("notebook", FEATURE_LEN))
            )


class TestForeign:
    def test_with_as_many_outputs_all_is_taken(self, foreign, dataset):
        network, said = started(foreign, dataset)
        np.testing.assert_array_equal(network.values["14.weight"], given_arrays(foreign)["14.weight"])
        assert "does not name its classes" in said

    def test_the_length_to_prepare_with_is_told(self, foreign, dataset):
        with pytest.raises(UserError, match="do not fit documents of 1014") as error:
            transfer.load_pretrained(foreign, ModelOptions(), replace(dataset, encoder=CharEncoder()))
        assert f"such as {FEATURE_LEN}; to train, prepare" in error.value.remedy


@needs_kernels
class TestTraining:
    @pytest.fixture(scope="class")
    def place(self, tmp_path_factory) -> Path:
        """Data with two of the three classes of ``quick_run``, and a new class."""
        folder = tmp_path_factory.mktemp("transfer")
        table = write_csv(folder / "other.csv", 100, seed=5)
        names = {"1": "third", "2": "new", "3": "first"}
        table.write_text(re.sub('^"(.)"', lambda label: names[label[1]], table.read_text(), flags=re.MULTILINE))
        prepare(find_sources([str(table)]), folder / "other", PreparationSpec(CharEncoder(feature_len=FEATURE_LEN)))
        return folder

    @pytest.fixture(scope="class")
    def flags(self, place, quick_run) -> list[str]:
        # Without the sizes of the network: the checkpoint determines them.
        settings = ("--precision=float32", "--batch-size=50", "--epochs=2", "--logging.report=false")
        return ["--data", str(place / "other"), "--init-from", str(quick_run), *settings]

    def test_a_run_on_other_classes_says_so_and_several_processes_train_the_same(self, place, flags):
        said = train(*flags, "--run-dir", place / "alone")
        assert "for 2 of its 3 classes; 1 classes of the data are new" in said
        assert "network   Crepe, 1 block of 16 channels" in said
        assert list(crepe_dist.load(place / "alone").classes) == ["first", "new", "third"]
        printed = train(*flags, "--run-dir", place / "both", processes=2)
        assert printed.count("for 2 of its 3 classes") == 1
        assert sha256(checkpoint.resolve_model(str(place / "both"))) == sha256(
            checkpoint.resolve_model(str(place / "alone"))
        )

    def test_scored_rows_that_the_first_run_was_trained_on_are_counted(self, quick_run, data, tmp_path):
        def note(source, length=FEATURE_LEN):
            out = tmp_path / f"{source.name}-{length}"
            prepare(
                find_sources([str(source)]),
                out,
                PreparationSpec(CharEncoder(feature_len=length), SplitOptions(0.2, 0.2)),
            )
            return warn_leaked_rows(str(quick_run), open_dataset(out))

        said = note(data.parent / "train.csv")
        rows = {name: len(part) for name, part in open_dataset(tmp_path / f"train.csv-{FEATURE_LEN}").splits.items()}
        of = [f"{rows[name]} of {rows[name]} {name} rows" for name in ("validation", "test")]
        assert f"was trained on {of[0]} and {of[1]}, so their scores are too high" in said
        assert "with the same --seed" in said
        assert note(data.parent / "train.csv", FEATURE_LEN + 1) == said, "texts count, not their encoding"
        assert note(write_csv(tmp_path / "new.csv", 60, seed=9)) == ""
        assert warn_leaked_rows(str(quick_run), open_dataset(data)) == ""
