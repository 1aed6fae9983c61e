"use strict";
/* Draws the charts of the page from the data inside it. window.decdpo has what is drawn. */
(function () {
  const root = document.documentElement;
  const AXES = { rounds: "round", seconds: "seconds since the start", megabytes: "MB sent by all agents" };
  const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3]];
  const state = { axis: "rounds", hidden: new Set(), charts: {}, failed: "" };
  window.decdpo = state;

  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const ofRun = (k) => colour("--c" + (k % 8));
  const shaded = (hex, alpha) => hex + Math.round(alpha * 255).toString(16).padStart(2, "0");

  function short(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size === 0) return "0";
    if (size >= 1e5 || size < 1e-3) return value.toExponential(2).replace("e+", "e");
    return String(Number(value.toPrecision(4)));
  }

  function setTheme(theme) {
    root.dataset.theme = theme;
    for (const chart of Object.values(state.charts)) chart.redraw(false);
  }

  async function unpack() {
    const packed = atob(document.getElementById("data").textContent);
    const bytes = Uint8Array.from(packed, (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  /* Columns on one common x, and the series that they are, the x first. */
  function joined(lines) {
    const many = new Map();
    for (const line of lines) {
      const key = line.run;
      if (!many.has(key)) many.set(key, [line.x]);
      many.get(key).push(line.y);
    }
    const tables = [...many.values()];
    return tables.length > 1 ? uPlot.join(tables) : tables[0];
  }

  const xs = (run) => run[state.axis];

  /* Where a round lies on the x-axis of a run. */
  function at(run, round) {
    const t = run.rounds, x = xs(run);
    let k = t.findIndex((value) => value >= round);
    if (k < 0) return x[x.length - 1];
    if (k === 0 || t[k] === round) return x[k];
    return x[k - 1] + (x[k] - x[k - 1]) * (round - t[k - 1]) / (t[k] - t[k - 1]);
  }

  function marks(u) {
    const ctx = u.ctx, ratio = devicePixelRatio, taken = [];
    ctx.save();
    ctx.font = `bold ${11 * ratio}px system-ui, "DejaVu Sans", sans-serif`;
    ctx.textAlign = "center";
    state.runs.forEach((run, k) => {
      if (state.hidden.has(k)) return;
      for (const [round, sign] of run.events) {
        const x = u.valToPos(at(run, round), "x", true);
        if (x < u.bbox.left || x > u.bbox.left + u.bbox.width) continue;
        ctx.strokeStyle = ctx.fillStyle = ofRun(k);
        ctx.lineWidth = ratio;
        ctx.setLineDash([3 * ratio, 3 * ratio]);
        ctx.beginPath();
        ctx.moveTo(x, u.bbox.top);
        ctx.lineTo(x, u.bbox.top + u.bbox.height);
        ctx.stroke();
        if (taken.every((other) => Math.abs(other - x) > 12 * ratio)) {
          ctx.fillText(sign, x, u.bbox.top - 4 * ratio);
          taken.push(x);
        }
      }
    });
    ctx.restore();
  }

  function options(spec, series, width) {
    const axis = (extra) => ({
      stroke: () => colour("--soft"), font: "12px system-ui, 'DejaVu Sans', sans-serif",
      labelFont: "12px system-ui, 'DejaVu Sans', sans-serif", labelSize: 20,
      grid: { stroke: () => colour("--grid"), width: 1 },
      ticks: { stroke: () => colour("--line"), width: 1, size: 5 }, ...extra,
    });
    return {
      width, height: 250, padding: [16, 14, 0, 0], series,
      cursor: { sync: { key: "decdpo" }, points: { size: 6 }, drag: { x: true, y: false } },
      legend: { show: false },
      scales: { x: { time: false }, y: spec.log ? { distr: 3 } : { range: padded } },
      axes: [
        axis({ label: AXES[state.axis], size: 34, values: (u, ticks) => ticks.map(short) }),
        axis({ label: spec.unit || undefined, size: 62,
               values: (u, ticks) => ticks.map((v) => (v === null ? "" : short(v))) }),
      ],
      hooks: { draw: [marks], setCursor: [(u) => tell(u, spec)] }, bands: spec.bands || [],
    };
  }

  function padded(u, low, high) {
    if (low === null) return [0, 1];
    const gap = (high - low) * 0.06 || Math.abs(high) * 0.05 || 1;
    return [low - gap, high + gap];
  }

  /* The lines of a chart: every key of every run that is shown. */
  function linesOf(spec) {
    const lines = [], single = state.runs.length === 1;
    state.runs.forEach((run, k) => {
      if (state.hidden.has(k)) return;
      spec.lines.forEach(([key, label], s) => {
        let y = run.series[key];
        if (!y) return;
        if (spec.log) y = y.map((v) => (v > 0 ? v : null));
        const hue = single ? s : k, predicted = key.startsWith("~aligned") || key.startsWith("~independent");
        lines.push({
          run: k, x: xs(run), y, label, hue: predicted && single ? 0 : hue,
          dash: single && !predicted ? [] : DASHES[s % DASHES.length], width: predicted ? 1.2 : 1.8,
        });
      });
    });
    return lines;
  }

  function seriesOf(lines) {
    return [
      { label: state.axis },
      ...lines.map((line) => ({
        label: line.label, spanGaps: true, width: line.width, dash: line.dash,
        stroke: () => ofRun(line.hue), points: { show: line.x.length < 3, size: 6 },
        ...line.extra,
      })),
    ];
  }

  /* The values where the pointer is, or the last ones: a row for every run. */
  function legend(u, spec, lines, place) {
    const single = state.runs.length === 1, table = document.createElement("table");
    const labels = [...new Set(lines.map((line) => line.label))];
    const head = table.insertRow();
    const corner = head.appendChild(document.createElement("th"));
    spec.corner = corner;
    spec.cells = [];
    for (const label of labels) {
      const line = lines.find((l) => l.label === label), th = head.appendChild(document.createElement("th"));
      const dashes = line.extra ? "" : `stroke-dasharray="${line.dash.join(" ")}"`;
      const stroke = single && !line.extra ? ofRunName(line.hue) : "currentColor";
      if (!line.extra)
        th.insertAdjacentHTML("beforeend", `<svg viewBox="0 0 24 8"><path d="M0,4H24" style="stroke:${stroke}" ${dashes}/></svg>`);
      th.append(label);
    }
    const rows = [...new Set(lines.map((line) => line.run))];
    for (const k of rows) {
      const row = table.insertRow(), name = row.appendChild(document.createElement("td"));
      if (single) name.textContent = "";
      else {
        const spot = document.createElement("i");
        spot.className = `spot c${k % 8}`;
        name.append(spot, " ", state.runs[k].name);
      }
      for (const label of labels) {
        const index = lines.findIndex((l) => l.run === k && l.label === label);
        spec.cells.push([row.insertCell(), index + 1]);
      }
    }
    table.className = "legend";
    place.append(table);
    tell(u, spec);
  }

  const ofRunName = (k) => `var(--c${k % 8})`;

  function tell(u, spec) {
    if (!spec.cells) return;
    const at = u.cursor.idx, x = u.data[0];
    const k = at === null || at === undefined ? x.length - 1 : at;
    spec.corner.textContent = `${AXES[state.axis].split(" ")[0]} ${short(x[k])}`;
    for (const [cell, index] of spec.cells) {
      if (!index) { cell.textContent = ""; continue; }
      let j = k;
      const y = u.data[index];
      while (j > 0 && (y[j] === null || y[j] === undefined)) j--;
      cell.textContent = short(y[j]);
    }
  }

  function draw(key, spec, lines) {
    const place = document.querySelector(`[data-chart="${key}"] .plot`);
    if (state.charts[key]) state.charts[key].destroy();
    delete state.charts[key];
    place.replaceChildren();
    spec.cells = null;
    if (!lines.length) return;
    lines.sort((a, b) => a.run - b.run);
    const width = place.clientWidth || 480;
    const u = new uPlot(options(spec, seriesOf(lines), width), joined(lines), place);
    state.charts[key] = u;
    legend(u, spec, lines, place);
  }

  function drawSpread() {
    if (!document.querySelector('[data-chart="spread"]')) return;
    const lines = [], bands = [];
    const hide = { stroke: "transparent", width: 0, points: { show: false }, show: true };
    state.runs.forEach((run, k) => {
      if (state.hidden.has(k) || !run.spread) return;
      const base = lines.length + 1;
      const names = ["5%", "25%", "median", "75%", "95%"];
      [1, 2, 3, 4, 5].forEach((q, s) => {
        const median = q === 3;
        lines.push({
          run: k, x: xs(run), y: run.spread[q], hue: k, width: median ? 2 : 0, dash: [],
          label: names[s],
          extra: median ? {} : { ...hide, stroke: () => shaded(ofRun(k), 0.01) },
        });
      });
      bands.push({ series: [base + 4, base], fill: () => shaded(ofRun(k), 0.16) });
      bands.push({ series: [base + 3, base + 1], fill: () => shaded(ofRun(k), 0.22) });
    });
    draw("spread", { unit: "share of pairs", bands }, lines);
  }

  /* One small picture for every agent, all with the same axes. */
  function drawMultiples() {
    const place = document.getElementById("multiples");
    if (!place) return;
    const shown = state.runs.map((run, k) => [run, k]).filter(([run, k]) => run.agents && !state.hidden.has(k));
    const count = Math.max(0, ...shown.map(([run]) => run.agents.length));
    const all = shown.flatMap(([run]) => run.agents.flat()).filter((v) => v !== null);
    const low = all.reduce((a, b) => Math.min(a, b), 1), high = all.reduce((a, b) => Math.max(a, b), 0);
    const last = Math.max(...shown.map(([run]) => xs(run)[xs(run).length - 1]), 1e-9);
    const W = 150, H = 62, x = (v) => (W * v) / last, y = (v) => H - 3 - ((H - 6) * (v - low)) / (high - low || 1);
    const boxes = [];
    for (let i = 0; i < count; i++) {
      const box = document.createElement("div"), name = document.createElement("b");
      const value = document.createElement("span");
      box.className = "small";
      const person = shown.map(([run]) => run.agent_names[i]).find(Boolean);
      name.textContent = `agent ${i}` + (person ? ` ${person}` : "");
      name.title = name.textContent;
      for (const [run, k] of shown) {
        const last = value.appendChild(document.createElement("span"));
        last.textContent = run.agents[i] ? shortShare(run.agents[i].at(-1)) : "–";
        last.style.color = `var(--c${k % 8})`;
      }
      let paths = `<path class="frame" d="M0,${H}H${W}M0,${y(0.5)}H${W}"/>`;
      for (const [run, k] of shown) {
        const values = run.agents[i] || [];
        let d = "", pen = "M";
        const step = Math.max(1, Math.floor(values.length / 300));
        values.forEach((v, t) => {
          if (v === null || (t % step && t !== values.length - 1)) return;
          d += `${pen}${x(xs(run)[t]).toFixed(1)},${y(v).toFixed(1)}`;
          pen = "L";
        });
        paths += `<path d="${d}" style="stroke:var(--c${k % 8})"/>`;
      }
      box.append(name, value);
      box.insertAdjacentHTML("beforeend", `<svg viewBox="0 0 ${W} ${H + 1}">${paths}</svg>`);
      boxes.push(box);
    }
    place.replaceChildren(...boxes);
    document.getElementById("axes").textContent =
      `from ${shortShare(low)} to ${shortShare(high)}, with a line at 0.5`;
  }

  const shortShare = (v) => (v === null || v === undefined ? "–" : v.toFixed(2));

  function drawAll() {
    for (const spec of state.specs) draw(spec.key, spec, linesOf(spec));
    drawSpread();
    drawMultiples();
    for (const button of document.querySelectorAll("[data-axis]"))
      button.classList.toggle("on", button.dataset.axis === state.axis);
  }

  function resize() {
    for (const [key, chart] of Object.entries(state.charts)) {
      const place = document.querySelector(`[data-chart="${key}"] .plot`);
      if (place.clientWidth && Math.abs(place.clientWidth - chart.width) > 1)
        chart.setSize({ width: place.clientWidth, height: 250 });
    }
  }

  function listen() {
    for (const box of document.querySelectorAll("[data-run]"))
      box.addEventListener("change", () => {
        state.hidden[box.checked ? "delete" : "add"](Number(box.dataset.run));
        drawAll();
      });
    for (const button of document.querySelectorAll("[data-axis]"))
      button.addEventListener("click", () => { state.axis = button.dataset.axis; drawAll(); });
    document.getElementById("theme").addEventListener("click", () =>
      setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
    let before = "light";
    addEventListener("beforeprint", () => { before = root.dataset.theme; setTheme("light"); resize(); });
    addEventListener("afterprint", () => { setTheme(before); resize(); });
    addEventListener("resize", resize);
  }

  const dark = matchMedia("(prefers-color-scheme: dark)");
  setTheme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
  unpack().then((content) => {
    state.runs = content.runs;
    state.specs = content.charts;
    listen();
    drawAll();
    state.ready = true;
  }).catch((fault) => {
    state.failed = String(fault);
    document.getElementById("plain").innerHTML = document.querySelector("noscript").textContent;
  });
})();
