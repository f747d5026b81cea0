"""The widgets of the demo page, without what they do (`commands.demo_page`).

Images go out inside the reply, never as files, and no font or script is fetched from elsewhere.
"""

from typing import Any
from unittest import mock

import gradio as gr
import numpy as np
from gradio import component_meta
from gradio.data_classes import Base64ImageData, ImageData

from commands import demo_views as views
from commands.demo_results import MOST_GROUPS
from commands.demo_session import CLICKS, Session
from engine.demo.edits import OWN, Edits

CSS = """
.demo figure { margin: 0; max-width: 320px; flex: 1 1 200px; }
.demo figure img { width: 100%; image-rendering: auto; }
.demo figcaption, .demo p, .demo td, .demo th { color: var(--body-text-color); font-size: 0.9rem; }
.demo .strip { display: flex; flex-wrap: wrap; gap: 12px; }
.demo .strip > section { flex: 1 1 280px; max-width: 480px; }
.demo .wide { overflow-x: auto; }
.demo table.scores { width: 100%; border-collapse: collapse; }
.demo table.scores th, .demo table.scores td { text-align: left; padding: 3px 8px; }
.demo table.scores td { position: relative; white-space: nowrap; }
.demo table.scores td span { position: relative; }
.demo .bar { position: absolute; inset: 3px auto 3px 0; background: var(--primary-200); border-radius: 3px; }
.dark .demo .bar { background: var(--primary-700); }
.demo .part { display: inline-flex; align-items: center; gap: 5px; margin-right: 14px; }
.demo .part i { width: 14px; height: 14px; border-radius: 3px; border: 1px solid var(--border-color-primary); }
.demo .holds h3::before { content: "\\2713  "; } .demo .fails h3::before { content: "\\2717  "; }
.demo .files a { margin-right: 14px; text-decoration: underline; }
.demo .problem { border-left: 4px solid #d55e00; padding-left: 8px; }
#link a { text-decoration: underline; overflow-wrap: anywhere; }
"""
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
"""Fonts of the reader's own machine: no font is fetched."""


with mock.patch.object(component_meta, "create_or_modify_pyi"):  # else Gradio writes a stub beside this file

    class Uploaded(gr.Image):
        """Takes an image and passes on the path of its file: our own reader decodes it, not Gradio."""

        is_template = True

        def preprocess(self, payload: ImageData | None) -> str | None:
            """The path in the upload folder; Gradio has checked that it is there."""
            return None if payload is None else payload.path

    class Shown(gr.Image):
        """Shows an array as a PNG inside the reply, without a file."""

        is_template = True

        def postprocess(self, value: np.ndarray | bytes | None) -> Base64ImageData | None:  # type: ignore[override]
            """[H, W, 3] uint8, or the content of a PNG file."""
            if value is None:
                return None
            url = views.data_url(value, "image/png") if isinstance(value, bytes) else views.png_url(value)
            return Base64ImageData(url=url)


