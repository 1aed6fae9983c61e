"""The page of runs: what it says, what it weighs, and that it holds all it needs."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, find_browser

from decdpo.cli import main
from decdpo.commands.after.report import read_run
from decdpo.data.synthetic import Choices, synthesize
from decdpo.report.compare import RunFacts
from decdpo.report.page import large_graph
from decdpo.report.page.charts import numbers
from decdpo.report.page.html import page
from decdpo.report.page.model import Event, Links, Shown
from decdpo.session.record import command_line, read_config
from decdpo.session.shown import shown
from decdpo.theory.consensus import predict
from decdpo.timing import PARTS
from decdpo.topology.schedule import make_schedule

KB = 1000
NAMES = ("one", "two</script><i>", "three")


def made_up(agents, rounds, every=1, name="run", **further):
    """Return a run of records that look like those of training."""
    draw = np.random.default_rng(3)
    records = []
    for t in range(0, rounds + 1, every):
        noise = draw.normal(size=16)
        records.append(
            {
                "round": t,
                "loss": float(0.69 * np.exp(-t / rounds) + 0.01 * noise[0]),
                "rewards/chosen": float(-t / rounds + 0.1 * noise[1]),
                "rewards/rejected": float(-2 * t / rounds + 0.1 * noise[2]),
                "rewards/margins": float(t / rounds + 0.1 * noise[3]),
                "rewards/accuracies": float(0.7 + 0.01 * noise[4]),
                "drift/chosen": float(-t + noise[5]),
                "imbalance/log_ratio": float(noise[6]),
                "saturated": float(abs(0.01 * noise[7])),
                "lr": 0.1,
                "gradient_norm": float(abs(noise[8])),
                "consensus_distance": float(abs(noise[9])) if t else 0.0,
                "heldout/loss": float(0.6 + 0.01 * noise[10]),
                "heldout/accuracy": 0.7,
                "heldout/average/loss": float(0.6 + 0.01 * noise[11]),
                "heldout/average/accuracy": float(0.7 + 0.01 * noise[12]),
                "heldout/accuracy_by_agent": draw.uniform(0.4, 0.9, agents).tolist(),
                "messages": 2 * agents * t,
                "bytes": 2 * agents * t * 1000,
                "system": {
                    "elapsed_seconds": 0.5,
                    "pairs_per_second": float(1000 + noise[13]),
                    "parts": {part: [0.1, 0.2, 0.4] for part in PARTS},
                    "waits": [[0, 1, 0.25]],
                },
            }
        )
    facts = RunFacts(Path(name), "dsgd on ring", agents, records)
    ring = {(i, (i + 1) % agents): 1.0 for i in range(agents)}
    links = Links("ring", agents, ring, 1000.0, rounds)
    return Shown(name, facts, "done", rounds, {"optim.lr": 0.1}, "[optim]\nlr = 0.1\n", {},
                 links=links, **further)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs beside each other, and their page; the second was resumed."""
    folder = tmp_path_factory.mktemp("runs")
    synthesize(Choices(agents=4, pairs=16, dimension=3, holdout=0.25), folder / "shards")
    shards = json.dumps(str(folder / "shards"))
    (folder / "run.toml").write_text(
        f'[data]\nshards = {shards}\nbatch_size = 2\n[policy]\nfeatures = "columns"\n'
        "[run]\nrounds = 6\n[checkpoint]\nevery = 2\n"
    )
    start = ["train", str(folder / "run.toml"), "--progress", "none", "--out"]
    assert main([*start, str(folder / "one")]) == 0
    assert main([*start, str(folder / "two</script><i>"), "--set", "run.rounds=4"]) == 0
    resumed = ["resume", str(folder / "two</script><i>"), "--set", "run.rounds=6"]
    assert main([*resumed, "--progress", "none"]) == 0
    alone = ["--set", "algorithm.kind=local", "--set", "optim.lr=5.0"]
    assert main([*start, str(folder / "three"), *alone]) == 0
    folders = [str(folder / name) for name in NAMES]
    assert main(["report", *folders, "--html", str(folder / "page.html")]) == 0
    return folder


