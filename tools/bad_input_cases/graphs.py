"""Bad graphs and mixing matrices."""

import os

from bad_input_cases.steps import TRAIN, Case, config, sparse, write

CASES = [
    Case("unknown graph", TRAIN, ("'rng'", "ring"), prepare=config('[topology]\ngraph = "rng"')),
    Case("a hypercube of 6", TRAIN, ("hypercube", "6"),
         prepare=config('[agents]\ncount = 6\n[topology]\ngraph = "hypercube"')),
    Case("a torus of 7", TRAIN, ("torus", "7"),
         prepare=config('[agents]\ncount = 7\n[topology]\ngraph = "torus"')),
    Case("uniform weights on a star", TRAIN, ("uniform", "regular"),
         prepare=config('[topology]\ngraph = "star"\nweights = "uniform"')),
    Case(
        "a disconnected graph",
        "topology file --file g.txt --agents 4",
        ("2 components",),
        prepare=lambda: write("g.txt", "0 1\n2 3\n"),
    ),
    Case(
        "an edge that is none",
        "topology file --file g.txt --agents 3",
        ("g.txt", "line 2"),
        prepare=lambda: write("g.txt", "0 1\n1 x\n"),
    ),
    Case(
        "a matrix with a negative weight",
        "topology file --file w.csv --agents 2",
        ("w.csv", "-0.5"),
        prepare=lambda: write("w.csv", "1.5,-0.5\n-0.5,1.5\n"),
    ),
    Case(
        "a matrix whose rows do not sum to one",
        "topology file --file w.csv --agents 2",
        ("w.csv", "row"),
        prepare=lambda: write("w.csv", "0.5,0.4\n0.5,0.5\n"),
    ),
    Case("a graph of no agents", "topology ring --agents 0", ("0",)),
    Case("a graph of agents without end", "topology ring --agents 99999999999999999999",
         ("too many",)),
    Case("an id without end", "topology file --file g.txt", ("g.txt, line 1",),
         prepare=lambda: write("g.txt", "0 99999999999999999999\n")),
    Case("a sparse matrix that points outside", "topology file --file w.npz", ("w.npz", "indices"),
         prepare=lambda: sparse("w.npz", [0, 9], [0, 1, 2])),
    Case("a sparse matrix whose rows go back", "topology file --file w.npz", ("w.npz", "indptr"),
         prepare=lambda: sparse("w.npz", [0, 1], [0, 5, 2])),
    Case("noise for a matrix", "topology file --file w.npy", ("w.npy", "neither a .npy"),
         prepare=lambda: write("w.npy", bytes(range(128, 256)))),
    Case("a matrix of no agents", "topology file --file w.csv", ("w.csv", "(0,)"),
         prepare=lambda: write("w.csv", "")),
    Case("a picture of no kind", "topology ring --plot x.txt", ("x.txt", ".svg")),
    Case("a named pipe for a graph", "topology file --file g.txt", ("g.txt", "a named pipe"),
         prepare=lambda: os.mkfifo("g.txt")),
    Case("a device for a matrix", "topology file --file g.npy", ("g.npy", "a device"),
         prepare=lambda: os.symlink("/dev/zero", "g.npy")),
]
