"""Bytes to values and back: control messages and their TLVs (docs/protocol.md)."""
