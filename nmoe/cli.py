"""The command line: argument parsing only. Every command calls one function; heavy libraries are imported inside it.

A mistake or a failure of the world is one line on standard error and exit code 2. ``NMOE_TRACEBACK=1`` shows where it came from.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from nmoe.core.errors import BadFile, NmoeError

if TYPE_CHECKING:
    from nmoe.node import TlsFiles

app = typer.Typer(
    help="Networked mixture of experts: devices train a mixture together without sharing data, then answer together.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
bench = typer.Typer(help="Measure nmoe beside its peers.", no_args_is_help=True, rich_markup_mode="rich")
app.add_typer(bench, name="bench")

Data = Annotated[
    str, typer.Option(help="digits, fashion-mnist, cifar10, cifar100, or a .npz file with images and labels.", metavar="NAME|FILE.npz")
]
DataDir = Annotated[Path | None, typer.Option(help="Folder with the files of a named data set.", metavar="DIR")]
Test = Annotated[
    Path | None, typer.Option(help="Test file for a .npz file; without it a stratified fifth is held out.", metavar="FILE.npz")
]
Nodes = Annotated[int, typer.Option(help="Number of nodes.")]
Split = Annotated[str, typer.Option(help="How data is dealt to nodes.", metavar="iid|shards:M|dirichlet:A|quantity:A")]
Neighbours = Annotated[int, typer.Option(help="Nodes each node can ask, its nearest on a ring; 0 for all.")]
K = Annotated[int, typer.Option(help="Experts asked per sample.")]
ExtractorName = Annotated[str, typer.Option(help="How stage 1 learns the extractor.", metavar="fedsc|fedce")]
GateName = Annotated[str, typer.Option(help="Who trains the gate in stage 3.", metavar="fedgate|rangate|rollgate")]
GateSync = Annotated[str, typer.Option(help="What FedGate synchronises.", metavar="full|trunk|head|every:M|neighbours")]
GateReading = Annotated[str, typer.Option(help="Reading of RanGate and RollGate, see docs/methods.", metavar="A|B")]
MixName = Annotated[str, typer.Option(help="What of the experts is averaged.", metavar="probabilities|logits")]
Rounds = Annotated[int, typer.Option(help="Rounds of stage 1 and of the FedAvg control.")]
GateRounds = Annotated[int, typer.Option(help="Rounds of stage 3.")]
Participation = Annotated[float, typer.Option(help="Share of nodes in a FedSC round.")]
Widen = Annotated[int, typer.Option(help="Width factor of the Fixup-ResNet-20 that colour images get.")]
DpEpsilon = Annotated[float | None, typer.Option(help="Privacy of FedSC's shared matrices over the whole run; none if not given.")]
DpDelta = Annotated[float, typer.Option(help="The delta that goes with it.")]
Seed = Annotated[int, typer.Option(help="Seed of every draw.")]
Engine = Annotated[str, typer.Option(help="In this process, or Flower's Ray simulation.", metavar="local|ray")]
Out = Annotated[Path | None, typer.Option(help="Run folder.", metavar="DIR")]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier run in the folder.")]
Resume = Annotated[
    Path | None,
    typer.Option(help="Continue the killed run in this folder; all other options are read from it and must not be given.", metavar="DIR"),
]
MeshName = Annotated[str, typer.Option("--mesh", help="Name of the mesh.")]
Connect = Annotated[list[str] | None, typer.Option(help="Endpoint of a node to begin with; repeat for more.", metavar="ENDPOINT")]
TlsCa = Annotated[
    Path | None, typer.Option(help="Certificate of the authority whose members are trusted; for tls/ endpoints.", metavar="FILE")
]
TlsCert = Annotated[Path | None, typer.Option(help="Own certificate.", metavar="FILE")]
TlsKey = Annotated[Path | None, typer.Option(help="Own private key.", metavar="FILE")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Allow plain tcp beyond this machine.")]


@app.command()
def demo(
    context: typer.Context,
    data: Data = "digits",
    data_dir: DataDir = None,
    test: Test = None,
    nodes: Nodes = 10,
    split: Split = "shards:2",
    neighbours: Neighbours = 0,
    k: K = 2,
    extractor: ExtractorName = "fedsc",
    gate: GateName = "fedgate",
    gate_sync: GateSync = "full",
    gate_reading: GateReading = "A",
    mix: MixName = "probabilities",
    rounds: Rounds = 24,
    gate_rounds: GateRounds = 80,
    participation: Participation = 1.0,
    widen: Widen = 2,
    dp_epsilon: DpEpsilon = None,
    dp_delta: DpDelta = 1e-5,
    seed: Seed = 0,
    engine: Engine = "local",
    out: Out = None,
    force: Force = False,
    resume: Resume = None,
) -> None:
    """Train a mixture, serve it from real processes, and report: the whole life once."""
    _run_recipe("demo", context, dict(locals()))


@app.command()
def train(
    context: typer.Context,
    data: Data = "digits",
    data_dir: DataDir = None,
    test: Test = None,
    nodes: Nodes = 10,
    split: Split = "shards:2",
    neighbours: Neighbours = 0,
    k: K = 2,
    extractor: ExtractorName = "fedsc",
    gate: GateName = "fedgate",
    gate_sync: GateSync = "full",
    gate_reading: GateReading = "A",
    mix: MixName = "probabilities",
    rounds: Rounds = 24,
    gate_rounds: GateRounds = 80,
    participation: Participation = 1.0,
    widen: Widen = 2,
    dp_epsilon: DpEpsilon = None,
    dp_delta: DpDelta = 1e-5,
    seed: Seed = 0,
    engine: Engine = "local",
    out: Out = None,
    force: Force = False,
    resume: Resume = None,
) -> None:
    """Train extractor, experts and gates; write one bundle per node."""
    _run_recipe("train", context, dict(locals()))


def _run_recipe(name: str, context: typer.Context, given: dict[str, object]) -> None:
    """Run demo or train with what the user said."""
    from rich.console import Console

    with _interruptible_import():
        from nmoe.recipes.demo import demo, resume_demo
        from nmoe.recipes.options import TrainOptions
        from nmoe.recipes.train import resume_train, train
    from nmoe.report import results_table
    from nmoe.report.progress import StageProgress

    out, force, resume = given.pop("out"), given.pop("force"), given.pop("resume")
    del given["context"]
    if resume is not None:
        _refuse_other_options(context)
    folder = Path(str(resume or out or f"runs/{name}"))
    with StageProgress() as progress:
        if resume is not None:
            continued = resume_demo if name == "demo" else resume_train
            results = continued(folder, progress)
        else:
            words = {key: str(value.absolute()) if isinstance(value, Path) else value for key, value in given.items()}
            if str(words["data"]).endswith(".npz"):  # a resume may start in another folder
                words["data"] = str(Path(str(words["data"])).absolute())
            options = TrainOptions(**words)  # type: ignore[arg-type]  # the parameters above are its fields
            begin = demo if name == "demo" else train
            results = begin(options, folder, progress, force=bool(force), command=_command_line())
    console = Console()
    console.print(results_table(results))
    console.print(f"run folder {folder}, report {folder / 'report.html'}", highlight=False, soft_wrap=True)


def _refuse_other_options(context: typer.Context) -> None:
    """Refuse options beside --resume: they are read from the run folder, and one that is ignored would mislead."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if name != "resume" and source is not None and source.name == "COMMANDLINE":
            raise ValueError(f"--resume reads its options from the run folder, got --{name.replace('_', '-')} beside it")


