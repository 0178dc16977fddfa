// The page: joins connection, session, decoder, player and charts, and nothing else.

import { CachePicture, Sparklines } from "./charts.js";
import { Connection } from "./connection.js";
import { Decoder, supportedFormats } from "./decoder.js";
import { Player } from "./player.js";
import { Recorder } from "./recorder.js";
import { Session } from "./session.js";
import { socketUrl, unpackFrame } from "./wire.js";

const $ = (id) => document.getElementById(id);
const connection = new Connection(socketUrl(location));
const session = new Session(connection, sessionStorage);
const recorder = new Recorder($("video"));
const player = new Player($("video"), shown);
const decoder = new Decoder((frame) => player.push(frame), (error) => trouble(`A picture could not be decoded: ${error.message}`));
const cache = new CachePicture($("cache"), $("cachetext"));
const sparks = new Sparklines($("sparks"));

const LINE = { connecting: "connecting", open: "connected", waiting: "reconnecting", rest: "ready", elsewhere: "watched elsewhere" };
let hello = null;
let accepted = null;
let hidden = false; // paused because nobody looks
let hiding = 0;

// ---------------------------------------------------------------- from the server

connection.addEventListener("state", ({ detail }) => {
  $("line").dataset.state = detail;
  $("line").querySelector("b").textContent = LINE[detail];
  if (detail === "open" && $("trouble").dataset.line) trouble("");
  if (detail === "waiting") refused();
});
connection.addEventListener("latency", ({ detail }) => ($("latency").textContent = `${Math.round(detail)} ms`));
connection.addEventListener("message", ({ detail }) => detail.type === "hello" && greet(detail));
connection.addEventListener("frame", ({ detail }) => {
  const { header, picture } = unpackFrame(detail);
  decoder.decode(header, picture);
});

session.addEventListener("replay", ({ detail }) => {
  decoder.reset();
  player.replay(detail);
});
session.addEventListener("accepted", ({ detail }) => {
  const resumed = detail.resumed && accepted !== null;
  accepted = detail;
  if (!resumed) begin(detail);
  player.held = detail.paused;
  $("summary").textContent = `seed ${detail.seed}, ${detail.config.title || detail.config.name}, ${detail.width}x${detail.height} at ${detail.fps} fps`;
  if (detail.notice) trouble(detail.notice);
  else if (!detail.restarted) trouble("");
});
session.addEventListener("ack", ({ detail }) => {
  if (detail.kind === "prompt") {
    listPrompts();
    sparks.mark();
    if (detail.event?.hard_cut) player.skipTo(detail.applied_at_frame);
    trouble(detail.notice ?? "");
  }
  $("ask").dataset.lastAck = detail.event_id;
});
session.addEventListener("stats", ({ detail }) => {
  $("made").textContent = detail.fps === null ? "–" : `${detail.fps.toFixed(1)} fps`;
  $("first").textContent = detail.time_to_first_frame === null ? "–" : `${detail.time_to_first_frame.toFixed(2)} s`;
  $("block").textContent = times(detail.block_ms.median, detail.block_ms.p95);
  $("block").title = "median / 95th percentile of a block";
  $("memory").textContent = size(detail.memory_bytes);
  $("viewers").textContent = detail.queue.sessions;
  cache.add(detail.cache);
  sparks.add({ ...detail.drift, seam: detail.seam });
});
session.addEventListener("done", () => (player.ended = true));
session.addEventListener("trouble", ({ detail }) => trouble(detail, true));
session.addEventListener("state", buttons);

/** A browser does not tell why a websocket was refused; the page itself is refused for the same reason. */
async function refused() {
  const answer = await fetch("/", { method: "GET", cache: "no-store" }).catch(() => null);
  if (answer?.status === 401) trouble("The server has another token now: open the address that it printed.", true);
}

function greet(message) {
  const first = hello === null;
  hello = message;
  $("model").textContent = `${message.model}, ${message.width}x${message.height}`;
  if (!first) return;
  for (const { name, title, summary } of message.methods) $("method").append(option(name, title, summary));
  $("method").value = session.request?.method ?? message.method;
  for (const format of supportedFormats(message.formats)) $("format").append(option(format, format));
  if (session.request) {
    $("prompt").value = session.prompts.at(-1)?.text ?? session.request.prompt;
    $("format").value = session.request.format;
  }
  describe();
}

function begin(message) {
  decoder.reset();
  player.reset(Math.max(message.replay_from, session.lastShown), message.fps);
  cache.clear();
  sparks.clear();
  recorder.clear();
  delete $("stage").dataset.frame;
  delete $("prompts").dataset.key;
  listPrompts();
}

// ---------------------------------------------------------------- from the player

function shown(header, urgent, skipped) {
  session.shown(header.id, urgent);
  if (skipped) return;
  recorder.run();
  $("save").disabled = !recorder.supported;
  const seconds = Math.floor(header.pts);
  $("clock").textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
  $("stage").dataset.frame = header.id;
  $("stage").dataset.lost = player.lost;
  listPrompts(header.id);
}

setInterval(() => {
  const playing = session.live && player.position !== null;
  $("fps").textContent = playing ? `${player.shownFps.toFixed(1)} fps` : "–";
  $("buffer").textContent = session.live ? `${player.buffered.toFixed(2)} s` : "–";
  veil();
}, 250);

