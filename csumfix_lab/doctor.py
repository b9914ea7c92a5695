"""``csumfix doctor --kernel``: the self-test as a command."""

import json
import os
from typing import Any

import click
from rich.console import Console

from csumfix.errors import CsumfixError, Exit
from csumfix_lab import selftest, selftest_view

_ELSEWHERE = f"any other machine with kernel {os.uname().release} would give the same answer"


def run(*, as_json: bool) -> tuple[Exit, dict[str, Any]]:
    """Test this kernel and print the result; return the exit code, and the result as data."""
    click.echo("csumfix: testing this kernel in throwaway namespaces, for about 10 s", err=True)
    try:
        result = selftest.run()
    except CsumfixError as error:
        raise CsumfixError(f"{error}; {_ELSEWHERE}", error.code) from None
    document = selftest_view.as_json(result)
    if as_json:
        click.echo(json.dumps(document, indent=2))
    else:
        selftest_view.show(result, Console())
    return selftest_view.exit_code(result), document
