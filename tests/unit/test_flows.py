"""What is made of an ipset that cannot be listed; the lab lists real ones."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from csumfix.errors import CsumfixError
from csumfix.host import flows
from csumfix.host.rtnetlink import NetlinkError


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Any:
    def with_this(error: Exception) -> None:
        @contextmanager
        def ipset() -> Iterator[Any]:
            raise error
            yield

        monkeypatch.setattr(flows, "_ipset", ipset)

    return with_this


def test_a_set_that_somebody_destroyed_has_no_flows(refuse: Any) -> None:
    refuse(NetlinkError(errno.ENOENT))
    assert not flows.are_left()


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EMFILE, "Too many open files"), TimeoutError(), NetlinkError(errno.EBUSY)],
)
def test_a_set_that_cannot_be_listed_is_not_taken_for_empty(refuse: Any, error: Exception) -> None:
    """The port would leave the queue lane with packets in it."""
    refuse(error)
    with pytest.raises(CsumfixError, match="cannot list the ipset csumfix-flows"):
        flows.are_left()
