"""Stub."""
import dataclasses


@dataclasses.dataclass(frozen=True)
class Address:
    name: str
    url: str
