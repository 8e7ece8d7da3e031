"""Functions that open a run's data set on every rank and verify it once per host."""

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


def open_training_data(config: Config, group: ProcessGroup, display: ProgressDisplay) -> Dataset:
    """Open the data of a run, and check the settings that depend on the data. Every rank must call this function.

    Raises:
        UserError: The data cannot be opened (``open_data``), or the data do not support a setting. Every rank raises
            this error.
    """
    data = open_data(config.data.source, group, display)
    patience = config.training.patience
    if (patience or uses_unlabelled(config, data)) and "validation" not in data.splits:
        raise UserError(
            f"{'--patience needs' if patience else 'unlabelled texts need'} data with a validation split",
            "no decision may depend on the test split",
            "prepare the data with --validation 0.1, or train without --patience and with --unlabelled false",
            on_all_ranks=True,
        )
    if (name := config.training.sentence_encoder) is not None:
        if data.label_kind == MULTILABEL or not uses_unlabelled(config, data):
            raise UserError(
                f"--sentence-encoder {name} cannot be used with this data set",
                "the encoder only helps to label unlabelled texts that have one label each, and no such texts are used",
                "remove --sentence-encoder, or prepare the data with --unlabelled FILE",
                on_all_ranks=True,
            )
        # Only rank 0 uses the encoder. The encoder is loaded here so that a run fails early if it cannot be loaded.
        group.run_on_rank0("encoder", lambda: sentence_encoder.load_sentence_encoder(name, data))
    return data


def uses_unlabelled(config: Config, data: Dataset) -> bool:
    """Return whether a run trains on the unlabelled texts of its data."""
    return bool(config.training.unlabelled and data.unlabelled)


def open_data(source: str, group: ProcessGroup, display: ProgressDisplay) -> Dataset:
    """Open a prepared data set on every rank. If the sample is missing, rank 0 prepares it.

    Raises:
        UserError: A rank cannot open the folder, the data differ between the ranks, or the data have no test split.
            Every rank raises this error.
    """
    folder = dataset_folder(source)
    if source == SAMPLE and group.broadcast_json(not folder.exists(), "sample missing"):
        # These modules are imported here because their imports are slow, and most runs do not need them.
        from crepe_dist.preparing.preparation import prepare_sample
        from crepe_dist.reports import data_page

        display.print(f"preparing the sample in {folder}")
        group.run_on_rank0("sample", lambda: prepare_sample(folder, data_page.optional_page()))
    dataset = group.run_on_all("data", lambda: _open(folder), compare_by=lambda dataset: dataset.fingerprint)
    if "test" not in dataset.splits:
        percent = max(20, -(-100 // sum(map(len, dataset.splits.values()))))  # The split needs at least one row.
        raise UserError(
            f"{folder} has no test split",
            "each epoch is evaluated on the test split",
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
    """Return a copy of the configuration with values for the number of epochs and the patience.

    A value that the user has not set is computed from the data. If there is no validation split, the patience is 0.
    """
    network, epochs, patience = config.model.network, config.training.epochs, config.training.patience
    num_documents, uses_pseudo_labels = len(data.splits["train"]), uses_unlabelled(config, data)
    is_multilabel = data.label_kind == MULTILABEL
    if "validation" not in data.splits:
        patience = 0
    elif patience is None:
        is_fixed = epochs or uses_pseudo_labels or is_multilabel
        patience = default_patience(network, 0 if is_fixed else len(data.splits.get("validation", ())))
    if epochs is None:
        num_documents += len(data.unlabelled or ()) if uses_pseudo_labels else 0
        size = data.encoder.feature_len, config.data.batch_size
        epochs = default_epochs(
            network, num_documents, *size, has_pseudo_labels=uses_pseudo_labels, is_multilabel=is_multilabel
        )
    return replace(config, training=replace(config.training, epochs=epochs, patience=patience))


def verify_data(data: Dataset, group: ProcessGroup, record: Path) -> None:
    """Verify the checksums of the data in one process per host. Every rank must call this function.

    Files that have already been verified and have not changed since then are skipped.

    Args:
        record: File that lists the files that were verified on this host.

    Raises:
        UserError: The data are damaged on at least one host. Every rank raises this error.
    """

    def check() -> None:
        if group.local_rank == 0:
            verify(data, record, group.heartbeat)
        group.pause_watchdog()  # Other hosts may take longer than this host.

    group.run_on_all("checksums of the data", check)
    group.heartbeat()
