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
    from jsonargparse.typing import register_type, restricted_number_type

    def _restricted(name: str, base: type, wanted: str, *limits: tuple[str, int]) -> type:
        """A type whose values are checked but parsed to plain numbers: YAML writers refuse subclasses of them."""
        kind = restricted_number_type(name, base, list(limits))

        def parse(value: object) -> float:
            try:
                return base(kind(value))
            except (ValueError, TypeError):
                raise ValueError(f"must be {wanted}, got {value}") from None

        register_type(kind, serializer=base, deserializer=parse)
        return kind

    PositiveInt = _restricted("PositiveInt", int, "an integer above 0", (">", 0))
    NonNegativeInt = _restricted("NonNegativeInt", int, "an integer of at least 0", (">=", 0))
    PositiveFloat = _restricted("PositiveFloat", float, "a number above 0", (">", 0))
    NonNegativeFloat = _restricted("NonNegativeFloat", float, "a number of at least 0", (">=", 0))
    ClosedUnitInterval = _restricted("ClosedUnitInterval", float, "a number from 0 to 1", (">=", 0), ("<=", 1))
    HalfOpenUnitInterval = _restricted("HalfOpenUnitInterval", float, "a number from 0 to below 1", (">=", 0), ("<", 1))
    LeftOpenUnitInterval = _restricted(
        "LeftOpenUnitInterval", float, "a number above 0 and at most 1", (">", 0), ("<=", 1)
    )
