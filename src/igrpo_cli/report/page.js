"use strict";

// Show the values under the pointer. A plot states the positions of its axes, and its curves are paths of their points.
for (const chart of document.querySelectorAll(".chart")) {
  const [left, top, right, bottom, xLow, xHigh, yLow, yHigh] = chart.dataset.plot.split(" ").map(Number);
  const isShare = chart.dataset.share !== undefined;
  const curves = [...chart.querySelectorAll("[data-label]")].map((curve) => ({
    label: curve.dataset.label,
    points: curve.querySelector(".line").getAttribute("d").slice(1).split("L").map((point) => point.split(" ").map(Number)),
  }));
  const reading = document.createElement("div");
  reading.className = "reading";
  const short = (value) => Number(value.toPrecision(3)).toLocaleString("en");
  const value = (y) => yLow + ((bottom - y) / (bottom - top)) * (yHigh - yLow);
  const place = (x) => xLow + ((x - left) / (right - left)) * (xHigh - xLow);
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
    const nearest = curves.map(({ label, points }) => {
      const point = points.reduce((best, each) => (Math.abs(each[0] - x) < Math.abs(best[0] - x) ? each : best));
      return { label, point };
    });
    const lines = nearest.map(({ label, point }) => `${label}: ${isShare ? short(100 * value(point[1])) + " %" : short(value(point[1]))}`);
    reading.textContent = [`${chart.dataset.x}: ${short(place(nearest[0].point[0]))}`, ...lines].join("\n");
    chart.parentNode.after(reading);
    const figure = chart.closest("figure").getBoundingClientRect();
    const wanted = event.clientX - figure.left + 14;
    reading.style.left = `${Math.max(0, Math.min(wanted, figure.width - reading.offsetWidth))}px`;
    reading.style.top = `${event.clientY - figure.top + 14}px`;
  });
  chart.addEventListener("pointerleave", () => reading.remove());
}

const filters = document.querySelector(".filters");
const stories = [...document.querySelectorAll(".story")];
const shown = () => stories.filter((story) => !story.hidden);

function filter() {
  const { run, iteration, kind, verdict } = Object.fromEntries(new FormData(filters));
  for (const story of stories) {
    const { dataset } = story;
    story.hidden = Boolean(
      (run && dataset.run !== run) ||
      (iteration && dataset.iteration !== iteration) ||
      (kind && !dataset.kind.includes(`|${kind}|`)) ||
      (verdict && !dataset.verdict.includes(`|${verdict}|`))
    );
  }
  filters.querySelector("output").textContent = `${shown().length} of ${stories.length}`;
}

// The page of a study has no problems to filter.
if (filters) {
  filters.hidden = false;
  filters.addEventListener("change", filter);
  filters.addEventListener("submit", (event) => event.preventDefault());
  filter();
}

document.addEventListener("keydown", (event) => {
  const step = { j: 1, k: -1 }[event.key];
  if (!step || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, input")) return;
  const visible = shown();
  const at = visible.indexOf(document.activeElement.closest(".story"));
  const next = visible[at < 0 ? 0 : at + step];
  if (next) next.querySelector("summary").focus();
});
