"""Jobs of several processes on this machine, as Slurm starts them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run_job(count: int, code: str | list[str], *args: object) -> list[subprocess.CompletedProcess]:
    """Starts processes with the environment that `srun` gives each, on this machine alone, and waits for them."""
    with socket.socket() as free:  # JAX takes a port from the job's number: 61440 + number modulo 4096
        while True:
            job = int.from_bytes(os.urandom(2)) % 4096
            try:
                free.bind(("127.0.0.1", 61440 + job))
                break
            except OSError:
                continue
    started = []
    for process in range(count):
        env = os.environ | {
            "SLURM_JOB_ID": str(job),
            "SLURM_STEP_NODELIST": "127.0.0.1",
            "SLURM_STEP_NUM_NODES": str(count),
            "SLURM_NTASKS": str(count),
            "SLURM_PROCID": str(process),
            "SLURM_LOCALID": "0",
            "JAX_PLATFORMS": "cpu",
        }
        command = [sys.executable, *(["-c", code] if isinstance(code, str) else code), *map(str, args)]
        started.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=ROOT)
        )
    try:
        return [
            subprocess.CompletedProcess(p.args, p.returncode, *out)
            for p in started
            for out in [p.communicate(timeout=300)]
        ]
    finally:
        for p in started:
            p.kill()
