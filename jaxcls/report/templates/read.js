// The values of a chart at the pointer, a finger, or by the arrow keys.
for (const plot of document.querySelectorAll(".plot")) {
  const {unit, lines, is_percent, is_scattered, is_log, x, y} =
    JSON.parse(plot.dataset.readings);
  const svg = plot.querySelector("svg");
  const ink = (line) => (line.colour ? `var(--run${line.colour})` : "currentColor");
  const text = (value) => (is_percent ? `${+(100 * value).toFixed(2)} %` : `${value}`);
  const short = (number) => +(number > 1 ? number.toFixed(1) : number.toPrecision(2));
  const epochs = (line, at) => ` / epoch ${short(at / line.epoch)}`;

  // What is read together: the points of all lines at one x, from left to right.
  const stops = new Map();
  for (const line of lines) {
    for (const [at, value] of line.points) {
      const height = line.height ?? (is_log ? Math.log10(value) : value);
      const point = {line, value, x: x[0] + x[1] * at, y: y[0] + y[1] * height};
      stops.set(at, [...(stops.get(at) ?? []), point]);
    }
  }
  const all = [...stops].sort(([a], [b]) => a - b);
  if (!all.length) continue;

  const marks = document.createElementNS(svg.namespaceURI, "g");
  svg.append(marks);
  const box = document.createElement("div");
  box.className = is_scattered ? "readout above" : "readout";
  box.setAttribute("role", "status");
  plot.append(box);
  plot.tabIndex = 0;
  plot.setAttribute("role", "group");
  plot.setAttribute("aria-label", `${plot.dataset.title}: left and right read its values`);

  const mark = (name, values) => {
    const made = document.createElementNS(svg.namespaceURI, name);
    for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
    marks.append(made);
  };
  const say = (kind, what, colour) => {
    const row = document.createElement(kind);
    if (colour) {
      const dot = document.createElement("span");
      dot.className = "swatch";
      dot.style.background = colour;
      row.append(dot);
    }
    row.append(what);
    box.append(row);
  };

  let shown = -1;
  const hide = () => {
    shown = -1;
    marks.replaceChildren();
    box.replaceChildren();
  };
  const show = (index) => {
    if (index === shown) return;
    hide();
    shown = index;
    const [at, points] = all[index];
    const {height, width} = svg.viewBox.baseVal;
    const are_alike = new Set(points.map(({line}) => line.epoch)).size === 1;
    const has_head = are_alike ? points[0].line.epoch : 0;
    if (!is_scattered) {
      mark("path", {d: `M${points[0].x} 0V${height}`, stroke: "var(--soft)", "stroke-width": 0.5});
      say("strong", `${unit} ${Number.isInteger(at) ? at : +at.toPrecision(3)}${has_head ? epochs(points[0].line, at) : ""}`);
    }
    for (const {line, value, x: cx, y: cy} of points) {
      mark("circle", {cx, cy, r: 3.2, fill: ink(line), stroke: "var(--paper)"});
      const own = are_alike || !line.epoch ? "" : epochs(line, at);
      say("div", `${line.name}${own}: ${text(value)}`, ink(line));
    }
    // On the side of the mark where there is more room.
    const is_left = width / 2 > points[0].x;
    box.style.left = is_left ? `min(${(100 * points[0].x) / width + 3}%, 100% - ${box.offsetWidth}px)` : "auto";
    box.style.right = is_left ? "auto" : `min(${103 - (100 * points[0].x) / width}%, 100% - ${box.offsetWidth}px)`;
  };
  const nearest = (event) => {
    const {left, top, width} = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / width;
    const [px, py] = [scale * (event.clientX - left), scale * (event.clientY - top)];
    const far = ([, points]) => Math.min(...points.map((point) =>
      Math.abs(point.x - px) + (is_scattered ? Math.abs(point.y - py) : 0)));
    const gaps = all.map(far);
    return gaps.indexOf(Math.min(...gaps));
  };
  plot.addEventListener("pointermove", (event) => show(nearest(event)));
  plot.addEventListener("pointerdown", (event) => show(nearest(event)));
  plot.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") hide();
  });
  plot.addEventListener("blur", hide);
  plot.addEventListener("focus", () => {
    if (plot.matches(":focus-visible")) show(all.length - 1);
  });
  plot.addEventListener("keydown", (event) => {
    const last = all.length - 1;
    const to = {ArrowLeft: Math.max(0, shown - 1), ArrowRight: Math.min(last, shown + 1),
      Home: 0, End: last}[event.key];
    if (event.key === "Escape") hide();
    if (to === undefined) return;
    event.preventDefault();
    show(to);
  });
}
