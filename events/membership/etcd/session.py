"""Calls to an etcd cluster over one connection; after a failure over a new one, to the next member.

From aetcd come the messages and stubs of etcd's v3 API. Its `Client` is not used: it has no TLS, waits without end for a server
that is stopped, and its watch neither says that etcd has cancelled it nor which revision it has come to.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import grpc
from aetcd import rpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from events.membership.etcd.access import EtcdAccess

logger = logging.getLogger(__name__)

CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),  # a registry is not behind the proxy that HTTP_PROXY names
    ("grpc.use_local_subchannel_pool", 1),  # else a new connection inherits the back-off of the one that failed
)

Result = TypeVar("Result")


class EtcdError(Exception):
    """A call failed; the text names the member and the reason."""


class LeaseLost(EtcdError):
    """The lease has expired, and all that was under it is gone."""


class Compacted(EtcdError):
    """The history from the wanted revision on is gone: list again."""


class Item(NamedTuple):
    """A key and its value."""

    key: bytes
    value: bytes
    revision: int
    """Of its last change."""
    lease: int = 0


class Listing(NamedTuple):
    """All keys with a prefix, as of a revision."""

    revision: int
    items: list[Item]


class Deleted(NamedTuple):
    """A key is gone: deleted, or its lease expired; etcd does not tell which."""

    key: bytes


class Session:
    """One connection. Calls must not overlap: close and reconnect would hit the others.

    `timeout_seconds` bounds each call, and the silence of a watch.
    """

    def __init__(self, access: EtcdAccess, timeout_seconds: float) -> None:
        self._access = access
        self._timeout_seconds = timeout_seconds
        self._channel: grpc.aio.Channel | None = None
        self._metadata: tuple[tuple[str, str], ...] = ()
        self._member = 0
        self.connects = 0
        """Connections over which a call has succeeded."""
        self._proven = False

    def __repr__(self) -> str:
        return f"<etcd Session {self._access.members[self._member]}>"

    async def listing(self, prefix: bytes) -> Listing:
        """All keys with a prefix. O(n).

        :raises EtcdError: no answer; so for all calls below.
        """
        request = rpc.RangeRequest(key=prefix, range_end=_end(prefix))
        reply = await self._call(lambda: self._unary(rpc.KVStub, "Range", request))
        return Listing(reply.header.revision, [_item(kv) for kv in reply.kvs])

    async def get(self, key: bytes) -> Item | None:
        """A key's value."""
        reply = await self._call(lambda: self._unary(rpc.KVStub, "Range", rpc.RangeRequest(key=key)))
        return _item(reply.kvs[0]) if reply.kvs else None

    async def put(self, key: bytes, value: bytes, lease: int, *, over: int | None = None) -> int | None:
        """Set a key under a lease; the new revision. `over`: only if that is the key's revision (0: it is not there), else None.

        :raises LeaseLost: the lease is gone.
        """
        put = rpc.RequestOp(request_put=rpc.PutRequest(key=key, value=value, lease=lease))
        return await self._change(key, put, over)

    async def delete(self, key: bytes, *, over: int) -> int | None:
        """Delete a key if its revision is `over`; else None."""
        gone = rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key))
        return await self._change(key, gone, over)

    async def grant(self, ttl_seconds: int) -> int:
        """A new lease."""
        request = rpc.LeaseGrantRequest(TTL=ttl_seconds)
        reply = await self._call(lambda: self._unary(rpc.LeaseStub, "LeaseGrant", request))
        lease: int = reply.ID
        return lease

    async def keep_alive(self, lease: int) -> bool:
        """Renew a lease; False: it has expired."""

        async def renew() -> Any:
            call = rpc.LeaseStub(await self._connected()).LeaseKeepAlive(
                iter([rpc.LeaseKeepAliveRequest(ID=lease)]), timeout=self._timeout_seconds, metadata=self._metadata
            )
            return await call.read()

        reply = await self._call(renew)
        return reply is not grpc.aio.EOF and reply.TTL > 0

    async def revoke(self, lease: int) -> None:
        """End a lease, and all that is under it."""
        request = rpc.LeaseRevokeRequest(ID=lease)
        await self._call(lambda: self._unary(rpc.LeaseStub, "LeaseRevoke", request))

    async def watch(self, prefix: bytes, revision: int) -> AsyncIterator[list[Item | Deleted]]:
        """Changes from a revision on, as they come; an empty list where etcd only says that it is still there.

        etcd is asked for that sign of life all the time: a server that is stopped, or behind a broken network, closes nothing.

        :raises Compacted: the revision is too old.
        :raises EtcdError: the watch has ended, or was silent for too long.
        """
        call = None
        try:
            requests = _watch_requests(prefix, revision, self._timeout_seconds / 2)
            call = rpc.WatchStub(await self._connected()).Watch(requests, metadata=self._metadata)
            while True:
                async with asyncio.timeout(self._timeout_seconds):
                    reply = await call.read()
                yield _changes(reply)
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            raise await self._failed(error) from error
        finally:
            if call is not None:
                call.cancel()

    async def close(self) -> None:
        """Disconnect. Idempotent; the next call connects again."""
        channel, self._channel = self._channel, None
        self._proven = False
        if channel is not None:
            await channel.close()

    # ---- the connection

    async def _change(self, key: bytes, change: Any, over: int | None) -> int | None:
        """A change, on condition of the key's revision."""
        request = rpc.TxnRequest(success=[change])
        if over is not None:
            condition = rpc.Compare(key=key, target=rpc.Compare.MOD, result=rpc.Compare.EQUAL, mod_revision=over)
            request.compare.append(condition)
        reply = await self._call(lambda: self._unary(rpc.KVStub, "Txn", request))
        return reply.header.revision if reply.succeeded else None

    async def _unary(self, stub: Any, method: str, request: Any) -> Any:
        call = getattr(stub(await self._connected()), method)
        return await call(request, timeout=self._timeout_seconds, metadata=self._metadata)

    async def _call(self, work: Callable[[], Awaitable[Result]]) -> Result:
        try:
            result = await work()
        except (grpc.aio.AioRpcError, OSError) as error:
            raise await self._failed(error) from error
        if not self._proven:
            self._proven = True
            self.connects += 1
        return result

    async def _connected(self) -> grpc.aio.Channel:
        if self._channel is None:
            self._channel = self._open(self._access.members[self._member])
            self._metadata = await self._authenticate(self._channel)
        return self._channel

    def _open(self, member: str) -> grpc.aio.Channel:
        access = self._access
        if not access.secure:
            return grpc.aio.insecure_channel(member, CHANNEL_OPTIONS)
        authorities, key, certificate = (
            path.read_bytes() if path else None for path in (access.ca_file, access.key_file, access.cert_file)
        )
        credentials = grpc.ssl_channel_credentials(authorities, key, certificate)
        return grpc.aio.secure_channel(member, credentials, CHANNEL_OPTIONS)

    async def _authenticate(self, channel: grpc.aio.Channel) -> tuple[tuple[str, str], ...]:
        """A token, where there is a user; a new one with every connection, as tokens expire."""
        if self._access.user is None:
            return ()
        request = rpc.AuthenticateRequest(name=self._access.user, password=self._access.password)
        reply = await rpc.AuthStub(channel).Authenticate(request, timeout=self._timeout_seconds)
        return (("token", reply.token),)

    async def _failed(self, error: Exception) -> EtcdError:
        """Disconnect; the next call goes to the next member."""
        member = self._access.members[self._member]
        if isinstance(error, grpc.aio.AioRpcError):
            if error.code() is grpc.StatusCode.NOT_FOUND:  # the connection is well
                return LeaseLost(f"etcd {member}: {error.details()}")
            reason = error.details() or error.code().name
        else:
            reason = str(error) or f"silent for {self._timeout_seconds:g} s"
        self._member = (self._member + 1) % len(self._access.members)
        await self.close()
        return EtcdError(f"etcd {member}: {reason}")


