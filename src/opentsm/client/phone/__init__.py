"""A small, honest test softphone: SIP and RTP through a tunnel's inner sockets.

Decisions first; none of these knows I/O, a clock or randomness (``now`` and ids are arguments):

    g711, wav, speech       samples <-> octets, files, a built-in voice
    rtp, rtcp, reception    packets and what they say about the way they came
    dtmf                    digits as events (RFC 4733)
    playout, score          what a listener hears: in time, late, lost, concealed; and how good that is
    media                   one call's audio, both ways
    message, sdp, digest    SIP's bytes <-> values
    transaction             the four machines of RFC 3261 section 17, as tables
    core, registration,     the user agent: what its conversations share, being known, one call,
    leg, ua                 and the whole

Then the joint:

    records, report         what happened to each packet; one call in numbers
    ports, call, phone      user agent + media + a tunnel's sockets = ``Phone`` and ``Call``
    calltest                RTP to the server's echo and back, on each path
"""
