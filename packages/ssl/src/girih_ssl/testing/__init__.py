"""What a new objective is tested with: named checks, a pytest class, and the tiny network they use."""

from girih_ssl.testing.contract import Check, ObjectiveContract, check_objective
from girih_ssl.testing.subject import ContractError
from girih_ssl.testing.tiny import TinyEncoder, TinyNeck, make_batch, tiny_parts

__all__ = [
    "Check",
    "ContractError",
    "ObjectiveContract",
    "TinyEncoder",
    "TinyNeck",
    "check_objective",
    "make_batch",
    "tiny_parts",
]
