"""Refuses unknown variables that begin with CSUMFIX_, just as unknown keys of the file are."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from csumfix.errors import CsumfixError, Exit

PREFIX = "CSUMFIX"

OF_OTHERS = ("CSUMFIX_IPTABLES", "CSUMFIX_LOCK_WAIT")
"""Variables of csumfix-rules, which the service starts."""

SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
"""How the variables end that Kubernetes sets for each Service: CSUMFIX_SERVICE_HOST for one called
csumfix, CSUMFIX_WEB_PORT_80_TCP_ADDR for csumfix-web. See "Environment variables" in
https://kubernetes.io/docs/concepts/services-networking/service/."""

SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


def variable(name: str) -> str:
    """Return the variable of the setting with this parameter name."""
    return f"{PREFIX}_{name.upper()}"


def is_service_link(value: str) -> bool:
    """Tell whether this value of a variable called ..._PORT comes from Kubernetes."""
    return bool(SERVICE_ADDRESS.match(value))


def check(environment: Mapping[str, str], settings: Iterable[str]) -> None:
    """Raise if a variable looks like a setting, and there is no such setting."""
    known = [*map(variable, settings), *OF_OTHERS]
    for name in sorted(environment):
        if name.startswith(f"{PREFIX}_") and name not in known and not _is_link(name, environment):
            raise CsumfixError(f"{name}: no such variable: {_remedy(name, known)}", Exit.USAGE)


def _is_link(name: str, environment: Mapping[str, str]) -> bool:
    """Tell whether Kubernetes set this variable: then the Service's host is set as well."""
    return any(
        f"{name[: found.start()]}_SERVICE_HOST" in environment
        for found in SERVICE_LINK.finditer(name)
        if found.end() == len(name)
    )


def _remedy(name: str, known: list[str]) -> str:
    # Compare without the prefix that all have in common: with it, everything would be similar.
    endings = {each.removeprefix(PREFIX): each for each in known}
    near = difflib.get_close_matches(name.removeprefix(PREFIX), endings, n=1)
    if near:
        return f"did you mean {endings[near[0]]}?"
    return f"unset it; known are {' '.join(known)}"
