"""Arms: methods with settings as text, also with methods among the values."""

from __future__ import annotations

import pytest

from cards import CARDS
from cards.cli.arms import arms_of
from cards.cli.settings import method_of, recorded
from cards.errors import CardsError, SettingError
from cards.methods import BestOfN, GenARM, SelfConsistency


def test_several_values_give_several_methods_also_if_they_are_methods() -> None:
    spec = "best-of-n:n=2,4,inner=(cards:target=1,beta=0.5),(cards:target=2)"
    arms = arms_of([spec])
    inner = (CARDS(target=1, beta=0.5), CARDS(target=2))
    assert [arm.method for arm in arms] == [BestOfN(n=n, inner=one) for n in (2, 4) for one in inner]
    assert {arm.line for arm in arms} == {"best-of-n"}
    assert arms[0].label == "best-of-n:n=2,inner=(cards:target=1,beta=0.5)"


def test_a_label_is_a_specification_of_its_arm() -> None:
    specs = [
        "best-of-n:n=2,inner=(cards:target=1)",
        r"genarm:guides=a\,b,weights=1\,2",
        r"self-consistency:pattern=(a\,b)",
        r"self-consistency:pattern=[(]x\, y",
        "best-of-n:inner=(best-of-n:n=2,inner=(genarm:guides=a,b,weights=1,2))",
    ]
    for spec in specs:
        [arm] = arms_of([spec])
        assert arm.label == spec
        assert arms_of([arm.label]) == [arm]
    assert arms_of(specs[1:2])[0].method == GenARM(guides="a,b", weights=(1.0, 2.0))
    assert arms_of(specs[2:3])[0].method == SelfConsistency(pattern="(a,b)")


def test_settings_of_an_arm_tell_inner_methods_apart() -> None:
    one, other = arms_of(["best-of-n:inner=(cards:target=1)", "best-of-n:inner=(cards:target=2)"])
    assert one.settings["inner"] == "(cards:target=1.0)"
    assert one.settings != other.settings
    assert recorded(one.method)["inner"] == "(cards:target=1.0)"


def test_the_option_method_takes_settings_too() -> None:
    spec = "best-of-n:n=2,inner=(cards:target=1)"
    assert method_of(spec, {}) == method_of("best-of-n", {"n": "2", "inner": "(cards:target=1)"})
    assert method_of("best-of-n:n=2", {"inner": "(cards)"}) == BestOfN(n=2, inner=CARDS())
    with pytest.raises(SettingError, match="n is given twice"):
        method_of(spec, {"n": "3"})


@pytest.mark.parametrize(
    "spec", ["best-of-n:inner=cards:target=1,beta=2", "best-of-n:inner=(cards:target=1", "best-of-n:inner=()"]
)
def test_errors_name_the_specification(spec: str) -> None:
    with pytest.raises(CardsError, match="In the method"):
        arms_of([spec])
