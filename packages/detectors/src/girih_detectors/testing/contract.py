"""All checks in order."""

from collections.abc import Callable, Sequence

from . import deployment_checks, detection_checks, training_checks, two_processes
from .subject import Make

CHECKS: tuple[Callable[[Make], None], ...] = (
    training_checks.check_losses_are_finite,
    training_checks.check_gradients_reach_every_parameter,
    training_checks.check_bad_targets_are_refused,
    detection_checks.check_detections_are_sorted_and_inside,
    detection_checks.check_anisotropic_patch,
    detection_checks.check_one_and_four_channels,
    detection_checks.check_neighbours_in_the_batch_change_nothing,
    detection_checks.check_detect_leaves_its_images,
    detection_checks.check_whole_volume,
    deployment_checks.check_state_round_trip,
    deployment_checks.check_bfloat16,
    deployment_checks.check_tensors_compile,
    deployment_checks.check_loss_compiles,
    deployment_checks.check_tensors_export,
    training_checks.check_overfits_one_image,
    training_checks.check_mirrored_objects_have_mirrored_boxes,
    two_processes.check_two_processes_equal_one,
)


def check_detector(make: Make, checks: Sequence[Callable[[Make], None]] = CHECKS) -> None:
    """Run the checks on the detectors that `make(pyramid, classes)` builds.

    Raises:
        AssertionError: a check failed; the message starts with its name. What the detector itself raises where it
            should work comes through as it is.
    """
    for check in checks:
        try:
            check(make)
        except AssertionError as error:
            raise AssertionError(f"{check.__name__}: {error}") from error
