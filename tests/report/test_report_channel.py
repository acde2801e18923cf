"""Reports of runs over noisy links: what is named, compared and explained; and nothing of it where links are perfect."""

import json

from rich.console import Console

from nmoe.report import results_table
from nmoe.report.headline import finding, subject, tiles
from nmoe.report.html import write_report
from nmoe.report.run import read_run
from nmoe.report.summary import accuracy_section, serving_section


def served_over_links(write_run, make_results):
    folder = write_run()
    (folder / "results.json").write_text(json.dumps(make_results(serving=True, channel=True)))
    return folder


def test_the_headline_names_the_links_and_the_naive_gate(write_run, make_results):
    run = read_run(served_over_links(write_run, make_results))
    assert finding(run.results) == "10 nodes together reach 95.8 % on digits over noisy links"
    assert "Links: rayleigh, mean SNR -10 to 20 dB, analog." in subject(run)
    assert "trained under the same noise that is not told of SNRs reaches 90.2 %." in subject(run)
    shown = {tile.label: tile for tile in tiles(run)}
    assert shown["served, right"].value == "95.1 %"
    assert shown["served, right"].note == "simulation 95.9 ± 1.2 %"
    assert "agreement" not in shown["requests answered"].note
    assert shown["training traffic"].value == "15.8 MB"  # controls left out


def test_tables_compare_the_mesh_with_its_simulation(write_run, make_results):
    results = read_run(served_over_links(write_run, make_results)).results
    section = serving_section(results)
    assert section is not None
    assert dict(zip(section.columns, section.rows[0].cells, strict=True)) | {"p50": "", "p99": ""} == {
        "requests": "1,000",
        "answered": "999",
        "p50": "",
        "p99": "",
        "right": "95.1 %",
        "simulation": "95.9 ± 1.2 %",
        "own agree": "100.0 %",
    }
    names = [row.cells[0] for row in accuracy_section(results).rows]
    assert names[3:6] == ["naive gate, SNR hidden", "NMoE, k=2", "NMoE over perfect links"]
    console = Console(width=80)
    with console.capture() as caught:
        console.print(results_table(make_results(serving=True, channel=True)))
    assert max(map(len, caught.get().splitlines())) <= 80


def test_the_page_explains_what_it_compares(write_run, make_results):
    noisy = write_report(served_over_links(write_run, make_results)).read_text()
    assert "No two answers over noisy links are alike" in noisy
    assert "all on the same blocks" in noisy
    plain = write_report(write_run()).read_text()
    assert "noisy links" not in plain
    assert "equal to those of the same mixture run in one process" in plain
