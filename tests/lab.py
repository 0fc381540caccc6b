"""JupyterLab in Chromium as a user has it before them, and what can be wrong with a notebook that was run in it."""

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from processes import gone

CHROMIUM_VARIABLE = "K24LAB_CHROMIUM"  # path of a Chromium or Chrome that is to be used
NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
SIZE = {"width": 1400, "height": 900}
BARS = 200  # pixels above and below the cells
SHOWS = re.compile(r"^\s*plt\.show\(\)", re.MULTILINE)
BAR = "%|"  # of tqdm
MOST_LINES = 40  # of text under a cell
OVERRIDES = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false"},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},  # else only cells in sight are drawn
}

# Opens a notebook and waits for its kernel, as one does before pressing "run all".
OPEN = """async ([path, seconds]) => {
  const end = Date.now() + 1000 * seconds;
  await jupyterapp.restored;
  const widget = await jupyterapp.commands.execute('docmanager:open', {path, factory: 'Notebook'});
  await widget.context.ready;
  while (widget.context.sessionContext.session?.kernel?.status !== 'idle') {
    if (Date.now() > end) throw new Error('no kernel after ' + seconds + ' s');
    await new Promise(resolve => setTimeout(resolve, 50));
  }
}"""

# Runs all cells; meanwhile keeps every text that is seen under a cell. Gives the notebook and these texts.
RUN = """async (seconds) => {
  const widget = jupyterapp.shell.currentWidget;
  const texts = {};
  const look = () => widget.content.widgets.forEach((cell, k) => {
    for (const output of cell.model.outputs?.toJSON() ?? []) {
      const text = output.output_type === 'stream' ? [output.text].flat().join('') : '';
      const seen = texts[k] ??= [];
      if (text && seen[seen.length - 1] !== text) seen.push(text);
    }
  });
  const timer = setInterval(look, 20);
  const late = new Promise((_, refuse) =>
    setTimeout(() => refuse(new Error('not run after ' + seconds + ' s')), 1000 * seconds));
  await Promise.race([jupyterapp.commands.execute('notebook:run-all-cells'), late]);
  look();
  clearInterval(timer);
  return [widget.context.model.toJSON(), texts];
}"""

# What is wrong with the outputs of each cell as they are drawn; scrolls to every picture.
DRAWN = """async () => {
  const problems = [];
  const cells = jupyterapp.shell.currentWidget.content.widgets;
  for (const [k, cell] of cells.entries()) {
    const pictures = [...cell.node.querySelectorAll('.jp-Cell-outputArea img, .jp-Cell-outputArea canvas')];
    for (const picture of pictures) {
      picture.scrollIntoView({block: 'center'});
      await new Promise(resolve => requestAnimationFrame(() => requestAnimationFrame(resolve)));
      const box = picture.getBoundingClientRect();
      const seen = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
      if (picture.naturalWidth === 0 || box.width < 50 || box.height < 30 || seen !== picture)
        problems.push([k, 'a picture is not visible']);
      else if (box.right > window.innerWidth) problems.push([k, 'a picture is wider than the window']);
    }
    const images = (cell.model.outputs?.toJSON() ?? []).filter(o => o.data && 'image/png' in o.data).length;
    if (pictures.length < images) problems.push([k, images + ' pictures, ' + pictures.length + ' drawn']);
    for (const text of cell.node.querySelectorAll('.jp-OutputArea-output pre')) {
      const lines = text.textContent.trimEnd().split('\\n').length;
      const height = parseFloat(getComputedStyle(text).lineHeight);
      if (text.textContent.includes('%|') && text.getBoundingClientRect().height > (lines + 0.9) * height)
        problems.push([k, 'a progress bar is broken into lines']);
    }
    for (const area of cell.node.querySelectorAll('.jp-OutputArea-output'))
      if (/Error displaying widget|Loading widget|Error rendering/.test(area.textContent))
        problems.push([k, 'a widget is not drawn']);
  }
  if (document.querySelector('.jp-Dialog')) problems.push([-1, 'a dialog is in the way']);
  return problems;
}"""

# Of all cells together.
HEIGHT = """() => {
  const cells = jupyterapp.shell.currentWidget.content.widgets;
  return Math.ceil(cells.at(-1).node.getBoundingClientRect().bottom - cells[0].node.getBoundingClientRect().top);
}"""
TO_TOP = "() => { jupyterapp.shell.currentWidget.content.node.querySelector('.jp-WindowedPanel-outer').scrollTop = 0; }"
CLOSE = """async () => {
  const widget = jupyterapp.shell.currentWidget;
  await widget.context.save();
  await widget.context.sessionContext.shutdown();
  widget.close();
}"""