def test_the_page_holds_all_it_needs(runs):
    text = (runs / "page.html").read_text()
    assert "://" not in text.replace("file://", "")
    assert not re.search(r"\beval\b|new Function|@import|url\(", text)
    assert "default-src 'none'" in text and "The MIT License" in text and "uPlot 1.6.32" in text
    assert "</script><i>" not in text and "<noscript>" in text


def test_it_names_events_differences_and_how_to_have_it_again(runs, capsys):
    text = (runs / "page.html").read_text()
    assert re.search(r"<td>4</td><td>restart</td>", text)
    differences = text.partition('id="differences"')[2].partition("</section>")[0]
    assert "optim.lr" in differences and "algorithm.kind" in differences
    assert "checkpoint.every" not in differences
    capsys.readouterr()
    main(["checkpoint", "digest", str(runs / "one")])
    done = subprocess.run(["sha256sum"], input=capsys.readouterr().out, capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert done.stdout.split()[0] in text
    assert "local: nothing is sent" in text
    assert "one</span>: rewards/chosen" in text and "three</span>: no prediction: no graph" in text


def test_every_start_of_a_resumed_run_says_its_command(runs):
    text = (runs / "page.html").read_text().partition('id="reproduce"')[2]
    first, second = re.findall(r"<th>start \d</th><td>(.*?)</td>", text)
    assert first.count("<code>") == 2 and "processes: 1" in second
    starts = [{"command": f"decdpo train {k}", "processes": 2} for k in range(12)]
    run = replace(made_up(2, 1), record={"starts": starts, "folder": "here"})
    shown = page([run], "now").partition('id="reproduce"')[2]
    assert "4 more starts" in shown and "decdpo train 0<" in shown
    assert "decdpo train 4<" not in shown and "decdpo train 5<" in shown
    assert "decdpo train 11</code> in <code>here</code>" in shown


def test_a_command_is_what_a_shell_is_given():
    words = ["/somewhere/decdpo/__main__.py", "train", "a b.toml"]
    assert command_line(words) == "python -m decdpo train 'a b.toml'"
    assert command_line(["/bin/decdpo", "resume", "run"]) == "/bin/decdpo resume run"


def test_an_empty_page_16_agents_and_10000_agents_stay_small():
    empty = page([made_up(2, 1)], "now")
    assert len(empty.encode()) < 120 * KB
    many = page([made_up(16, 1000)], "now")
    assert len(many.encode()) < 1000 * KB and "agent 15" in many
    crowd = page([made_up(10_000, 100, every=10)], "now")
    assert len(crowd.encode()) < 150 * KB
    assert "10,000 agents" in crowd and 'id="multiples"' not in crowd and "histogram" in crowd


def test_a_graph_of_many_agents_is_drawn_by_blocks_and_by_how_far_news_travels(monkeypatch):
    torus = make_schedule("torus", "auto", 400)
    rows = {i: torus.mixing(0).row(i).sources for i in range(400)}
    links = Links("torus", 400, {(j, i): 1.0 for i in rows for j in rows[i]}, 1000.0, 5)
    found = large_graph.densities(links)
    # 20 rows of 20 agents: agent 0 and its neighbours 1, 19, 20 and 380 lie in blocks of 12 or 13.
    assert np.flatnonzero(found[0]).tolist() == [0, 1, 2, 30, 31] and (found == found.T).all()
    sizes = np.bincount(np.arange(400) * 32 // 400)
    assert (found * (np.outer(sizes, sizes) - np.diag(sizes))).sum() == pytest.approx(1600)
    reach = large_graph.Reach.of(links)
    # On a torus of side 20 the farthest agent is 10 + 10 links away, and 4 k are k links away.
    assert len(reach.mean) == 21 and reach.cut_off == 0
    assert reach.mean[:4] * 400 == pytest.approx([1, 5, 13, 25]) and reach.mean[-1] == 1.0
    assert (reach.least == reach.most).all() and reach.half == 10
    measure, measured = large_graph.Reach.of, []
    monkeypatch.setattr(large_graph.Reach, "of", lambda ends: measured.append(1) or measure(ends))
    text = page([replace(made_up(400, 2), links=links)], "now")
    assert len(measured) == 1, "distances of many agents take a while"
    assert text.count('<svg class="graph"') == 2 and "at most 10 links from half of all" in text
    assert 'class="w4" fill="none"' in text, "a wait is outlined"


def test_agents_that_news_never_reaches_are_counted():
    pairs = {(i, i + 1): 1.0 for i in range(299)}
    reach = large_graph.Reach.of(Links("file", 300, pairs, 1.0, 1))
    assert reach.cut_off == 299 and reach.least[-1] == 1 / 300 and reach.most[-1] == 1.0
    links = Links("file", 300, pairs, 1.0, 1)
    assert "299 agents are not reached" in large_graph.drawn(links, {})[1][1]


def test_runs_without_marks_and_parts_have_a_page_as_well():
    run = made_up(3, 4, events=[Event(2, "lost", "agent 1")])
    for record in run.records:
        del record["system"]["parts"], record["system"]["waits"], record["rewards/chosen"]
        record["heldout/accuracy_by_agent"] = [None] * 3
        record["interference"] = 0.5
    text = page([run], "now")
    assert "do not say where the time went" in text and "rewards were not recorded" in text
    assert ">interference</h3>" in text and "<td>lost</td>" in text


def test_lost_agents_are_marked_and_the_others_keep_their_curves(runs, tmp_path):
    folder = tmp_path / "lossy"
    shutil.copytree(runs / "one", folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in lines:
        del record["system"]["crc"]
        record["heldout/accuracy_by_agent"] = [0.1, 0.2, 0.3, 0.4]
    for record in lines[4:]:
        del record["heldout/accuracy_by_agent"][1]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    content = json.loads((folder / "run.json").read_text())
    lost = {"round": 4, "lost": [1], "agents": 3, "recovery_ms": 12.34, "gap": 0.25, "when": "noon"}
    adopted = {"2": {"process": 0, "begun": 4}}
    content["events"] = [lost, {"round": 5, "adopted": adopted, "lost": []}]
    (folder / "run.json").write_text(json.dumps(content))
    run = shown("lossy", read_run(folder), read_config(folder, []))
    assert [(e.round, e.kind) for e in run.events] == [(4, "lost"), (5, "adopted")]
    assert run.events[0].text == "agent 1, 3 go on, after 12.3 ms, spectral gap 0.25, noon"
    drawn = numbers(run, [])
    assert drawn["agents"][1] == [0.2] * 4 + [None] * 3 and drawn["agents"][3] == [0.4] * 7
    assert drawn["events"][0][:2] == [4, "L"]
    text = page([run], "now")
    assert "lost after round 4" in text and "agent n0 gone" in text


def test_an_agent_that_was_adopted_goes_on_with_its_curve():
    events = [Event(2, "lost", "", (1,)), Event(3, "adopted", "", (1,)), Event(4, "lost", "", (0,))]
    run = made_up(3, 5, events=events)
    for record, agents in zip(run.records, ((0, 1, 2),) * 2 + ((0, 2), (0, 1, 2), (1, 2), (1, 2))):
        record["heldout/accuracy_by_agent"] = [0.1 * agent for agent in agents]
    drawn = numbers(run, [])["agents"]
    assert drawn[1] == [0.1, 0.1, None, 0.1, 0.1, 0.1]
    assert drawn[0] == [0, 0, 0, 0, None, None] and drawn[2] == [0.2] * 6
    assert page([run], "now").count(" gone") == 1


def test_an_unknown_kind_of_page_is_refused(runs, capsys):
    assert main(["report", str(runs / "one"), "--html", str(runs / "page.pdf")]) == 2
    assert "end it in .html" in capsys.readouterr().err
    assert main(["report", str(runs / "one"), "--html", str(runs / "no" / "page.html")]) != 0
    assert "page.html: No such file" in capsys.readouterr().err


def test_the_page_is_installed_with_the_package():
    found = {entry.name for entry in files("decdpo.report.page").joinpath("assets").iterdir()}
    assert found >= {"page.css", "page.js", "uplot"}
    code = "from setuptools import setup; from setuptools.dist import Distribution as D\n"
    code += "d = D(); d.parse_config_files(); print(d.package_data['decdpo.report.page'])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True,
                          text=True, cwd=root)  # fmt: skip
    assert "assets/*" in done.stdout and "assets/uplot/*" in done.stdout, done.stderr


def test_the_prediction_is_the_recursion_summed():
    rho, rounds = 0.8, list(range(51))
    aligned = [sum(rho**k for k in range(t)) ** 2 for t in rounds]
    found = predict(rounds, aligned, rho, lambda t: 0.1)
    np.testing.assert_allclose(found.aligned, aligned)
    independent = [sum(rho ** (2 * k) for k in range(t)) for t in rounds]
    np.testing.assert_allclose(found.independent, independent)
    sparse = predict(rounds[::10], aligned[::10], rho, lambda t: 0.1)
    np.testing.assert_allclose(sparse.aligned, aligned[::10])
    halved = predict([0, 1, 2], [0.0, 1.0, 9.0], 0.0, lambda t: 1.0 if t < 2 else 0.5)
    np.testing.assert_allclose(halved.independent, [0.0, 1.0, 0.25])
    assert predict([0, 1], [0.0, 0.0], 0.5, lambda t: 0.1) is None
    assert predict([0, 1], [0.0, 1.0], 1.0, lambda t: 0.1) is None


def test_a_noisy_ring_lies_on_the_curve_of_independent_pushes():
    draw, n, size = np.random.default_rng(0), 8, 4000
    ring = np.eye(n) / 3 + np.roll(np.eye(n), 1, 0) / 3 + np.roll(np.eye(n), -1, 0) / 3
    rho = np.sort(np.abs(np.linalg.eigvalsh(ring)))[-2]
    x, found = np.zeros((n, size)), [0.0]
    slowest = np.cos(2 * np.pi * np.arange(n) / n)[:, None]
    for _ in range(30):
        # Pushes along the slowest mode, where the prediction is exact.
        x = ring @ (x + slowest * draw.normal(size=(1, size)))
        found.append(float(((x - x.mean(0)) ** 2).sum() / n))
    curve = predict(list(range(31)), found, rho, lambda t: 1.0)
    assert 0.9 < found[-1] / curve.independent[-1] < 1.1
    assert curve.aligned[-1] > 3 * found[-1]


needs_browser = pytest.mark.skipif(
    find_browser() is None, reason="no Chromium here (Debian: apt-get install chromium)"
)


@needs_browser
def test_a_browser_draws_the_records_without_a_complaint_or_a_network(runs, tmp_path):
    lines = (runs / "two</script><i>" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    crowd = tmp_path / "crowd.html"
    crowd.write_text(page([made_up(1000, 20, events=[Event(9, "lost", "agent 7")])], "now"))
    with Browser(tmp_path / "profile", dark=True) as browser:
        browser.open(runs / "page.html")
        assert browser.value("decdpo.failed") == ""
        loss = browser.value("decdpo.charts.loss.data")
        assert loss[0] == [r["round"] for r in records]
        # Three lines of each run, in the order of the runs.
        np.testing.assert_allclose(loss[4], [r["loss"] for r in records], rtol=1e-5)
        accuracy = browser.value("decdpo.charts.accuracy.data")[3]
        wanted = [r["heldout/average/accuracy"] for r in records]
        np.testing.assert_allclose(accuracy, wanted, rtol=1e-5)
        assert browser.value("document.documentElement.dataset.theme") == "dark"
        assert browser.value("document.querySelectorAll('#multiples .small').length") == 4
        fits = "(t => t.scrollWidth <= t.clientWidth)(document.querySelector('#figures .wide'))"
        assert browser.value(fits)
        drawn = "(u => u.ctx.getImageData(0, 0, u.ctx.canvas.width, u.ctx.canvas.height).data.some("
        assert browser.value(drawn + "v => v))(decdpo.charts.loss)")
        for press in ("#theme", "[data-axis=seconds]", "[data-axis=megabytes]", "[data-run='1']"):
            browser.value(f'document.querySelector("{press}").click()')
        assert browser.value("decdpo.charts.loss.data.length") == 7
        assert browser.value("document.documentElement.dataset.theme") == "light"
        browser.open(crowd)
        spread = browser.value("decdpo.charts.spread.data")
        assert len(spread) == 6 and spread[1] < spread[3] < spread[5]
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        assert not browser.problems
        assert all(url.startswith(("file:", "about:")) for url in browser.requests)
