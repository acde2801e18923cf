"""The page: self-contained, escaped, whole; training-only and served runs."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from nmoe.core.errors import BadFile
from nmoe.report import write_report
from nmoe.report.markup import Markup, escaped, joined, tag

VOID = {"meta", "path", "use", "rect", "image", "br", "line"}


class Page(HTMLParser):
    """Collects text and addresses, and checks that tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, name, attributes):
        self.tags.append(name)
        self.addresses += [value for key, value in attributes if key in ("href", "src", "xlink:href", "action")]
        if name not in VOID:
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        self.handle_starttag(name, attributes)
        if name not in VOID:
            self.open.pop()

    def handle_endtag(self, name):
        if name not in VOID:
            assert self.open.pop() == name

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


@pytest.fixture(scope="module")
def served(write_run):
    folder = write_run()
    return folder, write_report(folder).read_text()


FIGURES = ("accuracy", "traffic", "latency", "choice", "mesh")


def test_files(served):
    folder, _ = served
    assert {path.name for path in (folder / "figures").iterdir()} == {f"{name}.png" for name in FIGURES}
    assert all((folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in FIGURES)


def test_self_contained(served):
    _, text = served
    page = Page(text)
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert "http" not in text
    assert "@import" not in text
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"url\((?!#)", text)
    assert page.tags.count("svg") == page.tags.count("figure") == page.tags.count("figcaption") == len(FIGURES)


def test_ids_are_unique_across_figures(served):
    ids = re.findall(r'\sid="([^"]+)"', served[1])
    assert len(ids) == len(set(ids))


def test_numbers_configuration_and_command(served):
    text = " ".join(Page(served[1]).words)
    for part in (
        "95.8 %",
        "20.4 %",
        "15.8 MB",
        "29.3 MB",
        "1.7 kB",
        "4.18 ms",
        "17.3 ms",
        "98.5 %",
        "999",
        "nmoe demo --seed 7",
        "fedgate",
    ):
        assert part in text, part
    assert "node-3: NaN in conv1.weight" in text
    assert "2 of 12" in text
    assert "nmoe run demo" in text


def test_training_only(write_run):
    folder = write_run(served=False)
    text = write_report(folder).read_text()
    assert {path.stem for path in (folder / "figures").iterdir()} == {"accuracy", "traffic"}
    assert "Serving" not in Page(text).words
    assert "traffic per sample" not in text


def test_everything_is_escaped(write_run):
    bad = "<script>alert('x')</script>&\"'"
    folder = write_run(served=False, config={"command": ["nmoe", bad], "data": bad, bad: [bad]})
    for name in ("results.json", "metrics.jsonl"):
        path = folder / name
        swapped = path.read_text().replace('"digits"', '"<script>&"').replace("NaN in conv1", "<script>").replace("none: no", "<script>")
        path.write_text(swapped)
    page = Page(write_report(folder).read_text())
    assert "script" not in page.tags
    assert bad in page.words
    assert any("<script>.weight" in word for word in page.words)


def test_no_command_no_refusals(write_run):
    folder = write_run(served=False, config={"command": None})
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text().replace('"node-3: NaN in conv1.weight"', ""))
    text = write_report(folder).read_text()
    assert "How to reproduce" not in text
    assert "Refused updates" not in text


def test_same_files_same_page(write_run):
    folder = write_run(served=False)
    assert write_report(folder).read_text() == write_report(folder).read_text()


def test_damaged_run_writes_nothing(write_run):
    folder = write_run()
    (folder / "results.json").write_text("{}")
    with pytest.raises(BadFile, match=r"results\.json"):
        write_report(folder)
    assert not (folder / "report.html").exists()
    assert not (folder / "figures").exists()


def test_importing_the_report_leaves_matplotlib_alone():
    code = "import sys, nmoe.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_markup():
    assert tag("p", "a<b", Markup("<i>x</i>"), class_="n", aria_label='"') == '<p class="n" aria-label="&quot;">a&lt;b<i>x</i></p>'
    assert joined("<", "", Markup("<br>")) == "&lt;\n<br>"
    assert escaped(escaped("<")) == "&lt;"
