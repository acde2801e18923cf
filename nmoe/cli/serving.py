"""``nmoe node``, ``nmoe infer``, ``nmoe router`` and ``nmoe top``."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nmoe.cli.root import app, interruptible_import
from nmoe.core.errors import BadFile

if TYPE_CHECKING:
    from nmoe.node import RadioLinks, TlsFiles

MeshName = Annotated[str, typer.Option("--mesh", help="Name of the mesh.")]
Connect = Annotated[list[str] | None, typer.Option(help="Endpoint of a node to begin with; repeat for more.", metavar="ENDPOINT")]
TlsCa = Annotated[
    Path | None, typer.Option(help="Certificate of the authority whose members are trusted; for tls/ endpoints.", metavar="FILE")
]
TlsCert = Annotated[Path | None, typer.Option(help="Own certificate.", metavar="FILE")]
TlsKey = Annotated[Path | None, typer.Option(help="Own private key.", metavar="FILE")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Allow plain tcp beyond this machine.")]
Members = Annotated[
    Path | None, typer.Option(help="List of members (members.json): nobody else is let in, whatever certificate it shows.", metavar="FILE")
]
AsNode = Annotated[
    str | None, typer.Option("--as", help="Own name; other than the bundle's for a replica of a node served elsewhere.", metavar="NAME")
]
Multicast = Annotated[
    str | None, typer.Option(help="Interface on which nodes look for each other, such as eth0; auto for any.", metavar="IFACE")
]
Listen = Annotated[
    list[str] | None,
    typer.Option(help="Own endpoint (tcp/127.0.0.1:7447 if not given); repeat for more bundles, in order.", metavar="ENDPOINT"),
]
Http = Annotated[
    str | None, typer.Option(help="Answer over HTTP too, with dashboard and metrics; more bundles count the port up.", metavar="HOST:PORT")
]
Site = Annotated[str | None, typer.Option(help="Nodes of one site dial each other; others are met at a router.", metavar="NAME")]
DirectPort = Annotated[int, typer.Option(help="Port for direct links of peers, beside --listen; 0 for any. One bundle only, unless 0.")]
Format = Annotated[str, typer.Option("--format", help="How features travel.", metavar="auto|float32|float16|int8|int4")]
RoutingWord = Annotated[str, typer.Option("--routing", help="What decides who is asked.", metavar="both|gate|link")]
Channel = Annotated[str | None, typer.Option(help="Simulate radio links to neighbours that fade so.", metavar="awgn|rayleigh|rician:K")]
Snr = Annotated[str | None, typer.Option(help="Range of their mean SNRs in dB; -10:20 if not given.", metavar="LOW:HIGH")]
TransmissionWord = Annotated[
    str | None,
    typer.Option(
        "--transmission",
        help="How features cross them; analog if not given. Digital: 2 to 16 bits a number (8 if not given), bpsk, qpsk (if not given) or "
        "16qam, code none (if not given), repetition, convolutional or ldpc; the last two need the extra radio.",
        metavar="analog|digital[:BITS[:MODULATION[:CODE]]]",
    ),
]
ChannelSeed = Annotated[int | None, typer.Option(help="Seed of their SNRs, fading and noise; 0 if not given.", metavar="N")]
ChannelTrace = Annotated[
    Path | None, typer.Option(help="Take their SNRs from reports of real links (CSV) instead of a range.", metavar="FILE")
]
WirelessFlag = Annotated[bool, typer.Option("--wireless", help="Take links' SNRs from the system's report of its wireless interface.")]


def tls_files(ca: Path | None, certificate: Path | None, key: Path | None) -> "TlsFiles | None":
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


def radio_links(
    *, channel: str | None, snr: str | None, transmission: str | None, seed: int | None, trace: Path | None
) -> "RadioLinks | None":
    """Return the radio links that ``nmoe node`` is to simulate, or None for none.

    Raises:
        ValueError: when a word is not understood, or says something of links that are not simulated.
        BadFile: when the trace cannot be read.
    """
    if channel is None and trace is None:
        given = {"--snr": snr, "--transmission": transmission, "--channel-seed": seed}
        for name, word in given.items():
            if word is not None:
                raise ValueError(f"{name} says what simulated links are like: --channel or --channel-trace wanted, got {name} {word} alone")
        return None
    if trace is not None and snr is not None:
        raise ValueError(f"mean SNRs from either --snr or --channel-trace wanted, got --snr {snr} and --channel-trace {trace}")
    from nmoe.channel.trace import read_trace
    from nmoe.node import RadioLinks
    from nmoe.recipes.channel_options import DEFAULT_SNR, parse_radio

    radio = parse_radio(channel or "awgn", snr or DEFAULT_SNR, transmission or "analog")
    return RadioLinks(radio=radio, seed=seed or 0, traces={} if trace is None else read_trace(trace))


@app.command()
def node(
    bundles: Annotated[list[Path], typer.Argument(help="Bundle folders to serve.", metavar="BUNDLE...")],
    mesh: MeshName = "nmoe",
    listen: Listen = None,
    as_node: AsNode = None,
    connect: Connect = None,
    http: Http = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    members: Members = None,
    multicast: Multicast = None,
    site: Site = None,
    insecure: Insecure = False,
    direct_port: DirectPort = 0,
    log: Annotated[Path | None, typer.Option(help="Append one JSON line per request.", metavar="FILE")] = None,
    tensor_format: Format = "auto",
    routing: RoutingWord = "both",
    channel: Channel = None,
    snr: Snr = None,
    transmission: TransmissionWord = None,
    channel_seed: ChannelSeed = None,
    channel_trace: ChannelTrace = None,
    wireless: WirelessFlag = False,
    workers: Annotated[int, typer.Option(help="Threads that compute.")] = 1,
    cpus: Annotated[str | None, typer.Option(help="Cores they may run on, such as 0,2-3.", metavar="LIST")] = None,
    gradients: Annotated[bool, typer.Option("--gradients", help="Let peers ask for derivatives of the expert.")] = False,
    exit_with_parent: Annotated[bool, typer.Option("--exit-with-parent", help="Stop when standard input ends.")] = False,
) -> None:
    """Serve bundles as nodes of a mesh, each in a process of its own."""
    _one_thread()
    with interruptible_import():
        from nmoe.node import NodeOptions, NodeSettings, run_nodes
        from nmoe.node.process import core_list, formats_of, routing_of
    options = NodeOptions(
        node=as_node,
        workers=workers,
        cpus=None if cpus is None else core_list(cpus),
        formats=formats_of(tensor_format),
        gradients=gradients,
        log=log,
        routing=routing_of(routing),
        radio=radio_links(channel=channel, snr=snr, transmission=transmission, seed=channel_seed, trace=channel_trace),
        wireless=wireless,
    )
    listen = listen or ["tcp/127.0.0.1:7447"]
    settings = NodeSettings(
        mesh=mesh,
        listen=listen[0],
        seeds=tuple(connect or ()),
        insecure=insecure,
        tls=tls_files(tls_ca, tls_cert, tls_key),
        members=members,
        multicast=multicast,
        site=site,
        http=http,
        direct_port=direct_port,
        options=options,
    )
    run_nodes(bundles, settings, listen=listen, lifeline=0 if exit_with_parent else None)


def _one_thread() -> None:
    """Have numpy and torch, which are not imported yet, start no threads: a node computes on one, and with several none can be forked."""
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@app.command()
def infer(
    images: Annotated[
        str, typer.Argument(help="A data set whose test images are sent, or a .npz file, all of it; labels optional.")
    ] = "digits",
    connect: Connect = None,
    mesh: MeshName = "nmoe",
    node: Annotated[str | None, typer.Option(help="Node to ask; the nodes in turn if not given.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with the files of a named data set.", metavar="DIR")] = None,
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
    with interruptible_import():
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
        tls=tls_files(tls_ca, tls_cert, tls_key),
        as_json=as_json,
        say=typer.echo,
    )


@app.command()
def router(
    listen: Annotated[list[str], typer.Option(help="Own endpoint; repeat for more.", metavar="ENDPOINT")],
    connect: Annotated[list[str] | None, typer.Option(help="Endpoint of another router; repeat for more.", metavar="ENDPOINT")] = None,
    mesh: Annotated[str | None, typer.Option(help="Name of the mesh; needed with --members.")] = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    members: Members = None,
    site: Annotated[list[str] | None, typer.Option(help="A site between which and others it passes on; repeat.", metavar="NAME")] = None,
    insecure: Insecure = False,
) -> None:
    """Pass messages on between sites whose nodes cannot reach each other, until Ctrl-C."""
    with interruptible_import():
        from nmoe.node.process import run_router

    run_router(
        listen=listen,
        seeds=connect or (),
        mesh=mesh,
        tls=tls_files(tls_ca, tls_cert, tls_key),
        members=members,
        sites=site or (),
        insecure=insecure,
    )


@app.command()
def top(
    connect: Connect = None,
    mesh: MeshName = "nmoe",
    every: Annotated[float, typer.Option(help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    insecure: Insecure = False,
    as_json: Annotated[bool, typer.Option("--json", help="Look once and print the nodes' views as JSON.")] = False,
) -> None:
    """Watch a running mesh: nodes, links, load, latency, errors."""
    with interruptible_import():
        from nmoe.recipes.top import watch_mesh

    watch_mesh(
        seeds=connect or ["tcp/127.0.0.1:7447"],
        mesh=mesh,
        every_s=every,
        once=once or as_json,
        as_json=as_json,
        insecure=insecure,
        tls=tls_files(tls_ca, tls_cert, tls_key),
    )
