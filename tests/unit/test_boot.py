"""What MPI is started with, unless the user has decided otherwise."""

import os
import subprocess
import sys

import pytest
from limits import HANG

from decdpo.comm.mpi.launch import launched_by_mpi

BEGIN = (
    "import os; from decdpo.comm.mpi import boot; assert boot.start() == 1; "
    "print(os.environ['OMPI_MCA_btl_tcp_flags'])"
)


@pytest.mark.skipif(launched_by_mpi() is not None, reason="starts a process without MPI's launcher")
@pytest.mark.parametrize(("given", "taken"), [("", "send"), ("send,put", "send,put")])
def test_long_messages_over_tcp_go_in_pieces(given: str, taken: str) -> None:
    key = "OMPI_MCA_btl_tcp_flags"
    environment = {name: value for name, value in os.environ.items() if name != key}
    environment |= {key: given} if given else {}
    done = subprocess.run(
        [sys.executable, "-c", BEGIN], env=environment, capture_output=True, text=True,
        timeout=HANG,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == taken
