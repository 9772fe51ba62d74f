"""Looking at and steering a running server: the admin socket, metrics, standing warnings; and certificates.

The server is behind ``backend.Backend``: this package knows what can be asked, not who answers.
"""
