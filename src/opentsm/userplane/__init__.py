"""The Python face of the Rust user plane."""

from opentsm.userplane.plane import Plane

__all__ = ["Plane"]
