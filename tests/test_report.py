"""Pages of runs and groups: whole, self-contained, and true to the files that they come from."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from k24lab.analysis import load as results, stats
from k24lab.errors import RunError
from k24lab.lab.find_runs import find_runs, read_run
from k24lab.lab.train import train
from k24lab.rendering.report import Part, render_page, write_report

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Tags must close, and nothing may be loaded from elsewhere."""

    def __init__(self, path):
        super().__init__()
        self.open, self.text, self.images, self.links = [], [], 0, []
        self.feed(path.read_text())
        assert not self.open
        self.content = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        assert not {"script", "iframe", "link", "object"} & {tag}
        if tag == "img":
            assert given["src"].startswith("data:image/png;base64,") and given["alt"]
            self.images += 1
        if "href" in given:
            assert given["href"].startswith("#")
            self.links.append(given["href"][1:])
        if "id" in given:
            self.links.remove(given["id"])  # links come first, each to a heading
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


@pytest.fixture
def group(tiny_config):
    """Three methods, of which two have masks, and a second seed of one."""
    configs = [tiny_config(method=m, seed=s) for m, s in (("k24", 0), ("k24", 1), ("fups", 0), ("random24", 0))]
    return [train(config, "mine", progress=False) for config in configs]


def test_page_of_a_group_holds_its_tables_and_figures(group, home):
    page = Page(write_report("mine"))
    summaries = results.load_summaries(find_runs("mine"))
    for row in stats.final_table(summaries).itertuples():
        assert re.search(rf"rolenav {row.variant} {row.n} {row.mean:.3f}", page.content)
    assert all(folder.name in page.content for folder in group)
    assert not page.links and page.images == 7  # curves, final, differences, dynamics, masks, settling, similarity
    assert "4 runs: 4 finished" in page.content
    assert write_report("mine").read_bytes() == (home / "figures" / "report_mine.html").read_bytes()


def test_page_of_a_run_names_settings_numbers_and_origin(group, home):
    page = Page(write_report(group[0].name, home / "elsewhere" / "run.html"))
    (summary,) = results.load_summaries([read_run(group[0])]).to_dict("records")
    assert f"test_return_mean {summary['test_return_mean']:.6g}" in page.content
    assert "hidden_dim 16" in page.content and "attempt 1" in page.content
    assert "the 3 other finished runs of its group" in page.content
    assert not page.links and page.images == 5  # curves, dynamics, masks, settling, similarity
    assert (home / "elsewhere" / "run.html").is_file() and not list((home / "elsewhere").glob(".*"))


def test_a_run_without_masks_and_one_that_goes_on_have_pages_that_say_so(group, home):
    page = Page(write_report(str(group[2])))
    assert "method 'fups' may have no masks" in page.content and page.images == 3
    (group[0] / "DONE").unlink()
    (group[0] / "summary.json").unlink()
    (group[0] / "policy.npz").unlink()
    page = Page(write_report(str(group[0])))
    assert "The run is not finished" in page.content and "policy.npz does not exist" in page.content
    page = Page(write_report("mine"))
    assert "3 finished" in page.content and "1 stopped" in page.content
    assert "1 of 4 runs in" in page.content and "unfinished and left out" in page.content


def test_a_group_without_finished_runs_shows_how_far_it_is(group):
    for folder in group:
        (folder / "DONE").unlink()
    (group[1] / "FAILED").write_text("ValueError: <b>no</b> & never\n")
    page = Page(write_report("mine"))
    assert "ValueError: <b>no</b> & never" in page.content  # escaped: it is text, not a tag
    assert page.images == 0 and "none of the 4 runs" in page.content


def test_what_is_no_run_and_no_group_is_one_line(group, home):
    done = subprocess.run(
        [sys.executable, "-m", "k24lab", "report", group[0].name[:-1] + "x"], capture_output=True, text=True
    )
    assert done.returncode == 2 and f"did you mean '{group[0].name}'" in done.stderr and done.stderr.count("\n") == 1
    assert not (home / "figures").exists()
    with pytest.raises(RunError, match=r"no run 'min': .* none of the 4"):
        write_report("min")


def test_text_is_shown_as_it_is():
    page = render_page("<script>", "a & b", {"<i>": [Part("note", "<a> & b")], "empty": []})
    assert '<p class="note">&lt;a&gt; &amp; b</p>' in page and "empty" not in page
    assert "&lt;script&gt;" in page and "<script>" not in page and "<i>" not in page
