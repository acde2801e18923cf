"""``nmoe reproduce``: a paper's experiment, one command each."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nmoe.cli.root import interruptible_import
from nmoe.cli.training import Data, DataDir, Force, Test, command_line

if TYPE_CHECKING:
    from nmoe.report.progress import StageProgress

reproduce = typer.Typer(help="Run a paper's experiment: numbers, table and figures.", no_args_is_help=True, rich_markup_mode="rich")

Scale = Annotated[str, typer.Option(help="Size of the experiment; paper wants a GPU.", metavar="cpu|paper|paper-vit")]
Seeds = Annotated[int, typer.Option(help="How often everything is trained.")]
Quick = Annotated[bool, typer.Option("--quick", help="End within a minute, with less of everything.")]
Out = Annotated[Path | None, typer.Option(help="Run folder (runs/NAME if not given).", metavar="DIR")]


@contextmanager
def run_folder(out: Path | None, name: str) -> Iterator[tuple[Path, "StageProgress"]]:
    """Yield the run folder and what shows progress; then print the table that was written."""
    from nmoe.report.progress import StageProgress

    folder = out or Path("runs") / name
    with StageProgress() as progress:
        yield folder, progress
    typer.echo((folder / "results.md").read_text(encoding="utf-8"))
    typer.echo(f"run folder {folder}")


@reproduce.command("channel-gating")
def channel_gating(
    scale: Scale = "cpu",
    data: Data = "digits",
    data_dir: DataDir = None,
    test: Test = None,
    backbone: Annotated[str | None, typer.Option(help="Network that is cut in two.", metavar="lenet|fixup_resnet|vit")] = None,
    cut: Annotated[str | None, typer.Option(help="Where, such as pool1, stage2, or a ViT's number of blocks.", metavar="PLACE")] = None,
    expert_dim: Annotated[int | None, typer.Option(help="Hidden units of experts; 0 for the backbone's own rest.")] = None,
    seeds: Seeds = 3,
    quick: Quick = False,
    out: Out = None,
    force: Force = False,
) -> None:
    """Accuracy against mean SNR for gates that see features, links, both or neither (arXiv 2504.00819)."""
    with interruptible_import():
        from nmoe.recipes.reproduction import reproduce_channel_gating
    with run_folder(out, "channel-gating") as (folder, progress):
        reproduce_channel_gating(
            scale=scale,
            data=data,
            data_dir=data_dir,
            test=test,
            backbone=backbone,
            cut=cut,
            expert_dim=expert_dim,
            seeds=seeds,
            brief=quick,
            out=folder,
            force=force,
            command=command_line(),
            progress=progress,
        )


@reproduce.command()
def slide(
    scale: Annotated[str, typer.Option(help="How many points each curve has.", metavar="cpu|paper")] = "cpu",
    setting: Annotated[
        list[str] | None,
        typer.Option(
            help="Where users are; repeat for more (cell if not given). All but cell need --data-dir.", metavar="cell|traces|cqi|melbourne"
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with throughput.csv.gz, ucc5g.csv.gz and eua_*_melbcbd.csv.", metavar="DIR")
    ] = None,
    profiles: Annotated[
        Path | None,
        typer.Option(help="Table of layers with columns model, params, macs; seven image models if not given.", metavar="FILE.csv"),
    ] = None,
    precision: Annotated[str, typer.Option(help="Size of a parameter on its way.", metavar="fp32|fp16|int8")] = "fp16",
    seeds: Annotated[int | None, typer.Option(help="How often everything is drawn; 20 if not given, 3 with --quick.")] = None,
    quick: Quick = False,
    out: Out = None,
    force: Force = False,
) -> None:
    """Users served and latency against bandwidth, deadline, users, energy and batch, for all ways to deliver models (arXiv 2512.20946)."""
    with interruptible_import():
        from nmoe.recipes.slide_reproduction import reproduce_slide
    with run_folder(out, "slide") as (folder, progress):
        reproduce_slide(
            scale=scale,
            seeds=seeds,
            settings=setting or ["cell"],
            data_dir=data_dir,
            profiles=profiles,
            precision=precision,
            brief=quick,
            out=folder,
            force=force,
            command=command_line(),
            progress=progress,
        )


@reproduce.command()
def aeria(
    scale: Annotated[str, typer.Option(help="How many points each curve has, and how much is tried.", metavar="cpu|paper")] = "cpu",
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder with phones_ai_benchmark.csv, throughput.csv.gz and eua_*_melbcbd.csv; adds two measured settings.", metavar="DIR"
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="How often every market is drawn; the scale's own if not given.")] = None,
    quick: Quick = False,
    out: Out = None,
    force: Force = False,
) -> None:
    """Profit over the benchmark for all ways to sell edge inference, truth, envy, and what early exits and cuts add (arXiv 2503.04521)."""
    with interruptible_import():
        from nmoe.recipes.aeria_reproduction import reproduce_aeria
    with run_folder(out, "aeria") as (folder, progress):
        reproduce_aeria(
            scale=scale, seeds=seeds, data_dir=data_dir, brief=quick, out=folder, force=force, command=command_line(), progress=progress
        )
