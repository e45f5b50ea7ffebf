"use strict";
(function () {
  const byId = (id) => document.getElementById(id);
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const short = (x, digits = 6) => (x == null ? "–" : String(Number(x.toPrecision(digits)))).replace("-", "−");
  const charts = [];

  // The plots are canvases: on paper they are drawn anew, in the colours of paper.
  matchMedia("print").addEventListener("change", () => charts.forEach((draw) => draw()));

  // Theme: as the system has it, until the button says otherwise.
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (document.documentElement.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const button = byId("theme");
  function name() {
    button.textContent = dark() ? "Light theme" : "Dark theme";
    button.setAttribute("aria-label", "Switch to the " + (dark() ? "light" : "dark") + " theme");
    charts.forEach((draw) => draw());
  }
  button.addEventListener("click", () => {
    const next = dark() ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    try { localStorage.setItem("dualcalc-theme", next); } catch { /* storage may be refused for file: */ }
    name();
  });
  system.addEventListener("change", name);

  // Index: words of the search, all of them; filters, all of them.
  const search = byId("search");
  if (search) {
    const items = [...document.querySelectorAll("#entries > li")];
    const boxes = [...document.querySelectorAll("input[name=only]")];
    const filter = () => {
      const words = search.value.toLowerCase().replaceAll("^", "**").split(/\s+/).filter(Boolean);
      const only = boxes.filter((b) => b.checked).map((b) => b.value);
      let seen = 0;
      for (const item of items) {
        const is = item.dataset.is.split(" ");
        const fits = words.every((w) => item.dataset.find.includes(w)) && only.every((o) => is.includes(o));
        item.hidden = !fits;
        seen += fits;
      }
      byId("count").textContent = seen + " of " + items.length;
      byId("none").hidden = seen > 0;
    };
    search.addEventListener("input", filter);
    boxes.forEach((b) => b.addEventListener("change", filter));
    byId("find").addEventListener("submit", (event) => event.preventDefault());
    document.addEventListener("keydown", (event) => {
      if (event.key === "/" && document.activeElement !== search && !event.ctrlKey && !event.metaKey) {
        event.preventDefault();
        search.focus();
      }
    });
    filter(); // a browser keeps what was typed when one goes back
  }

  // The form of the live page: what happens after it is sent.
  const live = byId("live");
  if (live) {
    const send = live.querySelector("button"), status = byId("live-status");
    live.addEventListener("submit", () => { send.disabled = true; status.textContent = status.dataset.wait; });
    addEventListener("pageshow", () => { send.disabled = false; }); // one came back to it
  }

  // Plots.
  const numbers = byId("numbers") ? JSON.parse(byId("numbers").textContent) : {};

  function chart(place, label, names, get, xs, moved) {
    const series = (i) => ({ label: names[i], stroke: style(i ? "--two" : "--one"), width: 2, dash: i ? [7, 4] : undefined,
      value: (u, v) => short(v), points: { show: false }, pxAlign: 0,
      gaps: (u, of, from, to, gaps) => gaps.map(([a, b]) => [a - 2, b + 2]) }); // what a line's width leaves at a jump
    let plot = null;
    const draw = () => {
      if (plot) plot.destroy();
      const axis = () => ({ stroke: style("--soft"), grid: { stroke: style("--line"), width: 1 }, ticks: { stroke: style("--line") } });
      plot = new uPlot({
        pxAlign: false, width: Math.max(place.clientWidth, 200), height: 300, cursor: { drag: { x: false, y: false }, y: false },
        scales: { x: { time: false, range: xs } }, axes: [axis(), { ...axis(), size: 58 }],
        series: [{ label, value: (u, v) => short(v, 4) }, ...names.map((_, i) => series(i))],
        hooks: moved ? { setCursor: [(u) => moved(u)] } : {},
      }, get(), place);
    };
    draw();
    charts.push(draw);
    new ResizeObserver(() => {
      if (Math.abs(plot.width - place.clientWidth) > 1) plot.setSize({ width: Math.max(place.clientWidth, 200), height: 300 });
    }).observe(place);
    return { get plot() { return plot; } };
  }

  if (numbers.curve) {
    const n = numbers.curve;
    chart(byId("plot-activation"), "t", ["s", "s′"], () => [n.t, n.s, n["s'"]], [-4, 4]);
  }

  if (numbers.dual) {
    const d = numbers.dual, members = ["k", "kdot"].filter((m) => d[m]);
    const at = (id) => Number(byId(id).value);
    const pair = () => {
      const [a, b] = [at("q11"), at("q22")].sort((x, y) => x - y);
      return a * d.q.length - (a * (a - 1)) / 2 + (b - a);
    };
    const data = () => [d.c, ...members.map((m) => d[m][pair()])];
    const point = (u) => { // only where the pointer moved it
      if (!u.cursor.event || u.cursor.idx == null || u.cursor.left < 0) return;
      byId("c").value = u.cursor.idx;
      say();
    };
    const view = chart(byId("plot-dual"), "c", members, data, [-1, 1], point);
    const say = () => {
      const i = at("c"), c = d.c[i], [a, b] = [d.q[at("q11")], d.q[at("q22")]];
      byId("out-c").textContent = short(c, 4);
      byId("out-q11").textContent = short(a);
      byId("out-q22").textContent = short(b);
      byId("readout").textContent = "q₁₂ = " + short(c * Math.sqrt(a * b), 4) + ", angle " + short((Math.acos(c) * 180) / Math.PI, 4) + "°: "
        + members.map((m) => m + " = " + short(d[m][pair()][i])).join(", ");
    };
    const mark = () => {
      const u = view.plot;
      u.setCursor({ left: u.valToPos(d.c[at("c")], "x"), top: 10 });
      say();
    };
    byId("c").addEventListener("input", mark);
    for (const id of ["q11", "q22"]) byId(id).addEventListener("input", () => { view.plot.setData(data()); say(); });
    say();
    setTimeout(mark); // once the plot has its size
  }

  if (numbers.phases) {
    const d = numbers.phases, here = byId("here"), at = (id) => Number(byId(id).value);
    const update = () => {
      const i = at("bias"), j = at("weight"), [q, chi, depth] = [d.q[i][j], d.chi_1[i][j], d.depth_scale[i][j]];
      byId("out-weight").textContent = d.W_std[j].toFixed(2);
      byId("out-bias").textContent = d.b_std[i].toFixed(2);
      here.setAttribute("cx", (j / (d.W_std.length - 1)) * here.dataset.width);
      here.setAttribute("cy", (1 - i / (d.b_std.length - 1)) * here.dataset.height);
      const phase = chi === 1 ? "critical" : chi < 1 ? "ordered" : "chaotic";
      byId("phase-readout").textContent = q === null ? "the variance grows beyond " + short(d.greatest) + ": no fixed point from q = 1"
        : "q* = " + short(q, 4) + ", χ₁ = " + short(chi, 4) + ": " + phase + ", depth scale "
          + (phase === "critical" ? "infinite" : short(depth, 3) + " layers");
    };
    for (const id of ["weight", "bias"]) byId(id).addEventListener("input", update);
    update();
  }

  // The permalink keeps the sliders, in its fragment.
  const permalink = byId("permalink"), sliders = [...document.querySelectorAll(".sliders input")];
  if (permalink && sliders.length) {
    for (const [id, value] of new URLSearchParams(location.hash.slice(1))) {
      const slider = sliders.find((s) => s.id === id);
      if (slider && /^\d{1,3}$/.test(value)) { slider.value = value; slider.dispatchEvent(new Event("input")); }
    }
    const page = permalink.href.split("#")[0];
    const link = () => { permalink.href = page + "#" + sliders.map((s) => s.id + "=" + s.value).join("&"); };
    sliders.forEach((s) => s.addEventListener("input", link));
    link();
  }

  // Tabs, by the keyboard too.
  for (const tabs of document.querySelectorAll("[data-tabs]")) {
    const all = [...tabs.querySelectorAll("[role=tab]")];
    const select = (tab, focus) => {
      for (const other of all) {
        const on = other === tab;
        other.setAttribute("aria-selected", String(on));
        other.tabIndex = on ? 0 : -1;
        byId(other.getAttribute("aria-controls")).hidden = !on;
      }
      if (focus) tab.focus();
    };
    all.forEach((tab, i) => {
      tab.addEventListener("click", () => select(tab));
      tab.addEventListener("keydown", (event) => {
        const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: all.length - 1 }[event.key];
        if (to === undefined) return;
        event.preventDefault();
        select(all[(to + all.length) % all.length], true);
      });
    });
    select(all[0]);
  }

  // Copy: the clipboard, or a selection where it is refused.
  async function put(text, from) {
    try { await navigator.clipboard.writeText(text); return true; } catch { /* older, or not allowed */ }
    const range = document.createRange();
    range.selectNodeContents(from);
    const selection = getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    return document.execCommand("copy");
  }
  for (const b of document.querySelectorAll("[data-copy]")) {
    b.addEventListener("click", async () => {
      const from = byId(b.dataset.copy), kept = b.innerHTML;
      const done = await put(from.textContent, from);
      b.textContent = done ? "Copied" : "Selected: press Ctrl+C";
      byId("copied").textContent = b.textContent;
      setTimeout(() => { b.innerHTML = kept; }, 1500);
    });
  }

  name();
})();
