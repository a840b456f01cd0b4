"""What the kernel says: CPU time and memory of a process tree, where processes run, and what this machine is."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import time
from collections import defaultdict
from pathlib import Path

PROXY_CPU = 0
LOAD_CPU = 1
"""The load generator and the backend share this one."""
CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")


def enter_own_network() -> bool:
    """Give this process and its later children a loopback of their own, where CUBIC, the kernel's default, controls
    congestion: BBR sends from timers, whose work is charged to whoever has the CPU when they fire (README.md). False:
    only root can have one.
    """
    clone_newnet = 0x40000000  # linux/sched.h
    if ctypes.CDLL(None).unshare(clone_newnet) != 0:
        return False
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    CONGESTION.write_text("cubic")
    return True


def run_on(cpu: int) -> None:
    """Keep this process, and all its later threads and children, on one CPU."""
    os.sched_setaffinity(0, {cpu})


def process_tree(root: int) -> list[int]:
    """The process and all its descendants."""
    children = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
            children[int(stat.rpartition(")")[2].split()[1])].append(int(entry.name))
    found = [root]
    for pid in found:
        found.extend(children[pid])
    return found


def cpu_seconds(root: int) -> float:
    """CPU time (user and system) of the tree so far, all threads, those that ended included, to the nanosecond.

    The clock of a process is utime + stime of /proc/PID/stat without its rounding to 10 ms (clock_getcpuclockid(3)).
    """
    scheduled = 2  # CPUCLOCK_SCHED, include/linux/posix-timers_types.h
    total = 0.0
    for pid in process_tree(root):
        try:
            total += time.clock_gettime((~pid << 3) | scheduled)
        except OSError:
            continue  # it has just ended
    return total


def resident_bytes(root: int) -> int:
    """Resident memory of the tree; pages that its processes share count once (Pss)."""
    total = 0
    for pid in process_tree(root):
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total * 1024


def describe() -> dict[str, str]:
    """Machine, kernel and date, as the results show them."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), platform.machine())
    total = int(Path("/proc/meminfo").read_text().split()[1]) // 1024**2
    vulnerabilities = sorted(Path("/sys/devices/system/cpu/vulnerabilities").glob("*"))
    mitigated = [file.name for file in vulnerabilities if file.read_text().startswith("Mitigation")]
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{os.cpu_count()} × {model}, {total} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "mitigations": ", ".join(mitigated) or "none",
        "congestion control": CONGESTION.read_text().strip(),
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "load before": " ".join(f"{value:.2f}" for value in os.getloadavg()),
    }
