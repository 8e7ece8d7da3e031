"""Model selection: the best and the reported epoch, early stopping, and the checkpoints to retain."""

import math
from dataclasses import replace

import pytest

from crepe_dist.runs.resume_state import TrainerState
from crepe_dist.training.model_selection import ModelSelection


def progress(split: str, *epochs: tuple[float, float]) -> TrainerState:
    records = [
        {"epoch": epoch, f"{split}_accuracy": accuracy, f"{split}_loss": loss, "checkpoint": f"{epoch}.params"}
        for epoch, (accuracy, loss) in enumerate(epochs)
    ]
    return TrainerState(epoch=len(records), epochs=records)


ROWS = 100  # the standard error of 70 % is 4.6 points


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize(
    ("epochs", "best"),
    [
        ([(0.5, 1.0), (0.7, 2.0), (0.6, 0.1)], 1),
        ([(0.7, 1.0), (0.74, 1.1), (0.66, 0.9)], 2),
        ([(0.7, 1.0), (0.74, 1.1), (0.75, 1.2)], 2),
        ([(0.7, 1.0), (0.65, 0.1), (0.71, math.nan)], 0),
        ([(0.7, math.nan), (0.71, math.nan)], 1),
        ([(1.0, 0.2), (1.0, 0.1), (0.99, 0.05)], 1),
        ([(0.7, 0.9), (0.7, 0.5), (0.7, 0.6)], 1),
        ([(0.7, 0.5), (0.7, 0.5), (0.6, 0.1)], 0),
        ([(0.7, math.nan), (0.7, math.nan)], 0),
    ],
)
def test_the_accuracy_decides_and_within_its_error_the_loss_then_the_earlier_epoch(split, epochs, best):
    choice = ModelSelection(split == "validation", ROWS, patience=0, num_epochs=9)
    course = progress(split, *epochs)
    assert choice.best_epoch(course)["epoch"] == best
    reported = best if split == "validation" else len(epochs) - 1
    assert choice.selected_epoch(course)["epoch"] == reported
    assert choice.checkpoints_to_keep(course, []) == {f"{reported}.params", f"{len(epochs) - 1}.params"}


def test_the_best_checkpoints_of_all_saved_states_are_kept():
    """A killed run resumes from an earlier state. At that state, another epoch was the best epoch."""
    choice = ModelSelection(has_validation=True, num_rows=ROWS, patience=0, num_epochs=9)
    course = progress("validation", (0.5, 1.0), (0.7, 0.9), (0.4, 2.0), (0.9, 0.5))
    for saved, kept in (([], {3}), ([0], {3}), ([1, 2], {0, 1, 3}), ([3, 0], {1, 3}), ([4], {3})):
        assert choice.checkpoints_to_keep(course, saved) == {f"{epoch}.params" for epoch in kept}


@pytest.mark.parametrize(
    ("epochs", "best", "improved"),
    [
        ([(1.0, 0.3), (1.09, 0.3)], 1, 0),  # the loss is not higher by a third of its standard error
        ([(1.0, 0.3), (1.11, 0.3)], 0, 0),
        ([(1.0, 0.3), (1.09, 0.3), (1.11, 0.3)], 1, 0),  # compared with the lowest, not with the best
        ([(1.0, 0.3), (1.11, 0.3), (0.99, 0.3)], 2, 0),
        ([(1.0, 0.3), (0.89, 0.3), (0.95, 0.3), (0.95, 0.3)], 3, 1),
        ([(1.0, 0.3), (0.95, 0.3), (0.89, 0.3), (0.85, 0.3)], 3, 2),  # what is gained bit by bit adds up
    ],
)
def test_a_later_epoch_is_better_unless_its_loss_is_higher_but_no_improvement(epochs, best, improved):
    waiting = len(epochs) - 1 - improved
    choice = ModelSelection(has_validation=True, num_rows=ROWS, patience=waiting, num_epochs=9)
    course = progress("validation", *((0.7, 9.0 + epoch) for epoch in range(len(epochs))))
    for record, (loss, error) in zip(course.epochs, epochs):
        record.update(validation_loss=loss, validation_loss_error=error)
    assert choice.best_epoch(course)["epoch"] == best
    assert choice.is_last(course) == (waiting > 0)
    assert not replace(choice, patience=waiting + 1).is_last(course)
    verdicts = [
        choice.describe_latest(replace(course, epochs=course.epochs[: count + 1])) for count in range(len(epochs))
    ]
    assert max(epoch for epoch, verdict in enumerate(verdicts) if verdict) == best
    assert max(epoch for epoch, verdict in enumerate(verdicts) if verdict == verdicts[0]) == improved


def test_the_macro_f1_decides_within_its_own_error():
    choice = ModelSelection(has_validation=True, num_rows=ROWS, patience=2, num_epochs=9, score="macro_f1")
    course = progress("validation", (0.7, 1.0), (0.9, 1.1), (0.5, 1.2), (0.5, 0.9))
    for record, score in zip(course.epochs, (0.5, 0.4, 0.61, 0.52)):
        record.update(validation_macro_f1=score, validation_macro_f1_error=0.1)
    assert (
        choice.best_epoch(course)["epoch"] == 3
    )  # 0.61 is more than an error above 0.5, and 0.52 less below, of less loss
    assert choice.best_epoch(replace(course, epochs=course.epochs[:3]))["epoch"] == 2
    assert choice.describe_latest(course) == "the best so far, macro F1 0.520"
    assert replace(choice, score="accuracy").best_epoch(course)["epoch"] == 1


def test_accuracies_that_sink_bit_by_bit_are_compared_with_the_highest():
    choice = ModelSelection(has_validation=True, num_rows=ROWS, patience=0, num_epochs=9)
    course = progress("validation", (0.7, 1.0), (0.66, 1.0), (0.62, 1.0), (0.58, 1.0))
    for record in course.epochs:
        record.update(validation_loss=1.0, validation_loss_error=0.3)
    assert choice.best_epoch(course)["epoch"] == 1
