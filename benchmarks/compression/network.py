"""Slow networks on one machine: ranks in network namespaces of their own, joined by rate-limited links.

Every rank has a namespace with one interface, `eth0`, whose other end is a port of a bridge in a namespace of its
own, so that nothing of the machine's network is touched. A token bucket at both ends limits what a rank sends and
what it receives. Needs root, iproute2 and a kernel with veth, bridge and sch_tbf; `missing()` says what is not there.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.ranks import run_ranks

PREFIX = "graphopt-"
BITS_PER_SECOND = {"100mbit": 100_000_000, "1gbit": 1_000_000_000}
CLONE_NEWNET = 0x40000000
#: Ethernet, IPv4 and TCP with timestamps: what every frame carries beside its payload.
HEADER_BYTES = 14 + 20 + 32
DRAIN_SECONDS = 0.2


@functools.cache
def missing() -> str:
    """Why namespaces cannot be made here, "" where they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    try:
        with namespaces(1, "100mbit"):
            return ""
    except (FileNotFoundError, RuntimeError) as error:
        return f"rate-limited network namespaces cannot be made: {error}"


@contextmanager
def namespaces(world: int, rate: str) -> Iterator[list[str]]:
    """Names of `world` joined namespaces, gone afterwards; what a killed run left is removed first.

    `rate` is of `BITS_PER_SECOND`: how fast a rank sends and receives.
    """
    _remove_leftovers()
    switch, *names = (f"{PREFIX}{os.getpid()}-{number}" for number in range(world + 1))
    try:
        for name in (switch, *names):
            _call("ip", "netns", "add", name)
        _ip(switch, "link add bridge type bridge", "link set bridge up")
        for number, name in enumerate(names):
            _ip(switch, f"link add port{number} type veth peer name eth0 netns {name}")
            _ip(switch, f"link set port{number} master bridge up")
            _ip(name, "link set lo up", f"addr add 10.9.0.{number + 1}/24 dev eth0", "link set eth0 up")
            _limit(switch, f"port{number}", rate)
            _limit(name, "eth0", rate)
        yield names
    finally:
        _remove([switch, *names])


def run_ranks_over_network(
    world: int, rate: str, function: Callable[..., Any], *args: Any, timeout: float = 240
) -> Any:
    """`run_ranks` of tests/support/ranks.py, with every rank behind a link of its own."""
    with namespaces(world, rate) as names:
        return run_ranks(world, function, *args, timeout=timeout, enter=functools.partial(_enter, names))


@dataclass(frozen=True)
class Traffic:
    """What this process's namespace sent until now: payload and whole frames."""

    payload_bytes: int
    frame_bytes: int

    def since(self, earlier: Traffic) -> Traffic:
        return Traffic(self.payload_bytes - earlier.payload_bytes, self.frame_bytes - earlier.frame_bytes)


def sent() -> Traffic:
    """Counted at the interface, once its queue had time to drain; only inside of `run_ranks_over_network`.

    A large frame that would be cut up by a real interface counts with one header.
    """
    time.sleep(DRAIN_SECONDS)
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    fields = next(line.split(":")[1].split() for line in lines if line.strip().startswith("eth0:"))
    frame_bytes, frames = int(fields[8]), int(fields[9])
    return Traffic(frame_bytes - HEADER_BYTES * frames, frame_bytes)


def _enter(names: list[str], rank: int) -> None:
    """Move this process, while it has one thread only, to its rank's namespace."""
    os.environ["GLOO_SOCKET_IFNAME"] = "eth0"
    descriptor = os.open(f"/run/netns/{names[rank]}", os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns to {names[rank]}")
    finally:
        os.close(descriptor)


def _limit(namespace: str, interface: str, rate: str) -> None:
    # a millisecond's worth may go at once; larger frames than that holds, the kernel would cut up at great cost
    burst_bytes = max(32_768, BITS_PER_SECOND[rate] // 8 // 1000)
    _ip(namespace, f"link set {interface} gso_max_size {min(65_536, burst_bytes // 2)}")
    words = f"qdisc add dev {interface} root tbf rate {rate} burst {burst_bytes} latency 50ms"
    _call("tc", "-n", namespace, *words.split())


def _ip(namespace: str, *commands: str) -> None:
    for command in commands:
        _call("ip", "-n", namespace, *command.split())


def _call(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def _remove_leftovers() -> None:
    names = [entry["name"] for entry in json.loads(_call("ip", "-j", "netns", "list") or "[]")]
    mine = [name for name in names if name.startswith(PREFIX)]
    _remove([name for name in mine if not Path(f"/proc/{name.removeprefix(PREFIX).partition('-')[0]}").exists()])


def _remove(names: list[str]) -> None:
    for name in names:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=30)
