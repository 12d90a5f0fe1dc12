"""Prefill and decode on separate workers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from router.core import NoTarget
from router.core.paths import Path, prefill_id
from sim.fleet.kernels import ENDED, FINISH, NONE
from sim.replay.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.core.policy import Policy
    from sim.replay.settings import Settings
    from sim.traces import Trace


@dataclass(slots=True)
class Journey:
    """A request at a pair."""

    sent_at: float
    decode_worker: int
    prompt_tokens: int
    output_tokens: int
    predicted_ttft_seconds: float | None


class Paired(Service):
    """Every request by a prefill worker, whose KV then goes to a decode worker; that one delivers, from the first token on.

    The prefill leg is row `request` of the fleet's sequences, the decode leg row `n + request`. Prefill engines hear nothing of
    decode engines, so they go first, and what they finished is handed over before the others follow.
    """

    legs = 2

    def __init__(
        self, trace: Trace, make_policy: Callable[[], Policy], settings: Settings, lookahead: float = math.inf
    ) -> None:
        super().__init__(trace, make_policy, settings, lookahead)
        self._journeys: dict[int, Journey] = {}
        self._noticed = list[tuple[float, int, int, int]]()
        """By the prefill engines, and not told yet."""

    # ---- time passes

    def work(self, until: float) -> float:
        """See `Service.work`."""
        if self._lookahead < math.inf:
            soonest = self.fleet.next_step()
            until = min(until, max(soonest + self._lookahead, math.nextafter(soonest, math.inf)))
        prefill, every = self.caching(), range(len(self.settings.parts))
        self.fleet.advance(until, engines=prefill)
        self._noticed += super().notices(until)
        for time, sequence, kind, _ in self._noticed:
            if kind == FINISH and sequence < len(self.trace):
                self._hand_over(sequence, time)
        self.fleet.advance(until, engines=range(prefill.stop, every.stop))
        return until

    def notices(self, now: float) -> list[tuple[float, int, int, int]]:
        """See `Service.notices`."""
        noticed, self._noticed = self._noticed, []
        return sorted([*noticed, *super().notices(now)], key=lambda notice: notice[0])

    def caching(self) -> range:
        """See `Service.caching`: decode workers keep nothing, as in SGLang."""
        return range(self.settings.prefill)

    def _hand_over(self, request: int, time: float) -> None:
        """The prompt is computed: its KV goes to the decode worker."""
        journey = self._journeys[request]
        arrives = time + self.settings.transfer_seconds(journey.prompt_tokens)
        row = len(self.trace) + request
        self.fleet.submit(row, journey.decode_worker, arrives, journey.prompt_tokens, journey.output_tokens, built=True)

    # ---- one request

    def place(self, request: int, now: float, prompt_tokens: int, output_tokens: int) -> bool:
        """See `Service.place`."""
        self.hear(now)
        try:
            prefill, decode, pair = self.routers.place_pair(request, self.routing(request, prompt_tokens), now)
        except NoTarget:
            self.columns.failed[request] = True
            return False
        predicted = pair.prefill.predicted_ttft_seconds
        self.note(request, prompt_tokens, pair.prefill.cached_tokens, predicted)
        self.columns.prefill_worker[request], self.columns.worker[request] = prefill, decode
        self._journeys[request] = Journey(now, decode, prompt_tokens, output_tokens, predicted)
        if self.submit(request, prefill, now, prompt_tokens, 1):
            return True
        self.routers[request].free(prefill_id(str(request)), now, failed=True)
        return False

    def first_token(self, sequence: int, cached_tokens: int, time: float) -> None:
        """See `Service.first_token`."""
        request = sequence % len(self.trace)
        if sequence == request:
            self.routers[request].first_token(prefill_id(str(request)), cached_tokens, time)
        else:
            journey = self._journeys[request]
            seconds = time - journey.sent_at
            self.routers.paths(request).first_token(Path.PAIR, journey.predicted_ttft_seconds, seconds, time)

    def end(self, sequence: int, time: float) -> bool:
        """See `Service.end`."""
        request = sequence % len(self.trace)
        if sequence == request:
            self.routers[request].free(prefill_id(str(request)), time)
            return False
        self.routers[request].free(str(request), time)
        del self._journeys[request]
        return True

    # ---- workers come and go

    def kill(self, worker: int, now: float) -> None:
        """See `Service.kill`: both legs of a request live and die together."""
        lost = {sequence % len(self.trace) for sequence in self.clear(worker)}
        lost |= {request for request, journey in self._journeys.items() if journey.decode_worker == worker}
        for request in sorted(lost):
            journey, decode = self._journeys[request], self.fleet.sequences[len(self.trace) + request]
            if decode["place"] == ENDED:  # its end is still to be told
                continue
            delivered = int(decode["output_tokens"]) if decode["first_match"] != NONE else 0
            for sequence in (request, len(self.trace) + request):
                self.fleet.withdraw(sequence)
            for booked in (str(request), prefill_id(str(request))):
                self.routers[request].free(booked, now, failed=True)
            decode["first_match"] = NONE
            self.fleet.sequences[request]["first_token_seconds"] = math.nan  # it was never delivered
            self.place(request, now, journey.prompt_tokens + delivered, journey.output_tokens - delivered)
