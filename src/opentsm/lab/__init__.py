"""Bad networks on one machine: namespaces, firewalls, NAT and a seeded WAN emulator.

>>> with Lab(LabSpec(phones=1)) as lab:                              # doctest: +SKIP
...     lab.firewall().apply(firewall.tcp_443_only())
...     lab.wan().set(delay=0.040, loss=0.01)
...     lab["phone1"].run(["ping", "-c", "3", lab["server"].ipv4])
"""

from opentsm.lab import firewall
from opentsm.lab.capture import Capture, Packet
from opentsm.lab.firewall import Firewall, Policy
from opentsm.lab.host import Host
from opentsm.lab.impairment import GilbertElliott, Settings, predict
from opentsm.lab.privileges import Mode, ensure_privileges, skip_reason
from opentsm.lab.registry import clean
from opentsm.lab.topology import Lab, LabSpec
from opentsm.lab.wan import Wan, WanStats

__all__ = [
    "Capture",
    "Firewall",
    "GilbertElliott",
    "Host",
    "Lab",
    "LabSpec",
    "Mode",
    "Packet",
    "Policy",
    "Settings",
    "Wan",
    "WanStats",
    "clean",
    "ensure_privileges",
    "firewall",
    "predict",
    "skip_reason",
]