def _tls_files(ca: Path | None, certificate: Path | None, key: Path | None) -> "TlsFiles | None":
    """Return the files of mutual TLS, or None for none.

    Raises:
        ValueError: when only some are given.
        BadFile: when one does not exist.
    """
    from nmoe.node import TlsFiles

    given = {"--tls-ca": ca, "--tls-cert": certificate, "--tls-key": key}
    missing = [name for name, path in given.items() if path is None]
    if len(missing) == len(given):
        return None
    if ca is None or certificate is None or key is None:
        raise ValueError(f"--tls-ca, --tls-cert and --tls-key go together, got no {' and no '.join(missing)}")
    for name, path in given.items():
        if path is not None and not path.is_file():
            raise BadFile(f"there is no file {path} ({name})")
    return TlsFiles(root_ca=ca, certificate=certificate, private_key=key)


@app.command()
def node(
    bundles: Annotated[list[Path], typer.Argument(help="Bundle folders to serve.", metavar="BUNDLE...")],
    mesh: MeshName = "nmoe",
    listen: Annotated[
        list[str] | None,
        typer.Option(help="Own endpoint (tcp/127.0.0.1:7447 if not given); repeat for more bundles, in order.", metavar="ENDPOINT"),
    ] = None,
    connect: Connect = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    insecure: Insecure = False,
    exit_with_parent: Annotated[bool, typer.Option("--exit-with-parent", help="Stop when standard input ends.")] = False,
) -> None:
    """Serve bundles as nodes of a mesh, each in a process of its own."""
    # Before numpy and torch are imported, which start threads: a node computes on one, and a process with several cannot be forked.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with _interruptible_import():
        from nmoe.node import run_nodes

    run_nodes(
        bundles,
        mesh=mesh,
        listen=listen or ["tcp/127.0.0.1:7447"],
        seeds=connect or (),
        insecure=insecure,
        tls=_tls_files(tls_ca, tls_cert, tls_key),
        lifeline=0 if exit_with_parent else None,
    )


