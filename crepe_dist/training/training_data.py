"""Data set of a run, opened on every rank and verified once per host."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from crepe_dist import invocation
from crepe_dist.data.dataset import SAMPLE, Dataset, dataset_folder, open_dataset
from crepe_dist.data.targets import MULTILABEL
from crepe_dist.data.verification import verify
from crepe_dist.distributed.process_group import ProcessGroup
from crepe_dist.errors import UserError
from crepe_dist.settings.config import Config
from crepe_dist.settings.options import default_epochs, default_patience
from crepe_dist.training import sentence_encoder
from crepe_dist.training.display import ProgressDisplay


def open_training_data(config: Config, world: ProcessGroup, display: ProgressDisplay) -> Dataset:
    """Open the data of a run.

    Raises:
        UserError: on every rank, as ``open_data``, or if ``training.patience`` or unlabelled texts come without a
            validation split, ``training.sentence_encoder`` cannot be used, or a given setting has no effect on these
            data.
    """
    data = open_data(config.data.source, world, display)
    world.run_on_all("settings and data", lambda: _check(config, data))
    patience = config.training.patience
    if (patience or uses_unlabelled(config, data)) and "validation" not in data.splits:
        raise UserError(
            f"{'--patience needs' if patience else 'unlabelled texts need'} data with a validation split",
            "the test split must decide nothing",
            "prepare the data with --validation 0.1, or train without --patience and with --unlabelled false",
            on_all_ranks=True,
        )
    if (name := config.training.sentence_encoder) is not None:
        if data.label_kind == MULTILABEL or not uses_unlabelled(config, data):
            why = "it helps to label unlabelled texts, with one label each"
            raise UserError(
                f"--sentence-encoder {name} has no use", why, "train without --sentence-encoder", on_all_ranks=True
            )
        world.run_on_rank0(
            "encoder", lambda: sentence_encoder.load_sentence_encoder(name, data)
        )  # rank 0 alone needs it
    return data


def _check(config: Config, data: Dataset) -> None:
    """Check that the data have what the given settings are about."""
    if "validation" not in data.splits:
        why, remedy = "the data have no validation split", "prepare the data with --validation 0.1"
        config.refuse(
            ["training.metric_for_best_model", *["training.refit"] * bool(config.training.refit)], why, remedy
        )
    if config.training.unlabelled and not data.unlabelled:
        why = "the data have no unlabelled texts"
        config.refuse(["training.unlabelled"], why, "prepare the data with --unlabelled FILE")


def uses_unlabelled(config: Config, data: Dataset) -> bool:
    """Return whether a run learns from the unlabelled texts of its data."""
    return bool(config.training.unlabelled and data.unlabelled)


def open_data(source: str, world: ProcessGroup, display: ProgressDisplay) -> Dataset:
    """Open a prepared folder on every rank; rank 0 prepares the sample if it is missing.

    Raises:
        UserError: on every rank, if one of them cannot open the folder or sees different data.
    """
    folder = dataset_folder(source)
    if source == SAMPLE and world.broadcast_object(not folder.exists(), "sample missing"):
        # Only this case needs these modules, and their imports take long.
        from crepe_dist.preparing.preparation import prepare_sample
        from crepe_dist.reports import data_page

        display.print(f"preparing the sample in {folder}")
        world.run_on_rank0("sample", lambda: prepare_sample(folder, data_page.optional_page()))
    dataset = world.run_on_all("data", lambda: _open(folder), compare_by=lambda dataset: dataset.fingerprint)
    if "test" not in dataset.splits:
        percent = max(20, -(-100 // sum(map(len, dataset.splits.values()))))  # one row at least
        raise UserError(
            f"{folder} has no test split",
            "each epoch is scored on the test split",
            f"prepare the data with --test FILE or --test {percent / 100:g}",
            on_all_ranks=True,
        )
    return dataset


def _open(folder: Path) -> Dataset:
    if folder.is_file():
        raise UserError(
            f"{folder} is a file, not a prepared data set",
            remedy=f"{invocation.command_line('prepare')} {folder} --out data/{folder.name.split('.')[0]}, "
            "then pass that folder",
        )
    return open_dataset(folder)


def resolve_epochs(config: Config, data: Dataset) -> Config:
    """Return the configuration with the given number of epochs and patience, or those that suit the data."""
    network, epochs, patience = config.model.network, config.training.epochs, config.training.patience
    documents, is_taught = len(data.splits["train"]), uses_unlabelled(config, data)
    has_several_labels = data.label_kind == MULTILABEL
    if "validation" not in data.splits:
        patience = 0
    elif patience is None:
        is_fixed = epochs or is_taught or has_several_labels
        patience = default_patience(network, 0 if is_fixed else len(data.splits.get("validation", ())))
    if epochs is None:
        documents += len(data.unlabelled or ()) if is_taught else 0
        size = data.encoder.feature_len, config.data.batch_size
        epochs = default_epochs(
            network, documents, *size, has_pseudo_labels=is_taught, is_multilabel=has_several_labels
        )
    return replace(config, training=replace(config.training, epochs=epochs, patience=patience))


def verify_data(data: Dataset, world: ProcessGroup, record: Path) -> None:
    """Verify the checksums of the data in one process per host; skip files unchanged since the last time.

    Args:
        record: file in which this host records the verified files.

    Raises:
        UserError: on every rank, if the data are damaged on one host.
    """

    def check() -> None:
        if world.local_rank == 0:
            verify(data, record, world.heartbeat)
        world.pause_watchdog()  # other hosts may take longer

    world.run_on_all("checksums of the data", check)
    world.heartbeat()
