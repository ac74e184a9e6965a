"""What can be wrong with files on disk. All are ValueErrors and survive pickling between processes."""


class ScanError(ValueError):
    """An image or label file cannot be used; the message names the file and the value found."""


class ManifestError(ValueError):
    """A dataset.json or an index cannot be used; the message names the file, the key and the value found."""


class StaleCaseError(ValueError):
    """A prepared case was made from other files, with another spec or other classes, is damaged, or was replaced."""


class CorruptCaseError(ValueError):
    """A prepared case is damaged: a file is missing, truncated or fails its checksum. Prepare it with overwrite=True.

    Attributes `case_id`, `path` and `reason` say what; with one argument only, that argument is the whole message
    (torch re-raises a worker's exception this way).
    """

    def __init__(self, case_id: str, path: str = "", reason: str = "") -> None:
        super().__init__(case_id, path, reason)
        self.case_id, self.path, self.reason = case_id, path, reason

    def __str__(self) -> str:
        return f"case {self.case_id!r}: {self.path}: {self.reason}" if self.path or self.reason else self.case_id