class Widgets:
    """All widgets. Make them inside `gr.Blocks`."""

    def __init__(self, session: Session) -> None:
        self.session, self.main = session, session.subjects[0]
        self.opened, self.edits = gr.State(None), gr.State(Edits())  # the edits that the prediction shown is of
        self.sheet = gr.State(None)
        names = ", ".join(views.text(subject.name) for subject in session.subjects)
        gr.HTML(f"<h1>What the model saw</h1><p>{names}</p>", elem_classes="demo")
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                self._choose()
            with gr.Column(scale=3, min_width=320):
                self._images()
        self._tabs()

    @property
    def edited(self) -> list[Any]:
        """What the edits are read from."""
        return [self.opened, self.edits, self.mask, self.margin, *self.thresholds]

    @property
    def predicted(self) -> list[Any]:
        """What an edit changes."""
        below = [self.proof, self.maps, self.files, self.python]
        return [self.edits, self.parts, *self.views, self.scores, self.link, self.status, *below]

    @property
    def loaded(self) -> list[Any]:
        """What a new image changes."""
        choices = [self.upload, self.methods, self.legend, self.others]
        return [self.opened, self.mask, self.margin, *self.thresholds, *choices, *self.predicted]

    def _groups(self) -> list[tuple[str, int]]:
        """The groups of the test split as (name, number)."""
        examples = self.session.examples
        return [] if examples is None else [(name, group) for group, name in enumerate(examples.group_names)]

    def _choose(self) -> None:
        """Choosing an image, and the edits."""
        self.upload = Uploaded(
            sources=["upload", "clipboard"], label="Your image", height=170, elem_id="upload", buttons=[]
        )
        groups = self._groups()
        there = bool(groups)
        self.group = gr.Dropdown(groups, value=0 if there else None, label="Examples: group", visible=there)
        self.example = gr.Dropdown([], label="Example", visible=there, elem_id="example")
        edit, parts = self.main.selects, self.main.two_stage is not None
        self.parts = gr.CheckboxGroup(
            [], label="Parts that stage 2 may see", visible=parts, elem_id="parts", info="or click them on the image"
        )
        self.mask = gr.Dropdown(
            [("the model's own", OWN)], value=OWN, label="Mask", visible=edit, elem_id="mask",
            info="another mask has as many patches as the model's own",
        )  # fmt: skip
        with gr.Accordion("Thresholds and margin", open=False, visible=parts):
            self.margin = gr.Slider(-1, 1, 0, label="Foreground margin: patches need this much more", elem_id="margin")
            self.thresholds = [
                gr.Slider(0, 1, 0, label=f"Threshold of part {part}", elem_id=f"threshold-{part}")
                for part in range(self.main.parts if parts else 0)
            ]
        self.reset = gr.Button("Undo all edits", visible=edit, elem_id="reset")

    def _images(self) -> None:
        """What the edits do."""
        edit = self.main.selects
        self.status = gr.HTML("", elem_classes="demo", elem_id="status")
        self.click = gr.Radio(
            [*CLICKS] if self.main.parts else [*CLICKS[2:]], value=CLICKS[0 if self.main.parts else 2],
            label="A click on an image", visible=edit, elem_id="click",
        )  # fmt: skip
        with gr.Row():
            self.views = [
                self._view(*view)
                for view in (
                    ("Image", "image", True), ("Parts", "parts-view", bool(self.main.parts)),
                    ("What stage 2 sees", "seen", edit),
                )
            ]  # fmt: skip
        self.legend = gr.HTML("", elem_classes="demo")
        self.scores = gr.HTML("", elem_classes="demo", elem_id="scores")
        self.link = gr.HTML("", elem_id="link")

    def _view(self, title: str, name: str, visible: bool) -> Shown:
        """One of the images, below its title."""
        with gr.Column(min_width=200, visible=visible):
            gr.HTML(f"<h3>{title}</h3>", elem_classes="demo")
            return Shown(interactive=False, show_label=False, buttons=["fullscreen"], elem_id=name, alt_text=title)

    def _tabs(self) -> None:
        """What is computed on demand."""
        names = [(name, index) for index, name in enumerate(self.main.class_names)]
        with gr.Tab("Prove it", visible=self.main.selects):
            gr.HTML(
                "<p>Overwrites everything that stage 2 does not see. Other models get the same images.</p>",
                elem_classes="demo",
            )
            self.prove = gr.Button("Overwrite what is hidden", elem_id="prove")
            self.proof = gr.HTML("", elem_classes="demo", elem_id="proof")
        with gr.Tab("Explanations"):
            self.methods = gr.CheckboxGroup([], label="Methods", elem_id="methods")
            self.target = gr.Dropdown(
                [("the predicted class", -1), *names], value=-1, label="Class to explain", elem_id="target"
            )
            self.one_scale = gr.Checkbox(False, label="One scale for the maps of a method")
            self.explain = gr.Button("Explain", elem_id="explain")
            self.maps = gr.HTML("", elem_classes="demo", elem_id="maps")
        with gr.Tab("Other models", visible=len(self.session.subjects) > 1):
            self.others = gr.HTML("", elem_classes="demo", elem_id="others")
        with gr.Tab("Groups", visible=self.session.examples is not None):
            groups = self._groups()
            first = [group for _, group in groups[:4]]
            self.shown_groups = gr.Dropdown(
                groups, value=first, multiselect=True, max_choices=MOST_GROUPS, label="Groups"
            )
            self.failures = gr.Radio([("wrong", True), ("right", False)], value=True, label="Predictions")
            self.show_groups = gr.Button("Show", elem_id="show-groups")
            self.no_images = gr.HTML("", elem_classes="demo")
            gr.HTML("<p>Click an image to open it.</p>", elem_classes="demo")
            self.group_view = Shown(
                interactive=False,
                show_label=False,
                buttons=["fullscreen"],
                elem_id="groups",
                alt_text="images by group",
            )
        with gr.Tab("Files and Python"):
            self.make = gr.Button("Make files and Python lines", elem_id="make")
            self.files = gr.HTML("", elem_classes="demo", elem_id="files")
            self.python = gr.Code(language="python", interactive=False, label="The same numbers in Python")
