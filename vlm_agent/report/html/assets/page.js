"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const make = (tag, attributes = {}, text = "") => {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    return element;
  };

  // ---- curves ----
  const show = { by: "words", smooth: true };
  const runs = Object.keys(data.evaluations);

  function layout(title, extra = {}) {
    const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), automargin: true };
    return {
      title: { text: title, font: { size: 14 } },
      font: { color: css("--text"), size: 12, family: "system-ui, sans-serif" },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 48, r: 14, t: 36, b: 40 }, height: 250, hovermode: "x unified",
      hoverlabel: { bgcolor: css("--panel"), font: { color: css("--text") } },
      legend: { orientation: "h", y: -0.32, yanchor: "top", font: { size: 11 } },
      xaxis: { ...axis, title: { text: show.by === "words" ? "words" : "hours", font: { size: 11 } } },
      yaxis: { ...axis }, ...extra,
    };
  }

  function drawCharts() {
    const place = at("charts"), series = css("--series").split(",").map((c) => c.trim());
    const several = runs.length > 1;
    data.charts.forEach((chart, number) => {
      let box = at("chart" + number);
      if (!box) {
        box = make("div", { id: "chart" + number, class: "chart" });
        place.append(box);
      }
      const traces = [];
      chart.curves.forEach((curve, k) => {
        const x = show.by === "hours" && curve.hours.length ? curve.hours : curve.words;
        const colour = series[(several ? runs.indexOf(curve.run) : k) % series.length];
        const stages = chart.curves.filter((c) => c.run === curve.run).length;
        const dash = several && stages > 1 ? ["solid", "dash", "dot", "dashdot"][k % stages % 4] : "solid";
        const label = curve.name.replace(/_rate$/, "");
        const name = several ? (stages > 1 ? curve.run + " " + label : curve.run) : label;
        const raw = { x, y: curve.values, name, mode: "lines+markers", marker: { size: 5 }, line: { color: colour, dash, width: 2 } };
        if (show.smooth && curve.values.length > 3) {
          traces.push({ ...raw, mode: "lines", opacity: 0.3, showlegend: false, hoverinfo: "skip", line: { color: colour, width: 1 } });
          traces.push({ ...raw, y: curve.smoothed, mode: "lines" });
        } else traces.push(raw);
      });
      if (chart.title === "success") {
        runs.forEach((run, k) => {
          const rows = data.evaluations[run], hours = clock(run);
          if (!rows.length || (show.by === "hours" && !hours)) return;
          traces.push({
            x: rows.map((row) => (show.by === "words" ? row.timesteps : hours(row.timesteps))),
            y: rows.map((row) => row.success_rate), mode: "markers", name: (several ? run + " " : "") + "evaluated",
            marker: { color: several ? series[k % series.length] : css("--text"), size: 9, symbol: "square" },
            error_y: { type: "data", symmetric: false, thickness: 1.5,
              array: rows.map((row) => row.ci95_high - row.success_rate),
              arrayminus: rows.map((row) => row.success_rate - row.ci95_low) },
          });
        });
      }
      const legend = traces.filter((trace) => trace.showlegend !== false).length > 1;
      const extra = { showlegend: legend };
      if (legend) extra.margin = { l: 48, r: 14, t: 36, b: 74 };
      if (chart.title === "success") extra.yaxis = { range: [-0.04, 1.04], gridcolor: css("--line"), automargin: true };
      Plotly.react(box, traces, layout(chart.title, extra), { displayModeBar: false, responsive: true });
    });
    if (!data.charts.length) place.append(make("p", { class: "note" }, "No update was recorded."));
  }

  // Hours by which a run had said so many words, as its curves tell.
  function clock(run) {
    const curve = data.charts.flatMap((chart) => chart.curves).find((c) => c.run === run && c.hours.length);
    if (!curve) return null;
    return (words) => {
      let hours = 0;
      curve.words.forEach((said, k) => { if (said <= words) hours = curve.hours[k]; });
      return hours;
    };
  }

  function drawTimes() {
    const series = css("--series").split(",").map((c) => c.trim());
    const kinds = [...new Set(runs.flatMap((run) => Object.keys(data.times[run])))];
    if (!kinds.length) { at("times").replaceChildren(make("p", { class: "note" }, "This kind of run records no times.")); return; }
    const groups = [["the trainer", ["scoring words", "waiting for the world", "learning"]], ["each world's process", ["physics", "rendering"]]];
    const rows = runs.flatMap((run) => groups.filter((g) => g[1].some((kind) => data.times[run][kind])).map((g) => [run, g]));
    const label = ([run, group]) => (runs.length > 1 ? run + ", " : "") + group[0];
    const traces = kinds.map((kind, k) => ({
      type: "bar", orientation: "h", name: kind, marker: { color: series[k % series.length] },
      y: rows.map(label), x: rows.map(([run, group]) => (group[1].includes(kind) ? data.times[run][kind] || 0 : 0)),
    }));
    const figure = layout("", { barmode: "stack", height: 130 + 40 * rows.length, hovermode: "closest", margin: { l: 20, r: 14, t: 10, b: 80 } });
    figure.xaxis.title.text = "minutes";
    figure.legend.y = -0.45;
    Plotly.react(at("times"), traces, figure, { displayModeBar: false, responsive: true });
  }

  function press(button, on) { button.setAttribute("aria-pressed", String(on)); }
  const hasHours = data.charts.some((chart) => chart.curves.some((curve) => curve.hours.length));
  at("by-hours").disabled = !hasHours;
  for (const by of ["words", "hours"]) {
    at("by-" + by).addEventListener("click", () => {
      show.by = by;
      press(at("by-words"), by === "words");
      press(at("by-hours"), by === "hours");
      drawCharts();
    });
  }
  at("smooth").addEventListener("click", () => {
    show.smooth = !show.smooth;
    press(at("smooth"), show.smooth);
    drawCharts();
  });

  // ---- episodes ----
  const episodes = runs.flatMap((run) => (data.players[run] || []).map((one) => ({ ...one, run })));
  const film = at("film");
  let chosen = null, word = 0, filter = "all", timer = null;

  const visible = () => episodes.filter((one) => filter === "all" || one.success === (filter === "solved"));

  function fillList() {
    at("list").replaceChildren(...visible().map((one) => {
      const item = make("li"), button = make("button", { type: "button", "data-episode": episodes.indexOf(one) });
      const outcome = one.success ? "solved" : one.stage === "none" ? "nothing reached" : "ended after: " + one.stage;
      button.append(make("span", {}, (runs.length > 1 ? one.run + " " : "") + "episode " + one.number));
      button.append(make("small", { class: one.success ? "solved" : "failed" }, outcome));
      button.append(make("small", {}, one.said.length + " words" + (one.goal ? ", " + one.goal : "")));
      button.addEventListener("click", () => choose(one));
      item.append(button);
      return item;
    }));
    mark();
  }

  function mark() {
    for (const button of at("list").querySelectorAll("button"))
      button.setAttribute("aria-current", String(episodes[button.dataset.episode] === chosen));
  }

  function choose(one) {
    stop();
    chosen = one;
    const bytes = Uint8Array.from(atob(one.film), (c) => c.charCodeAt(0));
    if (film.src) URL.revokeObjectURL(film.src);
    film.src = URL.createObjectURL(new Blob([bytes], { type: "video/mp4" }));
    at("headline").textContent = "Episode " + one.number + " (seed " + one.seed + "): " + (one.success ? "solved" : "not solved") + ", return " + one.return.toFixed(2);
    at("scrub").max = one.said.length;
    drawTimeline();
    go(0);
    mark();
  }

  function go(to) {
    word = Math.max(0, Math.min(chosen.said.length, to));
    const time = (word + 0.5) / chosen.fps;
    if (film.readyState) film.currentTime = time;
    else film.addEventListener("loadedmetadata", () => { film.currentTime = (word + 0.5) / chosen.fps; }, { once: true });
    at("scrub").value = word;
    const over = word === chosen.said.length;
    at("place").textContent = over ? "end" : "word " + (word + 1) + " of " + chosen.said.length;
    drawBars(over);
    at("prompt").textContent = over ? "" : chosen.prompts[word];
    const cursor = at("timeline").querySelector(".cursor");
    if (cursor) cursor.setAttribute("x", word);
  }

  function drawBars(over) {
    const words = data.words[chosen.run], bars = at("bars");
    if (over) { bars.replaceChildren(make("p", { class: "note" }, "The episode is over.")); return; }
    const said = chosen.said[word], told = chosen.probabilities && chosen.probabilities[word];
    if (!told) { bars.replaceChildren(make("p", {}, "“" + said + "”"), make("p", { class: "note" }, "The policy that said it is not here to be asked again.")); return; }
    if (bars.children.length !== words.length || bars.firstChild.tagName === "P") {
      bars.replaceChildren(...words.map((name) => {
        const bar = make("div", { class: "bar" }), track = make("div", { class: "track" });
        track.append(make("div", { class: "fill" }));
        bar.append(make("span", {}, name), track, make("span"));
        return bar;
      }));
    }
    words.forEach((name, k) => {
      const bar = bars.children[k];
      bar.classList.toggle("said", name === said);
      bar.querySelector(".fill").style.width = (100 * told[k]).toFixed(1) + "%";
      bar.lastChild.textContent = (100 * told[k]).toFixed(1) + " %";
    });
  }

  function drawTimeline() {
    const svg = at("timeline"), space = "http://www.w3.org/2000/svg", count = chosen.said.length;
    const draw = (tag, attributes) => {
      const element = document.createElementNS(space, tag);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      svg.append(element);
      return element;
    };
    svg.replaceChildren();
    svg.setAttribute("viewBox", "0 0 " + (count + 1) + " 100");
    const values = chosen.values || [];
    const top = Math.max(0.05, ...chosen.rewards, ...values), bottom = Math.min(0, ...chosen.rewards, ...values);
    const y = (value) => 8 + (84 * (top - value)) / (top - bottom);
    draw("line", { x1: 0, x2: count + 1, y1: y(0), y2: y(0), stroke: css("--line"), "vector-effect": "non-scaling-stroke" });
    let before = "none";
    chosen.stages.forEach((stage, k) => {
      if (stage !== before) {
        const line = draw("line", { x1: k + 1, x2: k + 1, y1: 0, y2: 100, stroke: css("--accent"), "stroke-width": 2, "stroke-dasharray": "4 3", "vector-effect": "non-scaling-stroke" });
        line.append(Object.assign(document.createElementNS(space, "title"), { textContent: stage }));
      }
      before = stage;
    });
    chosen.rewards.forEach((reward, k) => {
      draw("rect", { x: k + 0.15, width: 0.7, y: Math.min(y(0), y(reward)), height: Math.max(0.8, Math.abs(y(reward) - y(0))), fill: css(reward < 0 ? "--bad" : "--good") });
    });
    if (values.length) draw("polyline", { points: values.map((value, k) => k + 0.5 + "," + y(value)).join(" "), fill: "none", stroke: css("--value"), "stroke-width": 2, "vector-effect": "non-scaling-stroke" });
    draw("rect", { class: "cursor", x: word, width: 1, y: 0, height: 100, fill: css("--text"), opacity: 0.18 });
  }

  function play() {
    if (timer) { stop(); return; }
    if (word === chosen.said.length) go(0);
    at("play").textContent = "pause";
    timer = setInterval(() => (word === chosen.said.length ? stop() : go(word + 1)), 1000 / chosen.fps);
  }
  function stop() {
    clearInterval(timer);
    timer = null;
    at("play").textContent = "play";
  }
  function step(by) { stop(); go(word + by); }
  function setFilter(name) {
    filter = name;
    for (const button of document.querySelectorAll("[data-filter]")) press(button, button.dataset.filter === name);
    fillList();
    const left = visible();
    if (left.length && !left.includes(chosen)) choose(left[0]);
  }
  function another(by) {
    const left = visible(), place = left.indexOf(chosen) + by;
    if (left[place]) choose(left[place]);
  }

  if (episodes.length) {
    at("player").hidden = false;
    at("back").addEventListener("click", () => step(-1));
    at("forth").addEventListener("click", () => step(1));
    at("play").addEventListener("click", play);
    at("scrub").addEventListener("input", () => { stop(); go(Number(at("scrub").value)); });
    at("timeline").addEventListener("click", (event) => {
      const box = at("timeline").getBoundingClientRect();
      stop();
      go(Math.floor(((event.clientX - box.left) / box.width) * (chosen.said.length + 1)));
    });
    for (const button of document.querySelectorAll("[data-filter]")) button.addEventListener("click", () => setFilter(button.dataset.filter));
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT|SUMMARY|PRE)$/.test(event.target.tagName)) return;
      const keys = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), ArrowUp: () => another(-1), ArrowDown: () => another(1), f: () => setFilter(filter === "failed" ? "all" : "failed") };
      if (event.key === " " && event.target.tagName !== "BUTTON") keys[" "] = play;
      if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
    });
    fillList();
    choose(visible()[0]);
  }

  function draw() {
    drawCharts();
    drawTimes();
    if (chosen) drawTimeline();
  }
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
