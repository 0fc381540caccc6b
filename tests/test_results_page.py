"""Pages of results are what their templates make of the files in figures/, and no number in them was typed by hand."""

import re
import shutil
import subprocess
import sys

import generate_results as generator
import pytest
import scipy.stats
import tables

from k24lab.lab.paths import CHECKOUT

SCRIPT = CHECKOUT / "docs" / "tools" / "generate_results.py"
PAGE = CHECKOUT / "docs" / "results.md"
TEMPLATES = {page: (SCRIPT.parent / f"{page}.md.jinja").read_text() for page in generator.PAGES}

# Settings and facts of environments (tests/test_envs_rolenav.py measures the two bounds of RoleNav), not results.
TYPED = {"1.45", "2.99", "0.01", "0.003", "95 %"}
RESULT = re.compile(r"\d+\.\d+|\d[\d,]* ?%|[±−]\s?\d[\d.,]*")


def typed_numbers(template):
    """Numbers that look like results in the prose: outside of `{{ }}`, `{% %}`, code spans and code blocks."""
    for code in (r"```.*?```", r"\{%.*?%\}", r"\{\{.*?\}\}", r"`[^`]*`"):
        template = re.sub(code, "", template, flags=re.DOTALL)
    return [found for found in RESULT.findall(template) if found not in TYPED]


def literals(template):
    """Decimal numbers that `{{ }}` holds outside of strings: a result could be typed there, too."""
    expressions = re.findall(r"\{\{.*?\}\}", template, re.DOTALL)
    return [found for text in expressions for found in re.findall(r"\d+\.\d+", re.sub(r'"[^"]*"', "", text))]


@pytest.mark.parametrize("page", TEMPLATES)
def test_page_is_what_the_files_give(page):
    assert generator.render(page) == (CHECKOUT / "docs" / f"{page}.md").read_text()


def test_check_tells_a_page_that_was_changed(tmp_path, monkeypatch):
    assert subprocess.run([sys.executable, SCRIPT, "--check"], cwd=CHECKOUT).returncode == 0
    shutil.copytree(CHECKOUT / "docs", tmp_path / "docs")
    changed = tmp_path / "docs" / "results.md"
    changed.write_text(PAGE.read_text().replace("2.93 ± 0.05", "2.98 ± 0.05", 1))
    monkeypatch.setattr(generator, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--check"])
    with pytest.raises(SystemExit, match=r"run python docs/tools/generate_results\.py"):
        generator.main()


def test_pictures_exist():
    pages = "".join((PAGE.parent / f"{page}.md").read_text() for page in generator.PAGES)
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", pages)
    assert len(pictures) > 15 and all((PAGE.parent / picture).is_file() for picture in pictures)


def test_every_study_with_a_table_is_on_the_page():
    studies = {path.parent.name for path in (CHECKOUT / "figures").glob("*/*_table.csv")}
    assert len(studies) > 12 and [study for study in sorted(studies) if study not in "".join(TEMPLATES.values())] == []


@pytest.mark.parametrize("page", TEMPLATES)
def test_no_number_is_typed_by_hand(page):
    assert typed_numbers(TEMPLATES[page]) == [] and literals(TEMPLATES[page]) == []


def test_typed_numbers_are_found():
    assert typed_numbers("a 2.96 b 40 % c ± 3 d `2.97` {{ 2.98 }} 1.45") == ["2.96", "40 %", "± 3"]
    assert literals('{{ result("k24 lr=0.1") }} {{ 2.98 }}') == ["2.98"]


def test_numbers_that_are_not_there_are_errors():
    with pytest.raises(LookupError, match=r"no row with .*k25"):
        tables.result("rolenav3", "k25")
    with pytest.raises(LookupError, match="has 23 rows"):
        tables.cell("ablation/05_ablations_table.csv", "mean", task="vmas/dispersion")
    with pytest.raises(LookupError, match="does not exist"):
        tables.figure("rolenav3/none.png", "nothing")


def test_helpers_compute_what_the_notebooks_wrote():
    (row,) = tables.select("vmas_dispersion/05_ablations_differences.csv", variant="k24").to_dict("records")
    written = tables.with_ends(row["difference"], row["low"], row["high"])
    assert tables.difference("vmas_dispersion", "k24", "random24") == written
    paired = tables.estimate(
        "recipe/10_settings_paired.csv",
        measure="final",
        task="rolenav:n_agents=24, hidden_dim=64, lr=0.003",
        variant="nops",
    )
    assert tables.paired_difference("recipe", "nops", "random24", task="rolenav:n_agents=24") == paired
    regime = {"task": "rolenav:n_agents=8,n_roles=4, hidden_dim=16, lr=0.01", "variant": "k24-alpha"}
    counts = tables.select("regimes/10_settings_paired.csv", measure="final", **regime).iloc[0]
    ahead = tables.seeds_ahead("regimes", "k24-alpha", "random24", task="rolenav:n_agents=8,n_roles=4")
    assert ahead == f"{counts['n_better']} of {counts['n']}" and counts["n_better"] < counts["n"]
    gap = {"study": "masks16", "variant": "k24-alpha alpha_lr_factor=10.0", "reference": "random24"}
    runs = tables.select("masks16/05_ablations_final.csv", variant=[gap["variant"], "random24"])
    wide = runs.pivot(index="seed", columns="variant", values="test_return_mean")
    between = wide[gap["variant"]] - wide["random24"]
    assert tables.middle_difference(**gap) == f"{between.median():.2f}"
    assert tables.signed_rank(**gap) == f"{scipy.stats.wilcoxon(between).pvalue:.3f}" < "0.05"
    assert "random24` | 15 |" in tables.returns_table("masks16", seed=list(range(15, 30)))
    assert tables.number(-1234.567, 1) == "−1,234.6" and tables.number(0.42, 1, percent=True) == "42.0 %"
