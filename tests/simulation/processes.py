"""Runs named cases of a module in several gloo processes on this machine, and hands their results to the tests."""

import importlib
import os
import pickle
import socket
import traceback
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

TIMEOUT = timedelta(seconds=40)


def run_cases(module, names, size, directory, *, dies=False):
    """Return, by case, what each rank returned: `{name: [result of rank 0, ...]}`, an exception as its text.

    `dies` says that a rank is meant to end early: nothing is waited for, and its result is None.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The server imports once what its children, made by forking, need.
    get_context("forkserver").set_forkserver_preload([module])
    context = multiprocessing.start_processes(
        _work, (size, port, module, names, str(directory)), nprocs=size, join=False, start_method="forkserver"
    )
    if dies:
        for process in context.processes:
            process.join(120)
    else:
        while not context.join():
            pass
    results = {}
    for name in names:
        files = [Path(directory) / f"{name}.{rank}" for rank in range(size)]
        results[name] = [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]
    return results


def _work(rank, size, port, module, names, directory):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size, timeout=TIMEOUT)
    cases = importlib.import_module(module)
    for name in names:
        torch.manual_seed(0)
        try:
            result = getattr(cases, name)(rank, size)
        except Exception as error:
            result = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        (Path(directory) / f"{name}.{rank}").write_bytes(pickle.dumps(result))
    dist.destroy_process_group()
