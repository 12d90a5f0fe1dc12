"""What crosses the network, and getting it across intact.

Everything here is shared by the router and the worker adapter, and depends on neither:

=================  ====================================================================
`blocks`           the identity of a prefix: tokens → block hashes → sequence hashes
`messages`         every message, and its codec
`subjects`         where a message is published
`bus`              publish / subscribe / request: NATS, and in memory
`stream`           one rank's events in order: epoch, gap, snapshot, fence
`snapshot`         all that a rank held, put together from its chunks
`membership`       who is there: worker cards, and registries that hold them
=================  ====================================================================
"""
