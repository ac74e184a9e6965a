"""The contract of an objective as a list of named checks, and as a pytest class."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from girih_ssl.interfaces import ObjectiveConfig, Triple
from girih_ssl.testing import config_checks, forward_checks, input_checks, training_checks
from girih_ssl.testing.subject import Subject, one_thread

CHECKS: tuple[Callable[[Subject], None], ...] = (
    config_checks.check_config_is_a_frozen_dataclass,
    config_checks.check_config_fields_have_defaults,
    config_checks.check_config_field_types,
    config_checks.check_config_field_docstrings,
    config_checks.check_docstring_cites_a_source,
    forward_checks.check_members,
    forward_checks.check_loss_is_a_float32_scalar,
    forward_checks.check_loss_under_bfloat16_autocast,
    forward_checks.check_other_entries_are_detached_scalars,
    forward_checks.check_input_is_not_modified,
    forward_checks.check_same_seed_same_loss,
    forward_checks.check_every_seed_matters,
    forward_checks.check_order_of_samples,
    forward_checks.check_global_random_state_is_untouched,
    forward_checks.check_reconstruct,
    input_checks.check_anisotropic_patch,
    input_checks.check_anisotropic_strides,
    input_checks.check_batch_of_one,
    input_checks.check_batch_of_three,
    input_checks.check_one_and_four_channels,
    input_checks.check_list_of_images,
    input_checks.check_constant_patch,
    input_checks.check_missing_key_raises,
    input_checks.check_indivisible_patch_raises,
    training_checks.check_loss_falls_on_one_batch,
    training_checks.check_gradient_reaches_every_encoder_parameter,
    training_checks.check_no_unused_parameter,
    training_checks.check_state_round_trip,
    training_checks.check_resume_equals_uninterrupted,
    training_checks.check_teacher,
    training_checks.check_exported_encoder_loads,
    training_checks.check_compiles,
    training_checks.check_two_processes_equal_one,
)


@dataclass(frozen=True)
class Check:
    """One named check of one objective; calling it returns nothing or raises.

    Raises:
        ContractError: an AssertionError that says how the contract is broken. What the objective itself raises where
            it should work comes through as it is.
    """

    name: str
    """The check's name, such as "same_seed_same_loss"."""
    function: Callable[[Subject], None]
    """What checks; its docstring is the rule."""
    subject: Subject
    """What is checked."""

    def __call__(self) -> None:
        """Run the check, on one thread."""
        with one_thread():
            self.function(self.subject)


def check_objective(
    config: ObjectiveConfig | Callable[[], ObjectiveConfig], *, patch_zyx: Triple | None = None, device: str = "cpu"
) -> Iterator[Check]:
    """Return the checks of an objective, in the manner of scikit-learn's check_estimator.

    `for check in check_objective(MAEConfig()): check()` runs them all, on the CPU, in ten to fifteen seconds. Most of
    it goes to torch.compile and to starting two processes.

    Args:
        config: settings, or what makes them, such as the config class.
        patch_zyx: voxels of the patch; None: twice `patch_multiple`, but at least 8 a side. To find this multiple out,
            an objective is built for a patch of 192^3 voxels; where `build` refuses that, pass `patch_zyx`.
        device: where network and batch are, such as "cuda"; the seeds stay on the CPU, and so do the two processes. An
            objective that mixes devices is found out only where there are two.
    """
    settings: Any = config() if isinstance(config, type) or not hasattr(config, "build") else config
    subject = Subject(settings, patch_zyx, device)
    for function in CHECKS:
        yield Check(function.__name__.removeprefix("check_"), function, subject)


class ObjectiveContract:
    """The checks as a pytest class: one test per check.

    ```python
    class TestMAE(ObjectiveContract):
        config = MAEConfig()
    ```
    """

    config: ClassVar[Any]
    """Settings, or the config class."""
    patch_zyx: ClassVar[Triple | None] = None
    """Voxels of the patch, see check_objective."""
    device: ClassVar[str] = "cpu"
    """Where network and batch are, see check_objective."""

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Make one test per check; called by pytest, for every test of the class."""
        if "check" not in metafunc.fixturenames:
            return
        checks = list(check_objective(self.config, patch_zyx=self.patch_zyx, device=self.device))
        metafunc.parametrize("check", checks, ids=[check.name for check in checks])

    def test_contract(self, check: Check) -> None:
        """Run one check."""
        check()
