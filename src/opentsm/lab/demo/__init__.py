"""``opentsm lab demo``: real calls through a bad network, measured, and a page that shows them.

``stage`` is the network and the server, ``phones`` the two phones, ``story`` places the calls; ``measure``
and ``opentsm.lab.hearing`` say what became of the speech, ``plots`` and ``page`` draw it.
"""
