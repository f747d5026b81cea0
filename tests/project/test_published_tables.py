"""The tables of README and docs show the numbers of the published results in docs/results."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
PIXELS = "test/keep_ratio_pixels"
STUDY = {
    "accuracy (%)": "test/accuracy", "worst group (%)": "test/worst_group_accuracy", "mask IoU (%)": "test/mask_iou",
    "patches kept (%)": "test/keep_ratio", "pixels kept (%)": PIXELS,
}  # fmt: skip
MAPS = {
    "localization IoU (%)": "localization/mask/iou", "segmentation mIoU (%)": "segmentation/miou",
    "pointing hit (%)": "pointing/mask/hit", "energy in the object (%)": "pointing/mask/energy",
    "predictions that change (%)": "certificate/flipped", "ABPC (%)": "abpc",
    "insertion (%)": "insertion_deletion/insertion", "deletion (%)": "insertion_deletion/deletion",
}  # fmt: skip
AS_MASKS = {
    "accuracy (%)": "as_mask/accuracy", "worst group (%)": "as_mask/worst_group_accuracy",
    "mask IoU (%)": "as_mask/mask_iou",
}  # fmt: skip
VIT, TWO_STAGE = {"plain ViT": "vit"}, {"two-stage": "two_stage", "two-stage ViT": "two_stage"}
ATCON = {"accuracy (%)": STUDY["accuracy (%)"], "worst group (%)": STUDY["worst group (%)"]} | {
    "agreement of the maps": "test/agreement", "consistency loss": "test/consistency",
}  # fmt: skip
BIRDS = {"birds: accuracy (%)": ATCON["accuracy (%)"]} | ATCON
ALTERNATING, SHRINK = "alternating (`mask_by_second`", "alternating (`shrink`)"
ATCON_ROWS = {
    "continued": "continued_1e5", ALTERNATING: "alternating_3e6", SHRINK: "alternating_shrink_3e5",
    "unsupervised": "unsupervised_3e6", "two-stage model": "two_stage",
}  # fmt: skip
BIRDS_ROWS = {name: f"birds_{row}" for name, row in {ALTERNATING: "alternating", SHRINK: "alternating_shrink"}.items()}
BIRDS_ROWS |= {name: f"birds_{name}" for name in ("supervised", "continued", "unsupervised")}
MASKS = {"true mask": "(true mask)", "its own": "(its own mask)"}


@dataclass(frozen=True)
class Shown:
    """A table of a page, and where its numbers come from."""

    page: str
    title: str
    """How its header begins."""
    results: str
    columns: dict[str, str]
    """Title of a column -> key in the results."""
    rows: dict[str, str] = field(default_factory=dict)
    """Name of a row up to the first comma -> row in the results, if that is another."""
    later: str = ""
    """Results of the rows with a dagger, if they are not those of the others."""


TABLES = [
    Shown("README.md", "Test split, 5 seeds", "real_birds/table.csv", STUDY, VIT | TWO_STAGE),
    Shown("README.md", "Test split, 3 seeds", "quickstart/table.csv", STUDY, VIT | TWO_STAGE),
    Shown("docs/quickstart.md", "Test split, seeds 1 to 3", "quickstart/table.csv", STUDY, VIT | TWO_STAGE),
    Shown("docs/real_photographs.md", "Test split, mean", "real_birds/table.csv", STUDY, VIT | TWO_STAGE),
    Shown(
        "docs/real_photographs.md", "Row of the study", "real_birds/table.csv", STUDY,
        later="real_birds_second_machine/table.csv",
    ),
    Shown("docs/atcon.md", "Test, mean ± std over 3 seeds | learning", "atcon_real_birds/table.csv", ATCON, ATCON_ROWS),
    Shown("docs/atcon.md", "Test, mean ± std over 3 seeds | birds", "atcon_quickstart/table.csv", BIRDS, BIRDS_ROWS),
    Shown("docs/real_photographs.md", "Mask of stage 2", "explanations_real_birds/methods.csv", AS_MASKS, MASKS),
    Shown("docs/explanations.md", "Plain ViT, 300", "explanations_real_birds/methods.csv", MAPS),
    Shown("docs/explanations.md", "Stage 2, 300", "explanations_real_birds/methods_two_stage.csv", MAPS),
]  # fmt: skip


def read(shown: Shown) -> list[dict[str, str]]:
    """The table's rows, by title of the column; the first column is "row"."""
    lines = (ROOT / shown.page).read_text().splitlines()
    (start,) = [i for i, line in enumerate(lines) if line.startswith(f"| {shown.title}")]
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return [dict(zip(["row", *table[0][1:]], cells, strict=True)) for cells in table[2:]]


def numbers(cell: str) -> list[tuple[float, float]]:
    """The numbers in a cell, with half a unit of their last digit."""
    texts = re.findall(r"-?\d+(?:\.\d+)?", cell.replace("−", "-"))  # a minus sign
    return [(float(text), 0.5 * 10.0 ** -len(text.partition(".")[2])) for text in texts]


def published(name: str) -> pd.DataFrame:
    """A published table, by row. Where whole patches are kept, the share of pixels is the same and not measured."""
    table = pd.read_csv(RESULTS / name).set_index("row")
    if PIXELS in table:
        table[PIXELS] = table[PIXELS].fillna(table["test/keep_ratio"])
    return table


@pytest.mark.parametrize("shown", TABLES, ids=lambda shown: f"{shown.page} {shown.title}")
def test_a_table_shows_what_was_published(shown: Shown) -> None:
    files = {name: published(name) for name in (shown.results, shown.later) if name}
    checked = 0
    for row in read(shown):
        name = re.split(r"[,:]| †", row["row"])[0]
        name = shown.rows.get(name, name).strip("`")
        results = files[shown.later if shown.later and "†" in row["row"] else shown.results].loc[name]
        for title, cell in row.items():
            key = shown.columns.get(title)
            if key is None or key not in results or pd.isna(results[key]):
                assert key is None or not numbers(cell) or cell == "100", f"{name}, {title}: not measured, but {cell}"
                continue
            ends = ("", "_std") if "±" in cell else ("", "/low", "/high")
            for (number, tolerance), end in zip(numbers(cell), ends, strict="±" in cell):
                value = results[key + end] * (100 if "(%)" in title else 1)
                assert abs(number - value) <= tolerance + 1e-9, f"{name}, {title}: {cell}, published {value:.4f}"
                checked += 1
    assert checked > 3
