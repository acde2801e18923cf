"""Verify a closed epoch: compute it again from its bids, and say what differs."""

from collections.abc import Callable, Sequence
from pathlib import Path

from nmoe.market.auction.workloads import builtin_workloads, read_workloads
from nmoe.market.service.verification import WrongRecord, differences, read_receipt, read_record

MOST_LINES = 20


def market_verify(
    path: Path, *, commitment: str | None, receipts: Sequence[Path], workloads: Path | None, say: Callable[[str], None]
) -> None:
    """Check a record, and print what it was found to be.

    Args:
        path: what ``GET /epochs/ID`` returned.
        commitment: as noted while the epoch was open; None to take the record's word for it.
        receipts: files with answers to accepted bids.
        workloads: file with those that the market had, where they were not the built-in ones.
        say: prints a line.

    Raises:
        WrongRecord: when something differs.
        BadFile: when a file cannot be read.
    """
    record, data = read_record(path)
    known = builtin_workloads() if workloads is None else read_workloads(workloads)
    found = differences(record, data, known, commitment=commitment, receipts=[read_receipt(one) for one in receipts])
    for difference in found[:MOST_LINES]:
        say(f"differs: {difference}")
    if len(found) > MOST_LINES:
        say(f"and {len(found) - MOST_LINES} more")
    if found:
        raise WrongRecord(
            f"{path} is not what the rules make of its bids: {len(found)} {'difference' if len(found) == 1 else 'differences'}"
        )
    bids = f"{len(record.bids)} bid{'' if len(record.bids) == 1 else 's'}"
    say(f"epoch {record.epoch}: right. {bids}, draw {record.draw:.6f}, commitment {record.commitment}")
    if record.outcome is None:
        say(f"no outcome, as the rules have it: {record.error}")
    else:
        served = sum(user.served for user in record.outcome.users)
        say(f"{record.outcome.mechanism}: {served} served, revenue {record.outcome.revenue:g}")
    if commitment is None:
        say("the commitment is the file's own word: give --commitment, as noted while the epoch was open")
