"use strict";
// Values under the pointer, policies shown or hidden, light or dark. The page is complete without it.
const numbers = JSON.parse(document.getElementById("numbers").textContent);
const hidden = new Set();

const forms = {
  seconds_text: v => v === 0 ? "0" : v >= 1 ? `${+v.toPrecision(4)} s` : v >= 1e-3 ? `${+(v * 1e3).toPrecision(4)} ms` : `${+(v * 1e6).toPrecision(4)} µs`,
  percent_text: v => `${+(v * 100).toPrecision(3)} %`,
  number_text: v => Math.abs(v) < 1e4 ? `${+v.toPrecision(4)}` : Math.abs(v) < 1e6 ? `${+(v / 1e3).toPrecision(3)}k` : Math.abs(v) < 1e9 ? `${+(v / 1e6).toPrecision(3)}M` : `${+(v / 1e9).toPrecision(3)}G`,
  clock_text: v => `${Math.floor(v / 60)}:${String(Math.floor(v % 60)).padStart(2, "0")}`,
};

function interpolated(series, x) {
  const known = series.x.map((at, i) => [at, series.y[i]]).filter(([at, y]) => at !== null && y !== null);
  if (!known.length || x < known[0][0] || x > known[known.length - 1][0]) return null;
  const next = Math.max(1, known.findIndex(([at]) => at >= x));
  if (known.length === 1) return known[0][1];
  const [[x0, y0], [x1, y1]] = [known[next - 1], known[next]];
  return x1 === x0 ? y1 : y0 + (y1 - y0) * (x - x0) / (x1 - x0);
}

for (const svg of document.querySelectorAll("svg[data-chart]")) {
  const chart = numbers[svg.dataset.chart], tip = svg.parentElement.querySelector(".tip"), cross = svg.querySelector(".cross");
  const left = 54, right = 584;
  const leave = () => { tip.style.visibility = cross.style.visibility = "hidden"; };
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), at = (event.clientX - box.left) / box.width * 600;
    if (at < left || at > right || !chart.series.length) return leave();
    const part = (at - left) / (right - left), { low, high, log } = chart.x;
    const x = log ? low * (high / low) ** part : low + (high - low) * part;
    const head = document.createElement("b");
    head.textContent = forms[chart.x.form](x);
    tip.replaceChildren(head);
    for (const series of chart.series) {
      const y = hidden.has(series.policy) ? null : interpolated(series, x);
      if (y === null) continue;
      const line = document.createElement("span"), dot = document.createElement("i"), value = document.createElement("em");
      dot.className = series.policy === null ? "dot" : `dot p${series.policy % 8}`;
      if (series.policy === null) dot.style.background = "var(--bound)";
      value.textContent = forms[chart.y.form](y);
      line.append(dot, series.label, value);
      tip.append(line);
    }
    cross.setAttribute("x1", at); cross.setAttribute("x2", at);
    tip.style.visibility = cross.style.visibility = "visible";
    const half = box.width / 2, x_in = event.clientX - box.left;
    tip.style.left = x_in < half ? `${x_in + 14}px` : "auto";
    tip.style.right = x_in < half ? "auto" : `${box.width - x_in + 14}px`;
  });
}

for (const button of document.querySelectorAll("button[data-policy]")) {
  button.addEventListener("click", () => {
    const policy = Number(button.dataset.policy), off = button.classList.toggle("off");
    off ? hidden.add(policy) : hidden.delete(policy);
    for (const one of document.querySelectorAll(`[data-of="${policy}"]`)) one.classList.toggle("hidden", off);
  });
}

document.getElementById("theme").addEventListener("click", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches, root = document.documentElement;
  root.dataset.theme = (root.dataset.theme || (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
});
