"""Network namespaces that stand for nodes: whether this machine can make them."""

import os
import shutil
import subprocess


def can_make_nodes() -> bool:
    """Say whether ``tools/scaling.py`` can make its nodes, as far as is seen without trying."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "tc", "unshare"))):
        return False
    made = subprocess.run(["unshare", "-n", "true"], stderr=subprocess.DEVNULL)
    return made.returncode == 0
