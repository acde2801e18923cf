"""``nmoe node``, ``nmoe infer``, ``nmoe router`` and ``nmoe top``."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nmoe.cli.root import app, interruptible_import
from nmoe.core.errors import BadFile

if TYPE_CHECKING:
    from nmoe.node import TlsFiles

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


@app.command()
def node(
    bundles: Annotated[list[Path], typer.Argument(help="Bundle folders to serve.", metavar="BUNDLE...")],
    mesh: MeshName = "nmoe",
    listen: Annotated[
        list[str] | None,
        typer.Option(help="Own endpoint (tcp/127.0.0.1:7447 if not given); repeat for more bundles, in order.", metavar="ENDPOINT"),
    ] = None,
    as_node: AsNode = None,
    connect: Connect = None,
    http: Annotated[
        str | None,
        typer.Option(help="Answer over HTTP too, with dashboard and metrics; more bundles count the port up.", metavar="HOST:PORT"),
    ] = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    members: Members = None,
    multicast: Multicast = None,
    site: Annotated[str | None, typer.Option(help="Nodes of one site dial each other; others are met at a router.", metavar="NAME")] = None,
    insecure: Insecure = False,
    direct_port: Annotated[
        int, typer.Option(help="Port for direct links of peers, beside --listen; 0 for any. One bundle only, unless 0.")
    ] = 0,
    log: Annotated[Path | None, typer.Option(help="Append one JSON line per request.", metavar="FILE")] = None,
    tensor_format: Annotated[str, typer.Option("--format", help="How features travel.", metavar="auto|float32|float16|int8")] = "auto",
    workers: Annotated[int, typer.Option(help="Threads that compute.")] = 1,
    cpus: Annotated[str | None, typer.Option(help="Cores they may run on, such as 0,2-3.", metavar="LIST")] = None,
    gradients: Annotated[bool, typer.Option("--gradients", help="Let peers ask for derivatives of the expert.")] = False,
    exit_with_parent: Annotated[bool, typer.Option("--exit-with-parent", help="Stop when standard input ends.")] = False,
) -> None:
    """Serve bundles as nodes of a mesh, each in a process of its own."""
    # Before numpy and torch are imported, which start threads: a node computes on one, and a process with several cannot be forked.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with interruptible_import():
        from nmoe.node import NodeOptions, NodeSettings, run_nodes
        from nmoe.node.process import core_list, formats_of

    options = NodeOptions(
        node=as_node,
        workers=workers,
        cpus=None if cpus is None else core_list(cpus),
        formats=formats_of(tensor_format),
        gradients=gradients,
        log=log,
    )
    endpoints = listen or ["tcp/127.0.0.1:7447"]
    settings = NodeSettings(
        mesh=mesh,
        listen=endpoints[0],
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
    run_nodes(bundles, settings, listen=endpoints, lifeline=0 if exit_with_parent else None)


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
