"""What looks after a server: certificates, the HTTP API, metrics."""