@app.command()
def mesh(
    run: Annotated[Path, typer.Argument(help="Run folder with bundles.")],
    mesh: MeshName = "nmoe",
) -> None:
    """Start every node of a run on this machine, until Ctrl-C."""
    with _interruptible_import():
        from nmoe.recipes.mesh import run_mesh

    run_mesh(run, mesh=mesh, say=typer.echo)


@app.command()
def infer(
    images: Annotated[
        str, typer.Argument(help="A data set whose test images are sent, or a .npz file, all of it; labels optional.")
    ] = "digits",
    connect: Connect = None,
    mesh: MeshName = "nmoe",
    node: Annotated[str | None, typer.Option(help="Node to ask; the nodes in turn if not given.")] = None,
    data_dir: DataDir = None,
    count: Annotated[int, typer.Option(help="How many images to send, from the first; 0 for all.")] = 10,
    deadline_ms: Annotated[float, typer.Option(help="Time each request may take.")] = 1000.0,
    k: Annotated[int | None, typer.Option(help="Experts asked per sample; the node's own number if not given.")] = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    insecure: Insecure = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line per image.")] = False,
) -> None:
    """Send images to a running mesh and show who answered."""
    with _interruptible_import():
        from nmoe.recipes.mesh import infer_images

    infer_images(
        images,
        seeds=connect or ["tcp/127.0.0.1:7447"],
        mesh=mesh,
        node=node,
        data_dir=data_dir,
        count=count,
        deadline_s=deadline_ms / 1000,
        k=k,
        insecure=insecure,
        tls=_tls_files(tls_ca, tls_cert, tls_key),
        as_json=as_json,
        say=typer.echo,
    )


@bench.command("federate")
def bench_federate(
    as_json: Annotated[bool, typer.Option("--json", help="Print name, machine and rows as JSON.")] = False,
    rounds: Annotated[int, typer.Option(help="Rounds measured per case and system.")] = 30,
) -> None:
    """Time a round of the in-process grid, of Flower's Ray simulation and of a bare loop over the same local step."""
    from nmoe.recipes.bench_federate import bench_federate as measure

    measure(rounds=rounds, as_json=as_json, say=typer.echo)


@contextmanager
def _interruptible_import() -> Iterator[None]:
    """Let Ctrl-C end this process while torch is imported, which takes seconds and for 0.4 s of them swallows KeyboardInterrupt."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # and not ignored, as nohup and a shell's & want it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before)


def _command_line() -> str:
    """Return what the user typed, for config.json."""
    import shlex

    return shlex.join(["nmoe", *sys.argv[1:]])


def main() -> NoReturn:
    """Run the command line."""
    try:
        app(standalone_mode=True)
    except (NmoeError, ValueError, OSError) as error:
        if os.environ.get("NMOE_TRACEBACK"):
            raise
        said = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.filename else str(error)
        print(f"error: {' '.join(said.split())}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
