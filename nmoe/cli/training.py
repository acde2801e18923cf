"""``nmoe demo`` and ``nmoe train``."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from nmoe.cli.root import app, interruptible_import

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
Channel = Annotated[
    str | None,
    typer.Option(help="Radio links to neighbours, simulated; perfect ones if not given. K is a ratio.", metavar="awgn|rayleigh|rician:K"),
]
Snr = Annotated[str | None, typer.Option(help="Range of the links' mean SNRs in dB; -10:20 if not given.", metavar="LOW:HIGH")]
TransmissionName = Annotated[
    str,
    typer.Option(
        help="With --channel: how features cross a link. Digital: 2 to 16 bits a number (8 if not given), bpsk, qpsk (if not given) or "
        "16qam, code none (if not given), repetition, convolutional or ldpc; the last two need the extra radio.",
        metavar="analog|digital[:BITS[:MODULATION[:CODE]]]",
    ),
]
ChannelGate = Annotated[str, typer.Option(help="With --channel: form of the channel-aware gate.", metavar="additive|joint")]
CollapseWeight = Annotated[float, typer.Option(help="With --channel: weight of the penalty on gating collapse over noisy links.")]
Seed = Annotated[int, typer.Option(help="Seed of every draw.")]
Engine = Annotated[str, typer.Option(help="In this process, or Flower's Ray simulation.", metavar="local|ray")]
Recruitment = Annotated[
    Path | None,
    typer.Option(help="Plan of nmoe market recruit: its nodes train on so many samples, others take no part.", metavar="PLAN.json"),
]
Out = Annotated[Path | None, typer.Option(help="Run folder.", metavar="DIR")]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier run in the folder.")]
Resume = Annotated[
    Path | None,
    typer.Option(help="Continue the killed run in this folder; all other options are read from it and must not be given.", metavar="DIR"),
]


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
    channel: Channel = None,
    snr: Snr = None,
    transmission: TransmissionName = "analog",
    channel_gate: ChannelGate = "additive",
    collapse_weight: CollapseWeight = 0.01,
    seed: Seed = 0,
    engine: Engine = "local",
    recruitment: Recruitment = None,
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
    channel: Channel = None,
    snr: Snr = None,
    transmission: TransmissionName = "analog",
    channel_gate: ChannelGate = "additive",
    collapse_weight: CollapseWeight = 0.01,
    seed: Seed = 0,
    engine: Engine = "local",
    recruitment: Recruitment = None,
    out: Out = None,
    force: Force = False,
    resume: Resume = None,
) -> None:
    """Train extractor, experts and gates; write one bundle per node."""
    _run_recipe("train", context, dict(locals()))


def _run_recipe(name: str, context: typer.Context, given: dict[str, object]) -> None:
    """Run demo or train with what the user said."""
    from rich.console import Console

    with interruptible_import():
        from nmoe.recipes.demo import demo, resume_demo
        from nmoe.recipes.options import TrainOptions
        from nmoe.recipes.recruited import recruited_samples
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
            if given["recruitment"] is not None:
                words["recruitment"] = recruited_samples(Path(str(given["recruitment"])), int(str(given["nodes"])))
            options = TrainOptions(**words)  # type: ignore[arg-type]  # the parameters above are its fields
            begin = demo if name == "demo" else train
            results = begin(options, folder, progress, force=bool(force), command=command_line())
    console = Console()
    console.print(results_table(results))
    for row in results.get("recruitment", []):
        if row["trained"] < row["planned"]:
            console.print(f"{row['node']} has {row['trained']} samples, the plan wants {row['planned']}", highlight=False, soft_wrap=True)
    console.print(f"run folder {folder}, report {folder / 'report.html'}", highlight=False, soft_wrap=True)


def _refuse_other_options(context: typer.Context) -> None:
    """Refuse options beside --resume: they are read from the run folder, and one that is ignored would mislead."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if name != "resume" and source is not None and source.name == "COMMANDLINE":
            raise ValueError(f"--resume reads its options from the run folder, got --{name.replace('_', '-')} beside it")


def command_line() -> str:
    """Return what the user typed, for config.json."""
    return shlex.join(["nmoe", *sys.argv[1:]])
