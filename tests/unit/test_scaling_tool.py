"""``tools/scaling.py``: its fit, what it says beyond, its files, and nodes on this machine."""

import subprocess
import sys
from pathlib import Path

import pytest
import scaling
from namespaces import can_make_nodes

from decdpo.errors import EnvironmentFault
from decdpo.theory.cost import Link

LINK = Link(2e-4, 3e-5, 8e-8)


def records() -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for ranks, graph, degree in ((2, "complete", 1), (8, "ring", 2), (8, "complete", 7)):
        for size in (400, 1_000_000):
            times = {"ours": LINK.gossip(degree, size), "bare": LINK.gossip(degree, size)}
            times["allreduce"] = LINK.all_reduce(ranks, size)
            place = {"mbit": 100.0, "ranks": ranks, "graph": graph, "degree": degree}
            found.append({**place, "bytes": size, **times})
    return found


def test_what_is_measured_is_fitted_and_carried_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = records()
    links = scaling.fitted(measured)
    assert links[100.0].per_byte == pytest.approx(LINK.per_byte)
    for record in measured:
        assert record["model"] == pytest.approx(record["ours"])
        assert record["model_allreduce"] == pytest.approx(record["allreduce"])
    monkeypatch.setattr(scaling, "AGENTS", (16, 64))
    far = scaling.beyond(links)
    assert len(far) == 2 * len(scaling.FAR) * 2
    ring, peers = (
        [r for r in far if r["graph"] == graph and r["bytes"] == scaling.WHOLE]
        for graph in ("ring", "one_peer_exponential")
    )
    # A round of the ring takes as long for any number of agents; to average them does not.
    assert ring[0]["rounds_per_second"] == ring[1]["rounds_per_second"]
    assert ring[1]["rounds_to_thousandth"] > 10 * ring[0]["rounds_to_thousandth"]
    assert [r["rounds_to_thousandth"] for r in peers] == [4, 6]
    # One message a round, where an all-reduce sends nearly two.
    assert all(0.5 < r["round_over_all_reduce"] < 0.6 for r in peers)
    scaling.write(tmp_path / "model.csv", far)
    assert len((tmp_path / "model.csv").read_text().splitlines()) == 1 + len(far)
    pytest.importorskip("matplotlib")
    scaling.draw(measured, far, tmp_path)
    assert (tmp_path / "scaling.svg").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.skipif(not can_make_nodes(), reason="needs root, iproute2 and network namespaces")
def test_two_nodes_share_no_memory_and_leave_nothing(tmp_path: Path) -> None:
    nodes = scaling.Nodes(2, 200, tmp_path)
    try:
        with nodes.up():
            out = tmp_path / "said"
            program = (
                "from mpi4py import MPI; import socket; c = MPI.COMM_WORLD; "
                "near = c.Split_type(MPI.COMM_TYPE_SHARED).Get_size(); "
                "names = c.gather((socket.gethostname(), near)); "
                f"c.Get_rank() or open({str(out)!r}, 'w').write(repr(names))"
            )
            nodes.mpirun([sys.executable, "-c", program], 120)
    except EnvironmentFault as fault:
        if "mpirun" in str(fault):
            raise
        pytest.skip(f"this kernel makes no such nodes: {fault}")
    assert out.read_text() == repr([(name, 1) for name in nodes.names])
    left = subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout
    assert nodes.mark not in left
