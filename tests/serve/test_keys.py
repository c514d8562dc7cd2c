"""Keys on every route, their limits, and what a server without keys still refuses."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kiban.errors import ConfigError
from kiban.serve.app import create_app
from kiban.serve.auth import Key, Keys, new_key, read_keys
from kiban.serve.pages import FILES
from kiban.serve.problems import RefusedError
from kiban.serve.settings import Settings

ASK = {"model": "tiny-chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "seed": 0}
CHAT = "/v1/chat/completions"


def test_every_route_but_the_health_check_and_the_page_needs_a_key(
    serve: Any, tiny_chat: Any, keys_file: Any, case: Any
) -> None:
    """Reliability 17: the routes are those that the app has; the page's own files hold nothing of anybody."""
    path, tokens = keys_file(alice={})
    live = serve(tiny_chat(), keys=path)
    app = live.server.config.app
    routes = [(route.path, method) for route in app.routes for method in route.methods]
    assert len(routes) >= 9 and (CHAT, "POST") in routes and ("/openapi.json", "GET") in routes
    free = {"/healthz": 200, **dict.fromkeys(FILES, 200), "/report": 403}  # a report has a link of its own
    wrong = ["", "sk-kiban-wrong", tokens["alice"] + "x", tokens["alice"][:-1], "é"]
    for route, method in routes:
        url = route.replace("{name:path}", "tiny-chat")
        for key in wrong:
            headers = {"authorization": f"Bearer {key}".encode()} if key else {}
            answer = live.http.request(method, url, headers=headers, content=b"{}")
            if url in free:
                assert answer.status_code == free[url]
                continue
            assert answer.status_code == 401, (route, key)
            assert answer.headers["www-authenticate"] == "Bearer"
            if method != "HEAD":
                assert answer.json()["error"]["code"] == "invalid_api_key"
        for header in (f"Basic {tokens['alice']}", f"Bearer  {tokens['alice']}x", "Bearer", tokens["alice"]):
            if url not in free:
                assert live.http.request(method, url, headers={"authorization": header}).status_code == 401
    for url in ("/v1/models", "/v1/models/tiny-chat", "/v1/usage", "/metrics", "/openapi.json"):
        assert live.get(url, key=tokens["alice"]).status_code == 200
    assert live.post(CHAT, ASK, key=tokens["alice"]).status_code == 200
    assert live.get("/nowhere").status_code == 401 and live.get("/nowhere", key=tokens["alice"]).status_code == 404
    case(17, routes=len(routes), need_no_key=sorted(free), wrong_keys=len(wrong) + 4)


def test_keys_are_kept_as_hashes_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    one, two = new_key(path, "one"), new_key(path, "二つ目")
    text = path.read_text("utf-8")
    assert one not in text and two not in text and "二つ目" in text and one != two and len(one) > 40
    assert path.stat().st_mode & 0o077 == 0
    keys = read_keys(path)
    assert keys.client([b"Bearer " + one.encode()]).name == "one"
    assert keys.client([b"bearer " + two.encode()]).name == "二つ目"
    with pytest.raises(RefusedError):
        keys.client([b"Bearer " + one.encode()] * 2)
    with pytest.raises(ConfigError, match="there is a key of this name"):
        new_key(path, "one")
    with pytest.raises(ConfigError, match="letters"):
        new_key(path, "a b")


def test_what_changes_in_the_file_holds_soon(
    serve: Any, tiny_chat: Any, keys_file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kiban.serve.auth.LOOK", 0.02)
    path, tokens = keys_file(alice={})
    live = serve(tiny_chat(), keys=path)

    def status(name: str) -> int:
        time.sleep(0.03)
        return live.get("/v1/models", key=tokens[name]).status_code

    tokens["bob"] = new_key(path, "bob")
    assert status("bob") == status("alice") == 200
    both = json.loads(path.read_text("utf-8"))["keys"]
    budget = {"keys": [row | {"monthly_budget": 3} for row in both]}  # this server has no price
    for broken in ("{", "[]", '{"keys": [{"name": "a"}]}', json.dumps(budget)):
        path.write_text(broken, "utf-8")
        assert status("bob") == status("alice") == 200, "a file that cannot be used changes nothing"
    path.unlink()
    assert status("bob") == 200
    path.write_text(json.dumps({"keys": [row for row in both if row["name"] == "bob"]}), "utf-8")
    assert status("alice") == 401 and status("bob") == 200


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"name": "a"}, "missing"),
        ({"name": "a", "sha256": "x"}, "64 hexadecimal"),
        ({"name": "a", "sha256": "0" * 64, "limit": 3}, "unknown setting"),
        ({"name": "a", "sha256": "0" * 64, "concurrent": 0}, "above 0"),
        ({"name": "a", "sha256": "0" * 64, "concurrent": True}, "above 0"),
        ({"name": "a", "sha256": "0" * 64, "monthly_budget": -1}, "amount"),
        ({"name": "a", "sha256": "0" * 64, "sees_all": 1}, "neither true nor false"),
    ],
)
def test_a_wrong_file_of_keys_says_what_is_wrong(tmp_path: Path, row: dict[str, Any], why: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [row]}), "utf-8")
    with pytest.raises(ConfigError, match=why):
        read_keys(path)


