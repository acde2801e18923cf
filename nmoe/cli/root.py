"""The root of the command line, and what every command needs."""

import gc
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import typer

app = typer.Typer(
    help="Networked mixture of experts: devices train a mixture together without sharing data, then answer together.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@contextmanager
def interruptible_import() -> Iterator[None]:
    """Let Ctrl-C end this process while torch is imported, which takes seconds and for 0.4 s of them swallows KeyboardInterrupt.

    Garbage is collected only afterwards: what is imported stays, and going over it again and again is a seventh of that time.
    """
    gc.disable()
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # and not ignored, as nohup and a shell's & want it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before)
    gc.enable()
