"""common/: the registry and UserError."""

import pytest

from common.errors import UserError, exit_on_user_error
from common.registry import Registry


def fruits() -> Registry[int]:
    registry: Registry[int] = Registry("fruit (--fruit)")
    registry.register("pear")(1)
    registry.register("apple")(2)
    return registry


def test_a_name_stands_for_its_entry() -> None:
    assert fruits()["pear"] == 1


def test_names_come_sorted() -> None:
    assert list(fruits()) == ["apple", "pear"]


def test_register_decorates_and_hands_the_factory_back() -> None:
    registry: Registry[object] = Registry("thing")

    @registry.register("made")
    def make() -> str:
        return "made"

    assert registry["made"] is make
    assert make() == "made"


def test_a_name_twice_is_a_programming_error_and_keeps_the_first() -> None:
    registry = fruits()
    with pytest.raises(ValueError, match=r"fruit \(--fruit\) 'pear' is registered twice") as caught:
        registry.register("pear")(3)
    assert not isinstance(caught.value, UserError)
    assert registry["pear"] == 1


def test_an_unknown_name_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        fruits()["aple"]
    assert (
        str(caught.value)
        == "unknown fruit (--fruit) 'aple' (did you mean 'apple'?); known: apple, pear; of your own: --plugin FILE.py"
    )


def test_nothing_near_gives_no_hint() -> None:
    with pytest.raises(UserError) as caught:
        fruits()["zzz"]
    assert str(caught.value) == "unknown fruit (--fruit) 'zzz'; known: apple, pear; of your own: --plugin FILE.py"


def test_a_user_error_ends_a_script_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @exit_on_user_error
    def main() -> None:
        raise UserError("data.root: no such folder 'x'")

    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert caught.value.__suppress_context__
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "error: data.root: no such folder 'x'\n")


def test_other_errors_and_results_pass_through() -> None:
    @exit_on_user_error
    def main(value: int, *, fail: bool = False) -> int:
        """Doc."""
        if fail:
            raise ValueError("a bug")
        return value + 1

    assert main(1) == 2
    assert main.__doc__ == "Doc."
    with pytest.raises(ValueError, match="a bug"):
        main(1, fail=True)
