"""Processes that train a run and die on the way; this file loads little, for each of them loads it anew."""

import io
import itertools
import multiprocessing
import os
import signal
import sys

from k24lab.lab import tensorfile
from k24lab.lab.config import build_config
from k24lab.lab.train import train

FORKSERVER = multiprocessing.get_context("forkserver")  # torch is loaded once


def attempt(fields, folder, die_at=None, half=None):
    """Train in this process, and die at the n-th call that opens, renames, links or removes a file of the run.

    Or, of the n-th checkpoint, once half of it is written.
    """
    calls, checkpoints, write = itertools.count(), itertools.count(), tensorfile.write

    def count(event, arguments):
        ours = event in ("open", "os.rename", "os.link", "os.remove") and str(folder) in str(arguments[0])
        if ours and next(calls) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def write_half(file, about, tensors):
        if next(checkpoints) == half:
            whole = io.BytesIO()
            write(whole, about, tensors)
            file.write(whole.getvalue()[: whole.tell() // 2])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        write(file, about, tensors)

    sys.addaudithook(count)
    tensorfile.write = write_half
    train(build_config(fields), folder=folder, progress=False)
    (folder.parent / "calls").write_text(str(next(calls)))


def start(*arguments):
    """A process that runs `attempt`, with torch loaded (its _dynamo too, which the first optimizer wants)."""
    FORKSERVER.set_forkserver_preload(["k24lab.lab.train", "k24lab.envs.rolenav", "torch._dynamo"])
    process = FORKSERVER.Process(target=attempt, args=arguments)
    process.start()
    return process
