"""``nmoe deliver``: models that compute while they are being downloaded."""

from pathlib import Path
from typing import Annotated

import typer

from nmoe.cli.root import interruptible_import

deliver = typer.Typer(help="Bring models to devices, and start computing while they arrive.", no_args_is_help=True, rich_markup_mode="rich")

ModelArgs = Annotated[str, typer.Option(help="Keyword arguments of the function, or changes of the configuration.", metavar="JSON")]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help=".npy: an input by position, or NAME=FILE; .npz or .safetensors: inputs by name. Repeat for more.",
        metavar="FILE",
        show_default=False,
    ),
]
MODEL_HELP = "package.module:function that builds it, Hugging Face's config.json, or a folder with one."


@deliver.command()
def run(
    url: Annotated[
        str, typer.Argument(help="Weights: a .safetensors, or a .safetensors.index.json, on an ordinary HTTP server.", metavar="URL")
    ],
    model: Annotated[str, typer.Option(help=MODEL_HELP, metavar="MODEL")],
    model_args: ModelArgs = "{}",
    inputs: Inputs = None,
    output: Annotated[Path | None, typer.Option(help="Write what the model puts out: .npy, .npz or .safetensors.", metavar="FILE")] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="Another address of the same file, used at the same time; repeat for more.", metavar="URL")
    ] = None,
    cache_dir: Annotated[
        Path | None, typer.Option(help="Where files are kept (~/.cache/nmoe/deliver if not given).", metavar="DIR")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use what is in the cache without asking the server.")] = False,
    card: Annotated[Path | None, typer.Option(help="Card of the file (looked for beside it if not given).", metavar="FILE")] = None,
    sha256: Annotated[str | None, typer.Option(help="SHA-256 that a single file must have.", metavar="HEX")] = None,
    max_rate: Annotated[float | None, typer.Option(help="Bytes per second, at most.", metavar="BYTES")] = None,
    stall_s: Annotated[float, typer.Option(help="Try again when nothing comes for so many seconds.")] = 10.0,
    deadline_s: Annotated[float, typer.Option(help="Give up when nothing new comes for so many seconds.")] = 60.0,
    connections: Annotated[int, typer.Option(help="Connections to each source.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print what happened as JSON.")] = False,
) -> None:
    """Run a model once while its weights are still being downloaded."""
    from nmoe.report.delivery_progress import DeliveryBars

    with interruptible_import():
        from nmoe.recipes.deliver_run import deliver_run, find_own_modules
    find_own_modules()
    deliver_run(
        url,
        model=model,
        model_args=model_args,
        inputs=inputs or [],
        output=output,
        as_json=as_json,
        say=typer.echo,
        note=lambda line: typer.echo(line, err=True),
        watch=DeliveryBars,
        sources=source or [],
        cache_dir=cache_dir,
        revalidate=not offline,
        card=card,
        sha256=sha256,
        max_bytes_per_s=max_rate,
        stall_timeout_s=stall_s,
        deadline_s=deadline_s,
        connections=connections,
    )


@deliver.command()
def pack(
    file: Annotated[Path, typer.Argument(help="A .safetensors, or the .safetensors.index.json of several.", metavar="FILE")],
    model: Annotated[str | None, typer.Option(help=MODEL_HELP + " Without it tensors keep the file's order.", metavar="MODEL")] = None,
    model_args: ModelArgs = "{}",
    inputs: Inputs = None,
) -> None:
    """Write a card beside a model's file: order of execution, hashes, bytes and operations per layer."""
    with interruptible_import():
        from nmoe.recipes.deliver_run import deliver_pack, find_own_modules
    find_own_modules()
    deliver_pack(file, model=model, model_args=model_args, inputs=inputs or [], say=typer.echo)
