"""`make docs`: the pages, the reference and the links of the site."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it: a dead link or anchor, or a page outside the menu, is an error."""
    recipe = (ROOT / "Makefile").read_text().split("docs: ")[-1]
    assert "-m mkdocs build --quiet --strict\n" in recipe
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_readme_is_the_home_page(site: Path) -> None:
    home = (site / "index.html").read_text()
    assert "plain ViT, 3 epochs</td>" in home
    assert (site / "results/quickstart/sheet_two_stage.png").is_file()
    assert re.search(r'<img [^>]*src="results/quickstart/sheet_two_stage.png"', home)
    assert '<a href="real_photographs.html">Real birds</a>' in home  # on GitHub the file's name, here the page's title


def test_links_lead_to_files(site: Path) -> None:
    for page in site.rglob("*.html"):
        for link in re.findall(r'(?:href|src)="(?!\w+:|#|/)([^"#?]+)', page.read_text()):
            assert (page.parent / link).exists(), (page.name, link)


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not re.findall(r'(?:src|<link [^>]*href)="(?:https?:)?//', page.read_text()), page.name


def test_reference_has_every_package(site: Path) -> None:
    for name in ("models.two_stage.TwoStageModel", "explain.api.explain", "datasets.types.Batch"):
        assert f'id="{name}"' in (site / f"reference/{name.split('.')[0]}.html").read_text()
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "slurm", "benchmarks"}
    assert {page.stem for page in (site / "reference").glob("*.html")} == packages
    models = (site / "reference/models.html").read_text()
    assert models.count('<h3 id="models.two_stage.TwoStageModel"') == 1  # where it is defined, not where it is imported
