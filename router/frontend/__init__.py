"""The OpenAI interface: text in, text out.

===============  =======================================================================
`routes`         the HTTP handlers, and the application that holds them
`server`         an application on a port
`middleware`     request ids; every failure in OpenAI's shape
`errors`         the failures a client can see
`requests`       bodies → an immutable `GenerationRequest`, or an error naming the field
`tokenizer`      a model folder: text → tokens
`template`       chat templates: messages → text
`encoder`        text → tokens, of which only what was not seen before is tokenized
`cuts`           where a text can be cut without changing its tokens
`patterns`       what a pre-tokenizer's regular expression can match
`token_cache`    tokens of texts seen before
`framing`        the special tokens around a plain prompt
`detokenizer`    tokens → text as they come, never half a character
`token_bytes`    the bytes that a token stands for
`stops`          stop strings in text that comes in pieces
`completion`     one answer: tokens → text, finish reason, usage
`replies`        an answer in OpenAI's words, whole or in chunks
`timing`         a request's times, as its client sees them
===============  =======================================================================
"""
