"""Method and path → handler."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

from router.frontend.http.errors import MethodNotAllowed, NoRoute

if TYPE_CHECKING:
    from collections.abc import Iterable

    from router.frontend.http.request import Request
    from router.frontend.http.response import Response, StreamResponse

    Handler = Callable[[Request], Awaitable[Response | StreamResponse]]
else:
    Handler = Callable

PART = re.compile(r"\{(\w+)(?::([^{}]+))?\}")


class Route(NamedTuple):
    """A method, a pattern of paths, and who answers."""

    method: str
    pattern: str
    """A path; `{name}` stands for a part of it, `{name:regex}` for whatever the expression matches."""
    handler: Handler


def get(pattern: str, handler: Handler) -> Route:
    """A route for GET, and so for HEAD."""
    return Route("GET", pattern, handler)


def post(pattern: str, handler: Handler) -> Route:
    """A route for POST."""
    return Route("POST", pattern, handler)


def put(pattern: str, handler: Handler) -> Route:
    """A route for PUT."""
    return Route("PUT", pattern, handler)


def delete(pattern: str, handler: Handler) -> Route:
    """A route for DELETE."""
    return Route("DELETE", pattern, handler)


class Routes:
    """All routes. Paths without a part to fill in are looked up; the others are tried in order."""

    def __init__(self, routes: Iterable[Route] = ()) -> None:
        self._exact: dict[str, dict[str, Route]] = {}
        self._patterns: dict[str, tuple[re.Pattern[str], dict[str, Route]]] = {}
        for route in routes:
            self.add(route)

    def __repr__(self) -> str:
        return f"Routes({[*self._exact, *self._patterns]})"

    def add(self, route: Route) -> None:
        """One more.

        :raises ValueError: there is one for that method and pattern.
        """
        if "{" in route.pattern:
            _, methods = self._patterns.setdefault(route.pattern, (_compiled(route.pattern), {}))
        else:
            methods = self._exact.setdefault(route.pattern, {})
        if route.method in methods:
            raise ValueError(f"two routes for {route.method} {route.pattern}")
        methods[route.method] = route
        if route.method == "GET":
            methods.setdefault("HEAD", route)

    def handler(self, request: Request) -> Handler:
        """Who answers; fills in the request's `route` and `match_info`. O(1), or O(patterns).

        :raises NoRoute: nobody.
        :raises MethodNotAllowed: nobody with that method.
        """
        path = request.path
        methods = self._exact.get(path)
        if methods is None:
            methods = self._matched(request)
        route = methods.get(request.method)
        if route is None:
            raise MethodNotAllowed(request.method, path, methods)
        request.route = route.pattern
        return route.handler

    def _matched(self, request: Request) -> dict[str, Route]:
        for expression, methods in self._patterns.values():
            if match := expression.fullmatch(request.path):
                request.match_info = match.groupdict()
                return methods
        raise NoRoute(request.method, request.path)


def _compiled(pattern: str) -> re.Pattern[str]:
    """A pattern as a regular expression.

    >>> _compiled("/v1/models/{model:.+}").fullmatch("/v1/models/a/b").groupdict()
    {'model': 'a/b'}
    """
    expression, end = "", 0
    for part in PART.finditer(pattern):
        expression += re.escape(pattern[end : part.start()]) + f"(?P<{part[1]}>{part[2] or '[^/]+'})"
        end = part.end()
    return re.compile(expression + re.escape(pattern[end:]))