def test_other_addresses_need_keys(tmp_path: Path, tiny_chat: Any) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org", ""):
        with pytest.raises(ConfigError, match="without a key"):
            Settings(host=host)
        assert Settings(host=host, keys=tmp_path / "keys.json").host == host
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert Settings(host=host).keys is None
    with pytest.raises(ConfigError, match="new-key"):
        create_app({}, Settings(keys=tmp_path / "missing.json"))
    new_key(tmp_path / "keys.json", "one")
    rows = json.loads((tmp_path / "keys.json").read_text("utf-8"))
    rows["keys"][0]["monthly_budget"] = 5
    (tmp_path / "keys.json").write_text(json.dumps(rows), "utf-8")
    with pytest.raises(ConfigError, match="price-per-hour"):
        create_app({}, Settings(keys=tmp_path / "keys.json"))


def test_all_keys_are_compared_whatever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def compare(a: str, b: str) -> bool:
        seen.append(a)
        return hmac.compare_digest(a, b)

    digests = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(5)]
    keys = Keys([Key(name=f"k{i}", sha256=digest) for i, digest in enumerate(digests)])
    monkeypatch.setattr("kiban.serve.auth.hmac", SimpleNamespace(compare_digest=compare))
    assert keys.client([b"Bearer 1"]).name == "k1" and seen == digests
    with pytest.raises(RefusedError):
        keys.client([b"Bearer x"])
    assert seen == digests * 2


def test_a_web_page_cannot_use_a_server_without_keys(live: Any) -> None:
    """Neither under a name of its own that leads here, nor with a form."""
    assert live.http.get("/v1/models", headers={"host": "evil.example"}).status_code == 421
    assert live.http.get("/v1/models", headers={"host": "localhost:1"}).status_code == 200
    assert live.http.get("/v1/models", headers={"host": "[::1]:80"}).status_code == 200
    assert live.post(CHAT, ASK, kind="text/plain").status_code == 415


def test_rates_and_numbers_at_once_hold_for_each_key(serve: Any, tiny_chat: Any, keys_file: Any) -> None:
    path, tokens = keys_file(slow={"requests_per_minute": 3}, narrow={"concurrent": 1}, free={})
    live = serve(tiny_chat(), keys=path)
    codes = [live.post(CHAT, ASK, key=tokens["slow"]) for _ in range(5)]
    assert [answer.status_code for answer in codes] == [200, 200, 200, 429, 429]
    assert 15 <= int(codes[-1].headers["retry-after"]) <= 20
    assert live.post(CHAT, ASK, key=tokens["free"]).status_code == 200

    long = {**ASK, "max_tokens": 3000}
    thread = threading.Thread(target=lambda: live.post(CHAT, long, key=tokens["narrow"]))
    thread.start()
    while not live.service.models["tiny-chat"].load().running:
        time.sleep(0.005)
    assert live.post(CHAT, ASK, key=tokens["narrow"]).status_code == 429
    assert live.post(CHAT, ASK, key=tokens["free"]).status_code == 200
    thread.join()
    assert live.post(CHAT, ASK, key=tokens["narrow"]).status_code == 200


def test_a_budget_ends_when_it_is_spent(
    serve: Any, tiny_chat: Any, keys_file: Callable[..., tuple[Path, dict[str, str]]], tmp_path: Path
) -> None:
    path, tokens = keys_file(poor={"monthly_budget": 0.01}, rich={})
    ledger = tmp_path / "ledger.sqlite"
    live = serve(tiny_chat(), keys=path, ledger=ledger, price_per_hour=3600.0)
    spent, answers = 0.0, 0
    while (answer := live.post(CHAT, ASK, key=tokens["poor"])).status_code == 200:
        assert spent < 0.01, "the budget was spent before this one"
        spent += answer.json()["usage"]["cost"]
        answers += 1
    assert answer.status_code == 429 and answer.json()["error"]["code"] == "insufficient_quota" and answers >= 1
    assert live.post(CHAT, ASK, key=tokens["rich"]).status_code == 200
    live.stop()
    again = serve(tiny_chat(), keys=path, ledger=ledger, price_per_hour=3600.0)  # it is remembered
    assert again.post(CHAT, ASK, key=tokens["poor"]).status_code == 429
    assert again.service.ledger.spent("poor") == round(spent * 10**9)