def find_chromium() -> str | None:
    """A Chromium or Chrome: the variable's, or one on the PATH."""
    return os.environ.get(CHROMIUM_VARIABLE) or next(filter(None, map(shutil.which, NAMES)), None)


def problems_of(notebook: Mapping[str, Any], texts: Mapping[str, list[str]]) -> list[tuple[int, str]]:
    """What is wrong with a notebook that was run: cell and problem.

    Args:
        notebook: as JupyterLab has it.
        texts: what was seen under each cell, one after another, while it ran.
    """
    found = []
    for k, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or not source.strip():
            continue
        outputs = cell["outputs"]
        if cell["execution_count"] is None:
            found.append((k, "was not run"))
            continue
        found += [(k, f"{o['ename']}: {o['evalue']}") for o in outputs if o["output_type"] == "error"]
        found += [(k, "writes to stderr, which is shown as an error") for o in outputs if o.get("name") == "stderr"]
        pictures = sum("image/png" in o.get("data", {}) for o in outputs)
        if pictures < len(SHOWS.findall(source)):
            found.append((k, f"{pictures} figures, {len(SHOWS.findall(source))} expected"))
        found += [(k, problem) for problem in _text_problems(texts.get(str(k), []))]
    return found


def _text_problems(texts: list[str]) -> list[str]:
    """What is wrong with the texts that were seen under a cell."""
    lines = [text.rstrip().splitlines() for text in texts]
    bars = [[line for line in shown if BAR in line] for shown in lines]
    problems = ["a long text"] if max(map(len, lines), default=0) > MOST_LINES else []
    if max(map(len, bars), default=0) > 1:
        problems.append("a progress bar of many lines")
    elif any(bars) and (len({*map(tuple, bars)} - {()}) < 2 or not bars[-1] or "100%" not in bars[-1][0]):
        problems.append("a progress bar that does not move to its end")
    return problems


class Lab:
    """JupyterLab in a browser window, and the folder that it shows."""

    def __init__(self, page: Any, notebooks: Path):
        self.page, self.notebooks = page, notebooks

    def run(self, path: str, picture: Path, seconds: float = 240) -> tuple[list[tuple[int, str]], Mapping[str, Any]]:
        """Open a notebook, run all cells, look at all it draws, and photograph it from top to bottom.

        Returns:
            What is wrong, cell by cell; the notebook.
        """
        self.page.set_viewport_size(SIZE)
        self.page.evaluate(OPEN, [path, 60])
        try:
            notebook, texts = self.page.evaluate(RUN, seconds)
            drawn = [(k, text) for k, text in self.page.evaluate(DRAWN)]
            self.page.set_viewport_size(SIZE | {"height": self.page.evaluate(HEIGHT) + BARS})
            self.page.evaluate(TO_TOP)
            picture.parent.mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=picture)
        finally:
            self.page.evaluate(CLOSE)
        return problems_of(notebook, texts) + drawn, notebook


@contextlib.contextmanager
def jupyterlab(notebooks: Path, home: Path, scratch: Path) -> Iterator[str]:
    """A server of JupyterLab with settings of its own and this interpreter as its kernel; yields its address.

    Args:
        notebooks: folder that it shows.
        home: where runs and figures go.
        scratch: folder for all that Jupyter and IPython keep.
    """
    _write_json(scratch / "config" / "labconfig" / "default_setting_overrides.json", OVERRIDES)
    kernel = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "language": "python"}
    _write_json(scratch / "data" / "kernels" / "python3" / "kernel.json", kernel | {"display_name": "Python 3"})
    folders = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_PATH": "data",  # before all others: no kernel that a user has installed wins
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    environment = os.environ | {name: str(scratch / folder) for name, folder in folders.items()}
    environment |= {"K24LAB_HOME": str(home), "OMP_NUM_THREADS": "1"}
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--port=0", "--allow-root"]
    command += [f"--ServerApp.root_dir={notebooks}", f"--IdentityProvider.token={token}"]
    with (scratch / "server.txt").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--LabApp.expose_app_in_browser=True"], env=environment, stdout=log, stderr=log
        )
    try:
        yield f"{_address(server, scratch)}lab?token={token}&reset"
    finally:
        family = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
        server.terminate()
        server.wait(30)
        for kernel_process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                kernel_process.kill()
        assert gone([process.pid for process in family])


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def _address(server: "subprocess.Popen[bytes]", scratch: Path) -> str:
    """Address of the server, from the file that it writes when it listens."""
    end = time.monotonic() + 60
    while time.monotonic() < end and server.poll() is None:
        for file in (scratch / "runtime").glob("jpserver-*.json"):
            with contextlib.suppress(ValueError):  # half-written
                return str(json.loads(file.read_text())["url"])
        time.sleep(0.1)
    raise AssertionError((scratch / "server.txt").read_text()[-2000:])
