"""Number types with a range for config fields; parsing a value outside the range is an error that names it."""

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:  # to a type checker they are plain numbers: ranges are checked when a config is parsed
    PositiveInt: TypeAlias = int
    NonNegativeInt: TypeAlias = int
    PositiveFloat: TypeAlias = float
    NonNegativeFloat: TypeAlias = float
    ClosedUnitInterval: TypeAlias = float
    HalfOpenUnitInterval: TypeAlias = float
    LeftOpenUnitInterval: TypeAlias = float
else:
    from jsonargparse.typing import (
        ClosedUnitInterval,
        NonNegativeFloat,
        NonNegativeInt,
        PositiveFloat,
        PositiveInt,
        register_type,
        restricted_number_type,
    )

    HalfOpenUnitInterval = restricted_number_type("HalfOpenUnitInterval", float, [(">=", 0), ("<", 1)])
    LeftOpenUnitInterval = restricted_number_type("LeftOpenUnitInterval", float, [(">", 0), ("<=", 1)])

    def _register(kind: type, base: type, wanted: str) -> None:
        """Check values against `kind`, but parse them to plain numbers: YAML writers refuse subclasses of them."""

        def parse(value: object) -> float:
            try:
                return base(kind(value))
            except (ValueError, TypeError):
                raise ValueError(f"must be {wanted}, got {value}") from None

        register_type(kind, serializer=base, deserializer=parse)

    _register(PositiveInt, int, "an integer above 0")
    _register(NonNegativeInt, int, "an integer of at least 0")
    _register(PositiveFloat, float, "a number above 0")
    _register(NonNegativeFloat, float, "a number of at least 0")
    _register(ClosedUnitInterval, float, "a number from 0 to 1")
    _register(HalfOpenUnitInterval, float, "a number from 0 to below 1")
    _register(LeftOpenUnitInterval, float, "a number above 0 and at most 1")

__all__ = [
    "ClosedUnitInterval",
    "HalfOpenUnitInterval",
    "LeftOpenUnitInterval",
    "NonNegativeFloat",
    "NonNegativeInt",
    "PositiveFloat",
    "PositiveInt",
]
