"""Kernels over IPC: their sockets are private files. A TCP port may be taken by another kernel before this one binds
it, and every user of the machine can connect to it."""

import os
import shutil
import tempfile
from typing import Any

from jupyter_client.provisioning import LocalProvisioner

NAME = "ipc"  # of the provisioner, in pyproject.toml
CHOICE = "JUPYTER_DEFAULT_PROVISIONER_NAME"  # the variable by which Jupyter chooses one
LONGEST = 80  # characters of a folder, so that a socket's path stays below the 104 that every Unix allows


def over_ipc() -> None:
    """Makes kernels that this process starts from now on use IPC."""
    os.environ[CHOICE] = NAME


class Provisioner(LocalProvisioner):
    """Starts a local kernel whose sockets lie in a folder of its own, which is removed with it."""

    folder: str | None = None

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Chooses transport and folder before Jupyter writes the connection file."""
        if self.folder is None:  # a restarted kernel keeps its sockets
            temporary = tempfile.gettempdir()
            self.folder = tempfile.mkdtemp(prefix="kernel-", dir=temporary if len(temporary) < LONGEST else "/tmp")
            self.parent.transport, self.parent.ip = "ipc", os.path.join(self.folder, "socket")
        return await super().pre_launch(**kwargs)

    async def cleanup(self, restart: bool = False) -> None:
        """Removes the folder of a kernel that will not be restarted."""
        await super().cleanup(restart)
        if self.folder is not None and not restart:
            shutil.rmtree(self.folder, ignore_errors=True)
