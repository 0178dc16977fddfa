// Small pictures of numbers: the cache over the last blocks, and sparklines.

const COLUMNS = 64;
const ROLES = ["sink", "merged", "selected", "recent"];

function fit(canvas) {
  const scale = window.devicePixelRatio || 1;
  const { width, height } = canvas.getBoundingClientRect();
  const [w, h] = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
  if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, w, h);
  return { context, w, h, scale };
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** Columns are blocks, rows are frames in the cache, oldest at the bottom; colour is the role, paler is older. */
export class CachePicture {
  constructor(canvas, caption) {
    this.canvas = canvas;
    this.caption = caption;
    this.clear();
  }

  clear() {
    this.columns = [];
    this.draw();
  }

  add(cache) {
    this.columns.push(cache);
    if (this.columns.length > COLUMNS) this.columns.shift();
    this.draw();
  }

  draw() {
    const { context, w, h } = fit(this.canvas);
    const last = this.columns.at(-1);
    if (!last) {
      this.caption.textContent = this.columns.length ? "This method keeps no frame cache." : "";
      this.canvas.setAttribute("aria-label", "What the model remembers: nothing yet");
      return;
    }
    const colours = Object.fromEntries(ROLES.map((role) => [role, colour(role)]));
    const rows = Math.max(...this.columns.map((cache) => (cache ? Math.max(cache.capacity, cache.slots.length) : 0)));
    const [cw, ch] = [w / COLUMNS, h / rows];
    this.columns.forEach((cache, column) => {
      if (!cache) return;
      const newest = Math.max(1, ...cache.slots.map((slot) => slot.frame));
      cache.slots.forEach(({ frame, role }, row) => {
        context.globalAlpha = 0.45 + 0.55 * (frame / newest);
        context.fillStyle = colours[role];
        context.fillRect(column * cw, h - (row + 1) * ch, Math.ceil(cw * 0.86), Math.ceil(ch * 0.86));
      });
    });
    context.globalAlpha = 1;
    const counts = ROLES.map((role) => [role, last.slots.filter((slot) => slot.role === role).length]);
    const text = counts.filter(([, n]) => n).map(([role, n]) => `${n} ${role}`).join(", ");
    const frames = last.slots.length;
    const oldest = frames ? `, oldest is frame ${last.slots[0].frame}` : "";
    this.caption.textContent = `${frames} of ${last.capacity} frames${text ? `: ${text}` : ""}${oldest}`;
    this.canvas.setAttribute("aria-label", `What the model remembers: ${this.caption.textContent}`);
  }
}

const NAMES = {
  brightness: "Brightness",
  contrast: "Contrast",
  saturation: "Saturation",
  sharpness: "Sharpness",
  motion: "Motion (pixels a frame)",
  flicker: "Flicker score (1 is none)",
  frozen: "Frozen (1 is yes)",
  start_distance: "Distance from the start",
  identity_drift: "Identity drift",
  seam: "Seam (1 is none)",
};

/** One line a metric, one point a block, a mark where the prompt changed. */
export class Sparklines {
  constructor(box) {
    this.box = box;
    this.clear();
  }

  clear() {
    this.series = new Map();
    this.marks = [];
    this.length = 0;
    this.box.replaceChildren();
  }

  mark() {
    this.marks.push(this.length);
  }

  add(values) {
    this.length++;
    for (const [name, value] of Object.entries(values)) {
      if (value === null || value === undefined || !(name in NAMES)) continue;
      if (!this.series.has(name)) this.#make(name);
      const line = this.series.get(name);
      line.points.push([this.length, value]);
      if (line.points.length > 2 * COLUMNS) line.points.shift();
    }
    this.draw();
  }

  draw() {
    const ink = colour("ink");
    const faint = colour("line");
    const accent = colour("accent");
    const from = Math.max(1, this.length - 2 * COLUMNS + 1);
    const span = Math.max(1, this.length - from);
    for (const line of this.series.values()) {
      const { context, w, h, scale } = fit(line.canvas);
      const values = line.points.map(([, value]) => value);
      const [low, high] = [Math.min(...values), Math.max(...values)];
      const room = high - low || Math.abs(high) || 1;
      const x = (at) => ((at - from) / span) * (w - 2 * scale) + scale;
      const y = (value) => h - 3 * scale - ((value - low) / room) * (h - 6 * scale);
      context.strokeStyle = faint;
      context.lineWidth = scale;
      for (const mark of this.marks) {
        if (mark < from) continue;
        context.beginPath();
        context.moveTo(x(mark), 0);
        context.lineTo(x(mark), h);
        context.stroke();
      }
      context.strokeStyle = accent;
      context.lineWidth = 1.5 * scale;
      context.lineJoin = "round";
      context.beginPath();
      line.points.forEach(([at, value], i) => (i ? context.lineTo(x(at), y(value)) : context.moveTo(x(at), y(value))));
      context.stroke();
      const [at, value] = line.points.at(-1);
      context.fillStyle = ink;
      context.beginPath();
      context.arc(x(at), y(value), 2.5 * scale, 0, 7);
      context.fill();
      line.value.textContent = short(value);
      line.canvas.setAttribute("aria-label", `${short(value)}, between ${short(low)} and ${short(high)}`);
    }
  }

  #make(name) {
    const row = document.createElement("div");
    const label = document.createElement("span");
    const canvas = document.createElement("canvas");
    const value = document.createElement("output");
    row.className = "spark";
    row.dataset.metric = name;
    label.textContent = NAMES[name];
    canvas.setAttribute("role", "img");
    row.append(label, canvas, value);
    this.box.append(row);
    this.series.set(name, { canvas, value, points: [] });
  }
}

function short(value) {
  const size = Math.abs(value);
  return size >= 100 ? value.toFixed(0) : size >= 10 ? value.toFixed(1) : size >= 0.1 || !size ? value.toFixed(2) : value.toPrecision(2);
}
