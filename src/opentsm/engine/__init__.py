"""Pure decisions: pools, registry, admission, quality, steering, services, policy.

Nothing here performs I/O, reads a clock or draws a random number: ``now`` is an argument.
"""
