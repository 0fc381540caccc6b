"""The kernel that executed notebooks run in. Only what executes notebooks imports this: it loads Jupyter."""

import shutil
import sys
import tempfile
from pathlib import Path

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from traitlets import default

KERNEL_FOLDER = "k24lab-kernel-"  # prefix of the folders for the sockets of kernels
LONGEST_FOLDER = 90  # characters: the system allows 107 in the path of a socket, and clusters have long TMPDIRs


class ThisInterpreter(AsyncKernelManager):
    """Kernels of the running interpreter, whatever kernel spec named python3 the user has installed.

    They are reached through sockets in a folder of their own: kernels that start side by side can race for TCP ports.
    IPython's files go there as well: a home that cannot be written, or a user's startup files, change nothing.
    """

    @default("transport")
    def _transport_default(self) -> str:
        return "ipc"

    @default("ip")
    def _ip_default(self) -> str:
        folder = Path(tempfile.mkdtemp(prefix=KERNEL_FOLDER))
        if len(str(folder)) > LONGEST_FOLDER:
            folder.rmdir()
            folder = Path(tempfile.mkdtemp(prefix=KERNEL_FOLDER, dir="/tmp"))
        return str(folder / "socket")

    def cleanup_ipc_files(self) -> None:
        """Remove the sockets and their folder."""
        super().cleanup_ipc_files()
        shutil.rmtree(Path(self.ip).parent, ignore_errors=True)

    @property
    def kernel_spec(self) -> KernelSpec:
        """`python -m ipykernel_launcher` of this environment."""
        # Errors of cells are in the notebook; the kernel's own log calls the end of an idle kernel an error.
        command = [sys.executable, "-m", "ipykernel_launcher", "--log-level=CRITICAL", "-f", "{connection_file}"]
        own = {"IPYTHONDIR": str(Path(self.ip).parent / "ipython")}
        return KernelSpec(argv=command, env=own, display_name="Python 3", language="python")
