"""Variables that begin with CSUMFIX_: known, somebody else's, or refused."""

import pytest

from csumfix import config, environment
from csumfix.cli import run_command
from csumfix.errors import CsumfixError, Exit

OF_KUBERNETES = {
    # Services called csumfix, csumfix-queues and csumfix-web
    "CSUMFIX_SERVICE_HOST": "10.96.0.7",
    "CSUMFIX_SERVICE_PORT": "9478",
    "CSUMFIX_SERVICE_PORT_METRICS": "9478",
    "CSUMFIX_PORT": "tcp://10.96.0.7:9478",
    "CSUMFIX_PORT_9478_TCP": "tcp://10.96.0.7:9478",
    "CSUMFIX_PORT_9478_TCP_PROTO": "tcp",
    "CSUMFIX_PORT_9478_TCP_PORT": "9478",
    "CSUMFIX_PORT_9478_TCP_ADDR": "10.96.0.7",
    "CSUMFIX_QUEUES_SERVICE_HOST": "10.96.0.8",
    "CSUMFIX_QUEUES_PORT": "udp://10.96.0.8:53",
    "CSUMFIX_WEB_SERVICE_HOST": "10.96.0.9",
    "CSUMFIX_WEB_PORT_80_TCP_ADDR": "10.96.0.9",
}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("CSUMFIX_QUEUE", "CSUMFIX_QUEUE: no such variable: did you mean CSUMFIX_QUEUES?"),
        ("CSUMFIX_QUEUE-BASE", "did you mean CSUMFIX_QUEUE_BASE?"),
        ("CSUMFIX_IPTABLE", "did you mean CSUMFIX_IPTABLES?"),
        ("CSUMFIX_", "no such variable"),
        ("CSUMFIX_XYZZY", "unset it; known are CSUMFIX_"),
        ("CSUMFIX_METRICS_PORT", "no such variable"),  # without its Service it is a mistake
    ],
)
def test_a_variable_that_nobody_knows_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    monkeypatch.setenv(name, "2")
    with pytest.raises(CsumfixError) as caught:
        config.load(run_command, [])
    assert caught.value.code is Exit.USAGE
    assert says in str(caught.value)


def test_what_other_programs_know_is_let_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*environment.OF_OTHERS, "CSUMFIX_QUEUES", "CSUMFIXX", "XCSUMFIX_Y"):
        monkeypatch.setenv(name, "2")
    assert config.load(run_command, []).queues == 2


def test_a_service_of_kubernetes_changes_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    before = config.load(run_command, [])
    for name, value in OF_KUBERNETES.items():
        monkeypatch.setenv(name, value)
    assert config.load(run_command, []) == before
    monkeypatch.setenv("CSUMFIX_PORT", "9999")
    assert config.load(run_command, []).ports == (9999,)
