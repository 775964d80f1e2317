"""Who may ask: defends that a token is never shown or guessed at, and that nobody else's machine asks without one."""

from __future__ import annotations

import hashlib

import pytest

from atlas_dist.errors import ConfigError
from atlas_dist.serve.guard import TOKEN, check_exposed, is_loopback, token_digest

GOOD = "0123456789abcdef"


def test_only_the_digest_leaves() -> None:
    assert token_digest({TOKEN: GOOD}) == hashlib.sha256(GOOD.encode()).hexdigest()
    assert token_digest({}) == token_digest({TOKEN: ""}) == ""


@pytest.mark.parametrize("bad", ["short", GOOD + " ", GOOD + "\n", GOOD + "é"])
def test_a_token_that_could_be_guessed_or_not_be_sent_is_refused_without_showing_it(bad: str) -> None:
    with pytest.raises(ConfigError) as refused:
        token_digest({TOKEN: bad})
    assert bad.strip() not in str(refused.value)
    assert "openssl rand" in refused.value.fix


OWN = ("127.0.0.1", "127.8.8.8", "localhost", "::1")
OTHERS = ("0.0.0.0", "::", "10.0.0.7", "gpu7")


@pytest.mark.parametrize(("host", "own"), [*((host, True) for host in OWN), *((host, False) for host in OTHERS)])
def test_without_a_token_only_this_machine_may_ask(host: str, own: bool) -> None:
    assert is_loopback(host) is own
    check_exposed(host, "digest")
    if own:
        check_exposed(host, "")
        return
    with pytest.raises(ConfigError, match=TOKEN):
        check_exposed(host, "")
