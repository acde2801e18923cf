"""The HTML report of a run: one self-contained file that opens anywhere, with nothing fetched and no script."""

import shlex
from pathlib import Path

from nmoe.core.files import write_bytes
from nmoe.report import summary, words
from nmoe.report.headline import finding, subject, tiles
from nmoe.report.markup import Markup, joined, tag
from nmoe.report.page import PAGE, STYLE
from nmoe.report.run import Run, read_run
from nmoe.report.summary import Row, Section

CAPTIONS = {
    "accuracy": "Each panel is one stage of training; the line shows the share of test samples answered rightly after each round. "
    "Local test data look like a node's own, global test data hold all classes.",
    "traffic": "Up is more accurate, left is cheaper; each small dot is one round and the large dot is where training ended. "
    "The dotted line is a probe on the features, before there is a gate.",
    "latency": "Height counts the answers that took this long; half lie left of p50 and 99 of 100 left of p99.",
    "choice": "Read along a row: where the gate sends samples of this class, as a percentage of its weight. "
    "A framed cell marks an expert that had the class in its training data.",
    "mesh": "Each circle is a node with the classes it trained on beside it; an arrow runs from the node that asks "
    "to the node that answers, and the darker a circle, the more it answers itself.",
}
ACCURACY_NOTE = (
    "Local: test samples of the classes a node trained on. Global: test samples of all classes. "
    "The oracle gate always picks the best expert and bounds what any gate can reach."
)
LINKS_NOTE = (
    "All but FedAvg, the central mixture and NMoE over perfect links: over the run's noisy links, all on the same blocks. "
    "The naive gate was trained under the same noise and is not told of SNRs."
)
SIMULATION_NOTE = (
    "No two answers over noisy links are alike. Simulation: the accuracy that the same mixture over the same links has on average in "
    "one process, and the standard error of the mesh's around it. Own agree: of answers by the own expert alone, which cross no link, "
    "the share equal to its answers in one process."
)
AGREEMENT_NOTE = "Agreement: share of answers equal to those of the same mixture run in one process."


SECTIONS = ("Accuracy", "Serving")


def write_report(run: Path) -> Path:
    """Write ``figures/*.png`` and ``report.html`` into a run folder.

    Args:
        run: folder with ``config.json``, ``metrics.jsonl``, ``results.json`` and, after serving, ``serving.json``.

    Returns:
        The path of ``report.html``.

    Raises:
        BadFile: when a file is missing or damaged; nothing is written then.
    """
    # matplotlib takes half a second to import, so only a report that is written pays for it
    from nmoe.report.figures import figures_of, png_bytes, svg_text

    read = read_run(run)
    drawings = {}
    for name, figure in figures_of(read).items():
        write_bytes(run / "figures" / f"{name}.png", png_bytes(figure))
        drawings[name] = Markup(svg_text(figure, name))
    page = PAGE.substitute(title=tag("title", f"nmoe: {read.name}")[7:-8], style=STYLE, body=_body(read, drawings))
    path = run / "report.html"
    write_bytes(path, page.encode())
    return path


def _body(run: Run, drawings: dict[str, Markup]) -> Markup:
    """Put the page together, from what matters most to what is looked up."""
    results = run.results
    cards = {name: _figure(name, drawing) for name, drawing in drawings.items()}
    accuracy = _table(summary.accuracy_section(results), ACCURACY_NOTE if results.channel is None else f"{ACCURACY_NOTE} {LINKS_NOTE}")
    privacy = _table(summary.privacy_section(results))
    costs = tag("div", _table(summary.traffic_section(results)), _time(run), class_="stack")
    return joined(
        _header(run),
        _section(SECTIONS[0], accuracy, cards.get("accuracy", Markup())),
        _section("What training cost", costs, tag("div", cards.get("traffic", Markup()), privacy, class_="stack")),
        _serving(run, cards),
        _refused(run),
        _configuration(run),
        _reproduce(run),
        tag("footer", f"Made by nmoe from the files of the run folder {run.name}. Figures also lie in figures/ as PNG."),
    )


