"""Carries a request to an engine and its tokens back.

==============  ==========================================================================
`request`       what is carried: a prompt in tokens, and what comes back
`journey`       how far a request has come: tokens, failed targets, cached tokens
`leg`           one attempt at one worker: booking, body, accounting, release
`pair`          one attempt at a prefill and a decode worker: two legs that live and die together
`rooms`         the numbers under which these two find each other
`placements`    what surrounds every attempt: a placement that is counted, a failure that is blamed
`dispatcher`    the loop: book → generate → take; on failure, on to another worker
`relay`         the other way: bodies to an engine's own OpenAI routes, and its answers' bytes back
`engine`        SGLang's HTTP interface: generate, abort, or any body
`http`          the HTTP/1.1 client under it
`errors`        what can go wrong at an engine, in families
`chunks`        one streamed message of an engine → new tokens, cumulative or not
`textchunks`    what is read of the answers that are passed on
`sse`           bytes → server-sent events
==============  ==========================================================================
"""