function veil() {
  const shownSomething = player.position !== null;
  let text = "";
  if (session.state === "idle") text = "Write what should be seen, then press Start.";
  else if (session.state === "ended") text = shownSomething && player.queue.length ? "" : "The end.";
  else if (session.state === "paused") text = "Paused.";
  else if (connection.state !== "open") text = "The line is broken. Connecting again.";
  else if (!shownSomething) text = "The first frames are being made.";
  else if (player.waiting && !player.queue.length) text = "Waiting for frames.";
  if ($("veil").textContent !== text) $("veil").textContent = text;
}

// ---------------------------------------------------------------- from the user

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const prompt = $("prompt").value.trim();
  if (!prompt) return trouble("Write a prompt first.");
  trouble("");
  if (session.state === "running" || session.state === "paused") {
    $("ask").dataset.lastEvent = session.steer("prompt", { prompt, hard_cut: $("cut").checked });
    return;
  }
  accepted = null;
  const number = (id) => ($(id).value === "" ? null : Number($(id).value));
  session.start({
    prompt,
    seconds: number("seconds"),
    seed: number("seed"),
    method: $("method").value,
    format: $("format").value,
  });
});
$("pause").addEventListener("click", togglePause);
$("stop").addEventListener("click", () => session.stop());
$("save").addEventListener("click", async () => {
  const film = await recorder.take();
  if (!film) return trouble("Nothing was recorded yet.");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(film);
  link.download = `longvid-${accepted?.seed ?? "video"}.${film.type.endsWith("mp4") ? "mp4" : "webm"}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  if (recorder.full) trouble("The recording is full: it holds the first 256 MB of what was seen.");
});
$("method").addEventListener("change", describe);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const writing = event.target instanceof HTMLElement && event.target.closest("input, select, button, a");
  if (event.key === " " && !writing && session.live) {
    event.preventDefault();
    togglePause();
  } else if (event.key === "/" && !writing) {
    event.preventDefault();
    $("prompt").focus();
    $("prompt").select();
  }
});
document.addEventListener("visibilitychange", () => {
  // A page that nobody sees shows no frames, and the model should not make any for it. A page that is being left or
  // reloaded is hidden, too, but not for long.
  clearTimeout(hiding);
  if (document.hidden) {
    hiding = setTimeout(() => {
      hidden = session.state === "running";
      if (hidden) session.steer("pause");
    }, 1000);
  } else if (hidden) {
    hidden = false;
    session.steer("resume");
  }
  if (!document.hidden) connection.hurry();
});
window.addEventListener("online", () => connection.hurry());
for (const query of ["(prefers-color-scheme: dark)"]) matchMedia(query).addEventListener("change", redraw);
window.addEventListener("resize", redraw);

function togglePause() {
  const pause = session.state === "running";
  player.held = pause;
  if (pause) recorder.hold();
  session.steer(pause ? "pause" : "resume");
}

// ---------------------------------------------------------------- on the page

function buttons() {
  const live = session.state === "running" || session.state === "paused";
  $("go").textContent = live ? "Change" : "Start";
  $("go").disabled = session.state === "starting";
  $("pause").disabled = !live;
  $("pause").textContent = session.state === "paused" ? "Go on" : "Pause";
  $("pause").setAttribute("aria-pressed", String(session.state === "paused"));
  $("stop").disabled = !session.live;
  $("settings").disabled = session.live;
  $("stage").dataset.state = session.state;
  if (session.state === "running") player.held = false;
  if (session.state === "ended") recorder.hold();
  veil();
}

function listPrompts(frame = Number($("stage").dataset.frame ?? 0)) {
  const prompts = session.prompts;
  const current = prompts.findLastIndex((entry) => entry.from <= frame);
  const key = `${prompts.length}/${current}`;
  if ($("prompts").dataset.key === key) return;
  $("prompts").dataset.key = key;
  $("caption").textContent = prompts[current]?.text ?? "";
  $("prompts").replaceChildren(
    ...prompts.slice(-8).map((entry) => {
      const item = document.createElement("li");
      const time = document.createElement("span");
      const seconds = Math.floor(entry.from / (accepted?.fps ?? 16));
      time.textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
      item.append(time, entry.text);
      if (entry === prompts[current]) item.setAttribute("aria-current", "true");
      return item;
    }),
  );
}

function describe() {
  const method = hello?.methods.find(({ name }) => name === $("method").value);
  if (!session.live) $("summary").textContent = method?.summary ?? "";
}

function trouble(text, line = false) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
  if (line) $("trouble").dataset.line = "1";
  else delete $("trouble").dataset.line;
}

function redraw() {
  cache.draw();
  sparks.draw();
}

function option(value, label, title = "") {
  const element = document.createElement("option");
  [element.value, element.textContent, element.title] = [value, label || value, title];
  return element;
}

/** Two durations in one unit. */
function times(a, b) {
  return b < 1000 ? `${a.toFixed(0)} / ${b.toFixed(0)} ms` : `${(a / 1000).toFixed(1)} / ${(b / 1000).toFixed(1)} s`;
}

function size(bytes) {
  const units = ["B", "kB", "MB", "GB"];
  const power = Math.min(3, Math.floor(Math.log10(Math.max(1, bytes)) / 3));
  return `${(bytes / 1000 ** power).toFixed(power ? 1 : 0)} ${units[power]}`;
}

buttons();
connection.open();
