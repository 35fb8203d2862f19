"""Ending the processes that the engine started, whatever state they are in."""

import contextlib

import psutil  # type: ignore[import-untyped]

_TERM_SECONDS = 2.0


def engine_processes() -> list[psutil.Process]:
    """All descendants of this process, but for multiprocessing's resource tracker, which ends by itself after us."""
    return [process for process in psutil.Process().children(recursive=True) if not _is_tracker(process)]


def end_engine_processes() -> int:
    """Ask them to end, then end them; how many there were. Safe to call at any time, any number of times."""
    processes = engine_processes()
    for process in processes:
        _signal(process, "terminate")
    _, stubborn = psutil.wait_procs(processes, timeout=_TERM_SECONDS)
    for process in stubborn:
        _signal(process, "kill")
    psutil.wait_procs(stubborn, timeout=_TERM_SECONDS)
    return len(processes)


def _is_tracker(process: psutil.Process) -> bool:
    try:
        return any("resource_tracker" in word for word in process.cmdline())
    except psutil.Error:
        return False


def _signal(process: psutil.Process, how: str) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        getattr(process, how)()
