"""The adapter beside an SGLang server (0.5.3 to 0.5.23): its cache events and load on the bus, its card in the registry.

==============  ======================================================================
`wire`          SGLang's event payloads, decoded, whichever version wrote them
`subscription`  one rank's payloads in order, each exactly once (live, replay, gaps)
`mirror`        what one rank holds: engine pages → routing blocks
`relay`         the mirror's changes on the bus, and snapshots on request
`probe`         a prompt that must come back as a cache event, before registration
`checkpoints`   snapshots kept at the broker (`--durable-events`)
`load`          what a scheduler reports of itself
`card`          `/server_info` → worker card and endpoints
`engine`        the few HTTP routes that the adapter asks
`readiness`     whether every rank serves, asked once
`adapter`       all of it together, for as long as the engine lives and whenever it comes back
`cancelling`    the end of a task, however it takes its cancellation
`options`       the command line, `config_file` and `parser_names` with it
`launching/`    the engine as a child: its arguments, its restarts, its end
==============  ======================================================================
"""
