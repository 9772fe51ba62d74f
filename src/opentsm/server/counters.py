"""The control plane's own counters; docs/counters.md explains each, beside those of the user plane."""

from __future__ import annotations

import enum
from typing import Final

MALFORMED: Final = "drop_control_"
"""Prefix of the counters of malformed control messages; what follows is the decoder's reason."""


class Count(enum.StrEnum):
    """A counter; its value is the name that operators see."""

    CONTROL_FLOOD = "drop_control_flood"
    CONTROL_NOT_SENT = "drop_control_not_sent"
    UNCONFIGURED_FULL = "drop_unconfigured_full"
    NO_INTERFACE = "drop_no_interface"
    STEERING_FULL = "drop_steering_row"
    MESSAGE_WRONG_TSID = "drop_message_wrong_tsid"
    MESSAGE_NOT_NOW = "drop_message_not_allowed_now"
    MESSAGE_UNEXPECTED = "drop_message_unexpected"
    RESPONSE_UNEXPECTED = "drop_response_unexpected"
    MESSAGE_UNKNOWN = "unknown_messages"
    RESUME_REFUSED = "resume_refused"
    NEVER_CONFIGURED = "never_configured"
    ATTACH_TOO_LATE = "attach_too_late"
    RESERVATION_FAILED = "reservation_failed"
    PEER_CRASHED = "peer_crashed"
    UNEXPECTED_EVENT = "unexpected_event"
    REFUSAL_NOT_LOGGED = "refusal_not_logged"
    NOT_RESTORED = "sessions_not_restored"
    COLLECTIONS = "collections"
    COLLECTIONS_FOUND = "collections_found"
    COLLECTIONS_MS = "collections_ms"


OF_SESSIONS: Final = {
    "wrong-tsid": Count.MESSAGE_WRONG_TSID,
    "not-allowed-now": Count.MESSAGE_NOT_NOW,
    "unexpected-message": Count.MESSAGE_UNEXPECTED,
    "unexpected-response": Count.RESPONSE_UNEXPECTED,
    "unknown-type": Count.MESSAGE_UNKNOWN,
    "resume-refused": Count.RESUME_REFUSED,
}
"""What a session of the protocol counts, by our names."""
