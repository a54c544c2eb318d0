"""placeholder."""
from __future__ import annotations
from dataclasses import dataclass

@dataclass(frozen=True, slots=True)
class Refusal:
    """x."""
    name: str
    message: str
    line: int | None

def refusal(program: str) -> Refusal | None:
    """x."""
    return None
