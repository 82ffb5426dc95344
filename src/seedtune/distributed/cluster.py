"""Which cluster, and what a replica takes of it. Knows nothing of Ray but its environment variables."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import FleetError

#: By this switch (of other systems than Linux, where it is off) Ray takes loopback for the machine's address.
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


@dataclass(frozen=True)
class Cluster:
    """`replicas` actors of `cpus` cores and `gpus` graphics cards each, on the cluster at `address` (None: one on this
    machine, started for the run). `timeout`: seconds without a result after which a replica counts as lost, and for
    which the run waits when there is none.
    """

    replicas: int
    address: str | None = None
    cpus: int = 1
    gpus: float = 0.0
    timeout: float = 600.0

    @property
    def beyond_this_machine(self) -> bool:
        """Whether `address` is one that others can reach, too."""
        if self.address in (None, "auto"):
            return False
        host = str(self.address).removeprefix("ray://").rpartition(":")[0].strip("[]") or str(self.address)
        try:
            return not ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host != "localhost"

    def secure(self) -> None:
        """Before Ray is imported: a cluster that is started for the run listens to this machine only; one that others
        can reach is met with a token, unless RAY_AUTH_MODE is set. Raises FleetError when it is too late.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if self.address is None:
            os.environ.setdefault(_LOOPBACK, "0")
        if not self.beyond_this_machine or "RAY_AUTH_MODE" in os.environ:
            return
        if "ray" in sys.modules:
            raise FleetError(
                f"the cluster at {self.address} can be reached by others, and Ray was imported before it was set to "
                "use a token: set RAY_AUTH_MODE=token (or =disabled, to go without) before this program starts."
            )
        os.environ["RAY_AUTH_MODE"] = "token"

    def check_reachable(self) -> None:
        """Raises FleetError when nothing answers at the address: Ray itself would go on trying for minutes."""
        if self.address in (None, "auto") or str(self.address).startswith("ray://"):
            return
        host, _, port = str(self.address).rpartition(":")
        if not host or not port.isdecimal():
            raise FleetError(
                f"address is host:port (of `ray start --head`, port 6379 unless told), not {self.address}."
            )
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as e:
            raise FleetError(
                f"nothing answers at {self.address} ({e}): is `ray start --head` running there, is the port right, "
                "does a firewall let it through?"
            ) from e

    def connection_error(self, why: str) -> str:
        """What to say when Ray cannot be reached, or started."""
        first = next((line.strip().rstrip(".") for line in why.splitlines() if line.strip()), "no reason given")
        if self.address is None:
            return f"cannot start Ray on this machine: {first}. See docs/guides/cluster.md."
        return (
            f"the Ray cluster at {self.address} did not let us in: {first}. Is the token (~/.ray/auth_token, or "
            "RAY_AUTH_TOKEN) that of the head, copied from there, and Ray of the same version? docs/guides/cluster.md."
        )

    def room(self, nodes: Sequence[Mapping[str, Any]]) -> int:
        """How many replicas fit on the cluster's nodes (as `ray.nodes()` describes them), when nothing else runs."""
        return sum(self._fit(node.get("Resources", {})) for node in nodes if node.get("Alive"))

    def _fit(self, has: Mapping[str, float]) -> int:
        by_cpu = int(has.get("CPU", 0) // self.cpus)
        return min(by_cpu, int(has.get("GPU", 0) / self.gpus + 1e-9)) if self.gpus else by_cpu

    def wants(self) -> str:
        """`1 CPU and 0.5 GPU`."""
        return f"{self.cpus} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")

    def lacks(self, nodes: Sequence[Mapping[str, Any]]) -> str:
        """What is there instead, node by node."""
        alive = [node for node in nodes if node.get("Alive")]
        has = [
            f"{node.get('NodeManagerAddress', 'a node')}: {node['Resources'].get('CPU', 0):g} CPU, "
            f"{node['Resources'].get('GPU', 0):g} GPU"
            for node in alive[:8]
        ]
        return "; ".join(has) + ("; ..." if len(alive) > 8 else "")
