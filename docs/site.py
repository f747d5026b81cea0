"""MkDocs hook: README.md as the home page, files outside docs/ that pages link to, and the API reference."""

import ast
import json
import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "CITATION.cff", "LICENSE"]
PACKAGES = ["models", "explain", "metrics", "losses", "datasets", "engine", "report", "commands", "common"]
LINK = re.compile(r"\[([^][]*)\]\((?!\w+:|#)([^)\s#]+)")
"""Text and path of a relative link or picture in Markdown, without its anchor."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the repository's own pages, the benchmarks' tables, and a page of reference for each package."""
    tables = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("benchmarks/results/*.md"))]
    for name in OUTSIDE + tables:
        files.append(File.generated(config, _site_path(name), abs_src_path=str(ROOT / name)))
    for package in PACKAGES:
        files.append(File.generated(config, f"reference/{package}.md", content=_reference(package)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that are written for the repository to the pages of the site."""
    source = page.file.abs_src_path
    if source is None:  # a page of reference
        return markdown
    folder = Path(source).parent

    def moved(link: re.Match[str]) -> str:
        text, path = link.groups()
        target = Path(os.path.normpath(folder / path))
        if not (target.is_relative_to(ROOT) and target.is_file()):
            return link[0]  # MkDocs warns that there is no such page
        if text.endswith(".md"):  # the name of a file: the page has a title
            text = target.read_text().splitlines()[0].removeprefix("# ")
        there = _site_path(target.relative_to(ROOT).as_posix())
        return f"[{text}]({os.path.relpath(there, PurePosixPath(page.file.src_uri).parent)}"

    return LINK.sub(moved, markdown)


def _site_path(path: str) -> str:
    """Where a file of the repository stands in the site's sources."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def _reference(package: str) -> str:
    """Markdown that documents every module of a package, and every name in the module that defines it."""
    sections = []
    for path in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        options = {"members": _defined(path) or False, "show_root_heading": False, "show_root_toc_entry": False}
        sections.append(f"## {name}\n\n::: {name}\n    options: {json.dumps(options)}")
    return f"# {package}\n\n" + "\n\n".join(sections)


def _defined(path: Path) -> list[str]:
    """The public names that a module defines, without those that it imports."""
    names: list[str] = []
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                names.append(name)
            case ast.Assign(targets=[ast.Name(id=name)]):
                names.append(name)
    return [name for name in names if not name.startswith("_")]
