"""Sans-IO sessions: one client = one stream tunnel and its dynamic datagram tunnel (DDT).

No sockets, no clock, no randomness. Inputs are method calls with ``now``; outputs are the frozen
actions of ``actions.py``, drained after every input; time is one deadline with a reason.
"""
