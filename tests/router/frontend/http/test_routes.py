from __future__ import annotations

import pytest

from router.frontend import http as web
from tests.router.frontend.http.client import echo


def asked(method: str, path: str) -> web.Request:
    request = web.Request(None)  # type: ignore[arg-type]  # no connection is needed to find a route
    request.method, request.path = method, path
    return request


ROUTES = web.Routes(
    [web.get("/a", echo), web.post("/a", echo), web.get("/m/{name:.+}/x", echo), web.put("/n/{id}", echo)]
)


@pytest.mark.parametrize(
    ("method", "path", "pattern", "parts"),
    [
        ("GET", "/a", "/a", {}),
        ("POST", "/a", "/a", {}),
        ("HEAD", "/a", "/a", {}),
        ("GET", "/m/a/b/x", "/m/{name:.+}/x", {"name": "a/b"}),
        ("PUT", "/n/7", "/n/{id}", {"id": "7"}),
    ],
)
def test_a_handler_is_found(method: str, path: str, pattern: str, parts: dict[str, str]) -> None:
    request = asked(method, path)
    assert ROUTES.handler(request) is echo
    assert (request.route, request.match_info) == (pattern, parts)


@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/a/"), ("PUT", "/n/7/8"), ("GET", "/m//x")])
def test_no_route(method: str, path: str) -> None:
    with pytest.raises(web.NoRoute, match=f"{method} {path}"):
        ROUTES.handler(asked(method, path))


def test_the_wrong_method_names_the_right_ones() -> None:
    with pytest.raises(web.MethodNotAllowed) as caught:
        ROUTES.handler(asked("DELETE", "/a"))
    assert caught.value.allowed == "GET, HEAD, POST"


def test_two_routes_for_one_path() -> None:
    with pytest.raises(ValueError, match="two routes for GET /a"):
        web.Routes([web.get("/a", echo), web.get("/a", echo)])
