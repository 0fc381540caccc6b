"""What MkDocs needs to build the website: pages from outside docs/, and links that work here and on GitHub alike.

The start page is README.md. Notebooks are the executed copies that `make docs`
leaves in build/docs/notebooks. Links in all pages are relative to the files in the repository; `on_page_markdown` turns
those that leave docs/ into links of the site. MkDocs then checks them like all others.
"""

import json
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
EXECUTED = ROOT / "build" / "docs"
EXAMPLES = tuple(f"examples/{name}.py" for name in ("train_minimal", "supervised", "ppo_cleanrl_style"))
COPIED = ("CITATION.cff", "LICENSE", *EXAMPLES)
OUTSIDE = {"README.md": "index.md"} | {name: name for name in COPIED}
NOTE = (
    '<div class="admonition note"><p>This page was executed on very small runs, with the small parameters that tests '
    'use instead of the defaults below. It shows what the notebook draws; the <a href="../../results/">results</a> '
    "come from full runs.</p></div>"
)
WIDGET = "application/vnd.jupyter.widget-view+json"
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")  # the target of [text](target#anchor), if it is a path


def on_pre_build(config: MkDocsConfig) -> None:
    """Show the picture of each widget: its controls would be empty on a page without a kernel."""
    for path in EXECUTED.glob("notebooks/*.ipynb"):
        notebook = json.loads(path.read_text())
        outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
        for output in outputs:
            if "image/png" in output.get("data", ()):
                output["data"].pop(WIDGET, None)
        path.write_text(json.dumps(notebook))


@event_priority(100)  # before the plugin that looks for notebooks
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files from outside docs/, and the pictures of figures/ that a page shows."""
    for path, uri in OUTSIDE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    pages = "".join(path.read_text() for path in ROOT.glob("docs/*.md"))
    pictures = (ROOT / "figures").rglob("*.png")
    shown = [path for path in pictures if path.relative_to(ROOT).as_posix() in pages]
    executed = EXECUTED.glob("notebooks/*.ipynb")
    for folder, paths in ((ROOT, shown), (EXECUTED, executed)):
        for path in sorted(paths):
            uri = path.relative_to(folder).as_posix()
            files.append(File(uri, str(folder), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files of the repository into links to pages of the site."""
    source = Path(page.file.abs_src_path or "")
    if source.suffix != ".md":  # a notebook
        return markdown
    folder = source.relative_to(ROOT).parent.as_posix()

    def to_page(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[1]))
        uri = OUTSIDE.get(path, path.removeprefix("docs/"))
        return posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(to_page, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Say on top of each notebook that its outputs are no results."""
    return NOTE + html if page.file.src_uri.endswith(".ipynb") else html
