// A video session on a connection: start, steer, take up again after a reload, a broken line or a restarted server.

const STORE = "longvid.session";
const BUSY_WAIT = 3000;

/** Events: "state", "accepted", "ack", "stats", "done", "trouble" (text), "replay" (first frame id). */
export class Session extends EventTarget {
  constructor(connection, storage) {
    super();
    this.connection = connection;
    this.storage = storage;
    this.state = "idle"; // idle, starting, running, paused, ended
    this.request = null;
    this.token = null;
    this.lastShown = -1;
    this.prompts = []; // {from: first frame, text}
    this.pending = new Map(); // events without their acknowledgement, sent again after a resume
    this.lastAck = null; // id of the event that was acknowledged last
    this.counter = 0;
    this.reloaded = this.restarted = false;
    this.#restore();
    connection.needed = () => this.live;
    connection.addEventListener("message", ({ detail }) => this.#receive(detail));
    connection.addEventListener("state", ({ detail }) => detail === "open" && this.#connected());
  }

  get live() {
    return this.state === "starting" || this.state === "running" || this.state === "paused";
  }

  start(request) {
    clearTimeout(this.retry);
    this.request = request;
    this.token = null;
    this.lastShown = -1;
    this.prompts = [{ from: 0, text: request.prompt }];
    this.pending.clear();
    this.#set("starting");
    this.connection.send({ type: "start", ...request });
    this.connection.open();
  }

  /** Send an event; returns its id. */
  steer(kind, fields = {}) {
    const event = { type: "event", event_id: `${Date.now().toString(36)}-${this.counter++}`, kind, ...fields };
    this.pending.set(event.event_id, event);
    this.connection.send(event);
    return event.event_id;
  }

  stop() {
    clearTimeout(this.retry);
    if (this.state === "starting" && !this.token) return this.#set("ended"); // it waits for a free place
    this.steer("stop");
  }

  /** Frames up to id were shown. */
  shown(id, urgent) {
    if (id <= this.lastShown) return;
    this.lastShown = id;
    const now = performance.now();
    if (!urgent && now - (this.ackedAt ?? -1e9) < 100) return;
    this.ackedAt = now;
    this.connection.send({ type: "ack", last_id: id });
    this.#save();
  }

  #connected() {
    if (this.token && this.state !== "ended") {
      // The last picture comes again, so that a reloaded page has one even while the session is paused.
      this.connection.send({ type: "resume", resume_token: this.token, last_id: Math.max(-1, this.lastShown - 1) });
    } else if (this.state === "starting") {
      this.connection.send({ type: "start", ...this.request });
    }
  }

  #receive(message) {
    if (message.type === "accepted") return this.#accepted(message);
    if (message.type === "stats") return this.#emit("stats", message);
    if (message.type === "event.ack") {
      if (message.event_id === this.lastAck) return; // of the copy that was sent after a resume
      this.lastAck = message.event_id;
      const event = this.pending.get(message.event_id);
      this.pending.delete(message.event_id);
      if (message.kind === "pause") this.#set("paused");
      if (message.kind === "resume") this.#set("running");
      if (message.kind === "prompt") {
        this.prompts.push({ from: message.applied_at_frame, text: event?.prompt ?? "(another prompt)" });
        this.#save();
      }
      return this.#emit("ack", { ...message, event });
    }
    if (message.type === "done") {
      this.#forget();
      this.#set("ended");
      return this.#emit("done", message);
    }
    if (message.type === "error") this.#error(message);
  }

  #accepted(message) {
    this.token = message.resume_token;
    if (!message.resumed) this.lastShown = -1;
    this.request = { ...this.request, seed: message.seed }; // a restarted server shows the same video again
    this.#set(message.paused ? "paused" : "running");
    this.#save();
    this.#emit("replay", message.replay_from);
    this.#emit("accepted", { ...message, restarted: this.restarted });
    this.reloaded = this.restarted = false;
    for (const event of this.pending.values()) this.connection.send(event);
  }

  #error(message) {
    if (message.event_id) this.pending.delete(message.event_id);
    if (message.code === "unknown_session") return this.#lost();
    if (message.code === "busy" && this.state === "starting") {
      this.#emit("trouble", "All places are taken. Trying again; press Stop to give up.");
      this.retry = setTimeout(() => this.connection.send({ type: "start", ...this.request }), BUSY_WAIT);
      return;
    }
    if (message.code === "shutting_down") return this.#emit("trouble", "The server is going down. Waiting for it to come back.");
    if (message.code.endsWith("_timeout") && message.code !== "pause_timeout") return; // the connection is made anew
    if (message.fatal || this.state === "starting") {
      this.#forget();
      this.#set("ended");
    }
    this.#emit("trouble", message.message);
  }

  /** The server does not know the session any more: it restarted, or the grace time is over. */
  #lost() {
    this.#forget();
    const reloaded = this.reloaded;
    this.reloaded = false;
    if (reloaded) {
      this.#set("idle");
      return this.#emit("trouble", "The session is over. Press Start for a new one.");
    }
    this.#emit("trouble", "The server has restarted: the video begins again.");
    this.restarted = true;
    this.start(this.request);
  }

  #set(state) {
    if (this.state === state) return;
    this.state = state;
    this.#emit("state", state);
  }

  #save() {
    const kept = { token: this.token, lastShown: this.lastShown, request: this.request, prompts: this.prompts };
    this.storage.setItem(STORE, JSON.stringify(kept));
  }

  #forget() {
    this.token = null;
    this.pending.clear();
    this.storage.removeItem(STORE);
  }

  #restore() {
    const kept = this.storage.getItem(STORE);
    if (!kept) return;
    Object.assign(this, JSON.parse(kept), { reloaded: true, state: "starting" });
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
