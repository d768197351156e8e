"""How commands print what the gate found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from convoy.contract.validation import Check, Fault, PrecisionFacts

_MAX_WRONG: Final = 6


def print_findings(checks: tuple[Check, ...], fault: Fault | None, elsewhere: str) -> None:
    """What passed and what nothing here could check; then the first fault, and the checks that did not pass.

    Args:
        checks: In the order in which they ran.
        fault: Where the file departs from the network, where it does.
        elsewhere: Where all checks can be read: one fault fails many of them, and the first few say it.
    """
    wrong = [check for check in checks if check.verdict in ("failed", "undecided")]
    for check in checks:
        detail = f"; {check.detail}" if check.detail else ""
        if check.verdict == "passed":
            click.echo(f"  passed     {check.name}: {_measured(check) or check.found}")
        elif check.verdict == "uncovered":
            click.echo(f"  uncovered  {check.name}: {check.found}{detail}")
    print_fault(fault)
    for check in wrong[:_MAX_WRONG]:
        detail = f"; {check.detail}" if check.detail else ""
        click.echo(f"  {check.verdict.upper():9}  {check.name}: {check.found}")
        click.echo(f"{'':13}expected: {check.expected}{detail}")
    if (more := len(wrong) - _MAX_WRONG) > 0:
        click.echo(f"{'':13}... and {more} more that did not pass: {elsewhere}")


def _measured(check: Check) -> str:
    """What a passed comparison comes down to; ties, which a person should see, stay in full."""
    if check.limit is None or check.measured is None or "ties" in check.found:
        return ""
    return f"off by {check.measured:.2g}, {check.limit:.2g} allowed"


def print_fault(fault: Fault | None) -> None:
    """Where the file departs from the network, and why, as far as can be told."""
    if fault is None:
        return
    where = f"node {fault.node} ({fault.op_type})" if fault.node else "the file as a whole"
    module = f", from module {fault.module}" if fault.module else ""
    click.echo(f"first fault: {where}{module}")
    if fault.max_abs_diff is not None:
        allowed = "" if fault.allowed is None else f"; float32 explains {fault.allowed:.3g}"
        click.echo(f"             {fault.output} differs by {fault.max_abs_diff:.3g}{allowed} ({fault.image})")
    click.echo(f"             {fault.cause}")
    if fault.suspects:
        click.echo(f"             it could also be: {', '.join(fault.suspects)}")


def print_precision(facts: PrecisionFacts | None) -> None:
    """What a reduced precision costs and brings."""
    if facts is None:
        return
    before, after = facts.float32_speed, facts.speed
    click.echo(f"{facts.precision} beside float32, {after.provider}:")
    click.echo(f"  size        {after.size_bytes / 1024:,.0f} KiB instead of {before.size_bytes / 1024:,.0f}")
    click.echo(f"  latency     {after.latency_ms:.2f} ms instead of {before.latency_ms:.2f}")
    click.echo(f"  throughput  {after.throughput_ips:,.0f} images/s instead of {before.throughput_ips:,.0f}")
    click.echo(
        f"  accuracy    {facts.accuracy:.2%} instead of {facts.float32_accuracy:.2%} on {facts.n:,} images; "
        f"{len(facts.flips)} answers changed; the drop is at most {facts.accuracy_drop_upper:.2%} (95 % confidence)"
    )
    for what in facts.remarks:
        click.echo(f"  {what}")
