"""The checks of a gate as JUnit XML, which CI systems read."""

from __future__ import annotations

from xml.etree import ElementTree

from riprap._text import escape_control_chars
from riprap.commands.gate._checks import Check, GateResult, Status


def to_junit(result: GateResult) -> str:
    """Return the checks as a JUnit test suite: a failure where one failed, else an error."""
    counts = {status: [c.status for c in result.checks].count(status) for status in Status}
    suite = ElementTree.Element(
        "testsuite",
        name="riprap gate",
        tests=str(len(result.checks)),
        failures=str(counts[Status.FAILED]),
        errors=str(counts[Status.UNKNOWN]),
        skipped=str(counts[Status.SKIPPED]),
    )
    for check in result.checks:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=escape_control_chars(result.subject),
            name=escape_control_chars(check.requirement),
        )
        kind = {
            Status.FAILED: "failure",
            Status.UNKNOWN: "error",
            Status.SKIPPED: "skipped",
        }.get(check.status)
        if kind is not None:
            ElementTree.SubElement(case, kind, message=describe(check))
        else:
            ElementTree.SubElement(case, "system-out").text = describe(check)
    ElementTree.indent(suite)
    text = ElementTree.tostring(suite, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def describe(check: Check) -> str:
    """Return what was found in one line, with its interval and its note."""
    parts = [check.found]
    if check.interval is not None:
        parts.append("95 % interval {:.2f} to {:.2f}".format(*check.interval))
    return escape_control_chars("; ".join([*parts, *([check.note] if check.note else [])]))
