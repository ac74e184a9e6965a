"""One module per command; each holds a frozen dataclass with a `run()`."""
