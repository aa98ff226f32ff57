"""One code path from one CPU to many hosts: `jit` with `NamedSharding` over an explicit mesh, batch axis `data`."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

CLUSTER_SIZES = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")


def initialize_distributed() -> bool:
    """Joins the other hosts of a multi-host job, where the environment says there is one.

    Looks for JAX's own `JAX_COORDINATOR_ADDRESS`, a SLURM or Open MPI job of several tasks, and Cloud TPU pods;
    `jax.distributed.initialize` reads the rest from there. Call once, before the first jax computation.

    Returns:
        True if this process is now one of several.
    """
    several = any(int(os.environ.get(name, "1")) > 1 for name in CLUSTER_SIZES)
    pod = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if several or pod or "JAX_COORDINATOR_ADDRESS" in os.environ:
        jax.distributed.initialize()
        return True
    return False


def agreed(signum: int | None) -> int | None:
    """A signal that any host of the job has caught, the same on all: else one would stop while others wait for it."""
    if jax.process_count() == 1:
        return signum
    found = multihost_utils.process_allgather(np.int32(signum or 0))
    return int(found.max()) or None


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where arrays live.

    Attributes:
        mesh: all devices on the axis `data`.
        replicated: the same array on every device (state, results).
        split: leading axis split over the devices (batches).
    """

    mesh: jax.sharding.Mesh
    replicated: NamedSharding
    split: NamedSharding

    def put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Sends a host batch to the devices.

        Args:
            batch: [B, ...] arrays, `valid` bool [B] among them: this host's rows of the global batch, as many on
                every host. Where B is not a multiple of the host's devices, the last row is repeated with `valid`
                False until it is.

        Returns:
            Global arrays, leading axis split over the mesh.
        """
        rows, devices = len(batch["valid"]), len(self.mesh.local_devices)
        extra = -rows % devices
        if extra:
            batch = {name: np.concatenate([x, np.repeat(x[-1:], extra, axis=0)]) for name, x in batch.items()}
            batch["valid"][rows:] = False
        placed = {name: jax.make_array_from_process_local_data(self.split, x) for name, x in batch.items()}
        if self.mesh.devices.flat[0].platform == "cpu":
            # A program whose input is still being copied runs on a thread of jax's own, see `xla.tune_process`.
            jax.block_until_ready(placed)
        return placed


def place(devices: Sequence[Any] | None = None, rows: int = 0) -> Placement:
    """The placement over `devices` (None: all of them, on all hosts).

    Args:
        devices: those to use.
        rows: of a global training batch, see `dividing`; 0 uses all devices whatever the batch.
    """
    devices = list(jax.devices() if devices is None else devices)
    if rows:
        devices = dividing(devices, rows)
    if len(devices) == jax.device_count():
        mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    else:  # of a TPU's that would have to be a cuboid
        mesh = jax.sharding.Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
    return Placement(mesh, NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data")))


def dividing(devices: Sequence[Any], rows: int) -> list[Any]:
    """The most devices, as many of each host, that divide a batch of `rows`.

    On more of them some rows would be repeated, and a repeated row counts twice in the statistics of a batch.
    """
    hosts: dict[int, list[Any]] = {}
    for device in devices:
        hosts.setdefault(device.process_index, []).append(device)
    share = rows // len(hosts)
    used = max(n for n in range(1, min(map(len, hosts.values())) + 1) if share % n == 0)
    return [device for own in hosts.values() for device in own[:used]]
