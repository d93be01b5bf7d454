"""Pages are written by templates, which escape every text; Python holds no HTML."""

import re
import runpy
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.history import page as history
from ratrain.errors import UnavailableError
from ratrain.legacy.metrics.page import page as metrics_page
from ratrain.legacy.metrics.read import OldRun
from ratrain.report.compare import compare_page
from ratrain.report.html import TEMPLATES, Cell, environment, render
from ratrain.report.page import figures_of, page
from ratrain.report.study.figures import wrapped
from ratrain.storage.run_log import read_run

ROOT = Path(__file__).resolve().parents[2]
STUDIES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "test_study_report.py")))
EVIL = "<script>&\"'"
TAGS = (
    "a article aside b body br code dd details div dl dt em figcaption figure footer h1 h2 h3 h4 head header hr html i "
    "img li link main meta nav ol p pre section small span strong style sub summary sup svg table tbody td tfoot th "
    "thead title tr u ul"
)
TAG = re.compile(rf"</?(?:{'|'.join(TAGS.split())})(?=[\s/>\"'{{]|$)", re.MULTILINE)


class Texts(HTMLParser):
    """The text of each element with text of its own, as (tag, text), and the values of attributes."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.texts, self.values = [], set(), [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.values += [value for _, value in attributes if value]
        self.open = [tag, *self.open] if tag not in ("meta", "link", "img", "br") else self.open

    def handle_endtag(self, tag):
        self.open = self.open[1:]

    def handle_data(self, data):
        self.texts.append((self.open[0] if self.open else "", data))

    def holds(self, tag, text):
        return any(text in of for name, of in self.texts if name == tag)


def read(page):
    """The texts of a page that holds no script."""
    assert "<script" not in page
    texts = Texts(page)
    assert "script" not in texts.tags
    return texts


@pytest.fixture
def synthetic(tmp_path):
    return STUDIES.Synthetic(tmp_path / "runs")


@pytest.fixture
def study(synthetic):
    """A study, its title, its file and its arms of evil names."""
    arms = [STUDIES.planned_arm(f"{name} {EVIL}", role=role) for name, role in (("v0", "base"), ("v9", "arm"))]
    synthetic.plan(*arms, STUDIES.planned_arm(f"late {EVIL}"), title=EVIL, file=EVIL)
    for arm in arms:
        synthetic.runs(arm, effect=-0.03 * (arm is arms[1]), probes=True)
    return synthetic


def test_a_study_escapes_titles_arms_errors_and_captions(study, monkeypatch):
    texts = read(study.report().page)
    for tag in ("title", "h1"):
        assert (tag, EVIL) in texts.texts
    assert texts.holds("th", f"v9 {EVIL}") and texts.holds("dt", f"v9 {EVIL}") and texts.holds("p", f"late {EVIL}")
    assert texts.holds("figcaption", f"v9 {EVIL}") and texts.holds("b", f"v9 {EVIL}")
    assert any(value.startswith("Probes of unified_ra in") and EVIL in value for value in texts.values)

    def failing(*_):
        raise UnavailableError(EVIL)

    monkeypatch.setattr("ratrain.report.study.page.plots", failing)
    assert ("p", f"{EVIL}.") in read(study.report().page).texts


def test_a_run_and_a_comparison_escape_titles_names_and_manifests(synthetic):
    arm = STUDIES.planned_arm("v9", id=EVIL)
    synthetic.plan(arm)
    synthetic.run(arm)
    (folder,) = (synthetic.out / "v9").iterdir()
    (folder / "resolved.toml").write_text(f"# {EVIL}\n")
    log = read_run(folder)
    log.sample = f"once {EVIL}"
    alone = read(page(log, figures_of(log)))
    assert alone.holds("title", EVIL) and alone.holds("h1", EVIL)
    assert ("pre", f"# {EVIL}\n") in alone.texts and ("pre", f"once {EVIL}") in alone.texts

    other = folder.parent / EVIL.replace("/", "")
    other.mkdir()
    (other / "events.jsonl").write_text((folder / "events.jsonl").read_text())
    both = read(compare_page([log, read_run(other)]))
    assert both.holds("title", EVIL) and both.holds("h1", EVIL) and both.holds("th", EVIL)
    assert any(EVIL in value for value in both.values if "loss over steps" in value)


def test_metrics_of_the_reference_escape_titles_errors_and_caveats():
    runs = [OldRun(f"run {EVIL}", "train.py", evaluated=((0, 9.0), (1, 8.0))), OldRun("b", "", failed=f"error {EVIL}")]
    texts = read(metrics_page(runs, [f"caveat {EVIL}"], f"title {EVIL}"))
    for tag, text in (("title", "title"), ("h1", "title"), ("th", "run"), ("td", "error"), ("li", "caveat")):
        assert (tag, f"{text} {EVIL}") in texts.texts


def test_the_history_of_the_benches_escapes_suites_and_arms():
    row = {"ms": 1.0, "median": 2.0, "low": 1.9, "high": 2.1, "verdict": f"slower {EVIL}"}
    facts = {"suite": EVIL, "machine": EVIL, "date": "2026-11-20", "commit": EVIL, "against": EVIL, "torch": EVIL}
    texts = read(history.page([history.Line(threads=1, **facts, rows={EVIL: row})]))
    assert ("h2", EVIL) in texts.texts and ("th", EVIL) in texts.texts and ("small", f"slower {EVIL}") in texts.texts
    assert ("b", EVIL) in texts.texts  # in the caption


def test_each_part_escapes_its_texts():
    source = """{% from "parts.html.jinja" import facts, figure, folded, grid, listing, picture, warnings %}
    {{ facts([(x, x)]) }}{{ figure("drawing", x) }}{% call folded(x) %}{{ x }}{% endcall %}{{ warnings(x, [x]) }}
    {{ grid((x, x), [(x, cell)]) }}{{ listing((x,), [(x,)]) }}{{ picture(x.encode(), x) }}"""
    made = environment(TEMPLATES).from_string(source).render(x=EVIL, cell=Cell(EVIL, (f"{EVIL} [1, 2]",)))
    texts = read(made)
    assert [text.strip() for _, text in texts.texts].count(EVIL) == 14 and texts.values.count(EVIL) == 1
    assert ("span", "[1, 2]") in texts.texts


@pytest.mark.parametrize(
    "file",
    [*sorted(ROOT.glob("ratrain/**/*.jinja")), *sorted(ROOT.glob("bench/**/*.jinja"))],
    ids=lambda file: file.name,
)
def test_every_template_compiles(file):
    made = environment(file.parent)
    assert made.get_template(file.name).filename == str(file)
    assert made.autoescape is True


def test_a_page_without_its_data_is_an_error():
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError, match="is undefined"):
        render("comparison.html.jinja")


def test_tags_are_in_templates_and_not_in_python():
    assert all(map(TAG.search, ("<td", "<p>", "</div>", "<span class=x>", '<b>"', "x<h2>")))
    files = {*(ROOT / "ratrain").rglob("*.py")} - {ROOT / "ratrain/report/drawing.py"}
    assert len(files) > 100
    assert not [str(file) for file in files if TAG.search(file.read_text())]


def test_columns_of_signed_numbers_are_aligned_as_numbers():
    numeric = environment(TEMPLATES).filters["numeric"]
    rows = [("v0", "+1.0%", "-3.0%", "\N{MINUS SIGN}0.5", "-", "word"), ("v1", "-0.1%", Cell("+2"), "7", "", "-x")]
    assert numeric(rows) == [False, True, True, True, True, False]


@pytest.mark.parametrize(
    ("label", "lines"),
    [
        ("scalable_softmax", ["scalable_softmax"]),
        ("differential_attention", ["differential_", "attention"]),
        ("stick_breaking kv_shift", ["stick_breaking", "kv_shift"]),
        ("n_embd=48 init_std=0.06 lr=8e-3", ["n_embd=48", "init_std=0.06", "lr=8e-3"]),
    ],
)
def test_labels_break_at_spaces_and_long_names_behind_an_underscore(label, lines):
    assert wrapped(label).splitlines() == lines
