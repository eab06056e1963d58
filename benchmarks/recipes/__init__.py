"""How the peers are used, by their own documentation: one module per problem and package.

Each has ``run(seconds, report, given)``: it trains on what is given for as many seconds of its own
clock, calls ``report(seconds_so_far, error)`` every now and then, and returns its number of
parameters. The clock holds training and compilation, but neither imports and the construction of
networks nor the evaluation of errors.
"""
