"""The names of ``__init__.py``, for type checkers."""

from opentsm.client import notifications as notifications
from opentsm.client.address import ServerAddress as ServerAddress
from opentsm.client.endpoint import TunnelDatagramTransport as TunnelDatagramTransport
from opentsm.client.lending import inner_endpoints as inner_endpoints
from opentsm.client.sockets import SO_TSM_DROPPED as SO_TSM_DROPPED
from opentsm.client.sockets import SO_TSM_PATH as SO_TSM_PATH
from opentsm.client.sockets import SO_TSM_REDUNDANCY as SO_TSM_REDUNDANCY
from opentsm.client.sockets import SO_TSM_TRANSPORT as SO_TSM_TRANSPORT
from opentsm.client.sockets import SOL_TSM as SOL_TSM
from opentsm.client.sockets import InnerSocket as InnerSocket
from opentsm.client.statistics import PathStatistics as PathStatistics
from opentsm.client.statistics import Statistics as Statistics
from opentsm.client.tunnel import Tunnel as Tunnel
from opentsm.client.tunnel import connect as connect
from opentsm.errors import ConfigError as ConfigError
from opentsm.errors import ConnectError as ConnectError
from opentsm.errors import OpenTsmError as OpenTsmError
from opentsm.errors import RefusedError as RefusedError
from opentsm.errors import TunnelClosedError as TunnelClosedError
from opentsm.errors import TunnelError as TunnelError
from opentsm.types import Path as Path
from opentsm.types import PathMode as PathMode
from opentsm.types import Redundancy as Redundancy
from opentsm.types import Service as Service
from opentsm.types import Transport as Transport

__all__: list[str]
__version__: str
