"""An SGLang server as a child: its arguments checked and completed, its life watched, its end in order.

===============  ======================================================================
`command`        what is started, and what its own parser makes of the arguments
`check`          the part of that which runs in SGLang's interpreter
`arguments`      what routing needs and was not given; what cannot go together
`ports`          ports that nobody uses
`process`        the child and all its children
`restarts`       when one that ended is started again
`drain`          waiting for requests in flight
`supervisor`     all of it together: life after life, and the end
===============  ======================================================================
"""
