"""The demo page: what happens when a widget is used.

Everything of a user is in `gr.State` or in the values of widgets, and is passed with every call.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from commands import demo_results as results
from commands import demo_views as views
from commands.demo_session import Opened, Session, mask_value, read_mask_value
from commands.demo_widgets import Widgets
from common.errors import UserError, one_line
from engine.demo.edits import OWN, TRUE, Edits

Update = dict[Any, Any]
"""Widget -> its new value."""
UNCHANGED = Edits()


def build_page(session: Session) -> gr.Blocks:
    """The page, ready to be launched."""
    with gr.Blocks(title="Faithful ViT", analytics_enabled=False, delete_cache=(600, 600)) as blocks:
        Page(session, Widgets(session)).wire(blocks)
    return blocks


class Page:
    """The events of the page."""

    def __init__(self, session: Session, widgets: Widgets) -> None:
        self.session, self.widgets, self.main = session, widgets, session.subjects[0]

    def wire(self, blocks: gr.Blocks) -> None:
        """Connect the widgets to the functions below."""
        w, edit, demand = self.widgets, self._on_edit, self._on_demand
        edit(blocks.load, self.start, [], [*w.loaded, w.group, w.example])
        edit(w.upload.upload, self.uploaded, [w.upload], w.loaded)
        self._on(w.group.input, self.list_group, [w.group], [w.example], trigger_mode="always_last")
        edit(w.example.input, self.chosen, [w.example], w.loaded)
        edit(w.parts.input, self.parts_chosen, [w.parts, *w.edited], w.predicted)
        sliding: list[Any] = [w.mask, w.margin, *w.thresholds]
        for widget in sliding:
            edit(widget.input, self.changed, w.edited, w.predicted, mode="always_last")
        for view in w.views:
            edit(view.select, self.clicked, [w.click, *w.edited], w.predicted)
        edit(w.reset.click, self.undo, [w.opened], w.loaded)
        demand(w.prove.click, self.proved, [], [w.proof])
        demand(w.explain.click, self.explained, [w.one_scale, w.methods, w.target], [w.maps])
        demand(w.make.click, self.made, [w.methods, w.target], [w.files, w.python])
        self._on(w.show_groups.click, self.grouped, [w.shown_groups, w.failures], [w.group_view, w.sheet, w.no_images])
        edit(w.group_view.select, self.picked, [w.sheet], w.loaded)

    def _on(self, event: Any, do: Callable[..., Update], inputs: list[Any], outputs: list[Any], **options: Any) -> Any:
        """Call `do` at the event. A UserError becomes a line on the page."""
        status = self.widgets.status

        @functools.wraps(do)
        def guarded(*values: Any) -> Update:
            try:
                return do(*values) or gr.skip()
            except UserError as error:
                shown = {self.widgets.upload: None} if self.widgets.upload in outputs else {}
                return {**shown, status: problem(str(error))}

        every = outputs if status in outputs else [*outputs, status]
        return event(guarded, inputs, every, api_visibility="private", show_progress="minimal", **options)

    def _on_edit(
        self, event: Any, do: Callable[..., Update], inputs: list[Any], outputs: list[Any], mode: str = "multiple"
    ) -> None:
        """`_on` for what changes the prediction: one at a time, and none is dropped while another one is computed."""
        self._on(event, do, inputs, outputs, trigger_mode=mode, concurrency_id="edit", concurrency_limit=1)

    def _on_demand(self, event: Any, do: Callable[..., Update], inputs: list[Any], outputs: list[Any]) -> None:
        """`_on` for `do(opened, edits, *inputs)`, whose result goes if the user edits the mask in the meantime."""
        w, of = self.widgets, gr.State(None)

        @functools.wraps(do)
        def computed(opened: Opened | None, edits: Edits, *values: Any) -> Update:
            if opened is None:
                raise UserError("Choose an image first.")
            return {of: (opened, edits), **do(opened, edits, *values)}

        def check(computed_of: tuple[Opened, Edits] | None, opened: Opened | None, edits: Edits) -> Update:
            if computed_of is None or (computed_of[0] is opened and computed_of[1] == edits):
                return {of: None}
            edited = problem("The mask was edited in the meantime: press again.")
            return dict.fromkeys(outputs, "") | {of: None, w.status: edited}

        done = self._on(event, computed, [w.opened, w.edits, *inputs], [*outputs, of])
        self._on(done.then, check, [of, w.opened, w.edits], [*outputs, of])

    # What happens. Every function returns widget -> value.

    def start(self, request: gr.Request) -> Update:
        """Open the state in the link, or the first example."""
        w, query = self.widgets, {key: str(value) for key, value in dict(request.query_params).items()}
        if self.session.examples is None:
            return {w.status: note(["Upload or paste an image.", self.main.limits])}
        group = self.session.examples.first_group()
        listed = self.session.choices(group)
        wanted = query.get("image", "")
        example = int(wanted) if wanted.isdecimal() else (listed[0][1] if listed else 0)
        try:
            found = self._load(self.session.open_example(example), Edits.from_query(query))
        except UserError as error:
            example = listed[0][1] if listed else 0
            found = self._load(self.session.open_example(example)) | {w.status: problem(str(error))}
        known = example in [index for _, index in listed]
        return found | {w.group: group, w.example: gr.update(choices=listed, value=example if known else None)}

    def uploaded(self, file: str | None) -> Update:
        """Open the user's image."""
        return {} if file is None else self._load(self.session.open_upload(Path(file)))

    def list_group(self, group: int) -> Update:
        """List a group's examples."""
        return {self.widgets.example: gr.update(choices=self.session.choices(group), value=None)}

    def chosen(self, index: int | None) -> Update:
        """Open an example."""
        return {} if index is None else self._load(self.session.open_example(index))

    def parts_chosen(self, kept: list[int], opened: Opened | None, edits: Edits, *values: Any) -> Update:
        """Show the prediction from these parts."""
        removed = tuple(part for part in range(self.main.parts) if part not in kept)
        return self.changed(opened, replace(edits, remove_parts=removed), *values)

    def changed(self, opened: Opened | None, edits: Edits, *values: Any) -> Update:
        """Show the prediction for what is chosen now."""
        return {} if opened is None else self._predicted(opened, self._edits(opened, edits, *values))

    def clicked(self, event: gr.SelectData, click: str, opened: Opened | None, edits: Edits, *values: Any) -> Update:
        """A click on one of the images."""
        if opened is None:
            return {}
        height, width = views.pixels_of(opened.main).shape[:2]
        place = event.index[0] / width, event.index[1] / height
        edits, why_not = self.session.clicked(opened, self._edits(opened, edits, *values), click, place)
        return {self.widgets.status: problem(why_not)} if why_not else self._predicted(opened, edits)

    def undo(self, opened: Opened | None) -> Update:
        """Back to the model's own prediction."""
        return {} if opened is None else self._load(opened)

    def proved(self, opened: Opened, edits: Edits) -> Update:
        """Overwrite what is hidden."""
        return {self.widgets.proof: results.certificates(opened, self.session.predicted(opened, edits))}

    def explained(self, opened: Opened, edits: Edits, one_scale: bool, methods: list[str], target: int) -> Update:
        """Explanation maps."""
        if not methods:
            return {self.widgets.maps: problem("Choose at least one method.")}
        predicted = self.session.predicted(opened, edits)
        heats, problems = results.heats_of(opened, predicted, methods, None if target < 0 else target)
        return {self.widgets.maps: results.explanations(opened, heats, problems, one_scale)}

    def made(self, opened: Opened, edits: Edits, methods: list[str], target: int) -> Update:
        """Files to save, and Python lines."""
        of = None if target < 0 else target
        predicted = self.session.predicted(opened, edits)
        heats, _ = results.heats_of(opened, predicted, methods, of)
        lines = results.python_lines(self.session, opened, edits, methods, of)
        return {self.widgets.files: results.files(opened, predicted, heats), self.widgets.python: lines}

    def grouped(self, groups: list[int], failures: bool) -> Update:
        """The group view."""
        sheet = results.group_sheet(self.session, groups, failures)
        lines = [f"{name}: no image to show" for name in sheet.none]
        return {self.widgets.group_view: sheet.png, self.widgets.sheet: sheet, self.widgets.no_images: note(lines)}

    def picked(self, event: gr.SelectData, sheet: results.GroupSheet | None) -> Update:
        """Open an image of the group view."""
        index = None if sheet is None else sheet.at(*event.index)
        return {} if index is None else self._load(self.session.open_example(index))

    def _edits(self, opened: Opened, edits: Edits, mask: str, margin: float | None, *thresholds: float | None) -> Edits:
        """The edits, with mask, margin and thresholds as the widgets show them."""
        method, of = read_mask_value(mask or OWN)
        ranges = [steps(*ends) for ends in opened.main.threshold_ranges()]
        cut = tuple((k, float(v)) for k, v in enumerate(thresholds) if v is not None and v > ranges[k][0])
        step = steps(0, opened.main.largest_margin())[2]
        margin = 0.0 if margin is None or abs(margin) < step / 2 else float(margin)
        return replace(edits, thresholds=cut, margin=margin, mask=method, mask_of=of)

    def _load(self, opened: Opened, edits: Edits = UNCHANGED) -> Update:
        """A new image, with the widgets set to the edits."""
        w, main = self.widgets, opened.main
        labels, given = main.part_labels(), dict(edits.thresholds)
        mask = edits.mask if edits.mask in (OWN, TRUE) else mask_value(edits.mask, edits.mask_of)
        found: Update = {
            w.opened: opened, w.upload: None,
            w.methods: gr.update(choices=[(m.replace("_", " "), m) for m in self.session.methods(0, main)]),
            w.legend: views.legend(labels), w.others: results.others(opened),
        }  # fmt: skip
        if self.main.selects:
            found[w.mask] = gr.update(choices=self.session.masks(opened), value=mask)
        if self.main.two_stage is not None:
            choices = [(label, part) for part, label in enumerate(labels)]
            found[w.parts] = gr.update(choices=choices, value=self._kept(edits))
            most, step = steps(0, main.largest_margin())[1:]
            found[w.margin] = gr.update(minimum=-most, maximum=most, step=step, value=edits.margin)
            for part, (slider, ends) in enumerate(zip(w.thresholds, main.threshold_ranges(), strict=True)):
                low, high, step = steps(*ends)
                found[slider] = gr.update(minimum=low, maximum=high, step=step, value=given.get(part, low))
        return self._predicted(opened, edits) | found

    def _kept(self, edits: Edits) -> list[int]:
        """The parts that stage 2 may see."""
        return [part for part in range(self.main.parts) if part not in edits.remove_parts]

    def _predicted(self, opened: Opened, edits: Edits) -> Update:
        """The prediction after the edits. What was made on demand for other edits goes."""
        w, main = self.widgets, opened.main
        predicted = self.session.predicted(opened, edits)
        images = [views.pixels_of(main), views.parts_view(main, predicted), views.seen_view(main, predicted)]
        address = views.text(results.link(opened, edits))
        where = "" if opened.example is not None else " (without the image, which is not kept)"
        parts: Update = {} if main.subject.two_stage is None else {w.parts: self._kept(edits)}
        return dict(zip(w.views, images, strict=True)) | parts | {
            w.edits: edits,
            w.scores: views.score_table(main, predicted, opened.true_class),
            w.link: f'<p>Link to this state{where}: <a href="{address}">{address}</a></p>',
            w.status: note(self.session.notes(opened, edits, predicted)),
            w.proof: "", w.maps: "", w.files: "", w.python: "",
        }  # fmt: skip


def steps(low: float, high: float) -> tuple[float, float, float]:
    """Smallest and largest value and step of a slider that covers a range in about a hundred round steps."""
    step = 10.0 ** math.floor(math.log10(max(high - low, 1e-6) / 50))
    digits = max(0, -round(math.log10(step)))
    return round(math.floor(low / step) * step, digits), round(math.ceil(high / step) * step, digits), step


def note(lines: list[str]) -> str:
    """Lines for the page, read out by screen readers."""
    return '<div role="status">' + "".join(f"<p>{views.text(line)}</p>" for line in lines if line) + "</div>"


def problem(line: str) -> str:
    """What went wrong, in one line."""
    return f'<p class="problem" role="alert">{views.text(one_line(line))}</p>'