def _header(run: Run) -> Markup:
    shown = tiles(run)
    boxes = [
        tag(
            "div",
            tag("div", tile.label, class_="label"),
            tag("div", tile.value, class_="value"),
            tag("div", tile.note, class_="note"),
            class_="tile main" if number == 0 else "tile",
        )
        for number, tile in enumerate(shown)
    ]
    return joined(
        tag(
            "header",
            tag("p", f"nmoe run {run.name}", class_="eyebrow"),
            tag("h1", finding(run.results)),
            tag("p", subject(run), class_="lead"),
        ),
        tag("div", *boxes, class_="tiles", style=f"--columns:{len(shown) if len(shown) <= 5 else -(-len(shown) // 2)}"),
    )


def _section(title: str, *cards: Markup) -> Markup:
    """Return a titled section with its cards side by side, stacked on a narrow screen."""
    return tag("section", tag("h2", title), tag("div", *cards, class_="grid"))


def _serving(run: Run, cards: dict[str, Markup]) -> Markup:
    """Return how the mesh answered, or nothing after training alone."""
    section = summary.serving_section(run.results)
    note = AGREEMENT_NOTE if run.results.channel is None else SIMULATION_NOTE
    table = _table(_upright(section), note) if section is not None else Markup()
    left = joined(table, cards.get("mesh", Markup()))
    right = joined(cards.get("latency", Markup()), cards.get("choice", Markup()))
    if not left and not right:
        return Markup()
    return _section(SECTIONS[1], *(tag("div", column, class_="stack") for column in (left, right)))


def _upright(section: Section) -> Section:
    """Turn a table of one row on its side, so that it fits a narrow screen."""
    (row,) = section.rows
    rows = tuple(Row(cells=pair) for pair in zip(section.columns, row.cells, strict=True))
    return Section(title=section.title, columns=("measure", "value"), rows=rows)


def _time(run: Run) -> Markup:
    section = summary.time_section(run.results)
    return Markup() if section is None else _table(section)


def _table(section: Section, note: str = "") -> Markup:
    """Return a card with one table of the summary."""
    heads = [tag("th", name, class_="" if section.prose or number == 0 else "number") for number, name in enumerate(section.columns)]
    body = [_row(row, section.prose) for row in section.rows]
    table = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *body))
    below = tag("p", note, class_="note-text") if note else ""
    title = "" if section.title in SECTIONS else tag("h3", section.title)
    return tag("div", title, tag("div", table, class_="scroll"), below, class_="card")


def _row(row: Row, prose: bool) -> Markup:
    """Return one row; a cell with a share gets a bar of that length."""
    cells = [tag("td", row.cells[0])]
    for number, cell in enumerate(row.cells[1:]):
        share = row.shares[number] if row.shares else None
        bar = "" if share is None else tag("span", tag("i", style=f"width:{100 * share:.1f}%"), class_="bar")
        cells.append(tag("td", cell, bar, class_="" if prose else "number"))
    return tag("tr", *cells, class_="main" if row.highlight else "")


def _figure(name: str, drawing: Markup) -> Markup:
    return tag("figure", tag("div", drawing, role="img", aria_label=CAPTIONS[name]), tag("figcaption", CAPTIONS[name]), class_="card")


def _refused(run: Run) -> Markup:
    """Return the updates that merging refused, or nothing if there were none."""
    refused = [(one, reason) for one in run.rounds for reason in one.refused]
    if not refused:
        return Markup()
    head = tag("tr", tag("th", "stage"), tag("th", "round"), tag("th", "node and reason"))
    rows = [
        tag("tr", tag("td", words.stage(one.stage)), tag("td", f"{one.round} of {one.rounds}"), tag("td", reason))
        for one, reason in refused
    ]
    note = tag("p", "A refused update is left out of its round; the round merges the others.", class_="note-text")
    return tag("section", tag("h2", "Refused updates"), tag("div", tag("table", head, *rows), note, class_="card warn"))


def _configuration(run: Run) -> Markup:
    pairs = [tag("div", tag("dt", name), tag("dd", words.option(value))) for name, value in run.config.items() if name != "command"]
    return tag("section", tag("h2", "Configuration"), tag("div", tag("dl", *pairs), class_="card"))


def _reproduce(run: Run) -> Markup:
    """Return the command that made this run, or nothing if the run does not say."""
    command = run.config.get("command")
    if not command:
        return Markup()
    text = shlex.join(map(str, command)) if isinstance(command, list) else str(command)
    note = f"The seed is {run.results.seed}; on the same machine and versions the numbers come out the same, times aside."
    return tag("section", tag("h2", "How to reproduce"), tag("div", tag("pre", text), tag("p", note, class_="note-text"), class_="card"))
