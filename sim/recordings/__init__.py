"""Recordings of real engines, as files of JSON lines (`.gz` or plain), and how to read them.

*A step log*: one scheduler step per line, in order.

====================  ==========================================================================================
`m`                   `E` a prefill, `D` a decode, `M` a mixed step (not read)
`ext`, `pre`          of a prefill, per sequence: new tokens, tokens in KV before them
`bs`, `kv`            of a decode: sequences, and tokens in their KV with the new ones
`g`                   milliseconds on the GPU; lines without it are skipped
`tl`, `td`            optional: launched (seconds, any zero), processed (seconds after that)
====================  ==========================================================================================

*A run*: a folder with `requests.jsonl[.gz]`, whose first line is about the run and the others about a request each.

====================  ==========================================================================================
`trace`               first line: name of the Mooncake trace that was played
`pool`, `page`        tokens of KV memory per worker (a list), tokens per page
`version`             SGLang's
`drained_at`          second at which what was still open was given up
`idx`, `w`            a request: its row in the trace, the worker that it was sent to
`in`, `out`           its tokens, asked for
`at`, `t_send`        planned and real second of sending
`ttft_ms`, `times`    milliseconds from sending to the first token; to each received piece, with the tokens so far
`cached_tokens`       what the engine said
`n_out`               tokens received; absent of a request that was given up
====================  ==========================================================================================
"""