def _changes(reply: Any) -> list[Item | Deleted]:
    """What a watch's message says.

    :raises EtcdError: that it has ended.
    """
    if reply is grpc.aio.EOF:
        raise EtcdError("etcd ended the watch")
    if reply.compact_revision:
        raise Compacted(f"history before revision {reply.compact_revision} is gone")
    if reply.canceled:
        raise EtcdError(f"etcd cancelled the watch: {reply.cancel_reason}")
    return [Deleted(event.kv.key) if event.type else _item(event.kv) for event in reply.events]


async def _watch_requests(prefix: bytes, revision: int, pause_seconds: float) -> AsyncIterator[Any]:
    """The watch, then questions whether it goes on, for ever."""
    create = rpc.WatchCreateRequest(key=prefix, range_end=_end(prefix), start_revision=revision)
    yield rpc.WatchRequest(create_request=create)
    while True:
        await asyncio.sleep(pause_seconds)
        yield rpc.WatchRequest(progress_request=rpc.WatchProgressRequest())


def _item(kv: Any) -> Item:
    return Item(kv.key, kv.value, kv.mod_revision, kv.lease)


def _end(prefix: bytes) -> bytes:
    """The first key after all that begin with `prefix`, which ends in a slash.

    >>> _end(b"/a/")
    b'/a0'
    """
    return prefix[:-1] + bytes([prefix[-1] + 1])
