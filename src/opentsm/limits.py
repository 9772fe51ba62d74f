"""Every cap and default timer of the control plane, each with its reason.

A number that bounds memory, time or trust lives here and nowhere else, so that what the system
can be made to hold can be read on one page. The user plane's own caps are in rust/src/limits.rs.
"""

from __future__ import annotations

from typing import Final

# -- control messages ---------------------------------------------------------------------------
MAX_CONTROL_MESSAGE: Final = 4096
"""Bytes of one control message. The largest honest one (a Configuration Response with every TLV)
is under 1 KiB; four pages leave room and still fit a stream record."""

MAX_TLVS: Final = 64
"""TLVs in one message: three times what the richest honest message carries."""

MAX_TEXT: Final = 255
"""Bytes of any human-readable TLV (names, error texts), so that a log line stays a line."""

MAX_PASSWORD: Final = 1024
"""Bytes of a password or bearer token; also bounds what one argon2 run is fed."""

MAX_SERVICES: Final = 32
"""Services listed in one message; the registry knows fewer than ten."""

# -- outstanding work ---------------------------------------------------------------------------
MAX_OUTSTANDING_REQUESTS: Final = 64
"""Unanswered requests one session may have; a phone switches a handful of flows at once."""

MAX_FLOWS_PER_SESSION: Final = 2048
"""Steered flows of one client: a trunk of 500 calls has 1,000 RTP and RTCP flows; twice that."""

MAX_STREAMS: Final = 4
"""Streams of one session, the main one counted; the same number as in rust/src/limits.rs. Two copies bring a
lossy path from 88 to 98 % in time, three to all but nothing; a fourth is for load-balance."""

# -- timers (seconds) ---------------------------------------------------------------------------
KEEPALIVE_TIMER_STREAM: Final = 300.0
"""Silence after which a stream tunnel goes from active to persistent (incumbent's default)."""

KEEPALIVE_TIMER_DATAGRAM: Final = 0.0
"""The same for datagram tunnels; 0 = off, because the DDT is probed instead."""

TUNNEL_PERSISTENCE_TIME: Final = 330.0
"""How long a persistent session keeps its address and flows before it is closed."""

CONFIGURATION_DEADLINE: Final = 10.0
"""From the end of the TLS handshake to an accepted Configuration Request. Longer than argon2 on a
busy machine plus a very slow link, short enough that idle strangers cannot pile up."""

RESERVATION_LIFETIME: Final = 15.0
"""How long a reserved DDT waits for its DTLS handshake: the client's own handshake attempt ends
sooner, so a key never outlives the try it was made for."""

DDT_LINGER: Final = 5.0
"""How long a DDT lives after its last flow left: covers packets in flight and a user who toggles
the switch, without keeping a NAT binding for nothing."""

REQUEST_RTO_INITIAL: Final = 0.5
"""First retransmission of a request on a datagram path when no RTT is known yet."""

REQUEST_RTO_MAX: Final = 4.0
"""Ceiling of the doubling retransmission timer."""

REQUEST_ATTEMPTS: Final = 6
"""Transmissions of one datagram request before the path is called lost."""

REQUEST_TIMEOUT_STREAM: Final = 20.0
"""On a stream TCP retransmits; silence this long means the peer is gone."""

DDT_RETRY_MIN: Final = 2.0
"""First retry after a DDT could not be made or died."""

DDT_RETRY_MAX: Final = 60.0
"""Ceiling of the DDT retry back-off: a network without UDP is asked once a minute, no more."""

RECONNECT_FIRST: Final = 0.05
"""Longest wait before the first attempt after a lost stream tunnel: a call is waiting. Of 1,000 clients that
lose their server at once 20 ask in each millisecond, and its kernel refuses what it cannot take."""

RECONNECT_MIN: Final = 0.2
"""The wait after the first attempt; doubles, with jitter, to RECONNECT_EAGER and later to RECONNECT_MAX."""

RECONNECT_EAGER: Final = 1.2
"""Longest wait while the server may only be restarting: who tries this often is back within two seconds of a
server that listens again."""

RECONNECT_EAGER_TIME: Final = 120.0
"""How long that is assumed: longer than a restart takes, within TUNNEL_PERSISTENCE_TIME, after which there is
no session left to hurry back to."""

RECONNECT_MAX: Final = 10.0
"""A server that is down for long is asked every ten seconds by each client."""

REPLACED_LINGER: Final = 1.0
"""How long packets are still taken from a stream that another one of the same client has replaced: what was
on its way when the client moved, on a path that may have been the slower one. Nothing is sent on it, and no
control message of it is looked at."""

RESUME_ANSWER: Final = 3.0
"""Seconds for the answer to a resume: no password is checked for it, so silence for ten round trips of a bad
mobile network means that the new connection swallows what it is given (or the server is overrun)."""
STREAM_RETRY_MIN: Final = 1.0
"""First retry after a further stream could not be made or was lost: it costs a TCP and a TLS handshake."""

STREAM_RETRY_MAX: Final = 60.0
"""Ceiling of that back-off: a middlebox that allows one connection is asked once a minute, no more."""

PAIR_MISSING_WARN: Final = 5.0
"""A client that enabled DDT and has no datagram half for this long is warned by the server."""

PAIR_MISSING_REPEAT: Final = 60.0
"""The warning is repeated no more often than this."""

# -- addresses and authentication -----------------------------------------------------------------
ADDRESS_QUARANTINE: Final = 30.0
"""A released address rests this long, so that late packets for its last owner find nobody. Ignored
when a pool has nothing else left that rested at least a second."""

AUTH_ATTEMPTS_PER_MINUTE: Final = 10
"""Failed authentications one source address may make in a minute before it is told to wait."""

AUTH_TRACKED_SOURCES: Final = 65536
"""Source addresses whose failures are remembered; the oldest is forgotten first."""

AUTH_CONCURRENCY: Final = 4
"""Password checks at once: argon2 uses 64 MiB each, and the packets must not starve."""

MAX_TUNNELS_PER_INTERFACE: Final = 200_000
"""Highest value ``max-tunnels`` may take (the incumbent's published capacity)."""

# -- happy eyeballs (RFC 8305) ---------------------------------------------------------------------
CONNECT_STAGGER: Final = 0.25
"""Delay before the next server address is tried beside the previous ones (RFC 8305 section 5)."""

CONNECT_TIMEOUT: Final = 10.0
"""One outer connection attempt, name look-up to TLS finished."""
