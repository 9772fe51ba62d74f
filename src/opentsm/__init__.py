"""OpenTSM: tunneled session management for real-time calls."""

__version__ = "0.1.0"
