"""Every notebook in JupyterLab and Chromium, run through the interface and looked at: `make test-browser`.

They run with the small parameters that they carry for continuous integration, on the runs of `notebooks/grids/ci.yaml`.
`build/browser/*.png` has each of them from top to bottom.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from lab import CHROMIUM_VARIABLE, NAMES, Lab, find_chromium, jupyterlab
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from k24lab.lab.paths import CHECKOUT

pytestmark = pytest.mark.browser

PATHS = sorted((CHECKOUT / "notebooks").glob("*.ipynb"))
RUNS = CHECKOUT / "build" / "test"  # those of `make test`, which trains the same grid
PICTURES = CHECKOUT / "build" / "browser"
BROKEN = {
    "interpreter": "import sys\nprint(sys.executable)",
    "figure": "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()",
    "no_figure": "plt.show()",
    "not_a_picture": "from IPython.display import Image, display\ndisplay(Image(data=b'no picture', format='png'))",
    "warning": "import warnings\nwarnings.warn('mind this')",
    "bar": "import tqdm\nfor _ in tqdm.tqdm(range(3), file=sys.stdout): plt.pause(0.1)",
    "still_bar": "print('100%|###| 3/3')",
    "many_bars": "for k in range(300): print(f'{k}%|###')",
    "error": "raise ValueError('wrong')",
    "after": "print('never')",
}


def parameterised(path: Path):
    """A notebook with its small parameters, as nbmake runs it."""
    notebook = load_notebook_node(str(path))
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    return parameterize_notebook(notebook, cell.metadata.get("nbmake", {}).get("mock", {}))


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[Lab]:
    """JupyterLab in Chromium with copies of all notebooks."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="the extra browser is not installed")
    if (chromium := find_chromium()) is None:
        pytest.skip(f"no {', '.join(NAMES)} on the PATH, and {CHROMIUM_VARIABLE} names none")
    home, notebooks = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("notebooks")
    grid = str(CHECKOUT / "notebooks" / "grids" / "ci.yaml")
    RUNS.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"K24LAB_HOME": str(RUNS)}
    subprocess.run([sys.executable, "-m", "k24lab", "sweep", grid], env=environment, check=True)
    shutil.copytree(RUNS / "runs" / "ci", home / "runs" / "ci")
    for path in PATHS:
        nbformat.write(parameterised(path), notebooks / path.name)
    arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
    with (
        jupyterlab(notebooks, home, tmp_path_factory.mktemp("jupyter")) as address,
        sync_api.sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=chromium, args=arguments) as browser,
    ):
        page = browser.new_page()
        page.goto(address)
        page.wait_for_function("() => window.jupyterapp?.shell?.isAttached", timeout=60_000)
        yield Lab(page, notebooks)


@pytest.mark.parametrize("name", [path.name for path in PATHS])
def test_notebook_runs_and_shows_all_its_figures(name, lab):
    problems, notebook = lab.run(name, PICTURES / f"{name.removesuffix('.ipynb')}.png")
    assert not problems, [(text, "".join(notebook["cells"][k]["source"])) for k, text in problems]


def test_what_is_wrong_with_a_notebook_is_seen(lab):
    cells = [nbformat.v4.new_code_cell(source) for source in BROKEN.values()]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), lab.notebooks / "broken.ipynb")
    problems, notebook = lab.run("broken.ipynb", PICTURES / "broken.png")
    assert "".join(notebook["cells"][0]["outputs"][0]["text"]).strip() == sys.executable
    names = list(BROKEN)
    assert sorted((names[k], text) for k, text in problems) == [
        ("after", "was not run"),
        ("error", "ValueError: wrong"),
        ("many_bars", "a long text"),
        ("many_bars", "a progress bar of many lines"),
        ("no_figure", "0 figures, 1 expected"),
        ("not_a_picture", "a picture is not visible"),
        ("still_bar", "a progress bar that does not move to its end"),
        ("warning", "writes to stderr, which is shown as an error"),
    ]
