"""``nmoe keys``: an authority, certificates for nodes, and the list of who is let in."""

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

keys = typer.Typer(help="Certificates of a mesh, and the list of its members.", no_args_is_help=True, rich_markup_mode="rich")

Folder = Annotated[Path, typer.Argument(help="Folder of the authority.", metavar="DIR")]
Name = Annotated[str, typer.Argument(help="Node, as its bundle names it.", metavar="NAME")]


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@keys.command()
def init(
    folder: Folder,
    name: Annotated[str, typer.Option(help="What the authority is called.")] = "nmoe",
    days: Annotated[int, typer.Option(help="How long it is valid.")] = 3650,
) -> None:
    """Make an authority: its certificate, its private key, and an empty list of members."""
    from nmoe.node.keys import init_authority

    typer.echo(f"authority {init_authority(folder, name=name, days=days, now=_now())}; keep its private key off the nodes")


@keys.command()
def issue(
    folder: Folder,
    name: Name,
    address: Annotated[list[str], typer.Option(help="IP address or host name of the node; repeat for more.", metavar="IP|HOST")],
    days: Annotated[int, typer.Option(help="How long it is valid.")] = 365,
    out: Annotated[Path | None, typer.Option(help="Where the three files go; DIR/nodes/NAME if not given.", metavar="DIR")] = None,
    router: Annotated[bool, typer.Option("--router", help="For a router: it may bring what others say.")] = False,
) -> None:
    """Make a node's certificate and key, and put it on the list of members."""
    from nmoe.node.keys import issue as issue_certificate

    files = issue_certificate(folder, name, address, days=days, now=_now(), out=out, router=router)
    typer.echo(f"--tls-ca {files.root_ca} --tls-cert {files.certificate} --tls-key {files.private_key}")


@keys.command()
def revoke(folder: Folder, name: Name) -> None:
    """Take a node off the list of members; copy the list to the nodes and restart them one by one."""
    from nmoe.node.keys import revoke as revoke_member

    member = revoke_member(folder, name, now=_now())
    typer.echo(f"{member.name} is off the list; its certificate would be valid until {member.not_after:%Y-%m-%d}")


@keys.command("list")
def list_members(folder: Folder) -> None:
    """Show the members: name, until when, and who was revoked."""
    from nmoe.node.keys import members

    for member in members(folder):
        state = "revoked" if member.revoked_at is not None else "expired" if member.not_after < _now() else "member"
        typer.echo(f"{member.name:<24}{state:<10}{member.not_after:%Y-%m-%d}{'  router' if member.router else ''}")
