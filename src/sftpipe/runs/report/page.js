"use strict";

/* Charts: pointing, touching or the arrow keys show the entry that is nearest. */
for (const plot of document.querySelectorAll(".plot[tabindex]")) {
  const figure = plot.closest("figure");
  const points = JSON.parse(figure.querySelector("script").textContent);
  const readout = figure.querySelector(".readout");
  const hint = readout.textContent;
  let at = -1;

  function element(svg, tag, attributes) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.classList.add("cursor");
    svg.append(made);
  }

  function show(index) {
    at = index;
    for (const old of plot.querySelectorAll(".cursor")) old.remove();
    readout.textContent = at < 0 ? hint : points[at].text;
    if (at < 0) return;
    for (const svg of plot.querySelectorAll("svg")) {
      const [left, top, right, bottom] = svg.parentElement.dataset[svg.classList[0]].split(" ").map(Number);
      const x = left + points[at].x * (right - left);
      element(svg, "line", {x1: x, x2: x, y1: top, y2: bottom});
      for (const [share, series] of points[at].dots) {
        const y = top + share * (bottom - top);
        element(svg, "circle", {cx: x, cy: y, r: 4, style: `fill: var(--series-${series}); stroke: var(--page); stroke-dasharray: none`});
      }
    }
  }

  function point(event) {
    const svg = [...plot.querySelectorAll("svg")].find((one) => one.getBoundingClientRect().width);
    const box = svg.getBoundingClientRect();
    const [left, , right] = plot.dataset[svg.classList[0]].split(" ").map(Number);
    const scale = svg.viewBox.baseVal.width / box.width;
    const share = ((event.clientX - box.left) * scale - left) / (right - left);
    let best = 0;
    points.forEach((one, index) => { if (Math.abs(one.x - share) < Math.abs(points[best].x - share)) best = index; });
    show(best);
  }

  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerdown", point);
  plot.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse" && document.activeElement !== plot) show(-1); });
  plot.addEventListener("blur", () => show(-1));
  plot.addEventListener("keydown", (event) => {
    const last = points.length - 1;
    const moves = {ArrowRight: Math.min(at + 1, last), ArrowLeft: Math.max(at - 1, 0), Home: 0, End: last};
    if (!(event.key in moves) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    show(moves[event.key]);
  });
}

/* On paper everything is open. */
addEventListener("beforeprint", () => { for (const one of document.querySelectorAll("details")) one.open = true; });

/* Tables: the heading of a column sorts by it, numbers by value. */
for (const heading of document.querySelectorAll("table.sorts th")) {
  const button = document.createElement("button");
  button.append(...heading.childNodes);
  button.type = "button";
  heading.append(button);
  button.addEventListener("click", () => {
    const table = heading.closest("table");
    const column = [...heading.parentElement.children].indexOf(heading);
    const up = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const compare = (one, two) => {
      const [a, b] = [key(one), key(two)];
      const numbers = a !== "" && b !== "" && !isNaN(a) && !isNaN(b);
      return (up ? 1 : -1) * (numbers ? a - b : a.localeCompare(b));
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  });
}
