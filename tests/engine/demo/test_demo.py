"""Links, certificates, examples by group, and the Python lines."""

import contextlib
import io
import threading
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from engine.demo.certificate import certify, largest_change
from engine.demo.edits import Edits
from engine.demo.encoded import Encoded, encode
from engine.demo.examples import examples_of
from engine.demo.recipe import recipe
from engine.demo.subject import Subject
from tests.engine.demo.conftest import write_predictions

EDITS = Edits((0, 2), ((1, -3.25), (2, 0.1)), 0.1 + 0.2, "rollout", 1, frozenset({(0, 3)}), frozenset({(2, 1), (1, 1)}))


def test_a_link_restores_the_edits() -> None:
    assert Edits.from_query(EDITS.query()) == EDITS
    assert Edits().query() == {} and Edits.from_query({"image": "3"}) == Edits()


@pytest.mark.parametrize("query", [{"remove": "a"}, {"thresholds": "1"}, {"margin": "x"}, {"show": "1.2.3"}])
def test_a_damaged_link(query: dict[str, str]) -> None:
    with pytest.raises(UserError, match="the link is damaged"):
        Edits.from_query(query)


@pytest.mark.parametrize("kind", ["patch", "pixel"])
@pytest.mark.parametrize("edits", [Edits(), Edits(remove_parts=(0,), shown=frozenset({(0, 0)}))])
def test_the_certificate_holds_for_two_stages_alone(encoded: dict[str, Encoded], kind: str, edits: Edits) -> None:
    one, plain = encoded[kind], encoded["plain"]
    predicted = one.edited(edits)
    found = certify(one, predicted)
    assert largest_change(found) == 0 and not any(fill.flipped for fill in found)
    assert predicted.visible is not None and one.sees_same_pixels(plain)
    beside = certify(plain, plain.own, visible=predicted.visible)
    assert min(fill.logit_change for fill in beside) > 1e-3
    visible = predicted.visible.repeat_interleave(32 // len(predicted.visible), 0)
    visible = visible.repeat_interleave(32 // visible.shape[1], 1)
    for fill in (*found, *beside):
        assert torch.equal(fill.image[:, visible], one.image[:, visible])
        assert not torch.equal(fill.image[:, ~visible], one.image[:, ~visible])


def test_a_certificate_needs_a_mask(encoded: dict[str, Encoded]) -> None:
    with pytest.raises(UserError, match="depends on every pixel"):
        certify(encoded["plain"], encoded["plain"].own)


def test_examples_are_worst_failures_first(runs: dict[str, Path], subjects: dict[str, Subject]) -> None:
    subject = subjects["plain"]
    assert subject.split is not None
    labels = list(subject.split.labels)
    assert "no predictions.csv" in examples_of(subject).note
    write_predictions(runs["plain"], labels, [1 - label for label in labels])
    examples = examples_of(subject)
    assert examples.group_names[1] == "checked on water" and examples.right(1) == []
    wrong = examples.wrong(1)
    assert sorted(wrong) == examples.of_group(1) and len(wrong) == 4
    confidence = []
    for index in wrong:
        probability = encode(subject, examples.sample(index).image).own.logits.softmax(0)
        confidence.append(float(probability[1 - labels[index]]))
    assert confidence == sorted(confidence, reverse=True) and examples.is_right(wrong[0]) is False
    write_predictions(runs["plain"], labels, labels)
    assert examples_of(subject).wrong(1) == [] and examples_of(subject).right(1) == examples.of_group(1)
    write_predictions(runs["plain"], labels[1:], labels[1:])
    assert "is not of this test split" in examples_of(subject).note
    with pytest.raises(IndexError):
        examples.sample(-1)


@pytest.mark.parametrize("map_of", [None, "plain"])
def test_the_python_lines_give_the_same_numbers(
    encoded: dict[str, Encoded], subjects: dict[str, Subject], map_of: str | None
) -> None:
    one = encoded["pixel"]
    heat = encoded[map_of or "pixel"].heat("rollout")
    found = one.edited(EDITS, heat)
    other = subjects[map_of] if map_of else None
    lines = recipe(one.subject, 1, EDITS, ["rollout"], 0, other)
    place: dict[str, object] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(lines, "recipe", "exec"), place)
    again = place["predicted"]
    assert torch.equal(again.logits, found.logits) and torch.equal(again.visible, found.visible)  # type: ignore[attr-defined]
    assert torch.equal(place["heat"], one.heat("rollout", 0, found))  # type: ignore[arg-type]
    assert "visible of 1024" in printed.getvalue()


def test_users_at_the_same_time_get_their_own_numbers(encoded: dict[str, Encoded]) -> None:
    one = encoded["patch"]
    edits = [Edits(), Edits(remove_parts=(0,)), Edits(remove_parts=(1, 2)), Edits().painted((0, 0), True)]
    wanted = [(one.edited(edit).logits, one.heat("agcam", 1, one.edited(edit))) for edit in edits]
    found: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def use(number: int) -> None:
        for _ in range(5):
            predicted = one.edited(edits[number])
            found.setdefault(number, []).append((predicted.logits, one.heat("agcam", 1, predicted)))

    threads = [threading.Thread(target=use, args=(number,)) for number in range(len(edits))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, (logits, heat) in enumerate(wanted):
        assert len(found[number]) == 5
        assert all(torch.equal(a, logits) and torch.equal(b, heat) for a, b in found[number])
