// Scroll through a case in three planes with its boxes. The pictures of a case are axial; they are decoded into one
// array of grey values, from which every plane is drawn. Axes are 0 = right to left, 1 = front to back, 2 = up; mm.
"use strict";
{
  const root = document.querySelector(".viewer");
  const at = (name) => root.querySelector(`[name=${name}]`);
  const text = (name, words) => root.querySelector(`.${name}`).replaceChildren(words);
  const ORDER = JSON.parse(document.getElementById("viewer-order").textContent); // of kinds, the worst one first
  const LISTED = 200, NOTCH = 100, LABEL = 12; // findings in the list; wheel px a slice; font size in px

  const panes = [...root.querySelectorAll(".plane")].map((figure, n) => ({
    across: [0, 0, 1][n], down: [1, 2, 2][n], through: [2, 1, 0][n], rolled: 0,
    canvas: figure.querySelector("canvas"), svg: figure.querySelector("svg"), picture: figure.querySelector(".picture"),
    slider: figure.querySelector("input"), said: figure.querySelector("output"),
    unscaled: document.createElement("canvas"),
  }));
  let scan, grey, extent, place = [0, 0, 0], shade, table, boxes = [], found = [], chosen = -1, opening = 0;

  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const slice = (axis, mm = place[axis]) => clamp(Math.floor(mm / scan.step[axis]), 0, scan.shape[axis] - 1);
  const format = (score) => score.toFixed(2);

  // ---- opening a case

  async function open(number) {
    const turn = ++opening;
    scan = JSON.parse(document.getElementById(`viewer-case-${number}`).textContent);
    extent = scan.shape.map((n, axis) => n * scan.step[axis]);
    grey = new Uint8Array(scan.shape[0] * scan.shape[1] * scan.shape[2]);
    place = extent.map((mm) => mm / 2);
    panes.forEach((pane) => {
      pane.slider.max = scan.shape[pane.through];
      pane.picture.style.setProperty("--ratio", extent[pane.across] / extent[pane.down]);
    });
    offerWindows();
    root.setAttribute("aria-busy", "true");
    refresh();
    choose(0);
    try {
      await decode(turn);
    } catch (error) {
      text("status", `A picture of this case cannot be shown: ${error.message}`);
    }
    if (turn === opening) root.setAttribute("aria-busy", "false");
  }

  async function decode(turn) {
    const [columns, rows, n] = scan.shape, pending = new Set(Array(n).keys());
    const context = Object.assign(document.createElement("canvas"), { width: columns, height: rows })
      .getContext("2d", { willReadFrequently: true });
    while (pending.size) { // always the one nearest to where the reader is
      const z = [...pending].reduce((best, one) => Math.abs(one - slice(2)) < Math.abs(best - slice(2)) ? one : best);
      pending.delete(z);
      const image = new Image();
      image.src = `data:image/webp;base64,${scan.pictures[z]}`;
      await image.decode();
      if (turn !== opening) return; // another case was chosen meanwhile
      context.drawImage(image, 0, 0);
      const { data } = context.getImageData(0, 0, columns, rows);
      for (let i = 0, out = z * columns * rows; i < data.length; i += 4) grey[out++] = data[i];
      if (z === slice(2)) drawPane(panes[0]);
      if (pending.size % 32 === 0) draw();
    }
  }

  // ---- grey values

  function offerWindows() {
    const low = scan.codes[0][1], high = scan.codes.at(-1)[1], step = 10 ** Math.floor(Math.log10((high - low) / 300));
    Object.assign(at("level"), { min: low, max: high, step });
    Object.assign(at("width"), { min: step, max: high - low, step });
    at("window").replaceChildren(...[...scan.windows, ["own"]].map(([name], n) => new Option(name, n)));
    at("window").value = scan.window;
    takeWindow();
  }

  function takeWindow() {
    const [, low, high] = scan.windows[at("window").value] ?? [];
    if (high !== undefined) shade = { level: (low + high) / 2, width: high - low };
    setTable();
  }

  function setTable() { // grey value of the pictures -> pixel
    for (const [name, value] of Object.entries(shade)) { // the slider takes the nearest value that it has
      at(name).value = value;
      at(name).nextElementSibling.textContent = Number(value.toPrecision(4));
      at(name).setAttribute("aria-valuetext", Number(value.toPrecision(4)));
    }
    const low = shade.level - shade.width / 2, high = low + shade.width;
    table = new Uint32Array(256);
    for (let code = 0, knot = 1; code < 256; code++) {
      if (code > scan.codes[knot][0]) knot++;
      const [[code0, value0], [code1, value1]] = [scan.codes[knot - 1], scan.codes[knot]];
      const value = value0 + (value1 - value0) * (code - code0) / (code1 - code0);
      table[code] = 0xff000000 | Math.round(255 * clamp((value - low) / (high - low), 0, 1)) * 0x010101;
    }
  }

  // ---- drawing

  function draw() { panes.forEach(drawPane); }

  function drawPane(pane) {
    const { across, down, through, canvas, unscaled } = pane, index = slice(through), zoom = Number(at("zoom").value);
    const [columns, rows] = [scan.shape[across], scan.shape[down]];
    const strides = [1, scan.shape[0], scan.shape[0] * scan.shape[1]];
    Object.assign(unscaled, { width: columns, height: rows });
    const image = new ImageData(columns, rows), pixels = new Uint32Array(image.data.buffer);
    for (let row = 0, out = 0; row < rows; row++) {
      let from = index * strides[through] + (down === 2 ? rows - 1 - row : row) * strides[down];
      for (let column = 0; column < columns; column++, from += strides[across]) pixels[out++] = table[grey[from]];
    }
    unscaled.getContext("2d").putImageData(image, 0, 0);
    const [width, height] = [extent[across] / zoom, extent[down] / zoom];
    const left = clamp(place[across] - width / 2, 0, extent[across] - width);
    const top = clamp((down === 2 ? extent[2] - place[2] : place[down]) - height / 2, 0, extent[down] - height);
    [canvas.width, canvas.height] = [canvas.clientWidth, canvas.clientHeight].map((n) => n * devicePixelRatio);
    const [x, y] = [scan.step[across], scan.step[down]], context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(unscaled, left / x, top / y, width / x, height / y, 0, 0, canvas.width, canvas.height);
    pane.frame = { left, top, width, height };
    const drawn = drawBoxes(pane, index);
    const [merged, n] = through === 2 ? [scan.merged, scan.slices] : [1, scan.shape[through]];
    const first = index * merged + 1, last = Math.min(first + merged - 1, n);
    pane.slider.value = index + 1;
    pane.said.textContent = `${last > first ? `slices ${first} to ${last}` : `slice ${first}`} of ${n}`;
    pane.slider.setAttribute("aria-valuetext", `${pane.said.textContent}, boxes: ${drawn}`);
  }

  function drawBoxes({ across, down, through, svg, frame }, index) {
    const px = frame.width / (svg.clientWidth || 1), [low, high] = [index, index + 1].map((n) => n * scan.step[through]);
    svg.setAttribute("viewBox", `${frame.left} ${frame.top} ${frame.width} ${frame.height}`);
    const here = boxes.filter(({ box }) => box[through] < high && box[through + 3] > low);
    svg.replaceChildren(...here.map((mark) => {
      const x = mark.box[across], y = down === 2 ? extent[2] - mark.box[5] : mark.box[down];
      const [width, height] = [across, down].map((axis) => mark.box[axis + 3] - mark.box[axis]);
      const group = node("g", {}, node("title", {}, mark.said));
      for (const style of ["halo", mark.kind]) group.append(node("rect", { class: style, x, y, width, height }));
      group.classList.toggle("chosen", mark === found[chosen]);
      if (mark.score !== null) {
        const side = clamp(x, frame.left, frame.left + frame.width - 30 * px), up = y - 4 * px;
        const line = up - LABEL * px > frame.top ? up : y + height + (LABEL + 2) * px;
        group.append(node("text", { x: side, y: line, "font-size": LABEL * px }, format(mark.score)));
      }
      return group;
    }));
    return here.length;
  }

  function node(name, attributes, ...content) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    made.append(...content);
    return made;
  }

  // ---- findings

  function refresh(keep) { // what the score slider leaves, and a list of it, worst first
    const all = scan.arms[at("arm")?.value ?? 0], least = Number(at("score").value);
    boxes = all.filter(({ score }) => score === null || score >= least)
      .map((mark) => (mark.foundAt ?? 1) < least ? { ...mark, kind: "missed", said: mark.below } : mark);
    found = boxes.filter(({ kind }) => ORDER.includes(kind))
      .sort((a, b) => ORDER.indexOf(a.kind) - ORDER.indexOf(b.kind)); // of one kind they are in order
    chosen = keep ? found.findIndex(({ row }) => row === keep.row) : -1;
    const n = (kind) => boxes.filter((mark) => mark.kind === kind).length;
    text("counts", !scan.labelled ? `Boxes at this score: ${n("prediction")}`
      : `At this score: found ${n("found")} of ${n("found") + n("missed")}, false positives: ${n("fp")}`);
    text("threshold", format(least));
    root.querySelector("ol").replaceChildren(...found.slice(0, LISTED).map((mark, index) => {
      const item = document.createElement("li"), button = document.createElement("button");
      const words = `${mark.said}, slice ${mark.slice + 1}`;
      Object.assign(button, { type: "button", className: `is-${mark.kind}`, textContent: words });
      button.addEventListener("click", () => choose(index));
      item.append(button);
      return item;
    }));
    pointOut();
  }

  function choose(index) { // beyond the last one comes the first
    chosen = found.length ? (index + found.length) % found.length : -1;
    if (chosen >= 0) {
      place = [0, 1].map((axis) => (found[chosen].box[axis] + found[chosen].box[axis + 3]) / 2);
      place[2] = (found[chosen].slice + 0.5) * scan.step[2] / scan.merged;
    }
    pointOut();
    draw();
  }

  function pointOut() {
    const list = root.querySelector("ol");
    list.querySelectorAll("[aria-current]").forEach((button) => button.removeAttribute("aria-current"));
    const button = list.children[chosen]?.firstElementChild;
    button?.setAttribute("aria-current", "true");
    if (button) list.scrollTop = button.offsetTop - list.offsetTop - 40;
    const n = found.length;
    text("status", chosen < 0 ? `places to look at: ${n}` : `${chosen + 1} of ${n}: ${found[chosen].said}`);
  }

  // ---- hands

  const roll = ({ through }, slices) => {
    place[through] = (clamp(slice(through) + slices, 0, scan.shape[through] - 1) + 0.5) * scan.step[through];
    draw();
  };
  panes.forEach((pane) => {
    pane.slider.addEventListener("input", () => roll(pane, Number(pane.slider.value) - 1 - slice(pane.through)));
    pane.picture.addEventListener("wheel", (event) => {
      if (event.ctrlKey) return; // the browser's own zoom
      event.preventDefault();
      pane.rolled += event.deltaY * (event.deltaMode ? 34 : 1);
      const slices = Math.trunc(pane.rolled / NOTCH);
      pane.rolled -= slices * NOTCH;
      if (slices) roll(pane, -slices);
    }, { passive: false });
    pane.picture.addEventListener("click", (event) => {
      const { frame, across, down } = pane, { left, top, width, height } = pane.picture.getBoundingClientRect();
      const y = frame.top + frame.height * (event.clientY - top) / height;
      place[across] = frame.left + frame.width * (event.clientX - left) / width;
      place[down] = down === 2 ? extent[2] - y : y;
      pane.slider.focus({ preventScroll: true });
      draw();
    });
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.tagName === "SELECT") return;
    const key = event.key.toLowerCase(); // with Caps Lock, too
    if (key === "n") choose(chosen + 1);
    else if (key === "p") choose(Math.max(chosen, 0) - 1);
    else if (key === "b") at("boxes").checked = !at("boxes").checked;
  });
  at("next").addEventListener("click", () => choose(chosen + 1));
  at("previous").addEventListener("click", () => choose(Math.max(chosen, 0) - 1));
  at("case").addEventListener("change", () => open(at("case").value));
  at("arm")?.addEventListener("change", () => { refresh(); draw(); });
  at("score").addEventListener("input", () => { refresh(found[chosen]); draw(); });
  at("zoom").addEventListener("input", draw);
  at("window").addEventListener("change", () => { takeWindow(); draw(); });
  ["level", "width"].forEach((name) => at(name).addEventListener("input", () => {
    at("window").value = scan.windows.length;
    shade[name] = Number(at(name).value);
    setTable();
    draw();
  }));
  new ResizeObserver(draw).observe(root.querySelector(".planes"));
  open(at("case").value);
}
