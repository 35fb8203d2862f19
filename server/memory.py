"""How much memory a CPU server may take for its KV cache, when nobody said."""

from pathlib import Path

GIB = 1 << 30
_SHARE = 1 / 8  # vLLM touches all of it at the start; weights, activations and other programs need room too
_LEAST_GIB, _MOST_GIB = 0.5, 4.0


def default_kv_cache_gib(available_bytes: int) -> float:
    """An eighth of the available memory, between 0.5 and 4 GiB."""
    return round(min(max(available_bytes * _SHARE / GIB, _LEAST_GIB), _MOST_GIB), 2)


def available_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """What the kernel says is available, or what is left of the container's limit if that is less."""
    fields = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines() if ":" in line)
    free = int(fields["MemAvailable"].split()[0]) * 1024
    pairs = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
    for limit_name, used_name in pairs:
        limit, used = _number(cgroup / limit_name), _number(cgroup / used_name)
        if limit is not None and used is not None:
            free = min(free, max(0, limit - used))
    return free


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such controller, or "max": no limit
        return None
