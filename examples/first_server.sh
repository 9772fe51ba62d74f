#!/bin/sh
# A TSM server with a SIP registrar, in a folder of its own. Needs no root.
set -eu
mkdir first-server && cd first-server

opentsm certs init .
opentsm certs server . --name localhost --address 127.0.0.1
for user in alice bob; do
    echo secret | opentsm passwd passwords $user
    sum=$(printf %s "$user:example.org:secret" | md5sum | cut -d ' ' -f 1)
    echo "$user:example.org:$sum" >> sip-users
done

cat > server.toml <<END
[authentication]
methods = ["password"]
password-file = "passwords"

[realm.inside]                      # where tunnels end: no kernel networking, the server's own
core = "userspace"
addresses = ["10.64.0.1/16"]
echo = 7

[sbc.calls]                         # registrar, proxy and media relay
realm = "inside"
domain = "example.org"
address = "10.64.0.2"
users-file = "sip-users"

[tls-profile.main]
certificate = "server.pem"
key = "server.key"

[tscf-port.main]                    # TLS here, and DTLS on the same number
address = "127.0.0.1"
port = ${PORT:-4443}
tls-profile = "main"

[tscf-address-pool.phones]
ranges = ["10.64.1.0/24"]

[tscf-interface.access]
realm = "inside"
ports = ["main"]
address-pools = ["phones"]
assigned-services = ["SIP", "DDT"]
END

exec opentsm serve server.toml
