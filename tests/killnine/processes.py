"""Who belongs to a market's process: its children now, and whatever still holds its folder open."""

from __future__ import annotations

from pathlib import Path

import psutil


def family(pid: int) -> list[psutil.Process]:
    """The process and everything it started that lives, at any depth."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def alive(processes: list[psutil.Process]) -> list[str]:
    """Those that still run (a process id given to another program since is none of them), by command line."""
    return [text for process in processes if (text := _described(process))]


def holders(home: Path, but: list[psutil.Process]) -> list[str]:
    """Processes that work in the market's folder, hold a file of it or name it, other than `but` and ourselves."""
    ours = {process.pid for process in but} | {psutil.Process().pid}
    found = []
    for process in psutil.process_iter():
        if process.pid in ours:
            continue
        try:
            paths = [process.cwd(), *process.cmdline(), *(each.path for each in process.open_files())]
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if any(str(home) in path for path in paths):
            found.append(f"{process.pid} {' '.join(process.cmdline())}")
    return found


def _described(process: psutil.Process) -> str:
    try:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return ""
        return f"{process.pid} {' '.join(process.cmdline())}"
    except psutil.NoSuchProcess:
        return ""
