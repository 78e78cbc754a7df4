"use strict";
(function () {
  const table = document.getElementById("cells");
  const body = table.tBodies[0];
  const closeDetails = () => body.querySelectorAll("tr.more").forEach((row) => row.remove());
  const keyOf = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.key !== undefined ? cell.dataset.key : cell.textContent;
    const value = Number(text);
    return text === "" ? null : Number.isNaN(value) ? text : value;
  };
  const compare = (a, b) => {
    if (a === null || b === null) return a === b ? 0 : a === null ? 1 : -1;
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  };
  Array.from(table.tHead.rows[0].cells).forEach((heading, column) => {
    heading.tabIndex = 0;
    const sort = () => {
      closeDetails();
      const descending = heading.getAttribute("aria-sort") === "ascending";
      Array.from(table.tHead.rows[0].cells).forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const rows = Array.from(body.rows).map((row, place) => ({ row, place, key: keyOf(row, column) }));
      rows.sort((a, b) => {
        const order = compare(a.key, b.key);
        return (a.key === null || b.key === null ? order : descending ? -order : order) || a.place - b.place;
      });
      body.append(...rows.map((entry) => entry.row));
    };
    heading.addEventListener("click", sort);
    heading.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  });
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (!row || row.classList.contains("more")) return;
    const isOpen = row.nextSibling && row.nextSibling.classList && row.nextSibling.classList.contains("more");
    closeDetails();
    if (isOpen) return;
    const more = document.createElement("tr");
    more.className = "more";
    const cell = more.insertCell();
    cell.colSpan = row.cells.length;
    const reason = document.createElement("p");
    reason.textContent = row.dataset.reason + ".";
    const command = document.createElement("pre");
    command.textContent = row.dataset.command;
    cell.append(reason, command);
    row.after(more);
  });
  document.getElementById("filter").addEventListener("input", (event) => {
    closeDetails();
    const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    Array.from(body.rows).forEach((row) => {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    });
  });

  const source = document.getElementById("curves");
  if (!source) return;
  const curves = JSON.parse(source.textContent);
  const chart = document.getElementById("chart");
  const readout = document.getElementById("readout");
  const legend = document.getElementById("legend");
  const chooser = document.getElementById("panel");
  const hidden = new Set();
  const box = { left: 50, right: 848, top: 12, bottom: 340 };
  const NS = "http://www.w3.org/2000/svg";
  const add = (name, attributes, text) => {
    const element = document.createElementNS(NS, name);
    Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
    if (text !== undefined) element.textContent = text;
    chart.append(element);
    return element;
  };
  curves.panels.forEach((panel, place) => chooser.add(new Option(panel.title, place)));
  const kind = () => document.querySelector("input[name=kind]:checked").value;
  const series = (line) => kind() === "loss"
    ? { x: line.x, y: line.loss }
    : { x: line.accuracy.map((_, place) => place + 1), y: line.accuracy };
  const nice = (low, high, count) => {
    const raw = (high - low) / count || 1;
    const power = Math.pow(10, Math.floor(Math.log10(raw)));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
    const ticks = [];
    for (let value = Math.ceil(low / step) * step; value <= high + step / 1e6; value += step) ticks.push(Number(value.toFixed(10)));
    return ticks;
  };
  const path = (x, y, X, Y) => x.map((at, place) => (y[place] === null ? "" : `${place && y[place - 1] !== null ? "L" : "M"}${X(at).toFixed(1)},${Y(y[place]).toFixed(1)}`)).join("");
  let scale = null;
  const draw = () => {
    const panel = curves.panels[Number(chooser.value)];
    const shown = panel.lines.filter((line) => !hidden.has(line.label));
    const isLoss = kind() === "loss";
    const band = isLoss ? panel.band : null;
    const xs = shown.flatMap((line) => series(line).x).concat(band ? band.x : []);
    const ys = shown.flatMap((line) => series(line).y).concat(band ? band.mean : []).filter((value) => value !== null);
    const low = isLoss ? Math.min(...xs, 0) : 1;
    const high = Math.max(...xs, low + 1);
    const top = isLoss ? Math.max(...ys, 0.1) * 1.08 : 100;
    const X = (at) => box.left + ((at - low) / (high - low)) * (box.right - box.left);
    const Y = (value) => box.bottom - (Math.min(value, top) / top) * (box.bottom - box.top);
    scale = { X, Y, low, high, panel, shown };
    chart.replaceChildren();
    nice(0, top, 6).forEach((tick) => {
      add("line", { x1: box.left, x2: box.right, y1: Y(tick), y2: Y(tick), stroke: "#8c959f", "stroke-opacity": 0.25 });
      add("text", { x: box.left - 6, y: Y(tick) + 4, "text-anchor": "end", "font-size": 12, fill: "#717a84" }, String(tick));
    });
    nice(low, high, 8).filter((tick) => isLoss || Number.isInteger(tick)).forEach((tick) => {
      add("text", { x: X(tick), y: box.bottom + 18, "text-anchor": "middle", "font-size": 12, fill: "#717a84" }, String(tick));
    });
    add("text", { x: (box.left + box.right) / 2, y: 374, "text-anchor": "middle", "font-size": 12, fill: "#717a84" }, isLoss ? "step" : "epoch");
    if (band) {
      const upper = path(band.x, band.limit, X, Y);
      const back = path(band.x.slice().reverse(), band.mean.slice().reverse(), X, Y).replace("M", "L");
      add("path", { d: `${upper}${back}Z`, fill: "#8c959f", "fill-opacity": 0.25 });
      add("path", { d: path(band.x, band.mean, X, Y), fill: "none", stroke: "#717a84", "stroke-dasharray": "5 4" });
    }
    shown.forEach((line) => {
      const { x, y } = series(line);
      add("path", { d: path(x, y, X, Y), fill: "none", stroke: curves.colours[line.colour % curves.colours.length], "stroke-width": 1.8, class: "curve" });
    });
    add("line", { id: "cursor", y1: box.top, y2: box.bottom, stroke: "#717a84", visibility: "hidden" });
  };
  const list = () => {
    legend.replaceChildren();
    curves.panels[Number(chooser.value)].lines.forEach((line) => {
      const label = document.createElement("label");
      const tick = document.createElement("input");
      tick.type = "checkbox";
      tick.checked = !hidden.has(line.label);
      tick.addEventListener("change", () => { tick.checked ? hidden.delete(line.label) : hidden.add(line.label); draw(); });
      const colour = document.createElement("i");
      colour.style.background = curves.colours[line.colour % curves.colours.length];
      label.append(tick, colour, line.label);
      legend.append(label);
    });
  };
  chart.addEventListener("mousemove", (event) => {
    const frame = chart.getBoundingClientRect();
    const at = (event.clientX - frame.left) * (860 / frame.width);
    const step = scale.low + ((at - box.left) / (box.right - box.left)) * (scale.high - scale.low);
    if (step < scale.low || step > scale.high) return;
    const cursor = document.getElementById("cursor");
    cursor.setAttribute("x1", at); cursor.setAttribute("x2", at); cursor.setAttribute("visibility", "visible");
    const lines = scale.shown.map((line) => {
      const { x, y } = series(line);
      const place = x.reduce((best, value, index) => (Math.abs(value - step) < Math.abs(x[best] - step) ? index : best), 0);
      return `${line.label}: ${y[place] === null ? "not finite" : y[place]}`;
    });
    readout.textContent = [`${kind() === "loss" ? "step" : "epoch"} ${Math.round(step)}`, ...lines].join("\n");
  });
  chart.addEventListener("mouseleave", () => { readout.textContent = ""; draw(); });
  chooser.addEventListener("change", () => { hidden.clear(); list(); draw(); });
  document.querySelectorAll("input[name=kind]").forEach((radio) => radio.addEventListener("change", draw));
  list();
  draw();
})();
